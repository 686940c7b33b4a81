//! What the server is and can do: `/versions`, `/capabilities`, and the small fixed answers.

use std::sync::Arc;

use ruma::api::client::discovery;
use serde_json::json;

use crate::{
    config::{Encryption, Registration},
    error::{Result, forbidden},
    http::{
        caller::{self, Peer, Requester},
        route::{Answer, Call, Routes},
    },
    server::Server,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<discovery::get_supported_versions::Request, Peer, _, _>(|server, _, _| async move {
            let mut features = json!({
                "org.matrix.msc4222": true,
                "org.matrix.simplified_msc3575": true,
                "org.matrix.msc3440.stable": true,
                "org.matrix.msc3771": true,
                "org.matrix.msc3773": true,
                "uk.tcpip.msc4133.stable": true,
                "org.matrix.msc3030": true,
                "org.matrix.msc3266": true,
                "org.matrix.msc3856": true,
                "org.matrix.msc4155": true,
                "org.matrix.msc4380": true,
                "org.matrix.msc4380.stable": true,
                "uk.half-shot.msc2666.query_mutual_rooms": true,
                "uk.half-shot.msc2666.query_mutual_rooms.stable": true,
            });
            if server.config.policy.encryption == Encryption::Allowed {
                // With encryption forbidden these two bring key screens back.
                features["org.matrix.e2e_cross_signing"] = true.into();
                features["org.matrix.msc3814"] = true.into();
            }
            Ok(json!({
                // matrix-js-sdk asks for one of v1.1 to v1.13; nothing is claimed that is not served.
                "versions": ["r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
                    "v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19"],
                "unstable_features": features,
            })
            .into())
        })
        .raw::<discovery::get_capabilities::v3::Request, Requester, _, _>(|server, who, _| async move {
            let open = server.config.policy.registration != Registration::Closed;
            let fields =
                if open { json!({"enabled": true}) } else { json!({"enabled": true, "allowed": ["avatar_url"]}) };
            let mut answer = json!({"capabilities": {
                "m.change_password": {"enabled": true},
                "m.room_versions": {"default": "12", "available": {"10": "stable", "11": "stable", "12": "stable"}},
                // A person's name and picture are the register's (H10); the open profile leaves them to people.
                "m.set_displayname": {"enabled": open},
                "m.set_avatar_url": {"enabled": true},
                "m.3pid_changes": {"enabled": true},
                "m.get_login_token": {"enabled": false},
                "m.profile_fields": fields,
            }});
            if super::admin::admin(&server, &who).await.is_ok() {
                answer["capabilities"]["m.account_moderation"] = json!({"suspend": true, "lock": true});
            }
            Ok(answer.into())
        })
        .at(http::Method::GET, "/_matrix/client/v3/rooms/{roomId}/initialSync", peek)
        .at(http::Method::GET, "/_matrix/client/v3/events", peek)
}

/// Looking into a room without being in it: nobody may, and Element goes on after exactly this refusal. Members read
/// by `/sync` and `/messages`.
async fn peek(server: Arc<Server>, call: Call) -> Result<Answer> {
    caller::requester(&server, &call.parts).await?;
    Err(forbidden("Rooms are read by their members, by syncing."))
}
