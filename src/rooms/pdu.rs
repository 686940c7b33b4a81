//! True PDUs of room versions 10, 11 and 12: built, hashed, signed; and the form that clients read.
//!
//! An [`Event`] is immutable and shared. Its canonical JSON is kept as it was hashed; the client form is made
//! once, without `unsigned`, which is spliced in per recipient (DESIGN 9).

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedUserId, RoomId, UserId,
    events::TimelineEventType,
    room_version_rules::RoomVersionRules,
    signatures::{Ed25519KeyPair, hash_and_sign_event, reference_hash},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Code, Error, Result, refuse};

/// The largest event, in bytes of canonical JSON with signatures (client-server API, "Size limits").
pub const EVENT_BYTES_MAX: usize = 65_535;

/// An event as Heya keeps it.
#[derive(Debug)]
pub struct Event {
    /// The reference hash, with `$`.
    pub event_id: OwnedEventId,
    /// The room.
    pub room_id: OwnedRoomId,
    /// The type.
    pub kind: TimelineEventType,
    /// The state key, of state events.
    pub state_key: Option<String>,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Milliseconds since 1970, by the sender's server.
    pub ts: i64,
    /// Position in the one sequence, and order in the room (equal for what this server made).
    pub position: i64,
    /// Length of the longest path from the room's creation.
    pub depth: i64,
    /// The content, as canonical JSON.
    pub content: Box<RawValue>,
    /// The whole event, as canonical JSON.
    pub pdu: Arc<str>,
    /// The client form without `unsigned` and without the closing brace.
    pub client: Box<str>,
    /// The events before and those that allow it, once somebody asks: most events are only shown.
    parents: std::sync::OnceLock<Parents>,
    /// What it redacts.
    pub redacts: Option<OwnedEventId>,
    /// The sending device and its transaction id.
    pub txn: Option<Transaction>,
    /// The redaction that emptied it.
    pub redacted_by: Option<OwnedEventId>,
    /// The membership, of a member event.
    pub membership: Option<String>,
    /// What `unsigned` tells beside the event itself; filled by `rooms::history::complete` where it is not known.
    pub extra: std::sync::OnceLock<Extra>,
    /// What it relates to, once somebody has asked.
    related: std::sync::OnceLock<Option<Relation>>,
}

/// `m.relates_to` of an event (client-server API, "Forming relationships between events").
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Relation {
    /// The event related to.
    pub event_id: String,
    /// How.
    pub rel_type: String,
    /// The annotation's key.
    pub key: Option<String>,
}

/// What stands around an event: what it replaced and what redacted it.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// The state event that this one replaced.
    pub replaces: Option<Arc<Event>>,
    /// The redaction of this event.
    pub because: Option<Arc<Event>>,
}

/// Which request made an event: its sender's device sees the transaction id in `unsigned`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The device.
    pub device_id: String,
    /// The id that the client chose.
    pub txn_id: String,
}

/// What an event is made of before it has a place in its room.
#[derive(Debug)]
pub struct Draft<'a> {
    /// The room; none for the create event of a version that derives the room id from it.
    pub room_id: Option<&'a RoomId>,
    /// The type.
    pub kind: &'a TimelineEventType,
    /// The state key, of state events.
    pub state_key: Option<&'a str>,
    /// Who sends it.
    pub sender: &'a UserId,
    /// The content, as canonical JSON.
    pub content: CanonicalJsonObject,
    /// What it redacts.
    pub redacts: Option<&'a EventId>,
    /// Milliseconds since 1970.
    pub ts: i64,
    /// Depth.
    pub depth: i64,
    /// The room's head.
    pub prev_events: Vec<OwnedEventId>,
    /// The events that allow it.
    pub auth_events: Vec<OwnedEventId>,
}

/// Who signs: the server's name and its key.
pub struct Signer {
    /// The server's name.
    pub server_name: ruma::OwnedServerName,
    /// The ed25519 key.
    pub key: Ed25519KeyPair,
}

fn ids(list: &[OwnedEventId]) -> CanonicalJsonValue {
    CanonicalJsonValue::Array(list.iter().map(|id| CanonicalJsonValue::String(id.to_string())).collect())
}

fn int(n: i64) -> Result<CanonicalJsonValue> {
    Ok(CanonicalJsonValue::Integer(
        ruma::Int::try_from(n).map_err(|_| Error::internal("a number beyond 2^53"))?,
    ))
}

impl Draft<'_> {
    /// Hashes, signs and names the event. The position is set by the committer.
    pub fn sign(self, signer: &Signer, rules: &RoomVersionRules, position: i64) -> Result<Event> {
        let mut object = CanonicalJsonObject::new();
        let mut put = |key: &str, value: CanonicalJsonValue| object.insert(key.to_owned(), value);
        if let Some(room_id) = self.room_id {
            put("room_id", CanonicalJsonValue::String(room_id.to_string()));
        }
        put("type", CanonicalJsonValue::String(self.kind.to_string()));
        put("sender", CanonicalJsonValue::String(self.sender.to_string()));
        if let Some(state_key) = self.state_key {
            put("state_key", CanonicalJsonValue::String(state_key.to_owned()));
        }
        let mut content = self.content;
        if let Some(redacts) = self.redacts {
            // Room version 11 moved `redacts` into the content (MSC2174).
            let id = CanonicalJsonValue::String(redacts.to_string());
            if rules.redaction.content_field_redacts {
                content.insert("redacts".to_owned(), id);
            } else {
                put("redacts", id);
            }
        }
        put("content", CanonicalJsonValue::Object(content));
        put("origin_server_ts", int(self.ts)?);
        put("depth", int(self.depth)?);
        put("prev_events", ids(&self.prev_events));
        put("auth_events", ids(&self.auth_events));
        if let Err(error) =
            hash_and_sign_event(signer.server_name.as_str(), &signer.key, &mut object, &rules.redaction)
        {
            return Err(too_large_or(error));
        }
        let event_id =
            OwnedEventId::try_from(format!("${}", reference_hash(&object, rules).map_err(too_large_or)?))?;
        ruma::state_res::check_pdu_format(&object, &rules.event_format).map_err(|_| too_large())?;
        let pdu = serde_json::to_string(&object)?;
        if pdu.len() > EVENT_BYTES_MAX {
            return Err(too_large());
        }
        let room_id = match self.room_id {
            Some(room_id) => room_id.to_owned(),
            // Room version 12: the room id is the create event's hash (MSC4291).
            None => OwnedRoomId::try_from(format!("!{}", &event_id.as_str()[1..]))?,
        };
        Event::from_pdu(&pdu, event_id, room_id, position)
    }
}

fn too_large() -> Error {
    refuse(Code::TooLarge, "The message is too large: an event may have at most 65,535 bytes.")
}

fn too_large_or(error: ruma::signatures::JsonError) -> Error {
    match error {
        ruma::signatures::JsonError::PduTooLarge => too_large(),
        other => other.into(),
    }
}

/// What is read back from the canonical JSON.
#[derive(Deserialize)]
struct Parsed<'a> {
    #[serde(rename = "type")]
    kind: TimelineEventType,
    state_key: Option<String>,
    sender: OwnedUserId,
    origin_server_ts: i64,
    depth: i64,
    #[serde(borrow)]
    content: &'a RawValue,
    redacts: Option<OwnedEventId>,
}

/// Where an event hangs in the room's graph.
#[derive(Debug, Default, Deserialize)]
struct Parents {
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
}

#[derive(Deserialize)]
struct MemberContent {
    membership: String,
}

#[derive(Deserialize)]
struct RedactsContent {
    redacts: Option<OwnedEventId>,
}

impl Event {
    /// Reads an event from its canonical JSON.
    pub fn from_pdu(pdu: &str, event_id: OwnedEventId, room_id: OwnedRoomId, position: i64) -> Result<Self> {
        let parsed: Parsed<'_> = serde_json::from_str(pdu)?;
        let redacts = match (&parsed.redacts, &parsed.kind) {
            (Some(id), _) => Some(id.clone()),
            (None, TimelineEventType::RoomRedaction) => {
                serde_json::from_str::<RedactsContent>(parsed.content.get()).ok().and_then(|c| c.redacts)
            }
            _ => None,
        };
        let client = client_form(&parsed, &event_id, &room_id, redacts.as_deref())?;
        let membership = (parsed.kind == TimelineEventType::RoomMember)
            .then(|| serde_json::from_str::<MemberContent>(parsed.content.get()).ok())
            .flatten()
            .map(|content| content.membership);
        Ok(Self {
            event_id,
            room_id,
            membership,
            extra: std::sync::OnceLock::new(),
            related: std::sync::OnceLock::new(),
            kind: parsed.kind,
            state_key: parsed.state_key,
            sender: parsed.sender,
            ts: parsed.origin_server_ts,
            position,
            depth: parsed.depth,
            content: parsed.content.to_owned(),
            pdu: pdu.into(),
            client,
            parents: std::sync::OnceLock::new(),
            redacts,
            txn: None,
            redacted_by: None,
        })
    }

    /// The events before.
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.parents().prev_events
    }

    /// The events that allow it.
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.parents().auth_events
    }

    fn parents(&self) -> &Parents {
        // What was hashed and stored has them.
        self.parents.get_or_init(|| serde_json::from_str(&self.pdu).unwrap_or_default())
    }

    /// Whether this is a state event.
    pub fn is_state(&self) -> bool {
        self.state_key.is_some()
    }

    /// The relation of an event, where it has one. State has none.
    pub fn relation(&self) -> Option<&Relation> {
        self.related
            .get_or_init(|| if self.is_state() { None } else { relation_in(self.content.get()) })
            .as_ref()
    }

    /// A field of the content, where it is a string.
    pub fn content_str(&self, field: &str) -> Option<String> {
        self.content_field(field)?.as_str().map(ToOwned::to_owned)
    }

    /// A field of the content.
    pub fn content_field(&self, field: &str) -> Option<serde_json::Value> {
        let serde_json::Value::Object(mut content) = serde_json::from_str(self.content.get()).ok()? else {
            return None;
        };
        content.remove(field)
    }

    /// A copy of this event that tells the redacted form of the event it replaced; none where it replaced another.
    pub fn with_former(&self, redacted: &Arc<Self>) -> Option<Arc<Self>> {
        let extra = self.extra.get()?;
        if extra.replaces.as_ref()?.event_id != redacted.event_id {
            return None;
        }
        let mut copy =
            Self::from_pdu(&self.pdu, self.event_id.clone(), self.room_id.clone(), self.position).ok()?;
        copy.txn.clone_from(&self.txn);
        copy.redacted_by.clone_from(&self.redacted_by);
        let extra = Extra { replaces: Some(Arc::clone(redacted)), because: extra.because.clone() };
        copy.extra = std::sync::OnceLock::from(extra);
        Some(Arc::new(copy))
    }

    /// The event as a JSON value without `unsigned`.
    pub fn value(&self) -> serde_json::Value {
        serde_json::from_str(&format!("{}}}", self.client)).unwrap_or_default()
    }
}

/// The relation in an event's content.
fn relation_in(content: &str) -> Option<Relation> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: Relation,
    }
    if !content.contains("m.relates_to") {
        return None;
    }
    let relation = serde_json::from_str::<Content>(content).ok()?.relates_to;
    // Longer ones are no relations that anybody can follow, and PostgreSQL's index would refuse them.
    let long = relation
        .event_id
        .len()
        .max(relation.rel_type.len())
        .max(relation.key.as_ref().map_or(0, String::len));
    (long <= 255).then_some(relation)
}

fn client_form(
    parsed: &Parsed<'_>,
    event_id: &EventId,
    room_id: &RoomId,
    redacts: Option<&EventId>,
) -> Result<Box<str>> {
    let mut out = Vec::with_capacity(parsed.content.get().len() + 400);
    out.extend_from_slice(b"{\"content\":");
    out.extend_from_slice(parsed.content.get().as_bytes());
    out.extend_from_slice(b",\"event_id\":");
    serde_json::to_writer(&mut out, event_id)?;
    out.extend_from_slice(b",\"origin_server_ts\":");
    serde_json::to_writer(&mut out, &parsed.origin_server_ts)?;
    if let Some(redacts) = redacts {
        // Clients of before room version 11 look for it at the top level.
        out.extend_from_slice(b",\"redacts\":");
        serde_json::to_writer(&mut out, redacts)?;
    }
    out.extend_from_slice(b",\"room_id\":");
    serde_json::to_writer(&mut out, room_id)?;
    out.extend_from_slice(b",\"sender\":");
    serde_json::to_writer(&mut out, &parsed.sender)?;
    if let Some(state_key) = &parsed.state_key {
        out.extend_from_slice(b",\"state_key\":");
        serde_json::to_writer(&mut out, state_key)?;
    }
    out.extend_from_slice(b",\"type\":");
    serde_json::to_writer(&mut out, &parsed.kind)?;
    Ok(String::from_utf8(out).map_err(|error| Error::internal(error.to_string()))?.into_boxed_str())
}

/// The name in the PDU of an `m.room.name`, for lists that read no more of a room.
pub fn name_in(pdu: Option<&str>) -> Option<String> {
    let pdu: serde_json::Value = serde_json::from_str(pdu?).ok()?;
    pdu["content"]["name"].as_str().map(ToOwned::to_owned)
}

impl ruma::state_res::Event for Event {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }
    fn room_id(&self) -> Option<&RoomId> {
        // Room version 12's create event has none: the id is its own hash.
        (self.room_id.as_str().get(1..) != self.event_id.as_str().get(1..)).then_some(&*self.room_id)
    }
    fn sender(&self) -> &UserId {
        &self.sender
    }
    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(ruma::UInt::try_from(self.ts).unwrap_or_default())
    }
    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }
    fn content(&self) -> &RawValue {
        &self.content
    }
    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }
    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.parents().prev_events.iter())
    }
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.parents().auth_events.iter())
    }
    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }
    fn rejected(&self) -> bool {
        false
    }
}
