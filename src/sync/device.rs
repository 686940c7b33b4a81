//! What a sync tells a device beside rooms: messages to it, whose keys changed, how many of its own keys are left.

use std::{collections::BTreeMap, fmt::Write as _, sync::atomic::Ordering};

use serde_json::{Value, json};

use crate::{
    config::Encryption, error::Result, http::caller::Requester, rooms::committer::Hint, server::Server, store,
};

/// A device that syncs past its messages has them (client-server API, "Send-to-Device messaging").
pub async fn acknowledge(server: &Server, who: &Requester, position: i64) -> Result<()> {
    let Some(device) = who.device_id.as_deref() else { return Ok(()) };
    let user = server.live.user(&who.user_id);
    // Read before the database is asked: a message that comes afterwards moves it, and is asked for then.
    let personal = user.personal_position.load(Ordering::Acquire);
    if personal == 0 || user.nothing_waits_at.load(Ordering::Acquire) == personal {
        return Ok(());
    }
    let mut conn = server.db.read().await?;
    let waiting = store::keys::to_device(&mut conn, who.user_id.as_str(), device, 0, position, 1).await?;
    if waiting.is_empty() {
        if !store::keys::any_to_device(&mut conn, who.user_id.as_str()).await? {
            user.nothing_waits_at.store(personal, Ordering::Release);
        }
        return Ok(());
    }
    drop(conn);
    let (user_id, device) = (who.user_id.clone(), device.to_owned());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                store::keys::acknowledge_to_device(batch.sql().await?, user_id.as_str(), &device, position)
                    .await?;
                Ok(())
            })
        })
        .await
}

/// Messages to the device between two positions, oldest first, and up to where they go.
pub async fn to_device(
    server: &Server,
    who: &Requester,
    (since, upto): (i64, i64),
    limit: u64,
) -> Result<(Vec<Value>, i64)> {
    let Some(device) = who.device_id.as_deref() else { return Ok((Vec::new(), upto)) };
    let user = server.live.user(&who.user_id);
    let personal = user.personal_position.load(Ordering::Acquire);
    if personal <= since || user.nothing_waits_at.load(Ordering::Acquire) == personal && personal > 0 {
        return Ok((Vec::new(), upto));
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut conn = server.db.read().await?;
    let rows = store::keys::to_device(&mut conn, who.user_id.as_str(), device, since, upto, limit).await?;
    let whole = i64::try_from(rows.len()).unwrap_or(i64::MAX) < limit;
    let next = if whole { upto } else { rows.last().map_or(upto, |(position, _)| *position) };
    let events = rows.iter().map(|(_, text)| Ok(serde_json::from_str(text)?)).collect::<Result<_>>()?;
    Ok((events, next))
}

/// Whose devices changed between two positions, as far as the user shares a room with them.
pub async fn changed(server: &Server, who: &Requester, since: i64, upto: i64) -> Result<Vec<String>> {
    if since == 0 || server.live.device_keys_at.load(Ordering::Acquire) <= since {
        return Ok(Vec::new());
    }
    let mut changed = store::keys::changed(&mut server.db.read().await?, since, upto).await?;
    changed.retain(|id| {
        <&ruma::UserId>::try_from(id.as_str()).is_ok_and(|id| server.live.share_a_room(&who.user_id, id))
    });
    Ok(changed)
}

/// The extension `e2ee` of a sliding sync.
pub async fn e2ee(server: &Server, who: &Requester, since: i64, upto: i64) -> Result<Value> {
    let mut text = String::from("{\"x\":0");
    write_key_counts(server, who, &mut text).await?;
    text.push('}');
    let counts: Value = serde_json::from_str(&text)?;
    Ok(json!({
        "device_lists": {"changed": changed(server, who, since, upto).await?, "left": []},
        "device_one_time_keys_count": counts["device_one_time_keys_count"],
        "device_unused_fallback_key_types": counts["device_unused_fallback_key_types"],
    }))
}

/// How many one-time keys the device has left; clients upload more when they see few.
pub async fn write_key_counts(server: &Server, who: &Requester, out: &mut String) -> Result<()> {
    let Some(device) = &who.device_id else { return Ok(()) };
    if server.config.policy.encryption == Encryption::Forbidden {
        // Nobody claims keys: a constant spares every idle sync two queries, and keeps clients from uploading more.
        out.push_str(",\"device_one_time_keys_count\":{\"signed_curve25519\":50},\"device_unused_fallback_key_types\":[\"signed_curve25519\"]");
        return Ok(());
    }
    let mut conn = server.db.read().await?;
    let counts = store::keys::one_time_key_counts(&mut conn, who.user_id.as_str(), device).await?;
    let fallbacks = store::keys::unused_fallbacks(&mut conn, who.user_id.as_str(), device).await?;
    let mut counts: BTreeMap<String, i64> = counts.into_iter().collect();
    counts.entry("signed_curve25519".to_owned()).or_insert(0);
    let _ = write!(
        out,
        ",\"device_one_time_keys_count\":{},\"device_unused_fallback_key_types\":{}",
        serde_json::to_string(&counts)?,
        serde_json::to_string(&fallbacks)?
    );
    Ok(())
}
