//! What the server asks appservices: whether a user or an alias of theirs exists, and what they know of other networks
//! (Application Service API, "Querying", "Third-party networks"). A question has five seconds and a bounded answer; an
//! appservice that gives none knows nothing.

use std::time::Duration;

use reqwest::Url;
use ruma::{RoomAliasId, UserId};
use serde_json::{Value, json};

use super::{Appservice, Appservices, CITY, matches_exclusively};

/// How long an appservice may think, while somebody waits.
const TIME: Duration = Duration::from_secs(5);
/// The longest answer.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Rows of an answer.
const ROWS_MAX: usize = 1_000;

impl Appservices {
    /// Asks whose namespace an unknown user id is in; true where the user may exist now, because its appservice made it
    /// before it answered. Ids that the city issues are asked of nobody.
    pub async fn ask_user(&self, user_id: &UserId) -> bool {
        if user_id.server_name() != self.server_name || self.is_the_citys(user_id) {
            return false;
        }
        for one in self.others() {
            if matches_exclusively(&one.users, user_id.as_str()) {
                return self.ask(one, &["users", user_id.as_str()], &[]).await.is_some();
            }
        }
        false
    }

    /// The same for a room alias.
    pub async fn ask_alias(&self, alias: &RoomAliasId) -> bool {
        if alias.server_name() != self.server_name {
            return false;
        }
        for one in self.others() {
            if matches_exclusively(&one.aliases, alias.as_str()) {
                return self.ask(one, &["rooms", alias.as_str()], &[]).await.is_some();
            }
        }
        false
    }

    /// The protocols that appservices bridge, by name.
    pub fn protocols(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.others().flat_map(Appservice::protocols).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What is known of a protocol; none where nobody bridges it.
    pub async fn protocol(&self, protocol: &str) -> Option<Value> {
        let mut found: Option<Value> = None;
        for one in self.others().filter(|one| one.protocols().any(|name| name == protocol)) {
            let Some(Value::Object(mut told)) =
                self.ask(one, &["thirdparty", "protocol", protocol], &[]).await
            else {
                continue;
            };
            let instances = match told.remove("instances") {
                Some(Value::Array(instances)) => instances,
                _ => Vec::new(),
            };
            // Several appservices for one protocol: the first describes it, each adds its networks.
            let known = found.get_or_insert_with(|| {
                let mut first = json!({"icon": "", "user_fields": [], "location_fields": [], "field_types": {}, "instances": []});
                if let Some(first) = first.as_object_mut() {
                    first.extend(told);
                }
                first
            });
            if let Some(all) = known["instances"].as_array_mut() {
                all.extend(instances);
                all.truncate(ROWS_MAX);
            }
        }
        found
    }

    /// Users or locations (`kind`) of a protocol by its fields; none where nobody bridges the protocol.
    pub async fn lookup(
        &self,
        kind: &str,
        protocol: &str,
        fields: &[(String, String)],
    ) -> Option<Vec<Value>> {
        let bridging: Vec<_> =
            self.others().filter(|one| one.protocols().any(|name| name == protocol)).collect();
        if bridging.is_empty() {
            return None;
        }
        Some(self.rows(bridging, &["thirdparty", kind, protocol], fields).await)
    }

    /// What a user id of an appservice is elsewhere.
    pub async fn lookup_user(&self, user_id: &UserId) -> Vec<Value> {
        let asked = self.others().filter(|one| one.is_interested_in_user(user_id.as_str())).collect();
        self.rows(asked, &["thirdparty", "user"], &[("userid".to_owned(), user_id.to_string())]).await
    }

    /// What a room alias of an appservice is elsewhere.
    pub async fn lookup_alias(&self, alias: &RoomAliasId) -> Vec<Value> {
        let asked = self.others().filter(|one| one.is_interested_in_alias(alias.as_str())).collect();
        self.rows(asked, &["thirdparty", "location"], &[("alias".to_owned(), alias.to_string())]).await
    }

    async fn rows(&self, asked: Vec<&Appservice>, path: &[&str], fields: &[(String, String)]) -> Vec<Value> {
        let mut rows = Vec::new();
        for one in asked {
            if let Some(Value::Array(told)) = self.ask(one, path, fields).await {
                rows.extend(told);
            }
        }
        rows.truncate(ROWS_MAX);
        rows
    }

    /// All but the city bot, which makes no users and bridges nothing.
    fn others(&self) -> impl Iterator<Item = &Appservice> {
        self.list.iter().map(|one| &**one).filter(|one| one.id != CITY)
    }

    async fn ask(&self, one: &Appservice, path: &[&str], fields: &[(String, String)]) -> Option<Value> {
        // Rather no answer than a queue of people who wait for a slow appservice.
        let _one_of_a_few = self.asking.try_acquire().ok()?;
        let mut url = Url::parse(one.registration.url.as_deref()?).ok()?;
        url.path_segments_mut().ok()?.pop_if_empty().extend(["_matrix", "app", "v1"]).extend(path);
        if !fields.is_empty() {
            url.query_pairs_mut().extend_pairs(fields);
        }
        let request = self.client.get(url).bearer_auth(&one.registration.hs_token).timeout(TIME);
        match tokio::time::timeout(TIME, answer(request)).await {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                tracing::warn!(appservice.id = %one.id, error = %error.without_url(), "an appservice gave no answer");
                None
            }
            Err(_) => {
                tracing::warn!(appservice.id = %one.id, "an appservice gave no answer in time");
                None
            }
        }
    }
}

impl Appservice {
    fn protocols(&self) -> impl Iterator<Item = &str> {
        self.registration.protocols.iter().flatten().map(String::as_str)
    }
}

/// The JSON of a 200; none for every other status, and for an answer that is too long or no JSON.
async fn answer(request: reqwest::RequestBuilder) -> Result<Option<Value>, reqwest::Error> {
    let mut answer = request.send().await?;
    if answer.status() != reqwest::StatusCode::OK {
        return Ok(None);
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Ok(None);
        }
    }
    Ok(serde_json::from_slice(&body).ok())
}
