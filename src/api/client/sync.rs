//! `GET /sync`, and the simplified sliding sync (MSC4186).

use std::{sync::Arc, time::Duration};

use crate::{
    error::{Result, invalid},
    http::{
        caller,
        route::{Answer, Call, Routes, form},
    },
    rooms::presence::State,
    server::Server,
    sync::{sliding, v3},
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(http::Method::GET, "/_matrix/client/v3/sync", sync).at(
        http::Method::POST,
        "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
        sliding_sync,
    )
}

async fn sliding_sync(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let pos = call.query("pos");
    let timeout = match call.query("timeout") {
        Some(ms) => ms.parse().map_err(|_| invalid("timeout is a number of milliseconds."))?,
        None => 0,
    };
    let (_, body) = call.json::<sliding::request::Body>(&server).await?;
    let timeout = Duration::from_millis(timeout);
    Ok(Answer::Json(sliding::sync(&server, &who, pos.as_deref(), timeout, &body).await?))
}

async fn sync(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let mut request = v3::Request::default();
    let mut stable = false;
    for (key, value) in form(call.parts.uri.query().unwrap_or_default()) {
        match key.as_str() {
            "since" => request.since = Some(value),
            "filter" => request.filter = Some(value),
            "full_state" => {
                request.full_state = value.parse().map_err(|_| invalid("full_state is true or false."))?;
            }
            "use_state_after" => {
                let after: bool = value.parse().map_err(|_| invalid("use_state_after is true or false."))?;
                stable = after;
                request.state_after |= after;
            }
            // matrix-js-sdk asks, and reads the answer, by the name from before v1.16.
            "org.matrix.msc4222.use_state_after" if value == "true" => {
                request.state_after = true;
                request.unstable_state_after = true;
            }
            "set_presence" => {
                request.presence = State::of(&value)
                    .ok_or_else(|| invalid("set_presence is online, unavailable or offline."))?;
            }
            "timeout" => {
                let ms = value.parse().map_err(|_| invalid("timeout is a number of milliseconds."))?;
                request.timeout = Duration::from_millis(ms);
            }
            _ => {}
        }
    }
    request.unstable_state_after &= !stable;
    Ok(Answer::Json(v3::sync(&server, &who, request).await?))
}
