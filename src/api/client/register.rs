//! `/register`: closed in a city; open with `m.login.dummy` or a token for client developers, and by shared secret for
//! test suites.

use std::sync::Arc;

use ruma::{
    UserId,
    api::client::{
        account::{
            check_registration_token_validity as validity,
            get_username_availability::v3 as available,
            register::{LoginType, v3 as register},
        },
        uiaa::AuthData,
    },
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    accounts::{guests, passwords, sessions},
    config::Registration,
    error::{Code, Error, Result, forbidden, refuse},
    http::{
        caller::{self, Peer},
        route::{Answer, Call, Routes, bearer},
    },
    rooms::committer::Hint,
    server::Server,
    store::{self, accounts::Account},
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(http::Method::POST, "/_matrix/client/v3/register", |server, call| async move {
            let query_kind = call.query("kind");
            if query_kind.as_deref() == Some("guest") {
                return guest(server, call).await;
            }
            let peer = caller::peer(&call.parts)?;
            let token = bearer(&call.parts.headers).map(ToOwned::to_owned);
            let (call, body) = call.body(&server).await?;
            let mut request = http::Request::new(&body[..]);
            *request.method_mut() = http::Method::POST;
            *request.uri_mut() = call.parts.uri.clone();
            use ruma::api::IncomingRequestExt as _;
            let request = register::Request::try_from_http_request(request, &[])
                .map_err(|_| refuse(Code::BadJson, "The JSON is not what this call takes."))?;
            answer(server, peer, token, request).await
        })
        .raw::<available::Request, Peer, _, _>(|server, peer, request| async move {
            caller::terminal(&server, &peer)?;
            if server.config.policy.registration == Registration::Closed {
                return Err(closed());
            }
            free_name(&server, &request.username).await?;
            Ok(json!({"available": true}).into())
        })
        .raw::<validity::v1::Request, Peer, _, _>(|server, peer, request| async move {
            caller::terminal(&server, &peer)?;
            slow_down(&server, &peer)?;
            if server.config.policy.registration != Registration::Token {
                return Err(closed());
            }
            Ok(json!({"valid": is_registration_token(&server, &request.token)?}).into())
        })
        .at(http::Method::GET, "/_synapse/admin/v1/register", |server, call| async move {
            allow_shared_secret(&server)?;
            slow_down(&server, &caller::peer(&call.parts)?)?;
            let nonce = crate::clock::random_token(32);
            let mut nonces = server.nonces.lock();
            if nonces.len() >= 1_000 {
                // The oldest: the others may be in use.
                nonces.remove(0);
            }
            nonces.push(nonce.clone());
            Ok(json!({"nonce": nonce}).into())
        })
        .at(http::Method::POST, "/_synapse/admin/v1/register", by_secret)
}

fn closed() -> Error {
    forbidden("Accounts are issued by the city (利用者IDは市が発行します).")
}

async fn answer(
    server: Arc<Server>,
    peer: Peer,
    token: Option<String>,
    request: register::Request,
) -> Result<Answer> {
    if peer.listener == caller::Listener::Internal {
        return by_appservice(&server, token, request).await;
    }
    caller::terminal(&server, &peer)?;
    let stage = match server.config.policy.registration {
        Registration::Closed => return Err(closed()),
        Registration::Token => "m.login.registration_token",
        Registration::Open => "m.login.dummy",
    };
    slow_down(&server, &peer)?;
    let passed = match (&request.auth, server.config.policy.registration) {
        (Some(AuthData::Dummy(_)), Registration::Open) => true,
        (Some(AuthData::RegistrationToken(given)), Registration::Token) => {
            is_registration_token(&server, &given.token)?
        }
        _ => false,
    };
    if !passed {
        return Err(refuse(Code::Interactive, "")
            .with("flows", json!([{"stages": [stage]}]))
            .with("params", json!({}))
            .with("session", crate::clock::random_token(16)));
    }
    let name = request
        .username
        .clone()
        .unwrap_or_else(|| format!("u{}", crate::clock::random_token(10).to_lowercase()));
    let Some(password) = request.password.clone() else {
        return Err(refuse(Code::MissingParam, "A password is needed."));
    };
    let user_id = free_name(&server, &name).await?;
    if !server.config.policy.open_profile {
        passwords::check_rules(&password, server.config.policy.password_length_min, &[&name], server.now())?;
    }
    make(&server, user_id, Some(&password), "open", &request).await
}

fn is_registration_token(server: &Server, given: &str) -> Result<bool> {
    let token = crate::files::secret(&server.data().join("keys").join("registration.token"))?;
    Ok(Sha256::digest(given.as_bytes()) == Sha256::digest(token.as_bytes()))
}

/// Who has no account yet is counted by address, as log-ins are.
fn slow_down(server: &Server, peer: &Peer) -> Result<()> {
    if server.config.policy.rate_limits {
        server.limiter.allow_before_login(peer.address.ip(), server.now())?;
    }
    Ok(())
}

/// A guest: an account for one session (client-server API, `POST /register?kind=guest`).
async fn guest(server: Arc<Server>, call: Call) -> Result<Answer> {
    let peer = caller::peer(&call.parts)?;
    if !server.config.policy.guests || peer.listener == caller::Listener::Internal {
        return Err(refuse(Code::GuestAccessForbidden, "Guests are not let in."));
    }
    caller::terminal(&server, &peer)?;
    slow_down(&server, &peer)?;
    let (_, body) = call.json::<Guest>(&server).await?;
    let user_id = parse_name(&server, &guests::localpart())?;
    let mut request = register::Request::new();
    request.initial_device_display_name = body.initial_device_display_name;
    make(&server, user_id, None, "guest", &request).await
}

#[derive(serde::Deserialize)]
struct Guest {
    initial_device_display_name: Option<String>,
}

/// An appservice makes a user of its namespace; the standard type is `m.login.application_service`.
async fn by_appservice(
    server: &Arc<Server>,
    token: Option<String>,
    request: register::Request,
) -> Result<Answer> {
    if token.is_none() {
        return Err(refuse(
            Code::MissingToken,
            "An appservice's token is needed in the Authorization header.",
        ));
    }
    let appservice =
        token.as_deref().and_then(|token| server.appservices.of_token(token)).ok_or_else(|| {
            refuse(Code::UnknownToken { soft_logout: false }, "This token is not an appservice's.")
        })?;
    if request.login_type != Some(LoginType::ApplicationService) {
        return Err(refuse(
            Code::InvalidParam,
            "Appservices register with type m.login.application_service.",
        ));
    }
    let name = request.username.clone().unwrap_or_default();
    let user_id = parse_name(server, &name)?;
    let kept = server.appservices.is_exclusive(&user_id, Some(&appservice.id));
    if !appservice.may_act_as(&user_id) || kept || server.appservices.is_the_citys(&user_id) {
        return Err(refuse(
            Code::Exclusive,
            "This name is outside the appservice's namespace, or another's.",
        ));
    }
    if store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?.is_some() {
        return Err(refuse(Code::UserInUse, "This name is taken."));
    }
    if !request.inhibit_login {
        // Client-server API v1.17, `POST /register`: a token of a user would be worth nothing on the internal listener.
        return Err(refuse(
            Code::AppserviceLoginUnsupported,
            "Appservices act as their users with their own token: register with inhibit_login.",
        ));
    }
    make(server, user_id, None, "appservice", &request).await
}

fn parse_name(server: &Server, name: &str) -> Result<ruma::OwnedUserId> {
    let bad = || refuse(Code::InvalidUsername, "The name may have a to z, 0 to 9 and . _ = - / + only.");
    let user_id = UserId::parse_with_server_name(name.to_lowercase(), &server.name).map_err(|_| bad())?;
    let valid = user_id
        .localpart()
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._=-/+".contains(&b));
    if !valid || user_id.localpart().is_empty() || user_id.as_str().len() > 255 || !server.is_local(&user_id)
    {
        return Err(bad());
    }
    Ok(user_id)
}

async fn free_name(server: &Server, name: &str) -> Result<ruma::OwnedUserId> {
    let user_id = parse_name(server, name)?;
    if guests::is_guest_name(user_id.localpart()) {
        return Err(refuse(Code::Exclusive, "This name is kept for guests."));
    }
    if server.appservices.is_exclusive(&user_id, None) || server.appservices.is_the_citys(&user_id) {
        return Err(refuse(Code::Exclusive, "This name is kept for an appservice."));
    }
    if store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?.is_some() {
        return Err(refuse(Code::UserInUse, "This name is taken."));
    }
    Ok(user_id)
}

async fn make(
    server: &Arc<Server>,
    user_id: ruma::OwnedUserId,
    password: Option<&str>,
    kind: &str,
    request: &register::Request,
) -> Result<Answer> {
    let hash = match password {
        Some(password) => Some(server.passwords.hash(password).await?),
        None => None,
    };
    let account = Account {
        user_id: user_id.to_string(),
        kind: kind.to_owned(),
        facility: None,
        name: String::new(),
        profession: String::new(),
        display_name: Some(user_id.localpart().to_owned()),
        password_own: hash.is_some(),
        password_hash: hash,
        status: "active".to_owned(),
    };
    let device = (!request.inhibit_login && matches!(kind, "open" | "guest"))
        .then(|| request.device_id.clone().map_or_else(|| crate::clock::readable_code(10), String::from));
    let device_name = request.initial_device_display_name.clone();
    crate::accounts::login::check_device(device.as_deref(), device_name.as_deref())?;
    let sessions = Arc::clone(&server.sessions);
    let (for_unit, device_id) = (user_id.clone(), device.clone());
    let refreshed_after =
        request.refresh_token.then_some(i64::from(server.config.limits.access_token_seconds) * 1000);
    let tokens = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                if store::accounts::account(batch.reading(), for_unit.as_str()).await?.is_some() {
                    return Err(refuse(Code::UserInUse, "This name is taken."));
                }
                let now = batch.now;
                let key = crate::accounts::register::search_key(&[for_unit.localpart()]);
                store::accounts::insert_account(batch.sql().await?, &account, &key, now).await?;
                match device_id {
                    Some(device) => {
                        let new = sessions::New {
                            device_name,
                            refreshed_after,
                            ..sessions::New::here(for_unit, device, None)
                        };
                        sessions::begin(batch, &sessions, new).await.map(Some)
                    }
                    None => Ok(None),
                }
            })
        })
        .await?;
    let mut answer = json!({"user_id": user_id});
    if let (Some(tokens), Some(device)) = (tokens, device) {
        answer["access_token"] = tokens.access.into();
        answer["device_id"] = device.into();
        if let (Some(refresh), Some(ms)) = (tokens.refresh, tokens.expires_in_ms) {
            answer["refresh_token"] = refresh.into();
            answer["expires_in_ms"] = ms.into();
        }
    }
    Ok(answer.into())
}

fn allow_shared_secret(server: &Server) -> Result<()> {
    if server.config.policy.shared_secret_registration {
        Ok(())
    } else {
        Err(refuse(Code::Unrecognized, "Registration by shared secret is switched off."))
    }
}

#[derive(serde::Deserialize)]
struct BySecret {
    nonce: String,
    username: String,
    password: String,
    #[serde(default)]
    admin: bool,
    mac: String,
}

/// Synapse's registration by shared secret, for test suites: the MAC is HMAC-SHA1 over nonce, name, password and
/// "admin" or "notadmin", separated by NUL (Synapse documentation, "Shared-Secret Registration").
async fn by_secret(server: Arc<Server>, call: Call) -> Result<Answer> {
    allow_shared_secret(&server)?;
    let (_, body) = call.json::<BySecret>(&server).await?;
    {
        let mut nonces = server.nonces.lock();
        let Some(at) = nonces.iter().position(|nonce| *nonce == body.nonce) else {
            return Err(refuse(Code::InvalidParam, "Unknown nonce."));
        };
        nonces.remove(at);
    }
    let role = if body.admin { "admin" } else { "notadmin" };
    let message = [body.nonce.as_str(), &body.username, &body.password, role].join("\0");
    let given = (0..body.mac.len() / 2)
        .map(|i| body.mac.get(2 * i..2 * i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_default();
    let key = ring::hmac::Key::new(
        ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        server.registration_secret.as_bytes(),
    );
    if ring::hmac::verify(&key, message.as_bytes(), &given).is_err() {
        return Err(forbidden("The MAC is wrong."));
    }
    let user_id = free_name(&server, &body.username).await?;
    let request = register::Request::new();
    let answer = make(&server, user_id.clone(), Some(&body.password), "open", &request).await?;
    // In a city only its staff administer, whoever knows a secret.
    if body.admin && server.config.policy.open_profile {
        server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move {
                    store::accounts::set_admin(batch.sql().await?, user_id.as_str(), true).await
                })
            })
            .await?;
    }
    Ok(answer)
}
