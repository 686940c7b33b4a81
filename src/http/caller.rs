//! Who is calling: the connection, the session behind the token, the appservice. The certificate's verdict was taken
//! when the connection began; whether it still holds is asked here, on every request (DESIGN 1, 2).

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use ruma::{OwnedUserId, UserId};

use super::route::bearer;
use crate::{
    accounts::{
        guests, moderation,
        sessions::{self, Binding, LiveSession},
        terminals::{Known, Standing},
    },
    config::ClientCertificate,
    error::{Code, Error, Result, forbidden, refuse},
    server::Server,
    store,
    tls::Presented,
};

/// The listener that a request came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// Clients.
    Public,
    /// Enrolment, mail links, help.
    Enrol,
    /// Bot, bridge, commands.
    Internal,
}

/// The connection that a request came in on.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where from: for the audit log, never a credential.
    pub address: SocketAddr,
    /// What certificate was shown.
    pub presented: Arc<Presented>,
    /// On which listener.
    pub listener: Listener,
}

/// Who is calling, authenticated.
#[derive(Clone, Debug)]
pub struct Requester {
    /// The account.
    pub user_id: OwnedUserId,
    /// The device; appservices have one only where they say so.
    pub device_id: Option<String>,
    /// The session; appservices have none.
    pub session: Option<Arc<LiveSession>>,
    /// The appservice that acts as the account.
    pub appservice: Option<String>,
    /// The terminal.
    pub terminal: Option<Known>,
    /// Where from.
    pub address: SocketAddr,
}

/// Who is calling where the specification lets people in without a token to replace a forgotten password: somebody with one,
/// or a connection.
#[derive(Clone, Debug)]
pub enum Asker {
    /// Authenticated.
    Known(Requester),
    /// Without a token.
    Unknown(Peer),
}

impl Requester {
    /// The device, where the call needs one.
    pub fn device(&self) -> Result<&str> {
        self.device_id.as_deref().ok_or_else(|| forbidden("This call needs a session of a device."))
    }

    /// From where the caller acts.
    pub fn origin(&self) -> crate::audit::Origin {
        crate::audit::Origin {
            actor: self.user_id.to_string(),
            terminal: self.terminal.as_ref().map(|known| known.terminal),
            certificate: self.terminal.as_ref().map(|known| known.serial.clone()),
            address: Some(self.address.ip().to_string()),
        }
    }

    /// A line of the audit log about what this caller does.
    pub fn entry(&self, now: i64, action: &str) -> crate::audit::Entry {
        let entry = crate::audit::Entry {
            at: now,
            actor: self.user_id.to_string(),
            action: action.to_owned(),
            result: "ok".to_owned(),
            ..crate::audit::Entry::default()
        };
        entry.from(&self.origin())
    }
}

/// The connection of a request.
pub fn peer(parts: &http::request::Parts) -> Result<Peer> {
    parts.extensions.get::<Peer>().cloned().ok_or_else(|| Error::internal("a request without its connection"))
}

/// What the connection's certificate is worth now, where the policy asks for one.
pub fn terminal(server: &Server, peer: &Peer) -> Result<Option<Known>> {
    if peer.listener != Listener::Public {
        // Whoever logs in does so where certificates are asked for, and nowhere else.
        return Err(refuse(Code::Unrecognized, "People's clients use the public address."));
    }
    if server.config.policy.client_certificate == ClientCertificate::Off {
        return Ok(None);
    }
    match server.terminals.standing(&peer.presented, server.now()) {
        (Standing::Valid, known) => Ok(known),
        (standing, _) => Err(certificate_refused(standing)),
    }
}

/// The refusal that tells the certificate's own state and nothing else (never 401: clients would delete their session).
pub fn certificate_refused(standing: Standing) -> Error {
    let message = match standing {
        Standing::Valid => "The certificate is valid.",
        Standing::None => {
            "This terminal showed no certificate: install the one that the city issued (電子証明書がありません)."
        }
        Standing::Expired => {
            "This terminal's certificate has expired: ask the city desk to renew it (電子証明書の期限切れ)."
        }
        Standing::Revoked => {
            "This terminal's certificate has been revoked: ask the city desk (電子証明書は失効しています)."
        }
        Standing::Unknown => {
            "This certificate is not one of this service: choose the one that the city issued (電子証明書が違います)."
        }
    };
    forbidden(message).with("jp.heya.certificate", standing.word())
}

/// The caller of an authenticated endpoint.
pub async fn requester(server: &Arc<Server>, parts: &http::request::Parts) -> Result<Requester> {
    let peer = peer(parts)?;
    let token = || {
        bearer(&parts.headers).ok_or_else(|| {
            refuse(Code::MissingToken, "An access token is needed in the Authorization header.")
        })
    };
    match peer.listener {
        Listener::Internal => appservice(server, parts, token()?, &peer).await,
        Listener::Enrol => Err(refuse(Code::Unrecognized, "This address is for enrolment only.")),
        Listener::Public => {
            let shown = match terminal(server, &peer) {
                Ok(shown) => shown,
                // A session of the `login` binding comes without a certificate; what is no session is told so.
                Err(refused) => match shown_before(server, &peer, bearer(&parts.headers)) {
                    Some(_) => None,
                    None => return Err(refused),
                },
            };
            let who = session(server, parts, token()?, shown, &peer)?;
            if let Some(session) = who.session.as_ref().filter(|s| s.unused.load(Ordering::Acquire)) {
                sessions::settle(server, session).await?;
            }
            Ok(who)
        }
    }
}

/// A connection without a token, where the city lets people replace a forgotten password; elsewhere a token is missing.
pub fn without_token(server: &Server, parts: &http::request::Parts) -> Result<Peer> {
    let peer = peer(parts)?;
    if server.config.policy.password_reset_by_mail && peer.listener == Listener::Public {
        Ok(peer)
    } else {
        Err(refuse(Code::MissingToken, "An access token is needed in the Authorization header."))
    }
}

/// What a token may do on a connection without a certificate, where the city allows the `login` binding: a session of that
/// binding is let through (`Some(true)`), and a token of no session is told so (`Some(false)`). Nothing else comes in.
pub fn shown_before(server: &Server, peer: &Peer, token: Option<&str>) -> Option<bool> {
    if !server.allows_login_binding() || !matches!(*peer.presented, Presented::None) {
        return None;
    }
    match server.sessions.of_token(token?) {
        Some(session) => (session.binding == Binding::Login).then_some(true),
        None => Some(false),
    }
}

fn session(
    server: &Arc<Server>,
    parts: &http::request::Parts,
    token: &str,
    terminal: Option<Known>,
    peer: &Peer,
) -> Result<Requester> {
    let session = server.sessions.of_token(token).ok_or_else(|| {
        refuse(Code::UnknownToken { soft_logout: false }, "This session has ended: please log in.")
    })?;
    let now = server.now();
    let terminal = bound(server, &session, terminal, now)?;
    if session.has_expired(now) {
        return Err(refuse(
            Code::UnknownToken { soft_logout: true },
            "The access token has run out: please refresh it, or log in.",
        ));
    }
    if guests::is_guest(&session.user_id) && !guests::may_call(&parts.method, parts.uri.path()) {
        return Err(refuse(Code::GuestAccessForbidden, "Guests may not do this."));
    }
    moderation::check(server, &session.user_id, &parts.method, parts.uri.path())?;
    session.last_seen.store(now, Ordering::Relaxed);
    *session.last_address.lock() = Some(peer.address.ip());
    if server.config.policy.rate_limits {
        server.limiter.allow(&session, now, &server.config.limits)?;
    }
    Ok(Requester {
        user_id: session.user_id.clone(),
        device_id: Some(session.device_id.clone()),
        session: Some(session),
        appservice: None,
        terminal,
        address: peer.address,
    })
}

/// The terminal that a session's request counts as coming from, where its binding holds.
fn bound(server: &Server, session: &LiveSession, shown: Option<Known>, now: i64) -> Result<Option<Known>> {
    let another = || {
        refuse(
            Code::UnknownToken { soft_logout: true },
            "This session belongs to another terminal: please log in on this one.",
        )
    };
    if session.binding == Binding::Login && server.allows_login_binding() && shown.is_none() {
        // Its certificate was shown at the log-in, and is asked after all the same.
        let serial = session.certificate.as_deref().unwrap_or_default();
        let known = server.terminals.of_serial(serial, now).ok_or_else(another)?;
        return if session.terminal == Some(known.terminal) { Ok(Some(known)) } else { Err(another()) };
    }
    // The token is worth nothing on another terminal (C4), and where certificates are asked for, a session without a
    // terminal (from before the policy was so) is worth nothing at all.
    if session.terminal == shown.as_ref().map(|known| known.terminal) { Ok(shown) } else { Err(another()) }
}

/// An appservice, on the internal listener: as its own user, or as one of its namespace (`?user_id=`), and there as one of
/// the user's devices (`?device_id=`; Application Service API, "Identity assertion").
async fn appservice(
    server: &Arc<Server>,
    parts: &http::request::Parts,
    token: &str,
    peer: &Peer,
) -> Result<Requester> {
    let appservice = server.appservices.of_token(token).ok_or_else(|| {
        refuse(Code::UnknownToken { soft_logout: false }, "This token is not an appservice's.")
    })?;
    let query = super::route::form(parts.uri.query().unwrap_or_default());
    let field = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let user_id = match field("user_id") {
        Some(id) => {
            let user_id = <&UserId>::try_from(id.as_str())
                .map_err(|_| crate::error::invalid("user_id is not a user id."))?
                .to_owned();
            // Another's users are never one's own, however wide a namespace is; `@city` above all.
            let anothers = server.appservices.is_exclusive(&user_id, Some(&appservice.id));
            if !server.is_local(&user_id) || anothers || !appservice.may_act_as(&user_id) {
                return Err(forbidden("The appservice may act only as users of its namespace."));
            }
            user_id
        }
        None => appservice.sender.clone(),
    };
    if user_id != appservice.sender {
        let account = store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?;
        // Nobody speaks for a person to whom the city has issued an ID, however wide a namespace is.
        let own = |kind: &str| kind == "appservice" || server.config.policy.open_profile;
        if !account.is_some_and(|account| account.status == "active" && own(&account.kind)) {
            return Err(forbidden("The appservice has not registered this user."));
        }
        moderation::check(server, &user_id, &parts.method, parts.uri.path())?;
        if server.config.policy.rate_limits && appservice.registration.rate_limited.unwrap_or(true) {
            server.limiter.allow_masqueraded(&user_id, server.now(), &server.config.limits)?;
        }
    }
    let device_id = field("device_id").or_else(|| field("org.matrix.msc3202.device_id"));
    if let Some(device_id) = &device_id {
        let devices = store::personal::devices(&mut server.db.read().await?, user_id.as_str()).await?;
        if !devices.iter().any(|device| device.device_id == *device_id) {
            return Err(refuse(Code::UnknownDevice, "The user has no device of this id."));
        }
    }
    Ok(Requester {
        user_id,
        device_id,
        session: None,
        appservice: Some(appservice.id.clone()),
        terminal: None,
        address: peer.address,
    })
}
