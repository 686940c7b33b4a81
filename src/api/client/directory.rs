//! The public directory and aliases. A city has no list of public rooms, and its aliases are those of appservices; the
//! open profile leaves both to everybody.

use std::{collections::BTreeSet, sync::Arc};

use http::Method;
use ruma::{OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, events::StateEventType};
use serde::Deserialize;
use serde_json::json;

use crate::{
    appservices::Appservice,
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    rooms::{access, committer::Hint, send},
    server::Server,
    store,
};

/// Aliases of one room.
const ALIASES_MAX: usize = 100;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/_matrix/client/v3/publicRooms", |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            let number = call.query("limit").map(|n| n.parse().map_err(|_| invalid("limit is no number.")));
            let asked = Asked { limit: number.transpose()?, since: call.query("since"), ..Asked::default() };
            public_rooms(&server, asked).await
        })
        .at(Method::POST, "/_matrix/client/v3/publicRooms", |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            let (_, asked) = call.json::<Asked>(&server).await?;
            public_rooms(&server, asked).await
        })
        .at(Method::GET, "/_matrix/client/v3/directory/list/room/{roomId}", |server, call| async move {
            let who = caller::requester(&server, &call.parts).await?;
            let nothing = || not_found("No such room.");
            let room_id = <&RoomId>::try_from(call.arg(0)).map_err(|_| nothing())?;
            if store::rooms::is_public(&mut server.db.read().await?, room_id).await? {
                return Ok(json!({"visibility": "public"}).into());
            }
            if !server.live.is_joined(&who.user_id, room_id) {
                return Err(nothing());
            }
            Ok(json!({"visibility": "private"}).into())
        })
        .at(Method::PUT, "/_matrix/client/v3/directory/list/room/{roomId}", list_room)
        .at(Method::PUT, "/_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}", list_in_network)
        .at(Method::GET, "/_matrix/client/v3/rooms/{roomId}/aliases", |server, call| async move {
            let who = caller::requester(&server, &call.parts).await?;
            let Some(room_id) = <&RoomId>::try_from(call.arg(0))
                .ok()
                .filter(|room_id| server.live.is_joined(&who.user_id, room_id))
            else {
                return Err(forbidden("You are not a member of this room."));
            };
            let aliases = store::rooms::aliases_of(&mut server.db.read().await?, room_id).await?;
            Ok(json!({"aliases": aliases}).into())
        })
        .at(Method::GET, "/_matrix/client/v3/directory/room/{roomAlias}", |server, call| async move {
            let who = caller::requester(&server, &call.parts).await?;
            let room_id = resolve(&server, &who, alias(&server, call.arg(0))?).await?;
            Ok(json!({"room_id": room_id, "servers": [server.name]}).into())
        })
        .at(Method::PUT, "/_matrix/client/v3/directory/room/{roomAlias}", put)
        .at(Method::DELETE, "/_matrix/client/v3/directory/room/{roomAlias}", delete)
}

/// What of the directory is asked for (client-server API, `POST /publicRooms`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked {
    limit: Option<usize>,
    since: Option<String>,
    filter: Filter,
    third_party_instance_id: Option<String>,
    include_all_networks: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Filter {
    generic_search_term: Option<String>,
    room_types: Option<Vec<Option<String>>>,
}

/// Rooms of the directory in one answer.
const PAGE_MAX: usize = 100;

/// The directory, the rooms with most members first.
async fn public_rooms(server: &Arc<Server>, asked: Asked) -> Result<Answer> {
    if !server.config.policy.public_directory {
        return Err(no_directory());
    }
    let begin: usize = match asked.since.as_deref() {
        None | Some("") => 0,
        Some(token) => token
            .strip_prefix('p')
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| invalid("since is no token of this list."))?,
    };
    let limit = asked.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let term = asked.filter.generic_search_term.as_deref().map(crate::search::normal);
    let mut rooms = Vec::new();
    for room_id in listed(server, &asked).await? {
        let room = server.live.room(&server.db, &room_id).await?;
        let view = room.current()?;
        let kind = view.state.content_str(&StateEventType::RoomCreate, "", "type");
        let entry = access::summary(&view);
        let found = |term: &str| {
            ["name", "topic", "canonical_alias"].iter().any(|field| {
                entry[field].as_str().is_some_and(|text| crate::search::normal(text).contains(term))
            })
        };
        let of_type = asked.filter.room_types.as_ref().is_none_or(|types| types.contains(&kind));
        if of_type && term.as_deref().is_none_or(found) {
            rooms.push(entry);
        }
    }
    rooms.sort_by_key(|entry| std::cmp::Reverse(entry["num_joined_members"].as_u64()));
    let total = rooms.len();
    let page: Vec<_> = rooms.into_iter().skip(begin).take(limit).collect();
    let mut answer = json!({"chunk": page, "total_room_count_estimate": total});
    // The token comes from outside: it may be any number.
    let end = begin.saturating_add(limit);
    if end < total {
        answer["next_batch"] = format!("p{end}").into();
    }
    if begin > 0 {
        answer["prev_batch"] = format!("p{}", begin.saturating_sub(limit)).into();
    }
    Ok(answer.into())
}

/// The rooms of the list that is asked for: the server's own, that of one network, or all of them.
async fn listed(server: &Server, asked: &Asked) -> Result<BTreeSet<OwnedRoomId>> {
    let mut conn = server.db.read().await?;
    let mut rooms = BTreeSet::new();
    if asked.third_party_instance_id.is_none() || asked.include_all_networks {
        rooms.extend(store::rooms::public_rooms(&mut conn).await?);
    }
    if asked.third_party_instance_id.is_some() || asked.include_all_networks {
        let network = asked.third_party_instance_id.as_deref().filter(|_| !asked.include_all_networks);
        rooms.extend(store::rooms::network_rooms(&mut conn, network).await?);
    }
    Ok(rooms)
}

fn no_directory() -> crate::error::Error {
    forbidden("This server has no list of public rooms.")
}

#[derive(Deserialize)]
struct Visibility {
    #[serde(default)]
    visibility: Option<String>,
}

/// Puts a room into the directory, or takes it out: by whoever may set its state. A room of the city never.
async fn list_room(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    if !server.config.policy.public_directory {
        return Err(no_directory());
    }
    let room_id = OwnedRoomId::try_from(call.arg(0)).map_err(|_| not_found("No such room."))?;
    // Who has nothing to do with a room is not told whether it exists.
    if !server.live.is_joined(&who.user_id, &room_id) {
        return Err(not_found("No such room."));
    }
    let (_, body) = call.json::<Visibility>(&server).await?;
    let public = is_public(body.visibility.as_deref().unwrap_or("public"))?;
    let entry =
        crate::audit::Entry { room_id: room_id.to_string(), ..who.entry(server.now(), "room.directory") };
    server
        .commit(Hint { rooms: vec![room_id.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                let room = batch.room(&room_id).await?;
                let needed = send::level(&room.state, "state_default", 50);
                if room.row.room_number.is_some() || send::power(room, &who.user_id)? < needed {
                    return Err(forbidden("You are not allowed to do this in this room."));
                }
                let now = batch.now;
                store::rooms::set_public(batch.sql().await?, &room_id, public, now).await?;
                batch.audit(entry);
                Ok(json!({}))
            })
        })
        .await
        .map(Into::into)
}

fn is_public(visibility: &str) -> Result<bool> {
    match visibility {
        "public" => Ok(true),
        "private" => Ok(false),
        _ => Err(invalid("visibility is \"public\" or \"private\".")),
    }
}

/// Puts a room into the list of an appservice's network, or takes it out (application service API, "Published room
/// directory"). The network is one of those that the appservice speaks for.
async fn list_in_network(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    if !server.config.policy.public_directory {
        return Err(no_directory());
    }
    let (network, room_id) = (call.arg(0).to_owned(), OwnedRoomId::try_from(call.arg(1)));
    let speaks = who.appservice.as_deref().and_then(|id| {
        let of_network = |one: &&Arc<Appservice>| {
            one.id == id && one.registration.protocols.iter().flatten().any(|p| *p == network)
        };
        server.appservices.all().iter().find(of_network)
    });
    let room_id = room_id.map_err(|_| not_found("No such room."))?;
    // Present by any of its users: an appservice calls as its own sender, who need not be in every room.
    let inside = match speaks {
        Some(appservice) => {
            let of_appservice = |id: &OwnedUserId| appservice.is_interested_in_user(id.as_str());
            match server.live.room(&server.db, &room_id).await {
                Ok(room) => room.current()?.state.members("join").any(|(id, _)| of_appservice(&id)),
                Err(error) if error.code() == Some(Code::NotFound) => false,
                Err(error) => return Err(error),
            }
        }
        None => false,
    };
    if !inside {
        return Err(forbidden("This list belongs to an appservice of the network that is in the room."));
    }
    let (_, body) = call.json::<Visibility>(&server).await?;
    let public = is_public(body.visibility.as_deref().unwrap_or_default())?;
    let entry =
        crate::audit::Entry { room_id: room_id.to_string(), ..who.entry(server.now(), "room.directory") };
    server
        .commit(Hint { rooms: vec![room_id.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                if batch.room(&room_id).await?.row.room_number.is_some() {
                    return Err(forbidden("Rooms of the city are in no list."));
                }
                let now = batch.now;
                let conn = batch.sql().await?;
                store::rooms::set_in_network(conn, &network, &room_id, public, now).await?;
                batch.audit(entry);
                Ok(json!({}))
            })
        })
        .await
        .map(Into::into)
}

/// An alias of this server.
fn alias<'a>(server: &Server, text: &'a str) -> Result<&'a RoomAliasId> {
    let alias = <&RoomAliasId>::try_from(text).map_err(|_| invalid("That is no room alias."))?;
    if alias.server_name() == server.name {
        Ok(alias)
    } else {
        Err(not_found("There is no room of this alias."))
    }
}

/// The room of an alias. For an unknown one in an appservice's namespace the appservice is asked first: it makes the room
/// before it answers. In a city people are told of rooms that they have to do with.
pub(super) async fn resolve(
    server: &Arc<Server>,
    who: &Requester,
    alias: &RoomAliasId,
) -> Result<OwnedRoomId> {
    let mut found = store::rooms::of_alias(&mut server.db.read().await?, alias.as_str()).await?;
    if found.is_none() && server.appservices.ask_alias(alias).await {
        found = store::rooms::of_alias(&mut server.db.read().await?, alias.as_str()).await?;
    }
    let everybody = server.config.policy.open_profile || who.appservice.is_some();
    found
        .map(|(room_id, _)| room_id)
        .filter(|room_id| everybody || server.live.membership(&who.user_id, room_id).is_some())
        .ok_or_else(|| not_found("There is no room of this alias."))
}

/// Whether the caller may make an alias at all.
pub(super) fn may_make(server: &Server, who: &Requester, alias: &RoomAliasId) -> Result<()> {
    if alias.alias().is_empty() {
        return Err(invalid("An alias has a name between # and :."));
    }
    let own = who.appservice.as_deref();
    if server.appservices.is_exclusive_alias(alias, own) {
        return Err(refuse(Code::Exclusive, "This alias is kept for an appservice."));
    }
    let of_namespace = own.is_some_and(|id| {
        server.appservices.all().iter().any(|one| one.id == id && one.is_interested_in_alias(alias.as_str()))
    });
    if of_namespace || server.config.policy.open_profile {
        return Ok(());
    }
    Err(match own {
        Some(_) => refuse(Code::Exclusive, "This alias is outside the appservice's namespace."),
        None => forbidden("Rooms of a city have numbers (部屋番号), and no aliases."),
    })
}

#[derive(Deserialize)]
struct Target {
    room_id: OwnedRoomId,
}

async fn put(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let (call, body) = call.json::<Target>(&server).await?;
    let alias = alias(&server, call.arg(0))?.to_owned();
    may_make(&server, &who, &alias)?;
    if !server.live.is_joined(&who.user_id, &body.room_id) {
        return Err(forbidden("You are not a member of this room."));
    }
    let entry =
        crate::audit::Entry { room_id: body.room_id.to_string(), ..who.entry(server.now(), "alias.set") };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                if store::rooms::aliases_of(batch.reading(), &body.room_id).await?.len() >= ALIASES_MAX {
                    return Err(forbidden("This room has aliases enough."));
                }
                let now = batch.now;
                let conn = batch.sql().await?;
                let made =
                    store::rooms::add_alias(conn, alias.as_str(), &body.room_id, who.user_id.as_str(), now);
                if !made.await? {
                    return Err(refuse(Code::AliasTaken, "There is a room of this alias already."));
                }
                batch.audit(entry);
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

async fn delete(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let alias = alias(&server, call.arg(0))?.to_owned();
    let (room_id, creator) = store::rooms::of_alias(&mut server.db.read().await?, alias.as_str())
        .await?
        .ok_or_else(|| not_found("There is no room of this alias."))?;
    if creator != who.user_id.as_str() {
        // Who has nothing to do with it is not told that it exists.
        let outside = !server.config.policy.open_profile
            && who.appservice.is_none()
            && server.live.membership(&who.user_id, &room_id).is_none();
        if outside {
            return Err(not_found("There is no room of this alias."));
        }
        may_make(&server, &who, &alias)?;
        if who.appservice.is_none() {
            return Err(forbidden("An alias is deleted by whoever made it."));
        }
    }
    let entry =
        crate::audit::Entry { room_id: room_id.to_string(), ..who.entry(server.now(), "alias.delete") };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                store::rooms::remove_alias(batch.sql().await?, alias.as_str()).await?;
                batch.audit(entry);
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}
