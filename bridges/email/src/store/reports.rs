//! Reports: what the homeserver has still to be told, written in the same transaction as what they tell of.

use serde_json::json;
use sqlx::{Sqlite, Transaction};

use super::Store;

/// One report on its way.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) id: i64,
    pub(crate) path: String,
    pub(crate) body: String,
    pub(crate) attempts: i64,
    pub(crate) created_ms: i64,
}

/// Where a mail that the server owed has ended.
pub(super) async fn add_done(
    tx: &mut Transaction<'static, Sqlite>,
    server_id: &str,
    outcome: &str,
    detail: &str,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    let body = json!({"id": server_id, "outcome": outcome, "detail": detail});
    add(tx, "done", &format!("done-{server_id}"), &body, now_ms).await
}

/// An address that refused for good.
pub(super) async fn add_refused(
    tx: &mut Transaction<'static, Sqlite>,
    mail: i64,
    address: &str,
    account: &str,
    code: u16,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    let body = json!({"address": address, "account": account, "code": code});
    add(tx, "refused", &format!("refused-{mail}"), &body, now_ms).await
}

async fn add(
    tx: &mut Transaction<'static, Sqlite>,
    path: &str,
    subject: &str,
    body: &serde_json::Value,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    // A report of the same that is on its way right now may have left before the server asked again: a new row, a new report.
    sqlx::query("DELETE FROM reports WHERE subject = $1").bind(subject).execute(&mut **tx).await?;
    sqlx::query(
        "INSERT INTO reports (path, subject, body, attempts, created_ms, due_ms) VALUES ($1, $2, $3, 0, $4, $4)",
    )
    .bind(path)
    .bind(subject)
    .bind(body.to_string())
    .bind(now_ms)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// A leased mail that cannot even be queued: the server is told.
    pub(crate) async fn refuse_owed(
        &self,
        server_id: &str,
        detail: &str,
        now_ms: i64,
    ) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        add_done(&mut tx, server_id, "refused", detail, now_ms).await?;
        tx.commit().await
    }

    /// The report that has waited longest, and when it is due.
    pub(crate) async fn next_report(&self) -> Result<Option<(Report, i64)>, sqlx::Error> {
        let row: Option<(i64, String, String, i64, i64, i64)> = sqlx::query_as(
            "SELECT id, path, body, attempts, created_ms, due_ms FROM reports ORDER BY due_ms, id LIMIT 1",
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|(id, path, body, attempts, created_ms, due_ms)| {
            (Report { id, path, body, attempts, created_ms }, due_ms)
        }))
    }

    /// The server knows, or will never take it.
    pub(crate) async fn report_settled(&self, id: i64) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM reports WHERE id = $1").bind(id).execute(&self.pool).await.map(drop)
    }

    /// Again at `due_ms`.
    pub(crate) async fn report_deferred(&self, id: i64, due_ms: i64) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE reports SET attempts = attempts + 1, due_ms = $1 WHERE id = $2")
            .bind(due_ms)
            .bind(id)
            .execute(&self.pool)
            .await
            .map(drop)
    }
}
