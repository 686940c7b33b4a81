//! Mails and their way: waiting → sending → settled (sent, refused, cancelled, expired), or back to waiting.

use sqlx::{FromRow, Sqlite, Transaction};
use std::collections::BTreeMap;

use super::{Importance, Lang, Scope, Store, reports};

/// A mail that is now being sent.
#[derive(Debug)]
pub(crate) struct Mail {
    pub(crate) id: i64,
    /// The server's id, where the server owes the mail.
    pub(crate) server_id: Option<String>,
    pub(crate) kind: MailKind,
    pub(crate) address: String,
    pub(crate) lang: Lang,
    pub(crate) urgent: bool,
    /// Attempts before this one.
    pub(crate) attempts: i64,
    pub(crate) created_ms: i64,
}

/// What a mail says.
#[derive(Debug)]
pub(crate) enum MailKind {
    /// A digest of notices.
    Notices(Vec<NoticeRow>),
    /// A template of the server's with its parameters.
    Owed { template: String, parameters: BTreeMap<String, String> },
}

/// A notice in a mail.
#[derive(Debug, FromRow)]
pub(crate) struct NoticeRow {
    pub(crate) event_id: String,
    scope: String,
    pub(crate) to_all: bool,
    importance: String,
    pub(crate) room_number: Option<i64>,
    pub(crate) room_name: Option<String>,
    pub(crate) sender: Option<String>,
}

/// A mail that the server owes, as leased.
#[derive(Debug)]
pub(crate) struct NewOwed {
    pub(crate) server_id: String,
    pub(crate) template: &'static str,
    pub(crate) lang: Lang,
    pub(crate) address: String,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) urgent: bool,
    pub(crate) due_ms: i64,
}

#[derive(FromRow)]
struct MailRow {
    id: i64,
    server_id: Option<String>,
    kind: String,
    address: String,
    lang: String,
    parameters: Option<String>,
    urgent: bool,
    attempts: i64,
    created_ms: i64,
}

impl NoticeRow {
    pub(crate) fn scope(&self) -> Scope {
        Scope::of(&self.scope)
    }

    pub(crate) fn importance(&self) -> Importance {
        Importance::of(&self.importance)
    }
}

impl Store {
    /// Takes over a leased mail. One that was settled before is reported again; one in the queue stays as it is.
    pub(crate) async fn add_owed(&self, owed: &NewOwed, now_ms: i64) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        let known: Option<(String,)> = sqlx::query_as("SELECT state FROM mails WHERE server_id = $1")
            .bind(&owed.server_id)
            .fetch_optional(&mut *tx)
            .await?;
        match known {
            Some((state,)) if state == "sent" => {
                reports::add_done(&mut tx, &owed.server_id, "sent", "250", now_ms).await?;
            }
            Some((state,)) if state == "refused" || state == "expired" => {
                reports::add_done(&mut tx, &owed.server_id, "refused", &state, now_ms).await?;
            }
            Some(_) => {}
            None => {
                sqlx::query(
                    "INSERT INTO mails (kind, server_id, account, address, lang, parameters, state, urgent, ambiguous, attempts, created_ms, due_ms) \
                     VALUES ($1, $2, '', $3, $4, $5, 'waiting', $6, FALSE, 0, $7, $8)",
                )
                .bind(owed.template)
                .bind(&owed.server_id)
                .bind(&owed.address)
                .bind(owed.lang.code())
                .bind(serde_json::json!(owed.parameters).to_string())
                .bind(owed.urgent)
                .bind(now_ms)
                .bind(owed.due_ms)
                .execute(&mut *tx)
                .await?;
            }
        }
        tx.commit().await
    }

    /// Takes due mails out of the queue: urgent ones first, then by time.
    pub(crate) async fn claim_due(&self, now_ms: i64, max: usize) -> Result<Vec<Mail>, sqlx::Error> {
        let mut tx = self.write().await?;
        let rows: Vec<MailRow> = sqlx::query_as(
            "UPDATE mails SET state = 'sending' WHERE id IN \
             (SELECT id FROM mails WHERE state = 'waiting' AND due_ms <= $1 ORDER BY urgent DESC, due_ms, id LIMIT $2) \
             RETURNING id, server_id, kind, address, lang, parameters, urgent, attempts, created_ms",
        )
        .bind(now_ms)
        .bind(i64::try_from(max).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await?;
        let mut mails = Vec::with_capacity(rows.len());
        for row in rows {
            let kind = if row.kind == "notices" {
                MailKind::Notices(
                    sqlx::query_as(
                        "SELECT event_id, scope, to_all, importance, room_number, room_name, sender \
                         FROM notices WHERE mail = $1 AND live ORDER BY id",
                    )
                    .bind(row.id)
                    .fetch_all(&mut *tx)
                    .await?,
                )
            } else {
                let parameters = serde_json::from_str(row.parameters.as_deref().unwrap_or("{}"))
                    .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
                MailKind::Owed { template: row.kind, parameters }
            };
            mails.push(Mail {
                id: row.id,
                server_id: row.server_id,
                kind,
                address: row.address,
                lang: Lang::of(&row.lang),
                urgent: row.urgent,
                attempts: row.attempts,
                created_ms: row.created_ms,
            });
        }
        tx.commit().await?;
        Ok(mails)
    }

    /// When the next mail is due.
    pub(crate) async fn next_due_ms(&self) -> Result<Option<i64>, sqlx::Error> {
        sqlx::query_scalar("SELECT MIN(due_ms) FROM mails WHERE state = 'waiting'")
            .fetch_one(&self.pool)
            .await
    }

    /// The SMTP server has taken the mail over.
    pub(crate) async fn sent(&self, mail: &Mail, now_ms: i64) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        if let Some(server_id) = &mail.server_id {
            reports::add_done(&mut tx, server_id, "sent", "250", now_ms).await?;
        }
        settle(&mut tx, mail.id, "sent", now_ms).await?;
        tx.commit().await
    }

    /// The mail goes nowhere. With `address_refused` its address is no good for any mail: its pushers answer so from now on,
    /// and the server is told.
    pub(crate) async fn refused(
        &self,
        mail: &Mail,
        code: u16,
        address_refused: bool,
        now_ms: i64,
    ) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        if let Some(server_id) = &mail.server_id {
            reports::add_done(&mut tx, server_id, "refused", &code.to_string(), now_ms).await?;
        } else if address_refused {
            sqlx::query(
                "INSERT INTO refusals (pusher, code, refused_ms) SELECT DISTINCT pusher, $1, $2 FROM notices WHERE mail = $3 \
                 ON CONFLICT (pusher) DO UPDATE SET code = excluded.code, refused_ms = excluded.refused_ms",
            )
            .bind(i64::from(code))
            .bind(now_ms)
            .bind(mail.id)
            .execute(&mut *tx)
            .await?;
            let account: String = sqlx::query_scalar("SELECT account FROM mails WHERE id = $1")
                .bind(mail.id)
                .fetch_one(&mut *tx)
                .await?;
            reports::add_refused(&mut tx, mail.id, &mail.address, &account, code, now_ms).await?;
        }
        settle(&mut tx, mail.id, "refused", now_ms).await?;
        tx.commit().await
    }

    /// The mail was tried for too long.
    pub(crate) async fn expired(&self, mail: &Mail, detail: &str, now_ms: i64) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        if let Some(server_id) = &mail.server_id {
            reports::add_done(&mut tx, server_id, "refused", detail, now_ms).await?;
        }
        settle(&mut tx, mail.id, "expired", now_ms).await?;
        tx.commit().await
    }

    /// Another attempt at `due_ms`. `ambiguous`: this one may have arrived.
    pub(crate) async fn deferred(
        &self,
        mail: &Mail,
        due_ms: i64,
        ambiguous: bool,
        now_ms: i64,
    ) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE mails SET state = 'waiting', attempts = attempts + 1, due_ms = $1, ambiguous = ambiguous OR $2 WHERE id = $3",
        )
        .bind(due_ms)
        .bind(ambiguous)
        .bind(mail.id)
        .execute(&mut *tx)
        .await?;
        // Everything in it was read while it was on its way.
        let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM notices WHERE mail = $1 AND live")
            .bind(mail.id)
            .fetch_one(&mut *tx)
            .await?;
        if left == 0 && mail.server_id.is_none() {
            settle(&mut tx, mail.id, "cancelled", now_ms).await?;
        }
        tx.commit().await
    }
}

/// Ends a mail's way and forgets everything personal about it; what stays recognises a repeat.
async fn settle(
    tx: &mut Transaction<'static, Sqlite>,
    id: i64,
    state: &str,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE mails SET state = $1, settled_ms = $2, account = '', address = '', parameters = NULL WHERE id = $3",
    )
    .bind(state)
    .bind(now_ms)
    .bind(id)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE notices SET live = FALSE, room_id = NULL, room_name = NULL, sender = NULL WHERE mail = $1",
    )
    .bind(id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
