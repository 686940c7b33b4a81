//! What follows a room's closing (DESIGN 15): open → closed → archived → purging → purged. Legal holds (法的保全),
//! emergency access (緊急閲覧, C14, C16), redaction by order of the city. Each change is one unit; a purge is a
//! unit that begins it and as many as it needs, so that no commit of others waits long.

use std::sync::Arc;

use askama::Template;
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::TimelineEventType,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    append::Intent,
    batch::Batch,
    city::{self, city_room, set_status},
    committer::Hint,
    direct, member,
    pdu::Event,
    redaction::{self, Redaction},
};
use crate::{
    audit,
    error::{Code, Error, Result, forbidden, not_found, refuse},
    server::Server,
    store::{
        self,
        life::{Access, Purge},
    },
};

/// Events deleted in one unit.
const PURGE_CHUNK: i64 = 500;
/// Entries of the search index deleted in one unit of a purge.
const PURGE_ENTRIES: i64 = 20_000;
/// Event ids read at once when a purge is counted.
const COUNT_CHUNK: i64 = 10_000;
/// Posts looked through at once for a purged subject's name.
const FORGET_CHUNK: usize = 200;

/// A refusal because of the room's status, which goes along.
fn wrong_state(status: &str, message: &str) -> Error {
    refuse(Code::RoomState, message).with("status", status)
}

/// Archives a closed room: everybody but the city is removed, so that nobody reads it any more; it can still be
/// exported. Returns how many were removed; none where it was archived already.
pub async fn archive(batch: &mut Batch, city: &UserId, room_id: &RoomId) -> Result<Option<usize>> {
    match city_room(batch, room_id).await?.as_str() {
        "closed" => {}
        "archived" => return Ok(None),
        status => return Err(wrong_state(status, "Only a closed room can be archived.")),
    }
    let room = batch.room(room_id).await?;
    let inside: Vec<OwnedUserId> = ["join", "invite", "knock"]
        .iter()
        .flat_map(|membership| room.state.members(membership).map(|(id, _)| id).collect::<Vec<_>>())
        .filter(|id| id != city)
        .collect();
    for user_id in &inside {
        member::kick(batch, room_id, city, user_id, None).await?;
    }
    let now = batch.now;
    for access in store::life::accesses(batch.reading(), Some(room_id)).await? {
        store::life::end_access(batch.sql().await?, room_id, &access.user_id, now).await?;
    }
    set_status(batch, city, room_id, "archived").await?;
    let row = &mut batch.room_mut(room_id).await?.row;
    row.status = "archived".to_owned();
    row.archived_at = Some(now);
    // A room that was closed before this was recorded counts from here.
    row.closed_at.get_or_insert(now);
    Ok(Some(inside.len()))
}

/// Places a legal hold; false where one stands.
pub async fn place_hold(batch: &mut Batch, room_id: &RoomId, reason: &str, acting: &str) -> Result<bool> {
    let status = city_room(batch, room_id).await?;
    if matches!(status.as_str(), "purging" | "purged") {
        return Err(wrong_state(&status, "This room has been purged."));
    }
    if reason.trim().is_empty() {
        return Err(refuse(Code::MissingParam, "A legal hold needs a reason (理由を書いてください)."));
    }
    if store::life::hold(batch.reading(), room_id).await?.is_some() {
        return Ok(false);
    }
    let now = batch.now;
    store::life::place_hold(batch.sql().await?, room_id, reason, acting, now).await?;
    Ok(true)
}

/// Lifts the legal hold; false where none stands.
pub async fn lift_hold(batch: &mut Batch, room_id: &RoomId, acting: &str) -> Result<bool> {
    city_room(batch, room_id).await?;
    let now = batch.now;
    store::life::lift_hold(batch.sql().await?, room_id, acting, now).await
}

/// What an emergency access is told with.
pub struct Glass<'a> {
    /// Who looks.
    pub staff: &'a UserId,
    /// Why; it is posted in the room.
    pub reason: &'a str,
    /// Milliseconds until it ends by itself.
    pub lasts_ms: i64,
    /// How the room is told.
    pub notice: &'a str,
}

/// Emergency access: a member of city staff who is not in the room is in it for a limited time, and the room is told
/// who and why, in one unit. Returns when it ends.
pub async fn break_glass(
    batch: &mut Batch,
    city: &UserId,
    room_id: &RoomId,
    glass: &Glass<'_>,
) -> Result<i64> {
    let status = city_room(batch, room_id).await?;
    if matches!(status.as_str(), "purging" | "purged") {
        return Err(wrong_state(&status, "This room has been purged."));
    }
    direct::refuse_direct(batch, room_id).await?;
    if glass.reason.trim().is_empty() {
        return Err(refuse(Code::MissingParam, "Emergency access needs a reason (理由を書いてください)."));
    }
    let running = store::life::accesses(batch.reading(), Some(room_id)).await?;
    if let Some(access) = running.iter().find(|access| access.user_id == glass.staff.as_str()) {
        return Ok(access.ends_at);
    }
    let present = batch.room(room_id).await?.state.membership(glass.staff);
    if present.as_str() == "join" {
        return Err(wrong_state(&status, "This member of staff is in the room already."));
    }
    city::say_through(batch, city, room_id, glass.notice).await?;
    for (sender, membership) in [(city, "invite"), (glass.staff, "join")] {
        let profile = member::profile(batch, glass.staff).await?;
        let content = member::content(membership, &profile, None);
        let mut intent = Intent::state(room_id, sender, "m.room.member", glass.staff.as_str(), content)?;
        intent.through_closed = true;
        batch.append(intent).await?;
    }
    let access = Access {
        room_id: room_id.to_string(),
        user_id: glass.staff.to_string(),
        began_at: batch.now,
        ends_at: batch.now + glass.lasts_ms,
    };
    store::life::begin_access(batch.sql().await?, &access, glass.reason).await?;
    Ok(access.ends_at)
}

/// Ends an emergency access; false where none runs.
pub async fn end_access(batch: &mut Batch, city: &UserId, room_id: &RoomId, staff: &UserId) -> Result<bool> {
    city_room(batch, room_id).await?;
    let now = batch.now;
    if !store::life::end_access(batch.sql().await?, room_id, staff.as_str(), now).await? {
        return Ok(false);
    }
    let present = batch.room(room_id).await?.state.membership(staff);
    if matches!(present.as_str(), "join" | "invite") {
        member::kick(batch, room_id, city, staff, None).await?;
    }
    Ok(true)
}

/// Redacts what somebody wrote, by order of the city, in a closed or archived room too. The original stays for the
/// auditor (C26).
pub async fn redact_by_order(
    batch: &mut Batch,
    city: &UserId,
    room_id: &RoomId,
    target: &EventId,
) -> Result<OwnedEventId> {
    city_room(batch, room_id).await?;
    direct::refuse_direct(batch, room_id).await?;
    let event = batch
        .event(target)
        .await?
        .filter(|event| event.room_id == room_id)
        .ok_or_else(|| not_found("There is no such post in this room."))?;
    if event.is_state() || event.kind == TimelineEventType::RoomRedaction {
        return Err(forbidden("Only what people wrote can be redacted by order."));
    }
    if let Some(by) = &event.redacted_by {
        return Ok(by.clone());
    }
    empty(batch, city, room_id, &event, true).await
}

/// Begins a purge: counted, and from here on nobody can stop it. The room must be archived, its retention over, and no
/// legal hold on it.
pub async fn begin_purge(
    batch: &mut Batch,
    city: &UserId,
    room_id: &RoomId,
    retention_ms: i64,
    acting: &str,
) -> Result<Purge> {
    let status = city_room(batch, room_id).await?;
    if let Some(begun) = store::life::purge(batch.reading(), room_id).await? {
        return Ok(begun);
    }
    if status != "archived" {
        return Err(wrong_state(&status, "Only an archived room can be purged."));
    }
    if store::life::hold(batch.reading(), room_id).await?.is_some() {
        return Err(refuse(Code::Held, "A legal hold stands on this room."));
    }
    let row = batch.room(room_id).await?.row.clone();
    let until = row.closed_at.or(row.archived_at).unwrap_or(batch.now) + retention_ms;
    if batch.now < until {
        return Err(refuse(Code::Retained, "The retention of this room has not run out.")
            .with("until", audit::day_of(until)));
    }
    for access in store::life::accesses(batch.reading(), Some(room_id)).await? {
        end_access(batch, city, room_id, &OwnedUserId::try_from(access.user_id)?).await?;
    }
    let (mut hasher, mut events, mut after) = (Sha256::new(), 0_i64, 0_i64);
    loop {
        let ids = store::life::event_ids(batch.reading(), room_id, after, COUNT_CHUNK).await?;
        let Some((last, _)) = ids.last() else { break };
        after = *last;
        for (_, id) in &ids {
            hasher.update(id.as_bytes());
            hasher.update(b"\n");
            events += 1;
        }
    }
    // Who was just removed from it is told by events that are not written yet.
    for event in batch.pending.events.iter().filter(|event| event.room_id == room_id) {
        hasher.update(event.event_id.as_bytes());
        hasher.update(b"\n");
        events += 1;
    }
    let purge = Purge {
        room_id: room_id.to_string(),
        room_number: row.room_number.unwrap_or_default(),
        acting: acting.to_owned(),
        begun_at: batch.now,
        finished_at: None,
        events,
        media: store::life::media_of_room_alone(batch.reading(), room_id).await?,
        digest: audit::hex(&hasher.finalize()),
    };
    store::life::begin_purge(batch.sql().await?, &purge).await?;
    batch.room_mut(room_id).await?.row.status = "purging".to_owned();
    Ok(purge)
}

/// What of the city's own rooms goes with a purged room. Named exactly: a name in a text may be anybody's.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Forget {
    /// Events by which the subject came to the city; what the city posted because of them goes too
    /// (`jp.heya.origin`).
    pub events: Vec<String>,
    /// What lines of the city's own lists hold.
    pub lines: Vec<String>,
}

/// Empties what names a purged subject outside the room itself: in the control room, in liaison rooms, and in the rooms of
/// the city with one person each. Returns how many posts there were.
pub async fn forget(server: &Arc<Server>, what: &Forget) -> Result<usize> {
    if what.events.is_empty() && what.lines.is_empty() {
        return Ok(0);
    }
    let goes = |event: &Event| -> bool {
        let of_the_city = event.sender == server.city_user;
        let edits = event.relation().filter(|relation| relation.rel_type == "m.replace");
        event.kind == TimelineEventType::RoomMessage
            && (what.events.iter().any(|id| event.event_id == *id)
                || edits.is_some_and(|edit| what.events.contains(&edit.event_id))
                || of_the_city
                    && event.content_str(ORIGIN).is_some_and(|origin| what.events.contains(&origin))
                || of_the_city
                    && event.content_str("body").is_some_and(|body| {
                        body.lines().any(|line| what.lines.iter().any(|one| line.contains(one.as_str())))
                    }))
    };
    let control = store::meta::value(&mut server.db.read().await?, "control_room").await?;
    let mut total = 0;
    for room_id in server.live.joined_rooms(&server.city_user) {
        let room = server.live.room(&server.db, &room_id).await?;
        let kind = room.current()?.row.kind.clone();
        if control.as_deref() != Some(room_id.as_str()) && !matches!(kind.as_str(), "direct" | "liaison") {
            continue;
        }
        // What was redacted before has left its original with the auditor.
        let originals = store::events::originals(&mut server.db.read().await?, &room_id).await?;
        let originals: Vec<Arc<Event>> = originals.into_iter().filter(|event| goes(event)).collect();
        if !originals.is_empty() {
            total += originals.len();
            let id = room_id.clone();
            let alone = server.blobs.alone().await;
            let blobs = server
                .commit(Hint::default(), move |batch| {
                    Box::pin(async move {
                        record(
                            batch,
                            "server",
                            "room.forget",
                            &id,
                            "",
                            &format!("{} originals", originals.len()),
                        );
                        // Their redaction has taken the links away; nothing else says what they showed. Anybody can name a
                        // file, and what encrypted rooms show has no link: only what the sender uploaded goes.
                        let mut shown = Vec::new();
                        for event in &originals {
                            let content: Value = serde_json::from_str(event.content.get())?;
                            for id in crate::media::links::media_ids(&content, batch.server_name()) {
                                let medium = store::media::medium(batch.reading(), &id).await?;
                                if medium.is_some_and(|medium| medium.user_id == event.sender) {
                                    shown.push(id);
                                }
                            }
                        }
                        let ids: Vec<String> =
                            originals.iter().map(|event| event.event_id.to_string()).collect();
                        store::events::forget_originals(batch.sql().await?, &ids).await?;
                        drop_unlinked(batch, &shown).await
                    })
                })
                .await?;
            for sha256 in &blobs {
                server.blobs.remove(&alone, sha256).await?;
            }
        }
        let mut after = 0;
        loop {
            let events =
                store::events::after(&mut server.db.read().await?, &room_id, after, FORGET_CHUNK).await?;
            let Some(last) = events.last() else { break };
            after = last.position;
            let found: Vec<Arc<Event>> =
                events.into_iter().filter(|event| event.redacted_by.is_none() && goes(event)).collect();
            total += found.len();
            if found.is_empty() {
                continue;
            }
            let (id, city) = (room_id.clone(), server.city_user.clone());
            // No upload may come to share a blob between its last row and its file's end.
            let alone = server.blobs.alone().await;
            let blobs = server
                .commit(Hint { rooms: vec![id.clone()], txn: None }, move |batch| {
                    Box::pin(async move {
                        let mut blobs = Vec::new();
                        for event in &found {
                            // An edit among them may have gone with what it edits.
                            let present = batch.event(&event.event_id).await?;
                            if let Some(event) = present.filter(|event| event.redacted_by.is_none()) {
                                // The edits go with it, each with a file of its own, perhaps.
                                let mut posts = redaction::edits_of(batch, &id, &event).await?;
                                posts.push(Arc::clone(&event));
                                empty(batch, &city, &id, &event, false).await?;
                                for post in posts {
                                    blobs.extend(drop_media(batch, &post.event_id).await?);
                                }
                            }
                        }
                        record(batch, "server", "room.forget", &id, "", &format!("{} posts", found.len()));
                        Ok::<_, Error>(blobs)
                    })
                })
                .await?;
            for sha256 in &blobs {
                server.blobs.remove(&alone, sha256).await?;
            }
        }
    }
    if total > 0 {
        server.db.settle().await;
    }
    Ok(total)
}

/// Deletes what only this post showed, at once: a scanned consent, and its file's name. The blobs whose files may go when
/// this is committed.
async fn drop_media(batch: &mut Batch, event_id: &EventId) -> Result<Vec<String>> {
    let conn = batch.sql().await?;
    let shown = store::media::of_event(conn, event_id.as_str()).await?;
    for media_id in &shown {
        store::media::unlink(conn, media_id, event_id.as_str()).await?;
    }
    drop_unlinked(batch, &shown).await
}

/// Deletes those of these media that nothing shows any more.
async fn drop_unlinked(batch: &mut Batch, media_ids: &[String]) -> Result<Vec<String>> {
    let conn = batch.sql().await?;
    let mut blobs = Vec::new();
    for media_id in media_ids {
        if store::media::links(conn, media_id).await?.is_empty() {
            blobs.extend(store::media::delete(conn, media_id).await?);
        }
    }
    Ok(blobs)
}

/// In the city bot's notices: the event that they follow from.
const ORIGIN: &str = "jp.heya.origin";

/// A redaction by the city, in any state of the room.
async fn empty(
    batch: &mut Batch,
    city: &UserId,
    room_id: &RoomId,
    event: &Arc<Event>,
    keeps_original: bool,
) -> Result<OwnedEventId> {
    let redaction = Redaction {
        room_id,
        sender: city,
        event,
        content: CanonicalJsonObject::new(),
        txn: None,
        through_closed: true,
        keeps_original,
    };
    redaction::redact(batch, redaction).await
}

/// The certificate (消去証明書) of a purge.
#[derive(Template)]
#[template(path = "certificate_purge.html")]
struct Certificate<'a> {
    service: &'a str,
    city: &'a str,
    contact: &'a str,
    purge: &'a Purge,
    kind: &'a str,
    opened_on: String,
    closed_on: String,
    purged_on: String,
    acting_name: &'a str,
}

/// Where the certificate of a room's purge is, in the data folder.
pub fn certificate_path(room_number: i64) -> String {
    format!("certificates/{room_number:04}.html")
}

/// Carries on with the purge of a room until nothing is left, then writes its certificate. After a crash it goes on
/// where it was.
pub async fn carry_out_purge(server: &Arc<Server>, room_id: &RoomId) -> Result<Purge> {
    loop {
        // No upload may come to share a blob between its last row and its file's end.
        let alone = server.blobs.alone().await;
        let (id, city) = (room_id.to_owned(), server.config.city.clone());
        let certificates = server.data().join("certificates");
        let live = Arc::clone(&server.live);
        let (purge, blobs) = server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move { purge_some(batch, &id, &city, &certificates, live).await })
            })
            .await?;
        for sha256 in &blobs {
            server.blobs.remove(&alone, sha256).await?;
        }
        if purge.finished_at.is_some() {
            server.db.settle().await;
            return Ok(purge);
        }
    }
}

/// One unit of a purge; the blobs whose files may go when it is committed.
async fn purge_some(
    batch: &mut Batch,
    room_id: &RoomId,
    city: &crate::config::City,
    certificates: &std::path::Path,
    live: Arc<super::live::Live>,
) -> Result<(Purge, Vec<String>)> {
    let mut purge = store::life::purge(batch.reading(), room_id)
        .await?
        .ok_or_else(|| Error::internal("a purge that was not begun"))?;
    if purge.finished_at.is_some() {
        return Ok((purge, Vec::new()));
    }
    let (rows_gone, blobs) = delete_some(batch, room_id).await?;
    if !rows_gone {
        return Ok((purge, blobs));
    }
    let now = batch.now;
    store::life::finish_purge(batch.sql().await?, room_id, now).await?;
    purge.finished_at = Some(now);
    let row = {
        let row = &mut batch.room_mut(room_id).await?.row;
        row.status = "purged".to_owned();
        row.subject_key = None;
        row.clone()
    };
    let name = store::personal::profile(batch.reading(), &purge.acting)
        .await?
        .and_then(|profile| profile.display_name)
        .unwrap_or_else(|| purge.acting.clone());
    let page = Certificate {
        service: &city.service,
        city: &city.name,
        contact: &city.contact,
        purge: &purge,
        kind: kind_name(&row.kind),
        opened_on: audit::written_date(row.created_at),
        closed_on: row.closed_at.map(audit::written_date).unwrap_or_default(),
        purged_on: audit::written_date(now),
        acting_name: &name,
    }
    .render()
    .map_err(|error| Error::internal(error.to_string()))?;
    crate::files::private_folder(certificates)?;
    let file = certificate_path(purge.room_number);
    let file = certificates.join(file.rsplit('/').next().unwrap_or_default());
    crate::files::write_private(&file, page.as_bytes())?;
    batch.audit(audit::Entry {
        at: now,
        actor: purge.acting.clone(),
        action: "room.purged".to_owned(),
        room_id: room_id.to_string(),
        target: format!("room {}", purge.room_number),
        result: "ok".to_owned(),
        detail: format!("{} events, {} media, digest {}", purge.events, purge.media, purge.digest),
        ..audit::Entry::default()
    });
    let id = room_id.to_owned();
    batch.after_commit(move || live.drop_room(&id));
    Ok((purge, blobs))
}

/// Deletes the next events of a room with all that hangs on them, and what is left when there are none: whether nothing
/// is left, and the blobs whose files may go when this is committed.
pub(super) async fn delete_some(batch: &mut Batch, room_id: &RoomId) -> Result<(bool, Vec<String>)> {
    let events = store::life::event_ids(batch.reading(), room_id, 0, PURGE_CHUNK).await?;
    let mut shown: Vec<String> = Vec::new();
    for (media_id, event_id) in store::life::media_of_room(batch.reading(), room_id).await? {
        if events.is_empty() || events.iter().any(|(_, id)| *id == event_id) {
            shown.push(media_id);
        }
    }
    shown.dedup();
    let conn = batch.sql().await?;
    store::life::delete_events(conn, &events).await?;
    let mut none_left = events.is_empty();
    if none_left {
        // After the events: the index takes up none of those that are gone.
        none_left = store::search::delete_some(conn, room_id, PURGE_ENTRIES).await?;
    }
    if none_left {
        store::life::delete_rest(conn, room_id).await?;
    }
    let mut blobs = Vec::new();
    for media_id in &shown {
        if store::media::links(conn, media_id).await?.is_empty() {
            blobs.extend(store::media::delete(conn, media_id).await?);
        }
    }
    Ok((none_left, blobs))
}

/// What a room is for, as people read it.
pub fn kind_name(kind: &str) -> &'static str {
    match kind {
        "subject" => "システム対象者の部屋",
        "association" => "職能団体の部屋",
        "liaison" => "連絡部屋",
        "announcement" => "市からのお知らせの部屋",
        "control" => "市の管理室",
        "direct" => "二人の部屋",
        _ => "部屋",
    }
}

/// What runs by itself: emergency accesses that are over, purges that a crash cut short, and a word to the city when
/// a room's retention has run out. To be called every minute.
pub async fn tend(server: &Arc<Server>) -> Result<()> {
    let now = server.now();
    let mut conn = server.db.read().await?;
    let accesses = store::life::accesses(&mut conn, None).await?;
    let purges = store::life::unfinished_purges(&mut conn).await?;
    let archived = store::life::archived_and_untold(&mut conn).await?;
    let control = store::meta::value(&mut conn, "control_room").await?;
    drop(conn);
    // One that fails holds up no other.
    for access in accesses.iter().filter(|access| access.ends_at <= now) {
        if let Err(error) = end_in_time(server, access).await {
            tracing::error!(%error, "an emergency access that is over could not be ended");
        }
    }
    for room_id in purges {
        let room_id = OwnedRoomId::try_from(room_id)?;
        if let Err(error) = carry_out_purge(server, &room_id).await {
            tracing::error!(%error, "a purge cannot go on");
        }
    }
    server.db.settle_if_owed().await;
    let due: Vec<(String, i64)> = archived
        .into_iter()
        .filter(|(_, _, kind, closed_at)| closed_at + server.config.retention.of(kind) <= now)
        .map(|(room_id, number, _, _)| (room_id, number))
        .collect();
    let Some(control) = control.filter(|_| !due.is_empty()) else { return Ok(()) };
    let control = OwnedRoomId::try_from(control)?;
    let city = server.city_user.clone();
    server
        .commit(Hint { rooms: vec![control.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let numbers: Vec<String> = due.iter().map(|(_, number)| number.to_string()).collect();
                let text = format!(
                    "保存期間が過ぎた部屋があります（部屋番号：{}）。\n残すものは「書き出し 部屋番号」で書き出し、消してよければ「消去 部屋番号」と書いてください。裁判などで残す必要があるときは「法的保全 部屋番号 理由」と書いてください。",
                    numbers.join("、")
                );
                city::say(batch, &city, &control, &text).await?;
                for (room_id, _) in &due {
                    store::life::told(batch.sql().await?, room_id, now).await?;
                }
                Ok(())
            })
        })
        .await
}

/// Ends an emergency access whose time is up.
async fn end_in_time(server: &Arc<Server>, access: &Access) -> Result<()> {
    let room_id = OwnedRoomId::try_from(access.room_id.as_str())?;
    let staff = OwnedUserId::try_from(access.user_id.as_str())?;
    let city = server.city_user.clone();
    let hint = Hint { rooms: vec![room_id.clone()], txn: None };
    server
        .commit(hint, move |batch| {
            Box::pin(async move {
                if end_access(batch, &city, &room_id, &staff).await? {
                    record(batch, "server", "room.break_glass.end", &room_id, staff.as_str(), "time is up");
                }
                Ok(())
            })
        })
        .await
}

/// A line of the audit log about a room.
pub fn record(batch: &mut Batch, acting: &str, action: &str, room_id: &RoomId, target: &str, detail: &str) {
    let at = batch.now;
    batch.audit(audit::Entry {
        at,
        actor: acting.to_owned(),
        action: action.to_owned(),
        room_id: room_id.to_string(),
        target: target.to_owned(),
        result: "ok".to_owned(),
        detail: detail.to_owned(),
        ..audit::Entry::default()
    });
}

/// The JSON of a purge, for the internal API.
pub fn purge_view(purge: &Purge, opened_by_case: Option<&str>) -> Value {
    serde_json::json!({
        "room_number": purge.room_number, "events": purge.events, "media": purge.media, "digest": purge.digest,
        "certificate": certificate_path(purge.room_number), "opened_by_case": opened_by_case,
    })
}
