//! HTTP pushers: one follower for each gateway that the config allows, with a durable cursor of its own, so that a
//! gateway which is slow or gone delays neither mail nor another gateway (Push Gateway API; DESIGN 18).
//!
//! A gateway outside is told an event's id, its room's id, how urgent it is, and a count: no sender, no name, no
//! content. A pusher is looked for by the exact origin of its gateway, so none is called that is not (or no longer) on the
//! list. Told at least once; gateways drop what has an event id that they know. What is older than an hour is not told
//! any more: the next count says it. What a gateway does not take now, though it answers, is put aside and tried again: it
//! holds up nobody else.

mod aside;
mod badges;
mod told;

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ruma::{RoomId, UserId};
use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};

use aside::{Aside, Letter};
use badges::Badges;

use super::{
    Place, Pusher, Scope, Setting, counts,
    follower::{Backoff, CHUNK, Cursor, is_kept_from, is_stale, rejected, remove_rejected, targets},
    rules,
};
use crate::{
    config::https_origin,
    error::{Code, Error, Result},
    rooms::{live::parking::Mutex, pdu::Event},
    server::Server,
    store,
};

/// The one path of a push gateway (Push Gateway API).
const PATH: &str = "/_matrix/push/v1/notify";
/// The longest URL of a gateway, in bytes.
pub const URL_BYTES_MAX: usize = 2_048;
/// The longest wait for a gateway's answer.
const TIME: Duration = Duration::from_secs(10);
/// Requests to one gateway at once.
const AT_ONCE: usize = 8;
/// What is older is not told any more (ms).
const AGE_MAX_MS: i64 = 60 * 60 * 1000;
/// Tries of what a gateway answers with an error of its own each time.
const FAILURES_MAX: u32 = 5;
/// Tries of a notification that a gateway does not take now, though it answers.
const BUSY_MAX: u32 = 3;
/// How long a count alone is worth trying.
const COUNT_TIME: Duration = Duration::from_secs(60);

/// The origin of the gateway that a stored pusher names; nothing where it is no HTTP pusher.
pub fn origin(pusher: &Pusher) -> Option<String> {
    let setting = Setting::of(pusher);
    if setting.kind != "http" {
        return None;
    }
    origin_of(setting.data.get("url")?.as_str()?)
}

/// The origin of a push gateway's URL; nothing where this is not the URL of one.
pub fn origin_of(url: &str) -> Option<String> {
    let parsed = reqwest::Url::parse(url).ok()?;
    let exact = parsed.path() == PATH && parsed.query().is_none() && parsed.fragment().is_none();
    https_origin(url).filter(|_| exact)
}

/// Tells one gateway until the server stops.
pub async fn run(server: Arc<Server>, origin: String) {
    let gateway = match client(&server) {
        Ok(client) => {
            let url = format!("{origin}{PATH}");
            Arc::new(Gateway { client, url, origin, aside: Mutex::default() })
        }
        Err(error) => {
            tracing::error!(gateway = origin, %error, "no notifications go to this push gateway");
            return;
        }
    };
    let cursor = Cursor::new(format!("push {}", gateway.origin));
    let mut stopping = server.stopping.subscribe();
    tokio::select! {
        () = follow(&server, &gateway, &cursor) => {}
        () = crate::server::stopped(&mut stopping) => {}
    }
    if let Err(error) = cursor.save(&server).await {
        tracing::debug!(%error, "a gateway's place was not saved at the end");
    }
}

/// Its certificate is checked against the public CAs, or the one that the config names. No redirect is followed: it would
/// lead away from the list.
fn client(server: &Server) -> Result<reqwest::Client> {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let ca = &server.config.push.ca;
    if ca.as_os_str().is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    } else {
        let unreadable = |error| Error::internal(format!("push.ca, {}: {error}", ca.display()));
        for certificate in rustls_pki_types::CertificateDer::pem_file_iter(ca).map_err(unreadable)? {
            roots.add(certificate.map_err(unreadable)?)?;
        }
    }
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(TIME)
        .timeout(TIME)
        .build()?)
}

struct Gateway {
    client: reqwest::Client,
    url: String,
    origin: String,
    aside: Mutex<Aside>,
}

async fn follow(server: &Arc<Server>, gateway: &Arc<Gateway>, cursor: &Cursor) {
    let mut wait = Backoff::default();
    while let Err(error) = cursor.begin(server).await {
        tracing::error!(%error, "a gateway's follower cannot read its place");
        wait.pause().await;
    }
    wait = Backoff::default();
    let mut badges = Badges::default();
    loop {
        // Registered before anything is looked at: what comes in between is not missed.
        let mut committed = pin!(server.live.committed.notified());
        let mut fell = pin!(server.pushers.count_waits.notified());
        committed.as_mut().enable();
        fell.as_mut().enable();
        match step(server, gateway, cursor, &mut badges).await {
            Ok(()) => wait = Backoff::default(),
            Err(error) => {
                tracing::error!(gateway = gateway.origin, %error, "a gateway's follower will try again");
                wait.pause().await;
                continue;
            }
        }
        if cursor.at.load(Ordering::Relaxed) < server.live.position() {
            continue;
        }
        let next = [badges.next(), gateway.aside.lock().next()].into_iter().flatten().min();
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut committed => {}
            () = &mut fell => {}
            () = due => {}
        }
    }
}

/// The next events, then the counts that are due.
async fn step(
    server: &Arc<Server>,
    gateway: &Arc<Gateway>,
    cursor: &Cursor,
    badges: &mut Badges,
) -> Result<()> {
    let tried = gateway.try_again(server).await;
    cursor.hold(gateway.aside.lock().oldest());
    tried?;
    let (at, upto) = (cursor.at.load(Ordering::Relaxed), server.live.position());
    if at < upto {
        let mut end = upto;
        let mut told = false;
        if !server.pushers.is_empty() {
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
                told |= gateway.tell(server, event, badges).await?;
            }
        }
        cursor.hold(gateway.aside.lock().oldest());
        cursor.advance(server, end, told).await?;
    }
    for user in server.pushers.take_counts_fell(&gateway.origin) {
        badges.mark(user);
    }
    for user in badges.take_due() {
        if let Err(error) = gateway.tell_count(server, &user, badges).await {
            badges.mark(user);
            return Err(error);
        }
    }
    Ok(())
}

impl Gateway {
    fn pushers(&self, server: &Server, user: &UserId) -> Vec<Pusher> {
        server.pushers.of(user).into_iter().filter(|pusher| self.is_of(pusher)).collect()
    }

    fn is_of(&self, pusher: &Pusher) -> bool {
        origin(pusher).is_some_and(|origin| origin == self.origin)
    }

    /// Tells everybody with a pusher here whom an event notifies; whether anybody was.
    async fn tell(
        self: &Arc<Self>,
        server: &Arc<Server>,
        event: &Event,
        badges: &mut Badges,
    ) -> Result<bool> {
        let has = |user: &UserId| server.pushers.of(user).iter().any(|pusher| self.is_of(pusher));
        if event.membership.is_none() && has(&event.sender) {
            // Who writes has read.
            badges.mark(event.sender.clone());
        }
        let left = AGE_MAX_MS - (server.now() - event.ts);
        if event.redacted_by.is_some() || left <= 0 {
            return Ok(false);
        }
        let room = match server.live.room(&server.db, &event.room_id).await {
            Ok(room) => room,
            Err(error) if error.code() == Some(Code::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        let view = room.current()?;
        let place = Place::of(server, &view);
        let mut letters = Vec::new();
        let until = Instant::now() + Duration::from_millis(u64::try_from(left).unwrap_or_default());
        for user in targets(&view, event, |user| has(user) && !server.moderation.of(user).locked) {
            if is_kept_from(server, event, &user).await? {
                continue;
            }
            let ruleset = rules::ruleset(server, &user).await?;
            let actions = rules::actions(&ruleset, event, &view, &user).await;
            let Some(scope) = Scope::of(event, &user, place, &actions) else { continue };
            if is_stale(server, &room, event, &user, scope)? {
                continue;
            }
            let count = unread(server, &user).await?;
            badges.remember(&user, count, false);
            for pusher in self.pushers(server, &user) {
                let body = told::notification(event, &actions, count, &pusher);
                let position = Some(event.position);
                letters.push(Letter { user: user.clone(), pusher, body, until, position });
            }
        }
        let told = !letters.is_empty();
        self.deliver_all(server, letters).await?;
        Ok(told)
    }

    /// Tells a user's apps how much is unread, where that has changed.
    async fn tell_count(
        self: &Arc<Self>,
        server: &Arc<Server>,
        user: &UserId,
        badges: &mut Badges,
    ) -> Result<()> {
        let pushers = self.pushers(server, user);
        let count = unread(server, user).await?;
        if pushers.is_empty() || badges.is_told(user, count) {
            return Ok(());
        }
        let letters = pushers.into_iter().map(|pusher| {
            let body = told::count(count, &pusher);
            let until = Instant::now() + COUNT_TIME;
            Letter { user: user.to_owned(), pusher, body, until, position: None }
        });
        self.deliver_all(server, letters.collect()).await?;
        badges.remember(user, count, true);
        Ok(())
    }

    async fn deliver_all(self: &Arc<Self>, server: &Arc<Server>, letters: Vec<Letter>) -> Result<()> {
        let mut under_way = JoinSet::new();
        for letter in letters {
            {
                let mut aside = self.aside.lock();
                if aside.holds(&letter.pusher) {
                    // In order: behind those that wait already. A count is told with them.
                    if letter.position.is_some() {
                        aside.put(letter);
                    }
                    continue;
                }
            }
            if under_way.len() >= AT_ONCE
                && let Some(done) = under_way.join_next().await
            {
                self.put_aside(done??);
            }
            let (gateway, server) = (Arc::clone(self), Arc::clone(server));
            under_way.spawn(async move { gateway.deliver(&server, letter, BUSY_MAX).await });
        }
        while let Some(done) = under_way.join_next().await {
            self.put_aside(done??);
        }
        Ok(())
    }

    fn put_aside(&self, letter: Option<Letter>) {
        if let Some(letter) = letter.filter(|letter| letter.position.is_some()) {
            self.aside.lock().put(letter);
        }
    }

    /// Tries what was put aside, where its time has come: once for each pushkey, and on as long as it is taken.
    async fn try_again(&self, server: &Arc<Server>) -> Result<()> {
        let due = self.aside.lock().take_due();
        for letters in due {
            let Some(pusher) = letters.first().map(|letter| letter.pusher.clone()) else { continue };
            let mut left = Vec::new();
            let mut letters = letters.into_iter();
            let mut failed = Ok(());
            for letter in letters.by_ref() {
                match self.deliver(server, letter, 1).await {
                    Ok(None) => {}
                    Ok(Some(letter)) => {
                        left.push(letter);
                        break;
                    }
                    Err(error) => {
                        failed = Err(error);
                        break;
                    }
                }
            }
            left.extend(letters);
            self.aside.lock().put_back(&pusher, left);
            failed?;
        }
        Ok(())
    }

    /// Hands a notification over, and gives it back where the gateway answers so many times that it does not take it now.
    /// Ends early where the pusher goes meanwhile, and gives up at its time.
    async fn deliver(&self, server: &Arc<Server>, letter: Letter, busy_max: u32) -> Result<Option<Letter>> {
        let mut wait = Backoff::default();
        let (mut failures, mut busy) = (0, 0);
        loop {
            // Asked before each try: a session that has ended is told nothing more.
            let present = self.pushers(server, &letter.user);
            if !present.iter().any(|p| p.id == letter.pusher.id && p.pusher == letter.pusher.pusher) {
                return Ok(None);
            }
            match self.post(&letter.body).await {
                Answer::Taken(keys) => {
                    if keys.contains(&letter.pusher.pushkey) {
                        remove_rejected(server, &letter.user, &letter.pusher).await?;
                    }
                    return Ok(None);
                }
                Answer::Refused(status) => {
                    tracing::warn!(gateway = self.origin, status, "a push gateway refused a notification");
                    return Ok(None);
                }
                Answer::Failed(status) => {
                    failures += 1;
                    tracing::warn!(gateway = self.origin, status, "a push gateway failed");
                    if failures >= FAILURES_MAX {
                        return Ok(None);
                    }
                }
                Answer::Busy(status) => {
                    busy += 1;
                    tracing::warn!(gateway = self.origin, status, "a push gateway takes nothing now");
                    if busy >= busy_max {
                        return Ok(Some(letter));
                    }
                }
                Answer::Away(why) => {
                    tracing::warn!(gateway = self.origin, why, "a push gateway is not to be reached");
                }
            }
            if Instant::now() >= letter.until {
                tracing::warn!(gateway = self.origin, "a notification became too old for its push gateway");
                return Ok(None);
            }
            wait.pause().await;
        }
    }

    async fn post(&self, body: &Value) -> Answer {
        let answer = match self.client.post(&self.url).json(body).send().await {
            Ok(answer) => answer,
            Err(error) => return Answer::Away(error.without_url().to_string()),
        };
        match answer.status().as_u16() {
            // It took it, whatever it has to say beside.
            200..=299 => Answer::Taken(rejected(answer).await.unwrap_or_default()),
            status @ (408 | 429 | 502..=504) => Answer::Busy(status),
            status @ 500.. => Answer::Failed(status),
            status => Answer::Refused(status),
        }
    }
}

/// What became of a request.
enum Answer {
    /// It took it; pushkeys that refuse for good.
    Taken(Vec<String>),
    /// It will never take this one.
    Refused(u16),
    /// It failed at this one.
    Failed(u16),
    /// It does not take this one now.
    Busy(u16),
    /// It cannot be reached.
    Away(String),
}

/// How many messages are unread in all rooms that the user is in.
async fn unread(server: &Arc<Server>, user: &UserId) -> Result<u64> {
    let rooms = {
        let mut conn = server.db.read().await?;
        store::push::unread_rooms(&mut conn, user.as_str()).await?
    };
    let mut sum = 0;
    for room_id in rooms {
        let room = match server.live.room(&server.db, <&RoomId>::try_from(room_id.as_str())?).await {
            Ok(room) => room,
            Err(error) if error.code() == Some(Code::NotFound) => continue,
            Err(error) => return Err(error),
        };
        let notify = counts::unread(server, user, &room).await?.total().notify;
        sum += notify;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_has_one_path_and_https() {
        let origin = |url: &str| origin_of(url);
        let good = Some("https://push.example.jp".to_owned());
        assert_eq!(origin("https://push.example.jp/_matrix/push/v1/notify"), good);
        assert_eq!(origin("https://PUSH.example.jp:443/_matrix/push/v1/notify"), good);
        assert_eq!(
            origin("https://push.example.jp:8443/_matrix/push/v1/notify"),
            Some("https://push.example.jp:8443".to_owned())
        );
        for bad in [
            "http://push.example.jp/_matrix/push/v1/notify",
            "https://push.example.jp/",
            "https://push.example.jp/_matrix/push/v1/notify/",
            "https://push.example.jp/_matrix/push/v1/notify?x=1",
            "https://push.example.jp/_matrix/push/v1/notify#x",
            "https://push.example.jp@other.example/_matrix/push/v1/notify",
            "https://push.example.jp/x/../_matrix/push/v1/notifyx",
            "push.example.jp",
            "",
        ] {
            assert_eq!(origin(bad), None, "{bad}");
        }
        assert_ne!(origin("https://push.example.jp.other.example/_matrix/push/v1/notify"), good);
    }
}
