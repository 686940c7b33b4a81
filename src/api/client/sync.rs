//! `GET /sync`.

use std::{sync::Arc, time::Duration};

use crate::{
    error::{Result, invalid},
    http::{
        caller,
        route::{Answer, Call, Routes, form},
    },
    server::Server,
    sync::v3,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(http::Method::GET, "/_matrix/client/v3/sync", sync)
}

async fn sync(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let mut request = v3::Request::default();
    for (key, value) in form(call.parts.uri.query().unwrap_or_default()) {
        match key.as_str() {
            "since" => request.since = Some(value),
            "filter" => request.filter = Some(value),
            "full_state" => {
                request.full_state = value.parse().map_err(|_| invalid("full_state is true or false."))?;
            }
            "use_state_after" => request.state_after |= value == "true",
            // matrix-js-sdk asks, and reads the answer, by the name from before v1.16.
            "org.matrix.msc4222.use_state_after" if value == "true" => {
                request.state_after = true;
                request.unstable_state_after = true;
            }
            "timeout" => {
                let ms = value.parse().map_err(|_| invalid("timeout is a number of milliseconds."))?;
                request.timeout = Duration::from_millis(ms);
            }
            _ => {}
        }
    }
    Ok(Answer::Json(v3::sync(&server, &who, request).await?))
}
