//! Reading the audit log is itself logged (C24).

use http::Method;
use serde::Deserialize;
use serde_json::json;

use super::once;
use crate::{audit::Entry, http::route::Routes, rooms::committer::Hint};

#[derive(Deserialize)]
struct Read {
    room: Option<i64>,
}

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
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
