//! Accounts that are suspended or locked.

use super::{Conn, all, run};
use crate::error::Result;

/// An account's standing.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Row {
    /// Whose.
    pub user_id: String,
    /// It may read and little else.
    pub suspended: bool,
    /// It may do nothing but log out.
    pub locked: bool,
}

/// All accounts that are suspended or locked: few, kept in memory.
pub async fn all(conn: &mut Conn) -> Result<Vec<Row>> {
    all!(conn, Row, "SELECT user_id, suspended, locked FROM moderation")
}

/// Sets an account's standing; the row goes where it is neither.
pub async fn set(conn: &mut Conn, row: &Row, by: &str, now: i64) -> Result<()> {
    run!(conn, "DELETE FROM moderation WHERE user_id = $1", &row.user_id)?;
    if row.suspended || row.locked {
        run!(
            conn,
            "INSERT INTO moderation (user_id, suspended, locked, changed_at, changed_by) \
             VALUES ($1, $2, $3, $4, $5)",
            &row.user_id,
            row.suspended,
            row.locked,
            now,
            by
        )?;
    }
    Ok(())
}
