//! Upgrading a room to another version (client-server API, "Room upgrades"): a new room with the old one's settings, and a
//! tombstone in the old one. One unit: both or neither. Rooms of the city keep their number and are never upgraded.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::{Value, json};

use super::{
    access,
    append::{Intent, rules_of},
    batch::Batch,
    member, send,
    state::RoomState,
};
use crate::{
    config::{CreateRooms, Encryption},
    error::{Result, forbidden},
    store,
};

/// Entries of the state that the new room takes over, with an empty state key.
const TAKEN_OVER: [&str; 8] = [
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.server_acl",
    "m.room.encryption",
];
/// Bans, and rooms of a space, that are taken over.
const ENTRIES_MAX: usize = 2_000;

/// What is upgraded, and to what.
#[derive(Debug)]
pub struct Upgrade {
    /// The old room.
    pub room_id: OwnedRoomId,
    /// Who upgrades it.
    pub user_id: OwnedUserId,
    /// The new version.
    pub version: RoomVersionId,
    /// Creators beside the one who upgrades, from room version 12 on.
    pub additional_creators: Vec<OwnedUserId>,
}

/// Upgrades the room; the id of the new one.
pub async fn upgrade(batch: &mut Batch, order: Upgrade) -> Result<OwnedRoomId> {
    let Upgrade { room_id: old, user_id, version, additional_creators } = order;
    let rules = rules_of(&version)?;
    let room = batch.room(&old).await?.clone();
    if room.state.membership(&user_id) != MembershipState::Join {
        return Err(forbidden("You are not a member of this room."));
    }
    if room.row.room_number.is_some() {
        return Err(forbidden("Rooms of the city are not upgraded: they keep their number (部屋番号)."));
    }
    let city = user_id.localpart() == "city" && user_id.server_name() == batch.server_name();
    if batch.policy.create_rooms == CreateRooms::City && !city {
        return Err(forbidden("Rooms are opened by the city (部屋の開設は市に依頼してください)."));
    }
    if send::power(&room, &user_id)? < level_of(&room.state, "m.room.tombstone") {
        return Err(forbidden("You are not allowed to upgrade this room."));
    }
    let creators: Vec<OwnedUserId> =
        if rules.authorization.additional_room_creators { additional_creators } else { Vec::new() };
    let content = creation(
        &room.state,
        &old,
        room.row.head.first(),
        &creators,
        rules.authorization.room_create_event_id_as_room_id,
    )?;
    let new = batch.create_room(&user_id, version, &room.row.kind, content)?;
    let profile = member::profile(batch, &user_id).await?;
    let joined = member::content("join", &profile, None);
    batch.append(Intent::state(&new, &user_id, "m.room.member", user_id.as_str(), joined)?).await?;
    for (kind, key, content) in taken_over(batch, &room.state)? {
        batch.append(Intent::state(&new, &user_id, &kind, &key, content)?).await?;
    }
    // The levels come last: until they stand, the creator may set everything.
    let privileged = rules.authorization.explicitly_privilege_room_creators;
    let levels = levels(&room, &user_id, &creators, privileged)?;
    batch.append(Intent::state(&new, &user_id, "m.room.power_levels", "", levels)?).await?;
    store::rooms::move_aliases(batch.sql().await?, &old, &new).await?;
    let tombstone = json!({"body": "This room has been replaced", "replacement_room": new});
    batch.append(Intent::state(&old, &user_id, "m.room.tombstone", "", tombstone)?).await?;
    quieten(batch, &old, &user_id).await?;
    take_along(batch, &new, &user_id).await?;
    Ok(new)
}

/// The level that a piece of state needs.
fn level_of(state: &RoomState, kind: &str) -> i64 {
    state
        .event(&StateEventType::RoomPowerLevels, "")
        .and_then(|event| event.content_field("events"))
        .and_then(|events| events[kind].as_i64())
        .unwrap_or_else(|| send::level(state, "state_default", 50))
}

/// The content of the new room's creation: what the old one had, and where it comes from.
fn creation(
    state: &RoomState,
    old: &RoomId,
    last: Option<&ruma::OwnedEventId>,
    creators: &[OwnedUserId],
    without_event: bool,
) -> Result<CanonicalJsonObject> {
    let mut content: CanonicalJsonObject = match state.event(&StateEventType::RoomCreate, "") {
        Some(event) => serde_json::from_str(event.content.get())?,
        None => CanonicalJsonObject::new(),
    };
    for field in ["room_version", "creator", "additional_creators", "predecessor"] {
        content.remove(field);
    }
    let mut predecessor = CanonicalJsonObject::new();
    predecessor.insert("room_id".to_owned(), old.to_string().into());
    if let Some(last) = last.filter(|_| !without_event) {
        predecessor.insert("event_id".to_owned(), last.to_string().into());
    }
    content.insert("predecessor".to_owned(), CanonicalJsonValue::Object(predecessor));
    if !creators.is_empty() {
        let list = creators.iter().map(|id| id.to_string().into()).collect();
        content.insert("additional_creators".to_owned(), CanonicalJsonValue::Array(list));
    }
    Ok(content)
}

/// The state that the new room begins with: settings, bans, and the rooms of a space.
fn taken_over(batch: &Batch, state: &RoomState) -> Result<Vec<(String, String, Value)>> {
    let mut list = Vec::new();
    for kind in TAKEN_OVER {
        let Some(event) = state.event(&StateEventType::from(kind), "") else { continue };
        let policy_refuses = match kind {
            "m.room.encryption" => batch.policy.encryption == Encryption::Forbidden,
            "m.room.join_rules" => !batch.takes_join_rule(&access::join_rule(state)),
            _ => false,
        };
        if !policy_refuses {
            list.push((kind.to_owned(), String::new(), serde_json::from_str(event.content.get())?));
        }
    }
    if let Some(alias) = state.event(&StateEventType::RoomCanonicalAlias, "") {
        list.push((
            "m.room.canonical_alias".to_owned(),
            String::new(),
            serde_json::from_str(alias.content.get())?,
        ));
    }
    let space = state.content_str(&StateEventType::RoomCreate, "", "type").as_deref() == Some("m.space");
    if space {
        for event in state.of_type(&StateEventType::SpaceChild).take(ENTRIES_MAX) {
            let key = event.state_key.clone().unwrap_or_default();
            // An empty one is a room that was taken out of the space.
            if event.content_field("via").is_some() {
                list.push(("m.space.child".to_owned(), key, serde_json::from_str(event.content.get())?));
            }
        }
    }
    for (user_id, event) in state.members("ban").take(ENTRIES_MAX) {
        let mut content = json!({"membership": "ban"});
        if let Some(reason) = event.content_str("reason") {
            content["reason"] = reason.into();
        }
        list.push(("m.room.member".to_owned(), user_id.to_string(), content));
    }
    Ok(list)
}

/// The old room's power levels as the new version writes them: creators are not among the users from version 12 on, and
/// before it they are, with 100.
fn levels(
    old: &super::batch::RoomDraft,
    user_id: &UserId,
    creators: &[OwnedUserId],
    privileged: bool,
) -> Result<Value> {
    let stored = old.state.event(&StateEventType::RoomPowerLevels, "");
    let mut levels: Value = match stored {
        Some(event) => serde_json::from_str(event.content.get())?,
        None => json!({}),
    };
    let Some(fields) = levels.as_object_mut() else { return Ok(json!({})) };
    let users = fields.entry("users").or_insert_with(|| json!({}));
    let Some(users) = users.as_object_mut() else { return Ok(json!({})) };
    if privileged {
        users.remove(user_id.as_str());
        for creator in creators {
            users.remove(creator.as_str());
        }
    } else {
        // Whoever had power without end in the old room has the most that this version knows.
        for (member, _) in old.state.members("join") {
            if send::power(old, &member)? == i64::MAX {
                users.insert(member.to_string(), 100.into());
            }
        }
        if stored.is_none() {
            users.insert(user_id.to_string(), 100.into());
        }
        // What only creators could do stays possible.
        for (_, level) in fields.get_mut("events").and_then(Value::as_object_mut).into_iter().flatten() {
            if level.as_i64().is_some_and(|level| level > 100) {
                *level = 100.into();
            }
        }
    }
    Ok(levels)
}

/// In the old room only those with power go on writing and inviting, where the one who upgrades may set that.
async fn quieten(batch: &mut Batch, old: &RoomId, user_id: &UserId) -> Result<()> {
    let room = batch.room(old).await?;
    let power = send::power(room, user_id)?;
    let Some(event) = room.state.event(&StateEventType::RoomPowerLevels, "") else { return Ok(()) };
    let mut levels: Value = serde_json::from_str(event.content.get())?;
    let limit = (send::level(&room.state, "users_default", 0).saturating_add(1)).max(50);
    if power < limit || power < level_of(&room.state, "m.room.power_levels") {
        return Ok(());
    }
    let before = levels.clone();
    for field in ["events_default", "invite"] {
        if levels[field].as_i64().unwrap_or(0) < limit {
            levels[field] = limit.into();
        }
    }
    if levels != before {
        batch.append(Intent::state(old, user_id, "m.room.power_levels", "", levels)?).await?;
    }
    Ok(())
}

/// Whoever comes from an old room into the one that replaces it finds what they had set for it (client-server API, "Room
/// upgrades", server behaviour): tags, that it is direct, and their own push rules.
pub async fn take_along(batch: &mut Batch, new: &RoomId, user_id: &UserId) -> Result<()> {
    let create = batch.room(new).await?.state.event(&StateEventType::RoomCreate, "").cloned();
    let predecessor = create.and_then(|event| event.content_field("predecessor"));
    let old = predecessor.as_ref().and_then(|from| <&RoomId>::try_from(from["room_id"].as_str()?).ok());
    // What an event says about where a room comes from is its maker's word: only who was there brings anything.
    let Some(old) = old.filter(|old| batch.live.is_joined(user_id, old)) else { return Ok(()) };
    let user = user_id.as_str();
    let tags = store::personal::account_data(batch.reading(), user, old.as_str(), "m.tag").await?;
    let has = store::personal::account_data(batch.reading(), user, new.as_str(), "m.tag").await?.is_some();
    if let Some(tags) = tags.filter(|_| !has) {
        batch.account_data(user_id, new.as_str(), "m.tag", tags);
    }
    for (kind, change) in
        [("m.direct", direct_too as fn(&mut Value, &str, &str) -> bool), ("m.push_rules", ruled_too)]
    {
        let stored = store::personal::account_data(batch.reading(), user, "", kind).await?;
        let content = stored.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        if let Some(mut content) = content
            && change(&mut content, old.as_str(), new.as_str())
        {
            batch.account_data(user_id, "", kind, content.to_string());
        }
    }
    Ok(())
}

/// Calls the new room direct with whom the old one is; whether that changed anything.
fn direct_too(content: &mut Value, old: &str, new: &str) -> bool {
    let mut changed = false;
    for rooms in content.as_object_mut().into_iter().flatten().filter_map(|(_, rooms)| rooms.as_array_mut()) {
        if rooms.iter().any(|room| room == old) && !rooms.iter().any(|room| room == new) {
            rooms.push(new.into());
            changed = true;
        }
    }
    changed
}

/// Gives the new room the rules that bear the old one's name: those of kind `room`, and the overrides that mute a room.
fn ruled_too(content: &mut Value, old: &str, new: &str) -> bool {
    let mut changed = false;
    for kind in ["room", "override"] {
        let rules = content.pointer_mut(&format!("/global/{kind}")).and_then(Value::as_array_mut);
        let Some(rules) = rules else { continue };
        let mut copy = match rules.iter().find(|rule| rule["rule_id"] == old) {
            Some(rule) if !rules.iter().any(|rule| rule["rule_id"] == new) => rule.clone(),
            _ => continue,
        };
        copy["rule_id"] = new.into();
        for condition in copy.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if condition["key"] == "room_id" && condition["pattern"] == old {
                condition["pattern"] = new.into();
            }
        }
        rules.insert(0, copy);
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_for_the_old_room_is_set_for_the_new_one() {
        let mut direct = json!({"@a:x": ["!old", "!other"], "@b:x": ["!other"]});
        assert!(direct_too(&mut direct, "!old", "!new"));
        assert_eq!(direct, json!({"@a:x": ["!old", "!other", "!new"], "@b:x": ["!other"]}));
        assert!(!direct_too(&mut direct, "!old", "!new"), "once");
        let condition = |room: &str| json!([{"kind": "event_match", "key": "room_id", "pattern": room}]);
        let mut rules = json!({"global": {
            "override": [{"rule_id": "!old", "conditions": condition("!old"), "actions": []}],
            "room": [{"rule_id": "!else", "actions": []}],
        }});
        assert!(ruled_too(&mut rules, "!old", "!new"));
        assert_eq!(rules["global"]["override"][0]["rule_id"], "!new");
        assert_eq!(rules["global"]["override"][0]["conditions"], condition("!new"));
        assert_eq!(rules["global"]["override"][1]["rule_id"], "!old");
        assert_eq!(rules["global"]["room"].as_array().unwrap().len(), 1);
        assert!(!ruled_too(&mut rules, "!old", "!new"), "once");
        assert!(!ruled_too(&mut json!({"global": 5}), "!old", "!new"));
    }
}
