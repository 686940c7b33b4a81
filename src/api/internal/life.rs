//! What follows a room's closing: archiving, legal holds, export, purge, emergency access, redaction by order.

use std::sync::Arc;

use http::Method;
use ruma::{OwnedEventId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Place, on_room, once, room};
use crate::{
    error::{Error, Result, invalid},
    export,
    http::route::{Answer, Call, Routes},
    rooms::{
        batch::Batch,
        city,
        committer::Hint,
        life::{self, Glass, record},
        live::parking::Mutex,
    },
    server::Server,
    store,
};

/// The longest reason, in characters.
pub(super) const REASON_CHARS_MAX: usize = 500;
/// Events, and lines, that a purge names in the city's own rooms.
const FORGET_MAX: usize = 500;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/archive", |server, call| {
            on_room(server, call, |batch, place, body, acting| {
                Box::pin(async move { archive(batch, &place, &body, &acting).await })
            })
        })
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/hold", |server, call| {
            on_room(server, call, |batch, place, body: Step, acting| {
                Box::pin(async move {
                    let reason = reason(&body)?;
                    if life::place_hold(batch, &place.room_id, reason, &acting).await? {
                        record(batch, &acting, "room.hold", &place.room_id, "", &body.note());
                    }
                    Ok(json!({"held": true}))
                })
            })
        })
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/release", |server, call| {
            on_room(server, call, |batch, place, body: Step, acting| {
                Box::pin(async move {
                    if life::lift_hold(batch, &place.room_id, &acting).await? {
                        record(batch, &acting, "room.hold.end", &place.room_id, "", &body.note());
                    }
                    Ok(json!({"held": false}))
                })
            })
        })
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/break-glass", |server, call| async move {
            let lasts_ms = i64::from(server.config.policy.break_glass_hours) * 3_600_000;
            on_room(server, call, move |batch, place, body, acting| {
                Box::pin(async move { break_glass(batch, &place, &body, &acting, lasts_ms).await })
            })
            .await
        })
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/break-glass/end", |server, call| {
            on_room(server, call, |batch, place, body: Step, acting| {
                Box::pin(async move {
                    let staff = OwnedUserId::try_from(acting.as_str())?;
                    if life::end_access(batch, &place.city, &place.room_id, &staff).await? {
                        record(batch, &acting, "room.break_glass.end", &place.room_id, &acting, &body.note());
                    }
                    Ok(json!({}))
                })
            })
        })
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/redact", |server, call| {
            on_room(server, call, |batch, place, body: Redact, acting| {
                Box::pin(async move {
                    let target = OwnedEventId::try_from(body.event_id.as_str())
                        .map_err(|_| invalid("event_id is no event id."))?;
                    let by = life::redact_by_order(batch, &place.city, &place.room_id, &target).await?;
                    let note = note(&body.case, &body.reason);
                    record(batch, &acting, "room.redact", &place.room_id, target.as_str(), &note);
                    Ok(json!({"event_id": by}))
                })
            })
        })
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/export", export_room)
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/purge", purge)
}

/// What these calls take.
#[derive(Deserialize)]
struct Step {
    case: String,
    #[serde(default)]
    reason: String,
    /// Of an emergency access: how the room is told.
    #[serde(default)]
    notice: String,
}

impl Step {
    fn note(&self) -> String {
        note(&self.case, &self.reason)
    }
}

#[derive(Deserialize)]
struct Redact {
    case: String,
    event_id: String,
    #[serde(default)]
    reason: String,
}

/// What the audit log says of a case and why.
fn note(case: &str, reason: &str) -> String {
    let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
    if reason.is_empty() { format!("case {case}") } else { format!("case {case}: {reason}") }
}

fn reason(body: &Step) -> Result<&str> {
    if body.reason.chars().count() > REASON_CHARS_MAX {
        return Err(invalid("A reason has at most 500 characters (理由は500字までです)."));
    }
    Ok(&body.reason)
}

async fn archive(batch: &mut Batch, place: &Place, body: &Step, acting: &str) -> Result<Value> {
    let removed = life::archive(batch, &place.city, &place.room_id).await?;
    if removed.is_some() {
        record(batch, acting, "room.archive", &place.room_id, "", &body.note());
    }
    Ok(json!({"archived": true, "removed": removed.unwrap_or_default()}))
}

async fn break_glass(
    batch: &mut Batch,
    place: &Place,
    body: &Step,
    acting: &str,
    lasts_ms: i64,
) -> Result<Value> {
    let staff = OwnedUserId::try_from(acting)
        .map_err(|_| invalid("Emergency access is of a person: acting must be a member of city staff."))?;
    let reason = reason(body)?;
    let notice = if body.notice.trim().is_empty() { reason } else { &body.notice };
    let glass = Glass { staff: &staff, reason, lasts_ms, notice };
    let until = life::break_glass(batch, &place.city, &place.room_id, &glass).await?;
    record(batch, acting, "room.break_glass", &place.room_id, acting, &body.note());
    Ok(json!({"until": until}))
}

/// Ordered in one unit, then written by a task that goes on when the caller goes away; the same call again waits for
/// it and gets its answer.
async fn export_room(server: Arc<Server>, call: Call) -> Result<Answer> {
    let room_id = room(&call)?;
    let ordered = on_room(Arc::clone(&server), call, |batch, place, body: Step, acting| {
        Box::pin(async move {
            let status = city::city_room(batch, &place.room_id).await?;
            if matches!(status.as_str(), "purging" | "purged") {
                return Err(crate::error::refuse(
                    crate::error::Code::RoomState,
                    "This room has been purged: there is nothing to export.",
                )
                .with("status", status));
            }
            let number = batch.room(&place.room_id).await?.row.room_number.unwrap_or_default();
            record(batch, &acting, "room.export", &place.room_id, "", &body.note());
            // Named by this call: the same call finds the folder it made.
            Ok(json!({"folder": format!("exports/{number:04}-{}", crate::clock::random_token(8))}))
        })
    })
    .await?;
    let folder = field(&ordered, "folder")?;
    let written = tokio::spawn(async move { export::write(&server, &room_id, &folder).await }).await??;
    Ok(serde_json::to_value(written)?.into())
}

#[derive(Deserialize)]
struct PurgeOrder {
    #[serde(flatten)]
    step: Step,
    /// What of the city's own rooms goes with it.
    #[serde(default)]
    forget: life::Forget,
}

async fn purge(server: Arc<Server>, call: Call) -> Result<Answer> {
    let room_id = room(&call)?;
    let retention = server.config.retention.clone();
    let hinted = room_id.clone();
    let place = Place { room_id: room_id.clone(), city: server.city_user.clone() };
    // Taken from each call that comes, a repeated one too, and kept nowhere.
    let names = Arc::new(Mutex::new(life::Forget::default()));
    let given = Arc::clone(&names);
    once(
        Arc::clone(&server),
        call,
        move |body: &PurgeOrder| {
            given.lock().clone_from(&body.forget);
            Hint { rooms: vec![hinted], txn: None }
        },
        move |batch, body, acting| {
            Box::pin(async move {
                if body.forget.events.len().max(body.forget.lines.len()) > FORGET_MAX {
                    return Err(invalid("At most 500 events and lines to forget."));
                }
                city::city_room(batch, &place.room_id).await?;
                let kind = batch.room(&place.room_id).await?.row.kind.clone();
                let retention = retention.of(&kind);
                life::begin_purge(batch, &place.city, &place.room_id, retention, &acting).await?;
                record(batch, &acting, "room.purge", &place.room_id, "", &body.step.note());
                Ok(json!({"room_id": place.room_id}))
            })
        },
    )
    .await
    .map(drop)?;
    let names = std::mem::take(&mut *names.lock());
    let done = tokio::spawn(async move {
        let purge = life::carry_out_purge(&server, &room_id).await?;
        let forgotten = life::forget(&server, &names).await?;
        let row = store::rooms::row(&mut server.db.read().await?, &room_id).await?;
        let case = row.and_then(|row| row.opened_by_case);
        Ok::<_, Error>((life::purge_view(&purge, case.as_deref()), forgotten))
    });
    let (mut view, forgotten) = done.await??;
    view["forgotten"] = forgotten.into();
    Ok(view.into())
}

fn field(answer: &Answer, name: &str) -> Result<String> {
    let Answer::Json(text) = answer else { return Err(Error::internal("an answer that is no JSON")) };
    let value: Value = serde_json::from_str(text)?;
    value[name].as_str().map(str::to_owned).ok_or_else(|| Error::internal("an answer without its field"))
}
