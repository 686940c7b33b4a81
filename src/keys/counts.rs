//! How many keys a device has left: told with every sync, and kept in memory so that an idle one asks no database.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ruma::UserId;

use crate::{error::Result, rooms::batch::Batch, rooms::live::parking::Mutex, server::Server, store};

/// The algorithm of today's one-time keys; clients look for its count above all.
const SIGNED_CURVE25519: &str = "signed_curve25519";

/// What a device has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// One-time keys by algorithm; `signed_curve25519` always among them.
    pub one_time: BTreeMap<String, i64>,
    /// Algorithms with a fallback key that was not handed out yet.
    pub unused_fallbacks: Vec<String>,
}

/// What is known of a user's devices, as far as a sync asked for it.
#[derive(Debug, Default)]
pub struct Known {
    /// How often counts changed, and the counts by device.
    of: Mutex<(u64, HashMap<String, Arc<Counts>>)>,
    /// By device: the user's `personal_position` at which no message waited for it.
    emptied: Mutex<HashMap<String, i64>>,
    /// Bytes of messages that wait, by device, as far as somebody wrote to it since it last fetched some. Of the
    /// committer only.
    waiting: Mutex<HashMap<String, i64>>,
}

impl Known {
    fn forget(&self, device_id: &str) {
        let mut of = self.of.lock();
        of.0 += 1;
        of.1.remove(device_id);
        drop(of);
        self.emptied.lock().remove(device_id);
        self.waiting.lock().remove(device_id);
    }

    /// Bytes of messages that wait for a device, where that is known.
    pub fn waiting(&self, device_id: &str) -> Option<i64> {
        self.waiting.lock().get(device_id).copied()
    }

    /// So many bytes wait for a device. Of a unit that is refused afterwards some are counted that are not there, until
    /// the device fetches what waits.
    pub fn set_waiting(&self, device_id: &str, bytes: i64) {
        self.waiting.lock().insert(device_id.to_owned(), bytes);
    }

    /// Messages to a device were dropped: how much waits is counted again.
    pub fn forget_waiting(&self, device_id: &str) {
        self.waiting.lock().remove(device_id);
    }

    /// Whether no message waited for a device when the user's own things were as at this position.
    pub fn is_emptied(&self, device_id: &str, personal_position: i64) -> bool {
        self.emptied.lock().get(device_id).is_some_and(|at| *at == personal_position)
    }

    /// No message waits for a device, as of a position that was read before that was found out.
    pub fn set_emptied(&self, device_id: &str, personal_position: i64) {
        self.emptied.lock().insert(device_id.to_owned(), personal_position);
    }
}

/// With encryption forbidden nobody claims keys: a constant keeps clients from uploading more.
pub fn constant() -> Counts {
    Counts {
        one_time: BTreeMap::from([(SIGNED_CURVE25519.to_owned(), 50)]),
        unused_fallbacks: vec![SIGNED_CURVE25519.to_owned()],
    }
}

/// The counts of a device.
pub async fn of(server: &Server, user_id: &UserId, device_id: &str) -> Result<Arc<Counts>> {
    let user = server.live.user(user_id);
    let generation = {
        let of = user.of_devices.of.lock();
        if let Some(counts) = of.1.get(device_id) {
            return Ok(Arc::clone(counts));
        }
        of.0
    };
    let counts = Arc::new(read(&mut server.db.read().await?, user_id, device_id).await?);
    let mut of = user.of_devices.of.lock();
    // What a commit changed since may be missing in what was read.
    if of.0 == generation {
        of.1.insert(device_id.to_owned(), Arc::clone(&counts));
    }
    Ok(counts)
}

/// The counts of a device as the database has them.
pub async fn read(conn: &mut store::Conn, user_id: &UserId, device_id: &str) -> Result<Counts> {
    let mut one_time: BTreeMap<String, i64> =
        store::keys::one_time_key_counts(conn, user_id.as_str(), device_id).await?.into_iter().collect();
    one_time.entry(SIGNED_CURVE25519.to_owned()).or_insert(0);
    let unused_fallbacks = store::keys::unused_fallbacks(conn, user_id.as_str(), device_id).await?;
    Ok(Counts { one_time, unused_fallbacks })
}

/// Says, in a unit, that a device's keys came or went.
pub fn changed(batch: &mut Batch, user_id: &UserId, device_id: &str) {
    let (live, user_id, device_id) = (Arc::clone(&batch.live), user_id.to_owned(), device_id.to_owned());
    batch.after_commit(move || live.user(&user_id).of_devices.forget(&device_id));
}
