//! The request of a sliding sync, as today's clients send it (MSC4186 in the form of its unstable path), within limits.

use std::collections::{BTreeMap, BTreeSet};

use ruma::OwnedRoomId;
use serde::Deserialize;

use super::connection::RoomConfig;
use crate::error::{Result, invalid};

/// Lists in one request (MSC4186: 100).
const LISTS_MAX: usize = 100;
/// Ranges of one list, and entries of what a filter or a configuration names.
const ENTRIES_MAX: usize = 200;
/// Rooms subscribed to.
const SUBSCRIPTIONS_MAX: usize = 500;
/// Events in a timeline at most.
const TIMELINE_MAX: usize = 100;
/// Bytes of all `required_state` of one request: what a connection was told with is remembered for each room.
const STATE_BYTES_MAX: usize = 32 * 1024;
/// The longest name of a list or connection, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// The body of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Body {
    /// The connection's name.
    pub conn_id: Option<String>,
    /// Given back in the answer.
    pub txn_id: Option<String>,
    /// The lists by name.
    pub lists: BTreeMap<String, List>,
    /// Rooms that are told wherever they stand.
    pub room_subscriptions: BTreeMap<OwnedRoomId, Wants>,
    /// What else is wanted.
    pub extensions: Extensions,
}

/// What is wanted of a room.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Wants {
    /// Events in the timeline.
    pub timeline_limit: u64,
    /// State by (type, state key).
    pub required_state: Vec<(String, String)>,
}

/// A list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct List {
    /// Windows into the list, both ends included; none = all of it.
    pub ranges: Option<Vec<(u64, u64)>>,
    /// One window: the accepted proposal's form.
    pub range: Option<(u64, u64)>,
    /// Events in the timeline.
    pub timeline_limit: u64,
    /// State by (type, state key).
    pub required_state: Vec<(String, String)>,
    /// Which rooms are in it.
    pub filters: Option<Filters>,
}

/// Which rooms are in a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Filters {
    /// In the account data `m.direct`.
    pub is_dm: Option<bool>,
    /// Has an `m.room.encryption` state event.
    pub is_encrypted: Option<bool>,
    /// The user is invited.
    #[serde(alias = "is_invited")]
    pub is_invite: Option<bool>,
    /// The room type, `null` for none.
    pub room_types: Option<Vec<Option<String>>>,
    /// The same, inverted; wins.
    pub not_room_types: Option<Vec<Option<String>>>,
    /// One of these tags.
    pub tags: Option<Vec<String>>,
    /// None of these tags; wins.
    pub not_tags: Option<Vec<String>>,
    /// A child of one of these spaces, which the user is joined to.
    pub spaces: Option<Vec<OwnedRoomId>>,
}

/// What is wanted beside the rooms.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Extensions {
    /// Messages to the device.
    pub to_device: ToDevice,
    /// Device lists and key counts.
    pub e2ee: Switch,
    /// Account data.
    pub account_data: Switch,
    /// Receipts.
    pub receipts: Switch,
    /// Who types.
    pub typing: Switch,
}

/// An extension, on or off, and for which rooms.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Switch {
    /// On.
    pub enabled: Option<bool>,
    /// The lists whose rooms it is for; all where none is named.
    pub lists: Option<Vec<String>>,
    /// The subscribed rooms it is for; all where none is named.
    pub rooms: Option<Vec<String>>,
}

/// Messages to the device.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ToDevice {
    /// On.
    pub enabled: Option<bool>,
    /// So many at most.
    pub limit: Option<u64>,
    /// `next_batch` of the last answer: what came up to it has arrived.
    pub since: Option<String>,
}

impl Switch {
    /// Whether it is on.
    pub fn on(&self) -> bool {
        self.enabled == Some(true)
    }

    /// Whether it is for a room that is in these lists, or subscribed to.
    pub fn covers(&self, room_id: &str, lists: &BTreeSet<&str>, subscribed: bool) -> bool {
        let any = |wanted: &Option<Vec<String>>, name: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted.iter().any(|w| w == "*" || w == name))
        };
        self.on()
            && (lists.iter().any(|list| any(&self.lists, list)) || subscribed && any(&self.rooms, room_id))
    }
}

impl Body {
    /// Refuses what is beyond the limits.
    pub fn check(&self) -> Result<()> {
        if self.lists.len() > LISTS_MAX {
            return Err(invalid("At most 100 lists."));
        }
        if self.room_subscriptions.len() > SUBSCRIPTIONS_MAX {
            return Err(invalid("At most 500 room_subscriptions."));
        }
        let names = self.lists.keys().map(String::len).chain(self.conn_id.as_ref().map(String::len));
        if names.chain(self.txn_id.as_ref().map(String::len)).any(|length| length > NAME_BYTES_MAX) {
            return Err(invalid("A name has at most 255 bytes."));
        }
        for list in self.lists.values() {
            let filters = list.filters.as_ref();
            let counts = [
                list.ranges.as_ref().map_or(0, Vec::len),
                filters.and_then(|f| f.room_types.as_ref()).map_or(0, Vec::len),
                filters.and_then(|f| f.not_room_types.as_ref()).map_or(0, Vec::len),
                filters.and_then(|f| f.tags.as_ref()).map_or(0, Vec::len),
                filters.and_then(|f| f.not_tags.as_ref()).map_or(0, Vec::len),
                filters.and_then(|f| f.spaces.as_ref()).map_or(0, Vec::len),
            ];
            if counts.into_iter().any(|n| n > ENTRIES_MAX) {
                return Err(invalid("A list has at most 200 ranges and 200 entries in a filter."));
            }
            if list.ranges.iter().flatten().chain(&list.range).any(|(from, to)| from > to) {
                return Err(invalid("A range begins before it ends."));
            }
        }
        let of = &self.extensions;
        for switch in [&of.account_data, &of.receipts, &of.typing] {
            for named in [&switch.lists, &switch.rooms].into_iter().flatten() {
                if named.len() > SUBSCRIPTIONS_MAX || named.iter().any(|name| name.len() > NAME_BYTES_MAX) {
                    return Err(invalid("An extension names at most 500 lists and 500 rooms."));
                }
            }
        }
        let wants = self.lists.values().map(|list| &list.required_state);
        let mut bytes = 0;
        for state in wants.chain(self.room_subscriptions.values().map(|wants| &wants.required_state)) {
            if state.len() > ENTRIES_MAX || state.iter().any(|(k, s)| k.len().max(s.len()) > NAME_BYTES_MAX) {
                return Err(invalid("required_state has at most 200 entries of 255 bytes."));
            }
            bytes += state.iter().map(|(k, s)| k.len() + s.len()).sum::<usize>();
        }
        if bytes > STATE_BYTES_MAX {
            return Err(invalid("All required_state together has at most 32 KiB."));
        }
        Ok(())
    }
}

/// The configuration that a rule gives its rooms.
pub fn config(timeline_limit: u64, required: &[(String, String)]) -> RoomConfig {
    RoomConfig {
        timeline_limit: usize::try_from(timeline_limit).unwrap_or(TIMELINE_MAX).min(TIMELINE_MAX),
        required: required.iter().cloned().collect(),
    }
}

impl List {
    /// Whether a place in the filtered list is in a window.
    pub fn has(&self, index: usize) -> bool {
        let index = index as u64;
        let within = |(from, to): &(u64, u64)| (*from..=*to).contains(&index);
        match (&self.ranges, &self.range) {
            (None, None) => true,
            (ranges, range) => ranges.iter().flatten().chain(range).any(within),
        }
    }
}
