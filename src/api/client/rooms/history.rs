//! Reading a room's past: `/messages`, `/context`, `/event`.

use std::sync::Arc;

use ruma::{
    EventId, RoomId,
    api::{
        Direction,
        client::{
            context::get_context::v3 as context,
            message::get_message_events::v3 as messages,
            room::{get_event_by_timestamp::v1 as by_time, get_room_event::v3 as one_event},
        },
    },
};

use serde_json::json;

use crate::{
    error::{Code, Result, not_found},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    reading,
    rooms::{
        history::{self, Sight},
        ignored,
        live::LiveRoom,
        pdu::Event,
    },
    server::Server,
    store,
    sync::{
        bundle, filter,
        render::{self, write_bundled, write_event, write_list},
        token::{parse_room_token, room_token},
    },
};

/// Events of one page at most.
const PAGE_MAX: usize = 1_000;
/// Events looked at for one page: a filter that nothing passes must not read a whole room. The page is then short, and
/// its token goes on.
const LOOKED_AT_MAX: usize = 2_000;
/// Events looked at beside a time, where the nearest are of ignored users.
const LOOKED_AT_NEAR: usize = 100;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<messages::Request, Requester, _, _>(page)
        .raw::<context::Request, Requester, _, _>(around)
        .raw::<by_time::Request, Requester, _, _>(closest)
        .raw::<one_event::Request, Requester, _, _>(|server, who, request| async move {
            one(&server, &who, &request.room_id, &request.event_id).await
        })
}

/// The event closest to a time (client-server API, `GET /rooms/{roomId}/timestamp_to_event`).
async fn closest(server: Arc<Server>, who: Requester, request: by_time::Request) -> Result<Answer> {
    let (room, sight) = history::sight(&server, &who.user_id, &request.room_id).await?;
    let ignored = ignored::by(&server, &who.user_id).await?;
    let ts = i64::try_from(u64::from(request.ts.0)).unwrap_or(i64::MAX);
    let last = room.current()?.row.last_position.min(sight.upto());
    let forwards = request.dir == Direction::Forward;
    let wanted = if forwards { ts } else { ts.saturating_add(1) };
    let mut conn = server.db.read().await?;
    // Events stand in the order in which they were taken, and so do their times. (Those that an appservice dated are found
    // as near as their neighbours tell.) So the first one of a time is found by halving.
    let (mut low, mut high) = (sight.from(), last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match store::events::after(&mut conn, &request.room_id, middle - 1, 1).await?.first() {
            Some(event) if event.position <= last && event.ts < wanted => low = event.position + 1,
            _ => high = middle,
        }
    }
    let near = if forwards {
        store::events::after(&mut conn, &request.room_id, low - 1, LOOKED_AT_NEAR).await?
    } else {
        store::events::before(&mut conn, &request.room_id, low, LOOKED_AT_NEAR).await?
    };
    let found = near.iter().find(|event| sight.sees(event.position) && !ignored.hides(event));
    let event = found.ok_or_else(|| not_found("There is no event that near."))?;
    Ok(json!({"event_id": event.event_id, "origin_server_ts": event.ts}).into())
}

/// One event, with what relates to it. What an ignored user wrote is not told.
pub(in crate::api::client) async fn one(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &RoomId,
    event_id: &EventId,
) -> Result<Answer> {
    let (room, sight, event) =
        wanted(server, who, room_id, event_id).await.map_err(|error| match error.code() {
            // "Not found or you do not have permission": one answer for both.
            Some(Code::Forbidden) => not_found("No such event, or you cannot see it."),
            _ => error,
        })?;
    history::complete(&mut server.db.read().await?, std::slice::from_ref(&event)).await?;
    let bundles = bundle::bundle(server, who, &room, &sight, [&event]).await?;
    reading::opened(server, who, room_id, "event").await?;
    Ok(Answer::Json(render::bundled(&event, &bundles, who, server.now())))
}

/// An event that the caller may see and does not ignore, and what they see of its room; 404 where there is none.
async fn wanted(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &RoomId,
    event_id: &EventId,
) -> Result<(Arc<LiveRoom>, Sight, Arc<Event>)> {
    let (room, sight) = history::sight(server, &who.user_id, room_id).await?;
    let (_, event) = history::visible_event(server, &who.user_id, room_id, event_id).await?;
    if ignored::by(server, &who.user_id).await?.hides(&event) {
        return Err(not_found("No such event, or you cannot see it."));
    }
    Ok((room, sight, event))
}

async fn page(server: Arc<Server>, who: Requester, request: messages::Request) -> Result<Answer> {
    let (room, sight) = history::sight(&server, &who.user_id, &request.room_id).await?;
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let backwards = request.dir == Direction::Backward;
    let from = match request.from.as_deref().filter(|from| !from.is_empty()) {
        Some(from) => parse_room_token(from, &server.epoch)?,
        None if backwards => server.live.position(),
        None => 0,
    };
    let to = request.to.as_deref().map(|to| parse_room_token(to, &server.epoch)).transpose()?;
    let ignored = ignored::by(&server, &who.user_id).await?;
    let pick = |event: &Event| {
        sight.sees(event.position)
            && filter::passes(&request.filter, event)
            && !ignored.hides(event)
            && to.is_none_or(|to| if backwards { event.position > to } else { event.position <= to })
    };
    let (events, end) = if backwards {
        backward(&server, &room, &request.room_id, from.min(sight.upto()), &sight, limit, pick).await?
    } else {
        forward(&server, &request.room_id, from, &sight, limit, pick).await?
    };
    let mut conn = server.db.read().await?;
    history::complete(&mut conn, &events).await?;
    drop(conn);
    let bundles = bundle::bundle(&server, &who, &room, &sight, &events).await?;
    reading::opened(&server, &who, &request.room_id, "history").await?;
    let now = server.now();
    let mut out = format!("{{\"start\":\"{}\",\"chunk\":", room_token(from, &server.epoch));
    write_list(&mut out, &events, |out, event| write_bundled(out, event, &bundles, &who, now, true));
    if filter::is_lazy(&request.filter) {
        let view = room.current()?;
        let senders: std::collections::BTreeSet<_> =
            events.iter().map(|event| event.sender.clone()).collect();
        let members: Vec<_> = senders
            .iter()
            .filter_map(|id| view.state.event(&ruma::events::StateEventType::RoomMember, id.as_str()))
            .collect();
        out.push_str(",\"state\":");
        write_list(&mut out, members, |out, event| write_event(out, event, Some(&who), now, true));
    }
    if let Some(end) = end {
        out.push_str(&format!(",\"end\":\"{}\"", room_token(end, &server.epoch)));
    }
    out.push('}');
    Ok(Answer::Json(out))
}

/// Events at or before an order, newest first, and the token to go on with.
async fn backward(
    server: &Server,
    room: &LiveRoom,
    room_id: &RoomId,
    from: i64,
    sight: &Sight,
    limit: usize,
    pick: impl Fn(&Event) -> bool,
) -> Result<(Vec<Arc<Event>>, Option<i64>)> {
    let mut events = Vec::with_capacity(limit.min(100));
    let mut at = from + 1;
    let mut looked_at = 0;
    {
        // The newest part is in memory.
        let timeline = room.timeline.read();
        if from >= timeline.complete_after {
            for event in timeline.events.iter().rev().filter(|event| event.position <= from) {
                if events.len() == limit {
                    return Ok((events, Some(at - 1)));
                }
                at = event.position;
                if pick(event) {
                    events.push(Arc::clone(event));
                }
            }
        }
    }
    let mut conn = server.db.read().await?;
    loop {
        if events.len() == limit || looked_at >= LOOKED_AT_MAX {
            return Ok((events, Some(at - 1)));
        }
        let page = store::events::before(&mut conn, room_id, at, limit.clamp(20, 200)).await?;
        let Some(last) = page.last() else { return Ok((events, None)) };
        let last = last.position;
        looked_at += page.len();
        for event in page {
            if events.len() == limit {
                return Ok((events, Some(at - 1)));
            }
            at = event.position;
            if pick(&event) {
                events.push(event);
            }
        }
        if last <= sight.from() {
            return Ok((events, None));
        }
    }
}

/// Events after an order, oldest first, and the token to go on with.
async fn forward(
    server: &Server,
    room_id: &RoomId,
    from: i64,
    sight: &Sight,
    limit: usize,
    pick: impl Fn(&Event) -> bool,
) -> Result<(Vec<Arc<Event>>, Option<i64>)> {
    let mut events = Vec::with_capacity(limit.min(100));
    let mut at = from.max(sight.from() - 1);
    let mut looked_at = 0;
    let mut conn = server.db.read().await?;
    loop {
        let page = store::events::after(&mut conn, room_id, at, limit.clamp(20, 200)).await?;
        if page.is_empty() {
            return Ok((events, None));
        }
        if looked_at >= LOOKED_AT_MAX {
            return Ok((events, Some(at)));
        }
        looked_at += page.len();
        for event in page {
            if events.len() == limit {
                return Ok((events, Some(at)));
            }
            at = event.position;
            if at > sight.upto() {
                return Ok((events, None));
            }
            if pick(&event) {
                events.push(event);
            }
        }
    }
}

async fn around(server: Arc<Server>, who: Requester, request: context::Request) -> Result<Answer> {
    let (room, sight, event) = wanted(&server, &who, &request.room_id, &request.event_id).await?;
    let ignored = ignored::by(&server, &who.user_id).await?;
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(100).min(100);
    let (before_max, after_max) = (limit / 2, limit - limit / 2);
    let pick = |event: &Event| {
        sight.sees(event.position) && filter::passes(&request.filter, event) && !ignored.hides(event)
    };
    let at = event.position;
    let (before, start) = if before_max == 0 {
        (Vec::new(), Some(at - 1))
    } else {
        backward(&server, &room, &request.room_id, at - 1, &sight, before_max, pick).await?
    };
    let (after, end) = if after_max == 0 {
        (Vec::new(), Some(at))
    } else {
        forward(&server, &request.room_id, at, &sight, after_max, pick).await?
    };
    let view = room.current()?;
    let last = after.last().map_or(at, |event| event.position);
    let mut state = match after.last() {
        Some(_) => history::state_before(&server, &view, last + 1).await?,
        // The event itself may stand off the room's line.
        None => history::state_after(&server, &view, &event).await?,
    };
    if !sight.reads_state() {
        state.clear();
    }
    if filter::is_lazy(&request.filter) {
        let senders: std::collections::BTreeSet<_> =
            before.iter().chain(&after).chain([&event]).map(|event| event.sender.to_string()).collect();
        state.retain(|e| {
            e.membership.is_none() || e.state_key.as_ref().is_some_and(|key| senders.contains(key))
        });
    }
    let mut conn = server.db.read().await?;
    for list in [&before, &after, &vec![Arc::clone(&event)]] {
        history::complete(&mut conn, list).await?;
    }
    drop(conn);
    let told = before.iter().chain(&after).chain([&event]);
    let bundles = bundle::bundle(&server, &who, &room, &sight, told).await?;
    reading::opened(&server, &who, &request.room_id, "history").await?;
    let now = server.now();
    let start = start.unwrap_or_else(|| before.last().map_or(at, |event| event.position) - 1);
    let end = end.unwrap_or(last);
    let mut out = format!(
        "{{\"start\":\"{}\",\"end\":\"{}\",\"event\":{},\"events_before\":",
        room_token(start, &server.epoch),
        room_token(end, &server.epoch),
        render::bundled(&event, &bundles, &who, now)
    );
    write_list(&mut out, &before, |out, event| write_bundled(out, event, &bundles, &who, now, true));
    out.push_str(",\"events_after\":");
    write_list(&mut out, &after, |out, event| write_bundled(out, event, &bundles, &who, now, true));
    out.push_str(",\"state\":");
    write_list(&mut out, &state, |out, event| write_event(out, event, Some(&who), now, true));
    out.push('}');
    Ok(Answer::Json(out))
}
