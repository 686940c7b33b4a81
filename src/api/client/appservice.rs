//! `POST /appservice/{id}/ping`: an appservice asks whether the server reaches it.

use http::Method;
use serde_json::json;

use crate::{
    error::forbidden,
    http::{caller, route::Routes},
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(Method::POST, "/_matrix/client/v1/appservice/{appserviceId}/ping", |server, call| async move {
        let who = caller::requester(&server, &call.parts).await?;
        let id = call.arg(0).to_owned();
        if who.appservice.as_deref() != Some(id.as_str()) {
            return Err(forbidden("An appservice pings for itself."));
        }
        let (_, body) = call.json::<Ping>(&server).await?;
        let duration_ms = server.appservices.ping(&id, body.transaction_id).await?;
        Ok(json!({"duration_ms": duration_ms}).into())
    })
}

#[derive(serde::Deserialize)]
struct Ping {
    transaction_id: Option<String>,
}
