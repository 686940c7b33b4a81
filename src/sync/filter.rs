//! Filters (client-server API, "Filtering"), as `/sync`, `/messages` and `/context` use them.

use ruma::api::client::filter::{FilterDefinition, LazyLoadOptions, RoomEventFilter, UrlFilter};

use crate::{
    error::{Code, Result, refuse},
    rooms::pdu::Event,
};

/// The longest filter, in bytes.
pub const FILTER_BYTES_MAX: usize = 32_768;

/// Reads a filter.
pub fn parse(text: &str) -> Result<FilterDefinition> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "The filter is too large: at most 32,768 bytes."));
    }
    crate::http::json::check(text.as_bytes())?;
    serde_json::from_str(text).map_err(|_| refuse(Code::BadJson, "The filter is not a filter."))
}

/// Whether members are loaded lazily.
pub fn is_lazy(filter: &RoomEventFilter) -> bool {
    matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. })
}

/// Whether an event passes.
pub fn passes(filter: &RoomEventFilter, event: &Event) -> bool {
    if !kind_passes(filter.types.as_deref(), &filter.not_types, &event.kind.to_string())
        || !room_passes(filter, &event.room_id)
    {
        return false;
    }
    if filter.not_senders.contains(&event.sender) {
        return false;
    }
    if let Some(senders) = &filter.senders
        && !senders.contains(&event.sender)
    {
        return false;
    }
    match filter.url_filter {
        Some(UrlFilter::EventsWithUrl) => event.content_str("url").is_some(),
        Some(UrlFilter::EventsWithoutUrl) => event.content_str("url").is_none(),
        _ => true,
    }
}

/// Whether a type passes: what is not in a room's timeline or state has no more than that.
pub fn kind_passes(types: Option<&[String]>, not_types: &[String], kind: &str) -> bool {
    !not_types.iter().any(|pattern| matches(pattern, kind))
        && types.is_none_or(|types| types.iter().any(|pattern| matches(pattern, kind)))
}

/// Whether something of a room that has a type and no sender passes: account data, receipts, typing.
pub fn of_room_passes(filter: &RoomEventFilter, room_id: &ruma::RoomId, kind: &str) -> bool {
    room_passes(filter, room_id) && kind_passes(filter.types.as_deref(), &filter.not_types, kind)
}

/// Whether a room passes.
pub fn room_passes(filter: &RoomEventFilter, room_id: &ruma::RoomId) -> bool {
    !filter.not_rooms.iter().any(|id| id == room_id)
        && filter.rooms.as_ref().is_none_or(|rooms| rooms.iter().any(|id| id == room_id))
}

/// Whether a type matches a pattern, in which `*` stands for any characters (client-server API, "Filtering"). Each part
/// is looked for once, from left to right, so a pattern of many stars costs no more than its length.
fn matches(pattern: &str, kind: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == kind };
    let Some(mut left) = kind.strip_prefix(start) else { return false };
    let mut parts = rest.split('*');
    let end = parts.next_back().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_anywhere() {
        for (pattern, kind, expected) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.*", "m.room.message", true),
            ("m.*.message", "m.room.message", true),
            ("*message", "m.room.message", true),
            ("*", "", true),
            ("m.*.*.x", "m.room.message.x", true),
            ("m.*age*age", "m.message", false),
            ("m.room.message", "m.room.message.x", false),
            ("a*a", "a", false),
            ("*room*", "m.room.message", true),
            ("*x*", "m.room.message", false),
        ] {
            assert_eq!(matches(pattern, kind), expected, "{pattern} {kind}");
        }
        assert!(!matches(&"*a".repeat(16_000), &"a".repeat(255)));
    }
}
