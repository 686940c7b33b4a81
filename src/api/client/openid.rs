//! OpenID tokens: they prove to another service who somebody is, and do nothing else. Off by default, since a city's people
//! are nobody else's to know.

use std::sync::Arc;

use http::Method;
use ruma::api::client::account::request_openid_token::v3 as request_token;
use serde_json::json;

use crate::{
    accounts::sessions::hash_of,
    error::{Code, Result, forbidden, refuse},
    http::{
        OPENID_USERINFO,
        caller::{self, Listener, Requester},
        route::{Answer, Call, Routes},
    },
    rooms::committer::Hint,
    server::Server,
    store,
};

/// How long a token is good, in seconds: an hour.
const LIFE_SECONDS: i64 = 3_600;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.raw::<request_token::Request, Requester, _, _>(give).at(Method::GET, OPENID_USERINFO, whose)
}

async fn give(server: Arc<Server>, who: Requester, request: request_token::Request) -> Result<Answer> {
    if request.user_id != who.user_id {
        return Err(forbidden("A token is given for oneself only."));
    }
    if !server.config.policy.openid_tokens {
        return Err(forbidden("Tokens for other services are switched off here."));
    }
    let token = crate::clock::random_token(43);
    let hash = hash_of(&token);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let until = batch.now + LIFE_SECONDS * 1000;
                let conn = batch.sql().await?;
                store::oauth::put_openid(conn, &hash, who.user_id.as_str(), until).await
            })
        })
        .await?;
    Ok(json!({
        "access_token": token, "token_type": "Bearer", "matrix_server_name": server.name, "expires_in": LIFE_SECONDS,
    })
    .into())
}

/// Whose a token is (server-server API, `GET /openid/userinfo`).
async fn whose(server: Arc<Server>, call: Call) -> Result<Answer> {
    let peer = caller::peer(&call.parts)?;
    if !server.config.policy.openid_tokens || peer.listener != Listener::Public {
        return Err(refuse(Code::Unrecognized, "Tokens for other services are switched off here."));
    }
    server.limiter.allow_before_login(peer.address.ip(), server.now())?;
    let token = call
        .query("access_token")
        .ok_or_else(|| refuse(Code::MissingToken, "The query needs an access_token."))?;
    let mut conn = server.db.read().await?;
    let user_id = store::oauth::openid(&mut conn, &hash_of(&token), server.now()).await?;
    let account = match &user_id {
        Some(user_id) => store::accounts::account(&mut conn, user_id).await?,
        None => None,
    };
    match account {
        Some(account) if account.status == "active" => Ok(json!({"sub": account.user_id}).into()),
        _ => {
            Err(refuse(Code::UnknownToken { soft_logout: false }, "This token is not known or has run out."))
        }
    }
}
