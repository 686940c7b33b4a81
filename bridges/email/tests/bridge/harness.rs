//! A city's mail in one process: bridge, homeserver, SMTP server, and a clock that stands still.

use heya_mail::{Clock, Config, Hand, Security, Smtp as SmtpConfig};
use serde_json::{Value, json};
use sqlx::Connection as _;
use std::{path::PathBuf, time::Duration};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::{homeserver::Homeserver, smtp::Smtp};

pub const TOKEN: &str = "token-of-the-mail-bridge";
pub const ADDRESS: &str = "a@example.jp";
/// 2026-11-23 12:00 in Japan.
pub const NOON_MS: i64 = 1_795_402_800_000;

pub struct City {
    pub smtp: Smtp,
    pub homeserver: Homeserver,
    pub hand: Hand,
    pub config: Config,
    clock: Clock,
    folder: PathBuf,
    url: String,
    bridge: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    client: reqwest::Client,
}

impl City {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_on(Smtp::start().await, change).await
    }

    pub async fn start_on(smtp: Smtp, change: impl FnOnce(&mut Config)) -> Self {
        let homeserver = Homeserver::start().await;
        let folder = std::env::temp_dir().join(format!("heya-mail-{:032x}", rand::random::<u128>()));
        std::fs::create_dir(&folder).unwrap();
        let smtp_config = SmtpConfig {
            host: "127.0.0.1".to_owned(),
            port: smtp.port,
            security: Security::None,
            username: None,
            password: None,
            ca_file: None,
            timeout: Duration::from_secs(10),
        };
        let mut config = Config::new(
            homeserver.url.clone(),
            TOKEN.to_owned(),
            folder.join("mail.db"),
            "Heya <noreply@example.jp>".to_owned(),
            smtp_config,
        );
        config.login_url = "https://heya.example.jp/".to_owned();
        config.contact = "〇〇市 〇〇課 0000-00-0000".to_owned();
        change(&mut config);
        let (clock, hand) = Clock::held(NOON_MS);
        let (url, bridge, stop) = run(&config, &clock).await;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { smtp, homeserver, hand, config, clock, folder, url, bridge, stop, client }
    }

    /// The process dies and another is started on the same database.
    pub async fn restart(&mut self) {
        self.kill().await;
        (self.url, self.bridge, self.stop) = run(&self.config, &self.clock).await;
    }

    pub async fn kill(&mut self) {
        if !self.bridge.is_finished() {
            self.bridge.abort();
            let _ = (&mut self.bridge).await;
        }
        self.homeserver.bridge_died();
    }

    /// Asks the bridge to end; `before_end` happens while it does.
    pub async fn stop(&mut self, before_end: impl FnOnce()) {
        let (unused, _) = oneshot::channel();
        std::mem::replace(&mut self.stop, unused).send(()).unwrap();
        before_end();
        (&mut self.bridge).await.unwrap();
    }

    pub fn advance(&self, seconds: u64) {
        self.hand.advance(Duration::from_secs(seconds));
    }

    /// Waits until the bridge has written down how its attempts ended.
    pub async fn settled(&self) {
        self.until("SELECT NOT EXISTS (SELECT 1 FROM mails WHERE state = 'sending')", 0).await;
    }

    /// Waits until a mail was tried so often in vain.
    pub async fn attempted(&self, times: i64) {
        self.until("SELECT EXISTS (SELECT 1 FROM mails WHERE state = 'waiting' AND attempts = $1)", times)
            .await;
    }

    /// Waits until the bridge has nothing more to tell.
    pub async fn reported(&self) {
        self.until("SELECT NOT EXISTS (SELECT 1 FROM reports WHERE id > $1)", 0).await;
    }

    /// The outbox knows of one mail, and that it was sent.
    pub async fn one_is_sent(&self) {
        self.until("SELECT COUNT(*) = 1 AND MIN(state) = 'sent' FROM mails WHERE id > $1", 0).await;
    }

    async fn until(&self, query: &'static str, value: i64) {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&self.config.database);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        let wait = async {
            while !sqlx::query_scalar::<_, bool>(query).bind(value).fetch_one(&mut connection).await.unwrap()
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the outbox stays as it is");
    }

    /// Then lets the longest pause between attempts go by.
    pub async fn pass_retry_pause(&self) {
        self.settled().await;
        self.advance(15 * 60);
    }

    /// Sends a notification; answers the rejected pushkeys.
    pub async fn notify(&self, notification: Value) -> Value {
        let (status, answer) = self.post(TOKEN, json!({ "notification": notification }).to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer["rejected"].clone()
    }

    pub async fn post(&self, token: &str, body: String) -> (u16, Value) {
        let url = format!("{}/_matrix/push/v1/notify", self.url);
        let response = self.client.post(url).bearer_auth(token).body(body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Every byte that the bridge has on disk.
    pub fn files(&self) -> Vec<u8> {
        let files = std::fs::read_dir(&self.folder).unwrap();
        files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }
}

impl Drop for City {
    fn drop(&mut self) {
        self.bridge.abort();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Somebody whom the city does not know by name posts in room 14.
pub fn posted(event_id: &str) -> Value {
    json!({
        "event_id": event_id,
        "room_id": "!fourteen",
        "type": "m.room.message",
        "sender": "@p100002:heya.example.jp",
        "sender_display_name": "あおば訪問看護 佐藤花子",
        "room_name": "山田太郎さんの部屋",
        "prio": "high",
        "counts": {"unread": 1},
        "devices": [device("highlight", Some(14))],
    })
}

pub fn device(scope: &str, room_number: Option<i64>) -> Value {
    json!({
        "app_id": "m.email",
        "pushkey": ADDRESS,
        "data": {
            "jp.heya.account": "@p100001:heya.example.jp",
            "jp.heya.lang": "ja",
            "jp.heya.scope": scope,
            "jp.heya.room_number": room_number,
            "jp.heya.pusher": "pusher-1",
        },
    })
}

async fn run(config: &Config, clock: &Clock) -> (String, JoinHandle<()>, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (config, clock) = (config.clone(), clock.clone());
    let (stop, stopped) = oneshot::channel();
    let stopped = async move { drop(stopped.await) };
    let bridge = tokio::spawn(async move {
        heya_mail::run_at(config, clock, listener, stopped).await.unwrap();
    });
    (url, bridge, stop)
}
