//! Events as clients read them: the stored bytes with `unsigned` spliced in for this reader (DESIGN 9).

use std::fmt::Write as _;

use super::bundle::Bundles;
use crate::{http::caller::Requester, rooms::pdu::Event};

/// An event with `unsigned`, for a reader or for nobody in particular.
pub fn event(event: &Event, who: Option<&Requester>, now_ms: i64) -> String {
    let mut out = String::with_capacity(event.client.len() + 160);
    write_event(&mut out, event, who, now_ms, true);
    out
}

/// As [`event`], with what relates to it.
pub fn bundled(event: &Event, bundles: &Bundles, who: &Requester, now_ms: i64) -> String {
    let mut out = String::with_capacity(event.client.len() + 160);
    write_bundled(&mut out, event, bundles, who, now_ms, true);
    out
}

/// Writes an event with `unsigned`. Sync leaves the room id out.
pub fn write_event(out: &mut String, event: &Event, who: Option<&Requester>, now_ms: i64, with_room: bool) {
    write(out, event, None, who, now_ms, with_room);
}

/// As [`write_event`], with what relates to the event (`m.relations`): for timelines and whatever else the specification
/// bundles.
pub fn write_bundled(
    out: &mut String,
    event: &Event,
    bundles: &Bundles,
    who: &Requester,
    now_ms: i64,
    with_room: bool,
) {
    write(out, event, Some(bundles), Some(who), now_ms, with_room);
}

fn write(
    out: &mut String,
    event: &Event,
    bundles: Option<&Bundles>,
    who: Option<&Requester>,
    now_ms: i64,
    with_room: bool,
) {
    if with_room {
        out.push_str(&event.client);
    } else {
        // The client form has the room id between two known fields.
        let field = format!(",\"room_id\":\"{}\"", event.room_id);
        match event.client.rfind(&field) {
            Some(at) => {
                out.push_str(&event.client[..at]);
                out.push_str(&event.client[at + field.len()..]);
            }
            None => out.push_str(&event.client),
        }
    }
    // Writing to a String cannot fail.
    let _ = write!(out, ",\"unsigned\":{{\"age\":{}", (now_ms - event.ts).max(0));
    if let (Some(txn), Some(who)) = (&event.txn, who)
        && who.user_id == event.sender
        && who.device_id.as_deref() == Some(txn.device_id.as_str())
    {
        let _ = write!(out, ",\"transaction_id\":{}", serde_json::Value::from(txn.txn_id.as_str()));
    }
    if let Some(extra) = event.extra.get() {
        if let Some(before) = &extra.replaces {
            let _ = write!(out, ",\"replaces_state\":\"{}\"", before.event_id);
            // Only for who may see the event that was replaced (v1.19, "prev_content"). Appservices see all.
            if bundles.map_or(who.is_none(), |bundles| bundles.sees(before)) {
                let _ = write!(
                    out,
                    ",\"prev_content\":{},\"prev_sender\":\"{}\"",
                    before.content.get(),
                    before.sender
                );
            }
        }
        if let Some(because) = &extra.because {
            let _ = write!(out, ",\"redacted_because\":{}}}", because.client);
        }
    }
    if let Some(relations) = bundles.and_then(|bundles| bundles.of(event)) {
        out.push_str(",\"m.relations\":");
        out.push_str(relations);
    }
    out.push_str("}}");
}

/// Stripped state, for invitations (client-server API, "Stripped state").
pub fn write_stripped(out: &mut String, event: &Event) {
    let _ = write!(
        out,
        "{{\"content\":{},\"sender\":\"{}\",\"state_key\":{},\"type\":{}}}",
        event.content.get(),
        event.sender,
        serde_json::Value::from(event.state_key.as_deref().unwrap_or_default()),
        serde_json::Value::from(event.kind.to_string()),
    );
}

/// Writes a JSON list by calling `each` for every item.
pub fn write_list<T>(
    out: &mut String,
    items: impl IntoIterator<Item = T>,
    mut each: impl FnMut(&mut String, T),
) {
    out.push('[');
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        each(out, item);
    }
    out.push(']');
}
