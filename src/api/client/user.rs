//! `/user/{userId}/…`: account data, tags, filters; the user directory; presence.

use std::sync::Arc;

use http::Method;
use ruma::{OwnedUserId, api::client::user_directory::search_users::v3 as search};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    rooms::{committer::Hint, presence, send::check_account_data},
    server::Server,
    store,
    sync::filter,
};

/// Account data that the server keeps itself.
const RESERVED: [&str; 2] = ["m.fully_read", "m.push_rules"];
/// Bytes of one piece of account data, and filters of one user.
const ACCOUNT_DATA_BYTES_MAX: usize = 65_536;
const FILTERS_MAX: i64 = 1_000;
/// Pieces of account data of one user, globally and for each room; and tags of one room.
const TYPES_MAX: i64 = 500;
const TAGS_MAX: usize = 100;
/// The longest status beside one's presence, in characters.
const STATUS_MAX: usize = 255;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::PUT, "/_matrix/client/v3/user/{userId}/account_data/{type}", |server, call| async move {
            let who = own(&server, &call).await?;
            let kind = call.arg(1).to_owned();
            put(&server, who, String::new(), kind, call).await
        })
        .at(Method::GET, "/_matrix/client/v3/user/{userId}/account_data/{type}", |server, call| async move {
            let who = own(&server, &call).await?;
            get(&server, &who, "", call.arg(1)).await
        })
        .at(
            Method::PUT,
            "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}",
            |server, call| async move {
                let who = own(&server, &call).await?;
                let (room_id, kind) = (room(&server, &who, &call)?, call.arg(2).to_owned());
                put(&server, who, room_id, kind, call).await
            },
        )
        .at(
            Method::GET,
            "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}",
            |server, call| async move {
                let who = own(&server, &call).await?;
                let room_id = room(&server, &who, &call)?;
                get(&server, &who, &room_id, call.arg(2)).await
            },
        )
        .at(Method::GET, "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags", |server, call| async move {
            let who = own(&server, &call).await?;
            let room_id = room(&server, &who, &call)?;
            Ok(json!({"tags": tags(&server, &who, &room_id).await?}).into())
        })
        .at(
            Method::PUT,
            "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}",
            |server, call| async move {
                let who = own(&server, &call).await?;
                let (room_id, tag) = (room(&server, &who, &call)?, call.arg(2).to_owned());
                if tag.len() > 255 {
                    return Err(invalid("A tag has at most 255 bytes."));
                }
                let (_, info) = call.json::<Map<String, Value>>(&server).await?;
                if info.get("order").is_some_and(|order| !order.is_number()) {
                    return Err(refuse(Code::BadJson, "The order of a tag is a number."));
                }
                let mut tags = tags(&server, &who, &room_id).await?;
                tags.insert(tag, Value::Object(info));
                if tags.len() > TAGS_MAX {
                    return Err(refuse(Code::TooLarge, "This room has too many tags."));
                }
                set(&server, who, room_id, "m.tag".to_owned(), json!({"tags": tags}).to_string()).await
            },
        )
        .at(
            Method::DELETE,
            "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}",
            |server, call| async move {
                let who = own(&server, &call).await?;
                let room_id = room(&server, &who, &call)?;
                let mut tags = tags(&server, &who, &room_id).await?;
                tags.remove(call.arg(2));
                set(&server, who, room_id, "m.tag".to_owned(), json!({"tags": tags}).to_string()).await
            },
        )
        .at(Method::POST, "/_matrix/client/v3/user/{userId}/filter", define_filter)
        .at(Method::GET, "/_matrix/client/v3/user/{userId}/filter/{filterId}", |server, call| async move {
            let who = own(&server, &call).await?;
            store::personal::filter(&mut server.db.read().await?, who.user_id.as_str(), call.arg(1))
                .await?
                .map(Answer::Json)
                .ok_or_else(|| not_found("No such filter."))
        })
        .raw::<search::Request, Requester, _, _>(directory)
        .at(Method::PUT, "/_matrix/client/v3/presence/{userId}/status", set_presence)
        .at(Method::GET, "/_matrix/client/v3/presence/{userId}/status", |server, call| async move {
            let who = caller::requester(&server, &call.parts).await?;
            let user_id = OwnedUserId::try_from(call.arg(0)).map_err(|_| invalid("That is no user id."))?;
            if !server.live.share_a_room(&who.user_id, &user_id) {
                return Err(forbidden("You share no room with this person."));
            }
            Ok(presence::content(&server, &user_id).into())
        })
}

#[derive(serde::Deserialize)]
struct Status {
    presence: String,
    #[serde(default)]
    status_msg: Option<String>,
}

/// Says whether one is there. Where the policy keeps no presence, it is taken and told to nobody.
async fn set_presence(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = own(&server, &call).await?;
    let (_, status) = call.json::<Status>(&server).await?;
    let state = presence::State::of(&status.presence)
        .ok_or_else(|| invalid("presence is \"online\", \"unavailable\" or \"offline\"."))?;
    if status.status_msg.as_ref().is_some_and(|text| text.chars().count() > STATUS_MAX) {
        return Err(invalid("A status has at most 255 characters."));
    }
    presence::set(&server, &who.user_id, state, Some(status.status_msg));
    Ok(json!({}).into())
}

async fn own(server: &Arc<Server>, call: &Call) -> Result<Requester> {
    let who = caller::requester(server, &call.parts).await?;
    if call.arg(0) != who.user_id.as_str() {
        return Err(forbidden("These settings belong to another person."));
    }
    Ok(who)
}

fn room(server: &Server, who: &Requester, call: &Call) -> Result<String> {
    let room_id = <&ruma::RoomId>::try_from(call.arg(1)).map_err(|_| invalid("That is no room id."))?;
    if server.live.membership(&who.user_id, room_id).is_none() {
        return Err(forbidden("You are not a member of this room."));
    }
    Ok(room_id.to_string())
}

async fn put(
    server: &Arc<Server>,
    who: Requester,
    room_id: String,
    kind: String,
    call: Call,
) -> Result<Answer> {
    check_account_data(server, &kind)?;
    if RESERVED.contains(&kind.as_str()) {
        return Err(refuse(Code::ServerKept, "This is kept by the server and has an endpoint of its own."));
    }
    if kind.len() > 255 {
        return Err(invalid("A type has at most 255 bytes."));
    }
    let (_, content) = call.json::<Map<String, Value>>(server).await?;
    set(server, who, room_id, kind, Value::Object(content).to_string()).await
}

async fn set(
    server: &Arc<Server>,
    who: Requester,
    room_id: String,
    kind: String,
    content: String,
) -> Result<Answer> {
    if content.len() > ACCOUNT_DATA_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "Account data has at most 65,536 bytes."));
    }
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let conn = batch.reading();
                let known = store::personal::account_data(conn, who.user_id.as_str(), &room_id, &kind)
                    .await?
                    .is_some();
                if !known
                    && store::personal::account_data_count(conn, who.user_id.as_str(), &room_id).await?
                        >= TYPES_MAX
                {
                    return Err(refuse(Code::TooLarge, "This account has too many kinds of account data."));
                }
                batch.account_data(&who.user_id, &room_id, &kind, content);
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

async fn get(server: &Arc<Server>, who: &Requester, room_id: &str, kind: &str) -> Result<Answer> {
    if room_id.is_empty() && kind == "m.push_rules" {
        let rules = crate::push::rules::ruleset(server, &who.user_id).await?;
        return Ok(json!({"global": crate::push::rules::global(&rules)?}).into());
    }
    store::personal::account_data(&mut server.db.read().await?, who.user_id.as_str(), room_id, kind)
        .await?
        .map(Answer::Json)
        .ok_or_else(|| not_found("No account data of this type."))
}

async fn tags(server: &Server, who: &Requester, room_id: &str) -> Result<Map<String, Value>> {
    let stored =
        store::personal::account_data(&mut server.db.read().await?, who.user_id.as_str(), room_id, "m.tag")
            .await?;
    let Some(text) = stored else { return Ok(Map::new()) };
    let mut content: Value = serde_json::from_str(&text)?;
    Ok(content["tags"].take().as_object().cloned().unwrap_or_default())
}

/// A filter's id is a hash of its text: the same filter is stored once.
async fn define_filter(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = own(&server, &call).await?;
    let (_, body) = call.body(&server).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    filter::parse(&text)?;
    let id = crate::audit::hex(&Sha256::digest(text.as_bytes())[..12]);
    let answer = json!({"filter_id": id});
    if store::personal::filters(&mut server.db.read().await?, who.user_id.as_str()).await? >= FILTERS_MAX {
        return Err(refuse(
            Code::LimitExceeded { retry_after_ms: 3_600_000 },
            "This account has too many filters.",
        ));
    }
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                store::personal::put_filter(batch.sql().await?, who.user_id.as_str(), &id, &text).await
            })
        })
        .await?;
    Ok(answer.into())
}

/// People one shares a room or a facility with; everybody on a server whose register is open.
async fn directory(server: Arc<Server>, who: Requester, request: search::Request) -> Result<Answer> {
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(50).min(50);
    let term = crate::accounts::register::search_key(&[&request.search_term]);
    let mut results = Vec::new();
    let mut limited = false;
    let mut conn = server.db.read().await?;
    let colleagues = store::accounts::colleagues(&mut conn, who.user_id.as_str()).await?;
    for (user_id, _, _, _, _, display_name, status, key) in store::accounts::register(&mut conn).await? {
        let Ok(id) = <&ruma::UserId>::try_from(user_id.as_str()) else { continue };
        let shown = display_name.clone().unwrap_or_default();
        let found = key.contains(&term) || crate::accounts::register::search_key(&[&shown]).contains(&term);
        let known = server.config.policy.open_profile
            || colleagues.contains(&user_id)
            || server.live.share_a_room(&who.user_id, id);
        if status == "ended" || !found || !known || id == who.user_id {
            continue;
        }
        if results.len() == limit {
            limited = true;
            break;
        }
        results.push(json!({"user_id": user_id, "display_name": display_name}));
    }
    Ok(json!({"results": results, "limited": limited}).into())
}
