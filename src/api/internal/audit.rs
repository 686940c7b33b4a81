//! Reading the audit log is itself logged (C24), and so are reading what was edited or redacted in a room (C26) and writing
//! out a register (C21).

use http::Method;
use serde::Deserialize;
use serde_json::json;

use super::{life::REASON_CHARS_MAX, once};
use crate::{
    audit::Entry,
    error::{Code, Result, invalid, refuse},
    http::route::Routes,
    rooms::{batch::Batch, committer::Hint, life::record},
    store,
};

#[derive(Deserialize)]
struct Read {
    room: Option<i64>,
}

#[derive(Deserialize)]
struct Register {
    register: String,
}

#[derive(Deserialize)]
struct Originals {
    room: i64,
    #[serde(default)]
    reason: String,
}

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    let routes = routes.at(Method::POST, "/_heya/v1/audit/originals", |server, call| {
        once(
            server,
            call,
            |_: &Originals| Hint::default(),
            |batch, body, acting| Box::pin(async move { originals(batch, &body, &acting).await }),
        )
    });
    let routes = routes.at(Method::POST, "/_heya/v1/audit/register", |server, call| {
        once(
            server,
            call,
            |_: &Register| Hint::default(),
            |batch, body, acting| {
                Box::pin(async move {
                    const REGISTERS: [&str; 6] =
                        ["facilities", "accounts", "terminals", "rooms", "members", "cases"];
                    if !REGISTERS.contains(&body.register.as_str()) {
                        return Err(invalid(format!("register is one of {}.", REGISTERS.join(", "))));
                    }
                    let at = batch.now;
                    batch.audit(Entry {
                        at,
                        actor: acting,
                        action: "register.export".to_owned(),
                        target: body.register,
                        result: "ok".to_owned(),
                        ..Entry::default()
                    });
                    Ok(json!({}))
                })
            },
        )
    });
    routes.at(Method::POST, "/_heya/v1/audit/read", |server, call| {
        once(
            server,
            call,
            |_: &Read| Hint::default(),
            |batch, body, acting| {
                Box::pin(async move {
                    let at = batch.now;
                    batch.audit(Entry {
                        at,
                        actor: acting,
                        action: "audit.read".to_owned(),
                        target: body.room.map(|number| format!("room {number}")).unwrap_or_default(),
                        result: "ok".to_owned(),
                        ..Entry::default()
                    });
                    Ok(json!({}))
                })
            },
        )
    })
}

/// Says in the log that somebody reads what was edited or redacted in a room, and why, before they see it.
async fn originals(batch: &mut Batch, body: &Originals, acting: &str) -> Result<serde_json::Value> {
    let reason = body.reason.trim();
    if reason.is_empty() {
        return Err(refuse(Code::MissingParam, "A reason is needed (理由が必要です)."));
    }
    if reason.chars().count() > REASON_CHARS_MAX {
        return Err(invalid("A reason has at most 500 characters (理由は500字までです)."));
    }
    let room = store::rooms::by_number(batch.sql().await?, body.room).await?.ok_or_else(|| {
        refuse(
            Code::NotFound,
            format!("There is no room number {0} (部屋番号{0}の部屋はありません).", body.room),
        )
    })?;
    record(batch, acting, "originals.read", &room.room_id, "", reason);
    Ok(json!({"room_id": room.room_id}))
}
