//! The Push Gateway (Matrix Push Gateway API, `POST /_matrix/push/v1/notify`): the homeserver's notifications come in here, and
//! 200 is answered when they are committed.

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Json, Response},
    routing::post,
};
use lettre::Address;
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::Notify;

use crate::{
    Clock,
    outbox::Schedule,
    store::{Importance, Lang, NewNotice, Scope, Store},
};

/// What the gateway needs.
pub(crate) struct Gateway {
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Clock,
    pub(crate) schedule: Schedule,
    pub(crate) mail_token: String,
    /// Whether a template says who wrote and where. If none does, names are dropped here and go no further.
    pub(crate) keep_names: bool,
    /// Rung when a mail may have become due.
    pub(crate) wake: Arc<Notify>,
}

/// docs/internal-api.md: all bodies are at most 64 KiB.
const BODY_BYTES_MAX: usize = 64 * 1024;
const BODY_TIME_MAX: Duration = Duration::from_secs(10);
const DEVICES_MAX: usize = 64;
/// The limit of Matrix identifiers, in bytes; e-mail addresses are shorter (RFC 5321, section 4.5.3.1).
const ID_BYTES_MAX: usize = 255;
const ADDRESS_BYTES_MAX: usize = 320;
const NAME_CHARS_MAX: usize = 100;

#[derive(Deserialize)]
struct PushBody {
    notification: Notification,
}

#[derive(Deserialize)]
struct Notification {
    event_id: Option<String>,
    room_id: Option<String>,
    sender: Option<String>,
    sender_display_name: Option<String>,
    room_name: Option<String>,
    counts: Option<Counts>,
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Counts {
    unread: Option<u64>,
}

#[derive(Deserialize)]
struct Device {
    pushkey: String,
    data: DeviceData,
}

#[derive(Deserialize)]
struct DeviceData {
    #[serde(rename = "jp.heya.account")]
    account: String,
    #[serde(rename = "jp.heya.pusher")]
    pusher: String,
    #[serde(rename = "jp.heya.lang")]
    lang: Option<String>,
    #[serde(rename = "jp.heya.scope")]
    scope: Option<String>,
    #[serde(rename = "jp.heya.room_number")]
    room_number: Option<i64>,
    /// 宛先: `all` or `individual`. Without it the scope decides.
    #[serde(rename = "jp.heya.addressed")]
    addressed: Option<String>,
    /// 重要度: `none`, `important` or `urgent`.
    #[serde(rename = "jp.heya.importance")]
    importance: Option<String>,
}

/// A refusal in Matrix's words.
struct Refusal(StatusCode, &'static str, &'static str);

/// The routes of the bridge.
pub(crate) fn router(gateway: Gateway) -> Router {
    Router::new().route("/_matrix/push/v1/notify", post(notify)).with_state(Arc::new(gateway))
}

async fn notify(
    State(gateway): State<Arc<Gateway>>,
    request: Request<Body>,
) -> Result<Json<serde_json::Value>, Refusal> {
    check_token(request.headers(), &gateway.mail_token)?;
    let body = tokio::time::timeout(BODY_TIME_MAX, axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX))
        .await
        .map_err(|_| Refusal(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", "The body came too slowly"))?
        .map_err(|_| Refusal(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", "The body is too large"))?;
    let PushBody { notification } =
        serde_json::from_slice(&body).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                Refusal(StatusCode::BAD_REQUEST, "M_BAD_JSON", "Not a notification for this gateway")
            }
            _ => Refusal(StatusCode::BAD_REQUEST, "M_NOT_JSON", "Not JSON"),
        })?;
    check_sizes(&notification)?;
    let rejected = gateway.take(notification).await.map_err(|error| {
        tracing::error!(%error, "a notification could not be stored");
        Refusal(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "Not stored")
    })?;
    gateway.wake.notify_one();
    Ok(Json(json!({ "rejected": rejected })))
}

impl Gateway {
    /// Stores the notification; the answer is the pushkeys that are refused for good.
    async fn take(&self, notification: Notification) -> Result<BTreeSet<String>, sqlx::Error> {
        let now_ms = self.clock.now_ms();
        let pushers: Vec<_> = notification.devices.iter().map(|device| device.data.pusher.as_str()).collect();
        let refused = self.store.refused_among(&pushers).await?;
        let is_rejected = |device: &Device| {
            refused.contains(&device.data.pusher) || device.pushkey.parse::<Address>().is_err()
        };
        let rejected = notification
            .devices
            .iter()
            .filter(|device| is_rejected(device))
            .map(|device| device.pushkey.clone());
        let rejected = rejected.collect();
        match notification.event_id.as_deref().filter(|event_id| !event_id.is_empty()) {
            Some(event_id) => {
                let accepted = notification.devices.iter().filter(|device| !is_rejected(device));
                let notices: Vec<_> =
                    accepted.map(|device| self.notice(&notification, event_id, device, now_ms)).collect();
                self.store.add_notices(&notices, now_ms).await?;
            }
            // "Counts whose value is zero should be omitted" (Push Gateway API): an absent one is zero.
            None if notification.counts.as_ref().and_then(|counts| counts.unread).unwrap_or(0) == 0 => {
                let accounts: BTreeSet<_> =
                    notification.devices.iter().map(|device| device.data.account.as_str()).collect();
                for account in accounts {
                    self.store.cancel(account, notification.room_id.as_deref(), now_ms).await?;
                }
            }
            None => {}
        }
        Ok(rejected)
    }

    fn notice(&self, notification: &Notification, event_id: &str, device: &Device, now_ms: i64) -> NewNotice {
        let data = &device.data;
        let scope = Scope::of(data.scope.as_deref().unwrap_or_default());
        let importance = Importance::of(data.importance.as_deref().unwrap_or_default());
        let to_all = match data.addressed.as_deref() {
            Some("all") => true,
            Some("individual") => false,
            _ => scope == Scope::Message,
        };
        let name = |name: Option<&String>| name.filter(|_| self.keep_names).map(|name| one_line(name));
        NewNotice {
            pusher: data.pusher.clone(),
            account: data.account.clone(),
            address: device.pushkey.clone(),
            lang: Lang::of(data.lang.as_deref().unwrap_or_default()),
            event_id: event_id.to_owned(),
            room_id: notification.room_id.clone(),
            scope,
            to_all,
            importance,
            room_number: data.room_number,
            room_name: name(notification.room_name.as_ref()),
            sender: name(notification.sender_display_name.as_ref().or(notification.sender.as_ref())),
            due_ms: self.schedule.digest_due_ms(now_ms),
        }
    }
}

fn check_token(headers: &HeaderMap, expected: &str) -> Result<(), Refusal> {
    let Some(header) = headers.get(AUTHORIZATION) else {
        return Err(Refusal(StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN", "No token"));
    };
    let token = header.as_bytes().strip_prefix(b"Bearer ").unwrap_or_default();
    // Every byte is compared, so that the time taken does not tell how many were right.
    let difference = token
        .iter()
        .zip(expected.as_bytes())
        .fold(token.len() ^ expected.len(), |difference, (left, right)| {
            difference | usize::from(left ^ right)
        });
    if difference == 0 {
        Ok(())
    } else {
        Err(Refusal(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", "Unknown token"))
    }
}

fn check_sizes(notification: &Notification) -> Result<(), Refusal> {
    let is_id = |id: &str| !id.is_empty() && id.len() <= ID_BYTES_MAX && !id.chars().any(char::is_control);
    let is_good = notification.devices.len() <= DEVICES_MAX
        && notification.event_id.as_deref().is_none_or(|id| id.is_empty() || is_id(id))
        && notification.room_id.as_deref().is_none_or(is_id)
        && notification.devices.iter().all(|device| {
            is_id(&device.data.account)
                && is_id(&device.data.pusher)
                && device.pushkey.len() <= ADDRESS_BYTES_MAX
                && device.data.room_number.is_none_or(|number| number >= 0)
        });
    if is_good {
        Ok(())
    } else {
        Err(Refusal(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", "Too many devices, or an identifier is none"))
    }
}

/// A name as it may stand in a mail: short, and without line breaks that would make other lines of it.
fn one_line(name: &str) -> String {
    name.chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(NAME_CHARS_MAX)
        .collect()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, errcode, error) = self;
        (status, Json(json!({"errcode": errcode, "error": error}))).into_response()
    }
}
