//! A thin Matrix client over reqwest, as a terminal has one: it trusts the demo's CA only, shows the terminal's
//! certificate, and keeps what a long poll brought.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use heya::error::{Error, Result};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

/// Nothing in the story takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// One long poll.
const POLL: Duration = Duration::from_secs(5);
/// Longer than the longest long poll.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(90);
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Where the city is, and by which CA it is known.
#[derive(Clone)]
pub struct Place {
    /// The CA's certificate.
    pub ca: reqwest::Certificate,
    /// Where clients reach the service.
    pub public: String,
    /// Where enrolment and mail links are.
    pub enrol: String,
}

/// Connections of one terminal to one address.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    base: String,
}

impl Place {
    /// A browser on the enrolment pages: no certificate.
    pub fn browser(&self) -> Result<Http> {
        self.http(&self.enrol, None)
    }

    /// A client on a terminal with this certificate (PEM with its key), or with none. New connections every time.
    pub fn terminal(&self, identity: Option<&[u8]>) -> Result<Http> {
        self.http(&self.public, identity)
    }

    fn http(&self, base: &str, identity: Option<&[u8]>) -> Result<Http> {
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ANSWER_TIME_MAX)
            .tls_certs_only([self.ca.clone()])
            .resolve("localhost", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        if let Some(pem) = identity {
            builder = builder.identity(reqwest::Identity::from_pem(pem)?);
        }
        Ok(Http { client: builder.build()?, base: base.to_owned() })
    }
}

impl Http {
    /// A request to a path of this address, to be completed and given to [`answer`].
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: header::HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// Sends a request and reads its answer.
pub async fn answer(request: reqwest::RequestBuilder) -> Result<Answer> {
    let mut response = request.send().await.map_err(without_url)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(without_url)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(Error::internal("an answer is too large"));
        }
    }
    Ok(Answer { status, headers, body })
}

/// URLs hold room ids and the tokens of mail links.
fn without_url(error: reqwest::Error) -> Error {
    Error::Internal(Box::new(error.without_url()))
}

impl Answer {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, where the status is the expected one.
    pub fn expect(&self, what: &str, status: u16) -> Result<Value> {
        if self.status.as_u16() == status {
            return Ok(self.json());
        }
        let body = self.json();
        // Only the error's own words: an unexpected success may hold a token.
        let word = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let got = format!("{} {} {}", self.status.as_u16(), word("errcode"), word("error"));
        Err(Error::internal(format!("{what}: expected {status}, got {}", got.trim_end())))
    }
}

/// A part of a path or a query, percent-encoded.
pub fn part(text: &str) -> String {
    url_encoded(text).replace('+', "%20")
}

fn url_encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// An event that a sync brought.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its room.
    pub room: String,
    /// The event.
    pub event: Value,
}

impl Seen {
    /// Its body, if it is a message.
    pub fn text(&self) -> &str {
        if self.event["type"] == "m.room.message" {
            self.event["content"]["body"].as_str().unwrap_or_default()
        } else {
            ""
        }
    }

    /// Its id.
    pub fn id(&self) -> String {
        self.event["event_id"].as_str().unwrap_or_default().to_owned()
    }
}

/// Somebody who is logged in.
pub struct Session {
    /// Their terminal.
    pub http: Http,
    /// Their Matrix id.
    pub user_id: String,
    token: String,
    since: String,
    seen: Vec<Seen>,
    sent: u32,
}

/// Asks for a login; what comes is the caller's to judge.
pub async fn try_login(http: &Http, login_id: &str, password: &str) -> Result<Answer> {
    let body = json!({
        "type": "m.login.password", "identifier": {"type": "m.id.user", "user": login_id}, "password": password,
        "initial_device_display_name": "heya demo",
    });
    answer(http.request(Method::POST, "/_matrix/client/v3/login").json(&body)).await
}

impl Session {
    /// Logs in and reads what is there.
    pub async fn begin(http: Http, login_id: &str, password: &str) -> Result<Self> {
        let body = try_login(&http, login_id, password).await?.expect("logging in", 200)?;
        let word = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let mut session = Self {
            http,
            user_id: word("user_id"),
            token: word("access_token"),
            since: String::new(),
            seen: Vec::new(),
            sent: 0,
        };
        session.sync(Duration::ZERO).await?;
        Ok(session)
    }

    /// The token: for trying it where it must not work, and for looking for it in the log.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A request of the client-server API; `path` begins with its version.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, &format!("/_matrix/client/{path}")).bearer_auth(&self.token)
    }

    /// Calls the client-server API; what comes is the caller's to judge.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        let request = self.request(method, path);
        answer(match body {
            Some(body) => request.json(&body),
            None => request,
        })
        .await
    }

    /// Sends an event; what comes is the caller's to judge.
    pub async fn send(&mut self, room: &str, kind: &str, content: Value) -> Result<Answer> {
        self.sent += 1;
        let path = format!("v3/rooms/{}/send/{kind}/demo-{}", part(room), self.sent);
        self.call(Method::PUT, &path, Some(content)).await
    }

    /// Writes a message and returns its id.
    pub async fn say(&mut self, room: &str, text: &str) -> Result<String> {
        let content = json!({"msgtype": "m.text", "body": text, "m.mentions": {}});
        event_id(self.send(room, "m.room.message", content).await?.expect("writing a message", 200)?)
    }

    /// Reacts to a message.
    pub async fn react(&mut self, room: &str, about: &str, key: &str) -> Result<Answer> {
        let relation = json!({"rel_type": "m.annotation", "event_id": about, "key": key});
        self.send(room, "m.reaction", json!({"m.relates_to": relation})).await
    }

    /// A sync request from where this session is, to be held by the server for `wait`.
    pub fn poll(&self, wait: Duration) -> reqwest::RequestBuilder {
        let filter = part(r#"{"room":{"timeline":{"limit":50}}}"#);
        let since =
            if self.since.is_empty() { String::new() } else { format!("&since={}", part(&self.since)) };
        self.request(Method::GET, &format!("v3/sync?timeout={}&filter={filter}{since}", wait.as_millis()))
    }

    /// Syncs once; true where something came.
    pub async fn sync(&mut self, wait: Duration) -> Result<bool> {
        let body = answer(self.poll(wait)).await?.expect("syncing", 200)?;
        self.since = body["next_batch"].as_str().unwrap_or_default().to_owned();
        let before = self.seen.len();
        for (room, joined) in body["rooms"]["join"].as_object().into_iter().flatten() {
            for list in ["state", "timeline"] {
                for event in joined[list]["events"].as_array().into_iter().flatten() {
                    self.seen.push(Seen { room: room.clone(), event: event.clone() });
                }
            }
        }
        Ok(self.seen.len() > before || body["rooms"].is_object())
    }

    /// Syncs until nothing is new.
    pub async fn catch_up(&mut self) -> Result<()> {
        let begun = Instant::now();
        while self.sync(Duration::ZERO).await? {
            if begun.elapsed() >= PATIENCE {
                return Err(Error::internal(
                    "there is always something new for somebody to whom nothing happens",
                ));
            }
        }
        Ok(())
    }

    /// How much was seen until now: what comes later is after this mark.
    pub fn mark(&self) -> usize {
        self.seen.len()
    }

    /// Waits until `find` finds something among what was seen after `mark`.
    pub async fn until<T>(
        &mut self,
        what: &str,
        mark: usize,
        find: impl Fn(&Seen) -> Option<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let mut from = mark;
        loop {
            if let Some(found) = self.seen.get(from..).unwrap_or_default().iter().find_map(&find) {
                return Ok(found);
            }
            from = self.seen.len();
            if begun.elapsed() >= PATIENCE {
                return Err(Error::internal(format!(
                    "waited {} s for {what}: it did not come",
                    PATIENCE.as_secs()
                )));
            }
            self.sync(POLL).await?;
        }
    }

    /// Waits for somebody else's message in a room that contains a text.
    pub async fn heard(&mut self, room: &str, mark: usize, text: &str) -> Result<Seen> {
        let what = format!("a message with 「{text}」");
        let own = self.user_id.clone();
        let find = |seen: &Seen| {
            let fits =
                seen.room == room && seen.event["sender"] != own.as_str() && seen.text().contains(text);
            fits.then(|| seen.clone())
        };
        self.until(&what, mark, find).await
    }

    /// The room of a kind (`control`, `announcement`, …) that this person is in.
    pub async fn room_of_kind(&mut self, kind: &str) -> Result<String> {
        let find = |seen: &Seen| {
            let event = &seen.event;
            (event["type"] == "jp.heya.room" && event["content"]["kind"] == kind).then(|| seen.room.clone())
        };
        self.until(&format!("the {kind} room"), 0, find).await
    }
}

/// The event id of an answer to sending.
pub fn event_id(body: Value) -> Result<String> {
    body["event_id"].as_str().map(str::to_owned).ok_or_else(|| Error::internal("an answer has no event_id"))
}
