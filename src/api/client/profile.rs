//! `/profile/{userId}`: seen by people who share a room or are the user.

use std::sync::Arc;

use http::Method;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use crate::{
    config::Registration,
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    rooms::{append::Intent, committer::Hint, member},
    server::Server,
    store::{self, Conn, personal::Profile},
};

/// The longest display name, in characters, and avatar URI, in bytes.
const NAME_MAX: usize = 256;
const URI_MAX: usize = 1_000;
/// The longest key of a field and name of a time zone, and the whole profile, in bytes (client-server API,
/// `PUT /profile/{userId}/{keyName}`).
const KEY_MAX: usize = 255;
const ZONE_MAX: usize = 255;
const PROFILE_BYTES_MAX: usize = 65_536;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/_matrix/client/v3/profile/{userId}", |server, call| async move {
            let profile = read(&server, &call).await?;
            Ok(Value::Object(profile).into())
        })
        .at(Method::GET, "/_matrix/client/v3/profile/{userId}/{keyName}", |server, call| async move {
            let mut profile = read(&server, &call).await?;
            let value = profile.remove(call.arg(1)).ok_or_else(|| not_found("No such profile field."))?;
            Ok(json!({call.arg(1): value}).into())
        })
        .at(Method::PUT, "/_matrix/client/v3/profile/{userId}/{keyName}", |server, call| async move {
            let who = own(&server, &call).await?;
            let key = call.arg(1).to_owned();
            let (_, mut body) = call.json::<Map<String, Value>>(&server).await?;
            let field = field(&key)?;
            may_set(&server, &who, field)?;
            let value = body
                .remove(&key)
                .ok_or_else(|| refuse(Code::MissingParam, format!("The body has no {key}.")))?;
            match field {
                Field::Name | Field::Avatar => {
                    let value = match value {
                        Value::String(text) => Some(text),
                        Value::Null => None,
                        _ => return Err(invalid("A profile field of this kind is a string.")),
                    };
                    set(&server, who, field, value).await
                }
                Field::Zone if !value.as_str().is_some_and(|zone| (1..=ZONE_MAX).contains(&zone.len())) => {
                    Err(invalid("m.tz is the name of a time zone, such as Asia/Tokyo."))
                }
                Field::Zone | Field::Custom => set_further(&server, who, key, Some(value)).await,
            }
        })
        .at(Method::DELETE, "/_matrix/client/v3/profile/{userId}/{keyName}", |server, call| async move {
            let who = own(&server, &call).await?;
            let key = call.arg(1).to_owned();
            let field = field(&key)?;
            may_set(&server, &who, field)?;
            match field {
                Field::Name | Field::Avatar => set(&server, who, field, None).await,
                Field::Zone | Field::Custom => set_further(&server, who, key, None).await,
            }
        })
}

async fn read(server: &Arc<Server>, call: &Call) -> Result<Map<String, Value>> {
    // The specification asks for no token here; in a city nobody is told anything without one.
    let who = caller::requester(server, &call.parts).await?;
    let user_id = <&UserId>::try_from(call.arg(0)).map_err(|_| invalid("That is no user id."))?;
    let unknown = || not_found("There is no profile to see.");
    let related = who.appservice.is_some()
        || server.config.policy.open_profile
        || user_id == server.city_user
        || server.live.share_a_room(&who.user_id, user_id);
    if !related {
        return Err(unknown());
    }
    let mut profile = whole(&mut server.db.read().await?, user_id.as_str()).await?;
    if profile.is_none() && server.appservices.ask_user(user_id).await {
        profile = whole(&mut server.db.read().await?, user_id.as_str()).await?;
    }
    profile.ok_or_else(unknown)
}

async fn own(server: &Arc<Server>, call: &Call) -> Result<Requester> {
    let who = caller::requester(server, &call.parts).await?;
    let user_id = OwnedUserId::try_from(call.arg(0)).map_err(|_| invalid("That is no user id."))?;
    if user_id != who.user_id {
        return Err(forbidden("A profile is changed by its owner."));
    }
    Ok(who)
}

/// What a profile is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    /// `displayname`.
    Name,
    /// `avatar_url`.
    Avatar,
    /// `m.tz`.
    Zone,
    /// Any other, by the Common Namespaced Identifier Grammar.
    Custom,
}

fn field(key: &str) -> Result<Field> {
    if key.len() > KEY_MAX {
        return Err(refuse(Code::KeyTooLarge, "The key of a profile field has at most 255 bytes."));
    }
    match key {
        "displayname" => return Ok(Field::Name),
        "avatar_url" => return Ok(Field::Avatar),
        "m.tz" => return Ok(Field::Zone),
        _ => {}
    }
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase())
            && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    };
    if key.contains('.') && key.split('.').all(part) {
        Ok(Field::Custom)
    } else {
        Err(invalid("A profile field of one's own is named like jp.example.field."))
    }
}

/// In a city a person's profile is the register's but for the picture (H10).
fn may_set(server: &Server, who: &Requester, field: Field) -> Result<()> {
    let free = server.config.policy.registration != Registration::Closed || who.appservice.is_some();
    match field {
        _ if free => Ok(()),
        Field::Avatar => Ok(()),
        Field::Name => Err(forbidden("Names are kept in the city's register (表示名は市の登録によります).")),
        Field::Zone | Field::Custom => {
            Err(forbidden("A profile has what is in the city's register, and a picture."))
        }
    }
}

/// Sets a field that no member event repeats, or takes it out.
async fn set_further(
    server: &Arc<Server>,
    who: Requester,
    key: String,
    value: Option<Value>,
) -> Result<Answer> {
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let user_id = who.user_id.as_str();
                let Some(value) = value else {
                    return store::personal::delete_profile_field(batch.sql().await?, user_id, &key).await;
                };
                let conn = batch.sql().await?;
                store::personal::set_profile_field(conn, user_id, &key, &value.to_string()).await?;
                check_size(conn, user_id).await
            })
        })
        .await?;
    Ok(json!({}).into())
}

/// Refuses what has made a profile too large.
async fn check_size(conn: &mut Conn, user_id: &str) -> Result<()> {
    let profile = whole(conn, user_id).await?.ok_or_else(|| not_found("This account has no profile."))?;
    if Value::Object(profile).to_string().len() >= PROFILE_BYTES_MAX {
        return Err(refuse(Code::ProfileTooLarge, "A profile is smaller than 64 KiB."));
    }
    Ok(())
}

/// A profile with all of its fields; none where there is no such account.
async fn whole(conn: &mut Conn, user_id: &str) -> Result<Option<Map<String, Value>>> {
    let Some(profile) = store::personal::profile(conn, user_id).await? else { return Ok(None) };
    let mut all = Map::new();
    for (key, value) in store::personal::profile_fields(conn, user_id).await? {
        all.insert(key, serde_json::from_str(&value)?);
    }
    if let Some(name) = profile.display_name {
        all.insert("displayname".to_owned(), name.into());
    }
    if let Some(url) = profile.avatar_url {
        all.insert("avatar_url".to_owned(), url.into());
    }
    Ok(Some(all))
}

/// Sets the display name or the avatar, here and in the user's rooms.
async fn set(server: &Arc<Server>, who: Requester, field: Field, value: Option<String>) -> Result<Answer> {
    if let Some(value) = &value {
        if field == Field::Name && value.chars().count() > NAME_MAX {
            return Err(invalid(format!("A display name has at most {NAME_MAX} characters.")));
        }
        let uri = value.is_empty() || value.starts_with("mxc://") && value.len() <= URI_MAX;
        if field == Field::Avatar && !uri {
            return Err(invalid("An avatar is an mxc:// URI."));
        }
    }
    if server.config.policy.rate_limits && who.appservice.is_none() {
        server.limiter.allow_profile(&who.user_id, server.now())?;
    }
    let rooms: Vec<_> = server.live.joined_rooms(&who.user_id).into_iter().collect();
    let server_name = server.name.clone();
    server
        .commit(Hint { rooms: rooms.clone(), txn: None }, move |batch| {
            Box::pin(async move {
                let user_id = &*who.user_id;
                let mut profile = store::personal::profile(batch.reading(), user_id.as_str())
                    .await?
                    .ok_or_else(|| not_found("This account has no profile."))?;
                let value = value.filter(|value| !value.is_empty());
                if field == Field::Name {
                    profile.display_name = value;
                } else {
                    let former = std::mem::replace(&mut profile.avatar_url, value);
                    if former != profile.avatar_url {
                        unlink_avatar(batch, &server_name, former).await?;
                    }
                    link_avatar(batch, &server_name, user_id, &profile).await?;
                }
                let conn = batch.sql().await?;
                store::personal::set_profile(conn, user_id.as_str(), &profile).await?;
                check_size(conn, user_id.as_str()).await?;
                for room_id in rooms {
                    let content = member::content("join", &profile, None);
                    let intent =
                        Intent::state(&room_id, user_id, "m.room.member", user_id.as_str(), content)?;
                    // A closed room keeps the old name.
                    if batch.room(&room_id).await?.row.status == "open" {
                        batch.append(intent).await?;
                    }
                }
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

/// A picture that is taken away is nobody's any more, but where rooms show it.
async fn unlink_avatar(
    batch: &mut crate::rooms::batch::Batch,
    server_name: &ruma::ServerName,
    former: Option<String>,
) -> Result<()> {
    let Some(url) = former else { return Ok(()) };
    for media_id in crate::media::links::media_ids(&Value::String(url), server_name) {
        store::media::unlink_picture(batch.sql().await?, &media_id).await?;
    }
    Ok(())
}

async fn link_avatar(
    batch: &mut crate::rooms::batch::Batch,
    server_name: &ruma::ServerName,
    user_id: &UserId,
    profile: &Profile,
) -> Result<()> {
    let Some(url) = &profile.avatar_url else { return Ok(()) };
    for media_id in crate::media::links::media_ids(&Value::String(url.clone()), server_name) {
        let medium = store::media::medium(batch.reading(), &media_id).await?;
        let Some(medium) = medium.filter(|medium| medium.user_id == user_id.as_str()) else { continue };
        if batch.may_show(user_id, &medium, false).await? {
            batch.link_media(&media_id, "", "");
        }
    }
    Ok(())
}
