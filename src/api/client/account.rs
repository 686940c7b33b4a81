//! `/account/…`: password, addresses, deactivation.

use std::sync::Arc;

use http::Method;
use ruma::{
    api::client::{
        account::{
            add_3pid, change_password::v3 as change, deactivate, delete_3pid, get_3pids::v3 as addresses_of,
            request_3pid_management_token_via_email as request_token,
            request_password_change_token_via_email as request_reset,
        },
        uiaa::AuthData,
    },
    thirdparty::Medium,
};
use serde_json::json;

use super::uia;
use crate::{
    accounts::{
        addresses::{self, Purpose},
        end, enrol, passwords, sessions,
    },
    audit,
    error::{Code, Error, Result, forbidden, invalid, refuse},
    http::{
        caller::{self, Asker, Peer, Requester, terminal},
        route::{Call, Routes},
    },
    rooms::committer::Hint,
    server::Server,
    store,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<change::Request, Asker, _, _>(change_password)
        .raw::<request_reset::v3::Request, Peer, _, _>(request_reset)
        .at(Method::POST, "/_matrix/client/v3/account/password/msisdn/requestToken", denies)
        .at(Method::POST, "/_matrix/client/v3/account/3pid/msisdn/requestToken", denies)
        .at(Method::POST, "/_matrix/client/v3/register/email/requestToken", denies)
        .at(Method::POST, "/_matrix/client/v3/register/msisdn/requestToken", denies)
        .at(Method::POST, "/_matrix/client/v3/account/3pid", |server, call| async move {
            // As specified it asks an identity server, and none is asked: `/account/3pid/add` does it here.
            caller::requester(&server, &call.parts).await?;
            Err(refuse(Code::ThreepidUnconfirmed, "No identity server is asked: use /account/3pid/add."))
        })
        .at(Method::POST, "/_matrix/client/v3/account/3pid/bind", |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            Err(refuse(Code::ServerNotTrusted, "No identity server is used here."))
        })
        .at(Method::POST, "/_matrix/client/v3/account/3pid/unbind", |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            let (_, asked) = call.json::<Unbind>(&server).await?;
            if !["email", "msisdn"].contains(&asked.medium.as_str()) {
                return Err(invalid("medium is \"email\" or \"msisdn\"."));
            }
            // Nothing is ever bound: there is no identity server to ask.
            Ok(json!({"id_server_unbind_result": "no-support"}).into())
        })
        .raw::<deactivate::v3::Request, Requester, _, _>(deactivated)
        .raw::<addresses_of::Request, Requester, _, _>(|server, who, _| async move {
            let list = store::addresses::addresses(&mut server.db.read().await?, who.user_id.as_str()).await?;
            let list: Vec<_> = list
                .into_iter()
                .map(|(address, validated_at, added_at)| {
                    json!({"medium": "email", "address": address, "validated_at": validated_at, "added_at": added_at})
                })
                .collect();
            Ok(json!({"threepids": list}).into())
        })
        .raw::<request_token::v3::Request, Peer, _, _>(|server, peer, request| async move {
            let known = terminal(&server, &peer)?.map(|known| known.terminal);
            server.limiter.allow_before_login(peer.address.ip(), server.now())?;
            if server.config.policy.rate_limits {
                server.limiter.allow_address_check(known, peer.address.ip(), server.now())?;
            }
            let attempt = i64::from(request.send_attempt);
            let secret = request.client_secret.to_string();
            let sid = addresses::request_check(&server, &request.email, secret, attempt, Purpose::Add).await?;
            Ok(json!({"sid": sid}).into())
        })
        .raw::<add_3pid::v3::Request, Requester, _, _>(|server, who, request| async move {
            let asked = json!([request.sid, request.client_secret]);
            let operation = format!("add address {}", uia::bound(&server, &asked));
            uia::password(&server, &who, request.auth, &operation).await?;
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
                        store::addresses::remove_address(conn, user_id.as_str(), &request.address).await?;
                        let left = store::push::pushers(conn, user_id.as_str()).await?;
                        batch.after_commit(move || pushers.replace(&user_id, left));
                        Ok(())
                    })
                })
                .await?;
            Ok(json!({"id_server_unbind_result": "no-support"}).into())
        })
}

/// What `POST /account/3pid/unbind` takes.
#[derive(serde::Deserialize)]
struct Unbind {
    medium: String,
    #[serde(rename = "address")]
    _address: String,
    #[serde(default, rename = "id_server")]
    _id_server: Option<String>,
}

async fn change_password(
    server: Arc<Server>,
    who: Asker,
    request: change::Request,
) -> Result<crate::http::route::Answer> {
    match who {
        Asker::Known(who) => {
            let asked = json!([request.new_password, request.logout_devices]);
            let operation = format!("change password {}", uia::bound(&server, &asked));
            uia::password(&server, &who, request.auth, &operation).await?;
            let account = store::accounts::account(&mut server.db.read().await?, who.user_id.as_str())
                .await?
                .ok_or_else(|| forbidden("This account has no password."))?;
            let entry = who.entry(server.now(), "password.change");
            let but = who.device_id.clone();
            let ends = request.logout_devices;
            set_password(&server, account, &request.new_password, ends, but, entry, None).await
        }
        Asker::Unknown(peer) => forgotten(server, peer, request).await,
    }
}

/// Sets a password that follows the rules, durably, and ends the other sessions.
async fn set_password(
    server: &Arc<Server>,
    account: store::accounts::Account,
    new_password: &str,
    logout_devices: bool,
    but: Option<String>,
    entry: audit::Entry,
    check: Option<String>,
) -> Result<crate::http::route::Answer> {
    let user_id = ruma::OwnedUserId::try_from(account.user_id.as_str())?;
    if server.config.policy.open_profile {
        if new_password.len() > passwords::PASSWORD_BYTES_MAX {
            return Err(invalid("The password is too long."));
        }
    } else {
        let facility = match account.facility {
            Some(facility) => store::accounts::facility(&mut server.db.read().await?, facility).await?,
            None => None,
        };
        let facility = facility.map(|facility| facility.name).unwrap_or_default();
        let names = [account.name.as_str(), user_id.localpart(), facility.as_str()];
        passwords::check_rules(new_password, server.config.policy.password_length_min, &names, server.now())?;
        enrol::check_not_used_before(server, user_id.as_str(), new_password).await?;
    }
    let hash = server.passwords.hash(new_password).await?;
    let sessions = Arc::clone(&server.sessions);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                // Only while the account is as it was when it was looked at: the city may have reset it since.
                let now_is = store::accounts::account(batch.reading(), user_id.as_str()).await?;
                let same = now_is.is_some_and(|is| {
                    is.status == "active"
                        && is.password_own == account.password_own
                        && is.password_hash == account.password_hash
                });
                if !same {
                    return Err(forbidden("The account has changed meanwhile: please begin again."));
                }
                if let Some(sid) = check {
                    // Once.
                    if store::addresses::check(batch.reading(), &sid).await?.is_none() {
                        return Err(forbidden("This reset was used already."));
                    }
                    store::addresses::delete_check(batch.sql().await?, &sid).await?;
                }
                store::accounts::set_password(batch.sql().await?, user_id.as_str(), &hash, true, now).await?;
                if logout_devices {
                    sessions::end_all(batch, &sessions, &user_id, but.as_deref()).await?;
                }
                batch.audit(entry);
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

/// A new password instead of a forgotten one: by the link in a mail, on a terminal of the account's facility.
async fn forgotten(
    server: Arc<Server>,
    peer: Peer,
    request: change::Request,
) -> Result<crate::http::route::Answer> {
    const STAGE: &str = "m.login.email.identity";
    let known = terminal(&server, &peer)?;
    server.limiter.allow_before_login(peer.address.ip(), server.now())?;
    let ask = |why| uia::ask(&crate::clock::random_token(24), &[STAGE], json!({}), why);
    let Some(AuthData::EmailIdentity(given)) = request.auth else { return Err(ask(None)) };
    let (sid, secret) = (given.thirdparty_id_creds.sid, given.thirdparty_id_creds.client_secret);
    let account = addresses::confirmed_reset(&server, sid.as_str(), secret.as_str(), known.as_ref()).await?;
    let Some(account) = account else {
        let why = refuse(
            Code::ThreepidAuthFailed,
            "Please open the link in the mail first, on a terminal of your facility (メールのリンクを開いてください).",
        );
        return Err(ask(Some(why)));
    };
    let entry = audit::Entry {
        at: server.now(),
        actor: account.user_id.clone(),
        terminal: known.as_ref().map(|known| known.terminal),
        certificate: known.as_ref().map(|known| known.serial.clone()),
        address: Some(peer.address.ip().to_string()),
        action: "password.reset".to_owned(),
        target: account.user_id.clone(),
        result: "ok".to_owned(),
        detail: "mail".to_owned(),
        ..audit::Entry::default()
    };
    set_password(
        &server,
        account,
        &request.new_password,
        // Whoever else knows the old password is out, whatever the client asks for.
        true,
        None,
        entry,
        Some(sid.to_string()),
    )
    .await
}

/// Begins the check of an address for a new password. The answer is the same whether somebody has it or nobody.
async fn request_reset(
    server: Arc<Server>,
    peer: Peer,
    request: request_reset::v3::Request,
) -> Result<crate::http::route::Answer> {
    terminal(&server, &peer)?;
    server.limiter.allow_before_login(peer.address.ip(), server.now())?;
    if !server.config.policy.password_reset_by_mail {
        return Err(denied());
    }
    let (attempt, secret) = (i64::from(request.send_attempt), request.client_secret.to_string());
    let sid = addresses::request_check(&server, &request.email, secret, attempt, Purpose::Reset).await?;
    Ok(json!({"sid": sid}).into())
}

/// Telephone numbers and addresses of people without an account are not taken.
fn denied() -> Error {
    refuse(
        Code::ThreepidDenied,
        "This kind of address is not used for that here: please ask the city desk (市の窓口にお問い合わせください).",
    )
}

/// Refuses, to whoever shows a certificate.
async fn denies(server: Arc<Server>, call: Call) -> Result<crate::http::route::Answer> {
    terminal(&server, &caller::peer(&call.parts)?)?;
    Err(denied())
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
