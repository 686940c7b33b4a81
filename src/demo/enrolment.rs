//! Enrolment as people do it: two sheets of paper, three pages in a browser, a .p12 file for the terminal.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use heya::{
    error::{Error, Result},
    files,
};
use p12_keystore::{KeyStore, Pkcs12ImportPolicy};
use reqwest::{Method, header};

use super::client::{Answer, Http, Place, answer};

/// What the two sheets say, brought together by the person who got both.
pub struct Sheets {
    /// The ID.
    pub login_id: String,
    /// The initial password; one's own where a further terminal is enrolled.
    pub password: String,
    /// The one-time code.
    pub code: String,
}

/// An enrolled terminal.
#[derive(Clone)]
pub struct Terminal {
    /// The .p12 file.
    pub file: PathBuf,
    /// Its password.
    pub file_password: String,
    /// Certificate and key, as the client takes them.
    pub identity: Vec<u8>,
}

impl Sheets {
    /// Reads a password sheet and a code sheet.
    pub fn read(data: &Path, sheets: &[String]) -> Result<Self> {
        let of = |kind: &str| {
            let name = sheets.iter().find(|name| name.ends_with(&format!("-{kind}.html")));
            let name =
                name.ok_or_else(|| Error::internal(format!("there is no {kind} sheet among {sheets:?}")))?;
            std::fs::read_to_string(data.join(name))
                .map_err(|error| Error::internal(format!("{name}: {error}")))
        };
        let password = of("password")?;
        Ok(Self {
            login_id: printed(&password, "利用者ID")?,
            password: printed(&password, "初期パスワード")?,
            code: printed(&of("code")?, "登録コード")?,
        })
    }

    /// Reads the code sheet for a further terminal, for somebody with a password of their own.
    pub fn further(data: &Path, sheet: &str, login_id: &str, password: &str) -> Result<Self> {
        let page = std::fs::read_to_string(data.join(sheet))?;
        let code = printed(&page, "登録コード")?;
        Ok(Self { login_id: login_id.to_owned(), password: password.to_owned(), code })
    }
}

/// The value in a sheet's table beside a label.
fn printed(page: &str, label: &str) -> Result<String> {
    page.split_once(&format!("<th scope=\"row\">{label}</th>"))
        .and_then(|(_, rest)| between(rest, "<span class=\"value\">", "</span>"))
        .map(str::to_owned)
        .ok_or_else(|| Error::internal(format!("a sheet does not say its {label}")))
}

/// What stands between two texts.
pub fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

/// Goes through the pages. `new_password` is none for a further terminal. The .p12 file is put into `folder`.
pub async fn enrol(
    place: &Place,
    sheets: &Sheets,
    new_password: Option<&str>,
    label: &str,
    folder: &Path,
) -> Result<Terminal> {
    let browser = place.browser()?;
    answer(browser.request(Method::GET, "/enrol")).await?.expect("the page for the two sheets", 200)?;
    let fields = [("login_id", &*sheets.login_id), ("password", &sheets.password), ("code", &sheets.code)];
    let begun = post(&browser, "/enrol", &fields, None).await?;
    begun.expect("ID, password and code on the first page", 303)?;
    let cookie = begun.headers.get(header::SET_COOKIE).and_then(|value| value.to_str().ok());
    let cookie = cookie
        .and_then(|cookie| cookie.split(';').next())
        .ok_or_else(|| Error::internal("the first page set no cookie"))?
        .to_owned();
    let get = |path: &str| answer(browser.request(Method::GET, path).header(header::COOKIE, &cookie));
    let page = get("/enrol/password").await?;
    page.expect("the second page", 200)?;
    let text = page.text();
    let csrf = between(&text, "name=\"csrf\" value=\"", "\"").unwrap_or_default();
    let own = new_password.unwrap_or_default();
    let fields = [
        ("csrf", csrf),
        ("new_password", own),
        ("new_password_again", own),
        ("terminal_label", label),
        ("ownership", "facility"),
    ];
    let sent = post(&browser, "/enrol/password", &fields, Some(&cookie)).await?;
    if sent.status.as_u16() == 400 {
        let text = sent.text();
        let why = between(&text, "role=\"alert\">", "</div>").unwrap_or_default().trim().to_owned();
        return Err(Error::internal(format!(
            "password and terminal on the second page: expected 303, got 400 {why}"
        )));
    }
    sent.expect("password and terminal on the second page", 303)?;
    let done = get("/enrol/done").await?;
    done.expect("the last page", 200)?;
    let text = done.text();
    let file_password = between(&text, "<p class=\"secret\"", "</p>")
        .and_then(|rest| rest.split_once('>'))
        .map(|(_, password)| password.trim().to_owned())
        .ok_or_else(|| Error::internal("the last page shows no password for the .p12 file"))?;
    let p12 = get("/enrol/terminal.p12").await?;
    p12.expect("the .p12 file", 200)?;
    let number = std::fs::read_dir(folder)?.count() + 1;
    let file = folder.join(format!("{}-{number}.p12", sheets.login_id));
    files::write_private(&file, &p12.body)?;
    Ok(Terminal { file, identity: pem_of(&p12.body, &file_password)?, file_password })
}

/// Posts a form as a browser does.
pub async fn post(http: &Http, path: &str, fields: &[(&str, &str)], cookie: Option<&str>) -> Result<Answer> {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let mut request = http
        .request(Method::POST, path)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body);
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, cookie);
    }
    answer(request).await
}

/// Certificate and key of a .p12 file as PEM.
fn pem_of(p12: &[u8], password: &str) -> Result<Vec<u8>> {
    let store = KeyStore::from_pkcs12(p12, password, Pkcs12ImportPolicy::Strict)
        .map_err(|error| Error::internal(format!("the .p12 file cannot be opened: {error}")))?;
    let (_, chain) = store
        .private_key_chain()
        .ok_or_else(|| Error::internal("the .p12 file has no key with a certificate"))?;
    let mut pem = String::new();
    for certificate in chain.certs() {
        pem.push_str(&armored("CERTIFICATE", certificate.as_der()));
    }
    pem.push_str(&armored("PRIVATE KEY", chain.key().as_der()));
    Ok(pem.into_bytes())
}

/// RFC 7468: base64 in lines of 64 characters between two labels.
fn armored(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    // Multiples of three bytes encode without padding: 48 bytes are 64 characters.
    for chunk in der.chunks(48) {
        text.push_str(&base64::engine::general_purpose::STANDARD.encode(chunk));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
