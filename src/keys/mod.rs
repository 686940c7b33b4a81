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

pub mod counts;
pub mod lists;
pub mod sync;

/// Refuses what makes clients show key screens where encryption is forbidden.
pub fn check_allowed(server: &Server) -> Result<()> {
    match server.config.policy.encryption {
        Encryption::Allowed => Ok(()),
        Encryption::Forbidden => {
            Err(forbidden("Encryption between users is switched off on this server (暗号化はできません)."))
        }
    }
}

/// Whether somebody may have another's keys, and write to the other's devices: they share a room, or one of them is
/// invited where the other is (who writes to an invited person encrypts for them, too).
pub fn may_reach(server: &Server, user_id: &UserId, other: &UserId) -> bool {
    server.live.meet(user_id, other)
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
