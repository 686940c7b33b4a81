//! Reports (通報): somebody calls the city's attention to a room, an event or a person. The city is told in its control
//! room by numbers and ids; the reason, which may name a patient, stays in the database (`GET /_heya/v1/reports`).

use std::sync::Arc;

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};

use super::{city, history};
use crate::{
    error::{Code, Result, refuse},
    http::caller::Requester,
    rooms::committer::Hint,
    server::Server,
    store::{self, reports::Report},
};

/// The longest reason, in characters.
const REASON_MAX: usize = 1_000;
/// Reports of one account within a day.
const A_DAY_MAX: i64 = 50;
const DAY_MS: i64 = 86_400_000;

/// What is reported.
#[derive(Clone, Debug)]
pub enum About {
    /// A room.
    Room(OwnedRoomId),
    /// An event.
    Event(OwnedRoomId, OwnedEventId),
    /// A person.
    User(OwnedUserId),
}

/// Takes a report. The answer is the same whether what it names exists or not (MSC4277), and so is what it costs.
pub async fn take(server: &Arc<Server>, who: &Requester, about: About, reason: String) -> Result<()> {
    if reason.chars().count() > REASON_MAX {
        return Err(refuse(Code::TooLarge, "A reason has at most 1,000 characters."));
    }
    let mut report = Report {
        id: 0,
        at: server.now(),
        reporter: who.user_id.to_string(),
        room_id: String::new(),
        event_id: String::new(),
        user_id: String::new(),
        reason,
        known: false,
    };
    let mut number = None;
    match &about {
        About::Room(room_id) => {
            report.room_id = room_id.to_string();
            let row = store::rooms::row(&mut server.db.read().await?, room_id).await?;
            report.known = row.is_some();
            number = row.and_then(|row| row.room_number);
        }
        About::Event(room_id, event_id) => {
            report.room_id = room_id.to_string();
            report.event_id = event_id.to_string();
            let row = store::rooms::row(&mut server.db.read().await?, room_id).await?;
            report.known = can_see(server, &who.user_id, room_id, event_id).await?;
            number = row.and_then(|row| row.room_number);
        }
        About::User(user_id) => {
            report.user_id = user_id.to_string();
            report.known =
                store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?.is_some();
        }
    }
    let entry = crate::audit::Entry {
        room_id: report.room_id.clone(),
        target: if report.user_id.is_empty() { report.event_id.clone() } else { report.user_id.clone() },
        ..who.entry(server.now(), "report")
    };
    let city_user = server.city_user.clone();
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let since = batch.now - DAY_MS;
                if store::reports::count_since(batch.reading(), &report.reporter, since).await? >= A_DAY_MAX {
                    return Err(refuse(
                        Code::LimitExceeded { retry_after_ms: 3_600_000 },
                        "You have reported very often: please call the city (市に電話してください).",
                    ));
                }
                report.id = store::meta::next_number(batch.sql().await?, "report", 1).await?;
                store::reports::insert(batch.sql().await?, &report).await?;
                batch.audit(entry);
                let control = store::meta::value(batch.reading(), "control_room").await?;
                let control = control.and_then(|id| OwnedRoomId::try_from(id).ok());
                if let (true, Some(control)) = (report.known, control) {
                    city::say(batch, &city_user, &control, &notice(&report, number)).await?;
                }
                Ok(())
            })
        })
        .await
}

/// Whether the reporter is in the room and sees the event.
async fn can_see(server: &Server, user_id: &UserId, room_id: &RoomId, event_id: &EventId) -> Result<bool> {
    if !server.live.is_joined(user_id, room_id) {
        return Ok(false);
    }
    match history::visible_event(server, user_id, room_id, event_id).await {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.code(), Some(Code::NotFound | Code::Forbidden)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the city is told: numbers and ids, no word of what was written.
fn notice(report: &Report, number: Option<i64>) -> String {
    let reporter = local(&report.reporter);
    let room = number.map_or_else(
        || format!("市が開設していない部屋（{}）", report.room_id),
        |number| format!("部屋番号{number}"),
    );
    let what = if !report.user_id.is_empty() {
        format!("利用者ID「{}」", local(&report.user_id))
    } else if report.event_id.is_empty() {
        room
    } else {
        format!("{room}の投稿（{}）", report.event_id)
    };
    format!("通報{}：利用者ID「{reporter}」から、{what}について通報がありました。", report.id)
}

fn local(user_id: &str) -> &str {
    <&UserId>::try_from(user_id).map_or(user_id, UserId::localpart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_city_is_told_by_numbers_and_ids() {
        let mut report = Report {
            id: 3,
            at: 0,
            reporter: "@p100001:example.jp".to_owned(),
            room_id: "!r".to_owned(),
            event_id: "$e".to_owned(),
            user_id: String::new(),
            reason: "見本一郎さんのことが書かれています".to_owned(),
            known: true,
        };
        assert_eq!(
            notice(&report, Some(12)),
            "通報3：利用者ID「p100001」から、部屋番号12の投稿（$e）について通報がありました。"
        );
        report.event_id.clear();
        assert_eq!(
            notice(&report, None),
            "通報3：利用者ID「p100001」から、市が開設していない部屋（!r）について通報がありました。"
        );
        report.user_id = "@p100002:example.jp".to_owned();
        assert_eq!(
            notice(&report, None),
            "通報3：利用者ID「p100001」から、利用者ID「p100002」について通報がありました。"
        );
    }
}
