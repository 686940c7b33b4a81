//! Codes and tokens: from a log-in on the authorize page to a session, and its end.

use std::{net::IpAddr, sync::Arc};

use base64::Engine as _;
use ruma::{OwnedUserId, UserId};
use sha2::{Digest as _, Sha256};

use super::{
    Failed, Told,
    clients::{self, Client},
    request::Asked,
    scope::Scope,
    told,
};
use crate::{
    accounts::{
        login::{self, Proven},
        sessions::{self, Binding, New, Refreshed, Refreshing, Tokens, hash_of},
        terminals::Known,
    },
    audit,
    error::{Error, Result},
    rooms::{batch::Batch, committer::Hint},
    server::Server,
    store::{self, oauth::CodeRow},
};

/// How long a code is good: a minute.
const CODE_MS: i64 = 60_000;

/// The refusal of everything that is handed in for tokens: it does not tell what was wrong.
pub const INVALID: Told =
    told("invalid_grant", "this code or token is not known, not this client's, or used up");

/// Where a request comes from.
#[derive(Clone, Debug)]
pub struct Here {
    /// The terminal of the connection; none where it shows no certificate.
    pub terminal: Option<Known>,
    /// The address.
    pub address: IpAddr,
}

impl Here {
    fn entry(&self, actor: &str, now: i64, action: &str, result: &str, detail: &str) -> audit::Entry {
        audit::Entry {
            at: now,
            actor: actor.to_owned(),
            terminal: self.terminal.as_ref().map(|known| known.terminal),
            certificate: self.terminal.as_ref().map(|known| known.serial.clone()),
            address: Some(self.address.to_string()),
            action: action.to_owned(),
            result: result.to_owned(),
            detail: detail.to_owned(),
            ..audit::Entry::default()
        }
    }
}

/// Gives a code to a client for somebody who has just given ID and password on a connection of this terminal.
pub async fn give_code(server: &Arc<Server>, asked: &Asked, proven: Proven, here: &Here) -> Result<String> {
    let code = crate::clock::random_token(43);
    let now = server.now();
    let row = CodeRow {
        code_hash: hash_of(&code),
        client_id: asked.back.client.id.clone(),
        redirect_uri: asked.back.redirect_uri.clone(),
        challenge: asked.challenge.clone(),
        user_id: proven.user_id.to_string(),
        device_id: asked.scope.device_id.clone(),
        scope: asked.scope.granted.clone(),
        terminal: here.terminal.as_ref().map(|known| known.terminal),
        certificate: here.terminal.as_ref().map(|known| known.serial.clone()),
        expires_at: now + CODE_MS,
        used_at: None,
    };
    let entry = here.entry(proven.user_id.as_str(), now, "oauth.authorize", "ok", &asked.back.client.host());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let account = store::accounts::account(batch.reading(), &row.user_id).await?;
                if !proven.holds(account.as_ref()) {
                    return Err(login::refused());
                }
                batch.audit(entry);
                let conn = batch.sql().await?;
                store::oauth::client_is_used(conn, &row.client_id, now).await?;
                store::oauth::put_code(conn, &row).await
            })
        })
        .await?;
    Ok(code)
}

/// Whether a verifier is the one of a challenge (RFC 7636, 4.6).
fn is_verified(verifier: &str, challenge: &str) -> bool {
    let good = (43..=128).contains(&verifier.len())
        && verifier.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
    let encoded =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    good && encoded == challenge
}

/// A code that a client hands in.
#[derive(Clone, Debug)]
pub struct HandedIn {
    /// The client.
    pub client_id: String,
    /// The code.
    pub code: String,
    /// Where the client says that it got it.
    pub redirect_uri: String,
    /// The PKCE verifier.
    pub verifier: String,
}

/// What a session of a grant is bound to: to connections of its terminal where the client shows that terminal's
/// certificate here, to the log-in where it shows none and the city allows that. None: refused.
fn binding(
    server: &Server,
    terminal: Option<i64>,
    certificate: Option<&str>,
    here: &Here,
) -> Option<Binding> {
    match (terminal, &here.terminal) {
        (Some(terminal), Some(known)) => (known.terminal == terminal).then_some(Binding::Connection),
        (Some(terminal), None) => {
            let known = server.terminals.of_serial(certificate?, server.now())?;
            (server.allows_login_binding() && known.terminal == terminal).then_some(Binding::Login)
        }
        (None, None) => Some(Binding::None),
        (None, Some(_)) => None,
    }
}

/// Gives tokens for a code, once. A code that was handed in before ends the session that it gave (RFC 6749, 4.1.2): two know
/// it. One that is handed in wrongly is used up.
pub async fn exchange(server: &Arc<Server>, handed: HandedIn, here: Here) -> Result<Tokens, Failed> {
    let client = clients::client(server, &handed.client_id).await?;
    let lifetime = i64::from(server.config.limits.access_token_seconds) * 1000;
    let for_unit = Arc::clone(server);
    let tokens = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let server = for_unit;
                let now = batch.now;
                let hash = hash_of(&handed.code);
                let Some(code) = store::oauth::code(batch.reading(), &hash).await? else { return Ok(None) };
                if code.used_at.is_some() {
                    used_again(batch, &server, &code, &here).await?;
                    return Ok(None);
                }
                store::oauth::spend_code(batch.sql().await?, &hash, now).await?;
                let Some(client) = client.filter(|client| client.id == code.client_id) else {
                    return Ok(None);
                };
                let right = code.redirect_uri == handed.redirect_uri
                    && is_verified(&handed.verifier, &code.challenge)
                    && now < code.expires_at;
                let binding = binding(&server, code.terminal, code.certificate.as_deref(), &here);
                let (true, Some(binding)) = (right, binding) else { return Ok(None) };
                let grant = Grant {
                    user_id: OwnedUserId::try_from(code.user_id.as_str())?,
                    scope: Scope { device_id: code.device_id, granted: code.scope },
                    terminal: code.terminal,
                    certificate: code.certificate,
                    proven: None,
                };
                begin(batch, &server, &client, grant, binding, lifetime, &here).await
            })
        })
        .await?;
    tokens.ok_or(Failed::Told(INVALID))
}

async fn used_again(batch: &mut Batch, server: &Arc<Server>, code: &CodeRow, here: &Here) -> Result<()> {
    let now = batch.now;
    let current = store::sessions::sessions_of(batch.reading(), &code.user_id, Some(&code.device_id)).await?;
    // A later log-in of the same device by another client is not this code's.
    if current.iter().any(|session| session.client_id.as_deref() == Some(code.client_id.as_str())) {
        sessions::end_session(batch, &server.sessions, &code.user_id, &code.device_id).await?;
    }
    batch.audit(here.entry(&code.user_id, now, "oauth.code_reused", "ended", ""));
    Ok(())
}

/// What somebody granted on a page.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Who.
    pub user_id: OwnedUserId,
    /// For what.
    pub scope: Scope,
    /// The terminal of the page.
    pub terminal: Option<i64>,
    /// Its certificate (hex).
    pub certificate: Option<String>,
    /// Of a grant in memory: who proved to be there, and how often all their log-ins had been ended by then. (A code is a
    /// row, and goes with them.)
    pub proven: Option<(Proven, u64)>,
}

async fn begin(
    batch: &mut Batch,
    server: &Arc<Server>,
    client: &Client,
    grant: Grant,
    binding: Binding,
    lifetime: i64,
    here: &Here,
) -> Result<Option<Tokens>> {
    let now = batch.now;
    let account = store::accounts::account(batch.reading(), grant.user_id.as_str()).await?;
    // What happened since the page: the account ended, its password was changed, all its log-ins were ended.
    let as_proven = grant.proven.as_ref().is_none_or(|(proven, endings)| {
        proven.holds(account.as_ref()) && server.sessions.endings(&grant.user_id) == *endings
    });
    if !as_proven || account.is_none_or(|account| account.status != "active" || !account.password_own) {
        return Ok(None);
    }
    let mut entry =
        here.entry(grant.user_id.as_str(), now, "login", "ok", &format!("oauth {}", client.host()));
    // Where the client shows no certificate, the one of the page is what the log-in was with.
    entry.terminal = entry.terminal.or(grant.terminal);
    entry.certificate = entry.certificate.or_else(|| grant.certificate.clone());
    let new = New {
        device_name: Some(client.name()),
        terminal: grant.terminal,
        certificate: grant.certificate,
        binding,
        client: Some((client.id.clone(), grant.scope.granted)),
        refreshed_after: Some(lifetime),
        ..New::here(grant.user_id, grant.scope.device_id, None)
    };
    let tokens = sessions::begin(batch, &server.sessions, new).await?;
    batch.audit(entry);
    Ok(Some(tokens))
}

/// Gives tokens for a device grant that was approved.
pub async fn begin_approved(
    server: &Arc<Server>,
    client: Client,
    mut grant: Grant,
    here: Here,
) -> Result<Tokens, Failed> {
    // A device that shows a certificate is bound to its own terminal, which must be one of the account's facilities.
    if let Some(known) = &here.terminal {
        let mut conn = server.db.read().await?;
        if !crate::accounts::terminals::belongs(&mut conn, &grant.user_id, known.facility).await? {
            return Err(Failed::Told(told("access_denied", "this terminal is of another facility")));
        }
        grant.terminal = Some(known.terminal);
        grant.certificate = Some(known.serial.clone());
    }
    let Some(binding) = binding(server, grant.terminal, grant.certificate.as_deref(), &here) else {
        return Err(Failed::Told(told("access_denied", "this app shows no certificate")));
    };
    let lifetime = i64::from(server.config.limits.access_token_seconds) * 1000;
    let for_unit = Arc::clone(server);
    let tokens = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                store::oauth::client_is_used(batch.sql().await?, &client.id, now).await?;
                begin(batch, &for_unit, &client, grant, binding, lifetime, &here).await
            })
        })
        .await?;
    tokens.ok_or(Failed::Told(INVALID))
}

/// Somebody has typed an app's code on the page and given ID and password.
pub async fn record_approval(
    server: &Arc<Server>,
    user_id: &UserId,
    client: &Client,
    device_id: &str,
    here: &Here,
) -> Result<()> {
    let detail = format!("device {device_id} of {}", client.host());
    let entry = here.entry(user_id.as_str(), server.now(), "oauth.authorize", "ok", &detail);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                Ok(())
            })
        })
        .await
}

/// New tokens for a refresh token of a client.
pub async fn refresh(
    server: &Arc<Server>,
    client_id: String,
    token: String,
    here: Here,
) -> Result<Tokens, Failed> {
    let asked =
        Refreshing { token, client_id: Some(client_id), terminal: here.terminal, address: here.address };
    match sessions::refresh(server, asked).await? {
        Refreshed::Tokens(tokens) => Ok(tokens),
        Refreshed::Refused | Refreshed::Reused => Err(Failed::Told(INVALID)),
    }
}

/// Ends the session of an access or refresh token, with its device (RFC 7009; client-server API, "Token revocation"). A token
/// that is not known is fine; another client's is not.
pub async fn revoke(
    server: &Arc<Server>,
    token: &str,
    client_id: Option<&str>,
    here: Here,
) -> Result<(), Failed> {
    let live = server.sessions.of_token(token).map(|s| (s.user_id.to_string(), s.device_id.clone()));
    let (hash, client_id) = (hash_of(token), client_id.map(ToOwned::to_owned));
    let for_unit = Arc::clone(server);
    let ended = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let found = match live {
                    Some(found) => Some(found),
                    None => store::oauth::refresh_token(batch.reading(), &hash)
                        .await?
                        .map(|token| (token.user_id, token.device_id)),
                };
                let Some((user, device)) = found else { return Ok(true) };
                let rows = store::sessions::sessions_of(batch.reading(), &user, Some(&device)).await?;
                let Some(own) = rows.into_iter().find_map(|row| row.client_id) else { return Ok(true) };
                if client_id.is_some_and(|client_id| client_id != own) {
                    return Ok(false);
                }
                let user_id = OwnedUserId::try_from(user.as_str())?;
                sessions::end_devices(batch, &for_unit.sessions, &user_id, vec![device]).await?;
                batch.audit(here.entry(&user, now, "logout", "ok", "oauth"));
                Ok(true)
            })
        })
        .await
        .map_err(Failed::Other)?;
    if ended { Ok(()) } else { Err(Failed::Told(told("invalid_client", "the token is another client's"))) }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Told(told) => crate::error::invalid(told.description),
            Failed::Other(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_is_hashed() {
        // RFC 7636, appendix B.
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        assert!(is_verified(verifier, challenge));
        assert!(!is_verified(challenge, challenge), "plain was taken");
        assert!(!is_verified("short", challenge));
        assert!(!is_verified(&"x".repeat(129), challenge));
    }
}
