//! Pushers, push rules and the list of notifications (client-server API, "Push Notifications").

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, UInt,
    api::client::push::{
        Pusher as Wanted, PusherIds, PusherKind, delete_pushrule, get_notifications, get_pushers,
        get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
        get_pushrules_global_scope, set_pusher, set_pusher::v3::PusherAction, set_pushrule,
        set_pushrule_actions, set_pushrule_enabled,
    },
    push::{Action, InsertPushRuleError, PushFormat, RemovePushRuleError, Ruleset},
    serde::Raw,
};
use serde_json::{Map, Value, json};

use crate::{
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller::Requester,
        route::{Answer, Routes, needed},
    },
    push::{Chosen, Pusher, SCOPE, Setting, counts, gateways, rules},
    rooms::{committer::Hint, ignored, pdu::Event},
    server::Server,
    store,
    sync::{render, token},
};

/// Pushers of one account at most: a facility ID is shared by many people, each with a phone of their own.
const PUSHERS_MAX: usize = 250;
/// The longest pushkey and app id, in bytes (client-server API, `POST /pushers/set`).
const PUSHKEY_BYTES_MAX: usize = 512;
const APP_ID_BYTES_MAX: usize = 64;
/// The longest pusher, in bytes of JSON.
const PUSHER_BYTES_MAX: usize = 8_192;
/// The most that a user's rules may take, in bytes of JSON.
const RULES_BYTES_MAX: usize = 65_536;
/// The app id of e-mail pushers.
const EMAIL_APP: &str = "m.email";
/// Notifications on a page at most, and where the request says nothing.
const PAGE_MAX: usize = 100;
const PAGE_DEFAULT: usize = 20;
/// Events looked at for one page of notifications, over all rooms.
const SCAN: usize = 3_000;

/// The endpoints.
#[must_use]
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<get_pushers::v3::Request, Requester, _, _>(pushers)
        .checked::<set_pusher::v3::Request, Requester, _, _>(pusher_shape, set)
        .raw::<get_pushrules_all::v3::Request, Requester, _, _>(all_rules)
        .raw::<get_pushrules_global_scope::v3::Request, Requester, _, _>(global_rules)
        .endpoint::<get_pushrule::v3::Request, Requester, _, _>(rule)
        .endpoint::<set_pushrule::v3::Request, Requester, _, _>(put_rule)
        .endpoint::<delete_pushrule::v3::Request, Requester, _, _>(delete_rule)
        .endpoint::<get_pushrule_enabled::v3::Request, Requester, _, _>(enabled)
        .endpoint::<set_pushrule_enabled::v3::Request, Requester, _, _>(put_enabled)
        .endpoint::<get_pushrule_actions::v3::Request, Requester, _, _>(actions)
        .endpoint::<set_pushrule_actions::v3::Request, Requester, _, _>(put_actions)
        .endpoint::<get_notifications::v3::Request, Requester, _, _>(notifications)
}

// ── Pushers ─────────────────────────────────────────────────────────────────────────────────

async fn pushers(server: Arc<Server>, who: Requester, _: get_pushers::v3::Request) -> Result<Answer> {
    let stored = {
        let mut conn = server.db.read().await?;
        store::push::pushers(&mut conn, who.user_id.as_str()).await?
    };
    let list: Vec<Value> =
        stored.iter().map(|pusher| serde_json::from_str(&pusher.pusher)).collect::<Result<_, _>>()?;
    Ok(json!({ "pushers": list }).into())
}

/// ruma takes a pusher without a kind for one to delete.
fn pusher_shape(body: &Map<String, Value>) -> Result<()> {
    let kind = needed(body, "kind")?;
    for name in ["app_id", "pushkey"] {
        needed(body, name)?;
    }
    if !kind.is_null() {
        for name in ["app_display_name", "device_display_name", "lang", "data"] {
            needed(body, name)?;
        }
    }
    Ok(())
}

async fn set(
    server: Arc<Server>,
    who: Requester,
    request: set_pusher::v3::Request,
) -> Result<set_pusher::v3::Response> {
    match request.action {
        PusherAction::Post(post) => put(&server, &who, post.pusher, post.append).await?,
        PusherAction::Delete(ids) => delete(&server, &who, ids).await?,
        _ => return Err(invalid("A pusher is set, or deleted with kind null.")),
    }
    Ok(set_pusher::v3::Response::new())
}

async fn put(server: &Arc<Server>, who: &Requester, wanted: Wanted, append: bool) -> Result<()> {
    let PusherIds { pushkey, app_id, .. } = wanted.ids.clone();
    if pushkey.is_empty() || pushkey.len() > PUSHKEY_BYTES_MAX {
        return Err(invalid("The pushkey must have 1 to 512 bytes."));
    }
    if app_id.is_empty() || app_id.len() > APP_ID_BYTES_MAX {
        return Err(invalid("The app_id must have 1 to 64 bytes."));
    }
    let by_mail = match &wanted.kind {
        PusherKind::Email(_) if app_id == EMAIL_APP => true,
        PusherKind::Email(_) => return Err(invalid("The app_id of an e-mail pusher is m.email.")),
        PusherKind::Http(data) => {
            check_gateway(server, &data.url, data.format.as_ref())?;
            false
        }
        _ => return Err(invalid("There is no such kind of pusher.")),
    };
    // A mail goes to a person's confirmed address; what an app gets goes with the app's session (C19).
    let device_id = who.device_id.clone().filter(|_| !by_mail);
    let session = who.session.is_some();
    let mut value = serde_json::to_value(&wanted)?;
    if let Some(scope) = value["data"].get(SCOPE)
        && scope.as_str().and_then(Chosen::of).is_none()
    {
        return Err(invalid("jp.heya.scope is \"highlight\", \"direct\" or \"all\"."));
    }
    if value.to_string().len() > PUSHER_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "The pusher is too large: at most 8,192 bytes."));
    }
    let pushers = Arc::clone(&server.pushers);
    let user_id = who.user_id.clone();
    let entry = who.entry(server.now(), "pusher.set");
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let conn = batch.sql().await?;
                if by_mail {
                    let addresses = store::addresses::addresses(conn, user_id.as_str()).await?;
                    if !addresses.iter().any(|(address, ..)| *address == pushkey) {
                        return Err(invalid(
                            "This address is not one of your account's: add and confirm it first.",
                        ));
                    }
                } else if let (true, Some(device)) = (session, &device_id) {
                    // The session may have ended since it was asked for: its pushers would stay behind.
                    let left =
                        store::sessions::sessions_of(conn, user_id.as_str(), Some(device.as_str())).await?;
                    if left.is_empty() {
                        return Err(refuse(
                            Code::UnknownToken { soft_logout: false },
                            "This session has ended: please log in.",
                        ));
                    }
                }
                let present = store::push::pushers(conn, user_id.as_str()).await?;
                let same = present.iter().find(|p| p.app_id == app_id && p.pushkey == pushkey);
                if same.is_none() && present.len() >= PUSHERS_MAX {
                    return Err(invalid("You have too many pushers: at most 250."));
                }
                // Clients know nothing of the scope, which is chosen by a word to the bot: it stays.
                if by_mail
                    && value["data"].get(SCOPE).is_none()
                    && let Some(scope) = same.and_then(|p| Setting::of(p).scope().map(ToOwned::to_owned))
                {
                    value["data"][SCOPE] = scope.into();
                }
                let pusher = Pusher {
                    user_id: user_id.to_string(),
                    app_id: app_id.clone(),
                    pushkey: pushkey.clone(),
                    id: same.map_or_else(|| crate::clock::random_token(16), |p| p.id.clone()),
                    pusher: value.to_string(),
                    device_id,
                    created_at: same.map_or(now, |p| p.created_at),
                };
                let unchanged = same
                    .is_some_and(|same| same.pusher == pusher.pusher && same.device_id == pusher.device_id);
                store::push::put(conn, &pusher).await?;
                let taken = !append
                    && store::push::delete_of_others(conn, user_id.as_str(), &app_id, &pushkey).await?;
                // Clients set theirs again whenever they start.
                if !unchanged || taken {
                    batch.audit(entry);
                }
                batch.after_commit(move || {
                    pushers.set(pusher);
                    if !append {
                        pushers.remove_of_others(&user_id, &app_id, &pushkey);
                    }
                });
                Ok(())
            })
        })
        .await
}

/// Whether a push gateway may be told anything: it must be one that the city has allowed, named exactly (DESIGN 18).
fn check_gateway(server: &Server, url: &str, format: Option<&PushFormat>) -> Result<()> {
    if format.is_some_and(|format| *format != PushFormat::EventIdOnly) {
        return Err(invalid("The format of a push gateway is event_id_only."));
    }
    if url.len() > gateways::URL_BYTES_MAX {
        return Err(invalid("The push gateway's URL is too long."));
    }
    match gateways::origin_of(url) {
        None => Err(invalid(
            "A push gateway's URL is https://, a host, and the path /_matrix/push/v1/notify, with nothing else.",
        )),
        Some(origin) if server.config.push.origins().contains(&origin) => Ok(()),
        Some(_) => Err(forbidden(
            "This push gateway is not one that this server may send notifications to: the allowed ones are named by \
             the operator (この通知サーバーは許可されていません).",
        )),
    }
}

async fn delete(server: &Arc<Server>, who: &Requester, ids: PusherIds) -> Result<()> {
    let pushers = Arc::clone(&server.pushers);
    let user_id = who.user_id.clone();
    let entry = who.entry(server.now(), "pusher.delete");
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let conn = batch.sql().await?;
                if store::push::delete(conn, user_id.as_str(), &ids.app_id, &ids.pushkey).await? {
                    batch.audit(entry);
                }
                batch.after_commit(move || pushers.remove(&user_id, &ids.app_id, &ids.pushkey));
                Ok(())
            })
        })
        .await
}

// ── Rules ───────────────────────────────────────────────────────────────────────────────────

async fn all_rules(server: Arc<Server>, who: Requester, _: get_pushrules_all::v3::Request) -> Result<Answer> {
    let rules = rules::ruleset(&server, &who.user_id).await?;
    Ok(json!({"global": rules::global(&rules)?}).into())
}

async fn global_rules(
    server: Arc<Server>,
    who: Requester,
    _: get_pushrules_global_scope::v3::Request,
) -> Result<Answer> {
    let rules = rules::ruleset(&server, &who.user_id).await?;
    Ok(rules::global(&rules)?.into())
}

async fn rule(
    server: Arc<Server>,
    who: Requester,
    request: get_pushrule::v3::Request,
) -> Result<get_pushrule::v3::Response> {
    let rules = rules::ruleset(&server, &who.user_id).await?;
    let rule = rules.get(request.kind, &request.rule_id).ok_or_else(no_such_rule)?;
    Ok(get_pushrule::v3::Response::new(rule.into()))
}

async fn enabled(
    server: Arc<Server>,
    who: Requester,
    request: get_pushrule_enabled::v3::Request,
) -> Result<get_pushrule_enabled::v3::Response> {
    let rules = rules::ruleset(&server, &who.user_id).await?;
    let rule = rules.get(request.kind, &request.rule_id).ok_or_else(no_such_rule)?;
    Ok(get_pushrule_enabled::v3::Response::new(rule.enabled()))
}

async fn actions(
    server: Arc<Server>,
    who: Requester,
    request: get_pushrule_actions::v3::Request,
) -> Result<get_pushrule_actions::v3::Response> {
    let rules = rules::ruleset(&server, &who.user_id).await?;
    let rule = rules.get(request.kind, &request.rule_id).ok_or_else(no_such_rule)?;
    Ok(get_pushrule_actions::v3::Response::new(rule.actions().to_vec()))
}

/// The longest rule, roughly, and wildcards in one: what they match is compiled for every message.
const RULE_BYTES_MAX: usize = 4_096;
const WILDCARDS_MAX: usize = 16;

async fn put_rule(
    server: Arc<Server>,
    who: Requester,
    request: set_pushrule::v3::Request,
) -> Result<set_pushrule::v3::Response> {
    let set_pushrule::v3::Request { rule, before, after, .. } = request;
    let text = format!("{rule:?}");
    if text.len() > RULE_BYTES_MAX || text.matches('*').count() > WILDCARDS_MAX {
        return Err(invalid("The rule is too long, or has too many wildcards."));
    }
    change(&server, &who, move |rules| {
        rules.insert(rule, after.as_deref(), before.as_deref()).map_err(|error| match error {
            InsertPushRuleError::UnknownRuleId => not_found("There is no rule of the id in before or after."),
            InsertPushRuleError::ServerDefaultRuleId => {
                invalid("Rule ids that begin with a dot are the server's.")
            }
            InsertPushRuleError::InvalidRuleId => {
                invalid("A rule id must not contain a slash or a backslash.")
            }
            _ => invalid("The rule cannot have this place."),
        })
    })
    .await?;
    Ok(set_pushrule::v3::Response::new())
}

async fn delete_rule(
    server: Arc<Server>,
    who: Requester,
    request: delete_pushrule::v3::Request,
) -> Result<delete_pushrule::v3::Response> {
    change(&server, &who, move |rules| {
        rules.remove(request.kind, &request.rule_id).map_err(|error| match error {
            RemovePushRuleError::ServerDefault => {
                invalid("The server's own rules cannot be deleted: disable the rule instead.")
            }
            _ => no_such_rule(),
        })
    })
    .await?;
    Ok(delete_pushrule::v3::Response::new())
}

async fn put_enabled(
    server: Arc<Server>,
    who: Requester,
    request: set_pushrule_enabled::v3::Request,
) -> Result<set_pushrule_enabled::v3::Response> {
    change(&server, &who, move |rules| {
        rules.set_enabled(request.kind, &request.rule_id, request.enabled).map_err(|_| no_such_rule())
    })
    .await?;
    Ok(set_pushrule_enabled::v3::Response::new())
}

async fn put_actions(
    server: Arc<Server>,
    who: Requester,
    request: set_pushrule_actions::v3::Request,
) -> Result<set_pushrule_actions::v3::Response> {
    change(&server, &who, move |rules| {
        rules.set_actions(request.kind, &request.rule_id, request.actions).map_err(|_| no_such_rule())
    })
    .await?;
    Ok(set_pushrule_actions::v3::Response::new())
}

fn no_such_rule() -> crate::error::Error {
    not_found("There is no such push rule.")
}

/// Changes a user's rules; they are account data, so that every device hears of it by sync.
async fn change(
    server: &Arc<Server>,
    who: &Requester,
    work: impl FnOnce(&mut Ruleset) -> Result<()> + Send,
) -> Result<()> {
    let _alone = server.pushers.changing_rules.lock().await;
    let present = rules::ruleset(server, &who.user_id).await?;
    let mut rules = Ruleset::clone(&present);
    work(&mut rules)?;
    let content = json!({"global": rules::global(&rules)?}).to_string();
    if content.len() > RULES_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "You have too many push rules: at most 65,536 bytes."));
    }
    let user_id = who.user_id.clone();
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.account_data(&user_id, "", rules::KIND, content);
                Ok(())
            })
        })
        .await
}

// ── Notifications ───────────────────────────────────────────────────────────────────────────

/// What notified the user, newest first, from the events since they joined each room. Every page looks at a bounded
/// number of events; a page may be short, or empty, and still have a next one.
async fn notifications(
    server: Arc<Server>,
    who: Requester,
    request: get_notifications::v3::Request,
) -> Result<get_notifications::v3::Response> {
    let limit = request
        .limit
        .map_or(PAGE_DEFAULT, |n| usize::try_from(u64::from(n)).unwrap_or(PAGE_MAX))
        .clamp(1, PAGE_MAX);
    let before = match request.from.as_deref() {
        None | Some("") => i64::MAX,
        Some(from) => token::parse_room_token(from, &server.epoch)?,
    };
    let only_highlights = request.only.as_deref() == Some("highlight");
    let ruleset = rules::ruleset(&server, &who.user_id).await?;
    let (candidates, floor) = candidates(&server, &who, before).await?;
    let mut contexts: BTreeMap<
        OwnedRoomId,
        (ruma::push::PushConditionRoomCtx, Arc<crate::rooms::live::LiveRoom>),
    > = BTreeMap::new();
    let mut found: Vec<(Arc<Event>, Vec<Action>, bool)> = Vec::new();
    let mut next = (floor > 0).then_some(floor);
    let ignored = ignored::by(&server, &who.user_id).await?;
    for event in candidates {
        if ignored.hides(&event) {
            continue;
        }
        if found.len() == limit {
            next = found.last().map(|(last, ..)| last.position);
            break;
        }
        let (context, room) = match contexts.entry(event.room_id.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let room = server.live.room(&server.db, &event.room_id).await?;
                let context = rules::context(&*room.current()?, &who.user_id);
                place.insert((context, room))
            }
        };
        let actions = rules::actions_in(&ruleset, &event, context).await;
        let (notifies, highlights) = counts::verdict(&actions);
        if notifies && (highlights || !only_highlights) {
            let read = counts::has_read(room, &who.user_id, &event);
            found.push((event, actions, read));
        }
    }
    let mut list = Vec::with_capacity(found.len());
    let mut shown: Vec<&OwnedRoomId> = Vec::new();
    for (event, actions, read) in &found {
        if !shown.contains(&&event.room_id) {
            crate::reading::opened(&server, &who, &event.room_id, "notifications").await?;
            shown.push(&event.room_id);
        }
        list.push(get_notifications::v3::Notification::new(
            actions.clone(),
            Raw::from_json_string(render::event(event, Some(&who), server.now()))?,
            *read,
            event.room_id.clone(),
            MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::try_from(event.ts).unwrap_or_default())),
        ));
    }
    let mut response = get_notifications::v3::Response::new(list);
    response.next_token = next.map(|position| token::room_token(position, &server.epoch));
    Ok(response)
}

/// The newest events of all joined rooms before a position, newest first, and the position from which on they are
/// complete (0: there are no older ones).
async fn candidates(server: &Server, who: &Requester, before: i64) -> Result<(Vec<Arc<Event>>, i64)> {
    let rooms: Vec<(OwnedRoomId, i64)> = {
        let live = server.live.user(&who.user_id);
        let rooms = live.rooms.read();
        rooms
            .iter()
            .filter(|(_, membership)| membership.membership == "join")
            .map(|(room_id, membership)| (room_id.clone(), membership.changed_at))
            .collect()
    };
    let each = (SCAN / rooms.len().max(1)).clamp(10, 100);
    let mut conn = server.db.read().await?;
    let mut events = Vec::new();
    let mut floor = 0;
    for (room_id, joined_at) in rooms {
        let page = store::events::before(&mut conn, &room_id, before, each).await?;
        if page.len() == each
            && let Some(oldest) = page.last()
            && oldest.position > joined_at
        {
            floor = floor.max(oldest.position);
        }
        events.extend(page.into_iter().filter(|event| event.position > joined_at));
    }
    events.retain(|event| event.position >= floor);
    events.sort_unstable_by_key(|event| std::cmp::Reverse(event.position));
    Ok((events, floor))
}
