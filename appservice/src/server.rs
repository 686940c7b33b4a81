//! The HTTP client: every call to the homeserver, and the only place that knows URLs and statuses.

use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use crate::Error;

/// The contract says 64 KiB; lists of a large city may be longer, so answers are read up to this size.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Opening a room with many members is the longest call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason where the server has answered, and could not do it.
pub(crate) const SERVER_ERROR: &str = "server error";

/// Why a call has no answer. Neither form holds text that the server wrote: it might name a person.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Trying again later may help: no connection, a timeout, 5xx, 429, or a token that is not accepted
    /// (yet).
    Transient { reason: &'static str, retry_after: Option<Duration> },
    /// Trying again changes nothing.
    Refused { status: u16, errcode: String, room_number: Option<i64> },
}

/// The homeserver's internal listener.
#[derive(Debug)]
pub(crate) struct Server {
    http: reqwest::Client,
    base: Url,
    token: Token,
}

/// Keeps the token out of `Debug`.
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// The headers of a call that changes something.
#[derive(Clone, Copy, Debug, Default)]
struct Once<'a> {
    key: Option<&'a str>,
    because: Option<&'a str>,
}

impl Server {
    /// A client that talks to `base` and nothing else: no proxy, no redirects.
    pub(crate) fn new(base: &str, token: &str) -> Result<Self, Error> {
        let base = Url::parse(base).map_err(|_| Error::Config("server_url is not a URL"))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(Error::Config("server_url must begin with http:// or https://"));
        }
        // reqwest is built without a crypto provider of its own (STACK: `ring` everywhere); whoever runs
        // the bot alone may not have installed one.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Losing the race against another thread is fine: one is installed then.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            // Well before the server closes what is idle: a call on a connection that is just being closed has no answer.
            .pool_idle_timeout(std::time::Duration::from_secs(15))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(Error::Client)?;
        Ok(Self { http, base, token: Token(token.to_owned()) })
    }

    /// Reads.
    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, CallError> {
        self.call(Method::GET, path, query, Once::default(), None).await
    }

    /// Reads by a body.
    pub(crate) async fn ask(&self, path: &[&str], body: &Value) -> Result<Value, CallError> {
        self.call(Method::POST, path, &[], Once::default(), Some(body)).await
    }

    /// Changes something, once per `key`; `because` is the event by which whoever acts said so.
    pub(crate) async fn post(
        &self,
        path: &[&str],
        key: &str,
        because: Option<&str>,
        body: &Value,
    ) -> Result<Value, CallError> {
        self.call(Method::POST, path, &[], Once { key: Some(key), because }, Some(body)).await
    }

    /// Puts (Matrix sends: the transaction id is in the path).
    pub(crate) async fn put(&self, path: &[&str], body: &Value) -> Result<Value, CallError> {
        self.call(Method::PUT, path, &[], Once::default(), Some(body)).await
    }

    /// The bytes of a file in a room that `@city` is in; nothing where they are more than `bytes_max`.
    pub(crate) async fn medium(&self, mxc: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, CallError> {
        let Some((server, id)) = mxc.strip_prefix("mxc://").and_then(|rest| rest.split_once('/')) else {
            return Err(CallError::Refused {
                status: 404,
                errcode: "M_NOT_FOUND".to_owned(),
                room_number: None,
            });
        };
        let path = ["_matrix", "client", "v1", "media", "download", server, id];
        let mut url = self.url(&path);
        // What is still being uploaded is not waited for: nobody else would be answered meanwhile.
        url.query_pairs_mut().append_pair("timeout_ms", "0");
        let request = self.http.get(url).bearer_auth(&self.token.0);
        let answer = Answer::to(request).await?;
        let (status, retry_after) = (answer.status, answer.retry_after);
        let bytes = answer.bytes(bytes_max).await?;
        if status.is_success() {
            return Ok(bytes);
        }
        let json = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null);
        Err(refusal(status, &json, retry_after))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        once: Once<'_>,
        body: Option<&Value>,
    ) -> Result<Value, CallError> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).bearer_auth(&self.token.0);
        if let Some(key) = once.key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(event_id) = once.because {
            request = request.header("Because", event_id);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = Answer::to(request).await?;
        let (status, retry_after) = (answer.status, answer.retry_after);
        let bytes = answer.bytes(ANSWER_BYTES_MAX).await?;
        let bytes = bytes.ok_or(CallError::transient("answer too long"))?;
        let json: Result<Value, _> = serde_json::from_slice(&bytes);
        if status.is_success() {
            // An answer that is not JSON comes from something that is not the server; it may be back later.
            return json.map_err(|_| CallError::transient("answer is not JSON"));
        }
        let json = json.unwrap_or(Value::Null);
        Err(refusal(status, &json, retry_after))
    }
}

impl CallError {
    fn transient(reason: &'static str) -> Self {
        Self::Transient { reason, retry_after: None }
    }
}

fn refusal(status: StatusCode, json: &Value, retry_after: Option<Duration>) -> CallError {
    let errcode = json.get("errcode").and_then(Value::as_str).unwrap_or("");
    if status == StatusCode::TOO_MANY_REQUESTS {
        let asked = json.get("retry_after_ms").and_then(Value::as_u64).map(Duration::from_millis);
        return CallError::Transient { reason: "rate limit", retry_after: retry_after.or(asked) };
    }
    // 401 is a wrong token: a mistake in the config that must not cost a case.
    if status == StatusCode::UNAUTHORIZED {
        return CallError::transient("token refused");
    }
    // It will be posted again when it is there.
    if errcode == "M_NOT_YET_UPLOADED" {
        return CallError::Refused {
            status: status.as_u16(),
            errcode: errcode.to_owned(),
            room_number: None,
        };
    }
    // A 4xx without a Matrix error object is not the server's own refusal (a proxy, a half-started process).
    if !status.is_client_error() || status == StatusCode::REQUEST_TIMEOUT || errcode.is_empty() {
        return CallError::Transient { reason: SERVER_ERROR, retry_after };
    }
    let errcode: String =
        errcode.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).take(64).collect();
    let room_number = json.get("room_number").and_then(Value::as_i64);
    CallError::Refused { status: status.as_u16(), errcode, room_number }
}

/// An answer whose body is not read yet.
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    response: reqwest::Response,
}

impl Answer {
    async fn to(request: reqwest::RequestBuilder) -> Result<Self, CallError> {
        let response = request.send().await.map_err(|error| {
            CallError::transient(if error.is_timeout() { "timeout" } else { "no connection" })
        })?;
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok())
            .map(Duration::from_secs);
        Ok(Self { status: response.status(), retry_after, response })
    }

    /// The body; nothing where it is longer than `bytes_max`.
    async fn bytes(mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, CallError> {
        let mut bytes = Vec::new();
        loop {
            match self.response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= bytes_max => bytes.extend_from_slice(&chunk),
                Ok(Some(_)) => return Ok(None),
                Ok(None) => return Ok(Some(bytes)),
                Err(_) => return Err(CallError::transient("answer broke off")),
            }
        }
    }
}
