//! A running server: listeners, followers, housekeeping. What `heya serve`, the demo and the tests call.

use std::{sync::Arc, time::Duration};

use axum::response::Response;
use ruma::OwnedUserId;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    accounts::{register, terminals},
    api,
    appservices::delivery,
    clock::Clock,
    config::{ClientCertificate, Config},
    error::{Error, Result, forbidden},
    http::{self, Serving, caller::Listener, reply, route::Answer, route::Routes},
    media,
    rooms::committer::Hint,
    server::Server,
    store,
    tls::{AskFor, ServerFiles, TlsAcceptor, TlsOptions},
};

/// The sockets of a server, bound before it starts: tests hand in port 0.
pub struct Sockets {
    /// Clients.
    pub public: TcpListener,
    /// Enrolment, mail links, help.
    pub enrol: TcpListener,
    /// Bot, bridge, commands.
    pub internal: TcpListener,
}

impl Sockets {
    /// Binds what the config says.
    pub async fn bind(config: &Config) -> Result<Self> {
        let bind = async |name: &str, address: std::net::SocketAddr| {
            TcpListener::bind(address).await.map_err(|error| {
                Error::internal(format!("cannot listen on {address} (server.{name}): {error}"))
            })
        };
        Ok(Self {
            public: bind("listen", config.server.listen).await?,
            enrol: bind("enrol_listen", config.server.enrol_listen).await?,
            internal: bind("internal_listen", config.server.internal_listen).await?,
        })
    }
}

/// A started server.
pub struct Running {
    /// The server.
    pub server: Arc<Server>,
    /// The first member of staff, where this was the first start.
    pub first: Option<register::Issued>,
    tasks: JoinSet<()>,
    committing: tokio::task::JoinHandle<()>,
}

/// Starts a server.
pub async fn start(config: Config, clock: Clock, sockets: Sockets) -> Result<Running> {
    let (server, committing) = Server::open(config, clock).await?;
    let first = if server.config.policy.open_profile {
        open_city(&server).await?
    } else {
        register::first_start(&server).await?
    };
    own_users(&server).await?;
    record_settings(&server).await?;
    if let Some(issued) = &first {
        for sheet in &issued.sheets {
            tracing::info!(sheet = %server.data().join(sheet).display(), "first start: a handover sheet for the city's first member of staff");
        }
    }
    let mut tasks = JoinSet::new();
    let tls = acceptors(&server)?;
    let hosts = hosts(&server);
    let public = public_routes(&server.config)?;
    listen(&mut tasks, &server, Listener::Public, sockets.public, tls.0.clone(), public, hosts.0);
    listen(
        &mut tasks,
        &server,
        Listener::Enrol,
        sockets.enrol,
        tls.1.clone(),
        api::pages::enrol_routes(),
        hosts.1,
    );
    listen(&mut tasks, &server, Listener::Internal, sockets.internal, None, internal_routes(), Vec::new());
    for appservice in server.appservices.all() {
        if appservice.id != "city" || server.config.city.bot && !server.config.policy.open_profile {
            let (server, appservice) = (Arc::clone(&server), Arc::clone(appservice));
            tasks.spawn(kept_up("delivery", move || {
                delivery::run(Arc::clone(&server), Arc::clone(&appservice))
            }));
        }
    }
    let for_push = Arc::clone(&server);
    tasks.spawn(kept_up("push", move || crate::push::follower::run(Arc::clone(&for_push))));
    for origin in server.config.push.origins() {
        let server = Arc::clone(&server);
        tasks.spawn(kept_up("gateway", move || {
            crate::push::gateways::run(Arc::clone(&server), origin.clone())
        }));
    }
    let for_search = Arc::clone(&server);
    tasks.spawn(kept_up("search", move || crate::search::run(Arc::clone(&for_search))));
    let for_tending = Arc::clone(&server);
    tasks.spawn(kept_up("tending", move || tending(Arc::clone(&for_tending))));
    let for_housekeeping = Arc::clone(&server);
    tasks.spawn(kept_up("housekeeping", move || housekeeping(Arc::clone(&for_housekeeping), tls.clone())));
    if server.config.policy.open_profile {
        tracing::warn!(
            "OPEN PROFILE: anybody who reaches this address may register, and no certificate is asked for. \
             For client developers and test suites only."
        );
    }
    Ok(Running { server, first, tasks, committing })
}

fn public_routes(config: &Config) -> Result<Routes> {
    let routes = api::well_known::routes(api::client::routes())
        .at(::http::Method::GET, "/_heya/style.css", api::pages::style)
        .at(::http::Method::GET, "/_heya/icon.svg", api::pages::icon);
    let routes = api::pages::public_routes(api::oauth::routes(routes));
    api::web::routes(routes, config)
}

fn internal_routes() -> Routes {
    api::well_known::routes(api::internal::routes(api::client::routes()))
}

/// Every (listener, method, path template) that a server of this config answers.
pub fn all_routes(config: &Config) -> Result<Vec<(&'static str, ::http::Method, &'static str)>> {
    let mut all = Vec::new();
    for (listener, routes) in [
        ("public", public_routes(config)?),
        ("enrol", api::pages::enrol_routes()),
        ("internal", internal_routes()),
    ] {
        all.extend(routes.table.iter().map(|(method, path)| (listener, method.clone(), *path)));
    }
    Ok(all)
}

impl Running {
    /// Stops: no new requests, long polls end, what was accepted is written.
    pub async fn stop(mut self) {
        self.server.stopping.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        if let Err(error) = crate::reading::save_marks(&self.server).await {
            tracing::error!(%error, "the last marks of who looked could not be written");
        }
        if let Err(error) = crate::accounts::sessions::save_seen(&self.server, true).await {
            tracing::error!(%error, "when devices were last used could not be stored");
        }
        let db = Arc::clone(&self.server.db);
        // The last handle of the committer goes with the server; its task then drains the queue and ends.
        drop(self.server);
        if tokio::time::timeout(Duration::from_secs(10), self.committing).await.is_err() {
            tracing::warn!("something still held the server when it stopped");
        }
        db.close().await;
        db.settle().await;
    }
}

/// Runs a task until it ends by itself; where it panics it is begun again, from its durable cursor.
async fn kept_up<F: Future<Output = ()> + Send + 'static>(name: &'static str, task: impl Fn() -> F) {
    while let Err(error) = tokio::spawn(task()).await {
        tracing::error!(name, %error, "a task broke off and begins again");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Changes of settings since the last start go to the audit log (C23): the file is the operator's, so the start is where
/// they are seen. The first start records that it was one.
async fn record_settings(server: &Arc<Server>) -> Result<()> {
    let now = server.config.flat()?;
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let before = store::meta::value(batch.reading(), "settings").await?;
                let text = serde_json::to_string(&now)?;
                if before.as_ref() == Some(&text) {
                    return Ok(());
                }
                let known = before.is_some();
                let before: std::collections::BTreeMap<String, String> =
                    before.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
                let at = batch.now;
                let entry = |target: &str, detail: String| crate::audit::Entry {
                    at,
                    actor: "server".to_owned(),
                    action: "settings.change".to_owned(),
                    target: target.to_owned(),
                    result: "ok".to_owned(),
                    detail,
                    ..crate::audit::Entry::default()
                };
                if !known {
                    batch.audit(entry("", "first start".to_owned()));
                }
                let keys: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
                for key in keys.into_iter().filter(|_| known) {
                    let nothing = String::new();
                    let (old, new) = (before.get(key).unwrap_or(&nothing), now.get(key).unwrap_or(&nothing));
                    if old != new {
                        let detail: String = format!("{old} → {new}").chars().take(500).collect();
                        batch.audit(entry(key, detail));
                    }
                }
                store::meta::set(batch.sql().await?, "settings", &text).await
            })
        })
        .await
}

/// The open profile has no city: only `@city`, for what is posted in its name.
async fn open_city(server: &Arc<Server>) -> Result<Option<register::Issued>> {
    own_user(server, server.city_user.clone()).await?;
    Ok(None)
}

/// Every appservice has its own user from the start.
async fn own_users(server: &Arc<Server>) -> Result<()> {
    for one in server.appservices.all() {
        own_user(server, one.sender.clone()).await.map_err(|error| match error.code() {
            Some(_) => Error::internal(format!(
                "the appservice {} names {} as its own user, who is somebody else",
                one.id, one.sender
            )),
            None => error,
        })?;
    }
    Ok(())
}

async fn own_user(server: &Arc<Server>, user_id: OwnedUserId) -> Result<()> {
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                if let Some(known) = store::accounts::account(batch.reading(), user_id.as_str()).await? {
                    return if known.kind == "appservice" { Ok(()) } else { Err(forbidden("")) };
                }
                let account = store::accounts::Account {
                    user_id: user_id.to_string(),
                    kind: "appservice".to_owned(),
                    facility: None,
                    name: String::new(),
                    profession: String::new(),
                    display_name: Some(user_id.localpart().to_owned()),
                    password_hash: None,
                    password_own: false,
                    status: "active".to_owned(),
                };
                let now = batch.now;
                store::accounts::insert_account(batch.sql().await?, &account, "", now).await
            })
        })
        .await
}

type Acceptors = (Option<Arc<TlsAcceptor>>, Option<Arc<TlsAcceptor>>);

/// The public listener asks for certificates, the enrolment listener does not.
fn acceptors(server: &Arc<Server>) -> Result<Acceptors> {
    let config = &server.config;
    if !config.tls.enabled {
        if config.policy.client_certificate == ClientCertificate::Connection {
            return Err(Error::internal(
                "tls.enabled = false and policy.client_certificate = \"connection\" exclude each other",
            ));
        }
        return Ok((None, None));
    }
    let internal = |error: crate::tls::TlsError| Error::internal(error.to_string());
    let files = if config.tls.certificate.as_os_str().is_empty() {
        own_certificate(server)?
    } else {
        ServerFiles { certificate: config.tls.certificate.clone(), key: config.tls.key.clone() }
    };
    let clock = server.clock.clone();
    let options =
        TlsOptions { files, tls12: config.tls.tls12, clock: Arc::new(move || terminals::at(clock.now_ms())) };
    let ask = if config.policy.client_certificate == ClientCertificate::Connection {
        let anchors = server.ca.trust_anchors().map_err(internal)?;
        if config.tls.strict_handshake { AskFor::Strictly(anchors) } else { AskFor::Certificate(anchors) }
    } else {
        AskFor::Nothing
    };
    let public = TlsAcceptor::new(options.clone(), ask).map_err(internal)?;
    let enrol = TlsAcceptor::without_client_certificates(options).map_err(internal)?;
    Ok((Some(Arc::new(public)), Some(Arc::new(enrol))))
}

/// A server certificate by our own CA, for trying out: `keys/server.pem`. A city has one by a public CA.
fn own_certificate(server: &Server) -> Result<ServerFiles> {
    if !server.ca.has_key() {
        return Err(Error::internal(
            "with tls.client_ca Heya has no CA of its own: set tls.certificate and tls.key to the server's certificate",
        ));
    }
    let keys = server.data().join("keys");
    let files = ServerFiles { certificate: keys.join("server.pem"), key: keys.join("server.key") };
    if !files.certificate.exists() || !files.key.exists() {
        let host = server.config.host().to_owned();
        let host = host.rsplit_once(':').map_or(host.as_str(), |(host, _)| host);
        let addresses: Vec<std::net::IpAddr> = [host, "127.0.0.1", "::1"]
            .iter()
            .filter_map(|host| host.trim_matches(['[', ']']).parse().ok())
            .collect();
        let mut names = vec!["localhost"];
        if host.parse::<std::net::IpAddr>().is_err() && host != "localhost" {
            names.push(host);
        }
        let issued = server
            .ca
            .issue_server(&names, &addresses, terminals::at(server.now()), time::Duration::days(397))
            .map_err(|error| Error::internal(error.to_string()))?;
        // What an interrupted start left of the pair was never in use.
        for half in [&files.key, &files.certificate] {
            if half.exists() {
                std::fs::remove_file(half)?;
            }
        }
        issued.write(&files).map_err(|error| Error::internal(error.to_string()))?;
        tracing::warn!(
            "the server certificate is by Heya's own CA: set tls.certificate and tls.key to one by a public CA"
        );
    }
    Ok(files)
}

/// The hosts that the two outer listeners answer to.
fn hosts(server: &Server) -> (Vec<String>, Vec<String>) {
    if server.config.policy.open_profile {
        return (Vec::new(), Vec::new());
    }
    let mut public = vec![server.config.host().to_owned()];
    if server.name.as_str() != server.config.host() {
        public.push(server.name.to_string());
    }
    (public, vec![crate::config::authority(&server.config.enrol_url()).to_owned()])
}

fn listen(
    tasks: &mut JoinSet<()>,
    server: &Arc<Server>,
    kind: Listener,
    socket: TcpListener,
    tls: Option<Arc<TlsAcceptor>>,
    routes: Routes,
    hosts: Vec<String>,
) {
    let router = http::router(server, routes, kind, hosts.clone(), refusal_page, missing_page);
    tasks.spawn(http::serve(Arc::clone(server), Serving { kind, socket, tls, router, hosts }));
}

fn refusal_page(server: &Server, standing: crate::accounts::terminals::Standing) -> Response {
    match api::pages::refused(server, standing) {
        Ok(Answer::Response(response)) => response,
        Ok(Answer::Json(text)) => reply::json(::http::StatusCode::FORBIDDEN, text),
        Err(error) => reply::error(error),
    }
}

fn missing_page(server: &Server) -> Option<Response> {
    match api::pages::not_found(server) {
        Ok(Answer::Response(response)) => Some(response),
        _ => None,
    }
}

/// Small work every second: typing that runs out, files that changed.
async fn housekeeping(server: Arc<Server>, tls: Acceptors) {
    let mut stopping = server.stopping.subscribe();
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = crate::server::stopped(&mut stopping) => return,
        }
        server.live.expire_typing(server.now());
        crate::rooms::presence::expire(&server);
        for acceptor in [&tls.0, &tls.1].into_iter().flatten() {
            match acceptor.reload_if_changed() {
                Ok(true) => tracing::info!("the server certificate was read again"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "the server certificate's new files are not used"),
            }
        }
        watch_list(&server).await;
    }
}

/// Slower work, apart from the revocation list, which must not wait for it.
async fn tending(server: Arc<Server>) {
    let mut stopping = server.stopping.subscribe();
    if let Err(error) = media::remove_orphans(&server).await {
        tracing::warn!(%error, "cannot look for files that belong to no upload");
    }
    if let Err(error) = crate::export::remove_parts(&server).await {
        tracing::warn!(%error, "cannot look for exports that a crash left half-written");
    }
    let mut minutes = 0_u64;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(if minutes == 0 { 2 } else { 60 })) => {}
            () = crate::server::stopped(&mut stopping) => return,
        }
        minutes += 1;
        if let Err(error) = crate::reading::save_marks(&server).await {
            tracing::error!(%error, "the marks of who looked could not be written");
        }
        if let Err(error) = crate::accounts::sessions::save_seen(&server, false).await {
            tracing::error!(%error, "when devices were last used could not be stored");
        }
        if let Err(error) = crate::rooms::direct::tend(&server).await {
            tracing::error!(%error, "rooms that nobody is left in could not be looked for");
        }
        if let Err(error) = crate::rooms::life::tend(&server).await {
            tracing::error!(%error, "what rooms need by themselves could not be done");
        }
        if let Err(error) = crate::rooms::delete::tend(&server).await {
            tracing::error!(%error, "rooms that are to be deleted could not be looked for");
        }
        if minutes % 60 == 1
            && let Err(error) = hourly(&server).await
        {
            tracing::error!(%error, "hourly housekeeping failed");
        }
    }
}

/// Reads the revocation list of the city's own CA again when its file changed: within a second. A bad list is refused
/// and the one in use stays.
async fn watch_list(server: &Arc<Server>) {
    let path = server.config.tls.client_crl.clone();
    if path.as_os_str().is_empty() {
        return;
    }
    let stamp = std::fs::metadata(&path).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
    {
        let mut last = server.list_stamp.lock();
        if *last == stamp {
            return;
        }
        *last = stamp;
    }
    let (ca, now, former) = (Arc::clone(&server.ca), server.now(), server.terminals.list());
    let read =
        tokio::task::spawn_blocking(move || ca.load_crl(&path, terminals::at(now), former.as_deref())).await;
    match read {
        Ok(Ok(list)) => {
            tracing::info!(entries = list.len(), "the revocation list was read");
            if list.is_overdue(terminals::at(server.now())) {
                tracing::warn!("the revocation list has expired: its CA owes a newer one");
            }
            server.terminals.revoke_by_list(list);
            match terminals::end_listed(server).await {
                Ok(0) => {}
                Ok(sessions) => tracing::info!(sessions, "sessions of revoked terminals were ended"),
                Err(error) => {
                    tracing::error!(%error, "sessions of revoked terminals are not ended yet");
                    // Tried again at the next look; their requests are refused meanwhile.
                    *server.list_stamp.lock() = None;
                }
            }
        }
        Ok(Err(error)) => tracing::error!(%error, "the new revocation list is not used"),
        Err(error) => tracing::error!(%error, "the new revocation list could not be read"),
    }
}

async fn hourly(server: &Arc<Server>) -> Result<()> {
    media::expire_unlinked(server).await?;
    let before = server.now() - 30 * 86_400_000;
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let conn = batch.sql().await?;
                store::oauth::forget_old(conn, now).await?;
                store::push::forget_mails(conn, before).await?;
                store::terminals::forget_codes(conn, before).await?;
                store::events::forget_txns(conn, before).await
            })
        })
        .await?;
    Ok(())
}
