//! Enrolment (DESIGN 3): user ID + password + one-time code → own password → certificate for this terminal.
//!
//! The steps of one person are one *enrolment session*, known by a cookie and kept in memory for 30 minutes: only as
//! long is the private key known to anybody but the terminal. A crash in between costs a new code, never access.

use std::{collections::HashMap, sync::Arc};

use ruma::OwnedUserId;

use super::{
    login::{Attempt, record_failure, refused, typed, user_id_of},
    passwords::{self, PASSWORD_BYTES_MAX},
    register::code_normal,
    sessions::hash_of,
    terminals,
};
use crate::{
    audit,
    error::{Code, Error, Result, forbidden, invalid, refuse},
    rooms::{batch::Batch, committer::Hint, live::parking::Mutex},
    server::Server,
    store::{self, terminals::Terminal},
    tls::{self, IssuedCertificate, TerminalSubject},
};

/// How long an enrolment session lasts.
const SESSION_MS: i64 = 30 * 60_000;
/// Enrolments at once.
const ENROLMENTS_MAX: usize = 1_000;

/// Enrolments under way, by the hash of their cookie.
#[derive(Default)]
pub struct Enrolments(Mutex<HashMap<String, Arc<Enrolment>>>);

/// One enrolment.
pub struct Enrolment {
    /// Who.
    pub user_id: OwnedUserId,
    /// What people see.
    pub display_name: String,
    /// Whether it is for a further terminal: then no password is set.
    pub further: bool,
    /// Hidden in the forms.
    pub csrf: String,
    code_hash: String,
    private_ok: bool,
    names: Vec<String>,
    began: i64,
    finished: Mutex<Option<Finished>>,
}

/// How an enrolment ended.
#[derive(Clone)]
pub enum Finished {
    /// With a certificate of Heya's own CA, to be fetched.
    Certificate(Arc<Bundle>),
    /// With a password: certificates are handed out by the city.
    Password,
}

/// What is fetched at the end.
pub struct Bundle {
    /// The certificate and its key, forgotten with the session.
    pub certificate: IssuedCertificate,
    /// The password of the PKCS#12 files.
    pub password: String,
}

impl Enrolments {
    /// The enrolment of a cookie.
    pub fn of(&self, cookie: &str, now: i64) -> Option<Arc<Enrolment>> {
        let mut all = self.0.lock();
        all.retain(|_, enrolment| now - enrolment.began < SESSION_MS);
        all.get(&hash_of(cookie)).cloned()
    }

    fn insert(&self, enrolment: Enrolment) -> Result<String> {
        let cookie = crate::clock::random_token(43);
        let mut all = self.0.lock();
        // A sheet is for one terminal: who begins again with it goes on in the new session only, but for one that is
        // finished and holds the certificate.
        all.retain(|_, other| {
            enrolment.began - other.began < SESSION_MS
                && (other.code_hash != enrolment.code_hash || other.finished().is_some())
        });
        if all.len() >= ENROLMENTS_MAX {
            return Err(refuse(
                Code::LimitExceeded { retry_after_ms: 60_000 },
                "ただいま登録が混み合っています。しばらくしてからもう一度お試しください。",
            ));
        }
        all.insert(hash_of(&cookie), Arc::new(enrolment));
        Ok(cookie)
    }
}

impl Enrolment {
    /// How it ended, once it has.
    pub fn finished(&self) -> Option<Finished> {
        self.finished.lock().clone()
    }

    /// What can be fetched, once it was issued.
    pub fn bundle(&self) -> Option<Arc<Bundle>> {
        match self.finished() {
            Some(Finished::Certificate(bundle)) => Some(bundle),
            _ => None,
        }
    }

    /// Minutes until the key is forgotten.
    pub fn minutes_left(&self, now: i64) -> i64 {
        ((self.began + SESSION_MS - now) / 60_000).max(0)
    }
}

/// Step one: checks ID, password and code with exactly one hash run, and begins an enrolment session. Whatever was
/// wrong, the refusal is the same; failures count as failed logins do.
pub async fn begin(
    server: &Arc<Server>,
    id: &str,
    password: &str,
    code: &str,
    address: std::net::IpAddr,
) -> Result<(String, Arc<Enrolment>)> {
    let id = typed(server, id);
    let now = server.now();
    let user_id = user_id_of(server, &id);
    let code_hash = hash_of(&code_normal(code));
    // Counted apart from logging in: whoever knows an ID could otherwise lock its owner out without a certificate.
    let counted = format!("enrolment {id} {code_hash}");
    let mut conn = server.db.read().await?;
    let account = match &user_id {
        Some(user_id) => store::accounts::account(&mut conn, user_id.as_str()).await?,
        None => None,
    };
    let code = store::terminals::code(&mut conn, &code_hash).await?;
    let facility = match account.as_ref().and_then(|a| a.facility) {
        Some(facility) => store::accounts::facility(&mut conn, facility).await?,
        None => None,
    };
    drop(conn);
    let fits = match (&account, &code) {
        (Some(account), Some(code)) => {
            code.user_id == account.user_id
                && code.spent_at.is_none()
                && code.expires_at > now
                && account.status != "ended"
                // The initial password with the first code, one's own with a further one.
                && code.further == account.password_own
        }
        _ => false,
    };
    let turn = server.lockout.turn(&counted).await?;
    let locked = server.lockout.is_locked(&counted, None, now);
    let held = code.as_ref().is_some_and(|code| {
        account.as_ref().is_some_and(|account| account.user_id == code.user_id) && code.spent_at.is_none()
    });
    let usable = !locked && password.len() <= PASSWORD_BYTES_MAX;
    let hash = account.as_ref().and_then(|a| a.password_hash.clone()).filter(|_| usable);
    let right = server
        .passwords
        .verify_of_outsider(
            if usable { password } else { "" },
            hash.as_deref().unwrap_or(server.passwords.decoy()),
        )
        .await?;
    let (Some(user_id), Some(account), Some(code), true) =
        (user_id, account, code, right && hash.is_some() && fits)
    else {
        // Only guesses by somebody who holds a live code of this very ID are counted and told: a stranger has no code to
        // guess with, and could fill the log and the memory of failures.
        if held {
            let locks = server.lockout.failed(&counted, None, now);
            drop(turn);
            let attempt = Attempt::on_page(&id, "", None, address);
            record_failure(server, &attempt, &id, locks).await?;
        }
        return Err(refused());
    };
    server.lockout.succeeded(&counted, None);
    drop(turn);
    let display_name = account.display_name.clone().unwrap_or_default();
    let mut names = vec![account.name, user_id.localpart().to_owned()];
    names.extend(facility.map(|facility| facility.name));
    let cookie = server.enrolments.insert(Enrolment {
        user_id,
        display_name,
        further: code.further,
        csrf: crate::clock::random_token(32),
        code_hash: code.code_hash,
        private_ok: code.private_ok,
        names,
        began: now,
        finished: Mutex::default(),
    })?;
    let enrolment =
        server.enrolments.of(&cookie, now).ok_or_else(|| Error::internal("an enrolment vanished"))?;
    Ok((cookie, enrolment))
}

/// What step two asks.
pub struct Choice {
    /// The new password; none for a further terminal.
    pub new_password: Option<String>,
    /// What people call the terminal.
    pub label: String,
    /// A private terminal: only where the city has approved it (H20).
    pub private: bool,
}

/// Step two: sets the password, spends the code, and issues this terminal's certificate, in one unit. A second press
/// of the button changes nothing. Where the certificates are another CA's, it ends with the password.
pub async fn finish(server: &Arc<Server>, enrolment: &Arc<Enrolment>, choice: Choice) -> Result<()> {
    if enrolment.finished().is_some() {
        return Ok(());
    }
    if !server.ca.has_key() {
        return set_password(server, enrolment, &choice).await;
    }
    let label = terminals::checked_label(&choice.label)?;
    if choice.private && !enrolment.private_ok {
        return Err(forbidden("私的端末は、市の承認がないと登録できません。下の窓口にご相談ください。"));
    }
    let hash = match (&choice.new_password, enrolment.further) {
        (Some(password), false) => Some(new_password_hash(server, enrolment, password).await?),
        (None, true) => None,
        (None, false) => return Err(no_password()),
        (Some(_), true) => return Err(invalid("ここではパスワードは変わりません。")),
    };
    let parts = (Arc::clone(&server.ca), Arc::clone(&server.terminals));
    let (server_name, days) = (server.name.to_string(), server.config.tls.client_days);
    let enrolling = Arc::clone(enrolment);
    let done = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let user_id = enrolling.user_id.as_str();
                if !store::terminals::spend_code(batch.sql().await?, &enrolling.code_hash, now).await? {
                    return Err(refused());
                }
                let account = store::accounts::account(batch.reading(), user_id)
                    .await?
                    .filter(|account| account.status != "ended")
                    .ok_or_else(refused)?;
                let facility =
                    account.facility.ok_or_else(|| Error::internal("an account without a facility"))?;
                let conn = batch.sql().await?;
                if let Some(hash) = hash {
                    store::accounts::set_password(conn, user_id, &hash, true, now).await?;
                    store::accounts::set_status(conn, user_id, "active", now).await?;
                }
                let id = store::meta::next_number(conn, "terminal", 1).await?;
                let issued = parts
                    .0
                    .issue(
                        &TerminalSubject {
                            // No person's name: TLS 1.2 sends certificates in clear.
                            common_name: format!("Heya terminal {id}"),
                            terminal: id,
                            facility,
                            server_name,
                        },
                        terminals::at(now),
                        time::Duration::days(i64::from(days)),
                    )
                    .map_err(|error| Error::internal(error.to_string()))?;
                let terminal = Terminal {
                    id,
                    facility,
                    label,
                    ownership: if choice.private { "private" } else { "facility" }.to_owned(),
                    enrolled_by: user_id.to_owned(),
                    last_seen: None,
                };
                terminals::add(batch, &parts.1, terminal, terminals::row(&issued, id)).await?;
                batch.audit(audit::Entry {
                    at: now,
                    actor: user_id.to_owned(),
                    action: "terminal.enrol".to_owned(),
                    terminal: Some(id),
                    certificate: Some(tls::hex(&issued.serial)),
                    target: format!("terminal {id}"),
                    result: "ok".to_owned(),
                    ..audit::Entry::default()
                });
                let bundle = Bundle { certificate: issued, password: crate::clock::readable_code(12) };
                finish_with(batch, enrolling, Finished::Certificate(Arc::new(bundle)));
                Ok(())
            })
        })
        .await;
    once(enrolment, done)
}

/// The end is noted with the commit, whoever waits for it still: the code is spent, and where the connection broke
/// meanwhile the certificate is there when the person looks again.
fn finish_with(batch: &mut Batch, enrolment: Arc<Enrolment>, finished: Finished) {
    batch.after_commit(move || *enrolment.finished.lock() = Some(finished));
}

/// The second of two presses at once finds the code spent by the first, and has what the first has.
fn once(enrolment: &Enrolment, done: Result<()>) -> Result<()> {
    if enrolment.finished().is_some() { Ok(()) } else { done }
}

fn no_password() -> Error {
    invalid("新しいパスワードを入力してください。")
}

/// The whole of step two where the city hands out certificates itself: spends the code and sets the password.
async fn set_password(server: &Arc<Server>, enrolment: &Arc<Enrolment>, choice: &Choice) -> Result<()> {
    if enrolment.further {
        return Err(forbidden(
            "端末を追加するときの電子証明書は、市が発行し、登録します。下の窓口にお問い合わせください。",
        ));
    }
    let password = choice.new_password.as_ref().ok_or_else(no_password)?;
    let hash = new_password_hash(server, enrolment, password).await?;
    let enrolling = Arc::clone(enrolment);
    let done = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let (now, user_id) = (batch.now, enrolling.user_id.as_str());
                if !store::terminals::spend_code(batch.sql().await?, &enrolling.code_hash, now).await? {
                    return Err(refused());
                }
                store::accounts::account(batch.reading(), user_id)
                    .await?
                    .filter(|account| account.status != "ended")
                    .ok_or_else(refused)?;
                let conn = batch.sql().await?;
                store::accounts::set_password(conn, user_id, &hash, true, now).await?;
                store::accounts::set_status(conn, user_id, "active", now).await?;
                batch.audit(audit::Entry {
                    at: now,
                    actor: user_id.to_owned(),
                    action: "account.enrol".to_owned(),
                    target: user_id.to_owned(),
                    result: "ok".to_owned(),
                    ..audit::Entry::default()
                });
                finish_with(batch, enrolling, Finished::Password);
                Ok(())
            })
        })
        .await;
    once(enrolment, done)
}

async fn new_password_hash(server: &Server, enrolment: &Enrolment, password: &str) -> Result<String> {
    let names: Vec<&str> = enrolment.names.iter().map(String::as_str).collect();
    passwords::check_rules(password, server.config.policy.password_length_min, &names, server.now())?;
    check_not_used_before(server, enrolment.user_id.as_str(), password).await?;
    server.passwords.hash(password).await
}

/// Refuses a password that the account has or had (C7).
pub async fn check_not_used_before(server: &Server, user_id: &str, password: &str) -> Result<()> {
    let mut conn = server.db.read().await?;
    let n = i64::try_from(server.config.policy.password_history).unwrap_or(i64::MAX);
    let mut former = store::accounts::password_history(&mut conn, user_id, n).await?;
    former.extend(
        store::accounts::account(&mut conn, user_id).await?.and_then(|account| account.password_hash),
    );
    drop(conn);
    for hash in former {
        if server.passwords.verify(password, &hash).await? {
            return Err(refuse(Code::WeakPassword, "以前に使ったパスワードは使えません。"));
        }
    }
    Ok(())
}
