//! `/login`, `/refresh`, `/logout`, `/account/whoami`.

use std::{sync::Arc, time::Duration};

use ruma::api::client::{
    account::whoami,
    session::{
        get_login_types::v3 as types, login::v3 as login, logout::v3 as logout, logout_all::v3 as logout_all,
        refresh_token::v3 as refresh,
    },
    uiaa::UserIdentifier,
};
use serde_json::{Map, Value};

use crate::{
    accounts::{
        guests,
        login::{Attempt, log_in},
        sessions::{self, Refreshed, Refreshing},
    },
    error::{Code, Result, refuse},
    http::{
        caller::{self, Peer, Requester},
        route::{Answer, Call, Routes, needed},
    },
    rooms::committer::Hint,
    server::Server,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<types::Request, Peer, _, _>(|server, peer, _| async move {
            match caller::terminal(&server, &peer) {
                Ok(_) => Ok(serde_json::json!({"flows": [{"type": "m.login.password"}]}).into()),
                // Apps that cannot show their certificate find the OAuth 2.0 API: no other way in is theirs.
                Err(_) if caller::shown_before(&server, &peer, Some("")).is_some() => {
                    Ok(serde_json::json!({"flows": []}).into())
                }
                Err(refused) => Err(refused),
            }
        })
        .checked::<login::Request, Peer, _, _>(login_shape, login)
        .endpoint::<refresh::Request, Peer, _, _>(refresh)
        .at(http::Method::GET, "/_matrix/client/v3/login/sso/redirect", no_sso)
        .at(http::Method::GET, "/_matrix/client/v3/login/sso/redirect/{idpId}", no_sso)
        .endpoint::<logout::Request, Requester, _, _>(|server, who, _| async move {
            let (user_id, device) = (who.user_id.clone(), who.device()?.to_owned());
            end(&server, who, move |batch, sessions| {
                Box::pin(async move { sessions::end_devices(batch, &sessions, &user_id, vec![device]).await })
            })
            .await?;
            Ok(logout::Response::new())
        })
        .endpoint::<logout_all::Request, Requester, _, _>(|server, who, _| async move {
            let user_id = who.user_id.clone();
            end(&server, who, move |batch, sessions| {
                Box::pin(async move { sessions::end_all(batch, &sessions, &user_id, None).await.map(|_| ()) })
            })
            .await?;
            Ok(logout_all::Response::new())
        })
        .endpoint::<whoami::v3::Request, Requester, _, _>(|_, who, _| async move {
            let mut response = whoami::v3::Response::new(who.user_id.clone(), guests::is_guest(&who.user_id));
            response.device_id = who.device_id.map(Into::into);
            Ok(response)
        })
        .at(http::Method::POST, "/_matrix/client/v1/login/get_token", |server, call| async move {
            // A token for another login would let a second device in without a password (DESIGN 2).
            caller::requester(&server, &call.parts).await?;
            Err(crate::error::forbidden(
                "Logging in by a token is switched off: log in with password and certificate.",
            ))
        })
}

/// ruma panics on a log-in without a type.
fn login_shape(body: &Map<String, Value>) -> Result<()> {
    if needed(body, "type")?.is_string() {
        Ok(())
    } else {
        Err(refuse(Code::BadJson, "The type of a log-in is a string."))
    }
}

async fn login(server: Arc<Server>, peer: Peer, request: login::Request) -> Result<login::Response> {
    // Without a valid certificate the password is never looked at.
    let terminal = caller::terminal(&server, &peer)?;
    if server.config.policy.rate_limits {
        server.limiter.allow_before_login(peer.address.ip(), server.now())?;
    }
    let unknown = |code| refuse(code, "Only m.login.password with the ID (m.id.user) is offered.");
    let password = match request.login_info {
        login::LoginInfo::Password(password) => password,
        login::LoginInfo::ApplicationService(_) => return Err(unknown(Code::AppserviceLoginUnsupported)),
        _ => return Err(unknown(Code::Unknown)),
    };
    let id = match password.identifier {
        Some(UserIdentifier::Matrix(id)) => id.user,
        _ => return Err(unknown(Code::InvalidParam)),
    };
    let done = log_in(
        &server,
        Attempt {
            id,
            password: password.password,
            terminal,
            device_id: request.device_id.map(String::from),
            device_name: request.initial_device_display_name,
            refreshes: request.refresh_token,
            address: peer.address.ip(),
        },
    )
    .await?;
    let mut response = login::Response::new(done.user_id, done.tokens.access, done.device_id.into());
    response.refresh_token = done.tokens.refresh;
    response.expires_in = done.tokens.expires_in_ms.and_then(milliseconds);
    Ok(response)
}

fn milliseconds(ms: i64) -> Option<Duration> {
    u64::try_from(ms).ok().map(Duration::from_millis)
}

/// New tokens for a session of `m.login.password` or registration, on its own terminal.
async fn refresh(server: Arc<Server>, peer: Peer, request: refresh::Request) -> Result<refresh::Response> {
    let terminal = caller::terminal(&server, &peer)?;
    if server.config.policy.rate_limits {
        server.limiter.allow_before_login(peer.address.ip(), server.now())?;
    }
    let asked =
        Refreshing { token: request.refresh_token, client_id: None, terminal, address: peer.address.ip() };
    match sessions::refresh(&server, asked).await? {
        Refreshed::Tokens(tokens) => {
            let mut response = refresh::Response::new(tokens.access);
            response.refresh_token = tokens.refresh;
            response.expires_in_ms = tokens.expires_in_ms.and_then(milliseconds);
            Ok(response)
        }
        Refreshed::Refused | Refreshed::Reused => Err(refuse(
            Code::UnknownToken { soft_logout: true },
            "This refresh token is not known or was used before: please log in.",
        )),
    }
}

/// There is no single sign-on: whoever is sent here came by a wrong link.
async fn no_sso(server: Arc<Server>, call: Call) -> Result<Answer> {
    caller::terminal(&server, &caller::peer(&call.parts)?)?;
    Err(refuse(Code::Unrecognized, "Single sign-on is not offered here."))
}

async fn end<F>(server: &Arc<Server>, who: Requester, unit: F) -> Result<()>
where
    F: for<'b> FnOnce(
            &'b mut crate::rooms::batch::Batch,
            Arc<sessions::Sessions>,
        ) -> crate::rooms::committer::UnitFuture<'b, ()>
        + Send
        + 'static,
{
    let sessions = Arc::clone(&server.sessions);
    let entry = who.entry(server.now(), "logout");
    server
        .commit(Hint::default(), move |batch| {
            batch.audit(entry);
            unit(batch, sessions)
        })
        .await
}
