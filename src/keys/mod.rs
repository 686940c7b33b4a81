//! What end-to-end encryption needs of a server: it keeps public keys, hands them out, and tells who must fetch them
//! again. It reads no message. With encryption forbidden devices still publish keys (clients insist), but no identity is
//! ever cross-signed and no backup exists, so no client shows a key screen (DESIGN 13, STACK).

use std::sync::Arc;

use ruma::UserId;

use crate::{
    config::Encryption,
    error::{Result, forbidden},
    rooms::batch::Batch,
    server::Server,
    store,
};

pub mod backup;
pub mod counts;
pub mod cross_signing;
pub mod dehydrated;
pub mod devices;
pub mod lists;
pub mod sync;
pub mod to_device;

/// Refuses what makes clients show key screens where encryption is forbidden.
pub fn check_allowed(server: &Server) -> Result<()> {
    match server.config.policy.encryption {
        Encryption::Allowed => Ok(()),
        Encryption::Forbidden => {
            Err(forbidden("Encryption between users is switched off on this server (暗号化はできません)."))
        }
    }
}

/// Whether somebody may have another's keys, and write to the other's devices: they share a room, or the other is invited
/// where the one is (who writes there encrypts for the invited, too).
pub fn may_reach(server: &Server, user_id: &UserId, other: &UserId) -> bool {
    server.live.reaches(user_id, other)
}

/// Says, in a unit, that a user's devices, their keys or the cross-signing keys changed. Whoever shares a room hears of it:
/// those of encrypted rooms at once, the others with their next sync. Returns the position.
pub async fn devices_changed(batch: &mut Batch, user_id: &UserId) -> Result<i64> {
    let position = batch.personal_change(user_id);
    store::keys::put_device_list(batch.sql().await?, user_id.as_str(), position).await?;
    if batch.policy.encryption == Encryption::Allowed {
        for member in batch.live.in_encrypted_rooms_of(user_id) {
            batch.touch(&member.user_id);
        }
    }
    let (live, user_id) = (Arc::clone(&batch.live), user_id.to_owned());
    let others = batch.policy.encryption == Encryption::Allowed;
    batch.after_commit(move || {
        live.lists.changed(&user_id, position);
        if others {
            live.touch_quietly(&user_id, position);
        }
    });
    Ok(position)
}

/// Drops all keys of an account that ends, in its unit: devices, identity, signatures, backups.
pub async fn forget_user(
    batch: &mut Batch,
    sessions: &Arc<crate::accounts::sessions::Sessions>,
    user_id: &UserId,
) -> Result<()> {
    let devices = store::personal::devices(batch.reading(), user_id.as_str()).await?;
    let devices = devices.into_iter().map(|device| device.device_id).collect();
    crate::accounts::sessions::end_devices(batch, sessions, user_id, devices).await?;
    store::keys::forget_user(batch.sql().await?, user_id.as_str()).await
}

/// Encryption was allowed and is not any more: rooms that are encrypted already would stay so, unseen by the city.
pub fn check_no_encrypted_room(server_policy: Encryption, lists: &lists::Lists) -> Result<()> {
    let encrypted = lists.encrypted_rooms();
    if server_policy == Encryption::Forbidden && encrypted > 0 {
        return Err(crate::error::Error::internal(format!(
            "policy.encryption = \"forbidden\", but {encrypted} rooms are encrypted from the time when it was \"allowed\": \
             the city could not read, search or export them. Set it to \"allowed\" again, or purge these rooms first"
        )));
    }
    Ok(())
}
