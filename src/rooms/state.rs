//! The current state of a room in memory: which event stands for each (type, state key).

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedUserId, UserId, events::StateEventType, events::room::member::MembershipState};
use std::collections::HashMap;

use super::pdu::Event;

/// Current state. Cloning shares everything; changing one entry copies only the map of its type.
#[derive(Clone, Debug, Default)]
pub struct RoomState {
    by_type: HashMap<StateEventType, Arc<BTreeMap<String, Arc<Event>>>>,
}

impl RoomState {
    /// The event of a type and state key.
    pub fn event(&self, kind: &StateEventType, state_key: &str) -> Option<&Arc<Event>> {
        self.by_type.get(kind)?.get(state_key)
    }

    /// Puts an event in its place and returns the one it replaces.
    pub fn set(&mut self, event: Arc<Event>) -> Option<Arc<Event>> {
        let state_key = event.state_key.clone()?;
        let kind = StateEventType::from(event.kind.to_string());
        Arc::make_mut(self.by_type.entry(kind).or_default()).insert(state_key, event)
    }

    /// Every event of the state.
    pub fn events(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.by_type.values().flat_map(|map| map.values())
    }

    /// Every event of one type.
    pub fn of_type(&self, kind: &StateEventType) -> impl Iterator<Item = &Arc<Event>> {
        self.by_type.get(kind).into_iter().flat_map(|map| map.values())
    }

    /// The membership of a user; `leave` where there is no event.
    pub fn membership(&self, user: &UserId) -> MembershipState {
        self.event(&StateEventType::RoomMember, user.as_str())
            .and_then(|e| e.membership.as_deref())
            .map_or(MembershipState::Leave, MembershipState::from)
    }

    /// The users with a membership.
    pub fn members(&self, membership: &str) -> impl Iterator<Item = (OwnedUserId, &Arc<Event>)> {
        self.of_type(&StateEventType::RoomMember).filter_map(move |event| {
            (event.membership.as_deref() == Some(membership))
                .then(|| OwnedUserId::try_from(event.state_key.as_deref().unwrap_or_default()).ok())
                .flatten()
                .map(|user| (user, event))
        })
    }

    /// A string field of a state event's content.
    pub fn content_str(&self, kind: &StateEventType, state_key: &str, field: &str) -> Option<String> {
        self.event(kind, state_key)?.content_str(field)
    }

    /// The history visibility; `shared` where none is set (client-server API, "Room history visibility").
    pub fn history_visibility(&self) -> String {
        self.content_str(&StateEventType::RoomHistoryVisibility, "", "history_visibility")
            .unwrap_or_else(|| "shared".to_owned())
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.by_type.values().map(|map| map.len()).sum()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.by_type.is_empty()
    }
}
