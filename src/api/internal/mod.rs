//! `/_heya/v1`: what Matrix does not have, for the city bot, the mail bridge and local commands
//! (docs/internal-api.md). Each call that changes something has an idempotency key and the acting member of staff.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedUserId};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    accounts::register::is_city_staff,
    error::{Code, Result, forbidden, invalid, refuse},
    http::{
        caller::peer,
        route::{Answer, Call, Routes, bearer, shape},
    },
    rooms::{
        batch::Batch,
        committer::{Hint, UnitFuture},
    },
    server::Server,
    store,
};

mod accounts;
mod audit;
mod life;
mod mail;
mod reports;
mod rooms;
mod stats;
mod terminals;

/// The routes of the internal listener, beside the client-server API for appservices.
pub fn routes(routes: Routes) -> Routes {
    let mut routes = routes;
    for add in [
        audit::routes,
        accounts::routes,
        rooms::routes,
        life::routes,
        terminals::routes,
        mail::routes,
        reports::routes,
        stats::routes,
    ] {
        routes = add(routes);
    }
    routes
}

/// The city bot, or a local command: whoever has the token. Others are refused alike.
fn city(server: &Server, call: &Call) -> Result<()> {
    peer(&call.parts)?;
    let token = bearer(&call.parts.headers)
        .ok_or_else(|| refuse(Code::MissingToken, "A token is needed in the Authorization header."))?;
    let bot = server.appservices.of_token(token).is_some_and(|one| one.sender == server.city_user);
    if bot || same(token, &server.command_token) {
        return Ok(());
    }
    Err(refuse(Code::UnknownToken { soft_logout: false }, "This token is not the city's."))
}

/// Compares secrets by their hashes, so that the time taken tells nothing.
fn same(a: &str, b: &str) -> bool {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(a.as_bytes()) == Sha256::digest(b.as_bytes())
}

/// A call that changes something: reads body and key, checks who acts, and runs the unit once for the key.
async fn once<B, T, F>(
    server: Arc<Server>,
    call: Call,
    hint: impl FnOnce(&B) -> Hint,
    unit: F,
) -> Result<Answer>
where
    B: DeserializeOwned + Send + 'static,
    T: Serialize + Send + 'static,
    F: for<'b> FnOnce(&'b mut Batch, B, String) -> UnitFuture<'b, T> + Send + 'static,
{
    once_for(server, call, None, hint, unit).await
}

/// As [`once`]; with `own`, it is this account's own business, and only the account itself may be the one who acts.
async fn once_for<B, T, F>(
    server: Arc<Server>,
    call: Call,
    own: Option<OwnedUserId>,
    hint: impl FnOnce(&B) -> Hint,
    unit: F,
) -> Result<Answer>
where
    B: DeserializeOwned + Send + 'static,
    T: Serialize + Send + 'static,
    F: for<'b> FnOnce(&'b mut Batch, B, String) -> UnitFuture<'b, T> + Send + 'static,
{
    city(&server, &call)?;
    let key = call
        .parts
        .headers
        .get("idempotency-key")
        .and_then(|key| key.to_str().ok())
        .filter(|key| !key.is_empty() && key.len() <= 128)
        .ok_or_else(|| {
            refuse(Code::MissingParam, "A header Idempotency-Key of at most 128 characters is needed.")
        })?
        .to_owned();
    let because = because(&call)?;
    // The key belongs to this very path and body.
    let path = call.parts.uri.path().to_owned();
    let (_, body) = call.json::<Value>(&server).await?;
    // What is forgotten beside a purged room is taken from each call that comes: it may grow until the purge is done.
    let mut asked = body.clone();
    if let Some(fields) = asked.as_object_mut() {
        fields.remove("forget");
    }
    let asked = crate::accounts::sessions::hash_of(&asked.to_string());
    let acting = body["acting"].as_str().unwrap_or_default().to_owned();
    let body: B = serde_json::from_value(body).map_err(|error| {
        refuse(Code::BadJson, format!("The JSON is not what this call takes: {}.", shape(&error)))
    })?;
    let hint = hint(&body);
    let key = format!("{path} {key}");
    let text = server
        .commit(hint, move |batch| {
            Box::pin(async move {
                if let Some(kept) = store::meta::idempotent_answer(batch.reading(), &key).await? {
                    return match kept.split_once('\n') {
                        Some((of, answer)) if of == asked => Ok(answer.to_owned()),
                        _ => Err(refuse(Code::Exists, "This Idempotency-Key was used for another request.")),
                    };
                }
                match &own {
                    Some(own) if own.as_str() == acting => {}
                    Some(_) => {
                        return Err(forbidden("This is the account's own business: acting must be it."));
                    }
                    None if acting == "command" || is_city_staff(batch.reading(), &acting).await? => {}
                    None => return Err(forbidden("acting must be an active member of the city's staff.")),
                }
                if let Some(event_id) = because {
                    let event = batch.event(&event_id).await?.filter(|event| event.sender == acting);
                    let event =
                        event.ok_or_else(|| forbidden("Because must name an event that acting has sent."))?;
                    let origin = crate::rooms::send::origin_of(batch, &event).await?;
                    batch.acting_from(origin);
                }
                let answer = serde_json::to_string(&unit(batch, body, acting).await?)?;
                let now = batch.now;
                let kept = format!("{asked}\n{answer}");
                store::meta::keep_answer(batch.sql().await?, &key, &kept, now).await?;
                Ok(answer)
            })
        })
        .await?;
    Ok(Answer::Json(text))
}

/// The event by which whoever acts said so: what they do is logged with the place it was sent from.
fn because(call: &Call) -> Result<Option<OwnedEventId>> {
    let Some(value) = call.parts.headers.get("because") else { return Ok(None) };
    value
        .to_str()
        .ok()
        .filter(|id| id.len() <= crate::rooms::send::ID_BYTES_MAX)
        .and_then(|id| crate::rooms::send::event_id(id).ok())
        .map(Some)
        .ok_or_else(|| invalid("Because is no event id."))
}

/// The room of a call, and the city that changes it.
struct Place {
    room_id: ruma::OwnedRoomId,
    city: OwnedUserId,
}

/// The room id in a call's path.
fn room(call: &Call) -> Result<ruma::OwnedRoomId> {
    ruma::OwnedRoomId::try_from(call.arg(0)).map_err(|_| invalid("The path has no room id."))
}

/// A call that changes the room in its path: [`once`], with that room.
async fn on_room<B, T, F>(server: Arc<Server>, call: Call, unit: F) -> Result<Answer>
where
    B: DeserializeOwned + Send + 'static,
    T: Serialize + Send + 'static,
    F: for<'b> FnOnce(&'b mut Batch, Place, B, String) -> UnitFuture<'b, T> + Send + 'static,
{
    let place = Place { room_id: room(&call)?, city: server.city_user.clone() };
    let hint = Hint { rooms: vec![place.room_id.clone()], txn: None };
    once(server, call, |_: &B| hint, move |batch, body, acting| unit(batch, place, body, acting)).await
}

/// User ids of a list, at most 300.
fn users(list: &[String]) -> Result<Vec<OwnedUserId>> {
    if list.len() > 300 {
        return Err(invalid("At most 300 people at once."));
    }
    list.iter()
        .map(|id| OwnedUserId::try_from(id.as_str()).map_err(|_| invalid("A member is no user id.")))
        .collect()
}
