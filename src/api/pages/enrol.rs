//! The three pages of enrolment and the downloads at their end.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};

use super::{Common, field, fields, page, redirect, render, sent_cookie, sentence};
use crate::{
    accounts::{
        enrol::{self, Choice, Enrolment, Finished},
        passwords,
    },
    error::{Error, Result, forbidden, invalid},
    http::{
        caller::peer,
        route::{Answer, Call, Routes},
    },
    server::Server,
    store,
    tls::{BundleEncoding, Profile, pkcs12},
};

page!(StartPage, "enrol_start.html" { csrf: String, error: Option<String>, login_id: String });
page!(PasswordPage, "enrol_password.html" {
    csrf: String,
    error: Option<String>,
    display_name: String,
    rules: Vec<String>,
    further_terminal: bool,
    terminal_label: String,
    private: bool,
});
page!(OutsideDonePage, "enrol_done_outside.html" {
    display_name: String,
    terminals: Vec<ListedTerminal>,
    login_url: &'a str,
});
page!(DonePage, "enrol_done.html" {
    display_name: String,
    p12_password: String,
    download_modern: &'a str,
    download_legacy: &'a str,
    download_mobileconfig: &'a str,
    minutes_left: i64,
    login_url: &'a str,
});

/// The cookie of an enrolment session: this listener only, never sent by other sites.
const COOKIE: &str = "__Host-enrol";

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/enrol", |server, _| async move { start(&server, None, "") })
        .at(Method::POST, "/enrol", begin)
        .at(Method::GET, "/enrol/password", |server, call| async move {
            match session(&server, &call) {
                Some(enrolment) if enrolment.finished().is_some() => Ok(redirect("/enrol/done")),
                Some(enrolment) => password(&server, &enrolment, None, "", false),
                None => Ok(redirect("/enrol")),
            }
        })
        .at(Method::POST, "/enrol/password", finish)
        .at(Method::GET, "/enrol/done", done)
        .at(Method::GET, "/enrol/terminal.p12", |server, call| download(server, call, BundleEncoding::Modern))
        .at(Method::GET, "/enrol/terminal-legacy.p12", |server, call| {
            download(server, call, BundleEncoding::Legacy)
        })
        .at(Method::GET, "/enrol/terminal.mobileconfig", profile)
}

fn start(server: &Server, error: Option<String>, login_id: &str) -> Result<Answer> {
    let status = if error.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    // The first form has no session to ride on; the check of its origin stands for a token.
    render(status, &StartPage::new(Common::of(server), String::new(), error, login_id.to_owned()))
}

async fn begin(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let fields = fields(&server, &mut call).await?;
    let login_id: String = field(&fields, "login_id").chars().take(64).collect();
    let address = peer(&call.parts)?.address.ip();
    let limited = server.limiter.allow_before_login(address, server.now());
    let begun = match limited {
        Ok(()) => {
            enrol::begin(&server, &login_id, field(&fields, "password"), field(&fields, "code"), address)
                .await
        }
        Err(error) => Err(error),
    };
    match begun {
        // A redirect, so that the next form posts to its own address and reloading asks nothing again.
        Ok((cookie, _)) => Ok(with_cookie(redirect("/enrol/password"), &cookie)),
        Err(error) => {
            let told = match &error {
                Error::Refused(refusal) if refusal.code == crate::error::Code::Forbidden => {
                    "利用者ID、パスワード、登録コードのどれかが違うか、登録コードの期限が切れています。\
                     続けて間違えると、しばらく使えなくなります。"
                        .to_owned()
                }
                Error::Refused(refusal)
                    if matches!(refusal.code, crate::error::Code::LimitExceeded { .. }) =>
                {
                    "混み合っています。少し待ってからもう一度お試しください。".to_owned()
                }
                _ => sentence(error),
            };
            start(&server, Some(told), &login_id)
        }
    }
}

fn with_cookie(answer: Answer, cookie: &str) -> Answer {
    let Answer::Response(mut response) = answer else { return answer };
    let text = format!("{COOKIE}={cookie}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=1800");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    Answer::Response(response)
}

fn session(server: &Server, call: &Call) -> Option<Arc<Enrolment>> {
    server.enrolments.of(sent_cookie(call, COOKIE)?, server.now())
}

fn password(
    server: &Server,
    enrolment: &Enrolment,
    error: Option<String>,
    label: &str,
    private: bool,
) -> Result<Answer> {
    let status = if error.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    let rules = passwords::rules(server.config.policy.password_length_min);
    let page = PasswordPage::new(
        Common::of(server),
        enrolment.csrf.clone(),
        error,
        enrolment.display_name.clone(),
        rules,
        enrolment.further,
        label.to_owned(),
        private,
    );
    render(status, &page)
}

async fn finish(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let Some(enrolment) = session(&server, &call) else { return Ok(redirect("/enrol")) };
    let fields = fields(&server, &mut call).await?;
    let label = field(&fields, "terminal_label");
    let private = field(&fields, "ownership") == "private";
    let finished = async {
        if field(&fields, "csrf") != enrolment.csrf {
            return Err(forbidden("ページの有効期限が切れました。はじめからやり直してください。"));
        }
        let (new, again) = (field(&fields, "new_password"), field(&fields, "new_password_again"));
        if new != again {
            return Err(invalid("2回入力したパスワードが同じではありません。"));
        }
        let new_password = (!enrolment.further).then(|| new.to_owned());
        enrol::finish(&server, &enrolment, Choice { new_password, label: label.to_owned(), private }).await
    }
    .await;
    match finished {
        Ok(_) => Ok(redirect("/enrol/done")),
        Err(error) => password(&server, &enrolment, Some(sentence(error)), label, private),
    }
}

async fn done(server: Arc<Server>, call: Call) -> Result<Answer> {
    let Some(enrolment) = session(&server, &call) else { return Ok(redirect("/enrol")) };
    let bundle = match enrolment.finished() {
        Some(Finished::Certificate(bundle)) => bundle,
        Some(Finished::Password) => {
            let page = OutsideDonePage::new(
                Common::of(&server),
                enrolment.display_name.clone(),
                listed(&server, &enrolment).await?,
                &server.config.server.public_url,
            );
            return render(StatusCode::OK, &page);
        }
        None => return Ok(redirect("/enrol/password")),
    };
    let page = DonePage::new(
        Common::of(&server),
        enrolment.display_name.clone(),
        bundle.password.clone(),
        "/enrol/terminal.p12",
        "/enrol/terminal-legacy.p12",
        "/enrol/terminal.mobileconfig",
        enrolment.minutes_left(server.now()),
        &server.config.server.public_url,
    );
    render(StatusCode::OK, &page)
}

/// A terminal that is ready for whoever has just enrolled.
pub(super) struct ListedTerminal {
    label: String,
    number: i64,
    serial: String,
    until: String,
}

/// Terminals shown at most.
const LISTED_MAX: i64 = 50;

/// The terminals of the person's facility that have a good certificate; those of single people are theirs to know.
async fn listed(server: &Server, enrolment: &Enrolment) -> Result<Vec<ListedTerminal>> {
    let mut conn = server.db.read().await?;
    let account = store::accounts::account(&mut conn, enrolment.user_id.as_str()).await?;
    let Some(facility) = account.and_then(|account| account.facility) else { return Ok(Vec::new()) };
    let mut listed = Vec::new();
    for terminal in store::terminals::terminals_of_facility(&mut conn, facility, LISTED_MAX).await? {
        let newest = store::terminals::certificates_of(&mut conn, terminal.id).await?.pop();
        let good = newest.filter(|one| {
            one.revoked_at.is_none()
                && one.not_after >= server.now()
                && !server.terminals.is_listed(&one.serial)
        });
        if let Some(certificate) = good {
            listed.push(ListedTerminal {
                label: terminal.label,
                number: terminal.id,
                serial: certificate.serial,
                until: crate::audit::written_date(certificate.not_after),
            });
        }
    }
    Ok(listed)
}

async fn download(server: Arc<Server>, call: Call, encoding: BundleEncoding) -> Result<Answer> {
    let Some(bundle) = session(&server, &call).and_then(|enrolment| enrolment.bundle()) else {
        return Ok(redirect("/enrol"));
    };
    let file = pkcs12(&bundle.certificate, encoding, &bundle.password)
        .map_err(|error| Error::internal(error.to_string()))?;
    Ok(file_answer(file, "application/x-pkcs12", Some("attachment; filename=\"heya-terminal.p12\"")))
}

async fn profile(server: Arc<Server>, call: Call) -> Result<Answer> {
    let Some(bundle) = session(&server, &call).and_then(|enrolment| enrolment.bundle()) else {
        return Ok(redirect("/enrol"));
    };
    let legacy = pkcs12(&bundle.certificate, BundleEncoding::Legacy, &bundle.password)
        .map_err(|error| Error::internal(error.to_string()))?;
    let city = &server.config.city;
    let identifier = format!("jp.heya.{}", server.name.host());
    let text = Profile {
        display_name: &city.service,
        organization: &city.name,
        description: "電子証明書",
        identifier: &identifier,
    }
    .write(&bundle.certificate, &legacy);
    // No attachment: Safari opens it as a profile.
    Ok(file_answer(text.into_bytes(), "application/x-apple-aspen-config", None))
}

fn file_answer(content: Vec<u8>, kind: &'static str, disposition: Option<&'static str>) -> Answer {
    let mut response = Response::new(content.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(disposition) = disposition {
        headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static(disposition));
    }
    Answer::Response(response)
}
