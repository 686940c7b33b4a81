//! The e-mail bridge: tells people that they were addressed, and names nobody.
//!
//! The homeserver decides whom to notify; the bridge decides when and in which words, and brings the mail to the city's SMTP
//! server. It knows the homeserver only over HTTP (docs/internal-api.md) and owns one SQLite file. In that file is all that
//! matters: what was answered with 200 is there, and what is there is sent at least once, with the same Message-ID every time.
//!
//! Start reading at `notify.rs` (in), then `outbox.rs` (when), `message.rs` (in which words), `sender.rs` (out); `lease.rs` is
//! the way of the mails that the server itself owes.
//!
//! What is logged are row ids and SMTP reply codes: never an address, a name, a link or what an SMTP server said.

mod clock;
mod config;
mod lease;
mod message;
mod notify;
mod outbox;
mod sender;
mod server;
mod store;
mod templates;

pub use clock::{Clock, Hand};
pub use config::{Config, Security, Smtp, TemplateSet};
pub use templates::TemplateError;

use std::{
    future::{Future, IntoFuture},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
};

/// Why the bridge did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that cannot work.
    #[error("mail bridge: {0}")]
    Config(String),
    /// The wording of a mail.
    #[error("mail bridge: {0}")]
    Template(#[from] TemplateError),
    /// The outbox cannot be opened.
    #[error("mail bridge: outbox: {0}")]
    Store(#[from] sqlx::Error),
    /// The listener failed.
    #[error("mail bridge: listener: {0}")]
    Listener(#[from] std::io::Error),
    /// A part of the bridge ended that never should.
    #[error("mail bridge: a background task ended")]
    Task,
}

/// How long the end waits for what is under way.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// Runs the bridge until `shutdown`. Dropping the future is safe at any time: everything is in the outbox.
///
/// # Errors
///
/// When configuration or templates are wrong, the outbox cannot be opened, or the listener fails.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    run_at(config, Clock::system(), listener, shutdown).await
}

/// [`run`] with another clock.
///
/// # Errors
///
/// As [`run`].
pub async fn run_at(
    config: Config,
    clock: Clock,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    // A second call is refused, which means that there is a provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Some(problems) = config.problems() {
        return Err(Error::Config(problems));
    }
    let from = config.from.parse().map_err(|_| Error::Config("from is no mail address".to_owned()))?;
    let templates = templates::Templates::load(config.template, config.template_dir.as_deref())?;
    let keep_names = templates.name_people();
    let sender = sender::Sender::new(config.smtp.clone()).map_err(Error::Config)?;
    let server = server::Server::new(&config.server_url, config.mail_token.clone()).map_err(Error::Config)?;
    let store = Arc::new(store::Store::open(&config.database, keep_names).await?);
    let schedule = outbox::Schedule::new(&config);
    let (wake, reports) = (Arc::new(Notify::new()), Arc::new(Notify::new()));

    let gateway = notify::Gateway {
        store: Arc::clone(&store),
        clock: clock.clone(),
        schedule: schedule.clone(),
        mail_token: config.mail_token.clone(),
        keep_names,
        wake: Arc::clone(&wake),
    };
    let courier = Arc::new(lease::Courier {
        server,
        store: Arc::clone(&store),
        clock: clock.clone(),
        schedule: schedule.clone(),
        wake: Arc::clone(&wake),
        reports: Arc::clone(&reports),
        give_up_after: config.give_up_after,
    });
    let outbox = Arc::new(outbox::Outbox {
        store,
        writer: message::Writer::new(&config, templates, from),
        sender,
        clock,
        schedule,
        wake,
        reports,
        give_up_after: config.give_up_after,
        concurrency: config.concurrency,
    });

    let (stop, mut stopping) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(outbox.run(stopping.clone()));
    tasks.spawn({
        let courier = Arc::clone(&courier);
        async move { courier.lease().await }
    });
    tasks.spawn(async move { courier.report().await });

    let serve = axum::serve(listener, notify::router(gateway)).with_graceful_shutdown(async move {
        shutdown.await;
        let _ = stop.send(true);
    });
    tracing::info!("the mail bridge is running");
    let serve = serve.into_future();
    tokio::pin!(serve);
    tokio::select! {
        biased;
        _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
        result = &mut serve => return Ok(result?),
        _ = tasks.join_next() => return Err(Error::Task),
    }
    // Requests and mails that are under way are finished (the outbox is the only task that ends), but nobody waits for an idle
    // connection. A mail cut off here goes again, with its Message-ID.
    match tokio::time::timeout(STOP_TIME_MAX, async { tokio::join!(serve, tasks.join_next()) }).await {
        Ok((result, _)) => Ok(result?),
        Err(_) => Ok(()),
    }
}
