//! What relates to an event: `/relations`, and a room's threads.

use std::{collections::HashSet, sync::Arc};

use ruma::{
    CanonicalJsonValue, EventId, RoomId,
    api::{
        Direction,
        client::{
            relations as rel,
            threads::get_threads::v1::{self as threads, IncludeThreads},
        },
    },
};

use crate::{
    error::{Error, Result, invalid},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    reading,
    rooms::{
        append::rules_of,
        history::{self, Sight},
        ignored::{self, Ignored},
        pdu::Event,
    },
    server::Server,
    store::{self, relations::Threads},
    sync::{
        bundle,
        render::{write_bundled, write_list},
        token::{parse_room_token, room_token},
    },
};

/// Events of one page, where the request says nothing and at most.
const PAGE_DEFAULT: usize = 50;
const PAGE_MAX: usize = 100;
/// Relations looked at for one page.
const LOOKED_AT_MAX: usize = 2_000;
/// Levels of indirect relations that are followed, and how many of them.
const DEPTH_MAX: usize = 3;
const INDIRECT_MAX: usize = 5_000;
/// Threads of one page, where the request says nothing.
const THREADS_DEFAULT: usize = 20;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<rel::get_relating_events::v1::Request, Requester, _, _>(|server, who, r| async move {
            let page = Page { from: r.from, to: r.to, dir: r.dir, limit: r.limit };
            let ask = Related { page, recurse: r.recurse, rel_type: None, kind: None };
            related(&server, &who, &r.room_id, &r.event_id, ask).await
        })
        .raw::<rel::get_relating_events_with_rel_type::v1::Request, Requester, _, _>(
            |server, who, r| async move {
                let page = Page { from: r.from, to: r.to, dir: r.dir, limit: r.limit };
                let rel_type = Some(r.rel_type.to_string());
                let ask = Related { page, recurse: r.recurse, rel_type, kind: None };
                related(&server, &who, &r.room_id, &r.event_id, ask).await
            },
        )
        .raw::<rel::get_relating_events_with_rel_type_and_event_type::v1::Request, Requester, _, _>(
            |server, who, r| async move {
                let page = Page { from: r.from, to: r.to, dir: r.dir, limit: r.limit };
                let (rel_type, kind) = (Some(r.rel_type.to_string()), Some(r.event_type.to_string()));
                let ask = Related { page, recurse: r.recurse, rel_type, kind };
                related(&server, &who, &r.room_id, &r.event_id, ask).await
            },
        )
        .raw::<threads::Request, Requester, _, _>(list_threads)
}

/// Which part of the relations is asked for.
struct Page {
    from: Option<String>,
    to: Option<String>,
    dir: Direction,
    limit: Option<ruma::UInt>,
}

/// What `/relations` asks for.
struct Related {
    page: Page,
    recurse: bool,
    rel_type: Option<String>,
    kind: Option<String>,
}

impl Related {
    fn wants(&self, rel_type: &str, kind: &str) -> bool {
        self.rel_type.as_ref().is_none_or(|wanted| wanted == rel_type)
            && self.kind.as_ref().is_none_or(|wanted| wanted == kind)
    }
}

/// The window of orders that a page lies in, exclusive at both ends.
struct Window {
    newest_first: bool,
    before: i64,
    after: i64,
    limit: usize,
}

impl Window {
    fn of(server: &Server, page: &Page) -> Result<Self> {
        let place =
            |text: &Option<String>| text.as_deref().map(|t| parse_room_token(t, &server.epoch)).transpose();
        let (from, to) = (place(&page.from)?, place(&page.to)?);
        let newest_first = page.dir == Direction::Backward;
        let (newer, older) = if newest_first { (from, to) } else { (to, from) };
        let limit = page.limit.map_or(PAGE_DEFAULT, |n| usize::try_from(u64::from(n)).unwrap_or(PAGE_MAX));
        Ok(Self {
            newest_first,
            before: newer.map_or(i64::MAX, |order| order.saturating_add(1)),
            after: older.unwrap_or(0),
            limit: limit.clamp(1, PAGE_MAX),
        })
    }

    /// The order from which a page after this event goes on.
    fn next(&self, last: i64) -> i64 {
        if self.newest_first { last - 1 } else { last }
    }
}

async fn related(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &RoomId,
    event_id: &EventId,
    ask: Related,
) -> Result<Answer> {
    let (room, sight) = history::sight(server, &who.user_id, room_id).await?;
    history::visible_event(server, &who.user_id, room_id, event_id).await?;
    let ignored = ignored::by(server, &who.user_id).await?;
    let window = Window::of(server, &ask.page)?;
    let (events, next) = if ask.recurse {
        indirect(server, room_id, event_id, &ask, &window, &sight, &ignored).await?
    } else {
        direct(server, room_id, event_id, &ask, window, &sight, &ignored).await?
    };
    history::complete(&mut server.db.read().await?, &events).await?;
    let bundles = bundle::bundle(server, who, &room, &sight, &events).await?;
    reading::opened(server, who, room_id, "history").await?;
    let now = server.now();
    let mut out = String::from("{\"chunk\":");
    write_list(&mut out, &events, |out, event| write_bundled(out, event, &bundles, who, now, true));
    if let Some(next) = next {
        out.push_str(&format!(",\"next_batch\":\"{}\"", room_token(next, &server.epoch)));
    }
    if let Some(from) = &ask.page.from {
        // What lies on the other side of where this page began: the same place, in the other direction.
        let place = parse_room_token(from, &server.epoch)?;
        out.push_str(&format!(",\"prev_batch\":\"{}\"", room_token(place, &server.epoch)));
    }
    if ask.recurse {
        out.push_str(&format!(",\"recursion_depth\":{DEPTH_MAX}"));
    }
    out.push('}');
    Ok(Answer::Json(out))
}

/// A page of events: them, and the order to go on from.
type Found = (Vec<Arc<Event>>, Option<i64>);

async fn direct(
    server: &Server,
    room_id: &RoomId,
    event_id: &EventId,
    ask: &Related,
    mut window: Window,
    sight: &Sight,
    ignored: &Ignored,
) -> Result<Found> {
    let mut events: Vec<Arc<Event>> = Vec::new();
    let mut looked_at = 0;
    let mut conn = server.db.read().await?;
    loop {
        let (before, after, newest_first) = (window.before, window.after, window.newest_first);
        let page =
            store::events::related(&mut conn, room_id, event_id, before, after, newest_first, 101).await?;
        if page.is_empty() {
            return Ok((events, None));
        }
        if looked_at >= LOOKED_AT_MAX {
            return Ok((events, Some(if newest_first { before - 1 } else { after })));
        }
        looked_at += page.len();
        for event in page {
            let at = event.position;
            let wanted = sight.sees(at)
                && !ignored.hides(&event)
                && event.relation().is_some_and(|r| ask.wants(&r.rel_type, &event.kind.to_string()));
            if wanted {
                if events.len() == window.limit {
                    let next = events.last().map(|last| window.next(last.position));
                    return Ok((events, next));
                }
                events.push(event);
            }
            if newest_first { window.before = at } else { window.after = at }
        }
    }
}

/// With `recurse`: what relates to the event, and to what relates to it, some levels deep.
async fn indirect(
    server: &Server,
    room_id: &RoomId,
    event_id: &EventId,
    ask: &Related,
    window: &Window,
    sight: &Sight,
    ignored: &Ignored,
) -> Result<Found> {
    let mut conn = server.db.read().await?;
    let mut known: HashSet<String> = HashSet::from([event_id.to_string()]);
    let mut level = vec![event_id.to_string()];
    let mut all = Vec::new();
    for _ in 0..DEPTH_MAX {
        let left = INDIRECT_MAX.saturating_sub(all.len());
        let rows = store::relations::relating(&mut conn, room_id, &level, None, left).await?;
        level.clear();
        for row in rows {
            if known.insert(row.event_id.clone()) {
                level.push(row.event_id.clone());
                all.push(row);
            }
        }
        if level.is_empty() || all.len() >= INDIRECT_MAX {
            break;
        }
    }
    all.retain(|row| {
        row.position < window.before
            && row.position > window.after
            && sight.sees(row.position)
            && !ignored.users().iter().any(|user| user.as_str() == row.sender)
            && ask.wants(&row.rel_type, &row.kind)
    });
    all.sort_unstable_by_key(|row| if window.newest_first { -row.position } else { row.position });
    let more = all.len() > window.limit;
    all.truncate(window.limit);
    let positions: Vec<i64> = all.iter().map(|row| row.position).collect();
    let mut events = store::events::at(&mut conn, &positions).await?;
    events.sort_unstable_by_key(|event| if window.newest_first { -event.position } else { event.position });
    let next = all.last().filter(|_| more).map(|last| window.next(last.position));
    Ok((events, next))
}

/// A room's threads, the one with the newest reply first (client-server API, `GET /rooms/{roomId}/threads`).
async fn list_threads(server: Arc<Server>, who: Requester, request: threads::Request) -> Result<Answer> {
    let room_id = &*request.room_id;
    let (room, sight) = history::sight(&server, &who.user_id, room_id).await?;
    if !matches!(request.include, IncludeThreads::All | IncludeThreads::Participated) {
        return Err(invalid("include is \"all\" or \"participated\"."));
    }
    let ignored = ignored::by(&server, &who.user_id).await?;
    let from = request.from.as_deref().map(|from| parse_room_token(from, &server.epoch)).transpose()?;
    let limit = request
        .limit
        .map_or(THREADS_DEFAULT, |n| usize::try_from(u64::from(n)).unwrap_or(PAGE_MAX))
        .clamp(1, PAGE_MAX);
    let wanted = Threads {
        room_id,
        participant: (request.include == IncludeThreads::Participated).then_some(&*who.user_id),
        ignored: ignored.users(),
        between: (sight.from(), sight.upto()),
        before: from.map_or(i64::MAX, |from| from.saturating_add(1)),
        limit: limit + 1,
    };
    let mut conn = server.db.read().await?;
    let mut found = store::relations::threads(&mut conn, &wanted).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let ids: Vec<String> = found.iter().map(|(id, _)| id.clone()).collect();
    let mut roots = store::events::by_ids(&mut conn, &ids).await?;
    roots.retain(|root| root.room_id == room_id && sight.sees(root.position));
    let place = |root: &Event| ids.iter().position(|id| id == root.event_id.as_str());
    roots.sort_by_key(|root| place(root));
    history::complete(&mut conn, &roots).await?;
    drop(conn);
    let version = &room.current()?.row.version;
    let roots = roots
        .into_iter()
        .map(|root| if ignored.hides(&root) { emptied(&root, version) } else { Ok(root) })
        .collect::<Result<Vec<_>>>()?;
    let bundles = bundle::bundle(&server, &who, &room, &sight, &roots).await?;
    reading::opened(&server, &who, room_id, "history").await?;
    let now = server.now();
    let mut out = String::from("{\"chunk\":");
    write_list(&mut out, &roots, |out, event| write_bundled(out, event, &bundles, &who, now, true));
    if let Some((_, newest)) = found.last().filter(|_| more) {
        out.push_str(&format!(",\"next_batch\":\"{}\"", room_token(newest - 1, &server.epoch)));
    }
    out.push('}');
    Ok(Answer::Json(out))
}

/// An event as if it had been redacted: the root of a thread that an ignored user began.
fn emptied(event: &Event, version: &ruma::RoomVersionId) -> Result<Arc<Event>> {
    let rules = rules_of(version)?;
    let CanonicalJsonValue::Object(mut object) = serde_json::from_str::<CanonicalJsonValue>(&event.pdu)?
    else {
        return Err(Error::internal("a stored event is not an object"));
    };
    ruma::canonical_json::redact_in_place(&mut object, &rules.redaction, None)
        .map_err(|error| Error::internal(error.to_string()))?;
    let pdu = serde_json::to_string(&object)?;
    Ok(Arc::new(Event::from_pdu(&pdu, event.event_id.clone(), event.room_id.clone(), event.position)?))
}
