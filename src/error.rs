//! What can go wrong, in Matrix's words.
//!
//! An [`Error`] is either *refused* (the caller is told why, in a sentence that says what to do) or *internal*
//! (the cause goes to the log once, the caller sees `M_UNKNOWN`). Nothing here knows an HTTP status: the table
//! from [`Code`] to status is in `http::reply`.

use std::fmt;

/// The error codes that Heya answers with (client-server API, "Standard error response").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The caller may not do this.
    Forbidden,
    /// The access token is not known; `soft_logout` says that logging in again is enough.
    UnknownToken {
        /// The client may keep its data and log in again.
        soft_logout: bool,
    },
    /// The account is locked.
    UserLocked,
    /// The account is suspended: it may read and little else.
    UserSuspended,
    /// No access token was given.
    MissingToken,
    /// The body is JSON of the wrong shape.
    BadJson,
    /// The body is no JSON.
    NotJson,
    /// No such thing.
    NotFound,
    /// Too many requests.
    LimitExceeded {
        /// Milliseconds until the next try makes sense.
        retry_after_ms: u64,
    },
    /// A parameter has a value that is not allowed.
    InvalidParam,
    /// A parameter is missing.
    MissingParam,
    /// The request, or the event it would make, is too large.
    TooLarge,
    /// The medium's content has not come yet.
    NotYetUploaded,
    /// The medium has its content already.
    CannotOverwriteMedia,
    /// No such endpoint.
    Unrecognized,
    /// The endpoint exists, the method does not.
    MethodNotAllowed,
    /// The user id is taken.
    UserInUse,
    /// The user id is not valid.
    InvalidUsername,
    /// The name is in an appservice's exclusive namespace.
    Exclusive,
    /// An appservice asks for a session of one of its users, and none are given.
    AppserviceLoginUnsupported,
    /// The device that an appservice wants to act as is not the user's.
    UnknownDevice,
    /// The alias of a new room is taken.
    RoomInUse,
    /// The alias exists.
    AliasTaken,
    /// A signature on a key is not right, or missing.
    InvalidSignature,
    /// The key backup is not the current one.
    WrongRoomKeysVersion,
    /// An alias of `m.room.canonical_alias` does not lead to the room.
    BadAlias,
    /// The room's state would be invalid.
    InvalidRoomState,
    /// This room version is not offered.
    UnsupportedRoomVersion,
    /// Guests are not allowed.
    GuestAccessForbidden,
    /// The request cannot be done in the present state.
    BadState,
    /// This account data is kept by the server; clients do not write it.
    ServerKept,
    /// The key of a profile field is too long.
    KeyTooLarge,
    /// The profile would be too large.
    ProfileTooLarge,
    /// The specification has no code of its own for this (an unknown login type, a room not left).
    Unknown,
    /// The password is too weak.
    WeakPassword,
    /// The address is known for another account, or not known.
    ThreepidNotFound,
    /// The address is in use.
    ThreepidInUse,
    /// The check of the address has not happened yet.
    ThreepidAuthFailed,
    /// An address of this kind is not taken for this.
    ThreepidDenied,
    /// An identity server could not confirm an address: none is asked.
    ThreepidUnconfirmed,
    /// The third-party server is not trusted.
    ServerNotTrusted,
    /// The invited person takes no invitations of this sender.
    InviteBlocked,
    /// The same reaction was sent before.
    DuplicateAnnotation,
    /// The appservice has no URL.
    UrlNotSet,
    /// The appservice answered with an error.
    BadStatus,
    /// The appservice could not be reached.
    ConnectionFailed,
    /// The appservice took too long.
    ConnectionTimeout,
    /// The host asked for is not one of ours.
    MisdirectedRequest,
    /// `/_heya/v1`: the thing exists already.
    Exists,
    /// `/_heya/v1`: the subject has an open room.
    SubjectHasRoom,
    /// `/_heya/v1`: the room is not in a state for this (DESIGN 15).
    RoomState,
    /// `/_heya/v1`: the city would be left without anybody who can act for it, or somebody else would be in its control room.
    Staff,
    /// `/_heya/v1`: a legal hold stands on the room.
    Held,
    /// `/_heya/v1`: the room's retention has not run out.
    Retained,
    /// The position of a sliding sync is not known: the client starts afresh (MSC4186).
    UnknownPos,
    /// The server cannot answer now.
    Unavailable,
    /// User-interactive authentication is needed; the body goes in [`Refusal::extra`].
    Interactive,
}

/// A refusal: a code, a sentence, and fields that go beside them into the answer.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The code.
    pub code: Code,
    /// A sentence for people: what is wrong and what to do.
    pub message: String,
    /// Further fields of the answer.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// The one error type.
#[derive(Debug)]
pub enum Error {
    /// The caller is told.
    Refused(Box<Refusal>),
    /// The log is told.
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

/// `Result` with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An internal error from a sentence.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal(message.into().into())
    }

    /// Adds a field to a refusal's answer.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        if let Self::Refused(refusal) = &mut self {
            refusal.extra.insert(key.to_owned(), value.into());
        }
        self
    }

    /// The refusal's code, where this is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Internal(_) => None,
        }
    }
}

/// A refusal with a code and a sentence.
pub fn refuse(code: Code, message: impl Into<String>) -> Error {
    Error::Refused(Box::new(Refusal { code, message: message.into(), extra: serde_json::Map::new() }))
}

/// `M_FORBIDDEN` with a sentence.
pub fn forbidden(message: impl Into<String>) -> Error {
    refuse(Code::Forbidden, message)
}

/// `M_NOT_FOUND` with a sentence.
pub fn not_found(message: impl Into<String>) -> Error {
    refuse(Code::NotFound, message)
}

/// `M_INVALID_PARAM` with a sentence.
pub fn invalid(message: impl Into<String>) -> Error {
    refuse(Code::InvalidParam, message)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "{:?}: {}", refusal.code, refusal.message),
            Self::Internal(source) => write!(f, "internal: {source}"),
        }
    }
}

impl std::error::Error for Error {}

macro_rules! internal_from {
    ($($t:ty),* $(,)?) => { $(impl From<$t> for Error {
        fn from(source: $t) -> Self { Self::Internal(Box::new(source)) }
    })* };
}
internal_from!(
    sqlx::Error,
    sqlx::migrate::MigrateError,
    std::io::Error,
    serde_json::Error,
    ruma::signatures::JsonError,
    ruma::IdParseError,
    tokio::task::JoinError,
    rustls::Error,
    reqwest::Error,
);
