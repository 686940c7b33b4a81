//! Calls: where a relay for them is.

use std::sync::Arc;

use ruma::api::client::voip::get_turn_server_info::v3;
use serde_json::json;

use crate::{
    error::Result,
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    server::Server,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.raw::<v3::Request, Requester, _, _>(turn_server)
}

/// The specification has no answer for a server without a relay; clients take the empty object for that.
async fn turn_server(server: Arc<Server>, who: Requester, _: v3::Request) -> Result<Answer> {
    Ok(match &server.turn {
        Some(turn) => serde_json::to_value(turn.credentials(&who.user_id, server.now()))?.into(),
        None => json!({}).into(),
    })
}
