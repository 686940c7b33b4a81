//! The register of cases (案件), for whoever writes it out (REQUIREMENTS C27): every case there is, with what it asks for
//! in the words that the city's staff approved.

use crate::store::Store;
use crate::texts::Texts;
use crate::{Config, Error};

/// A case as people read it.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its number (案件番号).
    pub number: i64,
    /// What it asks for.
    pub what: String,
    /// Where it stands.
    pub state: String,
    /// Who asked: a Matrix id.
    pub requester: String,
    /// In which room: its id.
    pub room_id: String,
    /// When, in milliseconds.
    pub filed_at: i64,
    /// Who decided: a Matrix id.
    pub decided_by: Option<String>,
    /// When, in milliseconds.
    pub decided_at: Option<i64>,
    /// Why it was refused, or what failed.
    pub reason: Option<String>,
}

/// Reads all cases, oldest first. Works beside the running bot and changes nothing; a file that is not there is
/// [`Error::File`].
pub async fn cases(config: &Config) -> Result<Vec<Line>, Error> {
    let store = Store::open_existing(&config.database).await?;
    let texts = Texts::new(config);
    let cases = store.all_cases().await?;
    store.close().await;
    let lines = cases.into_iter().map(|case| Line {
        number: case.number,
        what: texts.summary(&case.action),
        state: texts.state(case.state),
        requester: case.requester,
        room_id: case.room_id,
        filed_at: case.filed_at,
        decided_by: case.decided_by,
        decided_at: case.decided_at,
        reason: case.reason,
    });
    Ok(lines.collect())
}
