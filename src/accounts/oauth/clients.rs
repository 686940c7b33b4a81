//! Clients that register themselves (client-server API, "Client registration"; RFC 7591). Nothing that a client says of
//! itself is verified but where its answers may go, so its name is shown as its own words.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::{Failed, Told, told};
use crate::{
    error::{Code, refuse},
    http::limits::network,
    rooms::committer::Hint,
    server::Server,
    store,
};

/// Clients in all. Where there are so many, those that nobody used within a day of their registration give way.
const CLIENTS_MAX: i64 = 2_000;
/// New clients from one address within an hour.
const FROM_ADDRESS_MAX: u32 = 30;
/// Addresses remembered.
const ADDRESSES_MAX: usize = 10_000;
const HOUR_MS: i64 = 3_600_000;
/// Redirect URIs of a client, bytes of a URI, characters of a name.
const REDIRECTS_MAX: usize = 20;
const URI_MAX: usize = 2_000;
const NAME_MAX: usize = 100;

/// What is kept of a client's metadata: what was checked, and nothing else. No logo, since pages show nothing from outside.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Metadata {
    /// `web` or `native`.
    pub application_type: String,
    /// What it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_name: Option<String>,
    /// The same in Japanese.
    #[serde(rename = "client_name#ja", skip_serializing_if = "Option::is_none")]
    pub client_name_ja: Option<String>,
    /// Its page; every other URI is on this host or below.
    pub client_uri: String,
    /// What it may ask for.
    pub grant_types: Vec<String>,
    /// Where its privacy policy is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_uri: Option<String>,
    /// Where answers may go.
    pub redirect_uris: Vec<String>,
    /// Always `code`.
    pub response_types: Vec<String>,
    /// Always `none`: a client that people install keeps no secret.
    pub token_endpoint_auth_method: String,
    /// Where its terms are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos_uri: Option<String>,
}

/// A registered client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its id.
    pub id: String,
    /// What it said of itself.
    pub metadata: Metadata,
}

impl Client {
    /// What people are shown; the host of its page where it has no name.
    pub fn name(&self) -> String {
        let metadata = &self.metadata;
        let name = metadata.client_name_ja.as_ref().or(metadata.client_name.as_ref());
        name.cloned().unwrap_or_else(|| self.host())
    }

    /// The host of its page.
    pub fn host(&self) -> String {
        Url::parse(&self.metadata.client_uri)
            .ok()
            .and_then(|url| url.host_str().map(ToOwned::to_owned))
            .unwrap_or_default()
    }

    /// Whether it may use a grant.
    pub fn may(&self, grant: &str) -> bool {
        self.metadata.grant_types.iter().any(|own| own == grant)
    }

    /// Whether answers may go there: exactly as registered, but for the port of a loopback address (RFC 8252, 7.3).
    pub fn may_redirect_to(&self, uri: &str) -> bool {
        self.metadata.redirect_uris.iter().any(|own| own == uri || same_loopback(own, uri))
    }
}

/// The grants that are offered.
pub const GRANTS: [&str; 3] =
    ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"];

const fn metadata(description: &'static str) -> Told {
    told("invalid_client_metadata", description)
}

const fn redirect(description: &'static str) -> Told {
    told("invalid_redirect_uri", description)
}

/// Checks a client's metadata. `open`: pages on this machine need no TLS (the open profile).
pub fn check(body: &Map<String, Value>, open: bool) -> Result<Metadata, Told> {
    let text = |key: &str| match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(metadata("a field that is a string has another type")),
    };
    let list = |key: &str| match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) if items.len() <= REDIRECTS_MAX => items
            .iter()
            .map(|item| item.as_str().map(ToOwned::to_owned))
            .collect::<Option<Vec<String>>>()
            .map(Some)
            .ok_or(metadata("a field that is a list of strings has another type")),
        Some(_) => Err(metadata("a field that is a list of strings has another type or is too long")),
    };
    let client_uri = text("client_uri")?.ok_or(metadata("client_uri is needed"))?;
    let page = web_uri(&client_uri, open).ok_or(metadata("client_uri is an https URL without user name"))?;
    let host = page.host_str().unwrap_or_default().to_owned();
    let application_type = text("application_type")?.unwrap_or_else(|| "web".to_owned());
    if !["web", "native"].contains(&application_type.as_str()) {
        return Err(metadata("application_type is web or native"));
    }
    let below = |key: &str| -> Result<Option<String>, Told> {
        let Some(uri) = text(key)? else { return Ok(None) };
        let good = web_uri(&uri, open).is_some_and(|url| is_below(&url, &host));
        if good { Ok(Some(uri)) } else { Err(metadata("a URI is not on the host of client_uri")) }
    };
    let grant_types = list("grant_types")?.unwrap_or_else(|| vec!["authorization_code".to_owned()]);
    let grant_types: Vec<String> =
        grant_types.into_iter().filter(|grant| GRANTS.contains(&grant.as_str())).collect();
    let response_types = list("response_types")?.unwrap_or_else(|| vec!["code".to_owned()]);
    let method = text("token_endpoint_auth_method")?.unwrap_or_else(|| "none".to_owned());
    if method != "none" {
        return Err(metadata("token_endpoint_auth_method is none: clients are public"));
    }
    let redirect_uris = list("redirect_uris")?.unwrap_or_default();
    for uri in &redirect_uris {
        check_redirect(uri, &application_type, &host, open)?;
    }
    if grant_types.iter().any(|grant| grant == "authorization_code") {
        if redirect_uris.is_empty() {
            return Err(redirect("the authorization code grant needs a redirect URI"));
        }
        if !response_types.iter().any(|kind| kind == "code") {
            return Err(metadata("response_types must include code"));
        }
    } else if grant_types.is_empty() {
        return Err(metadata("none of the grant_types is offered"));
    }
    Ok(Metadata {
        application_type,
        client_name: name(text("client_name")?)?,
        client_name_ja: name(text("client_name#ja")?)?,
        client_uri,
        grant_types,
        policy_uri: below("policy_uri")?,
        redirect_uris,
        response_types: vec!["code".to_owned()],
        token_endpoint_auth_method: method,
        tos_uri: below("tos_uri")?,
    })
}

/// A name that a page can show: no control characters, and none that turn the text around it.
fn name(given: Option<String>) -> Result<Option<String>, Told> {
    let Some(name) = given.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let turns = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    if name.chars().count() > NAME_MAX || name.chars().any(|c| c.is_control() || turns(c)) {
        return Err(metadata("client_name is too long or has characters that cannot be shown"));
    }
    Ok(Some(name))
}

fn is_local(host: &str) -> bool {
    ["localhost", "127.0.0.1", "[::1]"].contains(&host)
}

/// A URI as text that means the same to everybody: visible ASCII, nothing that parsers read differently.
fn parse(uri: &str) -> Option<Url> {
    let plain =
        uri.len() <= URI_MAX && uri.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}'".contains(&b));
    if plain { Url::parse(uri).ok() } else { None }
}

fn web_uri(uri: &str, open: bool) -> Option<Url> {
    let url = parse(uri)?;
    let secure =
        url.scheme() == "https" || open && url.scheme() == "http" && url.host_str().is_some_and(is_local);
    let good = secure
        && url.host_str().is_some_and(|host| !host.is_empty())
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
        && !uri.contains('#');
    good.then_some(url)
}

/// Whether a URL is on a host or on a subdomain of it.
fn is_below(url: &Url, host: &str) -> bool {
    url.host_str().is_some_and(|own| {
        own == host
            || own.strip_suffix(host).is_some_and(|rest| rest.ends_with('.')) && url.domain().is_some()
    })
}

/// The rules for redirect URIs (client-server API, "Redirect URI validation").
fn check_redirect(uri: &str, kind: &str, host: &str, open: bool) -> Result<(), Told> {
    let url = parse(uri).ok_or(redirect("a redirect URI cannot be read"))?;
    if url.fragment().is_some() || uri.contains('#') {
        return Err(redirect("a redirect URI has no fragment"));
    }
    if web_uri(uri, open).is_some() {
        return if is_below(&url, host) {
            Ok(())
        } else {
            Err(redirect("a redirect URI is on the host of client_uri"))
        };
    }
    if kind != "native" {
        return Err(redirect("web clients have https redirect URIs"));
    }
    if url.scheme() == "http" {
        let good = url.host_str().is_some_and(is_local)
            && url.port().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        return if good { Ok(()) } else { Err(redirect("http is for loopback addresses, without a port")) };
    }
    // A scheme of the app's own: the host backwards, then perhaps more; nothing that looks like a host behind it.
    let mut backwards: Vec<&str> = host.split('.').collect();
    backwards.reverse();
    let backwards = backwards.join(".");
    let own = url.scheme() == backwards
        || url.scheme().strip_prefix(&backwards).is_some_and(|rest| rest.starts_with('.'));
    let rest = uri.get(url.scheme().len() + 1..).unwrap_or_default();
    let named = host.contains('.') && host.parse::<std::net::Ipv4Addr>().is_err() && !host.starts_with('[');
    if own && named && !rest.starts_with("//") {
        Ok(())
    } else {
        Err(redirect("an app's own scheme is the host of client_uri backwards, without a host behind it"))
    }
}

/// Whether an address is a registered loopback address but for its port.
fn same_loopback(registered: &str, asked: &str) -> bool {
    let (Some(registered), Some(mut asked)) = (parse(registered), parse(asked)) else { return false };
    let loopback = registered.scheme() == "http"
        && registered.host_str().is_some_and(is_local)
        && registered.port().is_none();
    loopback && asked.fragment().is_none() && asked.set_port(None).is_ok() && asked == registered
}

/// Registers a client; the same metadata is the same client.
pub async fn register(
    server: &Arc<Server>,
    body: &Map<String, Value>,
    address: IpAddr,
) -> Result<Client, Failed> {
    let metadata = check(body, server.config.policy.open_profile)?;
    let text = serde_json::to_string(&metadata).map_err(crate::error::Error::from)?;
    let id = crate::audit::hex(&Sha256::digest(text.as_bytes())).chars().take(32).collect::<String>();
    if store::oauth::client(&mut server.db.read().await?, &id).await?.is_some() {
        return Ok(Client { id, metadata });
    }
    count(server, address)?;
    let row = store::oauth::Client { client_id: id.clone(), metadata: text };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let conn = batch.sql().await?;
                if store::oauth::clients(conn).await? >= CLIENTS_MAX {
                    store::oauth::forget_clients(conn, now - 24 * HOUR_MS).await?;
                    if store::oauth::clients(conn).await? >= CLIENTS_MAX {
                        return Err(refuse(
                            Code::LimitExceeded { retry_after_ms: 3_600_000 },
                            "Too many clients are registered.",
                        ));
                    }
                }
                store::oauth::put_client(conn, &row, now).await
            })
        })
        .await?;
    Ok(Client { id, metadata })
}

fn count(server: &Server, address: IpAddr) -> Result<(), Failed> {
    let now = server.now();
    let mut all = server.oauth.registered.lock();
    if all.len() >= ADDRESSES_MAX {
        all.retain(|_, (_, since)| now - *since < HOUR_MS);
        if all.len() >= ADDRESSES_MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, (_, since))| *since).map(|(key, _)| *key)
        {
            all.remove(&oldest);
        }
    }
    let (n, since) = all.entry(network(address)).or_insert((0, now));
    if now - *since >= HOUR_MS {
        (*n, *since) = (0, now);
    }
    *n += 1;
    if *n > FROM_ADDRESS_MAX {
        *n = FROM_ADDRESS_MAX;
        return Err(Failed::Other(refuse(
            Code::LimitExceeded { retry_after_ms: 600_000 },
            "Too many clients were registered from this address.",
        )));
    }
    Ok(())
}

/// A client by its id.
pub async fn client(server: &Server, id: &str) -> crate::error::Result<Option<Client>> {
    if id.len() > 64 {
        return Ok(None);
    }
    let row = store::oauth::client(&mut server.db.read().await?, id).await?;
    row.map(|row| Ok(Client { id: row.client_id, metadata: serde_json::from_str(&row.metadata)? }))
        .transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(kind: &str, uri: &str) -> Result<Metadata, Told> {
        let body = json!({"client_uri": "https://app.example.com/x", "application_type": kind, "redirect_uris": [uri]});
        check(body.as_object().unwrap(), false)
    }

    #[test]
    fn redirect_uris_are_the_clients_own() {
        for (kind, uri) in [
            ("web", "https://app.example.com/callback?a=b"),
            ("web", "https://sub.app.example.com:8443/"),
            ("native", "https://app.example.com/"),
            ("native", "com.example.app:/callback"),
            ("native", "com.example.app.ios:callback"),
            ("native", "http://localhost/"),
            ("native", "http://127.0.0.1/cb"),
            ("native", "http://[::1]/"),
        ] {
            assert!(with(kind, uri).is_ok(), "{kind} {uri} was refused: {:?}", with(kind, uri));
        }
        for (kind, uri) in [
            ("web", "http://app.example.com/"),
            ("web", "https://example.com/"),
            ("web", "https://evilapp.example.com/"),
            ("web", "https://app.example.com.evil.example/"),
            ("web", "https://app.example.com@evil.example/"),
            ("web", "https://user@app.example.com/"),
            ("web", "https://app.example.com/#x"),
            ("web", "https://app.example.com/#"),
            ("web", "https://evil.example\\@app.example.com/"),
            ("web", "com.example.app:/callback"),
            ("web", "http://localhost/"),
            ("native", "com.example.app://host/"),
            ("native", "com.example:/callback"),
            ("native", "com.example.apple:/callback"),
            ("native", "javascript:alert(1)"),
            ("native", "data:text/html,x"),
            ("native", "http://localhost:1234/"),
            ("native", "http://localhost.evil.example/"),
            ("native", "http://127.0.0.2/"),
            ("native", "not a uri"),
            ("native", ""),
        ] {
            assert!(with(kind, uri).is_err(), "{kind} {uri} was taken");
        }
    }

    #[test]
    fn only_the_port_of_a_loopback_address_is_free() {
        let client = |uri: &str| Client { id: String::new(), metadata: with("native", uri).unwrap() };
        let local = client("http://127.0.0.1/cb");
        assert!(
            local.may_redirect_to("http://127.0.0.1/cb")
                && local.may_redirect_to("http://127.0.0.1:43111/cb")
        );
        for bad in [
            "http://127.0.0.1:43111/other",
            "http://localhost:43111/cb",
            "https://127.0.0.1:43111/cb",
            "http://127.0.0.1:43111/cb?x=y",
            "http://127.0.0.1:43111/cb#x",
            "http://u@127.0.0.1:43111/cb",
        ] {
            assert!(!local.may_redirect_to(bad), "{bad}");
        }
        let web = client("https://app.example.com/cb");
        for bad in [
            "https://app.example.com/cb/",
            "https://app.example.com/CB",
            "https://app.example.com:444/cb",
            "https://app.example.com/cb?",
        ] {
            assert!(!web.may_redirect_to(bad), "{bad}");
        }
    }

    #[test]
    fn what_a_client_says_is_bounded() {
        let good = json!({"client_uri": "https://a.example", "redirect_uris": ["https://a.example/"], "client_name": " 看護アプリ ",
            "logo_uri": "https://evil.example/x.png", "unknown": [1], "grant_types": ["authorization_code", "refresh_token", "password"]});
        let kept = check(good.as_object().unwrap(), false).unwrap();
        assert_eq!(kept.client_name.as_deref(), Some("看護アプリ"));
        assert_eq!(kept.grant_types, ["authorization_code", "refresh_token"]);
        assert!(!serde_json::to_string(&kept).unwrap().contains("evil"));
        for (key, bad) in [
            ("client_uri", json!("http://a.example")),
            ("client_uri", json!("https://u:p@a.example")),
            ("client_uri", json!(7)),
            ("client_name", json!("x".repeat(101))),
            ("client_name", json!("a\u{202e}b")),
            ("tos_uri", json!("https://b.example/")),
            ("policy_uri", json!("https://xa.example/")),
            ("redirect_uris", json!([])),
            ("redirect_uris", json!([1])),
            ("redirect_uris", json!(vec!["https://a.example/"; 21])),
            ("grant_types", json!(["password"])),
            ("response_types", json!(["token"])),
            ("token_endpoint_auth_method", json!("client_secret_basic")),
            ("application_type", json!("service")),
        ] {
            let mut body = good.as_object().unwrap().clone();
            body.insert(key.to_owned(), bad.clone());
            assert!(check(&body, false).is_err(), "{key}: {bad}");
        }
    }
}
