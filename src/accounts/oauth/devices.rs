//! The device authorization grant (RFC 8628; MSC4341): an app without a browser shows a code, which somebody types on a page
//! of their own terminal. In memory: a restart lets the app begin again.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{
    Failed,
    clients::{self, Client},
    grants::{self, Grant, Here},
    scope::{self, Scope},
    told,
};
use crate::{
    accounts::sessions::{Tokens, hash_of},
    error::{Code, Result, refuse},
    http::limits::network,
    server::Server,
};

/// How long a code is good (ms): ten minutes.
pub const LIFE_MS: i64 = 600_000;
/// Seconds between two questions of an app.
pub const INTERVAL_SECONDS: i64 = 5;
/// Under way at once, in all and from one address.
const ALL_MAX: usize = 1_000;
const FROM_ADDRESS_MAX: usize = 20;
/// Characters of a code that people type: 30^8 of them, ten minutes, counted tries.
const CODE_LENGTH: usize = 8;

/// All that are under way, by the hash of the app's code.
pub type Devices = HashMap<String, Device>;

/// One under way.
pub struct Device {
    client_id: String,
    scope: Scope,
    user_code: String,
    /// Where it was begun from, as limits count it.
    network: IpAddr,
    begun_at: i64,
    asked_at: i64,
    state: State,
}

enum State {
    Waits,
    Approved(Grant),
    Denied,
}

/// What an app gets to begin with.
pub struct Begun {
    /// The app's own code.
    pub device_code: String,
    /// The code that people type.
    pub user_code: String,
}

/// Begins one.
pub async fn begin(
    server: &Arc<Server>,
    client_id: &str,
    scope: &str,
    address: IpAddr,
) -> Result<Begun, Failed> {
    let client = clients::client(server, client_id)
        .await?
        .filter(|client| client.may(clients::GRANTS[2]))
        .ok_or(told("unauthorized_client", "this client has not registered for the device grant"))?;
    let scope = scope::parse(scope)?;
    let now = server.now();
    let mut all = server.oauth.devices.lock();
    all.retain(|_, one| now - one.begun_at < LIFE_MS);
    let own = all.values().filter(|one| one.network == network(address)).count();
    if all.len() >= ALL_MAX || own >= FROM_ADDRESS_MAX {
        return Err(Failed::Other(refuse(
            Code::LimitExceeded { retry_after_ms: 60_000 },
            "Too many devices are waiting for their users.",
        )));
    }
    let begun = Begun {
        device_code: crate::clock::random_token(43),
        user_code: crate::clock::readable_code(CODE_LENGTH),
    };
    let device = Device {
        client_id: client.id,
        scope,
        user_code: begun.user_code.clone(),
        network: network(address),
        begun_at: now,
        asked_at: 0,
        state: State::Waits,
    };
    all.insert(hash_of(&begun.device_code), device);
    Ok(begun)
}

/// A code as people type it: without spaces and hyphens, in capitals.
pub fn typed(code: &str) -> String {
    code.chars().filter(char::is_ascii_alphanumeric).take(32).collect::<String>().to_ascii_uppercase()
}

/// The client and device of a code that waits for its user.
pub async fn waiting(server: &Server, user_code: &str) -> Result<Option<(Client, String)>> {
    let now = server.now();
    let found = {
        let all = server.oauth.devices.lock();
        all.values()
            .find(|one| is_waiting(one, user_code, now))
            .map(|one| (one.client_id.clone(), one.scope.device_id.clone()))
    };
    let Some((client_id, device_id)) = found else { return Ok(None) };
    Ok(clients::client(server, &client_id).await?.map(|client| (client, device_id)))
}

fn is_waiting(one: &Device, user_code: &str, now: i64) -> bool {
    one.user_code == user_code && now - one.begun_at < LIFE_MS && matches!(one.state, State::Waits)
}

/// Its user decides; `grant` makes what is granted, none refuses it. False where nothing waits under this code.
pub fn decide(server: &Server, user_code: &str, grant: Option<&dyn Fn(Scope) -> Grant>) -> bool {
    let now = server.now();
    let mut all = server.oauth.devices.lock();
    let Some(one) = all.values_mut().find(|one| is_waiting(one, user_code, now)) else { return false };
    one.state = match grant {
        Some(grant) => State::Approved(grant(one.scope.clone())),
        None => State::Denied,
    };
    true
}

/// The app asks whether it was decided.
pub async fn poll(
    server: &Arc<Server>,
    client_id: &str,
    device_code: &str,
    here: Here,
) -> Result<Tokens, Failed> {
    let now = server.now();
    let hash = hash_of(device_code);
    let grant = {
        let mut all = server.oauth.devices.lock();
        let one = all
            .get_mut(&hash)
            .filter(|one| one.client_id == client_id)
            .ok_or(told("invalid_grant", "this device code is not known"))?;
        if now - one.begun_at >= LIFE_MS {
            all.remove(&hash);
            return Err(told("expired_token", "nobody has typed the code").into());
        }
        if let State::Waits = one.state {
            let early = now - one.asked_at < (INTERVAL_SECONDS - 1) * 1000;
            one.asked_at = now;
            return Err(if early {
                told("slow_down", "please ask less often").into()
            } else {
                told("authorization_pending", "nobody has typed the code yet").into()
            });
        }
        match all.remove(&hash).map(|one| one.state) {
            Some(State::Approved(grant)) => grant,
            _ => return Err(told("access_denied", "the user has refused").into()),
        }
    };
    let client = clients::client(server, client_id).await?.ok_or(grants::INVALID)?;
    grants::begin_approved(server, client, grant, here).await
}
