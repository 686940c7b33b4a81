//! Unread counts: computed from the newest read receipt, the events after it and the user's push rules, and from
//! nothing else. Nothing is stored in the database; what was counted is kept in memory and continued while it holds.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use ruma::{
    OwnedRoomId, OwnedUserId, UserId,
    events::TimelineEventType,
    push::{Action, PushConditionRoomCtx, Ruleset},
};
use tokio::task::JoinSet;

use super::rules;
use crate::{
    error::{Error, Result},
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
/// Rooms counted by one task, and tasks at once, where many rooms are counted.
const ROOMS_AT_ONCE: usize = 50;
const COUNTERS: usize = 3;

type Receipts = BTreeMap<(OwnedUserId, String, String), Receipt>;

/// How many unread events notify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All that notify.
    pub notify: u64,
    /// Those that do as a highlight.
    pub highlight: u64,
}

/// Unread counts of a room, apart for its threads (client-server API, "Receiving notifications").
#[derive(Clone, Debug, Default)]
pub struct Unread {
    /// What is in no thread.
    pub main: Count,
    /// Threads with something unread that notifies, by their root.
    pub threads: BTreeMap<String, Count>,
}

impl Unread {
    /// Threads and the rest together, for who does not tell them apart.
    pub fn total(&self) -> Count {
        self.threads.values().fold(self.main, |sum, count| Count {
            notify: sum.notify + count.notify,
            highlight: sum.highlight + count.highlight,
        })
    }

    fn of(&mut self, thread: Option<&str>) -> &mut Count {
        match thread {
            None => &mut self.main,
            Some(root) => self.threads.entry(root.to_owned()).or_default(),
        }
    }
}

/// What was counted for one user in one room, and what the counts rest on.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    rules: Arc<Ruleset>,
    ignored: Ignored,
    read: Read,
    /// Counted up to this position.
    upto: i64,
    unread: Unread,
}

/// What a user has read of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Read {
    /// Everything up to this order: the newest receipt without a thread (`m.read` or `m.read.private`), or the
    /// beginning of the membership.
    all: i64,
    /// What is in no thread, up to this order: the newest receipt of the thread `main`.
    main: i64,
    /// Threads read further than everything, by their root.
    threads: BTreeMap<String, i64>,
}

/// The unread events of the room that notify the user.
pub async fn unread(server: &Arc<Server>, user: &UserId, room: &LiveRoom) -> Result<Unread> {
    let view = room.current()?;
    let room_id = &view.row.room_id;
    let joined = server.live.membership(user, room_id).filter(|m| m.membership == "join");
    let Some(joined) = joined else { return Ok(Unread::default()) };
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
    let unread = counted.unread.clone();
    live.unread.lock().insert(room_id.clone(), counted);
    Ok(unread)
}

/// Counts in many rooms beside each other, so that [`unread`] knows the answers: after a start nothing is counted, and the
/// rules are asked about every unread event.
pub async fn prepare(server: &Arc<Server>, user: &UserId, room_ids: Vec<OwnedRoomId>) -> Result<()> {
    let mut counting = JoinSet::new();
    for chunk in room_ids.chunks(ROOMS_AT_ONCE) {
        if counting.len() >= COUNTERS
            && let Some(counted) = counting.join_next().await
        {
            counted??;
        }
        let (server, user, chunk) = (Arc::clone(server), user.to_owned(), chunk.to_vec());
        counting.spawn(async move {
            for room_id in chunk {
                let room = server.live.room(&server.db, &room_id).await?;
                unread(&server, &user, &room).await?;
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(counted) = counting.join_next().await {
        counted??;
    }
    Ok(())
}

/// Whether the user's receipts say that an event was read.
pub fn has_read(room: &LiveRoom, user: &UserId, event: &Event) -> bool {
    let read = Read::of(&room.receipts.read(), user, 0);
    event.position <= read.upto(thread_of(event).as_deref())
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
    let room_id = &view.row.room_id;
    let mut back = Back {
        counted: Counted { rules, ignored, read, upto, unread: Unread::default() },
        context: &context,
        written: BTreeMap::new(),
        seen: 0,
    };
    for event in newest.iter().rev() {
        if back.over(event).await.is_break() {
            return Ok(back.counted);
        }
    }
    // Memory does not reach back far enough. Once what is in no thread is read, only threads are asked for.
    let mut before = complete_after + 1;
    while before > back.counted.read.all + 1 {
        let mut conn = server.db.read().await?;
        let page = if before > back.main() + 1 {
            store::events::before(&mut conn, room_id, before, PAGE).await?
        } else {
            let after = back.counted.read.all;
            store::events::in_threads(&mut conn, room_id, (after, before), PAGE).await?
        };
        drop(conn);
        let Some(oldest) = page.last() else { break };
        before = oldest.position;
        for event in &page {
            if back.over(event).await.is_break() {
                return Ok(back.counted);
            }
        }
    }
    Ok(back.counted)
}

/// A count that goes back in time.
struct Back<'a> {
    counted: Counted,
    context: &'a PushConditionRoomCtx,
    /// Where the user wrote last, by thread ("" = none): who writes has read.
    written: BTreeMap<String, i64>,
    seen: usize,
}

impl Back<'_> {
    /// The order up to which what is in no thread is read.
    fn main(&self) -> i64 {
        self.written.get("").copied().unwrap_or(0).max(self.counted.read.main)
    }

    /// Counts an older event, or says that there is nothing more to count.
    async fn over(&mut self, event: &Event) -> ControlFlow<()> {
        self.seen += 1;
        if event.position <= self.counted.read.all || self.seen > EVENTS_MAX {
            return ControlFlow::Break(());
        }
        let thread = thread_of(event);
        let place = thread.as_deref().unwrap_or_default();
        if says_read(event, &self.context.user_id) {
            self.written.entry(place.to_owned()).or_insert(event.position);
        } else if !self.written.contains_key(place) {
            self.counted.count(event, thread.as_deref(), self.context).await;
        }
        ControlFlow::Continue(())
    }
}

impl Counted {
    async fn count(&mut self, event: &Event, thread: Option<&str>, context: &PushConditionRoomCtx) {
        if event.position <= self.read.upto(thread) || self.ignored.hides(event) {
            return;
        }
        let (notifies, highlights) = verdict(&rules::actions_in(&self.rules, event, context).await);
        if notifies {
            let count = self.unread.of(thread);
            count.notify += 1;
            count.highlight += u64::from(highlights);
        }
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
            let thread = thread_of(event);
            if says_read(event, user) {
                match &thread {
                    None => self.unread.main = Count::default(),
                    Some(root) => drop(self.unread.threads.remove(root)),
                }
            } else {
                self.count(event, thread.as_deref(), &context).await;
            }
        }
        Some(self)
    }
}

/// The root of the thread that an event is in.
fn thread_of(event: &Event) -> Option<String> {
    event
        .relation()
        .filter(|relation| relation.rel_type == "m.thread")
        .map(|relation| relation.event_id.clone())
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
        let newest = |of: &str, from: i64| {
            own.iter().filter(|(thread, _)| *thread == of).map(|(_, order)| *order).fold(from, i64::max)
        };
        let all = newest("", joined_at);
        let main = newest("main", all);
        let mut threads = BTreeMap::new();
        for (thread, order) in own {
            if !thread.is_empty() && thread != "main" && order > all {
                let newest = threads.entry(thread.to_owned()).or_insert(order);
                *newest = order.max(*newest);
            }
        }
        Self { all, main, threads }
    }

    /// Up to which order a thread was read, or what is in none.
    fn upto(&self, thread: Option<&str>) -> i64 {
        match thread {
            None => self.main,
            Some(root) => self.threads.get(root).copied().unwrap_or(self.all),
        }
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
            ("@b:example.jp", "m.read.private", "", 6),
            ("@b:example.jp", "m.read.private", "main", 8),
            ("@b:example.jp", "m.read", "main", 7),
            ("@b:example.jp", "m.read", "$t", 12),
            ("@b:example.jp", "m.read", "$old", 3),
            ("@c:example.jp", "m.read", "", 50),
        ]);
        let read = Read::of(&all, user_id!("@b:example.jp"), 2);
        assert_eq!((read.all, read.main), (6, 8));
        assert_eq!(read.upto(None), 8, "the main timeline");
        assert_eq!(read.upto(Some("$t")), 12, "a thread with a receipt of its own");
        assert_eq!(read.upto(Some("$old")), 6, "a thread whose receipt is older than everything's");
        assert_eq!(read.upto(Some("$other")), 6, "what is read of the main timeline says nothing of threads");
        assert_eq!(read.threads, BTreeMap::from([("$t".to_owned(), 12)]));
        assert_eq!(Read::of(&all, user_id!("@d:example.jp"), 2).all, 2);
    }

    #[test]
    fn a_highlight_counts_only_where_it_notifies() {
        let highlight: Action = serde_json::from_str(r#"{"set_tweak":"highlight"}"#).unwrap();
        assert_eq!(verdict(std::slice::from_ref(&highlight)), (false, false));
        assert_eq!(verdict(&[Action::Notify, highlight]), (true, true));
        assert_eq!(verdict(&[Action::Notify]), (true, false));
    }
}
