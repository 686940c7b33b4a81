//! Reading a room's past, and who may read what of it: history visibility, former members (DESIGN 14).

use std::sync::Arc;

use ruma::{EventId, RoomId, UserId, events::StateEventType};

use super::{
    live::{LiveRoom, RoomView},
    pdu::{Event, Extra},
};
use crate::{
    error::{Code, Result, forbidden, not_found},
    server::Server,
    store::{self, Conn},
};

/// What a user may see of a room: orders from one to another, both included, in order and apart from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    member: bool,
    state: bool,
    ranges: Vec<(i64, i64)>,
    upto: i64,
}

impl Sight {
    /// Whether an event at this order can be seen.
    pub fn sees(&self, order: i64) -> bool {
        let after = self.ranges.partition_point(|(from, _)| *from <= order);
        after > 0 && self.ranges[after - 1].1 >= order
    }

    /// The newest stretches that can be seen, oldest first, at most so many.
    pub fn newest(&self, most: usize) -> &[(i64, i64)] {
        &self.ranges[self.ranges.len().saturating_sub(most)..]
    }

    /// Whether there are orders between two that are seen which are not.
    pub fn parts(&self, from: i64, to: i64) -> bool {
        let range = |order| self.ranges.partition_point(|(begin, _)| *begin <= order);
        self.sees(from) && self.sees(to) && range(from) != range(to)
    }

    /// Whether the room's state can be seen: by who is or was in the room, and by everybody while it is
    /// `world_readable` to them. Who was only ever invited sees events of that time at most.
    pub fn reads_state(&self) -> bool {
        self.state
    }

    /// Whether nothing is hidden.
    pub fn is_whole(&self) -> bool {
        self.ranges.first() == Some(&(0, i64::MAX))
    }

    /// Whether this is a present member's sight.
    pub fn is_member(&self) -> bool {
        self.member
    }

    /// Up to which order the room's state can be seen: where former members left.
    pub fn upto(&self) -> i64 {
        self.upto
    }

    /// The oldest order that can be seen.
    pub fn from(&self) -> i64 {
        self.ranges.first().map_or(i64::MAX, |(from, _)| *from)
    }
}

/// What the user may see of the room; 403 where that is nothing. A room that does not exist looks like one that the
/// user is not in.
///
/// Who is not in the room reads what is `world_readable` where guests are allowed, and former members what they could
/// see up to their leaving where `former_members_read` says so.
pub async fn sight(server: &Server, user_id: &UserId, room_id: &RoomId) -> Result<(Arc<LiveRoom>, Sight)> {
    let denied = || forbidden("You are not a member of this room.");
    let policy = &server.config.policy;
    let membership = server.live.membership(user_id, room_id);
    let kind = membership.as_ref().map(|m| m.membership.as_str());
    let former = matches!(kind, Some("leave" | "ban"))
        && policy.former_members_read == "until_leave"
        && membership.as_ref().is_some_and(|m| !m.forgotten);
    let member = kind == Some("join");
    if !member && !former && !policy.guests {
        return Err(denied());
    }
    let room = match server.live.room(&server.db, room_id).await {
        Err(error) if error.code() == Some(Code::NotFound) => return Err(denied()),
        room => room?,
    };
    let view = room.current()?;
    if !member && view.row.status != "open" && view.row.status != "closed" {
        return Err(denied());
    }
    if member && always_shared(server, &room, room_id).await? {
        return Ok((room, Sight { member, state: true, ranges: vec![(0, i64::MAX)], upto: i64::MAX }));
    }
    let mut conn = server.db.read().await?;
    let visibility =
        store::rooms::history_of_entry(&mut conn, room_id, "m.room.history_visibility", "").await?;
    let visibility = steps(&visibility, "shared", |event| event.content_str("history_visibility"));
    let memberships = if member || former {
        store::rooms::history_of_entry(&mut conn, room_id, "m.room.member", user_id.as_str()).await?
    } else {
        Vec::new()
    };
    let memberships = steps(&memberships, "leave", |event| event.membership.clone());
    // A former member's sight ends where their last membership ended, whatever came after: an invitation that they
    // refused, a ban that was lifted.
    let last = memberships.iter().rev().find(|(.., membership)| membership == "join");
    let left = last.map(|(_, to, _)| *to);
    let ranges = visible(&visibility, &memberships, policy.guests, left.unwrap_or(i64::MAX));
    if ranges.is_empty() {
        return Err(denied());
    }
    let upto = left.or(ranges.last().map(|(_, to)| *to)).unwrap_or_default();
    let readable = policy.guests && view.state.history_visibility() == "world_readable";
    let state = member || left.is_some() || readable;
    Ok((room, Sight { member, state, ranges, upto }))
}

/// Whether a room was `shared` or `world_readable` all the time: then its members see everything.
async fn always_shared(server: &Server, room: &LiveRoom, room_id: &RoomId) -> Result<bool> {
    let view = room.current()?;
    let present = view.state.event(&StateEventType::RoomHistoryVisibility, "").map(|e| e.event_id.clone());
    let Some(present) = present else { return Ok(true) };
    if let Some((known, shared)) = &*room.always_shared.lock()
        && *known == present
    {
        return Ok(*shared);
    }
    let mut conn = server.db.read().await?;
    let past = store::rooms::history_of_entry(&mut conn, room_id, "m.room.history_visibility", "").await?;
    let shared = !past.iter().any(|event| {
        matches!(event.content_str("history_visibility").as_deref(), Some("joined" | "invited"))
    });
    *room.always_shared.lock() = Some((present, shared));
    Ok(shared)
}

/// What an entry of the state said from one order to the next. The event that changes it counts to both sides: it is
/// judged by what held before it or by what holds after it, whichever lets it be seen.
fn steps(
    events: &[Arc<Event>],
    at_first: &str,
    value: impl Fn(&Event) -> Option<String>,
) -> Vec<(i64, i64, String)> {
    let mut list = Vec::with_capacity(events.len() + 1);
    let mut now = (0, at_first.to_owned());
    for event in events {
        let next = (event.position, value(event).unwrap_or_else(|| at_first.to_owned()));
        let (from, value) = std::mem::replace(&mut now, next);
        list.push((from, event.position, value));
    }
    list.push((now.0, i64::MAX, now.1));
    list
}

/// What may be seen (client-server API, "Room history visibility", server behaviour): whoever is in the room sees it;
/// `shared` is seen by who joined at any later time; `invited` from the invitation on; `world_readable` by everybody
/// where `readable`, else by who was ever in the room, up to where they left.
fn visible(
    visibility: &[(i64, i64, String)],
    memberships: &[(i64, i64, String)],
    readable: bool,
    left: i64,
) -> Vec<(i64, i64)> {
    let with = |wanted: &'static str| {
        memberships
            .iter()
            .filter(move |(.., membership)| membership == wanted)
            .map(|(from, to, _)| (*from, *to))
    };
    let mut ranges: Vec<(i64, i64)> = with("join").collect();
    let last_join = ranges.last().map(|(from, _)| *from);
    for (from, to, value) in visibility {
        match value.as_str() {
            "world_readable" if readable => ranges.push((*from, *to)),
            "world_readable" if last_join.is_some() => ranges.push((*from, (*to).min(left))),
            "joined" | "world_readable" => {}
            "invited" => ranges.extend(with("invite").map(|(begin, end)| (begin.max(*from), end.min(*to)))),
            _ => ranges.extend(last_join.map(|join| (*from, join.min(*to)))),
        }
    }
    ranges.retain(|(from, to)| from <= to);
    ranges.sort_unstable();
    let mut merged: Vec<(i64, i64)> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match merged.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// An event that the user may see; 404 where there is none or it is hidden.
pub async fn visible_event(
    server: &Server,
    user_id: &UserId,
    room_id: &RoomId,
    event_id: &EventId,
) -> Result<(Arc<LiveRoom>, Arc<Event>)> {
    let (room, sight) = sight(server, user_id, room_id).await?;
    let event = event_of(server, &room, event_id).await?.filter(|event| event.room_id == room_id);
    match event {
        Some(event) if sight.sees(event.position) => Ok((room, event)),
        _ => Err(not_found("No such event, or you cannot see it.")),
    }
}

/// An event, from memory or the database.
pub async fn event_of(server: &Server, room: &LiveRoom, event_id: &EventId) -> Result<Option<Arc<Event>>> {
    if let Some(event) = room.timeline.read().events.iter().rev().find(|e| e.event_id == event_id) {
        return Ok(Some(Arc::clone(event)));
    }
    store::events::by_id(&mut server.db.read().await?, event_id).await
}

/// Fills in what `unsigned` tells about each event: what it replaced, what redacted it.
pub async fn complete(conn: &mut Conn, events: &[Arc<Event>]) -> Result<()> {
    for event in events {
        if event.extra.get().is_some() || (event.state_key.is_none() && event.redacted_by.is_none()) {
            continue;
        }
        let because = match &event.redacted_by {
            Some(id) => store::events::by_id(conn, id).await?,
            None => None,
        };
        let replaces = store::rooms::replaced_by(conn, event).await?;
        // Another reader may have been quicker, with the same answer.
        let _ = event.extra.set(Extra { replaces, because });
    }
    Ok(())
}

/// The state of a room just after an event, which may stand off the room's line (DESIGN 6).
pub async fn state_after(server: &Server, view: &RoomView, event: &Arc<Event>) -> Result<Vec<Arc<Event>>> {
    let mut conn = server.db.read().await?;
    if !store::rooms::is_off_the_line(&mut conn, event).await? {
        drop(conn);
        return state_before(server, view, event.position + 1).await;
    }
    let mut state = store::rooms::state_at(&mut conn, event).await?;
    if let Some(state_key) = &event.state_key {
        state.retain(|e| e.kind != event.kind || e.state_key.as_ref() != Some(state_key));
        state.push(Arc::clone(event));
    }
    Ok(state)
}

/// The state of a room just before an event, in memory where nothing changed since.
pub async fn state_before(server: &Server, view: &RoomView, order: i64) -> Result<Vec<Arc<Event>>> {
    if order > view.row.state_version {
        return Ok(view.state.events().cloned().collect());
    }
    store::rooms::state_before(&mut server.db.read().await?, &view.row.room_id, order).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[(i64, i64, &str)]) -> Vec<(i64, i64, String)> {
        values.iter().map(|(from, to, value)| (*from, *to, (*value).to_owned())).collect()
    }

    #[test]
    fn every_event_is_judged_by_what_held_when_it_was_sent() {
        let end = i64::MAX;
        // Shared until 10, joined until 20, shared again.
        let visibility = list(&[(0, 10, "shared"), (10, 20, "joined"), (20, end, "shared")]);
        let came_late = list(&[(0, 30, "leave"), (30, end, "join")]);
        assert_eq!(visible(&visibility, &came_late, false, end), vec![(0, 10), (20, end)]);
        let was_there = list(&[(0, 5, "leave"), (5, 15, "join"), (15, 18, "leave"), (18, end, "join")]);
        assert_eq!(visible(&visibility, &was_there, false, end), vec![(0, 15), (18, end)]);
        let left = list(&[(0, 12, "leave"), (12, 14, "join"), (14, end, "leave")]);
        assert_eq!(visible(&visibility, &left, false, 14), vec![(0, 10), (12, 14)]);
        let refused = list(&[(0, 12, "leave"), (12, 14, "invite"), (14, end, "leave")]);
        assert_eq!(visible(&visibility, &refused, false, 14), vec![], "who never joined sees nothing");
    }

    #[test]
    fn invitations_and_the_world() {
        let end = i64::MAX;
        let invited = list(&[(0, 10, "shared"), (10, end, "invited")]);
        let waits = list(&[(0, 12, "leave"), (12, end, "invite")]);
        assert_eq!(visible(&invited, &waits, false, end), vec![(12, end)]);
        let joined = list(&[(0, 12, "leave"), (12, 15, "invite"), (15, end, "join")]);
        assert_eq!(visible(&invited, &joined, false, end), vec![(0, 10), (12, end)]);
        let world = list(&[(0, 10, "shared"), (10, 20, "world_readable"), (20, end, "shared")]);
        let nobody = list(&[(0, end, "leave")]);
        assert_eq!(visible(&world, &nobody, true, end), vec![(10, 20)]);
        assert_eq!(visible(&world, &nobody, false, end), vec![], "where guests are not let in");
        let left = list(&[(0, 2, "leave"), (2, 5, "join"), (5, end, "leave")]);
        assert_eq!(visible(&world, &left, false, 5), vec![(0, 5)]);
    }

    #[test]
    fn sight_has_holes() {
        let sight = Sight { member: true, state: true, ranges: vec![(0, 10), (20, 30)], upto: i64::MAX };
        let seen: Vec<bool> = [0, 10, 11, 19, 20, 30, 31].iter().map(|order| sight.sees(*order)).collect();
        assert_eq!(seen, [true, true, false, false, true, true, false]);
    }
}
