//! Rooms opened, changed and closed as one unit; announcements.

use std::sync::Arc;

use http::Method;
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Place, city as city_token, on_room, once, room, users};
use crate::{
    accounts::{addresses::owe_mail, register::city_staff},
    error::{Code, Result, invalid, not_found, refuse},
    http::route::{Answer, Call, Routes},
    rooms::{
        batch::Batch,
        city::{self, Opening},
        committer::Hint,
        direct,
        life::record,
        live::RoomRow,
    },
    server::Server,
    store,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/_heya/v1/rooms", list)
        .at(Method::POST, "/_heya/v1/rooms", |server, call| async move {
            let (city_user, secret) = (server.city_user.clone(), server.subject_secret.clone());
            let owed = Arc::clone(&server.mail_owed);
            once(
                server,
                call,
                |_: &Open| Hint::default(),
                move |batch, body, acting| {
                    Box::pin(async move { open(batch, &city_user, &secret, &owed, body, &acting).await })
                },
            )
            .await
        })
        .at(Method::GET, "/_heya/v1/rooms/{room_id}", one)
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/members", |server, call| {
            on_room(server, call, |batch, place, body, acting| {
                Box::pin(async move { change_members(batch, &place, &body, &acting).await })
            })
        })
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/close", |server, call| {
            on_room(server, call, |batch, place, body, acting| {
                Box::pin(async move { close(batch, &place, &body, &acting).await })
            })
        })
        .at(Method::POST, "/_heya/v1/rooms/{room_id}/reopen", |server, call| {
            on_room(server, call, |batch, place, body: Notice, acting| {
                Box::pin(async move {
                    if city::reopen(batch, &place.city, &place.room_id, &body.notice).await? {
                        record(batch, &acting, "room.reopen", &place.room_id, "", &of(&body.case));
                    }
                    Ok(json!({"closed": false}))
                })
            })
        })
        .at(Method::POST, "/_heya/v1/announcements", |server, call| async move {
            let city_user = server.city_user.clone();
            once(
                server,
                call,
                |_: &Announcement| Hint::default(),
                move |batch, body, acting| {
                    Box::pin(async move { announce(batch, &city_user, body, &acting).await })
                },
            )
            .await
        })
}

#[derive(Deserialize)]
struct Open {
    case: String,
    kind: String,
    name: Option<String>,
    subject: Option<Subject>,
    #[serde(default)]
    members: Vec<String>,
    opening_notice: Option<String>,
    requested_by: Option<String>,
    #[serde(default)]
    confirm_second: bool,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
    birth_date: String,
    #[serde(default)]
    address: String,
    eligibility: String,
    approval_note: Option<String>,
}

#[derive(Deserialize)]
struct Members {
    case: String,
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
    notice: Option<String>,
}

#[derive(Deserialize)]
struct Notice {
    case: String,
    notice: String,
}

#[derive(Deserialize)]
struct Announcement {
    case: String,
    body: String,
    facilities: Option<Vec<i64>>,
}

/// How the audit log names a case.
fn of(case: &str) -> String {
    format!("case {case}")
}

async fn change_members(batch: &mut Batch, place: &Place, body: &Members, acting: &str) -> Result<Value> {
    let Place { room_id, city } = place;
    let (add, remove) = (users(&body.add)?, users(&body.remove)?);
    let (added, removed, unchanged) = city::change_members(batch, city, room_id, &add, &remove).await?;
    if let Some(notice) = &body.notice {
        city::say(batch, city, room_id, notice).await?;
    }
    let people = |list: &[OwnedUserId]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let detail = format!("{}: added {}; removed {}", of(&body.case), people(&added), people(&removed));
    record(batch, acting, "room.members", room_id, "", &detail);
    Ok(json!({"added": added, "removed": removed, "unchanged": unchanged}))
}

async fn close(batch: &mut Batch, place: &Place, body: &Notice, acting: &str) -> Result<Value> {
    let protected = store::meta::value(batch.reading(), "control_room").await?;
    let announcement = store::meta::value(batch.reading(), "announcement_room").await?;
    if [protected, announcement].iter().flatten().any(|id| *id == place.room_id) {
        return Err(invalid("The control room and the announcement room are never closed."));
    }
    if city::close(batch, &place.city, &place.room_id, &body.notice).await? {
        record(batch, acting, "room.close", &place.room_id, "", &of(&body.case));
    }
    Ok(json!({"closed": true}))
}

async fn open(
    batch: &mut Batch,
    city_user: &UserId,
    secret: &str,
    owed: &Arc<tokio::sync::Notify>,
    body: Open,
    acting: &str,
) -> Result<Value> {
    // One room per case, whatever key the call came with.
    let of_case = format!("room of case {}", body.case);
    if let Some(answer) = store::meta::idempotent_answer(batch.reading(), &of_case).await? {
        return Ok(serde_json::from_str(&answer)?);
    }
    let (name, subject_key) = match (body.kind.as_str(), body.subject) {
        ("subject", Some(subject)) => {
            let complete =
                [&subject.name, &subject.birth_date, &subject.address].iter().all(|s| !s.trim().is_empty());
            if !complete {
                return Err(invalid(
                    "A subject's room needs the name, birth date and address (氏名・生年月日・住所).",
                ));
            }
            match subject.eligibility.as_str() {
                "home" | "planned" => {}
                "approved" if subject.approval_note.as_ref().is_some_and(|note| !note.trim().is_empty()) => {}
                "approved" => {
                    return Err(invalid(
                        "Eligibility by the mayor's approval needs a note (③には理由が必要です).",
                    ));
                }
                _ => return Err(invalid("eligibility is \"home\", \"planned\" or \"approved\".")),
            }
            let key = city::subject_key(secret, &subject.name, &subject.birth_date);
            if !body.confirm_second
                && let Some(number) = store::rooms::open_room_of_subject(batch.reading(), &key).await?
            {
                return Err(refuse(Code::SubjectHasRoom, "This subject has an open room already.")
                    .with("room_number", number));
            }
            (body.name.unwrap_or_else(|| format!("{}さんの部屋", subject.name.trim())), Some(key))
        }
        ("association", None) => {
            let name = body.name.filter(|name| !name.trim().is_empty());
            (name.ok_or_else(|| invalid("An association's room needs its name."))?, None)
        }
        _ => return Err(invalid("kind is \"subject\" with a subject, or \"association\" without one.")),
    };
    if name.chars().count() > 255 {
        return Err(invalid("The name has at most 255 characters."));
    }
    let mut members = users(&body.members)?;
    members.sort_unstable();
    members.dedup();
    members.retain(|id| id != city_user);
    let all_staff = city_staff(batch.reading()).await?;
    let staff = all_staff.into_iter().filter(|id| members.contains(id)).collect();
    let opening = Opening {
        kind: body.kind,
        name,
        subject_key,
        facility: None,
        members: members.clone(),
        staff,
        notice: body.opening_notice,
        case: Some(body.case.clone()),
    };
    let (room_id, number) = city::open(batch, city_user, opening).await?;
    owe_opening_mails(batch, owed, &members, body.requested_by.as_deref(), number).await?;
    record(batch, acting, "room.open", &room_id, "", &of(&body.case));
    let answer = json!({"room_id": room_id, "room_number": number});
    let now = batch.now;
    store::meta::keep_answer(batch.sql().await?, &of_case, &answer.to_string(), now).await?;
    Ok(answer)
}

/// The done-mail of the handbook (部屋の開設後、「メール通知」の設定先に): to the requester, by the room's number only.
/// Members with mail notification are told by their pushers.
async fn owe_opening_mails(
    batch: &mut Batch,
    owed: &Arc<tokio::sync::Notify>,
    members: &[OwnedUserId],
    requested_by: Option<&str>,
    number: i64,
) -> Result<()> {
    let Some(requester) = requested_by.filter(|id| !members.iter().any(|member| member == id)) else {
        return Ok(());
    };
    owe_mail(batch, owed, requester, "room_opened", json!({"room_number": number})).await
}

async fn announce(batch: &mut Batch, city_user: &UserId, body: Announcement, acting: &str) -> Result<Value> {
    let mut event_ids = Vec::new();
    let facilities = match body.facilities {
        None => {
            let room = store::meta::value(batch.reading(), "announcement_room").await?;
            let room =
                OwnedRoomId::try_from(room.ok_or_else(|| not_found("There is no announcement room."))?)?;
            event_ids.push(city::say(batch, city_user, &room, &body.body).await?);
            record(batch, acting, "announce", &room, "", &of(&body.case));
            store::rooms::facilities_in(batch.reading(), &room).await?
        }
        Some(list) => {
            if list.is_empty() || list.len() > 300 {
                return Err(invalid("1 to 300 facilities."));
            }
            for facility in &list {
                let room = liaison_room(batch, city_user, *facility).await?;
                event_ids.push(city::say(batch, city_user, &room, &body.body).await?);
                record(batch, acting, "announce", &room, "", &of(&body.case));
            }
            i64::try_from(list.len()).unwrap_or(i64::MAX)
        }
    };
    Ok(json!({"event_ids": event_ids, "facilities": facilities}))
}

/// The liaison room (連絡部屋) of a facility, made when first needed: its facility ID and the city.
async fn liaison_room(batch: &mut Batch, city_user: &UserId, facility: i64) -> Result<OwnedRoomId> {
    if let Some(room) = store::rooms::liaison_room(batch.reading(), facility).await? {
        return Ok(room);
    }
    let found = store::accounts::facility(batch.reading(), facility)
        .await?
        .ok_or_else(|| not_found("There is no such facility."))?;
    let member = store::accounts::facility_account(batch.reading(), facility)
        .await?
        .ok_or_else(|| not_found("This facility has no facility ID, so there is nobody to write to."))?;
    let opening = Opening {
        kind: "liaison".to_owned(),
        name: format!("連絡部屋 {}", found.name),
        subject_key: None,
        facility: Some(facility),
        members: vec![member.try_into()?],
        staff: Vec::new(),
        notice: None,
        case: None,
    };
    Ok(city::open(batch, city_user, opening).await?.0)
}

async fn view(server: &Arc<Server>, row: &RoomRow, held: bool) -> Result<Value> {
    let room = server.live.room(&server.db, &row.room_id).await?;
    let view = room.current()?;
    let name = if row.kind == "direct" {
        Some(direct::name(&view.state, &server.city_user))
    } else {
        view.state.content_str(&ruma::events::StateEventType::RoomName, "", "name")
    };
    let members = view.state.members("join").filter(|(id, _)| *id != server.city_user).count();
    Ok(json!({
        "room_id": row.room_id, "room_number": row.room_number, "kind": row.kind, "name": name,
        "status": row.status, "members": members,
        "closed_at": row.closed_at, "archived_at": row.archived_at,
        "held": held,
        "purge_from": row.closed_at.map(|at| at + server.config.retention.of(&row.kind)),
    }))
}

async fn list(server: Arc<Server>, call: Call) -> Result<Answer> {
    city_token(&server, &call)?;
    let status = call.query("status");
    let mut conn = server.db.read().await?;
    let rows = store::rooms::city_rooms(&mut conn).await?;
    let held = store::life::held_rooms(&mut conn).await?;
    drop(conn);
    let mut rooms = Vec::new();
    for row in rows.iter().filter(|row| status.as_ref().is_none_or(|status| *status == row.status)) {
        rooms.push(view(&server, row, held.iter().any(|id| row.room_id == *id)).await?);
    }
    Ok(json!({"rooms": rooms}).into())
}

async fn one(server: Arc<Server>, call: Call) -> Result<Answer> {
    city_token(&server, &call)?;
    let room_id = room(&call)?;
    let mut conn = server.db.read().await?;
    let row = store::rooms::row(&mut conn, &room_id)
        .await?
        .filter(|row| row.room_number.is_some())
        .ok_or_else(|| not_found("That is no room of the city."))?;
    let held = store::life::hold(&mut conn, &room_id).await?.is_some();
    let mut answer = view(&server, &row, held).await?;
    let room = server.live.room(&server.db, &room_id).await?;
    let mut members = Vec::new();
    for (user_id, event) in room.current()?.state.members("join") {
        if user_id == server.city_user {
            continue;
        }
        let account = store::accounts::account(&mut conn, user_id.as_str()).await?;
        members.push(json!({
            "user_id": user_id,
            "display_name": event.content_str("displayname"),
            "facility": account.and_then(|account| account.facility),
        }));
    }
    answer["members"] = members.into();
    answer["opened_by_case"] = row.opened_by_case.into();
    Ok(answer.into())
}
