//! Follows the stream behind the committer and hands notifications to the e-mail bridge by the Push Gateway API, on
//! the internal side (docs/internal-api.md, "Mail"). A notification says that there is something, never what it says.
//!
//! The durable cursor moves only after the bridge has answered, so nothing is lost when either side stops; what is
//! told twice is dropped by the bridge. It may lag where nothing was told: reading events again costs nothing.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use ruma::{OwnedUserId, RoomId, UserId, events::StateEventType};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Chosen, Place, Pusher, SCOPE, Scope, Setting, concerns, counts, importance, rules};
use crate::{
    audit,
    error::{Code, Error, Result},
    rooms::{
        committer::Hint,
        ignored, invites,
        live::{LiveRoom, RoomView},
        pdu::Event,
    },
    server::Server,
    store,
};

/// The cursor's name.
const NAME: &str = "push";
/// Events read at once.
pub(super) const CHUNK: usize = 200;
/// Positions that the durable cursor may lag behind while nothing is told.
const LAG_MAX: i64 = 1_000;
/// The longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// The longest answer of the bridge, in bytes.
const ANSWER_BYTES_MAX: usize = 65_536;

/// Runs until the server stops.
pub async fn run(server: Arc<Server>) {
    let cursor = Cursor::new(NAME.to_owned());
    let mut stopping = server.stopping.subscribe();
    tokio::select! {
        () = follow(&server, &cursor) => {}
        () = crate::server::stopped(&mut stopping) => {}
    }
    if let Err(error) = cursor.save(&server).await {
        tracing::debug!(%error, "the push follower's place was not saved at the end");
    }
}

/// How far a follower has come.
#[derive(Debug)]
pub(super) struct Cursor {
    name: String,
    pub(super) at: AtomicI64,
    saved: AtomicI64,
    /// From here on something was put aside that is still to be told: the stored place stays before it.
    held: AtomicI64,
}

impl Cursor {
    pub(super) fn new(name: String) -> Self {
        Self { name, at: AtomicI64::new(0), saved: AtomicI64::new(0), held: AtomicI64::new(i64::MAX) }
    }

    /// The stored place; at the very first start the present, for nobody waits for what is old.
    pub(super) async fn begin(&self, server: &Server) -> Result<()> {
        let present = server.live.position();
        let stored = {
            let mut conn = server.db.read().await?;
            store::meta::follower(&mut conn, &self.name).await?
        };
        self.at.store(stored.unwrap_or(present).min(present), Ordering::Relaxed);
        // Below every position: the first start's place is saved.
        self.saved.store(stored.unwrap_or(-1), Ordering::Relaxed);
        if stored.is_none() { self.save(server).await } else { Ok(()) }
    }

    /// What stands at this position is still to be told, whatever comes after it; none: nothing is.
    pub(super) fn hold(&self, position: Option<i64>) {
        self.held.store(position.unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Comes to a place; written at once where something was told on the way.
    pub(super) async fn advance(&self, server: &Server, to: i64, told: bool) -> Result<()> {
        self.at.store(to, Ordering::Relaxed);
        if told || to - self.saved.load(Ordering::Relaxed) >= LAG_MAX {
            return self.save(server).await;
        }
        Ok(())
    }

    pub(super) async fn save(&self, server: &Server) -> Result<()> {
        let at = self.at.load(Ordering::Relaxed).min(self.held.load(Ordering::Relaxed).saturating_sub(1));
        if at == self.saved.load(Ordering::Relaxed) {
            return Ok(());
        }
        let name = self.name.clone();
        server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move { store::meta::move_follower(batch.sql().await?, &name, at).await })
            })
            .await?;
        self.saved.store(at, Ordering::Relaxed);
        Ok(())
    }
}

async fn follow(server: &Arc<Server>, cursor: &Cursor) {
    let bridge = match Bridge::new(server) {
        Ok(bridge) => bridge,
        Err(error) => {
            tracing::error!(%error, "no notifications are sent: the client for the e-mail bridge cannot be made");
            return;
        }
    };
    let mut wait = Backoff::default();
    while let Err(error) = cursor.begin(server).await {
        tracing::error!(%error, "the push follower cannot read its place");
        wait.pause().await;
    }
    wait = Backoff::default();
    loop {
        // Registered before the position is looked at: a commit in between is not missed.
        let mut committed = pin!(server.live.committed.notified());
        committed.as_mut().enable();
        match step(server, &bridge, cursor).await {
            Ok(()) => wait = Backoff::default(),
            Err(error) => {
                tracing::error!(%error, "the push follower will try again");
                wait.pause().await;
                continue;
            }
        }
        if cursor.at.load(Ordering::Relaxed) < server.live.position() {
            continue;
        }
        tokio::select! {
            () = &mut committed => {}
            () = server.pushers.read_waits.notified() => {}
        }
    }
}

/// The next events, then the rooms that were read meanwhile.
async fn step(server: &Arc<Server>, bridge: &Bridge, cursor: &Cursor) -> Result<()> {
    let (at, upto) = (cursor.at.load(Ordering::Relaxed), server.live.position());
    let idle = !server.config.mail.enabled || server.pushers.is_empty();
    if at < upto {
        let mut end = upto;
        let mut told = false;
        if !idle {
            let events = {
                let mut conn = server.db.read().await?;
                store::events::arrived(&mut conn, at, upto, CHUNK).await?
            };
            if events.len() == CHUNK
                && let Some(last) = events.last()
            {
                end = last.position;
            }
            for event in &events {
                told |= tell(server, bridge, event).await?;
            }
        }
        cursor.advance(server, end, told).await?;
    }
    while let Some((user, room_id)) = server.pushers.next_read() {
        if server.config.mail.enabled
            && let Err(error) = tell_read(server, bridge, &user, &room_id).await
        {
            server.pushers.read(&user, &room_id);
            return Err(error);
        }
    }
    Ok(())
}

/// Tells everybody whom an event concerns; whether anybody was.
async fn tell(server: &Arc<Server>, bridge: &Bridge, event: &Event) -> Result<bool> {
    if event.membership.is_none() {
        // Who writes has read.
        server.pushers.read(&event.sender, &event.room_id);
    }
    if event.redacted_by.is_some() {
        return Ok(false);
    }
    let room = match server.live.room(&server.db, &event.room_id).await {
        Ok(room) => room,
        Err(error) if error.code() == Some(Code::NotFound) => return Ok(false),
        Err(error) => return Err(error),
    };
    let view = room.current()?;
    let place = Place::of(server, &view);
    let mut told = false;
    for user in targets(&view, event, |user| server.pushers.has(user) && !server.moderation.of(user).locked) {
        if is_kept_from(server, event, &user).await? {
            continue;
        }
        let ruleset = rules::ruleset(server, &user).await?;
        let actions = rules::actions(&ruleset, event, &view, &user).await;
        let Some(scope) = Scope::of(event, &user, place, &actions) else { continue };
        if is_stale(server, &room, event, &user, scope)? {
            continue;
        }
        let unread = counts::unread(server, &user, &room).await?.total().notify;
        for pusher in server.pushers.of(&user) {
            let setting = Setting::of(&pusher);
            if setting.kind == "email" && scope.wanted(setting.chosen()) {
                let body =
                    notification(&view, event, scope, unread.max(1), device(&view, &pusher, &setting, scope));
                bridge.deliver(server, &user, &pusher, &body).await?;
                told = true;
            }
        }
    }
    Ok(told)
}

/// The members with a pusher who may be told of an event: those who are joined, and whoever it invites.
pub(super) fn targets(view: &RoomView, event: &Event, has: impl Fn(&UserId) -> bool) -> Vec<OwnedUserId> {
    view.state
        .of_type(&StateEventType::RoomMember)
        .filter_map(|member| {
            let user = <&UserId>::try_from(member.state_key.as_deref()?).ok()?;
            let may = match member.membership.as_deref() {
                Some("join") => true,
                Some("invite") => concerns(event, user),
                _ => false,
            };
            (may && *user != *event.sender && has(user)).then(|| user.to_owned())
        })
        .collect()
}

/// Whether the user has set that they are not told of this: not by whom they ignore, and not of invitations that their
/// filter holds back, which their clients do not show either.
pub(super) async fn is_kept_from(server: &Arc<Server>, event: &Event, user: &UserId) -> Result<bool> {
    let ignored = ignored::by(server, user).await?;
    if ignored.hides(event) || event.membership.is_some() && ignored.contains(&event.sender) {
        return Ok(true);
    }
    if event.membership.as_deref() != Some("invite") || !concerns(event, user) {
        return Ok(false);
    }
    let mut conn = server.db.read().await?;
    Ok(invites::verdict(&mut conn, &event.sender, user).await? == invites::Verdict::Ignored)
}

/// Whether the user knows already, or came later: the follower may be behind.
pub(super) fn is_stale(
    server: &Server,
    room: &LiveRoom,
    event: &Event,
    user: &UserId,
    scope: Scope,
) -> Result<bool> {
    if scope == Scope::Invite {
        return Ok(room.current()?.state.membership(user).as_str() != "invite");
    }
    let membership = server.live.membership(user, &event.room_id);
    let came_later = !concerns(event, user)
        && membership.is_none_or(|m| m.membership != "join" || event.position <= m.changed_at);
    Ok(came_later || counts::has_read(room, user, event))
}

/// A user has read a room: mail about it that waits is cancelled, where nothing is left that it would tell.
async fn tell_read(server: &Arc<Server>, bridge: &Bridge, user: &UserId, room_id: &RoomId) -> Result<()> {
    let pushers = server.pushers.of(user);
    if pushers.is_empty() {
        return Ok(());
    }
    let room = match server.live.room(&server.db, room_id).await {
        Ok(room) => room,
        Err(error) if error.code() == Some(Code::NotFound) => return Ok(()),
        Err(error) => return Err(error),
    };
    let view = room.current()?;
    let counts::Count { notify, highlight } = counts::unread(server, user, &room).await?.total();
    for pusher in pushers {
        let setting = Setting::of(&pusher);
        let left = match setting.chosen() {
            Chosen::All => notify,
            Chosen::Direct if view.row.kind == "direct" => notify,
            _ => highlight,
        };
        if setting.kind == "email" && left == 0 {
            let body = json!({"notification": {
                "room_id": room_id,
                "counts": {"unread": 0},
                "devices": [device(&view, &pusher, &setting, Scope::Highlight)],
            }});
            bridge.deliver(server, user, &pusher, &body).await?;
        }
    }
    Ok(())
}

fn device(view: &RoomView, pusher: &Pusher, setting: &Setting, scope: Scope) -> Value {
    json!({
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        "data": {
            "jp.heya.account": pusher.user_id,
            "jp.heya.lang": setting.lang,
            (SCOPE): scope.word(),
            "jp.heya.room_number": view.row.room_number,
            "jp.heya.pusher": pusher.id,
        },
    })
}

/// The notification: who and where, never `content`. Its count is the room's, at least one: all rooms' would have to
/// be read into memory for a number that no mail shows.
fn notification(view: &RoomView, event: &Event, scope: Scope, unread: u64, mut device: Value) -> Value {
    if let Some(importance) = importance::of(event) {
        device["data"]["jp.heya.importance"] = importance.into();
    }
    let name = view
        .state
        .content_str(&StateEventType::RoomMember, event.sender.as_str(), "displayname")
        .unwrap_or_else(|| event.sender.localpart().to_owned());
    let mut notification = json!({
        "event_id": event.event_id,
        "room_id": event.room_id,
        "type": event.kind.to_string(),
        "sender": event.sender,
        "sender_display_name": name,
        "prio": if scope.is_urgent() { "high" } else { "low" },
        "counts": {"unread": unread},
        "devices": [device],
    });
    if let Some(room_name) = view.state.content_str(&StateEventType::RoomName, "", "name") {
        notification["room_name"] = room_name.into();
    }
    if matches!(scope, Scope::Invite | Scope::Opening) {
        notification["user_is_target"] = true.into();
    }
    json!({ "notification": notification })
}

/// The e-mail bridge, on loopback.
struct Bridge {
    client: reqwest::Client,
    url: String,
}

/// What became of a request to the bridge.
enum Answer {
    /// It took it; pushkeys that refuse for good.
    Taken(Vec<String>),
    /// It will never take this one.
    Refused,
    /// It cannot take it now.
    Later(String),
}

impl Bridge {
    fn new(server: &Server) -> Result<Self> {
        // Plain HTTP on loopback: with no root certificate this client can speak TLS to nobody.
        let tls =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()?;
        let url = format!("http://{}/_matrix/push/v1/notify", server.config.mail.listen);
        Ok(Self { client, url })
    }

    /// Hands a notification over, however long the bridge is away; ends early where the pusher goes meanwhile.
    async fn deliver(
        &self,
        server: &Arc<Server>,
        user: &UserId,
        pusher: &Pusher,
        body: &Value,
    ) -> Result<()> {
        let mut wait = Backoff::default();
        loop {
            match self.post(&server.mail_token, body).await {
                Answer::Taken(rejected) => {
                    if rejected.contains(&pusher.pushkey) {
                        remove_rejected(server, user, pusher).await?;
                    }
                    return Ok(());
                }
                Answer::Refused => {
                    tracing::error!("the e-mail bridge does not understand a notification; it is dropped");
                    return Ok(());
                }
                Answer::Later(why) => {
                    tracing::warn!(why, "the e-mail bridge takes no notification now; trying again")
                }
            }
            wait.pause().await;
            if !server.pushers.of(user).iter().any(|p| p.id == pusher.id) {
                return Ok(());
            }
        }
    }

    async fn post(&self, token: &str, body: &Value) -> Answer {
        let sent = self.client.post(&self.url).bearer_auth(token).json(body).send().await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => return Answer::Later(error.without_url().to_string()),
        };
        match answer.status().as_u16() {
            200..=299 => match rejected(answer).await {
                Ok(rejected) => Answer::Taken(rejected),
                Err(error) => Answer::Later(error.to_string()),
            },
            400 | 413 | 422 => Answer::Refused,
            status => Answer::Later(format!("status {status}")),
        }
    }
}

/// Reads the answer's `rejected`, within a limit.
pub(super) async fn rejected(mut answer: reqwest::Response) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        rejected: Vec<String>,
    }
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if text.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Error::internal("the answer is too long"));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice::<Body>(&text)?.rejected)
}

/// The address refuses for good: its pusher goes, and the log says so.
pub(super) async fn remove_rejected(server: &Arc<Server>, user: &UserId, pusher: &Pusher) -> Result<()> {
    let (pushers, pusher, user) = (Arc::clone(&server.pushers), pusher.clone(), user.to_owned());
    let now = server.now();
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let conn = batch.sql().await?;
                store::push::delete(conn, user.as_str(), &pusher.app_id, &pusher.pushkey).await?;
                batch.audit(audit::Entry {
                    at: now,
                    actor: "server".to_owned(),
                    action: "pusher.rejected".to_owned(),
                    target: user.to_string(),
                    result: "ok".to_owned(),
                    ..audit::Entry::default()
                });
                batch.after_commit(move || pushers.remove(&user, &pusher.app_id, &pusher.pushkey));
                Ok(())
            })
        })
        .await
}

/// Waits twice as long each time, with jitter, up to a ceiling.
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(500))
    }
}

impl Backoff {
    pub(super) async fn pause(&mut self) {
        let wait = jittered(self.0);
        self.0 = (self.0 * 2).min(WAIT_MAX);
        tokio::time::sleep(wait).await;
    }
}

/// Between half and all of it.
fn jittered(wait: Duration) -> Duration {
    use rand::RngExt as _;
    wait * rand::rng().random_range(50..=100_u32) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_ceiling() {
        let wait = jittered(WAIT_MAX);
        assert!(wait >= WAIT_MAX / 2 && wait <= WAIT_MAX);
    }
}
