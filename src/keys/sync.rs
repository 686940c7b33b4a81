//! What a sync tells of keys and of messages to devices, for `/v3/sync` and sliding sync alike. Positions are those of the
//! one sequence: after `since`, up to `upto`.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use ruma::{OwnedUserId, UserId};

use super::{
    counts::{self, Counts},
    lists::Move,
};
use crate::{
    config::Encryption, error::Result, http::caller::Requester, rooms::committer::Hint, server::Server, store,
};

/// Messages to a device in one sync.
pub const TO_DEVICE_MAX: i64 = 100;

/// News of devices and keys.
#[derive(Clone, Debug, Default)]
pub struct E2ee {
    /// Whose devices or keys changed, and with whom an encrypted room is shared now.
    pub changed: Vec<OwnedUserId>,
    /// With whom no encrypted room is shared any more.
    pub left: Vec<OwnedUserId>,
    /// What the asking device has left; none for a caller without a device.
    pub counts: Option<Arc<Counts>>,
}

impl E2ee {
    /// Whether this ends a long poll. Counts alone do not: they go with every answer.
    pub fn is_news(&self) -> bool {
        !self.changed.is_empty() || !self.left.is_empty()
    }
}

/// Messages to a device.
#[derive(Clone, Debug, Default)]
pub struct ToDevice {
    /// The events as JSON text, in order.
    pub events: Vec<String>,
    /// Every message up to here is among the events: the place from which the next sync goes on, and whose
    /// acknowledgement drops them.
    pub upto: i64,
    /// More wait between that and the position asked for.
    pub more: bool,
}

/// News of devices and keys. `since` 0 is a first sync: it is told counts only, as its client fetches all keys anyway.
/// Asks the database where the device's counts are not in memory, and for nothing else.
pub async fn e2ee(server: &Server, who: &Requester, since: i64, upto: i64) -> Result<E2ee> {
    let forbidden = server.config.policy.encryption == Encryption::Forbidden;
    let counts = match &who.device_id {
        Some(_) if forbidden => Some(Arc::new(counts::constant())),
        Some(device_id) => Some(counts::of(server, &who.user_id, device_id).await?),
        None => None,
    };
    let (mut changed, mut left) = device_lists(server, &who.user_id, since, upto);
    if forbidden {
        // Nobody encrypts for anybody, so nobody is woken for others' keys; one's own devices are listed in clients.
        changed.retain(|user_id| *user_id == who.user_id);
        left.clear();
    }
    Ok(E2ee { changed, left, counts })
}

/// Who changed and who left, seen by a user (client-server API, "Tracking the device list for a user").
pub fn device_lists(
    server: &Server,
    user_id: &UserId,
    since: i64,
    upto: i64,
) -> (Vec<OwnedUserId>, Vec<OwnedUserId>) {
    let live = &server.live;
    if since <= 0 || live.lists.newest() <= since {
        return (Vec::new(), Vec::new());
    }
    let between = live.lists.between(user_id, since, upto);
    let mut changed: BTreeSet<OwnedUserId> =
        between.changed.into_iter().filter(|other| live.reaches(user_id, other)).collect();
    changed.extend(between.signed);
    // Those who may have come to share an encrypted room, or have ceased to.
    let mut moved: BTreeSet<OwnedUserId> = BTreeSet::new();
    match between.moves {
        Some(moves) => {
            for Move { room_id, user_id: who, member } in moves {
                let joined = live.is_joined(user_id, &room_id);
                match who {
                    Some(who) if who != user_id => {
                        if joined {
                            moved.insert(who);
                        }
                    }
                    Some(_) if !joined && !member => {}
                    None if !joined => {}
                    _ => moved.extend(live.present(&room_id).iter().map(|user| user.user_id.clone())),
                }
            }
        }
        // Not known any more: everybody with whom an encrypted room is shared.
        None => moved.extend(
            live.in_encrypted_rooms_of(user_id)
                .iter()
                .map(|user| user.user_id.clone())
                .filter(|other| live.reaches_encrypted(user_id, other)),
        ),
    }
    let mut left = Vec::new();
    for other in moved {
        if other == user_id {
            continue;
        }
        if live.reaches_encrypted(user_id, &other) {
            changed.insert(other);
        } else if !changed.contains(&other) {
            left.push(other);
        }
    }
    (changed.into_iter().collect(), left)
}

/// Messages that wait for a device. Asking again from the same place gives the same again.
pub async fn to_device(
    server: &Server,
    who: &Requester,
    since: i64,
    upto: i64,
    limit: i64,
) -> Result<ToDevice> {
    let none = ToDevice { events: Vec::new(), upto, more: false };
    let Some(device_id) = &who.device_id else { return Ok(none) };
    let user = server.live.user(&who.user_id);
    // Read before the database is asked, as in `acknowledge`.
    let personal = user.personal_position.load(Ordering::Acquire);
    if since > 0 && (personal <= since || user.of_devices.is_emptied(device_id, personal)) {
        return Ok(none);
    }
    let limit = limit.clamp(1, TO_DEVICE_MAX);
    let mut rows = store::keys::to_device(
        &mut server.db.read().await?,
        who.user_id.as_str(),
        device_id,
        since,
        upto,
        limit + 1,
    )
    .await?;
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > most;
    rows.truncate(most);
    let upto = match rows.last() {
        Some((last, _)) if more => *last,
        _ => upto,
    };
    Ok(ToDevice { events: rows.into_iter().map(|(_, event)| event).collect(), upto, more })
}

/// A device that syncs past its messages has them (client-server API, "Send-to-Device messaging"): they are dropped.
pub async fn acknowledge(server: &Server, who: &Requester, position: i64) -> Result<()> {
    let Some(device_id) = &who.device_id else { return Ok(()) };
    let user = server.live.user(&who.user_id);
    // Read before the database is asked: a message that comes afterwards moves it, and is asked for then.
    let personal = user.personal_position.load(Ordering::Acquire);
    if personal == 0 || user.of_devices.is_emptied(device_id, personal) {
        return Ok(());
    }
    let mut conn = server.db.read().await?;
    let first = store::keys::to_device(&mut conn, who.user_id.as_str(), device_id, 0, i64::MAX, 1).await?;
    drop(conn);
    match first.first() {
        None => {
            user.of_devices.set_emptied(device_id, personal);
            return Ok(());
        }
        Some((at, _)) if *at > position => return Ok(()),
        Some(_) => {}
    }
    let (user_id, device_id) = (who.user_id.clone(), device_id.to_owned());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let conn = batch.sql().await?;
                store::keys::acknowledge_to_device(conn, user_id.as_str(), &device_id, position).await?;
                let user = batch.live.user(&user_id);
                batch.after_commit(move || user.of_devices.forget_waiting(&device_id));
                Ok(())
            })
        })
        .await
}
