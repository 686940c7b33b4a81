//! Terminals and their certificates, in memory: what a connection's certificate is worth at this moment.

use std::{collections::HashMap, path::Path, sync::Arc};

use ruma::UserId;

use super::sessions::{self, Sessions};
use crate::{
    audit,
    error::{Result, not_found},
    rooms::{batch::Batch, live::parking::RwLock},
    store::{
        self, Db,
        accounts::{Certificate, Terminal},
    },
    tls::{self, CertificateState, Presented, RevokedSerials, TerminalIdentity},
};

/// The certificate's own state, which alone is told before login (DESIGN 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It opens the door.
    Valid,
    /// No certificate was shown.
    None,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
    /// It is not one of ours.
    Unknown,
}

impl Standing {
    /// The word in `jp.heya.certificate`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::None => "none",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
        }
    }
}

/// A terminal behind a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub terminal: i64,
    /// The facility that it belongs to.
    pub facility: i64,
    /// The certificate's serial number, in hex.
    pub serial: String,
}

#[derive(Default)]
struct State {
    /// Certificates by serial number (hex): (terminal, revoked).
    certificates: HashMap<String, (i64, bool)>,
    /// Facilities by terminal.
    facilities: HashMap<i64, i64>,
    /// Revoked by the list of a CA that is not ours.
    outside: Option<Arc<RevokedSerials>>,
}

/// All terminals.
#[derive(Default)]
pub struct Terminals {
    state: RwLock<State>,
    /// Live connections by certificate.
    pub connections: tls::Connections,
}

impl Terminals {
    /// Reads them all.
    pub async fn load(db: &Db) -> Result<Self> {
        let mut conn = db.read().await?;
        let mut state = State::default();
        for terminal in store::accounts::terminals(&mut conn).await? {
            state.facilities.insert(terminal.id, terminal.facility);
        }
        for certificate in store::accounts::certificates(&mut conn).await? {
            state
                .certificates
                .insert(certificate.serial, (certificate.terminal, certificate.revoked_at.is_some()));
        }
        Ok(Self { state: RwLock::new(state), connections: tls::Connections::default() })
    }

    /// What a connection's certificate is worth now. Asked on every request.
    pub fn standing(&self, presented: &Presented, now_ms: i64) -> (Standing, Option<Known>) {
        let identity = match presented {
            Presented::None => return (Standing::None, None),
            Presented::Unknown => return (Standing::Unknown, None),
            Presented::Terminal(identity) => identity,
        };
        let serial = tls::hex(&identity.serial);
        let state = self.state.read();
        let registered = state.certificates.get(&serial).copied();
        let revoked = registered.is_some_and(|(_, revoked)| revoked)
            || state.outside.as_ref().is_some_and(|list| list.contains(&identity.serial));
        match identity.state(at(now_ms), revoked) {
            CertificateState::Revoked => (Standing::Revoked, None),
            CertificateState::Expired => (Standing::Expired, None),
            CertificateState::NotYetValid => (Standing::Unknown, None),
            CertificateState::Valid => {
                let known = registered.and_then(|(terminal, _)| {
                    let facility = *state.facilities.get(&terminal)?;
                    Some(Known { terminal, facility, serial })
                });
                match known {
                    Some(known) => (Standing::Valid, Some(known)),
                    // Signed by our CA and in no register: restored from an old backup, perhaps. Not let in.
                    None => (Standing::Unknown, None),
                }
            }
        }
    }

    /// Takes a revocation list of the city's own CA and ends the connections that it names.
    pub fn revoke_by_list(&self, list: RevokedSerials) {
        let list = Arc::new(list);
        // First what requests ask, then the connections that are open.
        self.state.write().outside = Some(Arc::clone(&list));
        for serial in list.iter() {
            self.connections.revoke(serial);
        }
    }

    /// The list in use.
    pub fn list(&self) -> Option<Arc<RevokedSerials>> {
        self.state.read().outside.clone()
    }

    fn add(&self, terminal: i64, facility: i64, serial: String) {
        let mut state = self.state.write();
        state.facilities.insert(terminal, facility);
        state.certificates.insert(serial, (terminal, false));
    }

    fn revoke(&self, serials: &[String]) {
        {
            let mut state = self.state.write();
            for serial in serials {
                if let Some(entry) = state.certificates.get_mut(serial) {
                    entry.1 = true;
                }
            }
        }
        for serial in serials {
            if let Some(bytes) = unhex(serial) {
                self.connections.revoke(&bytes);
            }
        }
    }
}

/// Records a new terminal with its certificate, in the unit that spends the code.
pub async fn add(
    batch: &mut Batch,
    terminals: &Arc<Terminals>,
    terminal: Terminal,
    certificate: Certificate,
) -> Result<()> {
    let now = batch.now;
    let conn = batch.sql().await?;
    store::accounts::insert_terminal(conn, &terminal, now).await?;
    store::accounts::insert_certificate(conn, &certificate, now).await?;
    let terminals = Arc::clone(terminals);
    batch.after_commit(move || terminals.add(terminal.id, terminal.facility, certificate.serial));
    Ok(())
}

/// A further certificate for a terminal (renewal).
pub async fn renew(batch: &mut Batch, terminals: &Arc<Terminals>, certificate: Certificate) -> Result<()> {
    let now = batch.now;
    let terminal = store::accounts::terminal(batch.reading(), certificate.terminal)
        .await?
        .ok_or_else(|| not_found("No such terminal."))?;
    store::accounts::insert_certificate(batch.sql().await?, &certificate, now).await?;
    let terminals = Arc::clone(terminals);
    batch.after_commit(move || terminals.add(terminal.id, terminal.facility, certificate.serial));
    Ok(())
}

/// Ends a terminal: its certificates, its sessions, its connections with their long polls. One action (C19).
pub async fn revoke(
    batch: &mut Batch,
    terminals: &Arc<Terminals>,
    sessions: &Arc<Sessions>,
    terminal: i64,
    reason: &str,
    by: &str,
) -> Result<usize> {
    let now = batch.now;
    store::accounts::terminal(batch.reading(), terminal)
        .await?
        .ok_or_else(|| not_found("No such terminal."))?;
    let ended = sessions::end_of_terminal(batch, sessions, terminal).await?;
    let serials = store::accounts::revoke_certificates(batch.sql().await?, terminal, reason, now).await?;
    batch.audit(audit::Entry {
        at: now,
        actor: by.to_owned(),
        action: "terminal.revoke".to_owned(),
        terminal: None,
        target: format!("terminal {terminal}"),
        result: "ok".to_owned(),
        detail: reason.to_owned(),
        ..audit::Entry::default()
    });
    let terminals = Arc::clone(terminals);
    batch.after_commit(move || terminals.revoke(&serials));
    Ok(ended)
}

/// The certificate's row, as it is recorded.
pub fn row(issued: &tls::IssuedCertificate, terminal: i64) -> Certificate {
    Certificate {
        serial: tls::hex(&issued.serial),
        terminal,
        not_before: issued.not_before.unix_timestamp() * 1000,
        not_after: issued.not_after.unix_timestamp() * 1000,
        revoked_at: None,
        reason: None,
    }
}

/// Whether an account may log in from a facility's terminal.
pub async fn belongs(conn: &mut store::Conn, user_id: &UserId, facility: i64) -> Result<bool> {
    Ok(store::accounts::facilities_of(conn, user_id.as_str()).await?.contains(&facility))
}

/// A time in milliseconds as the `time` crate has it.
pub fn at(ms: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()
}

/// Reads the revocation list of the city's own CA, if it is good.
pub fn load_list(ca: &tls::Ca, path: &Path, now_ms: i64) -> Result<RevokedSerials> {
    ca.load_crl(path, at(now_ms), None).map_err(|error| crate::error::Error::internal(error.to_string()))
}

/// The identity behind a connection, for its guard.
pub fn serial_of(presented: &Presented) -> Option<&TerminalIdentity> {
    match presented {
        Presented::Terminal(identity) => Some(identity),
        _ => None,
    }
}
