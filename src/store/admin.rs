//! What administrators' lists show: accounts, rooms, media of a user.

use super::{Conn, all};
use crate::error::Result;

/// An account in a list.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Account {
    /// The Matrix id.
    pub user_id: String,
    /// `facility`, `personal`, `open`, `guest` or `appservice`.
    pub kind: String,
    /// The display name.
    pub display_name: Option<String>,
    /// The avatar's mxc URI.
    pub avatar_url: Option<String>,
    /// `issued`, `active` or `ended`.
    pub status: String,
    /// When it was made, in milliseconds.
    pub created_at: i64,
    /// An administrator of the open profile.
    pub admin: bool,
    /// When one of its devices was last heard of.
    pub last_seen: Option<i64>,
}

/// All accounts: thousands in a city.
pub async fn accounts(conn: &mut Conn) -> Result<Vec<Account>> {
    all!(
        conn,
        Account,
        "SELECT a.user_id, a.kind, a.display_name, a.avatar_url, a.status, a.created_at, a.admin, \
         (SELECT MAX(d.last_seen) FROM devices d WHERE d.user_id = a.user_id) AS last_seen \
         FROM accounts a ORDER BY a.user_id"
    )
}

/// A room in a list.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Room {
    /// The room.
    pub room_id: String,
    /// Its version.
    pub version: String,
    /// Who is in it.
    pub joined: i64,
    /// Pieces of current state.
    pub state_events: i64,
    /// The PDU of its name.
    pub name: Option<String>,
}

/// All rooms that are not purged.
pub async fn rooms(conn: &mut Conn) -> Result<Vec<Room>> {
    all!(
        conn,
        Room,
        "SELECT r.room_id, r.version, \
         (SELECT COUNT(*) FROM memberships m WHERE m.room_id = r.room_id AND m.membership = 'join') AS joined, \
         (SELECT COUNT(*) FROM room_state s WHERE s.room_id = r.room_id AND s.to_order IS NULL) AS state_events, \
         (SELECT e.pdu FROM room_state s JOIN events e ON e.event_id = s.event_id WHERE s.room_id = r.room_id \
         AND s.type = 'm.room.name' AND s.state_key = '' AND s.to_order IS NULL) AS name \
         FROM rooms r WHERE r.status <> 'purged' ORDER BY r.room_id"
    )
}

/// A medium in a list.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Medium {
    /// Its id.
    pub media_id: String,
    /// The content type.
    pub content_type: String,
    /// The file name.
    pub file_name: Option<String>,
    /// Size.
    pub bytes: i64,
    /// When it came, in milliseconds.
    pub created_at: i64,
}

/// The media of a user, newest first.
pub async fn media_of(conn: &mut Conn, user_id: &str) -> Result<Vec<Medium>> {
    all!(
        conn,
        Medium,
        "SELECT media_id, content_type, file_name, bytes, created_at FROM media WHERE user_id = $1 \
         ORDER BY created_at DESC, media_id",
        user_id
    )
}
