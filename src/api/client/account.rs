//! `/account/…`: password, addresses, deactivation.

use std::sync::Arc;

use ruma::{
    api::client::account::{
        add_3pid, change_password::v3 as change, deactivate, delete_3pid, get_3pids::v3 as addresses_of,
        request_3pid_management_token_via_email as request_token,
    },
    thirdparty::Medium,
};
use serde_json::json;

use super::uia;
use crate::{
    accounts::{addresses, end, enrol, passwords, sessions},
    error::{Result, forbidden, invalid},
    http::{
        caller::{Peer, Requester, terminal},
        route::Routes,
    },
    rooms::committer::Hint,
    server::Server,
    store,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<change::Request, Requester, _, _>(change_password)
        .raw::<deactivate::v3::Request, Requester, _, _>(deactivated)
        .raw::<addresses_of::Request, Requester, _, _>(|server, who, _| async move {
            let list = store::accounts::addresses(&mut server.db.read().await?, who.user_id.as_str()).await?;
            let list: Vec<_> = list
                .into_iter()
                .map(|(address, validated_at, added_at)| {
                    json!({"medium": "email", "address": address, "validated_at": validated_at, "added_at": added_at})
                })
                .collect();
            Ok(json!({"threepids": list}).into())
        })
        .raw::<request_token::v3::Request, Peer, _, _>(|server, peer, request| async move {
            terminal(&server, &peer)?;
            server.limiter.allow_before_login(peer.address.ip(), server.now())?;
            let attempt = i64::from(request.send_attempt);
            let secret = request.client_secret.to_string();
            let sid = addresses::request_check(&server, &request.email, secret, attempt).await?;
            Ok(json!({"sid": sid}).into())
        })
        .raw::<add_3pid::v3::Request, Requester, _, _>(|server, who, request| async move {
            uia::password(&server, &who, request.auth, "add address").await?;
            addresses::add(&server, &who.user_id, request.sid.as_str(), request.client_secret.as_str()).await?;
            Ok(json!({}).into())
        })
        .raw::<delete_3pid::v3::Request, Requester, _, _>(|server, who, request| async move {
            if !matches!(request.medium, Medium::Email | Medium::Msisdn) {
                return Err(invalid("medium is \"email\" or \"msisdn\"."));
            }
            let (user_id, pushers) = (who.user_id.clone(), server.pushers.clone());
            server
                .commit(Hint::default(), move |batch| {
                    Box::pin(async move {
                        let conn = batch.sql().await?;
                        store::accounts::remove_address(conn, user_id.as_str(), &request.address).await?;
                        let left = store::push::pushers(conn, user_id.as_str()).await?;
                        batch.after_commit(move || pushers.replace(&user_id, left));
                        Ok(())
                    })
                })
                .await?;
            Ok(json!({"id_server_unbind_result": "no-support"}).into())
        })
}

async fn change_password(
    server: Arc<Server>,
    who: Requester,
    request: change::Request,
) -> Result<crate::http::route::Answer> {
    uia::password(&server, &who, request.auth, "change password").await?;
    let account = store::accounts::account(&mut server.db.read().await?, who.user_id.as_str())
        .await?
        .ok_or_else(|| forbidden("This account has no password."))?;
    if server.config.policy.open_profile {
        if request.new_password.len() > passwords::PASSWORD_BYTES_MAX {
            return Err(invalid("The password is too long."));
        }
    } else {
        let facility = match account.facility {
            Some(facility) => store::accounts::facility(&mut server.db.read().await?, facility).await?,
            None => None,
        };
        let facility = facility.map(|facility| facility.name).unwrap_or_default();
        let names = [account.name.as_str(), who.user_id.localpart(), facility.as_str()];
        passwords::check_rules(&request.new_password, server.config.policy.password_length_min, &names)?;
        enrol::check_not_used_before(&server, who.user_id.as_str(), &request.new_password).await?;
    }
    let hash = server.passwords.hash(&request.new_password).await?;
    let sessions = Arc::clone(&server.sessions);
    let entry = who.entry(server.now(), "password.change");
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                store::accounts::set_password(batch.sql().await?, who.user_id.as_str(), &hash, true, now)
                    .await?;
                if request.logout_devices {
                    sessions::end_all(batch, &sessions, &who.user_id, who.device_id.as_deref()).await?;
                }
                batch.audit(entry);
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

/// Closing one's own account is the city's to do (form 3); the open profile leaves it to people.
async fn deactivated(
    server: Arc<Server>,
    who: Requester,
    request: deactivate::v3::Request,
) -> Result<crate::http::route::Answer> {
    if !server.config.policy.open_profile {
        return Err(forbidden(
            "Use of an ID is ended by the city: please ask the city desk (利用の停止は市に届け出てください).",
        ));
    }
    uia::password(&server, &who, request.auth, "deactivate").await?;
    let parts = end::Parts::of(&server);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                end::account(batch, &parts, &who.user_id, "by the user", who.user_id.as_str()).await
            })
        })
        .await?;
    Ok(json!({"id_server_unbind_result": "no-support"}).into())
}
