//! E-mail addresses of accounts: asked for by a standard client, checked by a link in a mail, then added.

use std::sync::Arc;

use ruma::{OwnedUserId, UserId};

use super::{
    sessions::hash_of,
    terminals::{self, Known},
};
use crate::{
    error::{Code, Result, invalid, refuse},
    rooms::{batch::Batch, committer::Hint},
    server::Server,
    store::{self, addresses::AddressCheck, push::Mail},
};

/// How long the link in a mail is good.
const CHECK_HOURS: i64 = 24;
/// Addresses of one account.
const ADDRESSES_MAX: usize = 5;

/// An address in its one form; a bad one is refused. Stricter than RFC 5321: no quoting, no comments, one `@`. The
/// bridge parses it again with lettre before anything is sent.
pub fn normal(address: &str) -> Result<String> {
    let address = address.trim();
    let ok = address.len() <= 254
        && address.is_ascii()
        && !address.contains(|c: char| c.is_whitespace() || c.is_control() || ",;<>\"()[]:\\".contains(c))
        && address.matches('@').count() == 1
        && address.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty() && domain.contains('.') && !domain.starts_with('.') && !domain.ends_with('.')
        });
    if ok { Ok(address.to_lowercase()) } else { Err(invalid("That is not an e-mail address.")) }
}

/// What a check of an address is for. A link that was opened for one thing never does the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Adding the address to an account.
    Add,
    /// A new password instead of a forgotten one.
    Reset,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Reset => "reset",
        }
    }
}

/// A new password instead of a forgotten one: how long the link is good, and how many links wait at once.
const RESET_MS: i64 = 3_600_000;
const RESETS_MAX: i64 = 3;
/// How many links to add one address wait at once: nobody fills somebody else's mailbox.
const ADDS_MAX: i64 = 5;

/// Owes a mail with a single-use link, and returns the session id of the check. The same attempt again sends nothing.
pub async fn request_check(
    server: &Arc<Server>,
    address: &str,
    client_secret: String,
    attempt: i64,
    purpose: Purpose,
) -> Result<String> {
    let address = normal(address)?;
    let page = match purpose {
        Purpose::Add => "verify",
        Purpose::Reset => "reset",
    };
    let link_base = format!("{}/mail/{page}", server.config.enrol_url());
    let now = server.now();
    let sid = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                if let Some(known) =
                    store::addresses::check_of(batch.reading(), &client_secret, &address, purpose.word())
                        .await?
                    && known.attempt >= attempt
                    && known.expires_at > now
                {
                    return Ok(known.sid);
                }
                // The answer is the same whether somebody has the address or nobody.
                let wanted = match purpose {
                    Purpose::Add => {
                        store::addresses::checks_waiting(batch.reading(), &address, purpose.word(), now)
                            .await?
                            < ADDS_MAX
                    }
                    Purpose::Reset => can_be_reset(batch, &address, now).await?,
                };
                let token = crate::clock::random_token(43);
                let life = match purpose {
                    Purpose::Add => CHECK_HOURS * 3_600_000,
                    Purpose::Reset => RESET_MS,
                };
                let check = AddressCheck {
                    sid: crate::clock::random_token(24),
                    client_secret,
                    address: address.clone(),
                    token_hash: hash_of(&token),
                    attempt,
                    expires_at: now + life,
                    validated_at: None,
                    purpose: purpose.word().to_owned(),
                };
                let conn = batch.sql().await?;
                store::addresses::put_check(conn, &check).await?;
                if !wanted {
                    return Ok(check.sid);
                }
                let mail = Mail {
                    id: store::meta::next_number(conn, "mail", 1).await?,
                    template: match purpose {
                        Purpose::Add => "verify_address",
                        Purpose::Reset => "password_reset",
                    }
                    .to_owned(),
                    lang: "ja".to_owned(),
                    address,
                    parameters: serde_json::json!({"link": format!("{link_base}?token={token}")}).to_string(),
                };
                store::push::owe_mail(conn, &mail, now).await?;
                Ok(check.sid)
            })
        })
        .await?;
    server.mail_owed.notify_waiters();
    Ok(sid)
}

/// Whether a mail for a new password goes to an address: exactly one account has it, and not many links wait already.
async fn can_be_reset(batch: &mut Batch, address: &str, now: i64) -> Result<bool> {
    let waiting = store::addresses::checks_waiting(batch.reading(), address, "reset", now).await?;
    Ok(waiting < RESETS_MAX && owner(batch.reading(), address).await?.is_some())
}

/// The one account that has an address, where it is active and has a password of its own. An address that several share
/// speaks for none of them.
async fn owner(conn: &mut store::Conn, address: &str) -> Result<Option<store::accounts::Account>> {
    let users = store::addresses::users_of_address(conn, address).await?;
    let [user_id] = users.as_slice() else { return Ok(None) };
    let account = store::accounts::account(conn, user_id).await?;
    Ok(account.filter(|account| account.status == "active" && account.password_own))
}

/// The check that proves who forgot a password, where its link was opened and this terminal is one of the account's
/// facilities; and whose it is.
pub async fn confirmed_reset(
    server: &Server,
    sid: &str,
    client_secret: &str,
    terminal: Option<&Known>,
) -> Result<Option<store::accounts::Account>> {
    let now = server.now();
    let mut conn = server.db.read().await?;
    let check = store::addresses::check(&mut conn, sid).await?.filter(|check| {
        check.purpose == "reset"
            && check.client_secret == client_secret
            && check.expires_at > now
            && check.validated_at.is_some()
    });
    let Some(check) = check else { return Ok(None) };
    let Some(account) = owner(&mut conn, &check.address).await? else { return Ok(None) };
    if let Some(known) = terminal {
        let user_id = OwnedUserId::try_from(account.user_id.as_str())?;
        if !terminals::belongs(&mut conn, &user_id, known.facility).await? {
            return Ok(None);
        }
    }
    Ok(Some(account))
}

/// Owes an account a mail, to its first address; nothing where it has none. The bridge is woken after the commit.
pub async fn owe_mail(
    batch: &mut Batch,
    owed: &Arc<tokio::sync::Notify>,
    user_id: &str,
    template: &str,
    parameters: serde_json::Value,
) -> Result<()> {
    let now = batch.now;
    let addresses = store::addresses::addresses(batch.reading(), user_id).await?;
    let Some((address, ..)) = addresses.into_iter().next() else { return Ok(()) };
    let conn = batch.sql().await?;
    let mail = Mail {
        id: store::meta::next_number(conn, "mail", 1).await?,
        template: template.to_owned(),
        lang: "ja".to_owned(),
        address,
        parameters: parameters.to_string(),
    };
    store::push::owe_mail(conn, &mail, now).await?;
    let owed = Arc::clone(owed);
    batch.after_commit(move || owed.notify_waiters());
    Ok(())
}

/// The person pressed the button on the page behind the link. False where the link is used up or too old.
pub async fn confirm(server: &Arc<Server>, token: &str, purpose: Purpose) -> Result<bool> {
    let (hash, now) = (hash_of(token), server.now());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                store::addresses::confirm_check(batch.sql().await?, &hash, purpose.word(), now).await
            })
        })
        .await
}

/// Adds a checked address to an account.
pub async fn add(server: &Arc<Server>, user_id: &UserId, sid: &str, client_secret: &str) -> Result<()> {
    let (user_id, sid, client_secret) = (user_id.to_owned(), sid.to_owned(), client_secret.to_owned());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let check = store::addresses::check(batch.reading(), &sid)
                    .await?
                    .filter(|check| {
                        check.purpose == "add"
                            && check.client_secret == client_secret
                            && check.expires_at > now
                    })
                    .ok_or_else(|| {
                        refuse(
                            Code::ThreepidNotFound,
                            "This check is not known or too old: please begin again.",
                        )
                    })?;
                let validated_at = check.validated_at.ok_or_else(|| {
                    refuse(
                        Code::ThreepidAuthFailed,
                        "Please open the link in the mail first (メールのリンクを開いてください).",
                    )
                })?;
                if store::addresses::addresses(batch.reading(), user_id.as_str()).await?.len()
                    >= ADDRESSES_MAX
                {
                    return Err(invalid(format!("At most {ADDRESSES_MAX} addresses.")));
                }
                let conn = batch.sql().await?;
                store::addresses::add_address(conn, user_id.as_str(), &check.address, validated_at, now)
                    .await?;
                store::addresses::delete_check(conn, &sid).await
            })
        })
        .await
}
