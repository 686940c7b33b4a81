//! Unread counts: computed from the newest read receipt, the events after it and the user's push rules, and from
//! nothing else. Nothing is stored in the database; what was counted is kept in memory and continued while it holds.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use ruma::{
    OwnedUserId, UserId,
    events::TimelineEventType,
    push::{Action, PushConditionRoomCtx, Ruleset},
};

use super::rules;
use crate::{
    error::Result,
    rooms::{
        ignored::{self, Ignored},
        live::{LiveRoom, Receipt, RoomView},
        pdu::Event,
    },
    server::Server,
    store,
};

/// Events looked at before counting stops: who has not read for so long sees this many.
const EVENTS_MAX: usize = 1_000;
/// Events read from the database at once.
const PAGE: usize = 200;

type Receipts = BTreeMap<(OwnedUserId, String, String), Receipt>;

/// What was counted for one user in one room, and what the counts rest on.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    rules: Arc<Ruleset>,
    ignored: Ignored,
    read: Read,
    /// Counted up to this position.
    upto: i64,
    notify: u64,
    highlight: u64,
}

/// What a user has read of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Read {
    /// Everything up to this order: the newest receipt without a thread or of the main one (`m.read` or
    /// `m.read.private`), or the beginning of the membership.
    base: i64,
    /// Threads read further than that, by their root.
    threads: BTreeMap<String, i64>,
}

/// How many unread events of the room notify the user, and how many of them are highlights.
pub async fn unread(server: &Arc<Server>, user: &UserId, room: &LiveRoom) -> Result<(u64, u64)> {
    let view = room.current()?;
    let room_id = &view.row.room_id;
    let joined = server.live.membership(user, room_id).filter(|m| m.membership == "join");
    let Some(joined) = joined else { return Ok((0, 0)) };
    let rules = rules::ruleset(server, user).await?;
    let ignored = ignored::by(server, user).await?;
    let read = Read::of(&room.receipts.read(), user, joined.changed_at);
    let live = server.live.user(user);
    let cached = live.unread.lock().get(room_id).cloned();
    let continued = match cached {
        Some(counted)
            if Arc::ptr_eq(&counted.rules, &rules)
                && counted.ignored.is(&ignored)
                && counted.read == read =>
        {
            counted.continued(room, &view, user).await
        }
        _ => None,
    };
    let counted = match continued {
        Some(counted) => counted,
        None => recount(server, room, &view, user, (rules, ignored), read).await?,
    };
    let counts = (counted.notify, counted.highlight);
    live.unread.lock().insert(room_id.clone(), counted);
    Ok(counts)
}

/// The order up to which the user's receipts say that the room was read; 0 where there is none.
pub fn read_upto(room: &LiveRoom, user: &UserId) -> i64 {
    Read::of(&room.receipts.read(), user, 0).base
}

/// Whether an event notifies, and whether as a highlight.
pub fn verdict(actions: &[Action]) -> (bool, bool) {
    let notifies = actions.iter().any(Action::should_notify);
    (notifies, notifies && actions.iter().any(Action::is_highlight))
}

/// Counts from the newest event back to what was read: the newest are counted where there are too many.
async fn recount(
    server: &Server,
    room: &LiveRoom,
    view: &RoomView,
    user: &UserId,
    (rules, ignored): (Arc<Ruleset>, Ignored),
    read: Read,
) -> Result<Counted> {
    let context = rules::context(view, user);
    let (newest, complete_after) = {
        let timeline = room.timeline.read();
        (timeline.events.iter().cloned().collect::<Vec<_>>(), timeline.complete_after)
    };
    let upto = newest.last().map_or(complete_after, |event| event.position);
    let mut counted = Counted { rules, ignored, read, upto, notify: 0, highlight: 0 };
    let mut seen = 0;
    for event in newest.iter().rev() {
        seen += 1;
        if counted.back_over(event, &context).await.is_break() || seen == EVENTS_MAX {
            return Ok(counted);
        }
    }
    if complete_after <= counted.read.base {
        return Ok(counted);
    }
    // Memory does not reach back far enough.
    let mut conn = server.db.read().await?;
    let mut before = complete_after + 1;
    loop {
        let page = store::events::before(&mut conn, &view.row.room_id, before, PAGE).await?;
        let Some(oldest) = page.last() else { return Ok(counted) };
        before = oldest.position;
        for event in &page {
            seen += 1;
            if counted.back_over(event, &context).await.is_break() || seen == EVENTS_MAX {
                return Ok(counted);
            }
        }
    }
}

impl Counted {
    /// Counts an older event, or says that everything before it was read.
    async fn back_over(&mut self, event: &Event, context: &PushConditionRoomCtx) -> ControlFlow<()> {
        if event.position <= self.read.base || says_read(event, &context.user_id) {
            return ControlFlow::Break(());
        }
        self.count(event, context).await;
        ControlFlow::Continue(())
    }

    async fn count(&mut self, event: &Event, context: &PushConditionRoomCtx) {
        if self.read.covers(event) || self.ignored.hides(event) {
            return;
        }
        let (notifies, highlights) = verdict(&rules::actions_in(&self.rules, event, context).await);
        self.notify += u64::from(notifies);
        self.highlight += u64::from(highlights);
    }

    /// Counts what came since, where memory has all of it. A redaction may take back what was counted: none.
    async fn continued(mut self, room: &LiveRoom, view: &RoomView, user: &UserId) -> Option<Self> {
        let newer: Vec<Arc<Event>> = {
            let timeline = room.timeline.read();
            if timeline.complete_after > self.upto {
                return None;
            }
            timeline.events.iter().filter(|event| event.position > self.upto).cloned().collect()
        };
        if newer.iter().any(|event| event.kind == TimelineEventType::RoomRedaction) {
            return None;
        }
        if newer.is_empty() {
            return Some(self);
        }
        let context = rules::context(view, user);
        for event in &newer {
            self.upto = event.position;
            if says_read(event, user) {
                (self.notify, self.highlight) = (0, 0);
            } else {
                self.count(event, &context).await;
            }
        }
        Some(self)
    }
}

/// Who writes has read. Member events do not count: a new display name makes one in every room.
fn says_read(event: &Event, user: &UserId) -> bool {
    event.sender == user && event.kind != TimelineEventType::RoomMember
}

impl Read {
    fn of(receipts: &Receipts, user: &UserId, joined_at: i64) -> Self {
        let first = (user.to_owned(), String::new(), String::new());
        let own: Vec<(&str, i64)> = receipts
            .range(first..)
            .take_while(|((of, _, _), _)| of == user)
            .map(|((_, _, thread), receipt)| (thread.as_str(), receipt.event_order))
            .collect();
        let base = own
            .iter()
            .filter(|(thread, _)| thread.is_empty() || *thread == "main")
            .map(|(_, order)| *order)
            .fold(joined_at, i64::max);
        let mut threads = BTreeMap::new();
        for (thread, order) in own {
            if !thread.is_empty() && thread != "main" && order > base {
                let newest = threads.entry(thread.to_owned()).or_insert(order);
                *newest = order.max(*newest);
            }
        }
        Self { base, threads }
    }

    /// Whether the event belongs to a thread that was read that far.
    fn covers(&self, event: &Event) -> bool {
        !self.threads.is_empty()
            && event.relation().is_some_and(|relation| {
                relation.rel_type == "m.thread"
                    && self.threads.get(&relation.event_id).is_some_and(|upto| event.position <= *upto)
            })
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_event_id, owned_room_id, user_id};

    use super::*;

    fn receipts(list: &[(&str, &str, &str, i64)]) -> Receipts {
        list.iter()
            .map(|(user, kind, thread, order)| {
                let user_id = OwnedUserId::try_from(*user).unwrap();
                let receipt = Receipt {
                    room_id: owned_room_id!("!a:example.jp"),
                    user_id: user_id.clone(),
                    kind: (*kind).to_owned(),
                    thread: (*thread).to_owned(),
                    event_id: owned_event_id!("$a"),
                    event_order: *order,
                    ts: 0,
                    position: *order,
                };
                ((user_id, (*kind).to_owned(), (*thread).to_owned()), receipt)
            })
            .collect()
    }

    #[test]
    fn the_newest_receipt_counts() {
        let all = receipts(&[
            ("@a:example.jp", "m.read", "", 99),
            ("@b:example.jp", "m.read", "", 5),
            ("@b:example.jp", "m.read.private", "main", 8),
            ("@b:example.jp", "m.read", "$t", 12),
            ("@b:example.jp", "m.read", "$old", 3),
            ("@c:example.jp", "m.read", "", 50),
        ]);
        let read = Read::of(&all, user_id!("@b:example.jp"), 2);
        assert_eq!(read.base, 8);
        assert_eq!(read.threads, BTreeMap::from([("$t".to_owned(), 12)]));
        assert_eq!(Read::of(&all, user_id!("@d:example.jp"), 2).base, 2);
    }

    #[test]
    fn a_highlight_counts_only_where_it_notifies() {
        let highlight: Action = serde_json::from_str(r#"{"set_tweak":"highlight"}"#).unwrap();
        assert_eq!(verdict(std::slice::from_ref(&highlight)), (false, false));
        assert_eq!(verdict(&[Action::Notify, highlight]), (true, true));
        assert_eq!(verdict(&[Action::Notify]), (true, false));
    }
}
