//! Discovery: open to everybody, without a certificate.

use std::sync::Arc;

use serde_json::json;

use crate::{
    config::Encryption,
    error::Result,
    http::route::{Answer, Call, Routes},
    server::Server,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(http::Method::GET, "/.well-known/matrix/client", client)
        // Nobody's rooms ask this server whether their events may pass (v1.18, "Policy servers").
        .at(http::Method::GET, "/.well-known/matrix/policy_server", |_, _| async {
            Err(crate::error::not_found("This is no policy server."))
        })
        .at(http::Method::GET, "/.well-known/matrix/support", |server, _| async move {
            Ok(json!({"contacts": [{"role": "m.role.admin", "matrix_id": server.city_user}]}).into())
        })
        .at(http::Method::GET, "/_heya/health", health)
}

async fn client(server: Arc<Server>, _: Call) -> Result<Answer> {
    let mut answer =
        json!({"m.homeserver": {"base_url": server.config.server.public_url.trim_end_matches('/')}});
    if server.config.policy.encryption == Encryption::Forbidden {
        // Keeps Element from asking people to set up or confirm keys.
        answer["io.element.e2ee"] =
            json!({"default": false, "force_disable": true, "secure_backup_required": false});
    }
    if server.config.policy.oauth {
        // Clients from before v1.15 look for the OAuth 2.0 API here.
        let base = crate::accounts::oauth::base(&server);
        answer["org.matrix.msc2965.authentication"] = json!({
            "issuer": crate::accounts::oauth::issuer(&server), "account": format!("{base}/account"),
        });
    }
    Ok(answer.into())
}

async fn health(server: Arc<Server>, _: Call) -> Result<Answer> {
    let mut answer =
        json!({"status": "ok", "position": server.live.position(), "waiting": server.committer.waiting()});
    if server.config.policy.open_profile {
        answer["warning"] =
            "OPEN PROFILE: anybody may register and no certificate is asked for. For tests only.".into();
    }
    Ok(answer.into())
}
