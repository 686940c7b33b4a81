//! What each connection of a client has been told (MSC4186, "Connections"): by (user, device, `conn_id`), in memory
//! only. Who comes with a `pos` that is not known here, after a restart or a long absence, is told `M_UNKNOWN_POS` and
//! starts afresh.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use ruma::{OwnedRoomId, OwnedUserId};

use super::super::token::SyncToken;
use crate::{
    error::{Code, Error, refuse},
    rooms::live::parking::Mutex,
};

/// Connections of one device: clients use two or three, with a name each.
const CONNECTIONS_OF_DEVICE_MAX: usize = 8;
/// Answers of one connection that may still be unread: the last one, and those that crossed a cancelled request.
const POINTS_MAX: usize = 4;
/// Devices remembered; beyond it the half that was quiet for longest starts afresh.
const DEVICES_MAX: usize = 20_000;

/// All connections.
#[derive(Default)]
pub struct Connections(Mutex<HashMap<(OwnedUserId, String), Device>>);

#[derive(Default)]
struct Device {
    used_at: i64,
    connections: VecDeque<Connection>,
}

struct Connection {
    name: String,
    /// Tells this run of the connection from an earlier one of the same name.
    run: String,
    next: u64,
    points: VecDeque<(u64, Arc<Point>)>,
}

/// What a client knows when it has read one answer.
#[derive(Clone, Default)]
pub struct Point {
    /// Up to where rooms were told.
    pub upto: SyncToken,
    /// The rooms that were told.
    pub rooms: Arc<HashMap<OwnedRoomId, Sent>>,
    /// A hash of what was asked for (lists, ranges, subscriptions): a new question is answered at once.
    pub asked: u64,
}

/// What was told of one room.
#[derive(Clone, Debug)]
pub struct Sent {
    /// How far.
    pub reach: Reach,
    /// The membership at that time.
    pub membership: String,
    /// With which configuration.
    pub config: Arc<RoomConfig>,
}

/// How far a room was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Up to the point itself.
    Live,
    /// Up to a position before it: the room was out of every window when more came.
    Upto(i64),
}

/// What to tell of a room (MSC4186, "room config").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomConfig {
    /// Events in the timeline at most.
    pub timeline_limit: usize,
    /// State by (type, state key), with `*`, `$ME` and `$LAZY`.
    pub required: BTreeSet<(String, String)>,
}

impl RoomConfig {
    /// Takes up what another rule wants of the same room ("Combining room configs": the superset).
    pub fn join(&mut self, other: &Self) {
        self.timeline_limit = self.timeline_limit.max(other.timeline_limit);
        self.required.extend(other.required.iter().cloned());
    }
}

impl Connections {
    /// Begins a connection anew and names this run of it.
    pub fn begin(&self, user: &OwnedUserId, device: &str, name: &str, run: String, now: i64) -> String {
        let mut devices = self.0.lock();
        if devices.len() >= DEVICES_MAX {
            let mut used: Vec<i64> = devices.values().map(|d| d.used_at).collect();
            used.sort_unstable();
            let limit = used.get(used.len() / 2).copied().unwrap_or_default();
            devices.retain(|_, device| device.used_at > limit);
        }
        let device = devices.entry((user.clone(), device.to_owned())).or_default();
        device.used_at = now;
        device.connections.retain(|connection| connection.name != name);
        while device.connections.len() >= CONNECTIONS_OF_DEVICE_MAX {
            device.connections.pop_front();
        }
        device.connections.push_back(Connection {
            name: name.to_owned(),
            run: run.clone(),
            next: 0,
            points: VecDeque::new(),
        });
        run
    }

    /// The point that a `pos` names. Whoever shows it has read that answer, so older ones are dropped.
    pub fn point(
        &self,
        user: &OwnedUserId,
        device: &str,
        name: &str,
        pos: &str,
        now: i64,
    ) -> Result<(String, Arc<Point>), Error> {
        let unknown =
            || refuse(Code::UnknownPos, "This position is not known any more: start the sync afresh.");
        let (run, number) =
            pos.strip_prefix("s1_").and_then(|rest| rest.rsplit_once('_')).ok_or_else(unknown)?;
        let number: u64 = number.parse().map_err(|_| unknown())?;
        let mut devices = self.0.lock();
        let device = devices.get_mut(&(user.clone(), device.to_owned())).ok_or_else(unknown)?;
        device.used_at = now;
        let at =
            device.connections.iter().position(|c| c.name == name && c.run == run).ok_or_else(unknown)?;
        // The one used last goes last, so that the first is the one to drop.
        let mut connection = device.connections.remove(at).ok_or_else(unknown)?;
        let point = connection.points.iter().find(|(n, _)| *n == number).map(|(_, point)| Arc::clone(point));
        if point.is_some() {
            connection.points.retain(|(n, _)| *n >= number);
        }
        device.connections.push_back(connection);
        Ok((run.to_owned(), point.ok_or_else(unknown)?))
    }

    /// Remembers what an answer tells and gives the `pos` to send with it.
    pub fn offer(&self, user: &OwnedUserId, device: &str, name: &str, run: &str, point: Point) -> String {
        let mut devices = self.0.lock();
        let connection = devices
            .get_mut(&(user.clone(), device.to_owned()))
            .and_then(|d| d.connections.iter_mut().find(|c| c.name == name && c.run == run));
        // Gone meanwhile: the client begins a new run with its next request.
        let Some(connection) = connection else { return format!("s1_{run}_0") };
        connection.next += 1;
        let number = connection.next;
        if connection.points.len() >= POINTS_MAX {
            // The oldest is the one that the request in hand came with: it may be asked again. What crossed goes.
            connection.points.remove(1);
        }
        connection.points.push_back((number, Arc::new(point)));
        format!("s1_{run}_{number}")
    }
}

#[cfg(test)]
mod tests {
    use ruma::owned_user_id;

    use super::*;

    #[test]
    fn a_pos_may_be_asked_again_until_the_next_one_is_used() {
        let (all, user) = (Connections::default(), owned_user_id!("@a:example.jp"));
        let run = all.begin(&user, "D", "main", "r".to_owned(), 0);
        let first = all.offer(&user, "D", "main", &run, Point::default());
        assert!(all.point(&user, "D", "main", &first, 0).is_ok());
        let second = all.offer(&user, "D", "main", &run, Point::default());
        assert!(all.point(&user, "D", "main", &first, 0).is_ok(), "the answer may have been lost");
        assert!(all.point(&user, "D", "main", &second, 0).is_ok());
        assert!(all.point(&user, "D", "main", &first, 0).is_err(), "what came after it was read");
        for other in ["other", ""] {
            assert!(all.point(&user, "D", other, &second, 0).is_err(), "a connection has a name");
        }
        assert!(all.point(&user, "E", "main", &second, 0).is_err(), "and a device");
        let again = all.begin(&user, "D", "main", "s".to_owned(), 0);
        assert_ne!(run, again);
        assert!(all.point(&user, "D", "main", &second, 0).is_err(), "begun afresh");
    }

    #[test]
    fn many_lost_answers_keep_the_one_that_was_read() {
        let (all, user) = (Connections::default(), owned_user_id!("@a:example.jp"));
        let run = all.begin(&user, "D", "", "r".to_owned(), 0);
        let read = all.offer(&user, "D", "", &run, Point::default());
        let mut newest = String::new();
        for _ in 0..20 {
            assert!(all.point(&user, "D", "", &read, 0).is_ok());
            newest = all.offer(&user, "D", "", &run, Point::default());
        }
        assert!(all.point(&user, "D", "", &newest, 0).is_ok());
    }

    #[test]
    fn a_device_has_so_many_connections() {
        let (all, user) = (Connections::default(), owned_user_id!("@a:example.jp"));
        let mut first = String::new();
        for n in 0..=CONNECTIONS_OF_DEVICE_MAX {
            let name = n.to_string();
            let run = all.begin(&user, "D", &name, n.to_string(), 0);
            let pos = all.offer(&user, "D", &name, &run, Point::default());
            if n == 0 {
                first = pos;
            }
        }
        assert!(all.point(&user, "D", "0", &first, 0).is_err());
    }
}
