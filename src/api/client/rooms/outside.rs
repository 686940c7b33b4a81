//! Rooms seen from outside: summary, the hierarchy of a space, rooms shared with somebody.

use std::{collections::BTreeSet, sync::Arc};

use http::Method;
use ruma::{
    OwnedRoomId, UserId,
    api::client::{room::get_summary::v1 as summary, space::get_hierarchy::v1 as hierarchy},
    events::StateEventType,
};
use serde_json::{Value, json};

use crate::{
    api::client::directory::resolve,
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    reading,
    rooms::{access, live::RoomView},
    server::Server,
};

/// Rooms of a page of a hierarchy.
const PAGE_MAX: usize = 50;
/// How deep a hierarchy is followed, and how many of its rooms are looked at.
const DEPTH_MAX: u64 = 10;
const VISITED_MAX: usize = 1_000;
/// Children of one space.
const CHILDREN_MAX: usize = 500;
/// Shared rooms of a page.
const MUTUAL_MAX: usize = 100;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<summary::Request, Requester, _, _>(|server, who, request| async move {
            let nothing = || not_found("There is no such room, or you cannot see it.");
            let room_id = match OwnedRoomId::try_from(request.room_id_or_alias) {
                Ok(room_id) => room_id,
                Err(alias) => resolve(&server, &who, &alias).await?,
            };
            let seen = access::seen(&server, &who, &room_id).await?.ok_or_else(nothing)?;
            reading::state(&server, &who, &room_id).await?;
            let mut answer = access::summary(&seen.view);
            answer["membership"] = seen.membership.into();
            Ok(answer.into())
        })
        .raw::<hierarchy::Request, Requester, _, _>(tree)
        .at(Method::GET, "/_matrix/client/v1/mutual_rooms", mutual)
        .at(Method::GET, "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms", mutual)
}

/// `GET /mutual_rooms` (v1.19).
async fn mutual(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let given =
        call.query("user_id").ok_or_else(|| refuse(Code::MissingParam, "The query has no user_id."))?;
    let user_id = <&UserId>::try_from(given.as_str()).map_err(|_| invalid("user_id is no user id."))?;
    if user_id == who.user_id {
        return Err(invalid("user_id is your own."));
    }
    let begin = match call.query("from").as_deref() {
        None | Some("") => 0,
        Some(from) => from
            .strip_prefix('m')
            .and_then(|n| n.parse::<usize>().ok())
            .ok_or_else(|| invalid("from is no token of this list."))?,
    };
    let mine = server.live.joined_rooms(&who.user_id);
    let both: Vec<OwnedRoomId> = server.live.joined_rooms(user_id).intersection(&mine).cloned().collect();
    let page: Vec<_> = both.iter().skip(begin).take(MUTUAL_MAX).collect();
    let mut answer = json!({"joined": page, "count": both.len()});
    let end = begin.saturating_add(MUTUAL_MAX);
    if end < both.len() {
        answer["next_batch"] = format!("m{end}").into();
    }
    Ok(answer.into())
}

/// Where a page of a hierarchy begins, and what the first page was asked with.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    begin: usize,
    depth: u64,
    suggested_only: bool,
}

impl Place {
    fn to_text(self, epoch: &str) -> String {
        format!("c1_{epoch}_{}_{}_{}", self.begin, self.depth, u8::from(self.suggested_only))
    }

    fn parse(text: &str, epoch: &str) -> Result<Self> {
        let bad = || invalid("from is no token of this hierarchy.");
        match text.split('_').collect::<Vec<_>>().as_slice() {
            ["c1", of, begin, depth, suggested] if *of == epoch => Ok(Self {
                begin: begin.parse().map_err(|_| bad())?,
                depth: depth.parse().map_err(|_| bad())?,
                suggested_only: *suggested == "1",
            }),
            _ => Err(bad()),
        }
    }
}

/// A space and what is in it, depth first; of rooms that the caller may not know of only what their parent says.
async fn tree(server: Arc<Server>, who: Requester, request: hierarchy::Request) -> Result<Answer> {
    let limit = request
        .limit
        .map_or(PAGE_MAX, |n| usize::try_from(u64::from(n)).unwrap_or(PAGE_MAX))
        .clamp(1, PAGE_MAX);
    let depth = request.max_depth.map_or(DEPTH_MAX, u64::from).min(DEPTH_MAX);
    let first = Place { begin: 0, depth, suggested_only: request.suggested_only };
    let place = match request.from.as_deref().filter(|from| !from.is_empty()) {
        Some(from) => Place::parse(from, &server.epoch)?,
        None => first,
    };
    if (Place { begin: 0, ..place }) != first {
        return Err(invalid("suggested_only and max_depth cannot change between pages."));
    }
    let mut waiting: Vec<(OwnedRoomId, u64)> = vec![(request.room_id.clone(), 0)];
    let mut visited: BTreeSet<OwnedRoomId> = BTreeSet::new();
    let mut rooms: Vec<Value> = Vec::new();
    let mut found = 0;
    let mut next = None;
    while let Some((room_id, level)) = waiting.pop() {
        if visited.len() >= VISITED_MAX || !visited.insert(room_id.clone()) {
            continue;
        }
        let Some(seen) = access::seen(&server, &who, &room_id).await? else {
            if level == 0 {
                return Err(forbidden("You are not allowed to view this room."));
            }
            continue;
        };
        let children = children(&seen.view, place.suggested_only);
        if found >= place.begin {
            if rooms.len() == limit {
                next = Some(Place { begin: found, ..place });
                break;
            }
            reading::state(&server, &who, &room_id).await?;
            let mut entry = access::summary(&seen.view);
            entry["children_state"] = children.iter().map(|child| child.state.clone()).collect();
            rooms.push(entry);
        }
        found += 1;
        if level < place.depth {
            waiting.extend(children.into_iter().rev().map(|child| (child.room_id, level + 1)));
        }
    }
    let mut answer = json!({"rooms": rooms});
    if let Some(next) = next {
        answer["next_batch"] = next.to_text(&server.epoch).into();
    }
    Ok(answer.into())
}

/// A room in a space.
struct Child {
    room_id: OwnedRoomId,
    state: Value,
}

/// The rooms in a space, in the space's order (client-server API, "Ordering of children within a space").
fn children(view: &RoomView, suggested_only: bool) -> Vec<Child> {
    if view.state.content_str(&StateEventType::RoomCreate, "", "type").as_deref() != Some("m.space") {
        return Vec::new();
    }
    let mut found: Vec<((bool, String, i64, OwnedRoomId), Value)> = Vec::new();
    for event in view.state.of_type(&StateEventType::SpaceChild).take(CHILDREN_MAX) {
        let Ok(content) = serde_json::from_str::<Value>(event.content.get()) else { continue };
        let key = event.state_key.clone().unwrap_or_default();
        let Ok(room_id) = OwnedRoomId::try_from(key.as_str()) else { continue };
        let valid = content["via"].as_array().is_some_and(|via| !via.is_empty());
        if !valid || (suggested_only && content["suggested"] != true) {
            continue;
        }
        let order = content["order"]
            .as_str()
            .filter(|order| order.len() <= 50 && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte)))
            .map(ToOwned::to_owned);
        let state = json!({
            "type": "m.space.child", "state_key": key, "content": content,
            "sender": event.sender, "origin_server_ts": event.ts,
        });
        // Those with an order come first.
        let place = (order.is_none(), order.unwrap_or_default(), event.ts, room_id);
        found.push((place, state));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.into_iter().map(|((_, _, _, room_id), state)| Child { room_id, state }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let place = Place { begin: 50, depth: 3, suggested_only: true };
        assert!(Place::parse(&place.to_text("abc"), "abc").unwrap() == place);
        assert!(Place::parse(&place.to_text("abc"), "new").is_err());
        assert!(Place::parse("c1_abc_x_3_0", "abc").is_err());
    }
}
