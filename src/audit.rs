//! The audit log (操作履歴・閲覧履歴): who did what, when, from which terminal; appended only by the committer, in
//! dated segments, each entry's hash covering the one before. The newest hash of every commit is also written to a
//! file beside the database, so that removing the end of the log is seen (DESIGN 19).

use std::{io::Write as _, path::PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    error::Result,
    store::{self, Db, script::Script},
};

/// The hash before the first entry.
const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One line: names and numbers only, never message content.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at: i64,
    /// The user id of who did it; `@city`, `command` or `server` where nobody in person did.
    pub actor: String,
    /// Their display name at the time.
    pub name: String,
    /// The terminal's number.
    pub terminal: Option<i64>,
    /// The certificate's serial number, in hex.
    pub certificate: Option<String>,
    /// The address the request came from.
    pub address: Option<String>,
    /// What was done: `login`, `room.open`, `room.read`, …
    pub action: String,
    /// The room it was done to or read.
    pub room_id: String,
    /// What else it was done to: an account, a terminal, a facility.
    pub target: String,
    /// `ok`, or why not.
    pub result: String,
    /// A note, such as the reason given.
    pub detail: String,
}

/// From where somebody acts.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Who.
    pub actor: String,
    /// The terminal's number.
    pub terminal: Option<i64>,
    /// The certificate's serial number, in hex.
    pub certificate: Option<String>,
    /// The address the request came from.
    pub address: Option<String>,
}

impl Entry {
    /// Says from where, in what the same person did, unless the entry says so itself.
    pub fn from(mut self, origin: &Origin) -> Self {
        if self.actor == origin.actor && self.terminal.is_none() && self.address.is_none() {
            self.terminal = origin.terminal;
            self.address.clone_from(&origin.address);
            // An entry without a terminal names a certificate only as what it is about.
            self.certificate = self.certificate.or_else(|| origin.certificate.clone());
        }
        self
    }
}

/// The end of the chain.
#[derive(Clone)]
pub struct Chain {
    seq: i64,
    head: String,
    heads_file: PathBuf,
}

/// What `verify` found.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every entry is there and as it was written.
    Whole {
        /// How many.
        entries: i64,
    },
    /// Every entry is as it was written, and nothing outside the database says whether the end is there.
    Unproved {
        /// How many.
        entries: i64,
    },
    /// The log was touched.
    Broken {
        /// The first entry that is wrong.
        seq: i64,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Chain {
    /// Reads where the log ends.
    pub async fn load(db: &Db, heads_file: PathBuf) -> Result<Self> {
        let mut conn = db.read().await?;
        let (seq, head) = store::audit::newest(&mut conn).await?.unwrap_or((0, FIRST.to_owned()));
        Ok(Self { seq, head, heads_file })
    }

    /// Reads the end again, after a batch that failed.
    pub async fn reload(&mut self, db: &Db) {
        if let Ok(fresh) = Self::load(db, self.heads_file.clone()).await {
            *self = fresh;
        }
    }

    /// Appends entries in the committer's transaction; returns the lines for the file of heads.
    pub fn append(&mut self, script: &mut Script, entries: &[Entry]) -> Result<Vec<String>> {
        let mut rows = Vec::with_capacity(entries.len());
        for entry in entries {
            self.seq += 1;
            let text = serde_json::to_string(entry)?;
            self.head = next_hash(&self.head, self.seq, &text);
            rows.push(store::audit::Row {
                seq: self.seq,
                day: day_of(entry.at),
                entry: text,
                hash: self.head.clone(),
                actor: entry.actor.clone(),
                action: entry.action.clone(),
                room_id: entry.room_id.clone(),
            });
        }
        store::audit::insert(script, &rows);
        Ok(rows.last().map(|row| format!("{} {}\n", row.seq, row.hash)).into_iter().collect())
    }

    /// Writes the newest head beside the database, after the commit.
    pub fn write_heads(&self, lines: &[String]) {
        if lines.is_empty() {
            return;
        }
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.heads_file)
            .and_then(|mut file| lines.iter().try_for_each(|line| file.write_all(line.as_bytes())));
        if let Err(error) = written {
            tracing::error!(%error, "cannot write the audit log's newest hash beside the database");
        }
    }
}

/// Reads the whole log and the file of heads and says whether anything was changed, removed or cut off.
pub async fn verify(db: &Db, heads_file: &std::path::Path) -> Result<Verdict> {
    let mut conn = db.read().await?;
    let mut heads = read_heads(heads_file);
    let newest_outside = heads.keys().next_back().copied();
    let mut head = FIRST.to_owned();
    let mut seq = 0;
    loop {
        let rows = store::audit::after(&mut conn, seq, 1_000).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            if row.seq != seq + 1 {
                return Ok(Verdict::Broken { seq: seq + 1, what: "an entry is missing" });
            }
            seq = row.seq;
            head = next_hash(&head, seq, &row.entry);
            if head != row.hash {
                return Ok(Verdict::Broken { seq, what: "an entry was changed" });
            }
            if heads.remove(&seq).is_some_and(|outside| outside != head) {
                return Ok(Verdict::Broken { seq, what: "the hash kept beside the database differs" });
            }
        }
    }
    match heads.keys().next() {
        // Heads of entries that the database does not have: the end was cut off.
        Some(missing) => Ok(Verdict::Broken { seq: *missing, what: "the end of the log is missing" }),
        // Every commit with entries writes one: the newest must be there.
        None if newest_outside.is_none() && seq > 0 => Ok(Verdict::Unproved { entries: seq }),
        None => Ok(Verdict::Whole { entries: seq }),
    }
}

fn read_heads(path: &std::path::Path) -> std::collections::BTreeMap<i64, String> {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(seq, hash)| Some((seq.parse().ok()?, hash.to_owned())))
        .collect()
}

fn next_hash(before: &str, seq: i64, entry: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(before.as_bytes());
    hasher.update(seq.to_be_bytes());
    hasher.update(entry.as_bytes());
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The date in Japan of a time: the log's segment.
pub fn day_of(ms: i64) -> String {
    let japan = time::UtcOffset::from_hms(9, 0, 0).unwrap_or(time::UtcOffset::UTC);
    time::OffsetDateTime::from_unix_timestamp(ms / 1000)
        .map(|at| at.to_offset(japan).date().to_string())
        .unwrap_or_default()
}

/// A date as papers in Japan have it.
pub fn written_date(ms: i64) -> String {
    let day = day_of(ms);
    let parts: Vec<&str> = day.split('-').collect();
    match parts.as_slice() {
        [year, month, day] => {
            format!("{year}年{}月{}日", month.trim_start_matches('0'), day.trim_start_matches('0'))
        }
        _ => day,
    }
}

/// A time of Japan as papers have it, to the minute.
pub fn written_time(ms: i64) -> String {
    format!("{} {}", written_date(ms), clock_of(ms))
}

/// A time of Japan as spreadsheets sort it, to the minute.
pub fn sortable_time(ms: i64) -> String {
    format!("{} {}", day_of(ms), clock_of(ms))
}

/// The time of day in Japan.
fn clock_of(ms: i64) -> String {
    let japan = time::UtcOffset::from_hms(9, 0, 0).unwrap_or(time::UtcOffset::UTC);
    let at = time::OffsetDateTime::from_unix_timestamp(ms / 1000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .to_offset(japan);
    format!("{:02}:{:02}", at.hour(), at.minute())
}
