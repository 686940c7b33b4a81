//! The registers (台帳) of a city as rows, for whoever writes them out (REQUIREMENTS C18, C20, C27).

use super::{Conn, all};
use crate::error::Result;

/// An account of a person or a facility.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Account {
    /// The Matrix id.
    pub user_id: String,
    /// `facility` or `personal`; `open` where people register by themselves.
    pub kind: String,
    /// The number of the facility (事業所番号).
    pub facility: Option<i64>,
    /// The facility's name.
    pub facility_name: Option<String>,
    /// The person's name; empty for a facility ID.
    pub name: String,
    /// The person's profession.
    pub profession: String,
    /// As others see it.
    pub display_name: Option<String>,
    /// `issued`, `active` or `ended`.
    pub status: String,
    /// When it was issued, in milliseconds.
    pub created_at: i64,
    /// When its use ended, in milliseconds.
    pub ended_at: Option<i64>,
    /// When one of its sessions was last heard of, in milliseconds.
    pub last_used: Option<i64>,
}

/// All accounts of people and facilities.
pub async fn accounts(conn: &mut Conn) -> Result<Vec<Account>> {
    all!(
        conn,
        Account,
        "SELECT a.user_id, a.kind, a.facility, f.name AS facility_name, a.name, a.profession, a.display_name, a.status, \
         a.created_at, a.ended_at, a.last_used \
         FROM accounts a LEFT JOIN facilities f ON f.id = a.facility \
         WHERE a.kind IN ('facility', 'personal', 'open') ORDER BY a.user_id"
    )
}

/// A room that has a number (部屋番号).
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Room {
    /// Its id.
    pub room_id: String,
    /// Its number.
    pub room_number: i64,
    /// `subject`, `association`, `liaison`, `announcement`, `control` or `direct`.
    pub kind: String,
    /// `open`, `closed`, `archived`, `purging` or `purged`.
    pub status: String,
    /// When it was opened, in milliseconds.
    pub created_at: i64,
    /// When it was closed, in milliseconds.
    pub closed_at: Option<i64>,
    /// When it was archived, in milliseconds.
    pub archived_at: Option<i64>,
    /// Why it is held (法的保全).
    pub held: Option<String>,
    /// The PDU of its name.
    pub name: Option<String>,
}

/// All rooms that have a number.
pub async fn rooms(conn: &mut Conn) -> Result<Vec<Room>> {
    all!(
        conn,
        Room,
        "SELECT r.room_id, r.room_number, r.kind, r.status, r.created_at, r.closed_at, r.archived_at, \
         (SELECT MAX(h.reason) FROM legal_holds h WHERE h.room_id = r.room_id AND h.lifted_at IS NULL) AS held, \
         (SELECT e.pdu FROM room_state s JOIN events e ON e.event_id = s.event_id WHERE s.room_id = r.room_id \
         AND s.type = 'm.room.name' AND s.state_key = '' AND s.to_order IS NULL) AS name \
         FROM rooms r WHERE r.room_number IS NOT NULL ORDER BY r.room_number"
    )
}

/// Somebody in a room that has a number, or who was in it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Member {
    /// The number of the room.
    pub room_number: i64,
    /// The member.
    pub user_id: String,
    /// `join`, `invite`, `leave`, `ban` or `knock`.
    pub membership: String,
    /// The member's name; empty for a facility ID.
    pub name: String,
    /// The member's profession.
    pub profession: String,
    /// The number of the member's facility.
    pub facility: Option<i64>,
    /// The facility's name.
    pub facility_name: Option<String>,
}

/// Who is and was in the rooms that have a number; the city's own bot aside.
pub async fn members(conn: &mut Conn) -> Result<Vec<Member>> {
    all!(
        conn,
        Member,
        "SELECT r.room_number, m.user_id, m.membership, a.name, a.profession, a.facility, f.name AS facility_name \
         FROM memberships m JOIN rooms r ON r.room_id = m.room_id JOIN accounts a ON a.user_id = m.user_id \
         LEFT JOIN facilities f ON f.id = a.facility \
         WHERE r.room_number IS NOT NULL AND a.kind IN ('facility', 'personal', 'open') ORDER BY r.room_number, m.user_id"
    )
}
