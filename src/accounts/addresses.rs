//! E-mail addresses of accounts: asked for by a standard client, checked by a link in a mail, then added.

use std::sync::Arc;

use ruma::UserId;

use super::sessions::hash_of;
use crate::{
    error::{Code, Result, invalid, refuse},
    rooms::{batch::Batch, committer::Hint},
    server::Server,
    store::{self, accounts::AddressCheck, push::Mail},
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

/// Owes a mail with a single-use link, and returns the session id of the check. The same attempt again sends nothing.
pub async fn request_check(
    server: &Arc<Server>,
    address: &str,
    client_secret: String,
    attempt: i64,
) -> Result<String> {
    let address = normal(address)?;
    let link_base = format!("{}/mail/verify", server.config.enrol_url());
    let now = server.now();
    let sid = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                if let Some(known) =
                    store::accounts::check_of(batch.reading(), &client_secret, &address).await?
                    && known.attempt >= attempt
                    && known.expires_at > now
                {
                    return Ok(known.sid);
                }
                let token = crate::clock::random_token(43);
                let check = AddressCheck {
                    sid: crate::clock::random_token(24),
                    client_secret,
                    address: address.clone(),
                    token_hash: hash_of(&token),
                    attempt,
                    expires_at: now + CHECK_HOURS * 3_600_000,
                    validated_at: None,
                };
                let conn = batch.sql().await?;
                store::accounts::put_check(conn, &check).await?;
                let mail = Mail {
                    id: store::meta::next_number(conn, "mail", 1).await?,
                    template: "verify_address".to_owned(),
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

/// Owes an account a mail, to its first address; nothing where it has none. The bridge is woken after the commit.
pub async fn owe_mail(
    batch: &mut Batch,
    owed: &Arc<tokio::sync::Notify>,
    user_id: &str,
    template: &str,
    parameters: serde_json::Value,
) -> Result<()> {
    let now = batch.now;
    let addresses = store::accounts::addresses(batch.reading(), user_id).await?;
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
pub async fn confirm(server: &Arc<Server>, token: &str) -> Result<bool> {
    let (hash, now) = (hash_of(token), server.now());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move { store::accounts::confirm_check(batch.sql().await?, &hash, now).await })
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
                let check = store::accounts::check(batch.reading(), &sid)
                    .await?
                    .filter(|check| check.client_secret == client_secret && check.expires_at > now)
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
                if store::accounts::addresses(batch.reading(), user_id.as_str()).await?.len() >= ADDRESSES_MAX
                {
                    return Err(invalid(format!("At most {ADDRESSES_MAX} addresses.")));
                }
                let conn = batch.sql().await?;
                store::accounts::add_address(conn, user_id.as_str(), &check.address, validated_at, now)
                    .await?;
                store::accounts::delete_check(conn, &sid).await
            })
        })
        .await
}
