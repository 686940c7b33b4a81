//! The Application Service API: what the server calls. A transaction is acknowledged only after its id and
//! everything that follows from its events are committed together.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Error;
use crate::control::Facts;
use crate::events::{Event, Intake};
use crate::outbox::Bot;
use crate::store;

/// The longest transaction taken.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a request may take, its body included. What is not committed by then is rolled back.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest transaction id taken.
const ID_BYTES_MAX: usize = 255;

/// Everything the server may ask for.
pub(crate) fn router(bot: Arc<Bot>, hs_token: &str) -> Router {
    let token: Arc<str> = hs_token.into();
    Router::new()
        .route("/_matrix/app/v1/transactions/{txn_id}", put(transaction))
        .route("/_matrix/app/v1/ping", post(ping))
        .route("/_matrix/app/v1/users/{user_id}", get(user))
        .route("/_matrix/app/v1/rooms/{room_alias}", get(room))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "Unknown path") })
        .layer(middleware::from_fn(move |request, next| authorise(Arc::clone(&token), request, next)))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(bot)
}

/// Lets only the holder of the hs_token in (Application Service API, "Authorization": 403 `M_FORBIDDEN`
/// otherwise).
async fn authorise(token: Arc<str>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION);
    let given = header.and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Bearer "));
    if given.is_some_and(|given| same(given, &token)) {
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
        answer.unwrap_or_else(|_| refuse(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", "Too slow"))
    } else {
        refuse(StatusCode::FORBIDDEN, "M_FORBIDDEN", "Wrong token")
    }
}

/// Compares without telling by time where the first difference is.
fn same(given: &str, token: &str) -> bool {
    given.len() == token.len()
        && given.bytes().zip(token.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[derive(Deserialize)]
struct Body {
    events: Vec<Value>,
}

async fn transaction(
    State(bot): State<Arc<Bot>>,
    Path(txn_id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return refuse(rejection.status(), "M_TOO_LARGE", "Body too long or broken off"),
    };
    if txn_id.len() > ID_BYTES_MAX {
        return refuse(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", "Transaction id too long");
    }
    let Ok(body) = serde_json::from_slice::<Body>(&body) else {
        return refuse(StatusCode::BAD_REQUEST, "M_BAD_JSON", "No list of events");
    };
    // Without knowing the control room nothing can be judged; the server keeps the transaction and comes
    // again.
    let Some(facts) = bot.control.facts() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", "Not ready");
    };
    match take(&bot, &facts, &txn_id, body.events).await {
        Ok(()) => {
            bot.wake.notify_one();
            axum::Json(json!({})).into_response()
        }
        Err(error) => {
            tracing::error!(%error, detail = error.detail(), "a transaction could not be stored");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "Not stored")
        }
    }
}

async fn take(bot: &Bot, facts: &Facts, txn_id: &str, events: Vec<Value>) -> Result<(), Error> {
    let mut tx = bot.store.begin().await?;
    if !store::take_transaction(&mut tx, txn_id).await? {
        return Ok(());
    }
    let mut intake = Intake { db: &mut tx, texts: &bot.texts, facts };
    for value in events {
        // An event of a shape we do not know concerns us as little as one of an unknown type.
        if let Ok(event) = serde_json::from_value::<Event>(value) {
            intake.take(&event).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

async fn ping() -> Response {
    axum::Json(json!({})).into_response()
}

/// Exists when it is the bot itself.
async fn user(State(bot): State<Arc<Bot>>, Path(user_id): Path<String>) -> Response {
    if bot.control.facts().is_some_and(|facts| facts.city_user == user_id) {
        return axum::Json(json!({})).into_response();
    }
    refuse(StatusCode::NOT_FOUND, "M_NOT_FOUND", "No such user")
}

/// City rooms have no aliases (DESIGN 0).
async fn room() -> Response {
    refuse(StatusCode::NOT_FOUND, "M_NOT_FOUND", "No such room")
}

fn refuse(status: StatusCode, errcode: &str, error: &str) -> Response {
    (status, axum::Json(json!({"errcode": errcode, "error": error}))).into_response()
}
