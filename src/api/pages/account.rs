//! The account page that OAuth clients link to (client-server API, "OAuth 2.0 account management"; MSC4191): one's log-ins
//! and their end, who one is, and operations that a client asks to approve. It asks for ID and password first, and has a
//! session of its own that reaches nothing else.

use std::sync::Arc;

use http::{Method, StatusCode};

use super::{
    Common,
    authorize::{arrive, authenticate, cookie, refusal, see, tag_of, terminal_name, with_cookie},
    field, fields, page, render,
};
use crate::{
    accounts::{
        oauth::{
            base,
            browser::{self, Browser},
            grants::Here,
        },
        sessions,
    },
    audit,
    error::Result,
    http::route::{Answer, Call, Routes, form},
    rooms::committer::Hint,
    server::Server,
    store,
};

page!(SignInPage, "account_login.html" { csrf: String, error: Option<String>, login_id: String, terminal: String });
page!(AccountPage, "account.html" {
    csrf: String,
    done: Option<&'a str>,
    user_id: String,
    display_name: String,
    log_ins: Vec<LogIn>,
    waiting: Vec<Wish>,
    chosen: bool,
    deactivation: bool,
});

/// A log-in as the page lists it.
pub(super) struct LogIn {
    device_id: String,
    name: String,
    begun: String,
    seen: String,
    terminal: String,
    chosen: bool,
}

/// An operation that waits for its user.
pub(super) struct Wish {
    session: String,
    what: &'static str,
    device: String,
}

/// The form that ID and password are typed in, and the session after it.
const FORM: &str = "account-form";
const SESSION: &str = "account";

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(Method::GET, "/account", show).at(Method::POST, "/account", act)
}

/// The address of the page with what a client asked it for, and nothing else of the query.
fn place(server: &Server, call: &Call) -> String {
    let mut kept = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form(call.parts.uri.query().unwrap_or_default()) {
        if ["action", "device_id"].contains(&name.as_str()) && value.len() <= 255 {
            kept.append_pair(&name, &value);
        }
    }
    let kept = kept.finish();
    let divider = if kept.is_empty() { "" } else { "?" };
    format!("{}/account{divider}{kept}", base(server))
}

async fn signed_in(server: &Server, call: &Call, here: &Here) -> Result<Option<(String, Browser)>> {
    let Some(cookie) = cookie(server, call, SESSION) else { return Ok(None) };
    let found = browser::of(server, &cookie, here.terminal.as_ref()).await?;
    Ok(found.map(|browser| (cookie, browser)))
}

async fn show(server: Arc<Server>, call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    match signed_in(&server, &call, &here).await? {
        Some((cookie, browser)) => list(&server, &call, &here, &cookie, &browser, None).await,
        None => {
            let cookie = cookie(&server, &call, FORM).unwrap_or_else(|| crate::clock::random_token(43));
            sign_in(&server, &here, &cookie, None, String::new()).await
        }
    }
}

async fn sign_in(
    server: &Server,
    here: &Here,
    cookie: &str,
    error: Option<String>,
    login_id: String,
) -> Result<Answer> {
    let status = if error.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    let page = SignInPage::new(
        Common::of(server),
        server.oauth.tag(&tag_of(cookie, here.terminal.as_ref(), FORM)),
        error,
        login_id,
        terminal_name(server, here.terminal.as_ref()).await?,
    );
    Ok(with_cookie(server, render(status, &page)?, FORM, cookie, 3_600))
}

/// What an operation is, for people.
fn words(operation: &str) -> &'static str {
    if operation.starts_with("delete devices") {
        "ログインの終了"
    } else if operation.starts_with("change password") {
        "パスワードの変更"
    } else if operation.starts_with("add address") {
        "メールアドレスの追加"
    } else if operation.starts_with("deactivate") {
        "利用の終了"
    } else {
        "暗号の鍵（本人確認の鍵）の入れ替え"
    }
}

async fn list(
    server: &Server,
    call: &Call,
    here: &Here,
    cookie: &str,
    browser: &Browser,
    done: Option<&str>,
) -> Result<Answer> {
    let user_id = browser.user_id.as_str();
    let action = call.query("action").unwrap_or_default();
    let wanted = call.query("device_id");
    let mut conn = server.db.read().await?;
    let names = store::personal::devices(&mut conn, user_id).await?;
    let mut log_ins = Vec::new();
    for (device_id, begun, terminal, _) in store::sessions::logged_in(&mut conn, user_id).await? {
        let known = names.iter().find(|device| device.device_id == device_id);
        let seen = server
            .sessions
            .last_seen(&browser.user_id, &device_id)
            .or_else(|| known.and_then(|device| device.last_seen));
        let terminal = match terminal {
            Some(terminal) => store::terminals::terminal(&mut conn, terminal).await?,
            None => None,
        };
        log_ins.push(LogIn {
            chosen: wanted.as_deref() == Some(device_id.as_str()),
            name: known.and_then(|device| device.display_name.clone()).unwrap_or_default(),
            begun: audit::written_date(begun),
            seen: seen.map(audit::written_date).unwrap_or_default(),
            terminal: terminal.map(|one| format!("{}（端末番号 {}）", one.label, one.id)).unwrap_or_default(),
            device_id,
        });
    }
    let chosen = log_ins.iter().any(|one| one.chosen);
    if chosen {
        log_ins.retain(|one| one.chosen);
    }
    let waiting = server
        .interactive
        .waiting(&browser.user_id, server.now())
        .into_iter()
        .map(|one| Wish {
            what: words(&one.operation),
            device: names
                .iter()
                .find(|device| device.device_id == one.device)
                .and_then(|device| device.display_name.clone())
                .unwrap_or(one.device),
            session: one.session,
        })
        .collect();
    let account = store::accounts::account(&mut conn, user_id).await?;
    let page = AccountPage::new(
        Common::of(server),
        server.oauth.tag(&tag_of(cookie, here.terminal.as_ref(), SESSION)),
        done,
        user_id.to_owned(),
        account.and_then(|account| account.display_name).unwrap_or_default(),
        log_ins,
        waiting,
        chosen,
        action == "org.matrix.account_deactivate",
    );
    render(StatusCode::OK, &page)
}

async fn act(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let session = signed_in(&server, &call, &here).await?;
    let form_cookie = cookie(&server, &call, FORM);
    let fields = fields(&server, &mut call).await?;
    let csrf = field(&fields, "csrf");
    let Some((cookie, browser)) = session else {
        let ours = form_cookie
            .as_deref()
            .is_some_and(|cookie| server.oauth.is_tag(&tag_of(cookie, here.terminal.as_ref(), FORM), csrf));
        let form_cookie = form_cookie.unwrap_or_else(|| crate::clock::random_token(43));
        let id: String = field(&fields, "login_id").chars().take(255).collect();
        if !ours || field(&fields, "action") != "sign_in" {
            let old = "画面の有効期限が切れました。もう一度入力してください。".to_owned();
            return sign_in(&server, &here, &form_cookie, Some(old), id).await;
        }
        return match authenticate(&server, &id, field(&fields, "password"), &here).await {
            Ok(proven) => {
                record(&server, proven.user_id.as_str(), &here, "account.page").await?;
                let cookie = browser::begin(&server, proven, here.terminal.as_ref());
                let answer = see(&place(&server, &call))?;
                Ok(with_cookie(&server, answer, SESSION, &cookie, browser::LIFE_MS / 1000))
            }
            Err(error) => sign_in(&server, &here, &form_cookie, Some(refusal(error)), id).await,
        };
    };
    if !server.oauth.is_tag(&tag_of(&cookie, here.terminal.as_ref(), SESSION), csrf) {
        let old = "画面の有効期限が切れました。もう一度操作してください。";
        return list(&server, &call, &here, &cookie, &browser, Some(old)).await;
    }
    let done = match field(&fields, "action") {
        "end" => {
            end(&server, &browser, field(&fields, "device_id"), &here).await?;
            "ログインを終了しました。"
        }
        "approve" => {
            if server.interactive.approve(field(&fields, "session"), &browser.user_id, server.now()) {
                record(&server, browser.user_id.as_str(), &here, "account.approve").await?;
                "操作を承認しました。アプリに戻って、続けてください。"
            } else {
                "この操作は、もう承認できません。アプリでもう一度操作してください。"
            }
        }
        "sign_out" => {
            browser::end(&server, &cookie);
            let answer = see(&place(&server, &call))?;
            return Ok(with_cookie(&server, answer, SESSION, "", 0));
        }
        _ => "この操作はありません。",
    };
    list(&server, &call, &here, &cookie, &browser, Some(done)).await
}

fn entry(server: &Server, user_id: &str, here: &Here, action: &str) -> audit::Entry {
    audit::Entry {
        at: server.now(),
        actor: user_id.to_owned(),
        terminal: here.terminal.as_ref().map(|known| known.terminal),
        certificate: here.terminal.as_ref().map(|known| known.serial.clone()),
        address: Some(here.address.to_string()),
        action: action.to_owned(),
        result: "ok".to_owned(),
        ..audit::Entry::default()
    }
}

async fn record(server: &Arc<Server>, user_id: &str, here: &Here, action: &str) -> Result<()> {
    let entry = entry(server, user_id, here, action);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                Ok(())
            })
        })
        .await
}

/// Ends one of the user's own log-ins.
async fn end(server: &Arc<Server>, browser: &Browser, device_id: &str, here: &Here) -> Result<()> {
    let all = Arc::clone(&server.sessions);
    let mut entry = entry(server, browser.user_id.as_str(), here, "device.delete");
    entry.detail = device_id.chars().take(255).collect();
    let (user_id, devices) = (browser.user_id.clone(), vec![device_id.to_owned()]);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                sessions::end_devices(batch, &all, &user_id, devices).await
            })
        })
        .await
}
