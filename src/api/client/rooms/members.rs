//! Memberships: invite, join, leave, kick, ban, forget; who is in a room.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::knock::knock_room::v3 as knock,
    api::client::membership::{
        ban_user::v3 as ban, forget_room::v3 as forget, get_member_events::v3 as members,
        invite_user::v3 as invite, join_room_by_id::v3 as join, join_room_by_id_or_alias::v3 as join_any,
        joined_members::v3 as joined_members, joined_rooms::v3 as joined_rooms, kick_user::v3 as kick,
        leave_room::v3 as leave, unban_user::v3 as unban,
    },
};
use serde_json::json;

use crate::{
    api::client::directory::resolve,
    error::{Code, Result, forbidden, invalid, refuse},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    reading,
    rooms::{
        access,
        batch::Batch,
        committer::{Hint, UnitFuture},
        history, member,
    },
    server::Server,
    store,
    sync::{render, token},
};

/// The longest reason of a knock, in characters.
const REASON_MAX: usize = 1_000;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<invite::Request, Requester, _, _>(|server, who, request| async move {
            let invite::InvitationRecipient::UserId(recipient) = request.recipient else {
                return Err(refuse(
                    Code::ServerNotTrusted,
                    "People are invited by their user id: this server knows no identity server.",
                ));
            };
            let (target, reason) = (recipient.user_id, recipient.reason);
            known(&server, &who, &request.room_id, &target).await?;
            change(
                &server,
                &who,
                request.room_id,
                "member.invite",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move {
                        member::invite(batch, room_id, sender, &target, reason.as_deref()).await
                    })
                },
            )
            .await
        })
        .raw::<join::Request, Requester, _, _>(|server, who, request| async move {
            joined(&server, &who, request.room_id, request.reason).await
        })
        .raw::<join_any::Request, Requester, _, _>(|server, who, request| async move {
            let room_id = match OwnedRoomId::try_from(request.room_id_or_alias) {
                Ok(room_id) => room_id,
                Err(alias) => resolve(&server, &who, &alias).await?,
            };
            joined(&server, &who, room_id, request.reason).await
        })
        .raw::<knock::Request, Requester, _, _>(knocked)
        .raw::<leave::Request, Requester, _, _>(|server, who, request| async move {
            let target = who.user_id.clone();
            let reason = request.reason;
            change(
                &server,
                &who,
                request.room_id,
                "member.leave",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move { member::leave(batch, room_id, sender, reason.as_deref()).await })
                },
            )
            .await
        })
        .raw::<kick::Request, Requester, _, _>(|server, who, request| async move {
            let (target, reason) = (request.user_id, request.reason);
            change(
                &server,
                &who,
                request.room_id,
                "member.remove",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(
                        async move { member::kick(batch, room_id, sender, &target, reason.as_deref()).await },
                    )
                },
            )
            .await
        })
        .raw::<ban::Request, Requester, _, _>(|server, who, request| async move {
            let (target, reason) = (request.user_id, request.reason);
            change(
                &server,
                &who,
                request.room_id,
                "member.ban",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move {
                        member::ban(batch, room_id, sender, &target, true, reason.as_deref()).await
                    })
                },
            )
            .await
        })
        .raw::<unban::Request, Requester, _, _>(|server, who, request| async move {
            let (target, reason) = (request.user_id, request.reason);
            change(
                &server,
                &who,
                request.room_id,
                "member.unban",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move {
                        member::ban(batch, room_id, sender, &target, false, reason.as_deref()).await
                    })
                },
            )
            .await
        })
        .raw::<forget::Request, Requester, _, _>(forget_room)
        .raw::<joined_rooms::Request, Requester, _, _>(|server, who, _| async move {
            Ok(json!({"joined_rooms": server.live.joined_rooms(&who.user_id)}).into())
        })
        .raw::<joined_members::Request, Requester, _, _>(|server, who, request| async move {
            let (room, sight) = history::sight(&server, &who.user_id, &request.room_id).await?;
            if !sight.is_member() {
                return Err(forbidden("You are not a member of this room."));
            }
            reading::state(&server, &who, &request.room_id).await?;
            let view = room.current()?;
            let mut joined = serde_json::Map::new();
            for (user_id, event) in view.state.members("join") {
                let content: serde_json::Value = serde_json::from_str(event.content.get())?;
                let mut shown = serde_json::Map::new();
                for (from, to) in [("displayname", "display_name"), ("avatar_url", "avatar_url")] {
                    if let Some(text) = content.get(from).filter(|value| value.is_string()) {
                        shown.insert(to.to_owned(), text.clone());
                    }
                }
                joined.insert(user_id.to_string(), shown.into());
            }
            Ok(json!({"joined": joined}).into())
        })
        .raw::<members::Request, Requester, _, _>(list)
}

/// A membership set as state: the same as the endpoint for it, with the register's name and the audit log's line.
pub(super) async fn by_state(
    server: &Arc<Server>,
    who: &Requester,
    room_id: OwnedRoomId,
    target: &str,
    content: &CanonicalJsonObject,
) -> Result<Answer> {
    hide_unknown(server, who, &room_id)?;
    let target = OwnedUserId::try_from(target).map_err(|_| invalid("The state key is no user id."))?;
    let text = |field: &str| content.get(field).and_then(|value| value.as_str()).map(ToOwned::to_owned);
    let (membership, reason) = (text("membership").unwrap_or_default(), text("reason"));
    let own = target == who.user_id;
    let present = server.live.membership(&target, &room_id).map(|m| m.membership);
    let (room, subject) = (room_id.clone(), target.clone());
    match membership.as_str() {
        "join" if own && closed(server, &room_id).await? => {
            return Err(forbidden("This room has been closed (この部屋は終了しました)."));
        }
        "join" if own => joined(server, who, room_id.clone(), reason).await?,
        "leave" if own => {
            change(
                server,
                who,
                room_id.clone(),
                "member.leave",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move { member::leave(batch, room_id, sender, reason.as_deref()).await })
                },
            )
            .await?
        }
        "invite" => {
            known(server, who, &room_id, &target).await?;
            change(
                server,
                who,
                room_id.clone(),
                "member.invite",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move {
                        member::invite(batch, room_id, sender, &subject, reason.as_deref()).await
                    })
                },
            )
            .await?
        }
        "leave" if present.as_deref() == Some("ban") => {
            change(
                server,
                who,
                room_id.clone(),
                "member.unban",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move {
                        member::ban(batch, room_id, sender, &subject, false, reason.as_deref()).await
                    })
                },
            )
            .await?
        }
        "leave" => {
            change(
                server,
                who,
                room_id.clone(),
                "member.remove",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move {
                        member::kick(batch, room_id, sender, &subject, reason.as_deref()).await
                    })
                },
            )
            .await?
        }
        "ban" => {
            change(
                server,
                who,
                room_id.clone(),
                "member.ban",
                target.clone(),
                move |batch, room_id, sender| {
                    Box::pin(async move {
                        member::ban(batch, room_id, sender, &subject, true, reason.as_deref()).await
                    })
                },
            )
            .await?
        }
        _ => return Err(forbidden("You are not allowed to do this in this room.")),
    };
    let event_id = server.live.membership(&target, &room).map(|m| m.event_id);
    Ok(json!({"event_id": event_id}).into())
}

/// An invitation to somebody unknown may be to a user that an appservice makes when it is asked.
async fn known(server: &Arc<Server>, who: &Requester, room_id: &RoomId, target: &UserId) -> Result<()> {
    if server.live.is_joined(&who.user_id, room_id) {
        asked_for(server, target).await?;
    }
    Ok(())
}

/// Asks the appservice whose namespace an unknown user is in.
pub(super) async fn asked_for(server: &Arc<Server>, user_id: &UserId) -> Result<()> {
    let account = store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?;
    if account.is_none() {
        server.appservices.ask_user(user_id).await;
    }
    Ok(())
}

async fn closed(server: &Arc<Server>, room_id: &RoomId) -> Result<bool> {
    Ok(server.live.room(&server.db, room_id).await?.current()?.row.status != "open")
}

/// Runs a change of membership as a unit with its line in the audit log (C23).
async fn change<F>(
    server: &Arc<Server>,
    who: &Requester,
    room_id: OwnedRoomId,
    action: &str,
    target: OwnedUserId,
    unit: F,
) -> Result<Answer>
where
    F: for<'b> FnOnce(&'b mut Batch, &'b RoomId, &'b UserId) -> UnitFuture<'b, ()> + Send + 'static,
{
    hide_unknown(server, who, &room_id)?;
    let entry = crate::audit::Entry {
        room_id: room_id.to_string(),
        target: target.to_string(),
        ..who.entry(server.now(), action)
    };
    let sender = who.user_id.clone();
    server
        .commit(Hint { rooms: vec![room_id.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                let before = member_event(batch, &room_id, &target).await?;
                unit(batch, &room_id, &sender).await?;
                // What changes nothing is no line in a log that is never shortened.
                if member_event(batch, &room_id, &target).await? != before {
                    batch.audit(entry);
                }
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

/// The event that says what somebody is to a room.
async fn member_event(
    batch: &mut Batch,
    room_id: &RoomId,
    of: &UserId,
) -> Result<Option<ruma::OwnedEventId>> {
    let state = &batch.room(room_id).await?.state;
    Ok(state.event(&"m.room.member".into(), of.as_str()).map(|event| event.event_id.clone()))
}

/// Who has nothing to do with a room is not told whether it exists.
fn hide_unknown(server: &Server, who: &Requester, room_id: &RoomId) -> Result<()> {
    if server.live.membership(&who.user_id, room_id).is_none() {
        // Bridges take it that they have left where they are told so (MSC3848, by its unstable name).
        return Err(forbidden("You are not in this room.")
            .with("org.matrix.msc3848.unstable.errcode", "ORG.MATRIX.MSC3848.NOT_JOINED"));
    }
    Ok(())
}

async fn joined(
    server: &Arc<Server>,
    who: &Requester,
    room_id: OwnedRoomId,
    reason: Option<String>,
) -> Result<Answer> {
    let everybody = server.config.policy.open_profile || who.appservice.is_some();
    if !everybody
        && hide_unknown(server, who, &room_id).is_err()
        && access::seen(server, who, &room_id).await?.is_none()
    {
        // What shows itself to outsiders is joined by its own rules; of the rest nobody is told that it exists.
        return Err(forbidden("You are not a member of this room."));
    }
    let entry = crate::audit::Entry {
        room_id: room_id.to_string(),
        target: who.user_id.to_string(),
        ..who.entry(server.now(), "member.join")
    };
    let (user_id, joining) = (who.user_id.clone(), room_id.clone());
    server
        .commit(Hint { rooms: vec![room_id.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                let before = member_event(batch, &joining, &user_id).await?;
                member::join(batch, &joining, &user_id, reason.as_deref()).await?;
                if member_event(batch, &joining, &user_id).await? != before {
                    batch.audit(entry);
                }
                Ok(())
            })
        })
        .await?;
    Ok(json!({"room_id": room_id}).into())
}

/// Knocks on a room. Where knocking is off, all rooms are refused alike; else those that the caller may not know of.
async fn knocked(server: Arc<Server>, who: Requester, request: knock::Request) -> Result<Answer> {
    if !server.config.policy.knocking {
        return Err(forbidden("Knocking is switched off on this server (入室の申請はできません)."));
    }
    let reason = request.reason;
    if reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON_MAX) {
        return Err(invalid("A reason has at most 1,000 characters."));
    }
    let room_id = match OwnedRoomId::try_from(request.room_id_or_alias) {
        Ok(room_id) => room_id,
        Err(alias) => resolve(&server, &who, &alias).await?,
    };
    let everybody = server.config.policy.open_profile || who.appservice.is_some();
    if !everybody && access::seen(&server, &who, &room_id).await?.is_none() {
        return Err(forbidden("You are not allowed to knock on this room."));
    }
    let entry = crate::audit::Entry {
        room_id: room_id.to_string(),
        target: who.user_id.to_string(),
        ..who.entry(server.now(), "member.knock")
    };
    let (user_id, knocking) = (who.user_id.clone(), room_id.clone());
    server
        .commit(Hint { rooms: vec![room_id.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                member::knock(batch, &knocking, &user_id, reason.as_deref()).await?;
                batch.audit(entry);
                Ok(())
            })
        })
        .await?;
    Ok(json!({"room_id": room_id}).into())
}

async fn forget_room(server: Arc<Server>, who: Requester, request: forget::Request) -> Result<Answer> {
    let membership = server
        .live
        .membership(&who.user_id, &request.room_id)
        .ok_or_else(|| forbidden("You were never in this room."))?;
    if !matches!(membership.membership.as_str(), "leave" | "ban") {
        return Err(refuse(Code::Unknown, "Please leave the room before you forget it."));
    }
    let live = Arc::clone(&server.live);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                store::rooms::forget(batch.sql().await?, who.user_id.as_str(), &request.room_id).await?;
                batch.after_commit(move || {
                    if let Some(membership) = live.user(&who.user_id).rooms.write().get_mut(&request.room_id)
                    {
                        membership.forgotten = true;
                    }
                });
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

async fn list(server: Arc<Server>, who: Requester, request: members::Request) -> Result<Answer> {
    let (room, sight) = history::sight(&server, &who.user_id, &request.room_id).await?;
    if !sight.reads_state() {
        return Err(forbidden("You are not a member of this room."));
    }
    reading::state(&server, &who, &request.room_id).await?;
    let view = room.current()?;
    let at = request.at.as_deref().map(|at| token::parse_room_token(at, &server.epoch)).transpose()?;
    let upto = at.unwrap_or(i64::MAX).min(sight.upto());
    let state = history::state_before(&server, &view, upto.saturating_add(1)).await?;
    let wanted = request.membership.map(|m| m.to_string());
    let unwanted = request.not_membership.map(|m| m.to_string());
    let known = |m: &String| ["join", "invite", "knock", "leave", "ban"].contains(&m.as_str());
    if !wanted.iter().chain(&unwanted).all(known) {
        return Err(invalid("There is no such membership."));
    }
    let now = server.now();
    let mut out = String::from("{\"chunk\":");
    let events = state.iter().filter(|event| {
        event
            .membership
            .as_ref()
            .is_some_and(|m| wanted.as_ref().is_none_or(|wanted| wanted == m) && unwanted.as_ref() != Some(m))
    });
    render::write_list(&mut out, events, |out, event| render::write_event(out, event, Some(&who), now, true));
    out.push('}');
    Ok(Answer::Json(out))
}
