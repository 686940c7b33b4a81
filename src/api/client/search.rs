//! `POST /search` (client-server API, "Server Side Search"): in the rooms that the searcher is joined to.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, UInt,
    api::client::search::search_events::v3::{Criteria, EventContext, GroupingKey, Request, SearchKeys},
    events::StateEventType,
};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use crate::{
    error::{Code, Result, invalid, refuse},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    reading,
    rooms::{
        history,
        ignored::{self, Ignored},
        live::RoomView,
        pdu::Event,
    },
    search::{self, ALL_FIELDS, Fields, Hit, Query, Wanted},
    server::Server,
    store,
    sync::{bundle, filter, render, token::room_token},
};

/// Hits on a page at most, and where the request says nothing.
const PAGE_MAX: usize = 50;
const PAGE_DEFAULT: usize = 10;
/// Events before and after a hit at most.
const CONTEXT_MAX: usize = 10;
/// The longest query, in bytes.
const QUERY_BYTES_MAX: usize = 1_024;

/// The endpoint.
#[must_use]
pub fn routes(routes: Routes) -> Routes {
    routes.raw::<Request, Requester, _, _>(search)
}

/// What is found, as the specification writes it. Lists are written even where they are empty: clients read them.
#[derive(Default, Serialize)]
struct Found {
    count: usize,
    highlights: Vec<String>,
    results: Vec<One>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    state: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<&'static str, BTreeMap<String, Group>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

#[derive(Serialize)]
struct One {
    rank: f64,
    result: Box<RawValue>,
    context: Context,
}

#[derive(Serialize)]
struct Context {
    events_before: Vec<Box<RawValue>>,
    events_after: Vec<Box<RawValue>>,
    start: String,
    end: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    profile_info: BTreeMap<OwnedUserId, Value>,
}

#[derive(Default, Serialize)]
struct Group {
    order: usize,
    results: Vec<OwnedEventId>,
}

async fn search(server: Arc<Server>, who: Requester, request: Request) -> Result<Answer> {
    let Some(criteria) = request.search_categories.room_events else {
        return Ok(json!({"search_categories": {}}).into());
    };
    check_words(&criteria)?;
    let found = find(&server, &who, &criteria, request.next_batch.as_deref()).await?;
    let found = serde_json::to_string(&found)?;
    Ok(Answer::Json(format!("{{\"search_categories\":{{\"room_events\":{found}}}}}")))
}

/// ruma takes any word where the specification lists some.
fn check_words(criteria: &Criteria) -> Result<()> {
    if criteria.order_by.as_ref().is_some_and(|order| !["recent", "rank"].contains(&order.as_str())) {
        return Err(invalid("order_by is \"recent\" or \"rank\"."));
    }
    let known = |key: &GroupingKey| ["room_id", "sender"].contains(&key.as_str());
    if !criteria.groupings.group_by.iter().filter_map(|grouping| grouping.key.as_ref()).all(known) {
        return Err(invalid("Results are grouped by \"room_id\" or \"sender\"."));
    }
    let known = |key: &SearchKeys| ["content.body", "content.name", "content.topic"].contains(&key.as_str());
    if !criteria.keys.iter().flatten().all(known) {
        return Err(invalid("keys are content.body, content.name and content.topic."));
    }
    Ok(())
}

async fn find(
    server: &Arc<Server>,
    who: &Requester,
    criteria: &Criteria,
    from: Option<&str>,
) -> Result<Found> {
    if criteria.search_term.len() > QUERY_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "What you search for is too long: at most 1,024 bytes."));
    }
    if serde_json::to_string(&criteria.filter)?.len() > filter::FILTER_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "A filter has at most 32,768 bytes."));
    }
    let Some(query) = Query::parse(&criteria.search_term) else { return Ok(Found::default()) };
    let (before, seen) = match from {
        None | Some("") => (i64::MAX, 0),
        Some(token) => parse_token(token, &server.epoch)?,
    };
    let limit = count_of(criteria.filter.limit, PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let rooms: Vec<OwnedRoomId> = server
        .live
        .joined_rooms(&who.user_id)
        .into_iter()
        .filter(|room_id| filter::room_passes(&criteria.filter, room_id))
        .collect();
    search::caught_up(server).await?;
    let wanted =
        Wanted { query: &query, rooms: &rooms, fields: fields(criteria.keys.as_deref()), before, limit };
    let ignored = ignored::by(server, &who.user_id).await?;
    let passes = |event: &Event| filter::passes(&criteria.filter, event) && !ignored.hides(event);
    let page = search::page(server, &who.user_id, &wanted, passes).await?;
    let mut found = Found {
        count: seen.saturating_add(page.count),
        highlights: query.words.clone(),
        next_batch: page.next.map(|position| {
            format!("s1_{}_{position}_{}", server.epoch, seen.saturating_add(page.hits.len()))
        }),
        ..Found::default()
    };
    let mut views: BTreeMap<OwnedRoomId, Arc<RoomView>> = BTreeMap::new();
    for hit in &page.hits {
        let view = match views.entry(hit.event.room_id.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                // Before anything of the room is answered: a hit is a look at it (DESIGN 19).
                reading::opened(server, who, &hit.event.room_id, "search").await?;
                place.insert(hit.room.current()?)
            }
        };
        found.results.push(result(server, who, hit, view, &criteria.event_context, &ignored).await?);
    }
    found.groups = groups(criteria, &page.hits);
    if criteria.include_state == Some(true) {
        for (room_id, view) in &views {
            let events: Vec<Arc<Event>> = view.state.events().cloned().collect();
            found.state.insert(room_id.clone(), rendered(server, who, &events)?);
        }
    }
    Ok(found)
}

async fn result(
    server: &Server,
    who: &Requester,
    hit: &Hit,
    view: &RoomView,
    wanted: &EventContext,
    ignored: &Ignored,
) -> Result<One> {
    let event = &hit.event;
    let (before_max, after_max) = (
        count_of(Some(wanted.before_limit), 0).min(CONTEXT_MAX),
        count_of(Some(wanted.after_limit), 0).min(CONTEXT_MAX),
    );
    let (mut before, mut after) = (Vec::new(), Vec::new());
    {
        let mut conn = server.db.read().await?;
        if before_max > 0 {
            before = store::events::before(&mut conn, &event.room_id, event.position, before_max).await?;
        }
        if after_max > 0 {
            after = store::events::after(&mut conn, &event.room_id, event.position, after_max).await?;
        }
        before.retain(|e| hit.sight.sees(e.position) && !ignored.hides(e));
        after.retain(|e| hit.sight.sees(e.position) && !ignored.hides(e));
        for events in [&before, &after] {
            history::complete(&mut conn, events).await?;
        }
        history::complete(&mut conn, std::slice::from_ref(event)).await?;
    }
    let mut profile_info = BTreeMap::new();
    if wanted.include_profile {
        for event in before.iter().chain(&after).chain([event]) {
            let mut profile = serde_json::Map::new();
            for name in ["displayname", "avatar_url"] {
                let kind = StateEventType::RoomMember;
                if let Some(text) = view.state.content_str(&kind, event.sender.as_str(), name) {
                    profile.insert(name.to_owned(), text.into());
                }
            }
            profile_info.insert(event.sender.clone(), profile.into());
        }
    }
    let told = before.iter().chain(&after).chain([event]);
    let bundles = bundle::bundle(server, who, &hit.room, &hit.sight, told).await?;
    let told =
        |event: &Event| Ok(RawValue::from_string(render::bundled(event, &bundles, who, server.now()))?);
    let all = |events: &[Arc<Event>]| events.iter().map(|event| told(event)).collect::<Result<Vec<_>>>();
    let start = before.last().map_or(event.position, |oldest| oldest.position) - 1;
    let end = after.last().map_or(event.position, |newest| newest.position);
    Ok(One {
        // All hits have every word: none is closer than another, and the newest come first in either order.
        rank: 1.0,
        result: told(event)?,
        context: Context {
            events_before: all(&before)?,
            events_after: all(&after)?,
            start: room_token(start, &server.epoch),
            end: room_token(end, &server.epoch),
            profile_info,
        },
    })
}

fn groups(criteria: &Criteria, hits: &[Hit]) -> BTreeMap<&'static str, BTreeMap<String, Group>> {
    let mut groups: BTreeMap<&'static str, BTreeMap<String, Group>> = BTreeMap::new();
    for grouping in &criteria.groupings.group_by {
        let by_room = match &grouping.key {
            Some(GroupingKey::RoomId) => true,
            Some(GroupingKey::Sender) => false,
            _ => continue,
        };
        let name = if by_room { "room_id" } else { "sender" };
        if groups.contains_key(name) {
            continue;
        }
        let group = groups.entry(name).or_default();
        for hit in hits {
            let key = if by_room { hit.event.room_id.to_string() } else { hit.event.sender.to_string() };
            let order = group.len() + 1;
            let one = group.entry(key).or_insert_with(|| Group { order, results: Vec::new() });
            one.results.push(hit.event.event_id.clone());
        }
    }
    groups
}

fn fields(keys: Option<&[SearchKeys]>) -> Fields {
    let Some(keys) = keys else { return ALL_FIELDS };
    Fields {
        body: keys.contains(&SearchKeys::ContentBody),
        name: keys.contains(&SearchKeys::ContentName),
        topic: keys.contains(&SearchKeys::ContentTopic),
    }
}

fn rendered(server: &Server, who: &Requester, events: &[Arc<Event>]) -> Result<Vec<Box<RawValue>>> {
    events.iter().map(|event| raw(server, who, event)).collect()
}

fn raw(server: &Server, who: &Requester, event: &Event) -> Result<Box<RawValue>> {
    Ok(RawValue::from_string(render::event(event, Some(who), server.now()))?)
}

fn count_of(n: Option<UInt>, default: usize) -> usize {
    n.map_or(default, |n| usize::try_from(u64::from(n)).unwrap_or(usize::MAX))
}

/// Where the next page begins, and how many hits came before it.
fn parse_token(text: &str, epoch: &str) -> Result<(i64, usize)> {
    let bad = || invalid("next_batch is not one of this server's, or it is from before a restore.");
    match text.split('_').collect::<Vec<_>>().as_slice() {
        ["s1", of, position, seen] if *of == epoch => {
            Ok((position.parse().map_err(|_| bad())?, seen.parse().map_err(|_| bad())?))
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        assert_eq!(parse_token("s1_abc_77_10", "abc").unwrap(), (77, 10));
        assert!(parse_token("s1_new_77_10", "abc").is_err());
        assert!(parse_token("77", "abc").is_err());
    }

    #[test]
    fn keys_choose_fields() {
        assert_eq!(fields(None), ALL_FIELDS);
        assert_eq!(
            fields(Some(&[SearchKeys::ContentName])),
            Fields { body: false, name: true, topic: false }
        );
    }
}
