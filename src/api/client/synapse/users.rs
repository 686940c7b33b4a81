//! Users, their devices, rooms, media and pushers.

use std::{collections::HashSet, sync::Arc};

use http::{Method, StatusCode};
use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Page, admitted, backwards, flag, user};
use crate::{
    accounts::{
        end,
        moderation::{self, Change},
        passwords,
        register::city_staff,
        sessions,
    },
    api::client::admin,
    error::{Result, forbidden, invalid, not_found},
    http::{
        caller::Requester,
        reply,
        route::{Answer, Call, Routes},
    },
    rooms::committer::Hint,
    server::Server,
    store::{self, admin::Account},
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    const USER: &str = "/_synapse/admin/v2/users/{userId}";
    routes
        .at(Method::GET, "/_synapse/admin/v2/users", list)
        .at(Method::GET, USER, |server, call| async move {
            let user_id = user(&server, &call)?;
            admitted(&server, &call, "user", user_id.as_str()).await?;
            one(&server, &user_id).await.map(Into::into)
        })
        .at(Method::PUT, USER, put)
        .at(Method::POST, "/_synapse/admin/v1/deactivate/{userId}", |server, call| async move {
            let user_id = user(&server, &call)?;
            let who = admitted(&server, &call, "deactivate", user_id.as_str()).await?;
            call.body(&server).await?;
            deactivate(&server, &who, user_id).await?;
            Ok(json!({"id_server_unbind_result": "no-support"}).into())
        })
        .at(Method::PUT, "/_synapse/admin/v1/suspend/{userId}", |server, call| async move {
            #[derive(Deserialize)]
            struct Body {
                suspend: bool,
            }
            let user_id = user(&server, &call)?;
            let who = admitted(&server, &call, "suspend", user_id.as_str()).await?;
            let (_, body) = call.json::<Body>(&server).await?;
            admin::set(&server, &who, user_id.clone(), Change::Suspended(body.suspend)).await?;
            Ok(json!({(format!("user_{user_id}_suspended")): body.suspend}).into())
        })
        .at(Method::POST, "/_synapse/admin/v1/reset_password/{userId}", reset_password)
        .at(Method::GET, "/_synapse/admin/v1/whois/{userId}", |server, call| async move {
            let user_id = user(&server, &call)?;
            admitted(&server, &call, "whois", user_id.as_str()).await?;
            admin::whois(&server, &user_id).await
        })
        .at(Method::GET, "/_synapse/admin/v2/users/{userId}/devices", |server, call| async move {
            let user_id = known(&server, &call, "devices").await?;
            let devices = devices(&server, &user_id).await?;
            Ok(json!({"total": devices.len(), "devices": devices}).into())
        })
        .at(Method::GET, "/_synapse/admin/v2/users/{userId}/devices/{deviceId}", |server, call| async move {
            let user_id = known(&server, &call, "device").await?;
            let found = devices(&server, &user_id)
                .await?
                .into_iter()
                .find(|device| device["device_id"] == call.arg(1));
            found.map(Into::into).ok_or_else(|| not_found("There is no such device."))
        })
        .at(
            Method::DELETE,
            "/_synapse/admin/v2/users/{userId}/devices/{deviceId}",
            |server, call| async move {
                let user_id = user(&server, &call)?;
                let who = admitted(&server, &call, "device.delete", user_id.as_str()).await?;
                let device = call.arg(1).to_owned();
                end_devices(&server, &who, user_id, vec![device]).await
            },
        )
        .at(Method::POST, "/_synapse/admin/v2/users/{userId}/delete_devices", |server, call| async move {
            #[derive(Deserialize)]
            struct Body {
                devices: Vec<String>,
            }
            let user_id = user(&server, &call)?;
            let who = admitted(&server, &call, "device.delete", user_id.as_str()).await?;
            let (_, body) = call.json::<Body>(&server).await?;
            if body.devices.len() > 500 {
                return Err(invalid("At most 500 devices at once."));
            }
            end_devices(&server, &who, user_id, body.devices).await
        })
        .at(Method::GET, "/_synapse/admin/v1/users/{userId}/joined_rooms", |server, call| async move {
            let user_id = known(&server, &call, "joined_rooms").await?;
            let rooms = server.live.joined_rooms(&user_id);
            Ok(json!({"total": rooms.len(), "joined_rooms": rooms}).into())
        })
        .at(Method::GET, "/_synapse/admin/v1/users/{userId}/media", media)
        .at(Method::GET, "/_synapse/admin/v1/users/{userId}/pushers", |server, call| async move {
            let user_id = known(&server, &call, "pushers").await?;
            let stored = store::push::pushers(&mut server.db.read().await?, user_id.as_str()).await?;
            let pushers: Vec<Value> =
                stored.iter().map(|one| serde_json::from_str(&one.pusher)).collect::<Result<_, _>>()?;
            Ok(json!({"total": pushers.len(), "pushers": pushers}).into())
        })
}

/// The user in the path, who exists; the look is in the audit log.
async fn known(server: &Arc<Server>, call: &Call, what: &str) -> Result<OwnedUserId> {
    let user_id = user(server, call)?;
    admitted(server, call, what, user_id.as_str()).await?;
    let account = store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?;
    account.map(|_| user_id).ok_or_else(|| not_found("There is no such user."))
}

/// Who administers: the staff of the city's own facility.
async fn staff(server: &Server) -> Result<HashSet<String>> {
    if server.config.policy.open_profile {
        return Ok(HashSet::new());
    }
    Ok(city_staff(&mut server.db.read().await?).await?.into_iter().map(|id| id.to_string()).collect())
}

fn view(server: &Server, account: &Account, staff: &HashSet<String>) -> Value {
    let standing = <&ruma::UserId>::try_from(account.user_id.as_str())
        .map(|user_id| server.moderation.of(user_id))
        .unwrap_or_default();
    json!({
        "name": account.user_id,
        "displayname": account.display_name,
        "avatar_url": account.avatar_url,
        "is_guest": account.kind == "guest",
        "admin": account.admin || staff.contains(&account.user_id),
        "deactivated": account.status == "ended",
        "locked": standing.locked,
        "suspended": standing.suspended,
        "shadow_banned": false,
        "erased": false,
        "approved": true,
        "user_type": null,
        "creation_ts": account.created_at,
        "last_seen_ts": account.last_seen,
    })
}

async fn one(server: &Arc<Server>, user_id: &OwnedUserId) -> Result<Value> {
    let staff = staff(server).await?;
    let mut conn = server.db.read().await?;
    let accounts = store::admin::accounts(&mut conn).await?;
    let account = accounts
        .iter()
        .find(|account| account.user_id == user_id.as_str())
        .ok_or_else(|| not_found("There is no such user."))?;
    let addresses = store::addresses::addresses(&mut conn, user_id.as_str()).await?;
    let mut view = view(server, account, &staff);
    view["threepids"] = addresses
        .into_iter()
        .map(|(address, validated_at, added_at)| {
            json!({"medium": "email", "address": address, "validated_at": validated_at, "added_at": added_at})
        })
        .collect();
    view["external_ids"] = json!([]);
    view["appservice_id"] = Value::Null;
    Ok(view)
}

/// `GET /_synapse/admin/v2/users`.
async fn list(server: Arc<Server>, call: Call) -> Result<Answer> {
    admitted(&server, &call, "users", "").await?;
    let page = Page::of(&call)?;
    let (guests, deactivated) = (flag(&call, "guests")?, flag(&call, "deactivated")?);
    let (locked, admins) = (flag(&call, "locked")?, flag(&call, "admins")?);
    let wanted = |key| call.query(key).map(|text| text.to_lowercase()).filter(|text| !text.is_empty());
    let (name, id) = (wanted("name"), wanted("user_id"));
    let (order, backwards) = (call.query("order_by").unwrap_or_default(), backwards(&call)?);
    let staff = staff(&server).await?;
    let accounts = store::admin::accounts(&mut server.db.read().await?).await?;
    let mut users: Vec<Value> = accounts
        .iter()
        .filter(|account| account.kind != "appservice")
        .filter(|account| {
            let user_id = account.user_id.to_lowercase();
            // As in Synapse: a name is looked for in names and local parts, an id in whole ids; a name goes first.
            match (&name, &id) {
                (Some(name), _) => {
                    let local = user_id.split(':').next().unwrap_or_default().trim_start_matches('@');
                    let called = account.display_name.as_deref().unwrap_or_default().to_lowercase();
                    local.contains(name) || called.contains(name)
                }
                (None, Some(id)) => user_id.contains(id),
                (None, None) => true,
            }
        })
        .map(|account| view(&server, account, &staff))
        .filter(|user| {
            guests.is_none_or(|yes| yes || user["is_guest"] == false)
                && (user["deactivated"] == false || deactivated == Some(true))
                && (user["locked"] == false || locked == Some(true))
                && admins.is_none_or(|yes| user["admin"] == yes)
        })
        .collect();
    let text = |user: &Value, key: &str| user[key].as_str().unwrap_or_default().to_owned();
    match order.as_str() {
        "" | "name" => {}
        key @ ("displayname" | "avatar_url" | "user_type") => users.sort_by_key(|user| text(user, key)),
        key @ ("creation_ts" | "last_seen_ts") => users.sort_by_key(|user| user[key].as_i64()),
        key @ ("admin" | "deactivated" | "is_guest" | "locked" | "shadow_banned") => {
            users.sort_by_key(|user| user[key].as_bool())
        }
        _ => return Err(invalid("This order_by is not known.")),
    }
    if backwards {
        users.reverse();
    }
    let total = users.len();
    let (users, next) = page.cut(users);
    let mut answer = json!({"users": users, "total": total});
    if let Some(next) = next {
        answer["next_token"] = next.to_string().into();
    }
    Ok(answer.into())
}

#[derive(Deserialize)]
struct Put {
    password: Option<String>,
    #[serde(default = "yes")]
    logout_devices: bool,
    displayname: Option<String>,
    admin: Option<bool>,
    deactivated: Option<bool>,
    locked: Option<bool>,
}

fn yes() -> bool {
    true
}

/// `PUT /_synapse/admin/v2/users/{userId}`. In a city accounts, names and passwords are the register's and go by two
/// sheets (DESIGN 3): only ending and locking are left.
async fn put(server: Arc<Server>, call: Call) -> Result<Answer> {
    let user_id = user(&server, &call)?;
    let who = admitted(&server, &call, "user.put", user_id.as_str()).await?;
    let (_, body) = call.json::<Put>(&server).await?;
    let present = store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?;
    let open = server.config.policy.open_profile;
    if !open
        && (present.is_none()
            || body.password.is_some()
            || body.admin.is_some()
            || body.displayname.is_some())
    {
        return Err(forbidden(
            "Accounts, names and passwords are issued by the city, with two sheets: use the control room \
             (利用者ID・氏名・パスワードは管理室から手続きしてください).",
        ));
    }
    let made = present.is_none();
    if made {
        make(&server, &user_id, &body).await?;
    } else {
        if body.displayname.is_some() {
            return Err(forbidden("People set their names themselves."));
        }
        if let Some(password) = &body.password {
            set_password(&server, &who, &user_id, password, body.logout_devices).await?;
        }
    }
    if let Some(admin) = body.admin {
        if who.user_id == user_id && !admin {
            return Err(forbidden("Nobody gives up their own rights this way."));
        }
        let user_id = user_id.clone();
        server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move {
                    store::accounts::set_admin(batch.sql().await?, user_id.as_str(), admin).await
                })
            })
            .await?;
    }
    if let Some(locked) = body.locked {
        admin::set(&server, &who, user_id.clone(), Change::Locked(locked)).await?;
    }
    match body.deactivated {
        Some(true) => deactivate(&server, &who, user_id.clone()).await?,
        Some(false) if present.is_some_and(|account| account.status == "ended") => {
            return Err(forbidden("An account that has ended does not come back: ids are never used again."));
        }
        _ => {}
    }
    let view = one(&server, &user_id).await?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok(Answer::Response(reply::json(status, view.to_string())))
}

/// Makes an account of the open profile.
async fn make(server: &Arc<Server>, user_id: &OwnedUserId, body: &Put) -> Result<()> {
    if server.appservices.is_exclusive(user_id, None) || server.appservices.is_the_citys(user_id) {
        return Err(forbidden("This name is kept for an appservice."));
    }
    let hash = match &body.password {
        Some(password) => Some(server.passwords.hash(checked(password)?).await?),
        None => None,
    };
    let account = store::accounts::Account {
        user_id: user_id.to_string(),
        kind: "open".to_owned(),
        facility: None,
        name: String::new(),
        profession: String::new(),
        display_name: Some(body.displayname.clone().unwrap_or_else(|| user_id.localpart().to_owned())),
        password_own: hash.is_some(),
        password_hash: hash,
        status: "active".to_owned(),
    };
    if account.display_name.as_ref().is_some_and(|name| name.chars().count() > 100) {
        return Err(invalid("A name has at most 100 characters."));
    }
    let key = crate::accounts::register::search_key(&[user_id.localpart()]);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                store::accounts::insert_account(batch.sql().await?, &account, &key, now).await
            })
        })
        .await
}

fn checked(password: &str) -> Result<&str> {
    if password.is_empty() || password.len() > passwords::PASSWORD_BYTES_MAX {
        return Err(invalid("The password is empty or too long."));
    }
    Ok(password)
}

async fn set_password(
    server: &Arc<Server>,
    who: &Requester,
    user_id: &OwnedUserId,
    password: &str,
    logout: bool,
) -> Result<()> {
    let hash = server.passwords.hash(checked(password)?).await?;
    let mut entry = who.entry(server.now(), "password.set");
    entry.target = user_id.to_string();
    let (sessions, user_id) = (Arc::clone(&server.sessions), user_id.clone());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                store::accounts::set_password(batch.sql().await?, user_id.as_str(), &hash, true, now).await?;
                if logout {
                    sessions::end_all(batch, &sessions, &user_id, None).await?;
                }
                batch.audit(entry);
                Ok(())
            })
        })
        .await
}

/// `POST /_synapse/admin/v1/reset_password/{userId}`: in a city a password goes by two sheets and is chosen at enrolment
/// (DESIGN 3), so that nobody but its owner ever knows it.
async fn reset_password(server: Arc<Server>, call: Call) -> Result<Answer> {
    #[derive(Deserialize)]
    struct Body {
        new_password: String,
        #[serde(default = "yes")]
        logout_devices: bool,
    }
    let user_id = user(&server, &call)?;
    let who = admitted(&server, &call, "reset_password", user_id.as_str()).await?;
    let (_, body) = call.json::<Body>(&server).await?;
    if !server.config.policy.open_profile {
        return Err(forbidden(
            "A password is issued again with two sheets: use the control room (管理室で再発行してください).",
        ));
    }
    if store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?.is_none() {
        return Err(not_found("There is no such user."));
    }
    set_password(&server, &who, &user_id, &body.new_password, body.logout_devices).await?;
    Ok(json!({}).into())
}

async fn deactivate(server: &Arc<Server>, who: &Requester, user_id: OwnedUserId) -> Result<()> {
    moderation::subject(server, &mut server.db.read().await?, &user_id).await?;
    let (parts, acting) = (end::Parts::of(server), who.user_id.to_string());
    let rooms = server.live.joined_rooms(&user_id).into_iter().collect();
    server
        .commit(Hint { rooms, txn: None }, move |batch| {
            Box::pin(async move { end::account(batch, &parts, &user_id, "admin API", &acting).await })
        })
        .await?;
    Ok(())
}

async fn devices(server: &Server, user_id: &OwnedUserId) -> Result<Vec<Value>> {
    let mut conn = server.db.read().await?;
    let list = store::personal::devices(&mut conn, user_id.as_str()).await?;
    let dehydrated = store::keys::dehydrated_device(&mut conn, user_id.as_str()).await?.map(|(id, _)| id);
    Ok(list
        .into_iter()
        .map(|device| {
            json!({
                "user_id": user_id,
                "device_id": device.device_id,
                "display_name": device.display_name,
                "last_seen_ts": server.sessions.last_seen(user_id, &device.device_id).or(device.last_seen),
                "last_seen_ip": server.sessions.last_address(user_id, &device.device_id).map(|ip| ip.to_string()),
                "last_seen_user_agent": null,
                "dehydrated": dehydrated.as_deref() == Some(device.device_id.as_str()),
            })
        })
        .collect())
}

async fn end_devices(
    server: &Arc<Server>,
    who: &Requester,
    user_id: OwnedUserId,
    devices: Vec<String>,
) -> Result<Answer> {
    if store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?.is_none() {
        return Err(not_found("There is no such user."));
    }
    let mut entry = who.entry(server.now(), "device.delete");
    entry.target = user_id.to_string();
    let sessions = Arc::clone(&server.sessions);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                sessions::end_devices(batch, &sessions, &user_id, devices).await
            })
        })
        .await?;
    Ok(json!({}).into())
}

/// `GET /_synapse/admin/v1/users/{userId}/media`: what was uploaded, never a look at it.
async fn media(server: Arc<Server>, call: Call) -> Result<Answer> {
    let user_id = known(&server, &call, "media").await?;
    let page = Page::of(&call)?;
    let list = store::admin::media_of(&mut server.db.read().await?, user_id.as_str()).await?;
    let total = list.len();
    let (list, next) = page.cut(list);
    let media: Vec<Value> = list
        .into_iter()
        .map(|medium| {
            json!({
                "media_id": medium.media_id,
                "media_type": medium.content_type,
                "media_length": medium.bytes,
                "upload_name": medium.file_name,
                "created_ts": medium.created_at,
                "last_access_ts": null,
                "quarantined_by": null,
                "safe_from_quarantine": false,
            })
        })
        .collect();
    let mut answer = json!({"media": media, "total": total});
    if let Some(next) = next {
        answer["next_token"] = next.into();
    }
    Ok(answer.into())
}
