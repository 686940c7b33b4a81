//! The OAuth 2.0 API's endpoints for clients: metadata, registration, tokens, revocation, device authorization. The pages
//! that people see are in `pages/authorize.rs` and `pages/account.rs`.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{
    accounts::oauth::{
        Failed, Told, base, clients,
        devices::{self, INTERVAL_SECONDS, LIFE_MS},
        grants::{self, HandedIn, Here},
        issuer, told,
    },
    accounts::sessions::Tokens,
    error::{Code, Error, Result, refuse},
    http::{
        caller::{self, Peer},
        reply,
        route::{Answer, Call, Routes, form, read},
    },
    server::Server,
};

/// Bytes of a form.
const FORM_BYTES_MAX: usize = 16 * 1024;

/// What the account page does (client-server API, "Account management URL actions"). It takes the names from before v1.18
/// as well.
const ACTIONS: [&str; 6] = [
    "org.matrix.profile",
    "org.matrix.devices_list",
    "org.matrix.device_view",
    "org.matrix.device_delete",
    "org.matrix.account_deactivate",
    "org.matrix.cross_signing_reset",
];

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/_matrix/client/v1/auth_metadata", metadata)
        .at(Method::GET, "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata", metadata)
        .at(Method::POST, "/oauth2/register", register)
        .at(Method::POST, "/oauth2/token", token)
        .at(Method::POST, "/oauth2/revoke", revoke)
        .at(Method::POST, "/oauth2/device", device)
}

/// Refuses where the city does not offer it.
pub fn offered(server: &Server) -> Result<()> {
    if server.config.policy.oauth {
        Ok(())
    } else {
        Err(refuse(Code::Unrecognized, "This server has no OAuth 2.0 API: log in with m.login.password."))
    }
}

async fn metadata(server: Arc<Server>, _: Call) -> Result<Answer> {
    offered(&server)?;
    let base = base(&server);
    Ok(json!({
        "issuer": issuer(&server),
        "authorization_endpoint": format!("{base}/oauth2/authorize"),
        "token_endpoint": format!("{base}/oauth2/token"),
        "revocation_endpoint": format!("{base}/oauth2/revoke"),
        "registration_endpoint": format!("{base}/oauth2/register"),
        "device_authorization_endpoint": format!("{base}/oauth2/device"),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query", "fragment"],
        "grant_types_supported": clients::GRANTS,
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "authorization_response_iss_parameter_supported": true,
        "account_management_uri": format!("{base}/account"),
        "account_management_actions_supported": ACTIONS,
    })
    .into())
}

/// Who is behind a connection: the terminal whose certificate it shows, or none where the city allows that.
fn here(server: &Server, peer: &Peer) -> Result<Here> {
    let terminal = match caller::terminal(server, peer) {
        Ok(terminal) => terminal,
        // No token at all stands for "an app without a certificate".
        Err(_) if caller::shown_before(server, peer, Some("")).is_some() => None,
        Err(refused) => return Err(refused),
    };
    Ok(Here { terminal, address: peer.address.ip() })
}

/// Refuses, or counts; every endpoint here is reached before anybody has logged in.
fn arrive(server: &Server, call: &Call) -> Result<Here> {
    offered(server)?;
    let here = here(server, &caller::peer(&call.parts)?)?;
    if server.config.policy.rate_limits {
        server.limiter.allow_before_login(here.address, server.now())?;
    }
    Ok(here)
}

/// Never kept by anybody on the way (RFC 6749, 5.1).
fn private(status: StatusCode, body: &Value) -> Answer {
    let mut response: Response = reply::json(status, body.to_string());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Answer::Response(response)
}

fn failed(failed: Failed) -> Result<Answer> {
    match failed {
        Failed::Told(Told { error, description }) => {
            Ok(private(StatusCode::BAD_REQUEST, &json!({"error": error, "error_description": description})))
        }
        Failed::Other(Error::Refused(refusal)) if !matches!(refusal.code, Code::LimitExceeded { .. }) => {
            Ok(private(
                StatusCode::BAD_REQUEST,
                &json!({"error": "access_denied", "error_description": refusal.message}),
            ))
        }
        Failed::Other(error) => Err(error),
    }
}

async fn register(server: Arc<Server>, call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let (_, body) = call.json::<Map<String, Value>>(&server).await?;
    match clients::register(&server, &body, here.address).await {
        Ok(client) => {
            let mut answer = serde_json::to_value(&client.metadata)?;
            answer["client_id"] = client.id.into();
            Ok(private(StatusCode::CREATED, &answer))
        }
        Err(why) => failed(why),
    }
}

/// A posted form in which nothing stands twice.
struct Form(Vec<(String, String)>);

impl Form {
    async fn of(server: &Server, call: &mut Call) -> Result<Result<Self, Told>> {
        let time = std::time::Duration::from_secs(server.config.limits.request_seconds);
        let body = read(call.take_body(), FORM_BYTES_MAX, time).await?;
        let fields = form(&String::from_utf8_lossy(&body));
        let mut names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let twice = names.windows(2).any(|pair| pair[0] == pair[1]);
        let nul = fields.iter().any(|(_, value)| value.contains('\0'));
        if twice || nul {
            return Ok(Err(told("invalid_request", "a parameter stands there twice, or has a NUL")));
        }
        Ok(Ok(Self(fields)))
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    fn need(&self, name: &str) -> Result<String, Told> {
        self.get(name).ok_or(told("invalid_request", "a parameter is missing"))
    }
}

async fn token(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let given = match Form::of(&server, &mut call).await? {
        Ok(form) => give(&server, &form, here).await,
        Err(why) => Err(why.into()),
    };
    let tokens = match given {
        Ok(tokens) => tokens,
        Err(why) => return failed(why),
    };
    let mut answer = json!({"access_token": tokens.access, "token_type": "Bearer"});
    if let Some(ms) = tokens.expires_in_ms {
        answer["expires_in"] = (ms / 1000).into();
    }
    if let Some(refresh) = tokens.refresh {
        answer["refresh_token"] = refresh.into();
    }
    if let Some(scope) = tokens.scope {
        answer["scope"] = scope.into();
    }
    Ok(private(StatusCode::OK, &answer))
}

async fn give(server: &Arc<Server>, form: &Form, here: Here) -> Result<Tokens, Failed> {
    let client_id = form.need("client_id")?;
    match form.need("grant_type")?.as_str() {
        "authorization_code" => {
            let handed = HandedIn {
                client_id,
                code: form.need("code")?,
                redirect_uri: form.need("redirect_uri")?,
                verifier: form.need("code_verifier")?,
            };
            grants::exchange(server, handed, here).await
        }
        "refresh_token" => grants::refresh(server, client_id, form.need("refresh_token")?, here).await,
        grant if grant == clients::GRANTS[2] => {
            devices::poll(server, &client_id, &form.need("device_code")?, here).await
        }
        _ => Err(told("unsupported_grant_type", "this grant is not offered").into()),
    }
}

async fn revoke(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let done = match Form::of(&server, &mut call).await? {
        Ok(form) => match form.need("token") {
            Ok(token) => grants::revoke(&server, &token, form.get("client_id").as_deref(), here).await,
            Err(why) => Err(why.into()),
        },
        Err(why) => Err(why.into()),
    };
    match done {
        Ok(()) => Ok(private(StatusCode::OK, &json!({}))),
        Err(why) => failed(why),
    }
}

async fn device(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let begun = match Form::of(&server, &mut call).await? {
        Ok(form) => match (form.need("client_id"), form.get("scope")) {
            (Ok(client_id), scope) => {
                devices::begin(&server, &client_id, &scope.unwrap_or_default(), here.address).await
            }
            (Err(why), _) => Err(why.into()),
        },
        Err(why) => Err(why.into()),
    };
    match begun {
        Ok(begun) => {
            let page = format!("{}/oauth2/link", base(&server));
            Ok(private(
                StatusCode::OK,
                &json!({
                    "device_code": begun.device_code, "user_code": begun.user_code, "verification_uri": page,
                    "verification_uri_complete": format!("{page}?code={}", begun.user_code),
                    "expires_in": LIFE_MS / 1000, "interval": INTERVAL_SECONDS,
                }),
            ))
        }
        Err(why) => failed(why),
    }
}
