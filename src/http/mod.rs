//! Listeners, connections, and what every request goes through before its handler: limits, host, certificate.
//! Knows no endpoint.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use http::{HeaderValue, Method, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};
use tower_service::Service as _;

use self::{
    activity::{Activity, Counted, Whole},
    caller::{Listener, Peer},
    outsiders::Outsiders,
    route::Routes,
    unread::Unread,
};
use crate::{
    accounts::terminals::Standing,
    config::ClientCertificate,
    error::{Code, Error, refuse},
    server::Server,
    tls::{Presented, TlsAcceptor},
};

mod activity;
pub mod caller;
pub mod json;
pub mod limits;
mod outsiders;
pub mod reply;
pub mod route;
mod unread;

/// One listener: where, how, and what it serves.
pub struct Serving {
    /// Which listener.
    pub kind: Listener,
    /// The socket.
    pub socket: TcpListener,
    /// TLS; none for plain HTTP on loopback.
    pub tls: Option<Arc<TlsAcceptor>>,
    /// The routes.
    pub router: Router,
    /// Hosts that it answers to; empty for any.
    pub hosts: Vec<String>,
}

/// Answers a page, where a person asks in a browser and is refused.
pub type Refuse = fn(&Server, Standing) -> Response;

/// The page for people who ask for a page that is not there.
pub type Missing = fn(&Server) -> Option<Response>;

/// Puts the layers that every request goes through around the routes.
pub fn router(
    server: &Arc<Server>,
    routes: Routes,
    kind: Listener,
    hosts: Vec<String>,
    page: Refuse,
    missing: Missing,
) -> Router {
    let guard = Arc::new(Guard { server: Arc::clone(server), kind, hosts, page });
    routes
        .into_router()
        .fallback(move |axum::extract::State(server): axum::extract::State<Arc<Server>>| async move {
            match (kind, missing(&server)) {
                (Listener::Enrol, Some(page)) => page,
                _ => reply::error(refuse(Code::Unrecognized, "There is no such endpoint here.")),
            }
        })
        .method_not_allowed_fallback(|| async {
            reply::error(refuse(Code::MethodNotAllowed, "This path takes another method."))
        })
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked))
        .layer(tower_http::compression::CompressionLayer::new().compress_when(Compressible))
        .layer(middleware::from_fn_with_state(guard, pass))
        .with_state(Arc::clone(server))
}

/// The answer where a handler panicked: the connection and whoever else uses it go on. Where it was is logged by the
/// program's hook; what the panic says is not repeated, since it may hold content.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    reply::error(Error::internal("a handler panicked"))
}

/// Texts from 1 KiB on; media are served as they are.
#[derive(Clone, Copy)]
struct Compressible;

impl tower_http::compression::predicate::Predicate for Compressible {
    fn should_compress<B: hyper::body::Body>(&self, response: &http::Response<B>) -> bool {
        let text =
            response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(
                |kind| {
                    ["application/json", "text/", "application/javascript", "application/wasm", "image/svg"]
                        .iter()
                        .any(|start| kind.starts_with(start))
                },
            );
        let media = response.headers().contains_key(header::CONTENT_DISPOSITION)
            || response.headers().contains_key(header::CONTENT_RANGE);
        text && !media && response.body().size_hint().exact().is_none_or(|bytes| bytes >= 1_024)
    }
}

struct Guard {
    server: Arc<Server>,
    kind: Listener,
    hosts: Vec<String>,
    page: Refuse,
}

/// Paths that are open without a certificate: discovery, health, and what the refusal page is made of.
fn is_open(path: &str) -> bool {
    path.starts_with("/.well-known/")
        || ["/_heya/health", "/_heya/style.css", "/_heya/icon.svg"].contains(&path)
}

/// Pages of the public listener that forms are posted to: no other origin reads them, though browsers send their certificate
/// with requests of other sites too.
fn is_page(path: &str) -> bool {
    ["/oauth2/authorize", "/oauth2/link", "/account"].contains(&path) || path.starts_with("/account/")
}

/// Where other services ask whose an OpenID token is (server-server API, "OpenID").
pub const OPENID_USERINFO: &str = "/_matrix/federation/v1/openid/userinfo";

/// What apps that show their certificate at the log-in only must reach without one, where the city allows that (DESIGN 2):
/// what the server is, and the OAuth 2.0 endpoints, whose codes and tokens were given to somebody who showed one.
fn is_open_to_apps(path: &str) -> bool {
    [
        "/_matrix/client/versions",
        "/_matrix/client/v3/login",
        "/_matrix/client/v1/auth_metadata",
        "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata",
        "/oauth2/register",
        "/oauth2/token",
        "/oauth2/revoke",
        "/oauth2/device",
    ]
    .contains(&path)
}

/// Before every handler: the host, the certificate, preflights. After it: headers.
async fn pass(
    axum::extract::State(guard): axum::extract::State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    let begun = tokio::time::Instant::now();
    let template =
        request.extensions().get::<axum::extract::MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let page = is_page(request.uri().path());
    let response = match check(&guard, &request) {
        Some(response) => response,
        None => next.run(request).await,
    };
    // The template only: paths and queries hold room ids, names of files, tokens of links.
    tracing::debug!(
        method = %method,
        route = template.as_deref().unwrap_or("(none)"),
        status = response.status().as_u16(),
        ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "request"
    );
    with_headers(response, guard.kind, page)
}

fn check(guard: &Guard, request: &Request) -> Option<Response> {
    let path = request.uri().path();
    let host = request
        .uri()
        .authority()
        .map(|authority| authority.as_str())
        .or_else(|| request.headers().get(header::HOST).and_then(|host| host.to_str().ok()));
    if !guard.hosts.is_empty() && !host.is_some_and(|host| guard.hosts.iter().any(|ours| ours == host)) {
        return Some(reply::error(refuse(
            Code::MisdirectedRequest,
            "This server does not answer to that host.",
        )));
    }
    if guard.kind != Listener::Public {
        return None;
    }
    if guard.server.config.policy.client_certificate == ClientCertificate::Connection && !is_open(path) {
        let presented = request.extensions().get::<Peer>().map(|peer| Arc::clone(&peer.presented));
        let presented = presented.unwrap_or_else(|| Arc::new(Presented::None));
        let (standing, _) = guard.server.terminals.standing(&presented, guard.server.now());
        if standing != Standing::Valid && !comes_without(&guard.server, request, path) {
            let api = ["/_matrix/", "/_heya/", "/_synapse/", "/oauth2/"]
                .iter()
                .any(|start| path.starts_with(start))
                && !is_page(path);
            return Some(if api {
                reply::error(caller::certificate_refused(standing))
            } else {
                (guard.page)(&guard.server, standing)
            });
        }
    }
    if request.method() == Method::OPTIONS {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Some(response);
    }
    None
}

/// Whether a request may go on without a certificate although connections show one: because of the `login` binding.
fn comes_without(server: &Server, request: &Request, path: &str) -> bool {
    if path == OPENID_USERINFO {
        // Other services ask here, who have no terminal.
        return server.config.policy.openid_tokens;
    }
    let Some(peer) = request.extensions().get::<Peer>() else { return false };
    if !server.allows_login_binding() || !matches!(*peer.presented, Presented::None) {
        return false;
    }
    let token = route::bearer(request.headers());
    is_open_to_apps(path)
        || path.starts_with("/_matrix/") && caller::shown_before(server, peer, token).is_some()
}

/// CORS as the client-server API asks ("Web Browser Clients"), and that nothing is guessed or framed.
fn with_headers(mut response: Response, kind: Listener, page: bool) -> Response {
    let headers = response.headers_mut();
    let mut put = |name: header::HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(header::REFERRER_POLICY, "same-origin");
    if kind == Listener::Public && !page {
        put(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
        put(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE, OPTIONS");
        put(header::ACCESS_CONTROL_ALLOW_HEADERS, "X-Requested-With, Content-Type, Authorization");
    }
    if kind != Listener::Internal {
        put(header::STRICT_TRANSPORT_SECURITY, "max-age=63072000");
    }
    response
}

/// Accepts connections until the server stops; then open requests have five seconds to end.
pub async fn serve(server: Arc<Server>, serving: Serving) {
    let permits = Arc::new(Semaphore::new(server.config.limits.connections));
    let mut stopping = server.stopping.subscribe();
    let tracker = Arc::new(());
    let (handshakes, outsiders) = (Arc::new(Outsiders::default()), Arc::new(Outsiders::default()));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = serving.socket.accept() => accepted,
            () = crate::server::stopped(&mut stopping) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: connections that end will free some.
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // A listener for both families (`[::]`) gives peers of IPv4 as ::ffff:192.0.2.1: they would be counted as one
        // network of IPv6, and stand in the audit log as nobody writes them.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        // Small answers must not wait for a full segment.
        let _ = stream.set_nodelay(true);
        let (server, tls, router, kind) =
            (Arc::clone(&server), serving.tls.clone(), serving.router.clone(), serving.kind);
        let limited = tls.is_some() && server.config.policy.rate_limits;
        let max = Outsiders::most(server.config.limits.connections);
        // Terminals come from where others come from: until the handshake is over, nobody knows who it is.
        let handshake = if limited { handshakes.enter(address.ip(), max) } else { None };
        if limited && handshake.is_none() {
            continue;
        }
        let outsiders = Arc::clone(&outsiders);
        let tracker = Arc::clone(&tracker);
        tokio::spawn(async move {
            let _permit = permit;
            let _tracker = tracker;
            match tls {
                Some(tls) => {
                    let timeout = Duration::from_secs(server.config.limits.handshake_seconds);
                    match tls.accept(stream, timeout).await {
                        Ok((stream, presented)) => {
                            let (standing, _) = server.terminals.standing(&presented, server.now());
                            drop(handshake);
                            let counted = limited && standing != Standing::Valid;
                            let outsider = if counted { outsiders.enter(address.ip(), max) } else { None };
                            if counted && outsider.is_none() {
                                return;
                            }
                            connection(&server, stream, address, presented, kind, router).await;
                        }
                        Err(error) => tracing::debug!(%error, "a connection ended in its handshake"),
                    }
                }
                None => connection(&server, stream, address, Presented::None, kind, router).await,
            }
        });
    }
    for _ in 0..50 {
        if Arc::strong_count(&tracker) == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Serves one connection until it ends, its certificate is revoked, or the server stops.
async fn connection<S>(
    server: &Arc<Server>,
    stream: S,
    address: SocketAddr,
    presented: Presented,
    kind: Listener,
    router: Router,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Registered before the first request asks whether the certificate is revoked: a revocation in between is
    // seen by one or the other.
    let guard = match &presented {
        Presented::Terminal(identity) => Some(server.terminals.connections.register(&identity.serial)),
        _ => None,
    };
    let peer = Peer { address, presented: Arc::new(presented), listener: kind };
    let activity = Arc::new(Activity::default());
    let busy = Arc::clone(&activity);
    let limits = &server.config.limits;
    // Twice the largest body: of what is a little too large the end is read as well, and the refusal arrives.
    let bytes_max = (limits.upload_bytes as u64).saturating_mul(2);
    let time = Duration::from_secs(limits.request_seconds);
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let waits = request.headers().contains_key(header::EXPECT);
        // HTTP/2 ends a stream without harm to the connection.
        let reads_on = request.version() < http::Version::HTTP_2 && !request.body().is_end_stream();
        let request = request.map(|body| {
            if reads_on {
                Body::new(Unread::new(body, bytes_max, tokio::time::Instant::now() + time, waits))
            } else {
                Body::new(body)
            }
        });
        let answer = router.clone().call(request);
        let working = busy.work();
        async move {
            let response = answer.await?;
            working.answered();
            Ok::<_, std::convert::Infallible>(response.map(|body| Whole { body, working }))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(server.config.limits.request_seconds))
        .max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(64 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .keep_alive_timeout(Duration::from_secs(20));
    let stream = Counted { stream, activity: Arc::clone(&activity) };
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let mut stopping = server.stopping.subscribe();
    let revoked = async {
        match &guard {
            Some(guard) => guard.cancelled().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = serving.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke off");
            }
        }
        // Dropping the connection ends its long polls at once.
        () = revoked => {}
        // Nobody keeps a connection for nothing: neither before the first request, nor between two, nor by taking nothing
        // of what is answered.
        () = activity.idle_for(Duration::from_secs(server.config.limits.request_seconds)) => {}
        () = crate::server::stopped(&mut stopping) => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(5), serving).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, and this one is about that")]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_handler_that_panics_is_answered() {
        let mut router: Router = Router::new()
            .route(
                "/",
                axum::routing::get(|| async {
                    if true {
                        panic!("本文")
                    }
                }),
            )
            .layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked));
        let answer = router.call(Request::new(Body::empty())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errcode"], "M_UNKNOWN");
        assert!(!body.to_string().contains("本文"));
    }
}
