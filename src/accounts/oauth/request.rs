//! What a client asks for on the authorize page (RFC 6749, 4.1.1; RFC 7636), and where the answer goes.

use super::{
    Told,
    clients::{self, Client},
    issuer,
    scope::{self, Scope},
    told,
};
use crate::{error::Result, server::Server};

/// The longest state, in bytes.
const STATE_MAX: usize = 2_000;

/// How the answer goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the query.
    Query,
    /// In the fragment.
    Fragment,
}

/// A client with a place for the answer, both checked.
#[derive(Clone, Debug)]
pub struct Back {
    /// The client.
    pub client: Client,
    /// Where the answer goes.
    pub redirect_uri: String,
    /// What comes back with it.
    pub state: Option<String>,
    /// How.
    pub mode: Mode,
}

/// A request that can be granted.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who asks, and where the answer goes.
    pub back: Back,
    /// For what.
    pub scope: Scope,
    /// The PKCE challenge, by S256.
    pub challenge: String,
    /// The ID that the client thinks of.
    pub hint: String,
}

/// A request, read.
#[derive(Debug)]
pub enum Read {
    /// Good.
    Asked(Box<Asked>),
    /// The client is told what is wrong, if the person agrees to go there.
    Wrong(Box<Back>, Told),
    /// Nobody is sent anywhere: client or redirect URI is not one of ours.
    Nobody,
}

/// Reads the fields of a request. Only fields that stand there once count.
pub async fn read(server: &Server, fields: &[(String, String)]) -> Result<Read> {
    let count = |name: &str| fields.iter().filter(|(key, _)| key == name).count();
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if count("client_id") != 1 || count("redirect_uri") != 1 {
        return Ok(Read::Nobody);
    }
    let (Some(id), Some(redirect_uri)) = (field("client_id"), field("redirect_uri")) else {
        return Ok(Read::Nobody);
    };
    let Some(client) = clients::client(server, id).await? else { return Ok(Read::Nobody) };
    if !client.may("authorization_code") || !client.may_redirect_to(redirect_uri) {
        return Ok(Read::Nobody);
    }
    let mode = if field("response_mode") == Some("fragment") { Mode::Fragment } else { Mode::Query };
    let state = field("state").map(ToOwned::to_owned);
    let back = Back { client, redirect_uri: redirect_uri.to_owned(), state, mode };
    let wrong = |why: Told| Ok(Read::Wrong(Box::new(back.clone()), why));
    for name in [
        "response_type",
        "response_mode",
        "state",
        "scope",
        "code_challenge",
        "code_challenge_method",
        "prompt",
    ] {
        if count(name) > 1 {
            return wrong(told("invalid_request", "a parameter stands there twice"));
        }
    }
    if field("response_type") != Some("code") {
        return wrong(told("unsupported_response_type", "response_type is code"));
    }
    if !matches!(field("response_mode"), None | Some("query" | "fragment")) {
        return wrong(told("invalid_request", "response_mode is query or fragment"));
    }
    if back.state.as_ref().is_some_and(|state| state.is_empty() || state.len() > STATE_MAX) {
        return wrong(told("invalid_request", "state is empty or too long"));
    }
    if field("prompt") == Some("none") {
        return wrong(told("login_required", "the password is asked for every time"));
    }
    let challenge = field("code_challenge").unwrap_or_default();
    // base64url of 32 bytes.
    let good =
        challenge.len() == 43 && challenge.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if !good || field("code_challenge_method") != Some("S256") {
        return wrong(told("invalid_request", "PKCE with S256 is needed"));
    }
    let scope = match scope::parse(field("scope").unwrap_or_default()) {
        Ok(scope) => scope,
        Err(why) => return wrong(why),
    };
    let hint = field("login_hint").unwrap_or_default();
    let hint = hint.strip_prefix("mxid:").unwrap_or(hint);
    let hint: String = hint.chars().filter(|c| !c.is_control()).take(255).collect();
    Ok(Read::Asked(Box::new(Asked { scope, challenge: challenge.to_owned(), hint, back })))
}

impl Back {
    /// The URL of an answer.
    pub fn url(&self, server: &Server, answer: &[(&str, &str)]) -> String {
        let mut fields = form_urlencoded::Serializer::new(String::new());
        for (name, value) in answer {
            fields.append_pair(name, value);
        }
        if let Some(state) = &self.state {
            fields.append_pair("state", state);
        }
        fields.append_pair("iss", &issuer(server));
        let divider = match self.mode {
            Mode::Fragment => '#',
            Mode::Query if self.redirect_uri.contains('?') => '&',
            Mode::Query => '?',
        };
        format!("{}{divider}{}", self.redirect_uri, fields.finish())
    }

    /// The URL of an error.
    pub fn refusal(&self, server: &Server, why: Told) -> String {
        self.url(server, &[("error", why.error), ("error_description", why.description)])
    }

    /// Where the answer goes, as a page's policy names it: the origin, or the scheme of an app.
    pub fn target(&self) -> String {
        let Ok(url) = url::Url::parse(&self.redirect_uri) else { return String::new() };
        match url.origin() {
            // A policy has no form for addresses in brackets.
            origin if origin.is_tuple() && !self.redirect_uri.contains('[') => origin.ascii_serialization(),
            _ => format!("{}:", url.scheme()),
        }
    }

    /// Where the answer goes, for people.
    pub fn place(&self) -> String {
        let Ok(url) = url::Url::parse(&self.redirect_uri) else { return String::new() };
        match url.host_str() {
            Some(host) => host.to_owned(),
            None => format!("{}: （このアプリ）", url.scheme()),
        }
    }
}
