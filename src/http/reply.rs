//! Answers: the one table from error code to status, and JSON bodies.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use crate::error::{Code, Error, Refusal};

/// The status and `errcode` of a code (client-server API, "Standard error response" and the endpoints).
pub fn status(code: Code) -> (StatusCode, &'static str) {
    match code {
        Code::Forbidden => (StatusCode::FORBIDDEN, "M_FORBIDDEN"),
        Code::UnknownToken { .. } => (StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN"),
        Code::MissingToken => (StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN"),
        Code::BadJson => (StatusCode::BAD_REQUEST, "M_BAD_JSON"),
        Code::NotJson => (StatusCode::BAD_REQUEST, "M_NOT_JSON"),
        Code::NotFound => (StatusCode::NOT_FOUND, "M_NOT_FOUND"),
        Code::LimitExceeded { .. } => (StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED"),
        Code::InvalidParam => (StatusCode::BAD_REQUEST, "M_INVALID_PARAM"),
        Code::MissingParam => (StatusCode::BAD_REQUEST, "M_MISSING_PARAM"),
        Code::UserLocked => (StatusCode::UNAUTHORIZED, "M_USER_LOCKED"),
        Code::UserSuspended => (StatusCode::FORBIDDEN, "M_USER_SUSPENDED"),
        Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE"),
        Code::NotYetUploaded => (StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED"),
        Code::CannotOverwriteMedia => (StatusCode::CONFLICT, "M_CANNOT_OVERWRITE_MEDIA"),
        Code::Unrecognized => (StatusCode::NOT_FOUND, "M_UNRECOGNIZED"),
        Code::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED"),
        Code::UserInUse => (StatusCode::BAD_REQUEST, "M_USER_IN_USE"),
        Code::InvalidUsername => (StatusCode::BAD_REQUEST, "M_INVALID_USERNAME"),
        Code::Exclusive => (StatusCode::BAD_REQUEST, "M_EXCLUSIVE"),
        Code::AppserviceLoginUnsupported => (StatusCode::BAD_REQUEST, "M_APPSERVICE_LOGIN_UNSUPPORTED"),
        Code::UnknownDevice => (StatusCode::BAD_REQUEST, "M_UNKNOWN_DEVICE"),
        Code::RoomInUse => (StatusCode::BAD_REQUEST, "M_ROOM_IN_USE"),
        Code::AliasTaken => (StatusCode::CONFLICT, "M_UNKNOWN"),
        Code::InvalidSignature => (StatusCode::BAD_REQUEST, "M_INVALID_SIGNATURE"),
        Code::WrongRoomKeysVersion => (StatusCode::FORBIDDEN, "M_WRONG_ROOM_KEYS_VERSION"),
        Code::BadAlias => (StatusCode::BAD_REQUEST, "M_BAD_ALIAS"),
        Code::InvalidRoomState => (StatusCode::BAD_REQUEST, "M_INVALID_ROOM_STATE"),
        Code::UnsupportedRoomVersion => (StatusCode::BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION"),
        Code::GuestAccessForbidden => (StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN"),
        Code::BadState => (StatusCode::FORBIDDEN, "M_BAD_STATE"),
        Code::ServerKept => (StatusCode::METHOD_NOT_ALLOWED, "M_BAD_JSON"),
        Code::KeyTooLarge => (StatusCode::BAD_REQUEST, "M_KEY_TOO_LARGE"),
        Code::ProfileTooLarge => (StatusCode::BAD_REQUEST, "M_PROFILE_TOO_LARGE"),
        Code::Unknown => (StatusCode::BAD_REQUEST, "M_UNKNOWN"),
        Code::WeakPassword => (StatusCode::BAD_REQUEST, "M_WEAK_PASSWORD"),
        Code::ThreepidNotFound => (StatusCode::BAD_REQUEST, "M_THREEPID_NOT_FOUND"),
        Code::ThreepidInUse => (StatusCode::BAD_REQUEST, "M_THREEPID_IN_USE"),
        Code::ThreepidAuthFailed => (StatusCode::BAD_REQUEST, "M_THREEPID_AUTH_FAILED"),
        Code::ThreepidDenied => (StatusCode::FORBIDDEN, "M_THREEPID_DENIED"),
        Code::ThreepidUnconfirmed => (StatusCode::FORBIDDEN, "M_THREEPID_AUTH_FAILED"),
        Code::ServerNotTrusted => (StatusCode::FORBIDDEN, "M_SERVER_NOT_TRUSTED"),
        Code::InviteBlocked => (StatusCode::FORBIDDEN, "M_INVITE_BLOCKED"),
        Code::DuplicateAnnotation => (StatusCode::BAD_REQUEST, "M_DUPLICATE_ANNOTATION"),
        Code::UrlNotSet => (StatusCode::BAD_REQUEST, "M_URL_NOT_SET"),
        Code::BadStatus => (StatusCode::BAD_GATEWAY, "M_BAD_STATUS"),
        Code::ConnectionFailed => (StatusCode::BAD_GATEWAY, "M_CONNECTION_FAILED"),
        Code::ConnectionTimeout => (StatusCode::GATEWAY_TIMEOUT, "M_CONNECTION_TIMEOUT"),
        Code::MisdirectedRequest => (StatusCode::MISDIRECTED_REQUEST, "M_UNRECOGNIZED"),
        Code::Exists => (StatusCode::CONFLICT, "JP_HEYA_EXISTS"),
        Code::SubjectHasRoom => (StatusCode::CONFLICT, "JP_HEYA_SUBJECT_HAS_ROOM"),
        Code::RoomState => (StatusCode::CONFLICT, "JP_HEYA_ROOM_STATE"),
        Code::Staff => (StatusCode::CONFLICT, "JP_HEYA_STAFF"),
        Code::Held => (StatusCode::CONFLICT, "JP_HEYA_HELD"),
        Code::Retained => (StatusCode::CONFLICT, "JP_HEYA_RETAINED"),
        Code::UnknownPos => (StatusCode::BAD_REQUEST, "M_UNKNOWN_POS"),
        Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN"),
        Code::Interactive => (StatusCode::UNAUTHORIZED, ""),
    }
}

/// The answer to an error. An internal one is logged here, once, and told as `M_UNKNOWN`.
pub fn error(error: Error) -> Response {
    match error {
        Error::Refused(refusal) => refused(*refusal),
        Error::Internal(source) => {
            tracing::error!(error = %source, "a request failed");
            json(
                StatusCode::INTERNAL_SERVER_ERROR,
                serde_json::json!({"errcode": "M_UNKNOWN", "error": "Something went wrong on the server. Please try again."})
                    .to_string(),
            )
        }
    }
}

fn refused(refusal: Refusal) -> Response {
    let (status, errcode) = status(refusal.code);
    let mut body = refusal.extra;
    if !errcode.is_empty() {
        body.insert("errcode".to_owned(), errcode.into());
        body.insert("error".to_owned(), refusal.message.into());
    }
    match refusal.code {
        Code::UnknownToken { soft_logout } => {
            body.insert("soft_logout".to_owned(), soft_logout.into());
        }
        Code::LimitExceeded { retry_after_ms } => {
            body.insert("retry_after_ms".to_owned(), retry_after_ms.into());
        }
        _ => {}
    }
    let mut response = json(status, serde_json::Value::Object(body).to_string());
    if let Code::LimitExceeded { retry_after_ms } = refusal.code {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1000)));
    }
    response
}

/// A JSON answer from text.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        error(self)
    }
}
