//! Numbers for whoever watches the server: on the internal listener, for local commands.

use http::Method;
use serde_json::json;

use super::city;
use crate::{accounts::terminals, http::route::Routes};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(Method::GET, "/_heya/v1/stats", |server, call| async move {
        city(&server, &call)?;
        let (position, now) = (server.live.position(), server.now());
        let appservices: Vec<_> = server
            .appservices
            .all()
            .iter()
            .map(|one| {
                let lag = *one.lag.lock();
                json!({
                    "id": one.id, "failures": lag.failures, "behind": (position - lag.position).max(0),
                    "under_way": lag.under_way, "age_ms": lag.oldest.map_or(0, |oldest| (now - oldest).max(0)),
                })
            })
            .collect();
        let client_crl = server.terminals.list().map(|list| {
            json!({
                "entries": list.len(), "overdue": list.is_overdue(terminals::at(now)),
                "this_update": list.this_update().unix_timestamp() * 1000,
            })
        });
        Ok(json!({
            "position": position,
            "committer_waiting": server.committer.waiting(),
            "password_hash_runs": server.passwords.runs(),
            "sessions": server.sessions.len(),
            "connections_with_certificate": server.terminals.connections.len(),
            "client_crl": client_crl,
            "appservices": appservices,
        })
        .into())
    })
}
