//! Reports (通報) of a room, an event or a person. Whoever reports is told the same whether it exists or not (MSC4277).

use std::sync::Arc;

use ruma::api::client::{
    reporting::report_user::v3 as user,
    room::{report_content::v3 as event, report_room::v3 as room},
};
use serde_json::json;

use crate::{
    error::Result,
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    rooms::reports::{self, About},
    server::Server,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<room::Request, Requester, _, _>(|server, who, r| async move {
            take(&server, &who, About::Room(r.room_id), r.reason).await
        })
        .raw::<event::Request, Requester, _, _>(|server, who, r| async move {
            take(&server, &who, About::Event(r.room_id, r.event_id), r.reason.unwrap_or_default()).await
        })
        .raw::<user::Request, Requester, _, _>(|server, who, r| async move {
            take(&server, &who, About::User(r.user_id), r.reason).await
        })
}

async fn take(server: &Arc<Server>, who: &Requester, about: About, reason: String) -> Result<Answer> {
    reports::take(server, who, about, reason).await?;
    Ok(json!({}).into())
}
