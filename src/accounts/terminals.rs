//! Terminals and their certificates, in memory: what a connection's certificate is worth at this moment.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ruma::UserId;

use super::sessions::{self, Sessions};
use crate::{
    audit,
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    rooms::{
        batch::Batch,
        committer::Hint,
        live::parking::{Mutex, RwLock},
    },
    server::Server,
    store::{
        self, Db,
        terminals::{Certificate, Terminal},
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

/// Who enrolled a terminal whose certificate another CA issued: nobody did.
const REGISTERED: &str = "registered";
/// The longest name of a terminal, in characters.
const LABEL_MAX: usize = 40;

/// A certificate of the register.
struct Registered {
    terminal: i64,
    revoked: bool,
    not_after: i64,
    fingerprint: Option<Vec<u8>>,
}

#[derive(Default)]
struct State {
    /// Certificates by serial number (hex).
    certificates: HashMap<String, Registered>,
    /// The certificates are another CA's. Then a serial number alone is no name: the CA before it may have used it too.
    outside_ca: bool,
    /// Facilities by terminal.
    facilities: HashMap<i64, i64>,
    /// Revoked by the list of a CA that is not ours.
    outside: Option<Arc<RevokedSerials>>,
}

/// All terminals.
#[derive(Default)]
pub struct Terminals {
    state: RwLock<State>,
    /// Counts revocations, so that our own list is written anew.
    revocations: AtomicU64,
    own_list: Mutex<Option<OwnList>>,
    /// Live connections by certificate.
    pub connections: tls::Connections,
}

impl Terminals {
    /// Reads them all. `outside_ca`: the certificates are issued by a CA that is not Heya's.
    pub async fn load(db: &Db, outside_ca: bool) -> Result<Self> {
        let mut conn = db.read().await?;
        let mut state = State { outside_ca, ..State::default() };
        for terminal in store::terminals::terminals(&mut conn).await? {
            state.facilities.insert(terminal.id, terminal.facility);
        }
        for certificate in store::terminals::certificates(&mut conn).await? {
            state.insert(certificate);
        }
        Ok(Self { state: RwLock::new(state), ..Self::default() })
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
        let registered = state.certificates.get(&serial).filter(|one| state.is_of(one, identity));
        let revoked = registered.is_some_and(|one| one.revoked)
            || state.outside.as_ref().is_some_and(|list| list.contains(&identity.serial));
        match identity.state(at(now_ms), revoked) {
            CertificateState::Revoked => (Standing::Revoked, None),
            CertificateState::Expired => (Standing::Expired, None),
            CertificateState::NotYetValid => (Standing::Unknown, None),
            CertificateState::Valid => {
                let known = registered.and_then(|one| {
                    let facility = *state.facilities.get(&one.terminal)?;
                    Some(Known { terminal: one.terminal, facility, serial: serial.clone() })
                });
                match known {
                    Some(known) => (Standing::Valid, Some(known)),
                    // Signed by the CA and in no register: another CA's that nobody has registered, or our own from
                    // before a restore. Not let in.
                    None => (Standing::Unknown, None),
                }
            }
        }
    }

    /// The terminal of a registered certificate that is good now, by its serial number in hex: for those who showed it
    /// before and come without it (DESIGN 2, `login`).
    pub fn of_serial(&self, serial: &str, now_ms: i64) -> Option<Known> {
        let state = self.state.read();
        let one = state.certificates.get(serial)?;
        let listed = state
            .outside
            .as_ref()
            .is_some_and(|list| unhex(serial).is_some_and(|serial| list.contains(&serial)));
        if one.revoked || listed || one.not_after < now_ms {
            return None;
        }
        let facility = *state.facilities.get(&one.terminal)?;
        Some(Known { terminal: one.terminal, facility, serial: serial.to_owned() })
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

    /// Whether the list in use names a certificate, by its serial number in hex.
    pub fn is_listed(&self, serial: &str) -> bool {
        self.list().is_some_and(|list| unhex(serial).is_some_and(|serial| list.contains(&serial)))
    }

    /// The terminals of other CAs' certificates that the list leaves without one that is good.
    fn listed(&self, now: i64) -> Vec<i64> {
        let state = self.state.read();
        let Some(list) = &state.outside else { return Vec::new() };
        let mut good = HashSet::new();
        let mut listed = HashSet::new();
        for (serial, one) in &state.certificates {
            let on_list = unhex(serial).is_some_and(|serial| list.contains(&serial));
            if on_list {
                listed.insert(one.terminal);
            } else if !one.revoked && one.not_after >= now {
                good.insert(one.terminal);
            }
        }
        let mut ended: Vec<i64> = listed.difference(&good).copied().collect();
        ended.sort_unstable();
        ended
    }

    fn add(&self, terminal: i64, facility: i64, certificate: Certificate) {
        let mut state = self.state.write();
        state.facilities.insert(terminal, facility);
        state.insert(certificate);
    }

    fn revoke(&self, serials: &[String]) {
        {
            let mut state = self.state.write();
            for serial in serials {
                if let Some(entry) = state.certificates.get_mut(serial) {
                    entry.revoked = true;
                }
            }
        }
        self.revocations.fetch_add(1, Ordering::AcqRel);
        for serial in serials {
            if let Some(bytes) = unhex(serial) {
                self.connections.revoke(&bytes);
            }
        }
    }
}

impl State {
    fn insert(&mut self, certificate: Certificate) {
        let one = Registered {
            terminal: certificate.terminal,
            revoked: certificate.revoked_at.is_some(),
            not_after: certificate.not_after,
            // One that cannot be read is nobody's.
            fingerprint: certificate.fingerprint.map(|text| unhex(&text).unwrap_or_default()),
        };
        self.certificates.insert(certificate.serial, one);
    }

    /// Whether what was shown is this certificate and not only its number.
    fn is_of(&self, one: &Registered, shown: &TerminalIdentity) -> bool {
        match &one.fingerprint {
            Some(fingerprint) => *fingerprint == shown.fingerprint,
            None => !self.outside_ca,
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
    store::terminals::insert_terminal(conn, &terminal, now).await?;
    store::terminals::insert_certificate(conn, &certificate, now).await?;
    let terminals = Arc::clone(terminals);
    batch.after_commit(move || terminals.add(terminal.id, terminal.facility, certificate));
    Ok(())
}

/// A further certificate for a terminal (renewal).
pub async fn renew(batch: &mut Batch, terminals: &Arc<Terminals>, certificate: Certificate) -> Result<()> {
    let now = batch.now;
    let terminal = store::terminals::terminal(batch.reading(), certificate.terminal)
        .await?
        .ok_or_else(|| not_found("No such terminal."))?;
    store::terminals::insert_certificate(batch.sql().await?, &certificate, now).await?;
    let terminals = Arc::clone(terminals);
    batch.after_commit(move || terminals.add(terminal.id, terminal.facility, certificate));
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
    store::terminals::terminal(batch.reading(), terminal)
        .await?
        .ok_or_else(|| not_found("No such terminal."))?;
    let ended = sessions::end_of_terminal(batch, sessions, terminal).await?;
    let serials = store::terminals::revoke_certificates(batch.sql().await?, terminal, reason, now).await?;
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
        fingerprint: Some(tls::hex(&issued.fingerprint_sha256)),
    }
}

/// The name of a terminal as a person typed it.
pub fn checked_label(label: &str) -> Result<String> {
    let label = label.trim();
    if label.is_empty() || label.chars().count() > LABEL_MAX || label.chars().any(char::is_control) {
        return Err(invalid(format!("端末の名前を{LABEL_MAX}文字以内で入力してください。")));
    }
    Ok(label.to_owned())
}

/// Where a certificate of another CA goes.
#[derive(Debug)]
pub enum Place {
    /// A new terminal of a facility.
    New {
        /// The facility.
        facility: i64,
        /// What people call the terminal.
        label: String,
        /// It is a person's own; the city has approved it (H20).
        private: bool,
    },
    /// A terminal that is registered: its certificate was renewed.
    Known(i64),
}

/// Registers a certificate of the city's own CA as a terminal's; returns the terminal.
pub async fn register(
    batch: &mut Batch,
    terminals: &Arc<Terminals>,
    shown: &TerminalIdentity,
    place: Place,
    acting: &str,
) -> Result<i64> {
    let (now, serial) = (batch.now, tls::hex(&shown.serial));
    if terminals.list().is_some_and(|list| list.contains(&shown.serial)) {
        return Err(forbidden("This certificate is on the CA's revocation list (失効しています)."));
    }
    if let Some(known) = store::terminals::certificate(batch.reading(), &serial).await? {
        return Err(refuse(
            Code::Exists,
            format!("This certificate is registered already, as terminal {} (登録済みです).", known.terminal),
        ));
    }
    let (id, facility) = match place {
        Place::New { facility, label, private } => {
            let label = checked_label(&label)?;
            store::accounts::facility(batch.reading(), facility)
                .await?
                .filter(|facility| facility.active)
                .ok_or_else(|| not_found("There is no such facility (事業所がありません)."))?;
            let conn = batch.sql().await?;
            let id = store::meta::next_number(conn, "terminal", 1).await?;
            let terminal = Terminal {
                id,
                facility,
                label,
                ownership: if private { "private" } else { "facility" }.to_owned(),
                enrolled_by: REGISTERED.to_owned(),
                last_seen: None,
            };
            store::terminals::insert_terminal(conn, &terminal, now).await?;
            (id, facility)
        }
        Place::Known(id) => {
            let terminal = store::terminals::terminal(batch.reading(), id)
                .await?
                .ok_or_else(|| not_found("There is no such terminal (端末がありません)."))?;
            (id, terminal.facility)
        }
    };
    let certificate = Certificate {
        serial: serial.clone(),
        terminal: id,
        not_before: shown.not_before.unix_timestamp() * 1000,
        not_after: shown.not_after.unix_timestamp() * 1000,
        revoked_at: None,
        reason: None,
        fingerprint: Some(tls::hex(&shown.fingerprint)),
    };
    store::terminals::insert_certificate(batch.sql().await?, &certificate, now).await?;
    batch.audit(audit::Entry {
        at: now,
        actor: acting.to_owned(),
        action: "terminal.register".to_owned(),
        certificate: Some(serial),
        target: format!("terminal {id}"),
        result: "ok".to_owned(),
        detail: format!("facility {facility}"),
        ..audit::Entry::default()
    });
    let terminals = Arc::clone(terminals);
    batch.after_commit(move || terminals.add(id, facility, certificate));
    Ok(id)
}

/// Whether a terminal is its facility's and was registered by the city: it does not end with whoever uses it.
pub fn is_the_facilitys(terminal: &Terminal) -> bool {
    terminal.enrolled_by == REGISTERED && terminal.ownership == "facility"
}

/// Ends the sessions of terminals whose certificates the CA's revocation list names; returns how many. Their requests
/// are refused and their connections are closed already ([`Terminals::revoke_by_list`]).
pub async fn end_listed(server: &Server) -> Result<usize> {
    let listed = server.terminals.listed(server.now());
    if listed.is_empty() {
        return Ok(0);
    }
    let sessions = Arc::clone(&server.sessions);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let mut all = 0;
                for terminal in listed {
                    let ended = sessions::end_of_terminal(batch, &sessions, terminal).await?;
                    if ended > 0 {
                        let at = batch.now;
                        batch.audit(audit::Entry {
                            at,
                            actor: "server".to_owned(),
                            action: "terminal.listed".to_owned(),
                            target: format!("terminal {terminal}"),
                            result: "ok".to_owned(),
                            detail: "revocation list".to_owned(),
                            ..audit::Entry::default()
                        });
                    }
                    all += ended;
                }
                Ok(all)
            })
        })
        .await
}

/// Our own revocation list, as it was last written.
#[derive(Clone)]
pub struct OwnList {
    /// DER.
    pub der: Arc<Vec<u8>>,
    /// How many certificates it names.
    pub entries: usize,
    revision: u64,
    made_at: i64,
}

/// How long a list of ours promises to hold, and how old it gets.
const LIST_DAYS: i64 = 7;
const LIST_AGE_MAX_MS: i64 = 3_600_000;

/// The revocation list of Heya's own CA, for whoever checks certificates before us. Written anew after a revocation, and
/// every hour.
pub async fn own_list(server: &Server) -> Result<OwnList> {
    if !server.ca.has_key() {
        return Err(not_found("The certificates are another CA's: ask it for its revocation list."));
    }
    let now = server.now();
    // Before reading, so that a revocation meanwhile makes a new list.
    let revision = server.terminals.revocations.load(Ordering::Acquire);
    let former = server.terminals.own_list.lock().clone();
    if let Some(list) = former
        && list.revision == revision
        && now - list.made_at < LIST_AGE_MAX_MS
    {
        return Ok(list);
    }
    let life = LIST_DAYS * 86_400_000;
    let revoked: Vec<tls::Revocation> = store::terminals::certificates(&mut server.db.read().await?)
        .await?
        .into_iter()
        // What has ended is not revoked any more, but stands on one more list (RFC 5280, 3.3).
        .filter(|certificate| certificate.not_after + life > now)
        .filter_map(|certificate| {
            Some(tls::Revocation {
                serial: unhex(&certificate.serial)?,
                revoked_at: at(certificate.revoked_at?),
                reason: None,
            })
        })
        .collect();
    let der = server
        .ca
        .crl_der(&revoked, at(now), at(now + life))
        .map_err(|error| crate::error::Error::internal(error.to_string()))?;
    let list = OwnList { der: Arc::new(der), entries: revoked.len(), revision, made_at: now };
    *server.terminals.own_list.lock() = Some(list.clone());
    Ok(list)
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
