//! `POST /rooms/{roomId}/upgrade`.

use std::sync::Arc;

use ruma::api::client::room::upgrade_room::v3 as upgrade;
use serde_json::json;

use crate::{
    error::{Result, forbidden, invalid},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    rooms::{
        append::rules_of,
        committer::Hint,
        upgrade::{self as upgrading, Upgrade},
    },
    server::Server,
};

/// Creators beside the one who upgrades.
const CREATORS_MAX: usize = 100;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.raw::<upgrade::Request, Requester, _, _>(upgrade_room)
}

async fn upgrade_room(server: Arc<Server>, who: Requester, request: upgrade::Request) -> Result<Answer> {
    if server.live.membership(&who.user_id, &request.room_id).is_none() {
        return Err(forbidden("You are not a member of this room."));
    }
    rules_of(&request.new_version)?;
    if request.additional_creators.len() > CREATORS_MAX {
        return Err(invalid("At most 100 creators can be added."));
    }
    let order = Upgrade {
        room_id: request.room_id,
        user_id: who.user_id.clone(),
        version: request.new_version,
        additional_creators: request.additional_creators,
    };
    let entry =
        crate::audit::Entry { room_id: order.room_id.to_string(), ..who.entry(server.now(), "room.upgrade") };
    let new = server
        .commit(Hint { rooms: vec![order.room_id.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                let new = upgrading::upgrade(batch, order).await?;
                batch.audit(crate::audit::Entry { target: new.to_string(), ..entry });
                Ok(new)
            })
        })
        .await?;
    Ok(json!({"replacement_room": new}).into())
}
