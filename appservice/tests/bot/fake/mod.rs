//! A homeserver that keeps the contract of docs/internal-api.md as far as the bot uses it, and misbehaves on demand.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use heya_city::{Config, Language};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const AS_TOKEN: &str = "as-token";
pub const HS_TOKEN: &str = "hs-token";
pub const CITY: &str = "@city:example.jp";
pub const STAFF: &str = "@p100001:example.jp";
pub const CARE_MANAGER: &str = "@p104217:example.jp";
pub const OTHER: &str = "@p104218:example.jp";
pub const CONTROL: &str = "!control";
pub const DIRECT: &str = "!direct";
pub const ROOM: &str = "!room7";

/// Nothing in these tests takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A message of the bot.
#[derive(Clone, Debug)]
pub struct Said {
    pub room: String,
    pub body: String,
    pub content: Value,
    pub event_id: String,
    pub mentions: Vec<String>,
    pub reply_to: Option<String>,
}

#[derive(Default)]
struct Inside {
    said: Vec<Said>,
    /// Answers by (what, key): the same key is answered the same.
    answers: HashMap<(String, String), Value>,
    /// Changing calls that did something, in order.
    calls: Vec<(String, String, Value)>,
    opened: Vec<String>,
    lose: HashMap<String, u32>,
    refuse: HashMap<String, (u16, String)>,
    held: Option<String>,
    /// The call that waits, counted from one; then whether it has come.
    hold_call: Option<u64>,
    holding: bool,
    rounds: u64,
    /// What is behind `mxc://example.jp/…`.
    files: HashMap<String, Vec<u8>>,
    facilities: Vec<String>,
}

/// What came first.
pub enum Reached {
    Held,
    Said,
}

#[derive(Clone)]
pub struct Fake {
    inside: Arc<Mutex<Inside>>,
    changed: watch::Sender<u64>,
    url: String,
}

/// A running bot with a database that outlives it.
pub struct Bot {
    fake: Fake,
    database: PathBuf,
    url: String,
    task: JoinHandle<()>,
}

pub fn message(room: &str, event_id: &str, sender: &str, body: &str) -> Value {
    json!({"type": "m.room.message", "room_id": room, "event_id": event_id, "sender": sender,
        "content": {"msgtype": "m.text", "body": body}})
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fake = Self { inside: Arc::default(), changed: watch::channel(0).0, url };
        let router = Router::new()
            .route("/_heya/v1/control", get(control))
            .route("/_heya/v1/accounts/search", post(accounts))
            .route("/_heya/v1/accounts/{user}/reset", post(reset))
            .route("/_heya/v1/facilities", get(facilities).post(facility))
            .route("/_heya/v1/accounts", post(account))
            .route("/_matrix/client/v1/media/download/example.jp/{file}", get(download))
            .route("/_heya/v1/rooms", get(rooms).post(open))
            .route("/_heya/v1/rooms/{room}", get(room))
            .route("/_heya/v1/rooms/{room}/{what}", post(change))
            .route("/_matrix/client/v3/rooms/{room}/join", post(|| async { axum::Json(json!({})) }))
            .route("/_matrix/client/v3/rooms/{room}/send/m.room.message/{txn}", put(send))
            .with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        fake
    }

    pub async fn bot(&self) -> Bot {
        self.bot_until(std::future::pending()).await
    }

    /// A bot that is told to stop.
    pub async fn bot_until(&self, shutdown: impl Future<Output = ()> + Send + 'static) -> Bot {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("heya-city-{}-{}.sqlite", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let database = std::env::temp_dir().join(name);
        let (url, task) = run(self, &database, shutdown).await;
        Bot { fake: self.clone(), database, url, task }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        let result = change(&mut self.inside.lock().unwrap());
        self.changed.send_modify(|round| *round += 1);
        result
    }

    /// Waits until `find` finds something.
    async fn until<T>(&self, what: &str, find: impl Fn(&Inside) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = find(&self.inside.lock().unwrap()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(found) => found,
            Err(_) => panic!("waited for {what}; said: {:#?}", self.inside.lock().unwrap().said),
        }
    }

    /// The first message in the room that contains the text.
    pub async fn said(&self, room: &str, text: &str) -> Said {
        let find = |inside: &Inside| {
            inside.said.iter().find(|said| said.room == room && said.body.contains(text)).cloned()
        };
        self.until(text, find).await
    }

    pub async fn called(&self, what: &str) {
        self.until(what, |inside| inside.calls.iter().any(|call| call.0 == what).then_some(())).await;
    }

    /// The next `count` answers to `what` are lost after their effect.
    pub fn lose_answers(&self, what: &str, count: u32) {
        self.change(|inside| inside.lose.insert(what.to_owned(), count));
    }

    /// Puts a file behind `mxc://example.jp/name`.
    pub fn upload(&self, name: &str, bytes: &[u8]) {
        self.change(|inside| inside.files.insert(name.to_owned(), bytes.to_owned()));
    }

    /// Registers a facility, as somebody else would.
    pub fn register(&self, name: &str) {
        self.change(|inside| inside.facilities.push(name.to_owned()));
    }

    /// The next call of `what` is refused, without an effect.
    pub fn refuse(&self, what: &str, status: u16, errcode: &str) {
        self.change(|inside| inside.refuse.insert(what.to_owned(), (status, errcode.to_owned())));
    }

    /// Answers to `what` wait until `release`.
    pub fn hold(&self, what: &str) {
        self.change(|inside| inside.held = Some(what.to_owned()));
    }

    /// The `nth` changing call acts, and its answer waits until `release`.
    pub fn hold_call(&self, nth: u64) {
        self.change(|inside| inside.hold_call = Some(nth));
    }

    /// Waits until a call is held or something was said, and says which; held first.
    pub async fn held_or(&self, said: impl Fn(&Said) -> bool) -> Reached {
        let find = |inside: &Inside| {
            if inside.holding {
                Some(Reached::Held)
            } else {
                inside.said.iter().any(&said).then_some(Reached::Said)
            }
        };
        self.until("a held call or a message", find).await
    }

    pub fn release(&self) {
        self.change(|inside| {
            inside.held = None;
            inside.hold_call = None;
            inside.holding = false;
        });
    }

    /// Everything said in a room so far.
    pub fn all_said(&self, room: &str) -> Vec<Said> {
        let inside = self.inside.lock().unwrap();
        inside.said.iter().filter(|said| said.room == room).cloned().collect()
    }

    pub fn rooms_opened(&self) -> usize {
        self.inside.lock().unwrap().opened.len()
    }

    pub fn last_call(&self, what: &str) -> Value {
        self.inside.lock().unwrap().calls.iter().rev().find(|call| call.0 == what).unwrap().2.clone()
    }

    /// The different keys of the calls of `what`.
    pub fn keys(&self, what: &str) -> Vec<String> {
        let inside = self.inside.lock().unwrap();
        inside.calls.iter().filter(|call| call.0 == what).map(|call| call.1.clone()).collect()
    }

    pub fn nothing_was_said_twice(&self) {
        let inside = self.inside.lock().unwrap();
        for (i, said) in inside.said.iter().enumerate() {
            assert!(
                !inside.said[..i]
                    .iter()
                    .any(|earlier| earlier.room == said.room && earlier.body == said.body),
                "{said:?}"
            );
        }
    }

    /// Takes a changing call: once per key, then the remembered answer; or the trouble that was ordered.
    async fn take(
        &self,
        what: &str,
        headers: &HeaderMap,
        key: &str,
        body: Value,
        answer: impl FnOnce(&mut Inside) -> Value,
    ) -> Response {
        assert_eq!(headers.get("authorization").unwrap(), &format!("Bearer {AS_TOKEN}"));
        let taken = self.change(|inside| {
            inside.rounds += 1;
            inside.holding |= inside.hold_call == Some(inside.rounds);
            let known = (what.to_owned(), key.to_owned());
            if let Some(answer) = inside.answers.get(&known) {
                return Ok(answer.clone());
            }
            if what != "send" {
                inside.calls.push((what.to_owned(), key.to_owned(), body));
            }
            if let Some((status, errcode)) = inside.refuse.remove(what) {
                return Err((status, errcode));
            }
            let answer = answer(inside);
            inside.answers.insert(known, answer.clone());
            Ok(answer)
        });
        self.until("release", |inside| {
            (inside.held.as_deref() != Some(what) && !inside.holding).then_some(())
        })
        .await;
        let lost = self.change(|inside| match inside.lose.get_mut(what) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        });
        match taken {
            _ if lost => StatusCode::BAD_GATEWAY.into_response(),
            Ok(answer) => axum::Json(answer).into_response(),
            Err((status, errcode)) => {
                (StatusCode::from_u16(status).unwrap(), axum::Json(json!({"errcode": errcode, "error": ""})))
                    .into_response()
            }
        }
    }
}

impl Bot {
    /// Delivers a transaction as the server does: again and again until it is acknowledged.
    pub async fn deliver(&self, txn_id: &str, events: Value) {
        let body = json!({"events": events}).to_string();
        let deliver = async {
            while self.call("PUT", &format!("transactions/{txn_id}"), Some(HS_TOKEN), &body).await != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, deliver).await.expect("the transaction is taken");
    }

    pub async fn call(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> u16 {
        let method = method.parse().unwrap();
        let mut request = reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .request(method, format!("{}/_matrix/app/v1/{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.body(body.to_owned()).send().await.map_or(0, |response| response.status().as_u16())
    }

    /// Waits until the bot has stopped by itself.
    pub async fn ended(mut self) {
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it ends").unwrap();
    }

    /// Kills the bot wherever it is and starts it on the same database.
    pub async fn restart(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        (self.url, self.task) = run(&self.fake, &self.database, std::future::pending()).await;
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        self.task.abort();
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", self.database.display()));
        }
    }
}

async fn run(
    fake: &Fake,
    database: &std::path::Path,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> (String, JoinHandle<()>) {
    // reqwest in this test needs a provider as much as the bot does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let config = Config {
        server_url: fake.url.clone(),
        as_token: AS_TOKEN.into(),
        hs_token: HS_TOKEN.into(),
        database: database.to_owned(),
        city_name: "〇〇市".into(),
        contact: "0000-00-0000".into(),
        language: Language::Japanese,
        application_columns: [("お問い合わせ番号".to_owned(), "整理番号".to_owned())].into(),
        application_procedures: std::collections::BTreeMap::new(),
    };
    assert!(!format!("{config:?}").contains("token\""), "tokens are not for logs");
    let task = tokio::spawn(async move {
        heya_city::run(config, listener, shutdown).await.unwrap();
    });
    (url, task)
}

async fn control() -> axum::Json<Value> {
    axum::Json(
        json!({"city_user": CITY, "control_room": CONTROL, "announcement_room": "!announcements", "staff": [STAFF],
        "server_name": "example.jp", "language": "ja"}),
    )
}

async fn accounts(asked: axum::Json<Value>) -> axum::Json<Value> {
    let account = |login: &str, facility: &str, name: &str| {
        json!({"user_id": format!("@{login}:example.jp"), "login_id": login, "display_name": format!("{facility} {name}"),
            "name": name, "kind": "personal", "facility": 1, "facility_name": facility, "profession": null, "status": "active"})
    };
    let all = [
        account("p104217", "あおば居宅", "佐藤花子"),
        account("p104218", "あおば訪問看護", "田中次郎"),
        account("p104300", "みどり薬局", "鈴木一郎"),
    ];
    let wanted = asked["query"].as_str().unwrap_or_default();
    let found: Vec<&Value> = all
        .iter()
        .filter(|row| row["login_id"] == wanted || row["display_name"].as_str().unwrap().contains(wanted))
        .collect();
    axum::Json(json!({"accounts": found}))
}

fn parameter(query: Option<String>, name: &str) -> String {
    let url = reqwest::Url::parse(&format!("http://localhost/?{}", query.unwrap_or_default())).unwrap();
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

async fn rooms(RawQuery(query): RawQuery) -> axum::Json<Value> {
    let rooms = match parameter(query, "status").as_str() {
        "open" => {
            json!([{"room_id": ROOM, "room_number": 7, "kind": "subject", "name": "山田さんの部屋", "status": "open", "members": 2}])
        }
        _ => json!([]),
    };
    axum::Json(json!({"rooms": rooms}))
}

async fn room(Path(room): Path<String>) -> Response {
    if room != ROOM {
        return (StatusCode::NOT_FOUND, axum::Json(json!({"errcode": "M_NOT_FOUND", "error": ""})))
            .into_response();
    }
    let members = json!([{"user_id": CARE_MANAGER, "display_name": "あおば居宅 佐藤花子", "facility": 1},
        {"user_id": OTHER, "display_name": "あおば訪問看護 田中次郎", "facility": 2}]);
    axum::Json(json!({"room_id": ROOM, "room_number": 7, "kind": "subject", "name": "山田さんの部屋", "status": "open", "members": members}))
        .into_response()
}

fn key(headers: &HeaderMap) -> String {
    headers.get("idempotency-key").expect("a changing call has a key").to_str().unwrap().to_owned()
}

async fn open(State(fake): State<Fake>, headers: HeaderMap, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let case = body["case"].as_str().unwrap().to_owned();
    let answer = move |inside: &mut Inside| {
        inside.opened.push(case);
        json!({"room_id": "!new", "room_number": 14})
    };
    fake.take("open", &headers, &key(&headers), body, answer).await
}

async fn facility(State(fake): State<Fake>, headers: HeaderMap, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["pledge"], true);
    let name = body["name"].as_str().unwrap().to_owned();
    let answer = move |inside: &mut Inside| {
        inside.facilities.push(name.clone());
        json!({"facility": 9, "name": name})
    };
    fake.take("facility", &headers, &key(&headers), body, answer).await
}

async fn facilities(State(fake): State<Fake>) -> axum::Json<Value> {
    let inside = fake.inside.lock().unwrap();
    let row =
        |name: &String| json!({"facility": 9, "name": name, "kind": "care", "active": true, "accounts": 0});
    axum::Json(json!({"facilities": inside.facilities.iter().map(row).collect::<Vec<_>>()}))
}

async fn account(State(fake): State<Fake>, headers: HeaderMap, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let answer =
        json!({"login_id": "p104400", "display_name": body["name"], "sheets": ["sheets/0012-password.html"]});
    fake.take("account", &headers, &key(&headers), body, |_| answer).await
}

async fn download(State(fake): State<Fake>, Path(file): Path<String>, headers: HeaderMap) -> Response {
    assert_eq!(headers.get("authorization").unwrap(), &format!("Bearer {AS_TOKEN}"));
    match fake.inside.lock().unwrap().files.get(&file) {
        Some(bytes) => bytes.clone().into_response(),
        None => (StatusCode::NOT_FOUND, axum::Json(json!({"errcode": "M_NOT_FOUND", "error": ""})))
            .into_response(),
    }
}

async fn reset(
    State(fake): State<Fake>,
    Path(user): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    body["user"] = user.into();
    let answer = json!({"sessions": 2, "terminals": 1, "sheets": ["sheets/0011-password.html", "sheets/0011-code.html"]});
    fake.take("reset", &headers, &key(&headers), body, |_| answer).await
}

async fn change(
    State(fake): State<Fake>,
    Path((_, what)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    fake.take(
        &what,
        &headers,
        &key(&headers),
        body,
        |_| json!({"added": [], "removed": [], "unchanged": [], "closed": true}),
    )
    .await
}

async fn send(
    State(fake): State<Fake>,
    Path((room, txn)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["msgtype"], "m.notice");
    let content = body.clone();
    let answer = |inside: &mut Inside| {
        let event_id = format!("$said{}", inside.rounds);
        let mentions = content["m.mentions"]["user_ids"].as_array().cloned().unwrap_or_default();
        inside.said.push(Said {
            room: room.clone(),
            body: content["body"].as_str().unwrap().to_owned(),
            content: content.clone(),
            event_id: event_id.clone(),
            mentions: mentions.iter().map(|user| user.as_str().unwrap().to_owned()).collect(),
            reply_to: content["m.relates_to"]["m.in_reply_to"]["event_id"].as_str().map(str::to_owned),
        });
        json!({"event_id": event_id})
    };
    fake.take("send", &headers, &format!("{room} {txn}"), body, answer).await
}
