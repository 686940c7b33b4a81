//! Which media an event shows, and who may read a medium (DESIGN 12): whoever sees an event of a room that shows it,
//! and its uploader while none does. An mxc URI alone opens nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{EventId, OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId};
use serde_json::Value;

use crate::{
    appservices::Appservice,
    config::Encryption,
    error::{Code, Result},
    rooms::{history, live::LiveUser},
    server::Server,
    store::{self, media::Medium},
};

/// Media that one event can show. An event is at most 64 KiB, so this only bounds the lookups of a hostile one.
const MEDIA_PER_EVENT_MAX: usize = 100;
/// Events of one room that are looked up for one medium.
const EVENTS_TRIED_MAX: usize = 100;
/// Rooms that show a medium, and users of an appservice in them, that are tried for it.
const ROOMS_TRIED_MAX: usize = 20;
const USERS_TRIED_MAX: usize = 20;
/// The longest media id looked up; ours have 24 characters.
const MEDIA_ID_BYTES_MAX: usize = 255;

/// Why a user may read a medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// An event of this room shows it, and the user may see that event.
    Room(OwnedRoomId),
    /// It is the picture of an account with which the user shares a room.
    Avatar,
    /// The user uploaded it and no event shows it yet.
    Own,
}

/// Why `user` may read `medium`; `None` where they may not. Takes its connections one after the other: whoever holds one
/// while asking for another could wait for ever.
pub async fn seen(server: &Server, user: &UserId, medium: &Medium) -> Result<Option<Seen>> {
    let links = store::media::links(&mut server.db.read().await?, &medium.media_id).await?;
    let shares =
        |other: &str| <&UserId>::try_from(other).is_ok_and(|other| server.live.share_a_room(user, other));
    // The link of a picture names the account; where it names none it is the uploader's.
    let uploader = medium.user_id.as_str();
    let mut pictures: Vec<&str> = Vec::new();
    for (_, account) in links.iter().filter(|(room_id, _)| room_id.is_empty()) {
        pictures.push(if account.starts_with('@') { account.as_str() } else { uploader });
    }
    // The uploader's own picture first: that a face was drawn beside a message is no reading of a room. Somebody
    // else's does not come first, or a photo made one's own picture could be opened without a trace.
    if pictures.contains(&uploader) && shares(uploader) {
        return Ok(Some(Seen::Avatar));
    }
    let mut rooms: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (room_id, event_id) in links.iter().filter(|(room_id, _)| !room_id.is_empty()) {
        rooms.entry(room_id).or_default().push(event_id);
    }
    for (room_id, events) in rooms {
        if let Some(room_id) = shown_to(server, user, room_id, &events).await? {
            return Ok(Some(Seen::Room(room_id)));
        }
    }
    if pictures.iter().any(|account| shares(account)) {
        return Ok(Some(Seen::Avatar));
    }
    // What was shown in a room belongs to the room: whoever left it reads its files no more than its posts (DESIGN 14).
    let shown = links.iter().any(|(room_id, _)| !room_id.is_empty());
    let own_past = server.config.policy.former_members_read == "until_leave";
    if uploader == user.as_str() && (!shown || own_past) {
        return Ok(Some(Seen::Own));
    }
    // An encrypted event hides its mxc URI from the server, so nothing can be linked to it. The blob is encrypted too.
    if server.config.policy.encryption == Encryption::Allowed && links.is_empty() && shares(uploader) {
        return Ok(Some(Seen::Avatar));
    }
    Ok(None)
}

/// The room, where the user may see one of these events of it. Of many only so many are looked up.
async fn shown_to(
    server: &Server,
    user: &UserId,
    room_id: &str,
    events: &[&str],
) -> Result<Option<OwnedRoomId>> {
    let Ok(room_id) = <&RoomId>::try_from(room_id) else { return Ok(None) };
    let sight = match history::sight(server, user, room_id).await {
        Ok((_, sight)) => sight,
        Err(error) if error.code() == Some(Code::Forbidden) => return Ok(None),
        Err(error) => return Err(error),
    };
    if sight.is_whole() {
        return Ok(Some(room_id.to_owned()));
    }
    let mut conn = server.db.read().await?;
    for event_id in events.iter().filter_map(|id| <&EventId>::try_from(*id).ok()).take(EVENTS_TRIED_MAX) {
        let place = store::rooms::place_of(&mut conn, event_id).await?;
        if place.is_some_and(|(of, order)| of == room_id && sight.sees(order)) {
            return Ok(Some(room_id.to_owned()));
        }
    }
    Ok(None)
}

/// As [`seen`], for an appservice that asks as itself: what any of its own users may see. Libraries fetch media so, and its
/// sender need not be in the rooms. Never what only a person in its namespace sees.
pub async fn seen_by_users_of(
    server: &Server,
    appservice: &Appservice,
    medium: &Medium,
) -> Result<Option<Seen>> {
    let links = store::media::links(&mut server.db.read().await?, &medium.media_id).await?;
    let mut candidates: BTreeSet<OwnedUserId> = BTreeSet::new();
    for (room_id, _) in links.iter().filter(|(room_id, _)| !room_id.is_empty()).take(ROOMS_TRIED_MAX) {
        let Ok(room_id) = <&RoomId>::try_from(room_id.as_str()) else { continue };
        let own = |user: &&Arc<LiveUser>| appservice.is_interested_in_user(user.user_id.as_str());
        candidates.extend(server.live.present(room_id).iter().filter(own).map(|user| user.user_id.clone()));
    }
    for user in candidates.iter().take(USERS_TRIED_MAX) {
        let account = store::accounts::account(&mut server.db.read().await?, user.as_str()).await?;
        if account.is_some_and(|account| account.kind == "appservice")
            && let Some(seen) = seen(server, user, medium).await?
        {
            return Ok(Some(seen));
        }
    }
    Ok(None)
}

/// Whether `user` may read `medium`.
pub async fn may_read(server: &Server, user: &UserId, medium: &Medium) -> Result<bool> {
    Ok(seen(server, user, medium).await?.is_some())
}

/// The ids of this server's media named anywhere in an event's content, each once (URLs of files, thumbnails and
/// avatars, pictures inside `formatted_body`, custom types).
pub fn media_ids(content: &Value, server_name: &ServerName) -> Vec<String> {
    let prefix = format!("mxc://{server_name}/");
    let mut found: Vec<String> = Vec::new();
    let mut open = vec![content];
    while let Some(value) = open.pop() {
        match value {
            Value::String(text) => ids_in(text, &prefix, &mut found),
            Value::Array(list) => open.extend(list),
            Value::Object(fields) => open.extend(fields.values()),
            _ => {}
        }
        if found.len() >= MEDIA_PER_EVENT_MAX {
            found.truncate(MEDIA_PER_EVENT_MAX);
            break;
        }
    }
    found
}

/// Whether this is the form of a media id (client-server API, "Matrix Content (mxc://) URIs").
pub fn is_media_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MEDIA_ID_BYTES_MAX && text.bytes().all(is_id_byte)
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn ids_in(text: &str, prefix: &str, found: &mut Vec<String>) {
    for after in text.split(prefix).skip(1) {
        let id = after.split(|c: char| !c.is_ascii() || !is_id_byte(c as u8)).next().unwrap_or_default();
        if is_media_id(id) && !found.iter().any(|known| known == id) && found.len() < MEDIA_PER_EVENT_MAX {
            found.push(id.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ids(content: &Value) -> Vec<String> {
        let name = ruma::OwnedServerName::try_from("city.example.jp").unwrap();
        let mut ids = media_ids(content, &name);
        ids.sort_unstable();
        ids
    }

    #[test]
    fn every_uri_of_ours_is_found() {
        assert_eq!(
            ids(&json!({
                "url": "mxc://city.example.jp/one",
                "info": {"thumbnail_url": "mxc://city.example.jp/two_2-x", "w": 3},
                "list": [[{"deep": "mxc://city.example.jp/one"}]],
                "formatted_body": "<img src=\"mxc://city.example.jp/three\"><img src='mxc://city.example.jp/four#auto'>",
            })),
            ["four", "one", "three", "two_2-x"]
        );
    }

    #[test]
    fn other_servers_and_broken_uris_are_not() {
        assert!(
            ids(&json!({
                "a": "mxc://other.example/one",
                "b": "mxc://city.example.jp:8448/one",
                "c": "mxc://city.example.jp/",
                "d": "mxc://city.example.jp/../x",
                "e": "https://city.example.jp/one",
                "f": 1,
                "g": null,
            }))
            .is_empty()
        );
    }

    #[test]
    fn the_number_is_bounded() {
        let many: Vec<String> = (0..1_000).map(|i| format!("mxc://city.example.jp/id{i}")).collect();
        assert_eq!(ids(&json!(many)).len(), MEDIA_PER_EVENT_MAX);
        assert_eq!(ids(&json!({"body": many.join(" ")})).len(), MEDIA_PER_EVENT_MAX);
    }

    #[test]
    fn media_ids_have_a_form() {
        assert!(is_media_id("AZaz09_-"));
        for bad in ["", "a/b", "a.b", "a\0", "あ"] {
            assert!(!is_media_id(bad));
        }
        assert!(!is_media_id(&"a".repeat(256)));
    }
}
