//! User-interactive authentication: the password, once more, for one operation. Sessions of OAuth clients are asked for
//! `m.oauth` instead: their user approves the operation on the account page (client-server API, "OAuth authentication";
//! MSC4312), so that no client but the pages sees the password.

use std::sync::Arc;

use ruma::api::client::uiaa::{AuthData, UserIdentifier};
use serde_json::{Value, json};

use crate::{
    accounts::login,
    error::{Code, Error, Result, forbidden, refuse},
    http::caller::Requester,
    server::Server,
};

/// The stage of sessions of `m.login.password` and registration.
const PASSWORD: &str = "m.login.password";
/// The stage of sessions of OAuth clients, and its name before it was specified.
const OAUTH: &str = "m.oauth";
const OAUTH_UNSTABLE: &str = "org.matrix.cross_signing_reset";

/// Lets the operation through, or asks for the password. `operation` names it with its target, and with what its body asks
/// for where that matters: an authentication begun for one operation is worth nothing for another.
pub async fn password(
    server: &Arc<Server>,
    who: &Requester,
    auth: Option<AuthData>,
    operation: &str,
) -> Result<()> {
    if who.appservice.is_some() {
        return Ok(());
    }
    if who.session.as_ref().is_some_and(|session| session.client_id.is_some()) {
        return approved(server, who, auth.as_ref(), operation);
    }
    let now = server.now();
    let begin = || server.interactive.begin(&who.user_id, operation, None, now);
    let Some(AuthData::Password(given)) = auth else {
        return Err(ask(&begin(), &[PASSWORD], json!({}), None));
    };
    // Clients that know the password already send it at once, without a session of before.
    let session = given.session.clone().unwrap_or_else(begin);
    if !server.interactive.is_for(&session, &who.user_id, operation, now) {
        return Err(ask(&begin(), &[PASSWORD], json!({}), None));
    }
    let own = match &given.identifier {
        UserIdentifier::Matrix(id) => login::user_id_of(server, &id.user).is_some_and(|id| id == who.user_id),
        _ => false,
    };
    let right = login::confirm_password(
        server,
        &who.user_id,
        &given.password,
        who.terminal.as_ref(),
        who.address.ip(),
    )
    .await?;
    if !own || !right {
        let why = forbidden("The password is wrong (パスワードが違います).");
        return Err(ask(&session, &[PASSWORD], json!({}), Some(why)));
    }
    server.interactive.end(&session);
    Ok(())
}

/// What an operation asks for, as a part of its name that tells nothing: bound to the body without keeping it.
pub fn bound(server: &Server, body: &Value) -> String {
    server.oauth.tag(&body.to_string())
}

fn approved(server: &Server, who: &Requester, auth: Option<&AuthData>, operation: &str) -> Result<()> {
    let now = server.now();
    let session = match auth {
        Some(AuthData::OAuth(_) | AuthData::FallbackAcknowledgement(_)) => auth.and_then(AuthData::session),
        _ => None,
    };
    let session = match session {
        Some(session) if server.interactive.take_approved(session, &who.user_id, operation, now) => {
            return Ok(());
        }
        Some(session) if server.interactive.is_for(session, &who.user_id, operation, now) => {
            session.to_owned()
        }
        _ => server.interactive.begin(&who.user_id, operation, Some(who.device()?), now),
    };
    let url = format!(
        "{}/account?action=org.matrix.cross_signing_reset",
        server.config.server.public_url.trim_end_matches('/')
    );
    let params = json!({OAUTH: {"url": url}, OAUTH_UNSTABLE: {"url": url}});
    Err(ask(&session, &[OAUTH, OAUTH_UNSTABLE], params, None))
}

/// The 401 that asks for one of these stages, with what was wrong before.
pub fn ask(session: &str, stages: &[&str], params: Value, why: Option<Error>) -> Error {
    let flows: Vec<Value> = stages.iter().map(|stage| json!({"stages": [stage]})).collect();
    let mut answer = refuse(Code::Interactive, "")
        .with("flows", flows)
        .with("completed", json!([]))
        .with("params", params)
        .with("session", session);
    if let Some(Error::Refused(refusal)) = why {
        let (_, errcode) = crate::http::reply::status(refusal.code);
        answer = answer.with("errcode", errcode).with("error", refusal.message);
    }
    answer
}
