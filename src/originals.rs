//! What was edited or redacted in a room, with every version: for an auditor, who reads it on the server itself and says
//! why (REQUIREMENTS C26). Members see the newest version of an edit and nothing of what was redacted.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ruma::RoomId;
use serde_json::Value;

use crate::{error::Result, export::words, rooms::pdu::Event, store};

/// One post: as it was sent first, and each edit.
#[derive(Debug)]
pub struct Post {
    /// Oldest first; never empty.
    pub versions: Vec<Version>,
}

/// One version of a post.
#[derive(Debug)]
pub struct Version {
    /// As it was sent; emptied where its original was not kept (its subject's record was purged).
    pub event: Arc<Event>,
    /// What redacted it.
    pub redaction: Option<Arc<Event>>,
}

/// The posts of a room of which there is more than what members see, by their first versions, oldest first.
pub async fn of_room(conn: &mut store::Conn, room_id: &RoomId) -> Result<Vec<Post>> {
    let mut known: HashMap<String, Arc<Event>> = HashMap::new();
    let originals = store::events::originals(conn, room_id).await?;
    for event in store::events::edits(conn, room_id).await?.into_iter().chain(originals) {
        known.insert(event.event_id.to_string(), event);
    }
    let missing = |known: &HashMap<String, Arc<Event>>| {
        let named = known.values().filter_map(|event| edited(event));
        named.filter(|id| !known.contains_key(*id)).map(ToOwned::to_owned).collect::<BTreeSet<String>>()
    };
    let first: Vec<String> = missing(&known).into_iter().collect();
    for event in store::events::by_ids(conn, &first).await? {
        if event.room_id == room_id {
            known.insert(event.event_id.to_string(), event);
        }
    }
    let redacted: BTreeSet<String> =
        known.values().filter_map(|event| event.redacted_by.as_ref()).map(ToString::to_string).collect();
    let redacted: Vec<String> = redacted.into_iter().collect();
    let by: HashMap<String, Arc<Event>> = store::events::by_ids(conn, &redacted)
        .await?
        .into_iter()
        .map(|event| (event.event_id.to_string(), event))
        .collect();
    let mut posts: HashMap<String, Vec<Version>> = HashMap::new();
    for event in known.values() {
        // An edit of what somebody else wrote changes nothing (client-server API, "Validity of replacement events").
        let first = edited(event).and_then(|id| known.get(id)).filter(|first| first.sender == event.sender);
        let redaction = event.redacted_by.as_ref().and_then(|id| by.get(id.as_str())).cloned();
        let version = Version { event: Arc::clone(event), redaction };
        posts.entry(first.unwrap_or(event).event_id.to_string()).or_default().push(version);
    }
    let mut posts: Vec<Post> = posts
        .into_values()
        .map(|mut versions| {
            versions.sort_by_key(|version| version.event.position);
            Post { versions }
        })
        .filter(|post| post.versions.len() > 1 || post.versions.iter().any(|v| v.event.redacted_by.is_some()))
        .collect();
    posts.sort_by_key(|post| post.versions.first().map(|version| version.event.position));
    Ok(posts)
}

/// What an event is an edit of.
fn edited(event: &Event) -> Option<&str> {
    event
        .relation()
        .filter(|relation| relation.rel_type == "m.replace")
        .map(|relation| relation.event_id.as_str())
}

/// What a version says: its words and the address of its file; all of its content where it has neither.
pub fn text(event: &Event) -> String {
    let content: Value = serde_json::from_str(event.content.get()).unwrap_or_default();
    if event.kind.to_string() == "m.room.encrypted" {
        return "（暗号化された投稿です）".to_owned();
    }
    let replaced = edited(event).is_some() && content["m.new_content"].is_object();
    let part = if replaced { &content["m.new_content"] } else { &content };
    let mut text = words(part);
    if let Some(file) = part["url"].as_str().or_else(|| part["file"]["url"].as_str()) {
        text = format!("{text} [{file}]");
    }
    // What most clients show where it is there.
    if let Some(formatted) = part["formatted_body"].as_str() {
        text = format!("{text}\n（書式つき）{formatted}");
    }
    if text.trim().is_empty() {
        text = match part.as_object() {
            Some(fields) if !fields.is_empty() => part.to_string(),
            _ => "（内容は残っていません）".to_owned(),
        };
    }
    text
}
