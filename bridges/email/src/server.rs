//! Calls to the homeserver's internal listener: the only place that knows its paths (docs/internal-api.md, "Mail").

use reqwest::{Client, StatusCode, redirect::Policy};
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

/// The homeserver.
#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
    base: String,
    mail_token: String,
}

/// A mail that the server owes.
#[derive(Deserialize)]
pub(crate) struct LeasedMail {
    pub(crate) id: String,
    pub(crate) template: String,
    #[serde(default)]
    pub(crate) lang: String,
    pub(crate) to: String,
    #[serde(default)]
    pub(crate) parameters: BTreeMap<String, serde_json::Value>,
}

/// Why a call brought nothing. Holds no URL and no body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the server cannot be reached")]
    Unreachable,
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("the server's answer makes no sense")]
    Answer,
}

#[derive(Deserialize)]
struct Leased {
    mails: Vec<LeasedMail>,
}

const LEASE_MAX: u32 = 20;
const LEASE_WAIT: Duration = Duration::from_secs(25);
/// docs/internal-api.md: all bodies are at most 64 KiB.
const BODY_BYTES_MAX: usize = 64 * 1024;

impl Server {
    pub(crate) fn new(base: &str, mail_token: String) -> Result<Self, String> {
        let client = Client::builder()
            // No proxy from the environment and no redirect: nobody but this server gets the token.
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(20))
            // Well before the server closes what is idle: a call on a connection that is just being closed has no answer.
            .pool_idle_timeout(Duration::from_secs(15))
            .build()
            .map_err(|_| "the HTTP client could not be made")?;
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), mail_token })
    }

    /// Waits for mails that the server owes.
    pub(crate) async fn lease(&self) -> Result<Vec<LeasedMail>, CallError> {
        let body = json!({"max": LEASE_MAX, "wait_ms": u64::try_from(LEASE_WAIT.as_millis()).unwrap_or(0)});
        let request = self
            .client
            .post(format!("{}/_heya/v1/mail/lease", self.base))
            .timeout(LEASE_WAIT + Duration::from_secs(20))
            .bearer_auth(&self.mail_token)
            .json(&body);
        let mut response = request.send().await.map_err(|_| CallError::Unreachable)?;
        if !response.status().is_success() {
            return Err(CallError::Status(response.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| CallError::Unreachable)? {
            if bytes.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(CallError::Answer);
            }
            bytes.extend_from_slice(&chunk);
        }
        let leased: Leased = serde_json::from_slice(&bytes).map_err(|_| CallError::Answer)?;
        if leased.mails.len() > LEASE_MAX as usize {
            return Err(CallError::Answer);
        }
        Ok(leased.mails)
    }

    /// Tells where a mail ended (`done`) or that an address refused (`refused`). `key` is the same at every attempt.
    pub(crate) async fn report(&self, path: &str, key: i64, body: String) -> Result<(), CallError> {
        let response = self
            .client
            .post(format!("{}/_heya/v1/mail/{path}", self.base))
            .bearer_auth(&self.mail_token)
            .header("Idempotency-Key", format!("mail-{path}-{key}"))
            .header("Content-Type", "application/json")
            .body(body)
            .send()
            .await
            .map_err(|_| CallError::Unreachable)?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(CallError::Status(status)),
        }
    }
}
