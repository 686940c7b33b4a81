//! Mails that the server owes, leased by the bridge; addresses that are refused for good.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::same;
use crate::{
    audit,
    error::{Code, Result, invalid, refuse},
    http::route::{Answer, Call, Routes, bearer},
    rooms::{city, committer::Hint},
    server::Server,
    store,
};

/// How long a mail is leased.
const LEASE_MS: i64 = 60_000;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(Method::POST, "/_heya/v1/mail/lease", lease).at(Method::POST, "/_heya/v1/mail/done", done).at(
        Method::POST,
        "/_heya/v1/mail/refused",
        refused,
    )
}

fn bridge(server: &Server, call: &Call) -> Result<()> {
    let token = bearer(&call.parts.headers)
        .ok_or_else(|| refuse(Code::MissingToken, "A token is needed in the Authorization header."))?;
    if same(token, &server.mail_token) {
        Ok(())
    } else {
        Err(refuse(Code::UnknownToken { soft_logout: false }, "This token is not the mail bridge's."))
    }
}

#[derive(Deserialize)]
struct Lease {
    #[serde(default)]
    max: i64,
    #[serde(default)]
    wait_ms: u64,
}

async fn lease(server: Arc<Server>, call: Call) -> Result<Answer> {
    bridge(&server, &call)?;
    let (_, body) = call.json::<Lease>(&server).await?;
    let max = body.max.clamp(1, 50);
    let deadline = tokio::time::Instant::now() + Duration::from_millis(body.wait_ms.min(30_000));
    let mut stopping = server.stopping.subscribe();
    loop {
        let owed = server.mail_owed.notified();
        tokio::pin!(owed);
        owed.as_mut().enable();
        if store::push::mail_waits(&mut server.db.read().await?, server.now()).await? {
            let mails = server
                .commit(Hint::default(), move |batch| {
                    Box::pin(async move {
                        let now = batch.now;
                        store::push::lease_mails(batch.sql().await?, max, now, now + LEASE_MS).await
                    })
                })
                .await?;
            if !mails.is_empty() {
                let list = mails
                    .into_iter()
                    .map(|mail| {
                        Ok(json!({
                            "id": mail.id.to_string(), "template": mail.template, "lang": mail.lang,
                            "to": mail.address, "parameters": serde_json::from_str::<Value>(&mail.parameters)?,
                        }))
                    })
                    .collect::<Result<Vec<_>>>()?;
                return Ok(json!({"mails": list}).into());
            }
        }
        tokio::select! {
            () = &mut owed => {}
            // Leases that ran out and opening mails are found within a second.
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = crate::server::stopped(&mut stopping) => return Ok(json!({"mails": []}).into()),
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(json!({"mails": []}).into());
        }
    }
}

#[derive(Deserialize)]
struct Done {
    id: String,
    outcome: String,
    #[serde(default)]
    detail: String,
}

async fn done(server: Arc<Server>, call: Call) -> Result<Answer> {
    bridge(&server, &call)?;
    let (_, body) = call.json::<Done>(&server).await?;
    let id: i64 = body.id.parse().map_err(|_| invalid("id is the id of a leased mail."))?;
    if !["sent", "refused"].contains(&body.outcome.as_str()) {
        return Err(invalid("outcome is \"sent\" or \"refused\"."));
    }
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let settled = store::push::mail_done(batch.sql().await?, id, &body.outcome).await?;
                if settled {
                    let at = batch.now;
                    batch.audit(audit::Entry {
                        at,
                        actor: "mail bridge".to_owned(),
                        action: "mail".to_owned(),
                        target: format!("mail {id}"),
                        result: body.outcome,
                        detail: body.detail.chars().take(100).collect(),
                        ..audit::Entry::default()
                    });
                }
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

#[derive(Deserialize)]
struct Refused {
    address: String,
    account: String,
    #[serde(default)]
    code: i64,
}

/// An address is refused for good: its pushers go, and the city is told (by the account, not the address).
async fn refused(server: Arc<Server>, call: Call) -> Result<Answer> {
    bridge(&server, &call)?;
    let (_, body) = call.json::<Refused>(&server).await?;
    let user_id =
        ruma::OwnedUserId::try_from(body.account.as_str()).map_err(|_| invalid("account is no user id."))?;
    let (city_user, pushers) = (server.city_user.clone(), server.pushers.clone());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let conn = batch.sql().await?;
                let had = store::push::pushers(conn, user_id.as_str())
                    .await?
                    .iter()
                    .any(|p| p.app_id == "m.email" && p.pushkey == body.address);
                if !had {
                    return Ok(());
                }
                store::push::delete(conn, user_id.as_str(), "m.email", &body.address).await?;
                let left = store::push::pushers(conn, user_id.as_str()).await?;
                let user = user_id.clone();
                batch.after_commit(move || pushers.replace(&user, left));
                let at = batch.now;
                batch.audit(audit::Entry {
                    at,
                    actor: "mail bridge".to_owned(),
                    action: "mail.refused".to_owned(),
                    target: user_id.to_string(),
                    result: body.code.to_string(),
                    ..audit::Entry::default()
                });
                if let Some(room) = store::meta::value(batch.reading(), "control_room").await?
                    && let Ok(room) = <&ruma::RoomId>::try_from(room.as_str())
                {
                    let text = format!(
                        "利用者ID「{}」のメール通知先に届きませんでした(応答コード {})。通知を止めました。\
                         正しいメールアドレスを登録し直すよう伝えてください。",
                        user_id.localpart(),
                        body.code
                    );
                    city::say(batch, &city_user, room, &text).await?;
                }
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}
