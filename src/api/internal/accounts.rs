//! Facilities and accounts.

use std::sync::Arc;

use http::Method;
use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{city, once, once_for};
use crate::{
    accounts::{
        end,
        register::{self, NewAccount, city_staff, search_key},
        sheets::Letterhead,
    },
    error::{Result, invalid, not_found},
    http::route::{Answer, Call, Routes},
    push::{Chosen, Pusher, SCOPE, Setting},
    rooms::committer::Hint,
    server::Server,
    store,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/_heya/v1/control", control)
        .at(Method::GET, "/_heya/v1/facilities", |server, call| async move {
            city(&server, &call)?;
            let list: Vec<Value> = store::accounts::facilities(&mut server.db.read().await?)
                .await?
                .into_iter()
                .map(|(id, name, kind, active, accounts)| {
                    json!({"facility": id, "name": name, "kind": kind, "active": active, "accounts": accounts})
                })
                .collect();
            Ok(json!({"facilities": list}).into())
        })
        .at(Method::POST, "/_heya/v1/facilities", |server, call| {
            once(server, call, |_: &NewFacility| Hint::default(), |batch, body, acting| {
                Box::pin(async move {
                    const KINDS: [&str; 6] = ["medical", "visiting_nurse", "care", "pharmacy", "association", "other"];
                    if !body.pledge {
                        return Err(invalid("The pledge (誓約) of the facility is needed."));
                    }
                    if !KINDS.contains(&body.kind.as_str()) {
                        return Err(invalid(format!("kind is one of {}.", KINDS.join(", "))));
                    }
                    let id = register::add_facility(batch, &body.name, &body.kind, &acting).await?;
                    Ok(json!({"facility": id, "name": body.name.trim()}))
                })
            })
        })
        .at(Method::POST, "/_heya/v1/accounts/{user_id}/mail-scope", mail_scope)
        .at(Method::POST, "/_heya/v1/accounts/search", search)
        .at(Method::POST, "/_heya/v1/accounts", issue)
        .at(Method::POST, "/_heya/v1/accounts/{user_id}/codes", |server, call| async move {
            city(&server, &call)?;
            let (user_id, letterhead) = (user(&call)?, Letterhead::of(&server));
            let issues = super::terminals::issues(&server);
            once(server, call, |_: &Acting| Hint::default(), move |batch, _, acting| {
                Box::pin(async move {
                    let account = store::accounts::account(batch.reading(), user_id.as_str())
                        .await?
                        .filter(|account| account.status != "ended" && account.facility.is_some())
                        .ok_or_else(|| not_found("There is no such account."))?;
                    // For a further terminal a code fetches a certificate, which only Heya's own CA makes.
                    if account.password_own {
                        issues?;
                    }
                    let name = account.display_name.unwrap_or_default();
                    // Before the first enrolment the code stands beside the initial password, later beside one's own.
                    let sheet =
                        register::add_code(batch, &letterhead, &user_id, &name, account.password_own).await?;
                    let now = batch.now;
                    batch.audit(crate::audit::Entry {
                        at: now,
                        actor: acting,
                        action: "code.issue".to_owned(),
                        target: user_id.to_string(),
                        result: "ok".to_owned(),
                        ..crate::audit::Entry::default()
                    });
                    Ok(json!({"sheets": [sheet]}))
                })
            })
            .await
        })
        .at(Method::POST, "/_heya/v1/accounts/{user_id}/reset", |server, call| async move {
            city(&server, &call)?;
            let (user_id, parts) = (user(&call)?, end::Parts::of(&server));
            let prepared = register::prepare(&server).await?;
            once(server, call, |_: &Acting| Hint::default(), move |batch, _, acting| {
                Box::pin(async move {
                    let (ended, sheets) = end::reset(batch, &parts, &user_id, &acting, prepared).await?;
                    Ok(json!({"sessions": ended.sessions, "terminals": ended.terminals, "sheets": sheets}))
                })
            })
            .await
        })
        .at(Method::POST, "/_heya/v1/accounts/{user_id}/end", |server, call| async move {
            let (user_id, parts) = (user(&call)?, end::Parts::of(&server));
            let rooms = server.live.joined_rooms(&user_id).into_iter().collect();
            once(server, call, |_: &Reason| Hint { rooms, txn: None }, move |batch, body, acting| {
                Box::pin(async move { end::account(batch, &parts, &user_id, &body.reason, &acting).await })
            })
            .await
        })
}

#[derive(Deserialize)]
struct NewFacility {
    name: String,
    kind: String,
    #[serde(default)]
    pledge: bool,
}

#[derive(Deserialize)]
struct Acting {}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Issue {
    facility: i64,
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    profession: String,
    #[serde(default)]
    pledge: bool,
}

pub(super) fn user(call: &Call) -> Result<OwnedUserId> {
    OwnedUserId::try_from(call.arg(0)).map_err(|_| invalid("The path has no user id."))
}

async fn control(server: Arc<Server>, call: Call) -> Result<Answer> {
    city(&server, &call)?;
    let mut conn = server.db.read().await?;
    let control = store::meta::value(&mut conn, "control_room").await?;
    let announcement = store::meta::value(&mut conn, "announcement_room").await?;
    let staff = city_staff(&mut conn).await?;
    Ok(json!({
        "city_user": server.city_user, "control_room": control, "announcement_room": announcement,
        "staff": staff, "server_name": server.name, "language": "ja",
    })
    .into())
}

#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    query: String,
    facility: Option<i64>,
}

/// In a body: what is looked for comes from what people wrote, and may be anybody's name.
async fn search(server: Arc<Server>, call: Call) -> Result<Answer> {
    city(&server, &call)?;
    let (_, Search { query, facility: of }) = call.json::<Search>(&server).await?;
    let query = search_key(&[&query]);
    let mut conn = server.db.read().await?;
    let facilities: std::collections::BTreeMap<i64, String> =
        store::accounts::facilities(&mut conn).await?.into_iter().map(|(id, name, ..)| (id, name)).collect();
    let mut found = Vec::new();
    for (user_id, kind, facility, name, profession, display_name, status, key) in
        store::accounts::register(&mut conn).await?
    {
        if !key.contains(&query) || of.is_some() && of != facility || found.len() == 100 {
            continue;
        }
        let login_id = user_id.trim_start_matches('@').split(':').next().unwrap_or_default();
        found.push(json!({
            "user_id": user_id, "login_id": login_id, "display_name": display_name, "name": name, "kind": kind,
            "facility": facility, "facility_name": facility.and_then(|id| facilities.get(&id)),
            "profession": profession, "status": status,
        }));
    }
    Ok(json!({"accounts": found}).into())
}

#[derive(Deserialize)]
struct MailScope {
    scope: Option<String>,
}

/// What mails an account gets is a field of its e-mail pushers, which clients know nothing of (DESIGN 18).
async fn mail_scope(server: Arc<Server>, call: Call) -> Result<Answer> {
    let user_id = user(&call)?;
    let pushers = Arc::clone(&server.pushers);
    let own = Some(user_id.clone());
    once_for(
        server,
        call,
        own,
        |_: &MailScope| Hint::default(),
        move |batch, body, acting| {
            Box::pin(async move {
                if body.scope.as_deref().is_some_and(|word| Chosen::of(word).is_none()) {
                    return Err(invalid("scope is \"highlight\", \"direct\" or \"all\"."));
                }
                let now = batch.now;
                let mut present = store::push::pushers(batch.reading(), user_id.as_str()).await?;
                let mail = |pusher: &Pusher| Setting::of(pusher).kind == "email";
                if let Some(scope) = &body.scope {
                    for pusher in present.iter_mut().filter(|pusher| mail(pusher)) {
                        let mut value: Value = serde_json::from_str(&pusher.pusher)?;
                        value["data"][SCOPE] = scope.as_str().into();
                        pusher.pusher = value.to_string();
                        store::push::put(batch.sql().await?, pusher).await?;
                    }
                    batch.audit(crate::audit::Entry {
                        at: now,
                        actor: acting,
                        action: "mail.scope".to_owned(),
                        result: "ok".to_owned(),
                        detail: scope.clone(),
                        ..crate::audit::Entry::default()
                    });
                }
                let count = present.iter().filter(|pusher| mail(pusher)).count();
                let scope = present.iter().find_map(|pusher| Setting::of(pusher).scope().map(str::to_owned));
                let answer =
                    json!({"scope": scope.unwrap_or_else(|| "highlight".to_owned()), "pushers": count});
                batch.after_commit(move || pushers.replace(&user_id, present));
                Ok(answer)
            })
        },
    )
    .await
}

async fn issue(server: Arc<Server>, call: Call) -> Result<Answer> {
    city(&server, &call)?;
    let prepared = register::prepare(&server).await?;
    let city_user = server.city_user.clone();
    once(
        server,
        call,
        |_: &Issue| Hint::default(),
        move |batch, body, acting| {
            Box::pin(async move {
                if !body.pledge {
                    return Err(invalid("The pledge (誓約) is needed."));
                }
                let new = NewAccount {
                    facility: body.facility,
                    kind: body.kind,
                    name: body.name,
                    profession: body.profession,
                    acting,
                };
                register::issue(batch, &city_user, new, prepared).await
            })
        },
    )
    .await
}
