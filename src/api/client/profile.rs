//! `/profile/{userId}`: seen by people who share a room or are the user.

use std::sync::Arc;

use http::Method;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use crate::{
    config::Registration,
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    rooms::{append::Intent, committer::Hint, member},
    server::Server,
    store::{self, personal::Profile},
};

/// The longest display name, in characters, and avatar URI, in bytes.
const NAME_MAX: usize = 256;
const URI_MAX: usize = 1_000;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/_matrix/client/v3/profile/{userId}", |server, call| async move {
            let profile = read(&server, &call).await?;
            Ok(Value::Object(profile).into())
        })
        .at(Method::GET, "/_matrix/client/v3/profile/{userId}/{keyName}", |server, call| async move {
            let mut profile = read(&server, &call).await?;
            let value = profile.remove(call.arg(1)).ok_or_else(|| not_found("No such profile field."))?;
            Ok(json!({call.arg(1): value}).into())
        })
        .at(Method::PUT, "/_matrix/client/v3/profile/{userId}/{keyName}", |server, call| async move {
            let who = own(&server, &call).await?;
            let key = call.arg(1).to_owned();
            let (_, mut body) = call.json::<Map<String, Value>>(&server).await?;
            let value = match body.remove(&key) {
                Some(Value::String(text)) => Some(text),
                Some(Value::Null) => None,
                Some(_) => return Err(invalid("A profile field of this kind is a string.")),
                None => return Err(refuse(Code::MissingParam, format!("The body has no {key}."))),
            };
            set(&server, who, &key, value).await
        })
        .at(Method::DELETE, "/_matrix/client/v3/profile/{userId}/{keyName}", |server, call| async move {
            let who = own(&server, &call).await?;
            let key = call.arg(1).to_owned();
            set(&server, who, &key, None).await
        })
}

async fn read(server: &Arc<Server>, call: &Call) -> Result<Map<String, Value>> {
    // The specification asks for no token here; in a city nobody is told anything without one.
    let who = caller::requester(server, &call.parts).await?;
    let user_id = <&UserId>::try_from(call.arg(0)).map_err(|_| invalid("That is no user id."))?;
    let unknown = || not_found("There is no profile to see.");
    let related = who.appservice.is_some()
        || server.config.policy.open_profile
        || user_id == server.city_user
        || server.live.share_a_room(&who.user_id, user_id);
    if !related {
        return Err(unknown());
    }
    let mut profile = store::personal::profile(&mut server.db.read().await?, user_id.as_str()).await?;
    if profile.is_none() && server.appservices.ask_user(user_id).await {
        profile = store::personal::profile(&mut server.db.read().await?, user_id.as_str()).await?;
    }
    let profile = profile.ok_or_else(unknown)?;
    let mut answer = Map::new();
    if let Some(name) = profile.display_name {
        answer.insert("displayname".to_owned(), name.into());
    }
    if let Some(url) = profile.avatar_url {
        answer.insert("avatar_url".to_owned(), url.into());
    }
    Ok(answer)
}

async fn own(server: &Arc<Server>, call: &Call) -> Result<Requester> {
    let who = caller::requester(server, &call.parts).await?;
    let user_id = OwnedUserId::try_from(call.arg(0)).map_err(|_| invalid("That is no user id."))?;
    if user_id != who.user_id {
        return Err(forbidden("A profile is changed by its owner."));
    }
    Ok(who)
}

async fn set(server: &Arc<Server>, who: Requester, key: &str, value: Option<String>) -> Result<Answer> {
    let free = server.config.policy.registration != Registration::Closed || who.appservice.is_some();
    match key {
        "displayname" => {
            if !free {
                return Err(forbidden("Names are kept in the city's register (表示名は市の登録によります)."));
            }
            if value.as_ref().is_some_and(|name| name.chars().count() > NAME_MAX) {
                return Err(invalid(format!("A display name has at most {NAME_MAX} characters.")));
            }
        }
        "avatar_url" => {
            if value
                .as_ref()
                .is_some_and(|url| !url.is_empty() && (!url.starts_with("mxc://") || url.len() > URI_MAX))
            {
                return Err(invalid("An avatar is an mxc:// URI."));
            }
        }
        _ => return Err(refuse(Code::Unrecognized, "This profile field is not kept.")),
    }
    let key = key.to_owned();
    let rooms: Vec<_> = server.live.joined_rooms(&who.user_id).into_iter().collect();
    let server_name = server.name.clone();
    server
        .commit(Hint { rooms: rooms.clone(), txn: None }, move |batch| {
            Box::pin(async move {
                let user_id = &*who.user_id;
                let mut profile = store::personal::profile(batch.reading(), user_id.as_str())
                    .await?
                    .ok_or_else(|| not_found("This account has no profile."))?;
                let value = value.filter(|value| !value.is_empty());
                if key == "displayname" {
                    profile.display_name = value;
                } else {
                    profile.avatar_url = value;
                    link_avatar(batch, &server_name, user_id, &profile).await?;
                }
                store::personal::set_profile(batch.sql().await?, user_id.as_str(), &profile).await?;
                for room_id in rooms {
                    let content = member::content("join", &profile, None);
                    let intent =
                        Intent::state(&room_id, user_id, "m.room.member", user_id.as_str(), content)?;
                    // A closed room keeps the old name.
                    if batch.room(&room_id).await?.row.status == "open" {
                        batch.append(intent).await?;
                    }
                }
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

async fn link_avatar(
    batch: &mut crate::rooms::batch::Batch,
    server_name: &ruma::ServerName,
    user_id: &UserId,
    profile: &Profile,
) -> Result<()> {
    let Some(url) = &profile.avatar_url else { return Ok(()) };
    for media_id in crate::media::links::media_ids(&Value::String(url.clone()), server_name) {
        let own = store::media::medium(batch.reading(), &media_id)
            .await?
            .is_some_and(|m| m.user_id == user_id.as_str());
        if own {
            batch.link_media(&media_id, "", "");
        }
    }
    Ok(())
}
