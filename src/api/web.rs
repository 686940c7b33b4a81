//! The web client that the operator dropped in: served from the API's own origin, with the script that makes its
//! requests carry the certificate in every browser, and a generated `config.json` (DESIGN 1).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::{
    api::pages,
    config::Config,
    error::{Code, Error, Result, refuse},
    http::route::{Answer, Call, Routes},
    server::Server,
};

/// matrix-js-sdk asks browsers to omit credentials, and Firefox then omits the certificate too; requests to our own
/// origin carry it again.
const SCRIPT: &str = "(() => {\n  const fetched = window.fetch;\n  window.fetch = (input, init) => {\n    const url = new URL(input instanceof Request ? input.url : input, location.href);\n    if (url.origin === location.origin) {\n      if (input instanceof Request && input.credentials === \"omit\") input = new Request(input, { credentials: \"same-origin\" });\n      if (init && init.credentials === \"omit\") init = { ...init, credentials: \"same-origin\" };\n    }\n    return fetched.call(window, input, init);\n  };\n})();\n";
/// Where it is served.
const SCRIPT_PATH: &str = "/_heya/certificate.js";
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
            Ok(content("text/javascript; charset=utf-8", SCRIPT.into(), false))
        })
        .at(http::Method::GET, "/config.json", client_config)
        .at(http::Method::GET, "/", |server, _| async move { file(&server, "index.html").await })
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
            file(&server, &path).await
        }))
}

/// With the folder served, only its files are asked for by GET: anything else is an endpoint that is not there.
async fn unknown(_: Arc<Server>, _: Call) -> Result<Answer> {
    Err(refuse(Code::Unrecognized, "There is no such endpoint here."))
}

/// What Element Web reads at its start: this server, Japanese, no guests, nothing outside.
async fn client_config(server: Arc<Server>, _: Call) -> Result<Answer> {
    let base_url = server.config.server.public_url.trim_end_matches('/');
    let body = json!({
        "default_server_config": {"m.homeserver": {"base_url": base_url, "server_name": server.name}},
        "brand": server.config.city.service,
        "default_country_code": "JP",
        "setting_defaults": {"language": "ja", "UIFeature.registration": false, "UIFeature.passwordReset": server.config.policy.password_reset_by_mail,
            "UIFeature.thirdPartyId": true, "UIFeature.identityServer": false, "UIFeature.widgets": false,
            "UIFeature.voip": false, "UIFeature.advancedEncryption": false, "UIFeature.shareQrCode": false,
            "UIFeature.shareSocial": false, "urlPreviewsEnabled": false},
        "disable_custom_urls": true, "disable_guests": true, "disable_login_language_selector": false,
        "disable_3pid_login": true, "integrations_ui_url": "", "integrations_rest_url": "",
        "bug_report_endpoint_url": "", "show_labs_settings": false, "room_directory": {"servers": []},
        "embedded_pages": {}, "map_style_url": "", "default_theme": "light",
    });
    Ok(content("application/json", body.to_string().into(), false))
}

async fn file(server: &Arc<Server>, path: &str) -> Result<Answer> {
    let Some(found) = inside(&server.config.web.client_dir, path) else { return pages::not_found(server) };
    let read = async {
        let meta = tokio::fs::metadata(&found).await.ok()?;
        if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
            return None;
        }
        tokio::fs::read(&found).await.ok()
    };
    let Some(bytes) = read.await else { return pages::not_found(server) };
    if path == "index.html" {
        let text = String::from_utf8_lossy(&bytes);
        let tag = format!("<script src=\"{SCRIPT_PATH}\"></script>");
        // Before any script of the client.
        let text = match text.find("<head>") {
            Some(at) => format!("{}{tag}{}", &text[..at + 6], &text[at + 6..]),
            None => format!("{tag}{text}"),
        };
        return Ok(content("text/html; charset=utf-8", text.into_bytes(), false));
    }
    // Element's build names bundles by their hash; everything else is asked for again.
    let hashed = path.starts_with("bundles/") || path.starts_with("fonts/") || path.starts_with("img/");
    Ok(content(kind(path), bytes, hashed))
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

fn content(kind: &'static str, body: Vec<u8>, forever: bool) -> Answer {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    let caching = if forever { "public, max-age=31536000, immutable" } else { "no-cache" };
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, caching),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; \
             img-src 'self' blob: data:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' blob:; \
             worker-src 'self' blob:; manifest-src 'self'; frame-src 'self' blob:; form-action 'self'; \
             base-uri 'self'; frame-ancestors 'self'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
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
