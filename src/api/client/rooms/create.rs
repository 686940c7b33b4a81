//! `POST /createRoom`.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, RoomAliasId, RoomVersionId,
    api::client::room::{Visibility, create_room::v3 as create},
};
use serde_json::{Value, json};

use crate::{
    api::client::{content_of, directory},
    config::CreateRooms,
    error::{Code, Result, forbidden, invalid, refuse},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    rooms::{
        append::Intent,
        committer::Hint,
        create::{self as making, NewRoom},
    },
    server::Server,
    store,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.raw::<create::Request, Requester, _, _>(create_room)
}

async fn create_room(server: Arc<Server>, who: Requester, request: create::Request) -> Result<Answer> {
    if !matches!(request.visibility, Visibility::Public | Visibility::Private) {
        return Err(invalid("visibility is \"public\" or \"private\"."));
    }
    if request.visibility == Visibility::Public && !server.config.policy.public_directory {
        return Err(forbidden("This server has no list of public rooms."));
    }
    if !request.invite_3pid.is_empty() {
        return Err(refuse(
            Code::ServerNotTrusted,
            "People are invited by their user id: this server knows no identity server.",
        ));
    }
    let public = request.visibility == Visibility::Public;
    let alias = match &request.room_alias_name {
        Some(name) => {
            let alias = RoomAliasId::parse(format!("#{name}:{}", server.name))
                .map_err(|_| invalid("room_alias_name is not the part of an alias between # and :."))?;
            directory::may_make(&server, &who, &alias)?;
            Some(alias)
        }
        None => None,
    };
    // Whoever may make no room for several asks no appservice about them.
    let alone = server.config.policy.create_rooms == CreateRooms::City && who.appservice.is_none();
    if !alone || request.invite.len() == 1 {
        for target in request.invite.iter().take(300) {
            super::members::asked_for(&server, target).await?;
        }
    }
    let name_too_long = request.name.as_ref().is_some_and(|name| name.chars().count() > 255);
    if name_too_long || request.topic.as_ref().is_some_and(|topic| topic.len() > 10_000) {
        return Err(invalid("The name has at most 255 characters, the topic 10,000 bytes."));
    }
    let mut initial_state = Vec::new();
    for raw in &request.initial_state {
        let event: InitialState = serde_json::from_str(raw.json().get())
            .map_err(|_| refuse(Code::BadJson, "initial_state holds something that is no state event."))?;
        initial_state.push((event.kind, event.state_key, event.content));
    }
    let preset = match &request.preset {
        Some(preset) => preset.to_string(),
        None if request.visibility == Visibility::Public => "public_chat".to_owned(),
        None => "private_chat".to_owned(),
    };
    if !["private_chat", "public_chat", "trusted_private_chat"].contains(&preset.as_str()) {
        return Err(invalid("Unknown preset."));
    }
    let creation_content = match &request.creation_content {
        Some(raw) => content_of(raw.json())?,
        None => CanonicalJsonObject::new(),
    };
    let power_levels = match &request.power_level_content_override {
        Some(raw) => {
            content_of(raw.json())?;
            Some(serde_json::from_str::<Value>(raw.json().get())?)
        }
        None => None,
    };
    let mut room = NewRoom {
        creator: who.user_id.clone(),
        version: request.room_version.unwrap_or(RoomVersionId::V12),
        kind: String::new(),
        preset,
        creation_content,
        power_levels,
        initial_state,
        name: request.name,
        topic: request.topic,
        invite: request.invite,
        is_direct: request.is_direct,
    };
    // Where people make rooms of two only, each stays for years and gets a number of the city's.
    let (counted, limited) = (alone && server.config.policy.rate_limits, Arc::clone(&server));
    let city_user = server.city_user.clone();
    let entry = who.entry(server.now(), "room.create");
    let room_id = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                room.kind = making::check_policy(batch, &room, &city_user)?;
                let counted = counted && room.kind == "direct";
                room.is_direct |= room.kind == "direct";
                let creator = room.creator.clone();
                let room_id = making::create(batch, room).await?;
                if counted {
                    // What was refused for another reason is not counted; what is refused here is taken back.
                    limited.limiter.allow_direct_room(&creator, batch.now)?;
                }
                if let Some(alias) = alias {
                    let now = batch.now;
                    let conn = batch.sql().await?;
                    let made = store::rooms::add_alias(conn, alias.as_str(), &room_id, creator.as_str(), now);
                    if !made.await? {
                        return Err(refuse(Code::RoomInUse, "There is a room of this alias already."));
                    }
                    let content = json!({"alias": alias});
                    batch
                        .append(Intent::state(&room_id, &creator, "m.room.canonical_alias", "", content)?)
                        .await?;
                }
                if public {
                    let now = batch.now;
                    store::rooms::set_public(batch.sql().await?, &room_id, true, now).await?;
                }
                batch.audit(crate::audit::Entry { room_id: room_id.to_string(), ..entry });
                Ok(room_id)
            })
        })
        .await?;
    Ok(json!({"room_id": room_id}).into())
}

#[derive(serde::Deserialize)]
struct InitialState {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    state_key: String,
    content: Value,
}
