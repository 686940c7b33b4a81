//! What an appservice is owed: the frozen transaction that is under way.

use super::{Conn, one, run};
use crate::error::Result;

/// The transaction under way: (transaction id, body, position it reaches to).
pub async fn transaction(conn: &mut Conn, appservice: &str) -> Result<Option<(String, String, i64)>> {
    one!(
        conn,
        (String, String, i64),
        "SELECT txn_id, body, upto FROM appservice_transactions WHERE appservice = $1",
        appservice
    )
}

/// Freezes a transaction.
pub async fn freeze(conn: &mut Conn, appservice: &str, txn_id: &str, body: &str, upto: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO appservice_transactions (appservice, txn_id, body, upto) VALUES ($1, $2, $3, $4)",
        appservice,
        txn_id,
        body,
        upto
    )?;
    Ok(())
}

/// The appservice has it.
pub async fn delivered(conn: &mut Conn, appservice: &str) -> Result<()> {
    run!(conn, "DELETE FROM appservice_transactions WHERE appservice = $1", appservice)?;
    Ok(())
}
