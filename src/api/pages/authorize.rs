//! The pages of an OAuth log-in: a client asks, a person gives ID and password. Reached by top-level navigation on the
//! public origin, with the terminal's certificate (DESIGN 1, 2). Nothing on them is from outside, and no other site reads,
//! frames or posts them.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};

use super::{Common, field, fields, page, render, render_to, sent_cookie, sentence};
use crate::{
    accounts::{
        login::{self, Attempt},
        oauth::{
            devices,
            grants::{self, Grant, Here},
            request::{self, Asked, Back, Read},
            told,
        },
        terminals::Known,
    },
    api::oauth::offered,
    error::{Result, forbidden},
    http::{
        caller::{self, peer},
        route::{Answer, Call, Routes, form},
    },
    server::Server,
    store,
};

page!(AuthorizePage, "oauth_authorize.html" {
    csrf: String,
    error: Option<String>,
    login_id: String,
    client: String,
    client_host: String,
    place: String,
    terms: Option<String>,
    privacy: Option<String>,
    terminal: String,
});
page!(WrongPage, "oauth_wrong.html" { client: String, place: String, back: String, why: &'a str });
page!(LinkPage, "oauth_link.html" { csrf: String, error: Option<String>, code: String });
page!(LinkedPage, "oauth_linked.html" { ok: bool });
page!(ConfirmPage, "oauth_confirm.html" {
    csrf: String,
    error: Option<String>,
    code: String,
    login_id: String,
    client: String,
    client_host: String,
    terminal: String,
});

/// The browser that a form was shown in.
const COOKIE: &str = "oauth";

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/oauth2/authorize", ask)
        .at(Method::POST, "/oauth2/authorize", answer)
        .at(Method::GET, "/oauth2/link", link)
        .at(Method::POST, "/oauth2/link", linked)
}

/// A cookie's name: bound to this host and TLS where there is TLS.
fn cookie_name(server: &Server, name: &str) -> String {
    if server.config.tls.enabled { format!("__Host-{name}") } else { name.to_owned() }
}

/// A cookie of a request, as it was made here.
pub(super) fn cookie(server: &Server, call: &Call, name: &str) -> Option<String> {
    let found = sent_cookie(call, &cookie_name(server, name))?;
    let good = found.len() == 43 && found.bytes().all(|b| b.is_ascii_alphanumeric());
    good.then(|| found.to_owned())
}

/// Sets a cookie that no script reads and no other site sends.
pub(super) fn with_cookie(server: &Server, answer: Answer, name: &str, value: &str, seconds: i64) -> Answer {
    let Answer::Response(mut response) = answer else { return answer };
    let secure = if server.config.tls.enabled { " Secure;" } else { "" };
    let name = cookie_name(server, name);
    let text = format!("{name}={value}; Path=/;{secure} HttpOnly; SameSite=Strict; Max-Age={seconds}");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
    Answer::Response(response)
}

/// 303 to anywhere that was checked.
pub(super) fn see(url: &str) -> Result<Answer> {
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    let url = HeaderValue::from_str(url).map_err(|_| forbidden("A redirect cannot be written."))?;
    headers.insert(header::LOCATION, url);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // What the address held goes to nobody.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(Answer::Response(response))
}

/// The terminal of a page's connection; the page is not there where the API is not offered.
pub(super) fn arrive(server: &Server, call: &Call) -> Result<Here> {
    offered(server)?;
    let peer = peer(&call.parts)?;
    Ok(Here { terminal: caller::terminal(server, &peer)?, address: peer.address.ip() })
}

/// A tag of one form: of this browser, this terminal and what the form is for. A page of another site, terminal or request
/// cannot make it.
pub(super) fn tag_of(cookie: &str, terminal: Option<&Known>, what: &str) -> String {
    let terminal = terminal.map_or(0, |known| known.terminal);
    format!("form\n{cookie}\n{terminal}\n{what}")
}

/// What a person calls the terminal.
pub(super) async fn terminal_name(server: &Server, known: Option<&Known>) -> Result<String> {
    let Some(known) = known else { return Ok(String::new()) };
    let terminal = store::terminals::terminal(&mut server.db.read().await?, known.terminal).await?;
    Ok(terminal.map_or_else(String::new, |one| format!("{}（端末番号 {}）", one.label, one.id)))
}

fn query(call: &Call) -> String {
    call.parts.uri.query().unwrap_or_default().to_owned()
}

/// The one sentence about a log-in that failed, as the pages say it.
pub(super) fn refusal(error: crate::error::Error) -> String {
    match error.code() {
        Some(crate::error::Code::Forbidden) => {
            "利用者IDまたはパスワードが違うか、この端末では使えません。続けて間違えると、しばらく使えなくなります。".to_owned()
        }
        Some(crate::error::Code::LimitExceeded { .. }) => {
            "混み合っています。少し待ってからもう一度お試しください。".to_owned()
        }
        _ => sentence(error),
    }
}

async fn ask(server: Arc<Server>, call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let query = query(&call);
    match request::read(&server, &form(&query)).await? {
        Read::Asked(asked) => {
            let cookie = cookie(&server, &call, COOKIE).unwrap_or_else(|| crate::clock::random_token(43));
            show(&server, &asked, &here, &cookie, &query, None, None).await
        }
        read => wrong(&server, read),
    }
}

async fn show(
    server: &Server,
    asked: &Asked,
    here: &Here,
    cookie: &str,
    query: &str,
    error: Option<String>,
    login_id: Option<&str>,
) -> Result<Answer> {
    let status = if error.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    let client = &asked.back.client;
    let page = AuthorizePage::new(
        Common::of(server),
        server.oauth.tag(&tag_of(cookie, here.terminal.as_ref(), query)),
        error,
        login_id.unwrap_or(&asked.hint).to_owned(),
        client.name(),
        client.host(),
        asked.back.place(),
        client.metadata.tos_uri.clone(),
        client.metadata.policy_uri.clone(),
        terminal_name(server, here.terminal.as_ref()).await?,
    );
    // Browsers hold the answer to a form to the policy of its page: the answer goes to the client.
    let answer = render_to(status, &page, &asked.back.target())?;
    Ok(with_cookie(server, answer, COOKIE, cookie, 3_600))
}

/// Nothing that a stranger's link says sends anybody anywhere by itself.
fn wrong(server: &Server, read: Read) -> Result<Answer> {
    let (client, place, back, why) = match &read {
        Read::Wrong(back, why) => {
            (back.client.name(), back.place(), back.refusal(server, *why), why.description)
        }
        _ => (String::new(), String::new(), String::new(), "client_id or redirect_uri is not registered"),
    };
    render(StatusCode::BAD_REQUEST, &WrongPage::new(Common::of(server), client, place, back, why))
}

async fn answer(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let query = query(&call);
    let cookie = cookie(&server, &call, COOKIE);
    let fields = fields(&server, &mut call).await?;
    let asked = match request::read(&server, &form(&query)).await? {
        Read::Asked(asked) => asked,
        read => return wrong(&server, read),
    };
    let ours = cookie.as_deref().is_some_and(|cookie| {
        server.oauth.is_tag(&tag_of(cookie, here.terminal.as_ref(), &query), field(&fields, "csrf"))
    });
    if !ours {
        let cookie = cookie.unwrap_or_else(|| crate::clock::random_token(43));
        let old = "画面の有効期限が切れました。もう一度入力してください。".to_owned();
        return show(&server, &asked, &here, &cookie, &query, Some(old), None).await;
    }
    if field(&fields, "action") == "deny" {
        return back(&server, &asked.back, None);
    }
    let id: String = field(&fields, "login_id").chars().take(255).collect();
    match authenticate(&server, &id, field(&fields, "password"), &here).await {
        Ok(proven) => {
            let code = grants::give_code(&server, &asked, proven, &here).await?;
            back(&server, &asked.back, Some(&code))
        }
        Err(error) => {
            let told = refusal(error);
            show(&server, &asked, &here, &cookie.unwrap_or_default(), &query, Some(told), Some(&id)).await
        }
    }
}

/// ID and password of a page: the same way in as every other.
pub(super) async fn authenticate(
    server: &Arc<Server>,
    id: &str,
    password: &str,
    here: &Here,
) -> Result<login::Proven> {
    if server.config.policy.rate_limits {
        server.limiter.allow_before_login(here.address, server.now())?;
    }
    let attempt = Attempt::on_page(id, password, here.terminal.clone(), here.address);
    login::authenticate(server, &attempt).await
}

fn back(server: &Server, back: &Back, code: Option<&str>) -> Result<Answer> {
    match code {
        Some(code) => see(&back.url(server, &[("code", code)])),
        None => see(&back.refusal(server, told("access_denied", "the user has refused"))),
    }
}

// ── The device grant: a code that an app shows ──────────────────────────────────────────────

async fn link(server: Arc<Server>, call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let cookie = cookie(&server, &call, COOKIE).unwrap_or_else(|| crate::clock::random_token(43));
    let code = devices::typed(&call.query("code").unwrap_or_default());
    enter_code(&server, &here, &cookie, None, code)
}

fn enter_code(
    server: &Server,
    here: &Here,
    cookie: &str,
    error: Option<String>,
    code: String,
) -> Result<Answer> {
    let status = if error.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    let csrf = server.oauth.tag(&tag_of(cookie, here.terminal.as_ref(), "link"));
    let answer = render(status, &LinkPage::new(Common::of(server), csrf, error, code))?;
    Ok(with_cookie(server, answer, COOKIE, cookie, 3_600))
}

async fn linked(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let here = arrive(&server, &call)?;
    let cookie = cookie(&server, &call, COOKIE);
    let fields = fields(&server, &mut call).await?;
    let code = devices::typed(field(&fields, "code"));
    let ours = cookie.as_deref().is_some_and(|cookie| {
        server.oauth.is_tag(&tag_of(cookie, here.terminal.as_ref(), "link"), field(&fields, "csrf"))
    });
    let cookie = cookie.unwrap_or_else(|| crate::clock::random_token(43));
    if !ours {
        let old = "画面の有効期限が切れました。もう一度入力してください。".to_owned();
        return enter_code(&server, &here, &cookie, Some(old), code);
    }
    // Tries of codes are counted whatever the policy says.
    if let Err(error) = server.limiter.allow_before_login(here.address, server.now()) {
        return enter_code(&server, &here, &cookie, Some(refusal(error)), code);
    }
    let Some((client, device_id)) = devices::waiting(&server, &code).await? else {
        let unknown =
            "このコードは使えません。アプリに表示されているコードと、有効期限（10分）を確認してください。"
                .to_owned();
        return enter_code(&server, &here, &cookie, Some(unknown), code);
    };
    let id: String = field(&fields, "login_id").chars().take(255).collect();
    let shown = async |error: Option<String>| {
        let status = if error.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
        let page = ConfirmPage::new(
            Common::of(&server),
            server.oauth.tag(&tag_of(&cookie, here.terminal.as_ref(), "link")),
            error,
            code.clone(),
            id.clone(),
            client.name(),
            client.host(),
            terminal_name(&server, here.terminal.as_ref()).await?,
        );
        render(status, &page)
    };
    match field(&fields, "action") {
        "deny" => {
            let ok = devices::decide(&server, &code, None);
            render(StatusCode::OK, &LinkedPage::new(Common::of(&server), !ok))
        }
        "approve" => match authenticate(&server, &id, field(&fields, "password"), &here).await {
            Ok(proven) => {
                let user_id = &proven.user_id;
                let endings = server.sessions.endings(user_id);
                grants::record_approval(&server, user_id, &client, &device_id, &here).await?;
                let grant = |scope| Grant {
                    user_id: user_id.clone(),
                    proven: Some((proven.clone(), endings)),
                    scope,
                    terminal: here.terminal.as_ref().map(|known| known.terminal),
                    certificate: here.terminal.as_ref().map(|known| known.serial.clone()),
                };
                let ok = devices::decide(&server, &code, Some(&grant));
                render(StatusCode::OK, &LinkedPage::new(Common::of(&server), ok))
            }
            Err(error) => shown(Some(refusal(error))).await,
        },
        _ => shown(None).await,
    }
}
