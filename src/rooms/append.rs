//! From an intent to an event in its room: authorised on the room's present state, built, hashed, signed, placed.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId,
    UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::{auth_types_for_event, check_state_dependent_auth_rules, check_state_independent_auth_rules},
};

use super::{
    batch::{Batch, RoomDraft, StateRow},
    committer::TxnKey,
    control_room,
    live::{Membership, RoomRow},
    pdu::{Draft, Event, Transaction},
    state::RoomState,
};
use crate::{
    config::{CreateRooms, Encryption},
    error::{Code, Error, Result, forbidden, not_found, refuse},
    store::{self, media::Medium},
};

/// An event that a unit wants in a room: a checked intent, not a finished event.
#[derive(Debug)]
pub struct Intent<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// Who sends it.
    pub sender: &'a UserId,
    /// The type.
    pub kind: TimelineEventType,
    /// The state key, of state events.
    pub state_key: Option<String>,
    /// The content.
    pub content: CanonicalJsonObject,
    /// What it redacts.
    pub redacts: Option<&'a EventId>,
    /// The time to show, of appservices; now otherwise.
    pub ts: Option<i64>,
    /// The client transaction.
    pub txn: Option<TxnKey>,
    /// Whether a closed room lets it through (removal by the server, reopening, ordered redaction).
    pub through_closed: bool,
}

impl<'a> Intent<'a> {
    /// A state event.
    pub fn state(
        room_id: &'a RoomId,
        sender: &'a UserId,
        kind: &str,
        state_key: &str,
        content: serde_json::Value,
    ) -> Result<Self> {
        Ok(Self {
            room_id,
            sender,
            kind: kind.into(),
            state_key: Some(state_key.to_owned()),
            content: canonical(content)?,
            redacts: None,
            ts: None,
            txn: None,
            through_closed: false,
        })
    }

    /// A message event.
    pub fn message(
        room_id: &'a RoomId,
        sender: &'a UserId,
        kind: &str,
        content: serde_json::Value,
    ) -> Result<Self> {
        Ok(Self { state_key: None, ..Self::state(room_id, sender, kind, "", content)? })
    }
}

/// Entries of state that a room has: members of the largest networks, and those of two people's rooms.
const STATE_MAX: usize = 20_000;
const DIRECT_STATE_MAX: usize = 500;

/// JSON of ours as canonical JSON.
pub fn canonical(value: serde_json::Value) -> Result<CanonicalJsonObject> {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        _ => Err(refuse(Code::BadJson, "The content must be a JSON object without fractional numbers.")),
    }
}

impl Batch {
    /// Makes a room: its create event, with the creator joined. The room id comes from the event in version 12.
    pub fn create_room(
        &mut self,
        creator: &UserId,
        version: RoomVersionId,
        kind: &str,
        mut content: CanonicalJsonObject,
    ) -> Result<OwnedRoomId> {
        let rules = rules_of(&version)?;
        content.insert("room_version".to_owned(), CanonicalJsonValue::String(version.to_string()));
        if !rules.authorization.use_room_create_sender {
            content.insert("creator".to_owned(), CanonicalJsonValue::String(creator.to_string()));
        }
        let position = self.next_position();
        let own_id = if rules.authorization.room_create_event_id_as_room_id {
            None
        } else {
            Some(RoomId::new_v1(&self.signer.server_name))
        };
        // Two rooms made by one sender in one millisecond with equal content would have one id in version 12:
        // the creation time is moved on until it is free.
        let mut ts = self.now;
        let event = loop {
            let draft = Draft {
                room_id: own_id.as_deref(),
                kind: &TimelineEventType::RoomCreate,
                state_key: Some(""),
                sender: creator,
                content: content.clone(),
                redacts: None,
                ts,
                depth: 1,
                prev_events: Vec::new(),
                auth_events: Vec::new(),
            };
            let event = draft.sign(&self.signer, &rules, position)?;
            if !self.rooms.contains_key(&event.room_id) && self.live.room_in_memory(&event.room_id).is_none()
            {
                break event;
            }
            ts += 1;
        };
        check_state_independent_auth_rules(&rules.authorization, &event, |_| None::<Arc<Event>>)
            .map_err(|why| refuse(Code::BadJson, format!("The room cannot be made: {why}.")))?;
        let room_id = event.room_id.clone();
        let row = RoomRow {
            room_id: room_id.clone(),
            version,
            head: Vec::new(),
            depth: 0,
            state_version: 0,
            last_position: 0,
            status: "open".to_owned(),
            kind: kind.to_owned(),
            room_number: None,
            facility: None,
            subject_key: None,
            created_at: self.now,
            closed_at: None,
            archived_at: None,
            opened_by_case: None,
        };
        self.undo.push((room_id.clone(), None));
        self.rooms.insert(
            room_id.clone(),
            RoomDraft { row, state: RoomState::default(), fresh: true, changed: true },
        );
        self.place(event, None)?;
        Ok(room_id)
    }

    /// Authorises an intent on the room's present state, builds the event and puts it at the room's head.
    /// A state event that changes nothing answers the present one.
    pub async fn append(&mut self, intent: Intent<'_>) -> Result<Arc<Event>> {
        if let Some(key) = &intent.txn
            && let Some(event_id) = self.known_txn(key)
        {
            return self.event(&event_id).await?.ok_or_else(|| not_found("No such event."));
        }
        self.room_mut(intent.room_id).await?;
        self.check_policy(&intent)?;
        control_room::check(self, &intent).await?;
        let room = self.rooms.get(intent.room_id).ok_or_else(|| not_found("No such room."))?;
        check_status(room, &intent)?;
        if let Some(state_key) = &intent.state_key {
            let kind = StateEventType::from(intent.kind.to_string());
            if let Some(present) = room.state.event(&kind, state_key)
                && present.sender == *intent.sender
                && present.content.get() == serde_json::to_string(&intent.content)?
            {
                let present = Arc::clone(present);
                check_sender_joined(room, &intent)?;
                return Ok(present);
            }
            if room.state.event(&kind, state_key).is_none() {
                check_state_fits(room, self.policy.create_rooms)?;
            }
        }
        let rules = rules_of(&room.row.version)?;
        let content = serde_json::value::to_raw_value(&intent.content)?;
        let auth_types = auth_types_for_event(
            &intent.kind,
            intent.sender,
            intent.state_key.as_deref(),
            &content,
            &rules.authorization,
        )
        .map_err(|why| refuse(Code::BadJson, format!("The event is not well formed: {why}.")))?;
        let auth_events = auth_types
            .iter()
            .filter_map(|(kind, key)| room.state.event(kind, key))
            .map(|event| event.event_id.clone())
            .collect();
        let draft = Draft {
            room_id: Some(intent.room_id),
            kind: &intent.kind,
            state_key: intent.state_key.as_deref(),
            sender: intent.sender,
            content: intent.content,
            redacts: intent.redacts,
            ts: intent.ts.unwrap_or(self.now),
            depth: room.row.depth + 1,
            prev_events: room.row.head.clone(),
            auth_events,
        };
        let mut event = draft.sign(&self.signer, &rules, self.position + 1)?;
        check_state_dependent_auth_rules(&rules.authorization, &event, |kind, key| {
            room.state.event(kind, key).cloned()
        })
        // Why is nobody's to know: it may hold what was sent.
        .map_err(|_| forbidden("You are not allowed to do this in this room."))?;
        self.next_position();
        event.txn = intent
            .txn
            .as_ref()
            .map(|key| Transaction { device_id: key.device_id.clone(), txn_id: key.txn_id.clone() });
        let event = self.place(event, intent.txn)?;
        self.link_media_of(&event).await?;
        Ok(event)
    }

    /// Links the media that an event shows to it, where its sender may read them (DESIGN 12).
    async fn link_media_of(&mut self, event: &Event) -> Result<()> {
        if !event.content.get().contains("mxc://") {
            return Ok(());
        }
        let content: serde_json::Value = serde_json::from_str(event.content.get())?;
        let server_name = self.signer.server_name.clone();
        for media_id in crate::media::links::media_ids(&content, &server_name) {
            let Some(medium) = store::media::medium(&mut self.conn, &media_id).await? else {
                // An id that waits for its content is its owner's to show.
                let waits = store::media::pending(&mut self.conn, &media_id).await?;
                if waits.is_some_and(|(owner, until)| owner == event.sender && until > self.now) {
                    self.link_media(&media_id, event.room_id.as_str(), event.event_id.as_str());
                }
                continue;
            };
            if self.may_show(&event.sender, &medium, true).await? {
                self.link_media(&media_id, event.room_id.as_str(), event.event_id.as_str());
            }
        }
        Ok(())
    }

    /// Whether somebody may show a medium: what others have shown where they are, and what they uploaded themselves while no
    /// room shows it, or where it is `anywhere` their picture. What a room has shown belongs to the room; else who was
    /// removed from it would get its photographs back by showing them elsewhere.
    pub async fn may_show(&mut self, user_id: &UserId, medium: &Medium, anywhere: bool) -> Result<bool> {
        let links = store::media::links(&mut self.conn, &medium.media_id).await?;
        let mut rooms = links.iter().filter(|(room_id, _)| !room_id.is_empty()).peekable();
        let own = medium.user_id == *user_id
            && (rooms.peek().is_none()
                || self.policy.former_members_read == "until_leave"
                || anywhere && links.iter().any(|(room_id, _)| room_id.is_empty()));
        Ok(own
            || rooms.any(|(room_id, _)| {
                <&RoomId>::try_from(room_id.as_str()).is_ok_and(|id| self.live.is_joined(user_id, id))
            }))
    }

    /// Puts a signed and authorised event at its room's head.
    fn place(&mut self, event: Event, txn: Option<TxnKey>) -> Result<Arc<Event>> {
        let event = Arc::new(event);
        let room = self
            .rooms
            .get_mut(&event.room_id)
            .ok_or_else(|| Error::internal("an event was placed in a room that is not open in this batch"))?;
        room.row.head = vec![event.event_id.clone()];
        room.row.depth = event.depth;
        room.row.last_position = event.position;
        if let Some(state_key) = &event.state_key {
            room.row.state_version = event.position;
            let replaced = room.state.set(Arc::clone(&event));
            let had = replaced.is_some();
            // What it replaced is known here for nothing; from the database it would cost a query.
            let _ = event.extra.set(super::pdu::Extra { replaces: replaced.map(shallow), because: None });
            if had {
                let open = self.pending.state.iter_mut().rev().find(|row| {
                    row.to.is_none()
                        && row.room_id == event.room_id
                        && row.state_key == *state_key
                        && row.kind == event.kind.to_string()
                });
                match open {
                    Some(row) => row.to = Some(event.position),
                    None => self.pending.ends.push((
                        event.room_id.clone(),
                        event.kind.to_string(),
                        state_key.clone(),
                        event.position,
                    )),
                }
            }
            self.pending.state.push(StateRow {
                room_id: event.room_id.clone(),
                kind: event.kind.to_string(),
                state_key: state_key.clone(),
                event_id: event.event_id.clone(),
                from: event.position,
                to: None,
            });
            if let (Some(membership), Ok(user_id)) =
                (event.membership.clone(), OwnedUserId::try_from(state_key.as_str()))
            {
                self.set_membership(user_id, &event, membership);
            }
        }
        if let Some(key) = txn {
            self.known_txns.insert(key.clone(), event.event_id.clone());
            self.pending.txns.push((key, event.event_id.clone(), self.now));
        }
        self.pending.events.push(Arc::clone(&event));
        Ok(event)
    }

    fn set_membership(&mut self, user_id: OwnedUserId, event: &Event, membership: String) {
        let before = self
            .pending
            .memberships
            .iter()
            .rev()
            .find(|(user, room, _)| *user == user_id && *room == event.room_id)
            .map(|(_, _, m)| m.clone())
            .or_else(|| self.live.membership(&user_id, &event.room_id));
        let changed_at = match before {
            Some(before) if before.membership == membership => before.changed_at,
            _ => event.position,
        };
        let row = Membership {
            membership,
            event_id: event.event_id.clone(),
            changed_at,
            position: event.position,
            forgotten: false,
        };
        self.pending.touched.push((user_id.clone(), event.position));
        self.pending.memberships.push((user_id, event.room_id.clone(), row));
    }

    fn check_policy(&self, intent: &Intent<'_>) -> Result<()> {
        let text = |field: &str| intent.content.get(field).and_then(CanonicalJsonValue::as_str);
        match &intent.kind {
            TimelineEventType::RoomEncryption | TimelineEventType::RoomEncrypted => {
                if self.policy.encryption == Encryption::Forbidden {
                    return Err(forbidden(
                        "Encryption between users is switched off on this server (部屋の暗号化はできません).",
                    ));
                }
                // What the city has opened it files, searches and audits, whatever people do in rooms of their own.
                let kind = self.rooms.get(intent.room_id).map(|room| room.row.kind.as_str());
                if !matches!(kind, Some("direct" | "other")) {
                    return Err(forbidden(
                        "Rooms that the city opens are not encrypted (市が開設した部屋は暗号化できません).",
                    ));
                }
            }
            TimelineEventType::RoomJoinRules
                if !self.takes_join_rule(text("join_rule").unwrap_or_default()) =>
            {
                return Err(forbidden("Rooms of this join rule are switched off on this server."));
            }
            TimelineEventType::RoomMember if text("membership") == Some("knock") && !self.policy.knocking => {
                return Err(forbidden("Knocking is switched off on this server (入室の申請はできません)."));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the policies allow rooms of a join rule.
    pub fn takes_join_rule(&self, rule: &str) -> bool {
        match rule {
            "knock" => self.policy.knocking,
            "restricted" => self.policy.restricted_joins,
            "knock_restricted" => self.policy.knocking && self.policy.restricted_joins,
            _ => true,
        }
    }
}

/// A copy of an event without what it replaced itself: a chain of them would never be dropped.
fn shallow(event: Arc<Event>) -> Arc<Event> {
    if event.extra.get().is_none_or(|extra| extra.replaces.is_none()) {
        return event;
    }
    match Event::from_pdu(&event.pdu, event.event_id.clone(), event.room_id.clone(), event.position) {
        Ok(copy) => Arc::new(copy),
        Err(_) => event,
    }
}

/// The rules of a room version that Heya offers.
pub fn rules_of(version: &RoomVersionId) -> Result<RoomVersionRules> {
    match version {
        RoomVersionId::V10 | RoomVersionId::V11 | RoomVersionId::V12 => version
            .rules()
            .ok_or_else(|| refuse(Code::UnsupportedRoomVersion, "This room version is not offered.")),
        _ => Err(refuse(Code::UnsupportedRoomVersion, "This room version is not offered: use 12, 11 or 10.")),
    }
}

/// All of a room's state is held in memory, and goes to whoever comes in.
fn check_state_fits(room: &RoomDraft, made_by: CreateRooms) -> Result<()> {
    // Only where the city makes the others is a direct room one of two.
    let of_two = made_by == CreateRooms::City && room.row.kind == "direct";
    let max = if of_two { DIRECT_STATE_MAX } else { STATE_MAX };
    if room.state.len() < max {
        return Ok(());
    }
    Err(refuse(Code::TooLarge, format!("A room has at most {max} entries of state.")))
}

/// A closed room takes nothing more (DESIGN 15), whoever asks.
fn check_status(room: &RoomDraft, intent: &Intent<'_>) -> Result<()> {
    if room.row.status == "open" || intent.through_closed {
        return Ok(());
    }
    let leaves = intent.kind == TimelineEventType::RoomMember
        && intent.state_key.as_deref() == Some(intent.sender.as_str())
        && intent.content.get("membership").and_then(CanonicalJsonValue::as_str) == Some("leave");
    if leaves {
        return Ok(());
    }
    Err(forbidden(
        "This room has been closed: it can be read, and nothing can be added (この部屋は終了しました).",
    )
    .with("jp.heya.room", room.row.status.clone()))
}

/// A repeated state event is answered only to someone who could have sent it.
fn check_sender_joined(room: &RoomDraft, intent: &Intent<'_>) -> Result<()> {
    if room.state.membership(intent.sender) == ruma::events::room::member::MembershipState::Join {
        return Ok(());
    }
    Err(forbidden("You are not allowed to do this in this room."))
}
