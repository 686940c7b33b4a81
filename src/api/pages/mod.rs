//! Pages that people see: enrolment, mail links, refusals, help. Plain HTML, Japanese first, no scripts.

use std::sync::Arc;

use askama::Template;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

use crate::{
    accounts::terminals::{self, Standing},
    config::Link,
    error::{Error, Result},
    http::route::{Answer, Call, Routes, form},
    server::Server,
};

mod account;
mod authorize;
mod enrol;
mod mail;

/// The stylesheet of all pages.
const STYLE: &str = include_str!("../../../templates/style.css");

/// No scripts, no outside; forms go to ourselves.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";

/// What every page says.
pub struct Common<'a> {
    service: &'a str,
    city: &'a str,
    contact: &'a str,
    links: &'a [Link],
    /// Whether terminals get their certificates by enrolment, and not from a CA of the city's own.
    issues_certificates: bool,
}

impl<'a> Common<'a> {
    /// Of a server.
    pub fn of(server: &'a Server) -> Self {
        let city = &server.config.city;
        Self {
            service: &city.service,
            city: &city.name,
            contact: &city.contact,
            links: &city.links,
            issues_certificates: server.ca.has_key(),
        }
    }
}

/// Declares a page: its template and fields, with those that every page has.
macro_rules! page {
    ($name:ident, $path:literal { $($field:ident : $type:ty),* $(,)? }) => {
        #[derive(askama::Template)]
        #[template(path = $path)]
        pub(super) struct $name<'a> {
            pub(super) service: &'a str,
            pub(super) city: &'a str,
            pub(super) contact: &'a str,
            pub(super) links: &'a [crate::config::Link],
            #[allow(dead_code, reason = "not every page speaks of certificates")]
            pub(super) issues_certificates: bool,
            $(pub(super) $field: $type,)*
        }

        impl<'a> $name<'a> {
            #[allow(clippy::too_many_arguments, reason = "as many as the page has fields")]
            pub(super) fn new(common: $crate::api::pages::Common<'a>, $($field: $type),*) -> Self {
                let $crate::api::pages::Common { service, city, contact, links, issues_certificates } = common;
                Self { service, city, contact, links, issues_certificates, $($field),* }
            }
        }
    };
}
pub(crate) use page;

page!(RefusedPage, "refused.html" {
    state: &'a str,
    title: &'a str,
    english: &'a str,
    sentences: &'a [&'a str],
    steps: &'a [&'a str],
    enrol_url: String,
    help_url: String,
});
page!(HelpPage, "help.html" { login_url: &'a str, enrol_url: String });
page!(NoClientPage, "index_no_client.html" { server_name: &'a str, enrol_url: String, help_url: String });
page!(NotFoundPage, "not_found.html" {});
page!(ClientHome, "client_home.html" { help_url: String });

/// The routes of the enrolment listener.
pub fn enrol_routes() -> Routes {
    let routes = Routes::default()
        .at(http::Method::GET, "/", |_, _| async { Ok(redirect("/enrol")) })
        .at(http::Method::GET, "/help", |server, _| async move {
            render(
                StatusCode::OK,
                &HelpPage::new(Common::of(&server), &server.config.server.public_url, enrol_url(&server)),
            )
        })
        .at(http::Method::GET, "/crl", crl)
        .at(http::Method::GET, "/_heya/style.css", style)
        .at(http::Method::GET, "/_heya/icon.svg", icon);
    mail::routes(enrol::routes(routes))
}

/// The stylesheet.
pub async fn style(_: Arc<Server>, _: Call) -> Result<Answer> {
    let mut response = Response::new(STYLE.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/css; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    Ok(Answer::Response(response))
}

/// The revocation list of Heya's own CA (RFC 2585, section 4.2), open as such lists are: it holds numbers and times.
async fn crl(server: Arc<Server>, _: Call) -> Result<Answer> {
    let list = terminals::own_list(&server).await?;
    let mut response = Response::new(list.der.to_vec().into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/pkix-crl"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(Answer::Response(response))
}

/// The icon of all pages: a room.
pub async fn icon(_: Arc<Server>, _: Call) -> Result<Answer> {
    const ICON: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 16 16\"><path fill=\"#17527a\" \
                        d=\"M8 1 1 7h2v8h4v-4h2v4h4V7h2z\"/></svg>";
    let mut response = Response::new(ICON.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("image/svg+xml"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=86400"));
    Ok(Answer::Response(response))
}

/// Where enrolment is.
pub fn enrol_url(server: &Server) -> String {
    format!("{}/enrol", server.config.enrol_url())
}

/// The page at `/` where the operator dropped no web client in.
pub fn no_client(server: &Server) -> Result<Answer> {
    render(
        StatusCode::OK,
        &NoClientPage::new(Common::of(server), server.name.as_str(), enrol_url(server), help_url(server)),
    )
}

/// What the web client shows before a room is chosen.
pub fn client_home(server: &Server) -> Result<String> {
    let page = ClientHome::new(Common::of(server), help_url(server));
    askama::Template::render(&page).map_err(|error| Error::internal(error.to_string()))
}

/// A page that is not there.
pub fn not_found(server: &Server) -> Result<Answer> {
    render(StatusCode::NOT_FOUND, &NotFoundPage::new(Common::of(server)))
}

fn help_url(server: &Server) -> String {
    format!("{}/help", server.config.enrol_url())
}

/// What to do where the certificates are those of a CA of the city's own.
const OUTSIDE_REVOKED_STEPS: &[&str] = &[
    "新しい電子証明書が端末に入っているときは、ブラウザの画面をすべて閉じてから開き直し、新しいほうの電子証明書を選んでください。",
    "心当たりがないとき、なくした端末が見つかったとき、もう一度使うときは、下の窓口に連絡してください。",
];

/// As above, where it is missing or unknown.
const OUTSIDE_STEPS: &[&str] = &[
    "ブラウザの画面をすべて閉じてから開き直し、証明書の選択画面で、市が配布した電子証明書を選んでください。",
    "電子証明書は市が端末に入れ、このシステムに登録します。登録が済んでいない電子証明書と、有効期限の切れた電子証明書では使えません。",
    "正しい電子証明書を選んでも表示されるときや、電子証明書がないときは、下の窓口に連絡してください。事業所の名前と端末の名前をお伝えください。",
];

/// The page that tells the state of a certificate, with the city desk's contact.
pub fn refused(server: &Server, standing: Standing) -> Result<Answer> {
    let (title, english, sentences, steps): (&str, &str, &[&str], &[&str]) = match standing {
        Standing::None | Standing::Valid => (
            "この端末の電子証明書が確認できません",
            "No certificate was received from this device.",
            &[
                "このシステムは、電子証明書の入った端末だけで使えます。",
                "この端末に電子証明書が入っていないか、証明書の選択画面で「キャンセル」が選ばれたようです。",
            ],
            &[
                "ブラウザの画面をすべて閉じてから開き直し、証明書の選択画面でこのシステムの電子証明書を選んでください。",
                "Windows では Edge か Chrome、iPhone・iPad では Safari、Android では Chrome で開いてください。メールなど、ほかのアプリの中で開いた画面では使えないことがあります。",
                "この端末をはじめて使うときは、先に「端末の登録」をしてください。市から届いた票が必要です。",
                "登録が済んでいるのに表示されるときは、下の窓口に連絡してください。",
            ],
        ),
        Standing::Expired => (
            "電子証明書の有効期限が切れています",
            "The certificate of this device has expired.",
            &[
                "この端末の電子証明書は、有効期限が切れたため使えません。",
                "利用者IDとパスワード、これまでの書き込みはそのまま残っています。",
            ],
            &[
                "下の窓口に「電子証明書の更新」を依頼してください。事業所の名前、利用者ID、端末の名前をお伝えください。",
                "登録コード票が届いたら、この端末で「端末の登録」をしてください。パスワードは、現在お使いのものを使います。",
                "新しい電子証明書を取り込んだあとに表示されるときは、ブラウザの画面をすべて閉じてから開き直し、新しいほうの電子証明書を選んでください。",
            ],
        ),
        Standing::Revoked => (
            "この端末の電子証明書は失効しています",
            "The certificate of this device has been revoked.",
            &[
                "この端末の電子証明書は、使えないように止められています。",
                "端末の紛失の届け出、退職・異動、利用の停止などの手続きがあると、電子証明書は失効します。",
            ],
            &[
                "新しい電子証明書を取り込み済みのときは、ブラウザの画面をすべて閉じてから開き直し、新しいほうの電子証明書を選んでください。",
                "心当たりがないときや、なくした端末が見つかったときは、下の窓口に連絡してください。",
                "もう一度使うには、新しい登録コードで「端末の登録」をします。登録コードは窓口に依頼してください。",
            ],
        ),
        Standing::Unknown => (
            "このシステムの電子証明書ではありません",
            "This certificate does not belong to this service.",
            &[
                "選ばれた電子証明書を、このシステムのものとして確認できませんでした。",
                "介護報酬の請求など、ほかのサービスの電子証明書を選ぶと、この画面が表示されます。",
            ],
            &[
                "ブラウザの画面をすべて閉じてから開き直し、証明書の選択画面でこのシステムの電子証明書を選んでください。",
                "このシステムの電子証明書が一覧にないときは、この端末で「端末の登録」をしてください。市から届いた票が必要です。",
                "正しい電子証明書を選んでも表示されるときは、下の窓口に連絡してください。",
            ],
        ),
    };
    // Nobody fetches a certificate from Heya where the city hands them out itself.
    let steps = match (server.ca.has_key(), standing) {
        (true, _) => steps,
        (false, Standing::Revoked) => OUTSIDE_REVOKED_STEPS,
        (false, _) => OUTSIDE_STEPS,
    };
    render(
        StatusCode::FORBIDDEN,
        &RefusedPage::new(
            Common::of(server),
            standing.word(),
            title,
            english,
            sentences,
            steps,
            enrol_url(server),
            help_url(server),
        ),
    )
}

/// A page with its headers.
pub fn render(status: StatusCode, page: &impl Template) -> Result<Answer> {
    render_with(status, page, HeaderValue::from_static(POLICY))
}

/// A page whose form is answered with a redirect to `target`, an origin or a scheme.
fn render_to(status: StatusCode, page: &impl Template, target: &str) -> Result<Answer> {
    let policy = POLICY.replace("form-action 'self'", &format!("form-action 'self' {target}"));
    let policy = HeaderValue::from_str(&policy).map_err(|error| Error::internal(error.to_string()))?;
    render_with(status, page, policy)
}

fn render_with(status: StatusCode, page: &impl Template, policy: HeaderValue) -> Result<Answer> {
    let text = page.render().map_err(|error| Error::internal(error.to_string()))?;
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    Ok(Answer::Response(response))
}

/// The routes of the public listener: pages of the OAuth log-in and of one's account.
pub fn public_routes(routes: Routes) -> Routes {
    account::routes(authorize::routes(routes))
}

/// 303 to a path of this listener.
pub fn redirect(path: &'static str) -> Answer {
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(path));
    Answer::Response(response)
}

/// The fields of a posted form, at most 16 KiB. A form of another origin is refused.
pub(super) async fn fields(server: &Server, call: &mut Call) -> Result<Vec<(String, String)>> {
    // Read before anything is refused: a connection that is closed with a body unread may lose the answer.
    let time = std::time::Duration::from_secs(server.config.limits.request_seconds);
    let body = crate::http::route::read(call.take_body(), 16 * 1024, time).await?;
    if let Some(origin) = call.parts.headers.get(header::ORIGIN) {
        let host = call.parts.headers.get(header::HOST).and_then(|h| h.to_str().ok());
        let host = host.or_else(|| call.parts.uri.authority().map(http::uri::Authority::as_str));
        let ours = origin.to_str().ok().map(crate::config::authority);
        if ours.is_none() || ours != host {
            return Err(crate::error::forbidden("ほかのページからは送信できません。"));
        }
    }
    let fields = form(&String::from_utf8_lossy(&body));
    if fields.iter().any(|(_, value)| value.contains('\0')) {
        return Err(crate::error::invalid("使えない文字が含まれています。"));
    }
    Ok(fields)
}

/// A cookie of a request. Over HTTP/2 a browser may send each in a field of its own (RFC 9113, 8.2.3); and cookies know no
/// ports, so that those of the other listener come too.
fn sent_cookie<'a>(call: &'a Call, name: &str) -> Option<&'a str> {
    let fields = call.parts.headers.get_all(header::COOKIE).iter().filter_map(|field| field.to_str().ok());
    fields
        .flat_map(|field| field.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// A field of a form; "" where it is missing.
pub(super) fn field<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
}

/// What a person is told of an error; an internal one is logged and told in general.
pub(super) fn sentence(error: Error) -> String {
    match error {
        Error::Refused(refusal) => refusal.message,
        Error::Internal(source) => {
            tracing::error!(error = %source, "a page failed");
            "システムの内部で問題が起きました。しばらくしてからもう一度お試しください。".to_owned()
        }
    }
}
