//! The web client that the operator dropped in: served from the API's own origin, with the script that makes its
//! requests carry the certificate in every browser, and a generated `config.json` (DESIGN 1).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::{
    api::pages,
    config::Config,
    error::{Code, Error, Result, refuse},
    http::route::{Answer, Call, Routes},
    server::Server,
};

/// matrix-js-sdk asks browsers to omit credentials, and Firefox then omits the certificate too; requests to our own
/// origin carry it again. And Element sends phones to a page that advertises apps, before it reads its config, unless this
/// cookie says that somebody has seen that page: its apps cannot show a certificate, the browser can.
const SCRIPT: &str = "(() => {\n  document.cookie = \"element_mobile_redirect_to_guide=false; path=/; SameSite=Strict; Secure\";\n  const fetched = window.fetch;\n  window.fetch = (input, init) => {\n    const url = new URL(input instanceof Request ? input.url : input, location.href);\n    if (url.origin === location.origin) {\n      if (input instanceof Request && input.credentials === \"omit\") input = new Request(input, { credentials: \"same-origin\" });\n      if (init && init.credentials === \"omit\") init = { ...init, credentials: \"same-origin\" };\n    }\n    return fetched.call(window, input, init);\n  };\n})();\n";
/// Where it is served.
const SCRIPT_PATH: &str = "/_heya/certificate.js";
/// What the client shows before a room is chosen.
const HOME_PATH: &str = "/_heya/home.html";
/// Files larger than this are not served.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Adds the routes: the folder, or a page that explains.
pub fn routes(routes: Routes, config: &Config) -> Result<Routes> {
    let folder = &config.web.client_dir;
    if folder.as_os_str().is_empty() {
        return Ok(routes.at(http::Method::GET, "/", |server, _| async move { pages::no_client(&server) }));
    }
    if !folder.join("index.html").is_file() {
        return Err(Error::internal(format!("web.client_dir: {} has no index.html", folder.display())));
    }
    Ok(routes
        .at(http::Method::GET, SCRIPT_PATH, |_, _| async {
            Ok(content("text/javascript; charset=utf-8", SCRIPT.into(), Caching::Ask(None)))
        })
        .at(http::Method::GET, "/config.json", client_config)
        .at(http::Method::GET, HOME_PATH, |server, _| async move {
            let page = pages::client_home(&server)?;
            Ok(content("text/html; charset=utf-8", page.into(), Caching::Ask(None)))
        })
        .at(http::Method::GET, "/", |server, call| async move { file(&server, &call, "index.html").await })
        .at(http::Method::POST, "/{*path}", unknown)
        .at(http::Method::PUT, "/{*path}", unknown)
        .at(http::Method::DELETE, "/{*path}", unknown)
        .at(http::Method::GET, "/{*path}", |server, call| async move {
            let path = call.arg(0).to_owned();
            // matrix-js-sdk decides by the errcode of what is not served.
            if ["_matrix/", "_heya/", "_synapse/", ".well-known/"].iter().any(|start| path.starts_with(start))
            {
                return Err(refuse(Code::Unrecognized, "There is no such endpoint here."));
            }
            file(&server, &call, &path).await
        }))
}

/// With the folder served, only its files are asked for by GET: anything else is an endpoint that is not there.
async fn unknown(_: Arc<Server>, _: Call) -> Result<Answer> {
    Err(refuse(Code::Unrecognized, "There is no such endpoint here."))
}

/// What Element Web reads at its start: this server, Japanese, no guests, nothing outside. Where a key that is left out means
/// somebody else's service in Element's own defaults, it is set to none here.
async fn client_config(server: Arc<Server>, _: Call) -> Result<Answer> {
    let base_url = server.config.server.public_url.trim_end_matches('/');
    let city = &server.config.city;
    let links: Vec<_> = city.links.iter().map(|link| json!({"text": link.label, "url": link.url})).collect();
    let body = json!({
        "default_server_config": {"m.homeserver": {"base_url": base_url, "server_name": server.name}},
        "brand": city.service,
        "default_country_code": "JP",
        "setting_defaults": {
            "language": "ja", "urlPreviewsEnabled": false, "fallbackICEServerAllowed": false, "webRtcAllowPeerToPeer": false,
            "UIFeature.registration": false, "UIFeature.passwordReset": server.config.policy.password_reset_by_mail,
            "UIFeature.deactivate": false,
            "UIFeature.thirdPartyId": true, "UIFeature.identityServer": false, "UIFeature.widgets": false,
            "UIFeature.voip": server.turn.is_some(), "UIFeature.advancedEncryption": false, "UIFeature.feedback": false,
            "UIFeature.BulkUnverifiedSessionsReminder": false, "UIFeature.locationSharing": false,
            "UIFeature.shareQrCode": false, "UIFeature.shareSocial": false,
        },
        "features": {"feature_video_rooms": false, "feature_group_calls": false, "feature_element_call_video_rooms": false},
        "disable_custom_urls": true, "disable_guests": true, "disable_3pid_login": true,
        "disable_login_language_selector": false, "default_federate": false, "default_theme": "light",
        "show_labs_settings": false, "mobile_guide_toast": false, "room_directory": {"servers": []},
        "enable_presence_by_hs_url": {base_url: false},
        "integrations_ui_url": "", "integrations_rest_url": "", "integrations_widgets_urls": [],
        "bug_report_endpoint_url": "", "map_style_url": "", "jitsi": {"preferred_domain": server.config.host()},
        "help_url": format!("{}/help", server.config.enrol_url()), "terms_and_conditions_links": links,
        "branding": {"auth_footer_links": links}, "embedded_pages": {"login_for_welcome": true, "home_url": HOME_PATH},
        // "Copy link" would lead to somebody else's page otherwise.
        "permalink_prefix": base_url,
        "desktop_builds": {"available": false, "logo": "", "url": ""},
        "mobile_builds": {"ios": null, "android": null, "fdroid": null},
    });
    Ok(content("application/json", body.to_string().into(), Caching::Ask(None)))
}

async fn file(server: &Arc<Server>, call: &Call, path: &str) -> Result<Answer> {
    // Element asks for a `config.<host>.json` first: an old one in the folder would be obeyed instead of ours.
    if path.starts_with("config.") && path.ends_with(".json") {
        return pages::not_found(server);
    }
    // A folder is its page, as web servers have it: Element downloads files through `usercontent/`. Without the slash the
    // page's own links would lead astray.
    let page = if path.ends_with('/') { format!("{path}index.html") } else { path.to_owned() };
    let path = page.as_str();
    let Some(found) = inside(&server.config.web.client_dir, path) else { return pages::not_found(server) };
    if found.join("index.html").is_file() {
        return Ok(Answer::Response(to_folder(path)));
    }
    let read = async {
        let meta = tokio::fs::metadata(&found).await.ok()?;
        if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
            return None;
        }
        let caching = if is_named_by_hash(path) { Caching::Forever } else { Caching::Ask(tag(&meta)) };
        if let Caching::Ask(Some(tag)) = &caching
            && known(call, tag)
        {
            return Some((None, caching));
        }
        Some((Some(tokio::fs::read(&found).await.ok()?), caching))
    };
    let Some((bytes, caching)) = read.await else { return pages::not_found(server) };
    let Some(bytes) = bytes else {
        let Answer::Response(mut unchanged) = content(kind(path), Vec::new(), caching) else {
            return Err(Error::internal("an answer without its headers"));
        };
        *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(Answer::Response(unchanged));
    };
    let bytes = if path == "index.html" { with_script(&bytes) } else { bytes };
    Ok(content(kind(path), bytes, caching))
}

/// Sends whoever asks for a folder to its page.
fn to_folder(path: &str) -> Response {
    let mut response = Response::new(Body::empty());
    // Relative, so that it leads nowhere else whatever the path is.
    let name = path.rsplit('/').next().unwrap_or_default();
    if let Ok(place) = HeaderValue::from_str(&format!("./{}/", utf8_percent_encode(name, NON_ALPHANUMERIC))) {
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        response.headers_mut().insert(header::LOCATION, place);
    } else {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}

/// The client's page with our script before any of its own, and with a manifest that is asked for with the certificate.
fn with_script(page: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(page);
    let tag = format!("<script src=\"{SCRIPT_PATH}\"></script>");
    let text = match text.find("<head>") {
        Some(at) => format!("{}{tag}{}", &text[..at + 6], &text[at + 6..]),
        None => format!("{tag}{text}"),
    };
    let manifest = "rel=\"manifest\"";
    let asks = format!("{manifest} crossorigin=");
    if text.contains(&asks) {
        return text.into_bytes();
    }
    text.replace(manifest, &format!("{asks}\"use-credentials\"")).into_bytes()
}

/// Whether a file's name, or its folder's, has a hash of what is in it, as the client's build writes them: it never changes
/// then. Anything else is asked for again, and not sent again while it is the same.
fn is_named_by_hash(path: &str) -> bool {
    path.contains('/')
        && path.split(['/', '.']).any(|part| {
            part.len() >= 7
                && part.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
                && part.bytes().any(|c| c.is_ascii_digit())
        })
}

/// A tag of a file as it is now. Weak, since the answer may go out compressed.
fn tag(meta: &std::fs::Metadata) -> Option<String> {
    let changed = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(format!("W/\"{:x}-{:x}\"", changed.as_nanos(), meta.len()))
}

/// Whether the caller has the file with this tag already (RFC 9110, 13.1.2).
fn known(call: &Call, tag: &str) -> bool {
    let given = call.parts.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    given.is_some_and(|given| given.split(',').any(|one| one.trim() == tag))
}

/// The file below the folder; none for a path that leads out of it.
fn inside(folder: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain {
        return None;
    }
    let folder = folder.canonicalize().ok()?;
    let found = folder.join(path).canonicalize().ok()?;
    found.starts_with(&folder).then_some(found)
}

/// How long an answer may be kept.
enum Caching {
    /// It never changes.
    Forever,
    /// It is asked for again each time; with the tag that tells whether it is the same.
    Ask(Option<String>),
}

fn content(kind: &'static str, body: Vec<u8>, keep: Caching) -> Answer {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    let caching = match keep {
        Caching::Forever => "public, max-age=31536000, immutable",
        Caching::Ask(tag) => {
            if let Some(tag) = tag.and_then(|tag| HeaderValue::from_str(&tag).ok()) {
                headers.insert(header::ETAG, tag);
            }
            "no-cache"
        }
    };
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, caching),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; \
             img-src 'self' blob: data:; media-src 'self' blob: data:; font-src 'self' data:; connect-src 'self' blob: data:; \
             worker-src 'self' blob:; manifest-src 'self'; frame-src 'self' blob:; form-action 'self'; \
             base-uri 'self'; frame-ancestors 'self'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "SAMEORIGIN"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Answer::Response(response)
}

fn kind(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "ogg" => "audio/ogg",
        "mp3" => "audio/mpeg",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_by_its_hash_never_changes() {
        for hashed in [
            "bundles/0a1b2c3d4e5f60718293/bundle.js",
            "fonts/Inter-Regular.b2e3f1a.woff2",
            "i18n/ja.7b5e2c1d.json",
            "img/a/logo.0123456.svg",
        ] {
            assert!(is_named_by_hash(hashed), "{hashed}");
        }
        for plain in [
            "index.html",
            "sw.js",
            "version",
            "themes/element/img/logos/element-logo.svg",
            "img/logo.svg",
            "1234567",
        ] {
            assert!(!is_named_by_hash(plain), "{plain}");
        }
    }

    #[test]
    fn no_path_leads_out() {
        let folder = std::env::temp_dir().join(format!("heya-web-{}", crate::clock::random_token(8)));
        std::fs::create_dir_all(folder.join("client")).unwrap();
        std::fs::write(folder.join("secret"), "x").unwrap();
        std::fs::write(folder.join("client/index.html"), "x").unwrap();
        std::os::unix::fs::symlink(folder.join("secret"), folder.join("client/link")).unwrap();
        let client = folder.join("client");
        assert!(inside(&client, "index.html").is_some());
        for bad in ["../secret", "/etc/passwd", "a/../../secret", "link", "./index.html/../../secret", ""] {
            assert!(
                inside(&client, bad).is_none_or(|found| found == client.canonicalize().unwrap()),
                "{bad}"
            );
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
