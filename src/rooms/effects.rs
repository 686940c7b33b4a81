//! What a batch announces: memory first, then whoever waits. Called after COMMIT and never before.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};

use super::{
    batch::{Pending, RoomDraft},
    committer::Context,
    live::{Change, RoomView},
};
use crate::audit;

/// What is announced after the commit.
pub struct Effects {
    pub(super) position: i64,
    pub(super) rooms: HashMap<OwnedRoomId, RoomDraft>,
    pub(super) pending: Pending,
    pub(super) chain: audit::Chain,
    pub(super) audit_heads: Vec<String>,
}

impl Effects {
    /// Brings memory up to date and wakes whoever waits. Called after COMMIT and never before.
    pub fn publish(self, context: &mut Context) {
        let live = &context.live;
        context.chain = self.chain;
        context.chain.write_heads(&self.audit_heads);
        let mut touched: BTreeMap<OwnedUserId, i64> = BTreeMap::new();
        let mut touch = |user_id: &UserId, at: i64| {
            let newest = touched.entry(user_id.to_owned()).or_insert(at);
            *newest = (*newest).max(at);
        };
        let mut changes: HashMap<OwnedRoomId, Vec<Change>> = HashMap::new();
        for event in &self.pending.events {
            changes.entry(event.room_id.clone()).or_default().push(Change::Event(Arc::clone(event)));
        }
        for redacted in &self.pending.redacted {
            let event = Arc::clone(&redacted.event);
            changes.entry(event.room_id.clone()).or_default().push(Change::Replaced(event));
        }
        for receipt in &self.pending.receipts {
            changes.entry(receipt.room_id.clone()).or_default().push(Change::Receipt(receipt.clone()));
            if receipt.kind != "m.read" {
                touch(&receipt.user_id, receipt.position);
            }
        }
        let public_receipts: HashMap<&RoomId, i64> = self
            .pending
            .receipts
            .iter()
            .filter(|receipt| receipt.kind == "m.read")
            .map(|receipt| (&*receipt.room_id, receipt.position))
            .collect();
        for (room_id, room) in &self.rooms {
            let newest = public_receipts.get(&**room_id).copied();
            if room.changed || newest.is_some() {
                let at = newest.unwrap_or_default().max(room.row.last_position);
                for (user_id, _) in room.state.members("join") {
                    touch(&user_id, at);
                }
            }
            if room.changed {
                changes.entry(room_id.clone()).or_default().push(Change::Row(room.row.clone()));
            }
        }
        // A receipt alone does not open its room in the batch: the members come from memory.
        for (room_id, at) in &public_receipts {
            if !self.rooms.contains_key(*room_id)
                && let Some(view) = live.room_in_memory(room_id).and_then(|room| room.view())
            {
                for (user_id, _) in view.state.members("join") {
                    touch(&user_id, *at);
                }
            }
        }
        for (room_id, room) in self.rooms {
            if room.fresh {
                let events: Vec<_> =
                    self.pending.events.iter().filter(|e| e.room_id == room_id).cloned().collect();
                changes.remove(&room_id);
                live.insert(RoomView { row: room.row, state: room.state }, events);
            }
        }
        for (room_id, list) in changes {
            live.merge(&room_id, list);
        }
        for event in &self.pending.events {
            if event.kind == ruma::events::TimelineEventType::RoomEncryption
                && event.state_key.as_deref() == Some("")
            {
                live.lists.became_encrypted(&event.room_id, event.position);
            }
        }
        for (user_id, room_id, membership) in self.pending.memberships {
            live.set_membership(&user_id, &room_id, membership);
        }
        for (user_id, at) in &self.pending.personal {
            let user = live.user(user_id);
            user.generation.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            user.personal_position.fetch_max(*at, std::sync::atomic::Ordering::AcqRel);
            touch(user_id, *at);
        }
        for (user_id, at) in &self.pending.touched {
            touch(user_id, *at);
        }
        for work in self.pending.after {
            work();
        }
        live.advance(self.position, &touched);
    }
}
