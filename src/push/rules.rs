//! A user's push rules: read from account data (`m.push_rules`), kept in memory, applied to an event as it stands in
//! its room (client-server API, "Push Rules").

use std::sync::{Arc, atomic::Ordering};

use ruma::{
    OwnedUserId, UInt, UserId,
    events::{
        StateEventType,
        room::power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource},
    },
    push::{Action, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::Result,
    rooms::{live::RoomView, pdu::Event},
    server::Server,
    store,
};

/// The type of the account data that holds the rules.
pub const KIND: &str = "m.push_rules";
/// So much of a message's text is looked through for words.
const BODY_BYTES_MAX: usize = 4_096;
/// The kinds of rules; clients expect a list for each, empty or not.
const KINDS: [&str; 5] = ["override", "content", "room", "sender", "underride"];

/// A user's rules: what the user has set, completed by the server's present defaults. The same `Arc` comes back for
/// as long as the rules are the same, whatever else of the account data changes: unread counts depend on it.
pub async fn ruleset(server: &Server, user: &UserId) -> Result<Arc<Ruleset>> {
    let live = server.live.user(user);
    // Read before the load: what is loaded after a change is never kept as from before it, nor the other way round.
    let generation = live.generation.load(Ordering::Acquire);
    let cached = live.rules.lock().clone();
    if let Some((of, rules)) = cached
        && of == generation
    {
        return Ok(rules);
    }
    let stored = {
        let mut conn = server.db.read().await?;
        store::personal::account_data(&mut conn, user.as_str(), "", KIND).await?
    };
    let fresh = Arc::new(complete(user, stored.as_deref()));
    let mut cache = live.rules.lock();
    if live.generation.load(Ordering::Acquire) != generation {
        return Ok(fresh);
    }
    let rules = match &*cache {
        Some((_, before)) if same(before, &fresh) => Arc::clone(before),
        _ => fresh,
    };
    *cache = Some((generation, Arc::clone(&rules)));
    Ok(rules)
}

/// The rules as clients read them: every kind is there.
pub fn global(rules: &Ruleset) -> Result<Value> {
    let mut global = serde_json::to_value(rules)?;
    if let Value::Object(kinds) = &mut global {
        for kind in KINDS {
            kinds.entry(kind).or_insert_with(|| Value::Array(Vec::new()));
        }
    }
    Ok(global)
}

/// What an event means for a user: nothing for one's own events and for redacted ones.
pub async fn actions(ruleset: &Ruleset, event: &Event, room: &RoomView, user: &UserId) -> Vec<Action> {
    actions_in(ruleset, event, &context(room, user)).await
}

/// [`actions`] for many events of one room.
pub async fn actions_in(ruleset: &Ruleset, event: &Event, context: &PushConditionRoomCtx) -> Vec<Action> {
    if event.sender == context.user_id || event.redacted_by.is_some() {
        return Vec::new();
    }
    match Raw::<Value>::from_json_string(shown(event)) {
        Ok(raw) => {
            // A pattern with thousands of `*` makes ruma's regex too large, and ruma panics: a rule that cannot be
            // tried says nothing, and the follower goes on. Long patterns are refused when rules are set.
            let mut actions = Box::pin(ruleset.get_actions(&raw, context));
            std::future::poll_fn(|cx| {
                let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    actions.as_mut().poll(cx).map(<[Action]>::to_vec)
                }));
                polled.unwrap_or(std::task::Poll::Ready(Vec::new()))
            })
            .await
        }
        Err(_) => Vec::new(),
    }
}

/// The event as rules see it. Of a long text they see the beginning: ruma looks for a word by calling itself at each
/// place where it could be, and its stack must hold that.
fn shown(event: &Event) -> String {
    let whole = format!("{}}}", event.client);
    if whole.len() <= BODY_BYTES_MAX {
        return whole;
    }
    let Ok(mut value) = serde_json::from_str::<Value>(&whole) else { return whole };
    if let Some(Value::String(body)) = value.pointer_mut("/content/body") {
        let end = body.floor_char_boundary(BODY_BYTES_MAX);
        body.truncate(end);
    }
    value.to_string()
}

/// What the rules' conditions ask about the room and the user.
pub fn context(room: &RoomView, user: &UserId) -> PushConditionRoomCtx {
    let members = room
        .state
        .of_type(&StateEventType::RoomMember)
        .filter(|event| event.membership.as_deref() == Some("join"))
        .count();
    let display_name = room
        .state
        .content_str(&StateEventType::RoomMember, user.as_str(), "displayname")
        .unwrap_or_else(|| user.localpart().to_owned());
    let mut context = PushConditionRoomCtx::new(
        room.row.room_id.clone(),
        UInt::new_saturating(u64::try_from(members).unwrap_or(u64::MAX)),
        user.to_owned(),
        display_name,
    );
    context.power_levels = power_levels(room);
    context
}

/// Who may notify the room (`@room`).
fn power_levels(room: &RoomView) -> Option<PushConditionPowerLevelsCtx> {
    let rules = room.row.version.rules()?;
    let create = room.state.event(&StateEventType::RoomCreate, "")?;
    let mut creators: Vec<OwnedUserId> = vec![create.sender.clone()];
    if let Some(Value::Array(more)) = create.content_field("additional_creators") {
        creators.extend(more.iter().filter_map(|id| OwnedUserId::try_from(id.as_str()?).ok()));
    }
    let levels = room
        .state
        .event(&StateEventType::RoomPowerLevels, "")
        .and_then(|event| serde_json::from_str::<RoomPowerLevelsEventContent>(event.content.get()).ok());
    let levels = RoomPowerLevels::new(RoomPowerLevelsSource::from(levels), &rules.authorization, creators);
    Some(PushConditionPowerLevelsCtx::from(levels))
}

/// The stored rules with the server's defaults of today: new ones are added, the user's changes of old ones stay.
fn complete(user: &UserId, stored: Option<&str>) -> Ruleset {
    #[derive(Deserialize)]
    struct Stored {
        global: Ruleset,
    }
    let defaults = Ruleset::server_default(user);
    let Some(stored) = stored else { return defaults };
    match serde_json::from_str::<Stored>(stored) {
        Ok(Stored { global: mut rules }) => {
            rules.update_with_server_default(defaults);
            rules
        }
        Err(_) => {
            tracing::warn!("stored push rules cannot be read; the defaults apply");
            defaults
        }
    }
}

/// Rules are equal for ruma where their ids are; here everything counts.
fn same(a: &Ruleset, b: &Ruleset) -> bool {
    match (serde_json::to_string(a), serde_json::to_string(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use ruma::{push::RuleKind, user_id};

    use super::*;

    #[test]
    fn newer_defaults_are_added_and_changes_stay() {
        let user = user_id!("@p100001:example.jp");
        let mut old = Ruleset::server_default(user);
        old.set_enabled(RuleKind::Underride, ".m.rule.message", false).unwrap();
        old.override_.shift_remove(".m.rule.is_user_mention");
        let text = serde_json::json!({"global": old}).to_string();
        let rules = complete(user, Some(&text));
        assert!(rules.get(RuleKind::Override, ".m.rule.is_user_mention").is_some());
        assert!(!rules.get(RuleKind::Underride, ".m.rule.message").unwrap().enabled());
        assert!(same(&complete(user, Some("{\"global\":7}")), &Ruleset::server_default(user)));
    }

    #[test]
    fn every_kind_is_told() {
        let value = global(&Ruleset::server_default(user_id!("@p100001:example.jp"))).unwrap();
        for kind in KINDS {
            assert!(value[kind].is_array(), "{kind}");
        }
    }
}
