//! `/receipt` and `/read_markers`.

use std::sync::Arc;

use ruma::{
    OwnedEventId, OwnedRoomId,
    api::client::{read_marker::set_read_marker::v3 as markers, receipt::create_receipt::v3 as receipt},
};
use serde_json::json;

use crate::{
    error::{Result, forbidden, invalid},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    reading,
    rooms::send::read,
    server::Server,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<receipt::Request, Requester, _, _>(|server, who, request| async move {
            let kind = request.receipt_type.to_string();
            let thread = request.thread.as_str().map(ToOwned::to_owned);
            if thread.as_deref() == Some("") {
                return Err(invalid("thread_id is \"main\" or the id of an event of the room."));
            }
            if kind == "m.fully_read" {
                if thread.is_some() {
                    return Err(invalid("The fully-read marker is of the whole room: it has no thread_id."));
                }
                return mark(&server, who, request.room_id, Vec::new(), Some(request.event_id)).await;
            }
            if kind != "m.read" && kind != "m.read.private" {
                return Err(invalid("Unknown type of receipt."));
            }
            let receipt = (kind, thread.unwrap_or_default(), request.event_id);
            mark(&server, who, request.room_id, vec![receipt], None).await
        })
        .raw::<markers::Request, Requester, _, _>(|server, who, request| async move {
            let mut list = Vec::new();
            if let Some(event_id) = request.read_receipt {
                list.push(("m.read".to_owned(), String::new(), event_id));
            }
            if let Some(event_id) = request.private_read_receipt {
                list.push(("m.read.private".to_owned(), String::new(), event_id));
            }
            mark(&server, who, request.room_id, list, request.fully_read).await
        })
}

async fn mark(
    server: &Arc<Server>,
    who: Requester,
    room_id: OwnedRoomId,
    receipts: Vec<(String, String, OwnedEventId)>,
    fully_read: Option<OwnedEventId>,
) -> Result<Answer> {
    if !server.live.is_joined(&who.user_id, &room_id) {
        return Err(forbidden("You are not a member of this room."));
    }
    let reads = !receipts.is_empty();
    read(server, who.user_id.clone(), room_id.clone(), receipts, fully_read).await?;
    if reads {
        server.pushers.read(&who.user_id, &room_id);
        // A receipt that moves is evidence that the room was opened (DESIGN 19).
        reading::opened(server, &who, &room_id, "receipt").await?;
    }
    Ok(json!({}).into())
}
