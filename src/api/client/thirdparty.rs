//! `/thirdparty/…`: what appservices know of other networks. Heya passes the question on and adds the answers up.

use std::sync::Arc;

use http::Method;
use ruma::{RoomAliasId, UserId, api::client::thirdparty::get_protocols};
use serde_json::{Map, Value};

use crate::{
    error::{Code, Result, invalid, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes, form},
    },
    server::Server,
};

/// Fields of one question.
const FIELDS_MAX: usize = 20;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<get_protocols::v3::Request, Requester, _, _>(|server, _, _| async move {
            let mut all = Map::new();
            for protocol in server.appservices.protocols() {
                if let Some(told) = server.appservices.protocol(protocol).await {
                    all.insert(protocol.to_owned(), told);
                }
            }
            Ok(Value::Object(all).into())
        })
        .at(
            Method::GET,
            "/_matrix/client/v3/thirdparty/protocol/{protocol}",
            |server: Arc<Server>, call: Call| async move {
                caller::requester(&server, &call.parts).await?;
                let told = server.appservices.protocol(call.arg(0)).await;
                told.map(Into::into).ok_or_else(|| not_found("No such protocol."))
            },
        )
        .at(Method::GET, "/_matrix/client/v3/thirdparty/user/{protocol}", |server, call| {
            lookup(server, call, "user")
        })
        .at(Method::GET, "/_matrix/client/v3/thirdparty/location/{protocol}", |server, call| {
            lookup(server, call, "location")
        })
        .at(Method::GET, "/_matrix/client/v3/thirdparty/user", |server: Arc<Server>, call: Call| async move {
            caller::requester(&server, &call.parts).await?;
            let given = call.query("userid").ok_or_else(|| missing("userid"))?;
            let user_id =
                <&UserId>::try_from(given.as_str()).map_err(|_| invalid("userid is no user id."))?;
            some(server.appservices.lookup_user(user_id).await)
        })
        .at(
            Method::GET,
            "/_matrix/client/v3/thirdparty/location",
            |server: Arc<Server>, call: Call| async move {
                caller::requester(&server, &call.parts).await?;
                let given = call.query("alias").ok_or_else(|| missing("alias"))?;
                let alias = <&RoomAliasId>::try_from(given.as_str())
                    .map_err(|_| invalid("alias is no room alias."))?;
                some(server.appservices.lookup_alias(alias).await)
            },
        )
}

fn missing(name: &str) -> crate::error::Error {
    refuse(Code::MissingParam, format!("The query has no {name}."))
}

fn some(rows: Vec<Value>) -> Result<Answer> {
    if rows.is_empty() { Err(not_found("Nothing is known of it.")) } else { Ok(Value::Array(rows).into()) }
}

async fn lookup(server: Arc<Server>, call: Call, kind: &'static str) -> Result<Answer> {
    caller::requester(&server, &call.parts).await?;
    let mut fields = form(call.parts.uri.query().unwrap_or_default());
    // What the caller says to us is not the other network's.
    fields.retain(|(name, _)| !matches!(name.as_str(), "access_token" | "user_id" | "device_id"));
    if fields.len() > FIELDS_MAX {
        return Err(invalid(format!("At most {FIELDS_MAX} fields.")));
    }
    let rows = server.appservices.lookup(kind, call.arg(0), &fields).await;
    some(rows.ok_or_else(|| not_found("No such protocol."))?)
}
