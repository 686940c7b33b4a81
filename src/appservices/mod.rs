//! Appservices: their registrations, and sending them what happened (Application Service API).
//!
//! Delivery follows the one stream behind the committer. A transaction's body is frozen in the database before it is
//! sent and is resent byte for byte with its id until it is acknowledged; one is under way at a time, in arrival order
//! (DESIGN 17). The city bot is the first appservice; its registration is made in `keys/city.registration.json`.

use std::{path::Path, sync::Arc, time::Duration};

use ruma::{OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    config::Config,
    error::{Code, Error, Result, refuse},
    rooms::live::parking::Mutex,
};

pub mod delivery;

/// A registration file, as the specification has it (YAML's subset JSON is accepted, and flat YAML of the same fields
/// can be converted); users only, since Heya has no aliases yet.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Registration {
    /// The name of the appservice.
    pub id: String,
    /// Where it listens; none where it only sends.
    pub url: Option<String>,
    /// Its token towards us.
    pub as_token: String,
    /// Our token towards it.
    pub hs_token: String,
    /// The localpart of its own user.
    pub sender_localpart: String,
    /// What it is interested in.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Whether it wants typing and receipts.
    #[serde(default)]
    pub receive_ephemeral: bool,
    /// Not limited in its rate.
    #[serde(default)]
    pub rate_limited: Option<bool>,
    /// Protocols it bridges.
    #[serde(default)]
    pub protocols: Option<Vec<String>>,
}

/// Namespaces of a registration.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Namespaces {
    /// User ids.
    #[serde(default)]
    pub users: Vec<Namespace>,
    /// Aliases.
    #[serde(default)]
    pub aliases: Vec<Namespace>,
    /// Room ids.
    #[serde(default)]
    pub rooms: Vec<Namespace>,
}

/// One namespace.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Namespace {
    /// Nobody else may make users in it.
    pub exclusive: bool,
    /// What it matches.
    pub regex: String,
}

/// An appservice.
pub struct Appservice {
    /// Its name.
    pub id: String,
    /// Its own user.
    pub sender: OwnedUserId,
    /// Its registration.
    pub registration: Registration,
    users: Vec<(bool, regex::Regex)>,
    rooms: Vec<regex::Regex>,
    /// A ping wakes its delivery.
    pub wake: Notify,
    /// Depth of the queue and age of its head, for the metrics.
    pub lag: Mutex<Lag>,
}

/// How far behind an appservice is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lag {
    /// Failures one after another.
    pub failures: u32,
    /// Position that it has.
    pub position: i64,
}

/// All appservices.
pub struct Appservices {
    list: Vec<Arc<Appservice>>,
    client: reqwest::Client,
}

impl Appservices {
    /// Reads the registrations named in the config, and makes the city bot's at the first start.
    pub fn load(config: &Config, keys: &Path, server_name: &ServerName) -> Result<Self> {
        let mut list =
            vec![Arc::new(Appservice::new(city_registration(config, keys, server_name)?, server_name)?)];
        for (name, path) in &config.appservices {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Error::internal(format!("appservices.{name}: {}: {error}", path.display()))
            })?;
            let registration: Registration = serde_json::from_str(&text).map_err(|error| {
                Error::internal(format!(
                    "appservices.{name}: {}: {error} (a registration file is JSON, which is YAML too)",
                    path.display()
                ))
            })?;
            list.push(Arc::new(Appservice::new(registration, server_name)?));
        }
        for (i, one) in list.iter().enumerate() {
            if list[..i].iter().any(|other| {
                other.id == one.id
                    || other.registration.as_token == one.registration.as_token
                    || other.sender == one.sender
            }) {
                return Err(Error::internal(format!(
                    "two appservices share id, as_token or sender_localpart: {}",
                    one.id
                )));
            }
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(30))
            .build()?;
        Ok(Self { list, client })
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Appservice>] {
        &self.list
    }

    /// The HTTP client for them: no proxy, no redirects, limited in time.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// The appservice of a token. All tokens are compared, by their hashes.
    pub fn of_token(&self, token: &str) -> Option<Arc<Appservice>> {
        use sha2::{Digest as _, Sha256};
        let given = Sha256::digest(token.as_bytes());
        let mut found = None;
        for one in &self.list {
            if Sha256::digest(one.registration.as_token.as_bytes()) == given {
                found = Some(Arc::clone(one));
            }
        }
        found
    }

    /// Whether a name is kept for an appservice.
    pub fn is_exclusive(&self, user_id: &UserId) -> bool {
        self.list.iter().any(|one| {
            one.sender == *user_id
                || one.users.iter().any(|(exclusive, regex)| *exclusive && regex.is_match(user_id.as_str()))
        })
    }

    /// Asks an appservice whether it is there, and lets waiting transactions go at once. Milliseconds it took.
    pub async fn ping(&self, id: &str, txn_id: Option<String>) -> Result<u64> {
        let one = self
            .list
            .iter()
            .find(|one| one.id == id)
            .ok_or_else(|| crate::error::not_found("There is no such appservice."))?;
        let Some(url) = &one.registration.url else {
            return Err(refuse(Code::UrlNotSet, "The appservice's registration has no url."));
        };
        let begun = tokio::time::Instant::now();
        let body = match txn_id {
            Some(txn_id) => serde_json::json!({"transaction_id": txn_id}),
            None => serde_json::json!({}),
        };
        let answer = self
            .client
            .post(format!("{}/_matrix/app/v1/ping", url.trim_end_matches('/')))
            .bearer_auth(&one.registration.hs_token)
            .json(&body)
            .timeout(Duration::from_secs(10))
            .send()
            .await
            .map_err(|error| {
                if error.is_timeout() {
                    refuse(Code::ConnectionTimeout, "The appservice took too long.")
                } else {
                    refuse(Code::ConnectionFailed, "The appservice could not be reached.")
                }
            })?;
        if !answer.status().is_success() {
            return Err(refuse(Code::BadStatus, "The appservice answered with an error.")
                .with("status", answer.status().as_u16()));
        }
        one.wake.notify_waiters();
        Ok(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

impl Appservice {
    fn new(registration: Registration, server_name: &ServerName) -> Result<Self> {
        let bad = |error: regex::Error| Error::internal(format!("appservice {}: {error}", registration.id));
        // The whole id must match, and the size of the compiled expression is bounded.
        let compile = |text: &str| {
            regex::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(1 << 20).build().map_err(bad)
        };
        let users = registration
            .namespaces
            .users
            .iter()
            .map(|ns| Ok((ns.exclusive, compile(&ns.regex)?)))
            .collect::<Result<Vec<_>>>()?;
        let rooms =
            registration.namespaces.rooms.iter().map(|ns| compile(&ns.regex)).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            id: registration.id.clone(),
            sender: UserId::parse_with_server_name(registration.sender_localpart.as_str(), server_name)?,
            users,
            rooms,
            registration,
            wake: Notify::new(),
            lag: Mutex::default(),
        })
    }

    /// Whether it may act as a user: its own, or one of its namespace.
    pub fn may_act_as(&self, user_id: &UserId) -> bool {
        self.sender == *user_id || self.users.iter().any(|(_, regex)| regex.is_match(user_id.as_str()))
    }

    /// Whether a user is one that it watches.
    pub fn is_interested_in_user(&self, user_id: &str) -> bool {
        self.sender == user_id || self.users.iter().any(|(_, regex)| regex.is_match(user_id))
    }

    /// Whether a room is one that it watches by its id.
    pub fn is_interested_in_room(&self, room_id: &str) -> bool {
        self.rooms.iter().any(|regex| regex.is_match(room_id))
    }
}

fn city_registration(config: &Config, keys: &Path, server_name: &ServerName) -> Result<Registration> {
    let path = keys.join("city.registration.json");
    let url = Some(format!("http://{}", config.city.bot_listen));
    if path.exists() {
        let mut stored: Registration = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        stored.url = url;
        return Ok(stored);
    }
    let registration = Registration {
        id: "city".to_owned(),
        url,
        as_token: crate::clock::random_token(43),
        hs_token: crate::clock::random_token(43),
        sender_localpart: "city".to_owned(),
        namespaces: Namespaces {
            users: vec![Namespace {
                exclusive: true,
                regex: format!("@city(_[a-z0-9._=/+-]+)?:{}", regex::escape(server_name.as_str())),
            }],
            ..Namespaces::default()
        },
        receive_ephemeral: false,
        rate_limited: Some(false),
        protocols: None,
    };
    crate::files::write_private(&path, serde_json::to_string_pretty(&registration)?.as_bytes())?;
    Ok(registration)
}
