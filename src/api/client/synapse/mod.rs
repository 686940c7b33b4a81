//! Those of Synapse's admin endpoints that tools use daily (Synapse documentation, "Admin API"). Off in a city unless
//! `policy.admin_api` says otherwise: there the bot does this work, by words in the control room that colleagues see, and
//! with two sheets for each password. City staff only, with the certificate as everywhere; each use is in
//! the audit log before it is answered.

use std::sync::Arc;

use http::Method;
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::json;

use super::admin;
use crate::{
    error::{Code, Result, invalid, refuse},
    http::{
        caller::{self, Requester},
        route::{Call, Routes},
    },
    server::Server,
};

mod rooms;
mod users;

/// Entries on a page at most, and where the request says nothing.
const PAGE_MAX: usize = 500;
const PAGE_DEFAULT: usize = 100;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    let routes = routes.at(Method::GET, "/_synapse/admin/v1/server_version", |server, call| async move {
        admitted(&server, &call, "version", "").await?;
        Ok(json!({"server_version": format!("heya {}", env!("CARGO_PKG_VERSION"))}).into())
    });
    rooms::routes(users::routes(routes))
}

/// The administrator who calls; what they do is written down, with whom or what it is about.
async fn admitted(server: &Arc<Server>, call: &Call, what: &str, target: &str) -> Result<Requester> {
    let who = caller::requester(server, &call.parts).await?;
    if !server.config.policy.admin_api {
        return Err(refuse(Code::Unrecognized, "The admin API is switched off (policy.admin_api)."));
    }
    admin::admin(server, &who).await?;
    admin::record(server, &who, &format!("admin.{what}"), target).await?;
    Ok(who)
}

/// The user in a call's path.
fn user(server: &Server, call: &Call) -> Result<OwnedUserId> {
    OwnedUserId::try_from(call.arg(0))
        .ok()
        .filter(|user_id| server.is_local(user_id))
        .ok_or_else(|| invalid("The path has no user id of this server."))
}

/// The room in a call's path.
fn room(call: &Call) -> Result<OwnedRoomId> {
    OwnedRoomId::try_from(call.arg(0)).map_err(|_| invalid("The path has no room id."))
}

/// A page of a list: where it begins and how long it is at most.
struct Page {
    from: usize,
    limit: usize,
}

impl Page {
    fn of(call: &Call) -> Result<Self> {
        let number = |name: &str| -> Result<Option<usize>> {
            call.query(name)
                .filter(|text| !text.is_empty())
                .map(|text| text.parse().map_err(|_| invalid(format!("{name} is not a number."))))
                .transpose()
        };
        Ok(Self {
            from: number("from")?.unwrap_or(0),
            limit: number("limit")?.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX),
        })
    }

    /// The page's entries, and where the next one begins.
    fn cut<T>(&self, list: Vec<T>) -> (Vec<T>, Option<usize>) {
        let end = self.from.saturating_add(self.limit);
        let next = (list.len() > end).then_some(end);
        (list.into_iter().skip(self.from).take(self.limit).collect(), next)
    }
}

/// Whether a list is to be turned around (`dir`).
fn backwards(call: &Call) -> Result<bool> {
    match call.query("dir").as_deref() {
        None | Some("f" | "") => Ok(false),
        Some("b") => Ok(true),
        Some(_) => Err(invalid("dir is f or b.")),
    }
}

/// A flag of the query.
fn flag(call: &Call, name: &str) -> Result<Option<bool>> {
    match call.query(name).as_deref() {
        None | Some("") => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(invalid(format!("{name} is true or false."))),
    }
}
