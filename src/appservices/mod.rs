//! Appservices: their registrations, and sending them what happened (Application Service API).
//!
//! Delivery follows the one stream behind the committer. A transaction's body is frozen in the database before it is
//! sent and is resent byte for byte with its id until it is acknowledged; one is under way at a time, in arrival order
//! (DESIGN 17). Typing and receipts go in transactions of their own, which are never stored. The city bot is the first
//! appservice; its registration is made in `keys/city.registration.json`.

use std::{path::Path, sync::Arc, time::Duration};

use ruma::{OwnedServerName, OwnedUserId, RoomAliasId, RoomId, ServerName, UserId};
use tokio::sync::{Notify, Semaphore};

use crate::{
    config::Config,
    error::{Code, Error, Result, refuse},
    rooms::{history, live::parking::Mutex},
    server::Server,
    store,
};

pub mod delivery;

mod ask;
mod ephemeral;
mod registration;

pub use registration::{Namespace, Namespaces, Registration};

/// The id of the city bot.
pub const CITY: &str = "city";
/// Questions to appservices under way at once.
const ASKING_MAX: usize = 16;

/// An appservice.
pub struct Appservice {
    /// Its name.
    pub id: String,
    /// Its own user.
    pub sender: OwnedUserId,
    /// Its registration.
    pub registration: Registration,
    users: Vec<(bool, regex::Regex)>,
    aliases: Vec<(bool, regex::Regex)>,
    rooms: Vec<(bool, regex::Regex)>,
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
    /// Events in the transaction under way.
    pub under_way: usize,
    /// When the oldest of them happened (ms).
    pub oldest: Option<i64>,
}

/// All appservices.
pub struct Appservices {
    list: Vec<Arc<Appservice>>,
    client: reqwest::Client,
    server_name: OwnedServerName,
    /// Whether ids such as p100001 are the city's, which no appservice may take.
    keeps_numbers: bool,
    asking: Semaphore,
}

impl Appservices {
    /// Reads the registrations named in the config, and makes the city bot's at the first start.
    pub fn load(config: &Config, keys: &Path, server_name: &ServerName) -> Result<Self> {
        let mut list =
            vec![Arc::new(Appservice::new(city_registration(config, keys, server_name)?, server_name)?)];
        for (name, path) in &config.appservices {
            let registration = Registration::read(path, server_name)
                .map_err(|error| Error::internal(format!("appservices.{name}: {}", told(error))))?;
            list.push(Arc::new(Appservice::new(registration, server_name)?));
        }
        let keeps_numbers = !config.policy.open_profile;
        for (i, one) in list.iter().enumerate() {
            for other in &list[..i] {
                one.check_beside(other)?;
            }
            if keeps_numbers {
                one.check_numbers(server_name)?;
            }
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(30))
            .build()?;
        Ok(Self {
            list,
            client,
            server_name: server_name.to_owned(),
            keeps_numbers,
            asking: Semaphore::new(ASKING_MAX),
        })
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

    /// Whether a name is kept for an appservice other than `but`.
    pub fn is_exclusive(&self, user_id: &UserId, but: Option<&str>) -> bool {
        self.list.iter().any(|one| {
            but != Some(one.id.as_str())
                && (one.sender == *user_id || matches_exclusively(&one.users, user_id.as_str()))
        })
    }

    /// Whether an alias is kept for an appservice other than `but`.
    pub fn is_exclusive_alias(&self, alias: &RoomAliasId, but: Option<&str>) -> bool {
        self.list
            .iter()
            .any(|one| but != Some(one.id.as_str()) && matches_exclusively(&one.aliases, alias.as_str()))
    }

    /// Whether a user id is one of those that only the city issues.
    pub fn is_the_citys(&self, user_id: &UserId) -> bool {
        self.keeps_numbers && is_number(user_id.localpart())
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
        let compiled = |all: &[Namespace]| {
            all.iter()
                .map(|ns| {
                    let regex = registration::compile(&ns.regex).map_err(|reason| {
                        Error::internal(format!("appservice {}: a namespace: {reason}", registration.id))
                    })?;
                    Ok((ns.exclusive, regex))
                })
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            id: registration.id.clone(),
            sender: UserId::parse_with_server_name(registration.sender_localpart.as_str(), server_name)?,
            users: compiled(&registration.namespaces.users)?,
            aliases: compiled(&registration.namespaces.aliases)?,
            rooms: compiled(&registration.namespaces.rooms)?,
            registration,
            wake: Notify::new(),
            lag: Mutex::default(),
        })
    }

    /// Refuses what two appservices cannot both have.
    fn check_beside(&self, other: &Self) -> Result<()> {
        let both = format!("the appservices {} and {}", other.id, self.id);
        if self.id == other.id
            || self.registration.as_token == other.registration.as_token
            || self.sender == other.sender
        {
            return Err(Error::internal(format!("{both} share id, as_token or sender_localpart")));
        }
        if matches_exclusively(&self.users, other.sender.as_str())
            || matches_exclusively(&other.users, self.sender.as_str())
        {
            return Err(Error::internal(format!(
                "{both}: one claims the other's sender_localpart exclusively"
            )));
        }
        let (mine, theirs) = (self.registration.namespaces.kinds(), other.registration.namespaces.kinds());
        for ((kind, mine), (_, theirs)) in mine.into_iter().zip(theirs) {
            for a in mine.iter().filter(|ns| ns.exclusive) {
                for b in theirs.iter().filter(|ns| ns.exclusive) {
                    if registration::overlap(&a.regex, &b.regex) {
                        return Err(Error::internal(format!(
                            "{both} claim the same {kind} exclusively: {} and {}",
                            b.regex, a.regex
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Refuses an appservice that claims the ids which the city issues.
    fn check_numbers(&self, server_name: &ServerName) -> Result<()> {
        let numbers = format!("@[pf][0-9]+:{}", regex::escape(server_name.as_str()));
        let claims = self
            .registration
            .namespaces
            .users
            .iter()
            .any(|ns| ns.exclusive && registration::overlap(&ns.regex, &numbers));
        if claims || is_number(self.sender.localpart()) {
            return Err(Error::internal(format!(
                "the appservice {} claims user ids that the city issues, such as p100001",
                self.id
            )));
        }
        Ok(())
    }

    /// Whether it may act as a user: its own, or one of its namespace.
    pub fn may_act_as(&self, user_id: &UserId) -> bool {
        self.is_interested_in_user(user_id.as_str())
    }

    /// Whether a user is one that it watches.
    pub fn is_interested_in_user(&self, user_id: &str) -> bool {
        self.sender == user_id || matches(&self.users, user_id)
    }

    /// Whether an alias is one that it watches.
    pub fn is_interested_in_alias(&self, alias: &str) -> bool {
        matches(&self.aliases, alias)
    }

    /// Whether it watches a room: by the room's id, by an alias, or because one of its users was in it just before the
    /// position (none: is in it now).
    pub async fn is_interested_in(
        &self,
        server: &Arc<Server>,
        room_id: &RoomId,
        before: Option<i64>,
    ) -> Result<bool> {
        if matches(&self.rooms, room_id.as_str()) {
            return Ok(true);
        }
        if !self.aliases.is_empty() {
            let aliases = store::rooms::aliases_of(&mut server.db.read().await?, room_id).await?;
            if aliases.iter().any(|alias| self.is_interested_in_alias(alias)) {
                return Ok(true);
            }
        }
        let room = server.live.room(&server.db, room_id).await?;
        let view = room.current()?;
        let inside = |event: &crate::rooms::pdu::Event| {
            event.membership.as_deref() == Some("join")
                && event.state_key.as_deref().is_some_and(|key| self.is_interested_in_user(key))
        };
        match before {
            Some(order) if order <= view.row.state_version => {
                Ok(history::state_before(server, &view, order).await?.iter().any(|event| inside(event)))
            }
            _ => Ok(view.state.members("join").any(|(_, event)| inside(event))),
        }
    }
}

fn matches(all: &[(bool, regex::Regex)], id: &str) -> bool {
    all.iter().any(|(_, regex)| regex.is_match(id))
}

fn matches_exclusively(all: &[(bool, regex::Regex)], id: &str) -> bool {
    all.iter().any(|(exclusive, regex)| *exclusive && regex.is_match(id))
}

/// Whether this is a localpart as the city issues them: `p` or `f` and a number (DESIGN 0).
fn is_number(localpart: &str) -> bool {
    localpart
        .strip_prefix(['p', 'f'])
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn told(error: Error) -> String {
    match error {
        Error::Refused(refusal) => refusal.message,
        Error::Internal(source) => source.to_string(),
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
        id: CITY.to_owned(),
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
