//! Notices: what the server notified of. Each is part of one mail of its account.

use super::{Importance, Lang, Scope, Store};

/// One notification for one pusher.
#[derive(Debug)]
pub(crate) struct NewNotice {
    pub(crate) pusher: String,
    pub(crate) account: String,
    pub(crate) address: String,
    pub(crate) lang: Lang,
    pub(crate) event_id: String,
    pub(crate) room_id: Option<String>,
    pub(crate) scope: Scope,
    pub(crate) to_all: bool,
    pub(crate) importance: Importance,
    pub(crate) room_number: Option<i64>,
    /// Only where a template asks for it.
    pub(crate) room_name: Option<String>,
    /// Only where a template asks for it.
    pub(crate) sender: Option<String>,
    /// When a mail begun by this notice goes out.
    pub(crate) due_ms: i64,
}

/// After this a mail that still cannot be sent takes no more notices in, so that its end after some days drops few of them.
const OPEN_MS: i64 = 24 * 60 * 60 * 1000;

/// A mail takes at most this many notices; the next one begins a new mail.
const NOTICES_MAX: i64 = 200;
/// Urgent posts (至急) of one room make an urgent mail to one account once in this time.
const URGENT_EVERY_MS: i64 = 5 * 60_000;

impl Store {
    /// Which of these pushers had their address refused for good.
    pub(crate) async fn refused_among(&self, pushers: &[&str]) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar("SELECT pusher FROM refusals WHERE pusher IN (SELECT value FROM json_each($1))")
            .bind(serde_json::json!(pushers).to_string())
            .fetch_all(&self.pool)
            .await
    }

    /// Adds the notices that are new, each to the waiting mail of its account or to a new one. Committed on return.
    pub(crate) async fn add_notices(&self, notices: &[NewNotice], now_ms: i64) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        for notice in notices {
            let known: Option<i64> =
                sqlx::query_scalar("SELECT id FROM notices WHERE pusher = $1 AND event_id = $2")
                    .bind(&notice.pusher)
                    .bind(&notice.event_id)
                    .fetch_optional(&mut *tx)
                    .await?;
            if known.is_some() {
                continue;
            }
            let urgent = notice.importance == Importance::Urgent;
            // A mail of which nobody knows whether it arrived stays as it is: a receiver that has it already would throw the
            // repeat away, and the new notice with it.
            let open: Option<i64> = sqlx::query_scalar(
                "SELECT id FROM mails WHERE account = $1 AND address = $2 AND lang = $3 AND kind = 'notices' \
                 AND state = 'waiting' AND NOT ambiguous AND created_ms > $4 \
                 AND (SELECT COUNT(*) FROM notices WHERE mail = mails.id AND live) < $5 ORDER BY id LIMIT 1",
            )
            .bind(&notice.account)
            .bind(&notice.address)
            .bind(notice.lang.code())
            .bind(now_ms - OPEN_MS)
            .bind(NOTICES_MAX)
            .fetch_optional(&mut *tx)
            .await?;
            let mail = match open {
                Some(mail) => mail,
                None => {
                    sqlx::query_scalar(
                        "INSERT INTO mails (kind, account, address, lang, state, urgent, ambiguous, attempts, created_ms, due_ms) \
                         VALUES ('notices', $1, $2, $3, 'waiting', FALSE, FALSE, 0, $4, $5) RETURNING id",
                    )
                    .bind(&notice.account)
                    .bind(&notice.address)
                    .bind(notice.lang.code())
                    .bind(now_ms)
                    .bind(notice.due_ms)
                    .fetch_one(&mut *tx)
                    .await?
                }
            };
            if urgent {
                // One that has just gone out has called them; what follows in that room comes a few minutes later, in one
                // mail, so that nobody floods people by writing it before everything.
                let before: Option<i64> = sqlx::query_scalar(
                    "SELECT MAX(MIN(m.due_ms, m.created_ms + $6)) FROM mails m JOIN notices n ON n.mail = m.id \
                     WHERE n.pusher = $1 AND m.urgent AND m.id <> $2 AND m.created_ms > $3 \
                     AND n.importance = $4 AND n.room_number IS $5",
                )
                .bind(&notice.pusher)
                .bind(mail)
                .bind(now_ms - 2 * URGENT_EVERY_MS)
                .bind(notice.importance.name())
                .bind(notice.room_number)
                .bind(URGENT_EVERY_MS)
                .fetch_one(&mut *tx)
                .await?;
                let due_ms = before.map_or(now_ms, |before| now_ms.max(before + URGENT_EVERY_MS));
                // It waits for no digest and no morning any more; a pause after a failed attempt stays.
                sqlx::query(
                    "UPDATE mails SET urgent = TRUE, due_ms = CASE WHEN attempts = 0 THEN MIN($1, due_ms) ELSE due_ms END \
                     WHERE id = $2",
                )
                .bind(due_ms)
                .bind(mail)
                .execute(&mut *tx)
                .await?;
            }
            sqlx::query(
                "INSERT INTO notices (mail, pusher, event_id, room_id, scope, to_all, importance, room_number, room_name, sender, live) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, TRUE)",
            )
            .bind(mail)
            .bind(&notice.pusher)
            .bind(&notice.event_id)
            .bind(&notice.room_id)
            .bind(notice.scope.name())
            .bind(notice.to_all)
            .bind(notice.importance.name())
            .bind(notice.room_number)
            .bind(&notice.room_name)
            .bind(&notice.sender)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    }

    /// The account has read everything (in this room): its unsent notices go, and mails that have none left.
    pub(crate) async fn cancel(
        &self,
        account: &str,
        room_id: Option<&str>,
        now_ms: i64,
    ) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        // The rows stay, dead, so that the server's repeat of a notification is still recognised. A mail on its way out right
        // now is no longer ours to stop, but if this attempt fails there is no other.
        sqlx::query(
            "UPDATE notices SET live = FALSE, room_name = NULL, sender = NULL WHERE live \
             AND mail IN (SELECT id FROM mails WHERE account = $1 AND kind = 'notices' AND state IN ('waiting', 'sending')) \
             AND ($2 IS NULL OR room_id = $2)",
        )
        .bind(account)
        .bind(room_id)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE mails SET state = 'cancelled', settled_ms = $1, address = '', account = '' \
             WHERE account = $2 AND kind = 'notices' AND state = 'waiting' \
             AND NOT EXISTS (SELECT 1 FROM notices WHERE mail = mails.id AND live)",
        )
        .bind(now_ms)
        .bind(account)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}
