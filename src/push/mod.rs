//! Push: rules, unread counts, pushers, the follower that hands notifications to the e-mail bridge, and one for each
//! push gateway (DESIGN 18).

pub mod counts;
pub mod follower;
pub mod gateways;
pub mod importance;
pub mod rules;

use std::collections::{BTreeSet, HashMap};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId, events::TimelineEventType, push::Action};
use serde::Deserialize;
use tokio::sync::Notify;

pub use crate::store::push::Pusher;
use crate::{
    error::Result,
    rooms::{
        live::{
            RoomView,
            parking::{Mutex, RwLock},
        },
        pdu::Event,
    },
    server::Server,
    store::{self, Db},
};

/// Rooms read and not yet told to the bridge, at most; beyond it a mail may come for something read already.
const READS_MAX: usize = 10_000;

/// Everybody's pushers, in memory. Units change them in an `after_commit` hook.
#[derive(Default)]
pub struct Pushers {
    by_user: RwLock<HashMap<OwnedUserId, Vec<Pusher>>>,
    reads: Mutex<BTreeSet<(OwnedUserId, OwnedRoomId)>>,
    /// Told when a room was read by someone with a pusher.
    pub(crate) read_waits: Notify,
    /// Whose counts a gateway shows may have fallen: (its origin, the user).
    counts_fell: Mutex<BTreeSet<(String, OwnedUserId)>>,
    /// The origins of the gateways that may be used.
    listed: Vec<String>,
    /// Told when something was put there.
    pub(crate) count_waits: Notify,
    /// Held while rules are read, changed and written back: two changes at once both stay.
    pub(crate) changing_rules: tokio::sync::Mutex<()>,
}

impl Pushers {
    /// Reads them all.
    pub async fn load(db: &Db, listed: Vec<String>) -> Result<Self> {
        let mut conn = db.read().await?;
        let pushers = Self { listed, ..Self::default() };
        for pusher in store::push::all_pushers(&mut conn).await? {
            pushers.set(pusher);
        }
        Ok(pushers)
    }

    /// A user's pushers.
    pub fn of(&self, user: &UserId) -> Vec<Pusher> {
        self.by_user.read().get(user).cloned().unwrap_or_default()
    }

    /// Whether a user has one.
    pub fn has(&self, user: &UserId) -> bool {
        self.by_user.read().contains_key(user)
    }

    /// Whether nobody has one.
    pub fn is_empty(&self) -> bool {
        self.by_user.read().is_empty()
    }

    /// Sets a pusher.
    pub fn set(&self, pusher: Pusher) {
        let Ok(user) = OwnedUserId::try_from(pusher.user_id.as_str()) else { return };
        let mut all = self.by_user.write();
        let own = all.entry(user).or_default();
        match own.iter_mut().find(|p| p.app_id == pusher.app_id && p.pushkey == pusher.pushkey) {
            Some(present) => *present = pusher,
            None => own.push(pusher),
        }
    }

    /// Removes a pusher.
    pub fn remove(&self, user: &UserId, app_id: &str, pushkey: &str) {
        let mut all = self.by_user.write();
        if let Some(own) = all.get_mut(user) {
            own.retain(|p| p.app_id != app_id || p.pushkey != pushkey);
            if own.is_empty() {
                all.remove(user);
            }
        }
    }

    /// Removes the same app's pusher of everybody else.
    pub fn remove_of_others(&self, user: &UserId, app_id: &str, pushkey: &str) {
        self.by_user.write().retain(|of, own| {
            if of != user {
                own.retain(|p| p.app_id != app_id || p.pushkey != pushkey);
            }
            !own.is_empty()
        });
    }

    /// Sets what is left of a user's pushers after a change.
    pub fn replace(&self, user: &UserId, left: Vec<Pusher>) {
        let mut all = self.by_user.write();
        if left.is_empty() {
            all.remove(user);
        } else {
            all.insert(user.to_owned(), left);
        }
    }

    /// Forgets all pushers of a user.
    pub fn forget(&self, user: &UserId) {
        self.by_user.write().remove(user);
    }

    /// A user's receipt in a room has moved (called after the commit): mail not yet sent may be cancelled.
    pub fn read(&self, user: &UserId, room_id: &RoomId) {
        let own = self.of(user);
        let gateways: Vec<String> = own.iter().filter_map(gateways::origin).collect();
        if own.len() > gateways.len() {
            let mut reads = self.reads.lock();
            if reads.len() < READS_MAX {
                reads.insert((user.to_owned(), room_id.to_owned()));
            }
            drop(reads);
            self.read_waits.notify_one();
        }
        if !gateways.is_empty() {
            let mut fell = self.counts_fell.lock();
            for gateway in gateways {
                // Nobody would take those of a gateway that is not (or no longer) on the list.
                if fell.len() < READS_MAX && self.listed.contains(&gateway) {
                    fell.insert((gateway, user.to_owned()));
                }
            }
            drop(fell);
            self.count_waits.notify_waiters();
        }
    }

    /// Whose counts a gateway shows may have fallen since this was last asked.
    pub(crate) fn take_counts_fell(&self, gateway: &str) -> Vec<OwnedUserId> {
        let mut taken = Vec::new();
        self.counts_fell.lock().retain(|(of, user)| {
            let goes = of == gateway;
            if goes {
                taken.push(user.clone());
            }
            !goes
        });
        taken
    }

    /// Removes the pushers that these devices of a user set.
    pub fn remove_of_devices(&self, user: &UserId, devices: &[String]) {
        let mut all = self.by_user.write();
        if let Some(own) = all.get_mut(user) {
            own.retain(|p| p.device_id.as_ref().is_none_or(|device| !devices.contains(device)));
            if own.is_empty() {
                all.remove(user);
            }
        }
    }

    /// The next room that was read.
    pub(crate) fn next_read(&self) -> Option<(OwnedUserId, OwnedRoomId)> {
        self.reads.lock().pop_first()
    }
}

/// Why someone is told of an event; what a pusher wants is chosen by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// They are mentioned, or a rule of theirs highlights it.
    Highlight,
    /// They are invited.
    Invite,
    /// The city has put them into a room.
    Opening,
    /// A message in a room of two.
    Direct,
    /// Any other message.
    Message,
}

/// What decides about the scope, beside the event and the rules.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// `@city`.
    pub city: &'a UserId,
    /// Whether the room is one of the city's.
    pub city_room: bool,
    /// Whether it is a room of two.
    pub direct: bool,
}

impl<'a> Place<'a> {
    /// What a room is.
    pub fn of(server: &'a Server, view: &RoomView) -> Self {
        Self {
            city: &server.city_user,
            city_room: view.row.room_number.is_some(),
            direct: view.row.kind == "direct",
        }
    }
}

impl Scope {
    /// The scope of an event for a user; none where the rules do not notify.
    pub fn of(event: &Event, user: &UserId, place: Place<'_>, actions: &[Action]) -> Option<Self> {
        let (notifies, highlights) = counts::verdict(actions);
        if !notifies {
            return None;
        }
        if concerns(event, user) {
            // Members of the city's rooms are added: `@city` invites and the server joins them in the same unit, so
            // that this invitation is the opening (DESIGN 14).
            let opening = place.city_room && event.sender == *place.city;
            return Some(if opening { Self::Opening } else { Self::Invite });
        }
        Some(if highlights || mentions(event, user) {
            Self::Highlight
        } else if place.direct {
            Self::Direct
        } else {
            Self::Message
        })
    }

    /// Whether a pusher with this choice wants it.
    pub fn wanted(self, chosen: Chosen) -> bool {
        match self {
            Self::Highlight | Self::Invite | Self::Opening => true,
            Self::Direct => chosen != Chosen::Addressed,
            Self::Message => chosen == Chosen::All,
        }
    }

    /// Its word in a notification's data.
    pub fn word(self) -> &'static str {
        match self {
            Self::Highlight => "highlight",
            Self::Invite => "invite",
            Self::Opening => "opening",
            Self::Direct => "direct",
            Self::Message => "message",
        }
    }

    /// Whether it is about a person and not only to a room.
    pub fn is_urgent(self) -> bool {
        matches!(self, Self::Highlight | Self::Invite | Self::Opening)
    }
}

/// Whether this is the user's own member event.
pub(crate) fn concerns(event: &Event, user: &UserId) -> bool {
    event.kind == TimelineEventType::RoomMember && event.state_key.as_deref() == Some(user.as_str())
}

/// Whether the event mentions the user by name (client-server API, "User and room mentions").
fn mentions(event: &Event, user: &UserId) -> bool {
    let named = event.content_field("m.mentions");
    named
        .as_ref()
        .and_then(|mentions| mentions.get("user_ids")?.as_array())
        .is_some_and(|ids| ids.iter().any(|id| id.as_str() == Some(user.as_str())))
}

/// What a user has chosen to be told by a pusher (`jp.heya.scope` in the pusher's data).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chosen {
    /// Highlights, invitations, openings.
    #[default]
    Addressed,
    /// These and direct messages.
    Direct,
    /// Everything that notifies.
    All,
}

impl Chosen {
    /// The choice by its word; none for a word that is not one.
    pub fn of(word: &str) -> Option<Self> {
        match word {
            "highlight" => Some(Self::Addressed),
            "direct" => Some(Self::Direct),
            "all" => Some(Self::All),
            _ => None,
        }
    }
}

/// What of a stored pusher's JSON matters here.
#[derive(Debug, Default, Deserialize)]
pub struct Setting {
    /// `email` or `http`.
    #[serde(default)]
    pub kind: String,
    /// The language asked for.
    #[serde(default)]
    pub lang: String,
    #[serde(default)]
    pub(crate) data: serde_json::Map<String, serde_json::Value>,
}

impl Setting {
    /// Reads it; what cannot be read is a pusher of no kind, which nothing is sent to.
    pub fn of(pusher: &Pusher) -> Self {
        serde_json::from_str(&pusher.pusher).unwrap_or_default()
    }

    /// The scope chosen.
    pub fn chosen(&self) -> Chosen {
        self.scope().and_then(Chosen::of).unwrap_or_default()
    }

    /// The scope's word as it was set.
    pub fn scope(&self) -> Option<&str> {
        self.data.get(SCOPE)?.as_str()
    }
}

/// The field of a pusher's data with the chosen scope, and of a notification's data with its own.
pub const SCOPE: &str = "jp.heya.scope";

#[cfg(test)]
mod tests {
    use ruma::{owned_event_id, owned_room_id, room_id, user_id};
    use serde_json::{Value, json};

    use super::*;

    fn pusher(user: &str, key: &str, json: &str) -> Pusher {
        Pusher {
            user_id: user.to_owned(),
            app_id: "m.email".to_owned(),
            pushkey: key.to_owned(),
            id: key.to_owned(),
            pusher: json.to_owned(),
            device_id: Some("D".to_owned()),
            created_at: 0,
        }
    }

    #[test]
    fn pushers_come_and_go() {
        let (a, b) = (user_id!("@a:example.jp"), user_id!("@b:example.jp"));
        let pushers = Pushers::default();
        pushers.set(pusher("@a:example.jp", "x@example.jp", "{}"));
        pushers.set(pusher("@a:example.jp", "x@example.jp", "{\"lang\":\"ja\"}"));
        pushers.set(pusher("@b:example.jp", "x@example.jp", "{}"));
        assert_eq!(pushers.of(a).len(), 1);
        pushers.remove_of_others(a, "m.email", "x@example.jp");
        assert!(pushers.has(a) && !pushers.has(b));
        pushers.read(b, room_id!("!r:example.jp"));
        assert_eq!(pushers.next_read(), None);
        pushers.read(a, room_id!("!r:example.jp"));
        pushers.read(a, room_id!("!r:example.jp"));
        assert!(pushers.next_read().is_some());
        assert_eq!(pushers.next_read(), None);
        pushers.remove(a, "m.email", "x@example.jp");
        assert!(pushers.is_empty());
        pushers.replace(b, vec![pusher("@b:example.jp", "y@example.jp", "{}")]);
        assert!(pushers.has(b));
        pushers.forget(b);
        assert!(pushers.is_empty());
        pushers.set(pusher("@b:example.jp", "z@example.jp", "{}"));
        pushers.remove_of_devices(b, &["OTHER".to_owned()]);
        assert!(pushers.has(b));
        pushers.remove_of_devices(b, &["D".to_owned()]);
        assert!(pushers.is_empty());
    }

    #[test]
    fn the_scope_is_read() {
        let of = |json: &str| Setting::of(&pusher("@a:example.jp", "x", json)).chosen();
        assert_eq!(of(r#"{"kind":"email","data":{"jp.heya.scope":"all"}}"#), Chosen::All);
        assert_eq!(of(r#"{"kind":"email","data":{"brand":"x"}}"#), Chosen::Addressed);
        assert_eq!(of("nonsense"), Chosen::Addressed);
    }

    const CITY: &str = "@city:example.jp";
    const USER: &str = "@p100001:example.jp";

    fn event(kind: &str, sender: &str, state_key: Option<&str>, content: Value) -> Event {
        let mut pdu = json!({
            "type": kind, "sender": sender, "origin_server_ts": 1, "depth": 1, "content": content,
            "prev_events": [], "auth_events": [],
        });
        if let Some(state_key) = state_key {
            pdu["state_key"] = state_key.into();
        }
        let id = owned_event_id!("$event");
        Event::from_pdu(&pdu.to_string(), id, owned_room_id!("!room:example.jp"), 1).unwrap()
    }

    fn scope(event: &Event, city_room: bool, direct: bool, actions: &[Action]) -> Option<Scope> {
        let place = Place { city: <&UserId>::try_from(CITY).unwrap(), city_room, direct };
        Scope::of(event, user_id!("@p100001:example.jp"), place, actions)
    }

    #[test]
    fn scopes_are_told_apart() {
        let notify = [Action::Notify];
        let highlight =
            [Action::Notify, serde_json::from_str::<Action>(r#"{"set_tweak":"highlight"}"#).unwrap()];
        let message = event("m.room.message", "@p100002:example.jp", None, json!({"body": "x"}));
        assert_eq!(scope(&message, true, false, &[]), None);
        assert_eq!(scope(&message, true, false, &notify), Some(Scope::Message));
        assert_eq!(scope(&message, false, true, &notify), Some(Scope::Direct));
        assert_eq!(scope(&message, false, true, &highlight), Some(Scope::Highlight));
        let named =
            event("m.room.message", "@p100002:example.jp", None, json!({"m.mentions": {"user_ids": [USER]}}));
        assert_eq!(scope(&named, true, false, &notify), Some(Scope::Highlight));
        let invite = json!({"membership": "invite"});
        let opening = event("m.room.member", CITY, Some(USER), invite.clone());
        assert_eq!(scope(&opening, true, false, &notify), Some(Scope::Opening));
        assert_eq!(scope(&opening, false, false, &notify), Some(Scope::Invite));
        let invited = event("m.room.member", "@p100002:example.jp", Some(USER), invite);
        assert_eq!(scope(&invited, false, false, &notify), Some(Scope::Invite));
    }

    #[test]
    fn a_pusher_gets_what_it_chose() {
        for scope in [Scope::Highlight, Scope::Invite, Scope::Opening] {
            assert!(scope.wanted(Chosen::Addressed));
        }
        assert!(!Scope::Direct.wanted(Chosen::Addressed) && Scope::Direct.wanted(Chosen::Direct));
        assert!(!Scope::Message.wanted(Chosen::Direct) && Scope::Message.wanted(Chosen::All));
    }
}
