//! User-interactive authentication: the password, once more, for one operation. A session belongs to one user, one
//! operation and one target, and lasts ten minutes; it is used up by the operation.

use std::sync::Arc;

use ruma::api::client::uiaa::{AuthData, UserIdentifier};
use serde_json::json;

use crate::{
    accounts::login,
    error::{Code, Error, Result, forbidden, refuse},
    http::caller::Requester,
    server::Server,
};

const SESSION_MS: i64 = 600_000;
const SESSIONS_MAX: usize = 10_000;

/// Lets the operation through, or asks for the password. `operation` names it with its target.
pub async fn password(
    server: &Arc<Server>,
    who: &Requester,
    auth: Option<AuthData>,
    operation: &str,
) -> Result<()> {
    if who.appservice.is_some() {
        return Ok(());
    }
    let now = server.now();
    let purpose = format!("{}\n{operation}", who.user_id);
    let Some(AuthData::Password(given)) = auth else { return Err(ask(&begin(server, purpose, now), None)) };
    // Clients that know the password already send it at once, without a session of before.
    let session = given.session.clone().unwrap_or_else(|| begin(server, purpose.clone(), now));
    {
        let mut all = server.interactive.lock();
        all.retain(|_, (_, at)| now - *at < SESSION_MS);
        if all.get(&session).is_none_or(|(of, _)| *of != purpose) {
            drop(all);
            return Err(ask(&begin(server, purpose, now), None));
        }
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
        return Err(ask(&session, Some(forbidden("The password is wrong (パスワードが違います)."))));
    }
    server.interactive.lock().remove(&session);
    Ok(())
}

fn begin(server: &Server, purpose: String, now: i64) -> String {
    let id = crate::clock::random_token(24);
    let mut all = server.interactive.lock();
    if all.len() >= SESSIONS_MAX {
        all.retain(|_, (_, at)| now - *at < SESSION_MS / 10);
    }
    all.insert(id.clone(), (purpose, now));
    id
}

fn ask(session: &str, why: Option<Error>) -> Error {
    let mut answer = refuse(Code::Interactive, "")
        .with("flows", json!([{"stages": ["m.login.password"]}]))
        .with("completed", json!([]))
        .with("params", json!({}))
        .with("session", session);
    if let Some(Error::Refused(refusal)) = why {
        answer = answer.with("errcode", "M_FORBIDDEN").with("error", refusal.message);
    }
    answer
}
