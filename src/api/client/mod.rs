//! The client-server API.

use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use serde_json::value::RawValue;

use crate::{
    error::{Code, Result, refuse},
    http::route::Routes,
};

mod account;
mod admin;
mod appservice;
mod dehydrated;
mod devices;
mod directory;
mod keys;
mod login;
mod media;
mod openid;
mod profile;
mod push;
mod register;
mod reports;
mod room_keys;
mod rooms;
mod search;
mod synapse;
mod sync;
mod thirdparty;
mod uia;
mod user;
mod versions;
mod voip;

/// All of its routes.
pub fn routes() -> Routes {
    let mut routes = Routes::default();
    for add in [
        versions::routes,
        voip::routes,
        login::routes,
        register::routes,
        account::routes,
        admin::routes,
        devices::routes,
        profile::routes,
        rooms::routes,
        sync::routes,
        user::routes,
        keys::routes,
        room_keys::routes,
        dehydrated::routes,
        directory::routes,
        media::routes,
        push::routes,
        search::routes,
        reports::routes,
        appservice::routes,
        thirdparty::routes,
        synapse::routes,
        openid::routes,
    ] {
        routes = add(routes);
    }
    routes
}

/// Event content as canonical JSON: an object without fractional numbers.
fn content_of(raw: &RawValue) -> Result<CanonicalJsonObject> {
    match serde_json::from_str::<CanonicalJsonValue>(raw.get()) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        Ok(_) => Err(refuse(Code::BadJson, "The content must be a JSON object.")),
        Err(_) => Err(refuse(
            Code::BadJson,
            "The content has a fractional number, or one beyond 2^53: events cannot hold those.",
        )),
    }
}
