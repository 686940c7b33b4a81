//! Server administration by the specification: suspending and locking accounts, and who is logged in where
//! (client-server API, "Server administration"). City staff only, each use in the audit log. Nobody learns whether an
//! account exists before it is known that they may ask.

use std::sync::Arc;

use ruma::{
    OwnedUserId,
    api::client::admin::{get_user_info, is_user_locked, is_user_suspended, lock_user, suspend_user},
};
use serde_json::{Map, Value, json};

use crate::{
    accounts::moderation::{self, Change, Standing},
    error::{Result, forbidden, not_found},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
    rooms::committer::Hint,
    server::Server,
    store,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<is_user_suspended::v1::Request, Requester, _, _>(|server, who, request| async move {
            let standing = standing(&server, &who, &request.user_id).await?;
            Ok(json!({"suspended": standing.suspended}).into())
        })
        .raw::<suspend_user::v1::Request, Requester, _, _>(|server, who, request| async move {
            let change = Change::Suspended(request.suspended);
            let standing = set(&server, &who, request.user_id, change).await?;
            Ok(json!({"suspended": standing.suspended}).into())
        })
        .raw::<is_user_locked::v1::Request, Requester, _, _>(|server, who, request| async move {
            let standing = standing(&server, &who, &request.user_id).await?;
            Ok(json!({"locked": standing.locked}).into())
        })
        .raw::<lock_user::v1::Request, Requester, _, _>(|server, who, request| async move {
            let standing = set(&server, &who, request.user_id, Change::Locked(request.locked)).await?;
            Ok(json!({"locked": standing.locked}).into())
        })
        .raw::<get_user_info::v3::Request, Requester, _, _>(|server, who, request| async move {
            if who.user_id != request.user_id || who.appservice.is_some() {
                admin(&server, &who).await?;
                record(&server, &who, "admin.whois", request.user_id.as_str()).await?;
            }
            whois(&server, &request.user_id).await
        })
}

/// Lets only administrators through: people of the city's own facility with a session (DESIGN 4: never a token that a
/// program has).
pub(super) async fn admin(server: &Server, who: &Requester) -> Result<()> {
    let person = who.appservice.is_none() && who.session.is_some();
    if person && moderation::is_admin(server, &mut server.db.read().await?, who.user_id.as_str()).await? {
        return Ok(());
    }
    Err(forbidden("Only staff of the city administer this server (市職員だけができます)."))
}

/// Writes a use of an administrator's right to the audit log, before it is answered.
pub(super) async fn record(server: &Server, who: &Requester, action: &str, target: &str) -> Result<()> {
    let mut entry = who.entry(server.now(), action);
    if target.starts_with('!') {
        entry.room_id = target.to_owned();
    } else {
        entry.target = target.to_owned();
    }
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                Ok(())
            })
        })
        .await
}

async fn standing(server: &Server, who: &Requester, user_id: &OwnedUserId) -> Result<Standing> {
    admin(server, who).await?;
    moderation::subject(server, &mut server.db.read().await?, user_id).await?;
    Ok(server.moderation.of(user_id))
}

/// Changes an account's standing.
pub(super) async fn set(
    server: &Arc<Server>,
    who: &Requester,
    user_id: OwnedUserId,
    change: Change,
) -> Result<Standing> {
    admin(server, who).await?;
    moderation::subject(server, &mut server.db.read().await?, &user_id).await?;
    let mut entry = who.entry(
        server.now(),
        match change {
            Change::Suspended(true) => "account.suspend",
            Change::Suspended(false) => "account.resume",
            Change::Locked(true) => "account.lock",
            Change::Locked(false) => "account.unlock",
        },
    );
    entry.target = user_id.to_string();
    let (moderation, by) = (Arc::clone(&server.moderation), who.user_id.clone());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                moderation::change(batch, &moderation, &user_id, change, &by).await
            })
        })
        .await
}

/// A user's devices, and from where each was last used.
pub(super) async fn whois(server: &Server, user_id: &OwnedUserId) -> Result<Answer> {
    let mut conn = server.db.read().await?;
    if !server.is_local(user_id) || store::accounts::account(&mut conn, user_id.as_str()).await?.is_none() {
        return Err(not_found("There is no such user."));
    }
    let mut devices = Map::new();
    for device in store::personal::devices(&mut conn, user_id.as_str()).await? {
        let seen = server.sessions.last_seen(user_id, &device.device_id).or(device.last_seen);
        let ip = server.sessions.last_address(user_id, &device.device_id).map(|ip| ip.to_string());
        let connection = json!({"ip": ip, "last_seen": seen, "user_agent": null});
        let connection: Map<String, Value> = match connection {
            Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            _ => Map::new(),
        };
        devices.insert(device.device_id, json!({"sessions": [{"connections": [connection]}]}));
    }
    Ok(json!({"user_id": user_id, "devices": devices}).into())
}
