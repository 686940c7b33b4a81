//! What a gateway is told (Push Gateway API, `event_id_only`).

use ruma::{events::TimelineEventType, push::Action};
use serde_json::{Map, Value, json};

use super::super::{Pusher, SCOPE, Setting};
use crate::rooms::pdu::Event;

/// What a gateway outside is told of an event (`event_id_only`).
pub(super) fn notification(event: &Event, actions: &[Action], count: u64, pusher: &Pusher) -> Value {
    let tweaks = tweaks(actions);
    // What makes a sound or is marked is about the person; the rest can wait for the phone to wake. Of an encrypted event
    // the rules see nothing.
    let urgent = tweaks.contains_key("sound")
        || tweaks.contains_key("highlight")
        || event.kind == TimelineEventType::RoomEncrypted;
    json!({"notification": {
        "event_id": event.event_id,
        "room_id": event.room_id,
        "prio": if urgent { "high" } else { "low" },
        "counts": tally(count),
        "devices": [device(pusher, tweaks)],
    }})
}

/// What it is told when only the count has changed.
pub(super) fn count(count: u64, pusher: &Pusher) -> Value {
    json!({"notification": {
        "prio": "low",
        "counts": tally(count),
        "devices": [device(pusher, Map::new())],
    }})
}

/// A count of zero is said too, though the specification would leave it out: gateways clear an app's badge by nothing else.
fn tally(count: u64) -> Value {
    json!({ "unread": count })
}

fn tweaks(actions: &[Action]) -> Map<String, Value> {
    let mut tweaks = Map::new();
    for action in actions {
        if let Ok(Value::Object(mut action)) = serde_json::to_value(action)
            && let Some(Value::String(name)) = action.remove("set_tweak")
            && ["sound", "highlight"].contains(&name.as_str())
        {
            let value = action.remove("value").unwrap_or(Value::Bool(true));
            if value != Value::Bool(false) {
                tweaks.insert(name, value);
            }
        }
    }
    tweaks
}

fn device(pusher: &Pusher, tweaks: Map<String, Value>) -> Value {
    let mut data = Setting::of(pusher).data;
    data.remove("url");
    data.remove(SCOPE);
    let mut device = json!({
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        "pushkey_ts": pusher.created_at / 1000,
        "data": data,
    });
    if !tweaks.is_empty() {
        device["tweaks"] = tweaks.into();
    }
    device
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tweaks_are_those_of_the_rules() {
        let actions: Vec<Action> = serde_json::from_value(json!([
            "notify", {"set_tweak": "sound", "value": "default"}, {"set_tweak": "highlight"},
            {"set_tweak": "jp.example.note", "value": "見本一郎"},
        ]))
        .unwrap();
        assert_eq!(Value::from(tweaks(&actions)), json!({"sound": "default", "highlight": true}));
        let actions: Vec<Action> =
            serde_json::from_value(json!(["notify", {"set_tweak": "highlight", "value": false}])).unwrap();
        assert!(tweaks(&actions).is_empty());
    }
}
