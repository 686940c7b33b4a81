//! `heya demo`: a small city on this machine. It starts everything, plays a story of two facilities and one subject
//! against the running server over TLS, as people's clients would, and stays up for whoever wants to look around with
//! Element. Any surprise ends it with the step, what was expected and what came instead.
//!
//! `client` is a thin Matrix client of its own, `enrolment` goes through the pages with the paper sheets, `mail_sink`
//! receives the mail, `story` is what happens. Only the binary uses this module.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use heya::{
    clock::Clock,
    config::{Config, Web},
    error::{Error, Result},
    files, parts,
    serve::{self, Sockets},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

mod client;
mod enrolment;
mod leaks;
mod mail_sink;
mod narrator;
mod story;

use narrator::{Narrator, sentence};

/// Marks a folder as an older demo's: only such a one is removed.
const MARK: &str = ".heya-demo";
/// The ports from the first one on: public, enrolment, internal, bot, bridge, SMTP sink.
const PORTS: u16 = 6;

/// `heya demo …`
#[derive(clap::Args)]
pub struct Demo {
    /// The folder for everything; made anew. An older demo's folder is removed first, any other is refused.
    #[arg(long, default_value = "demo-data")]
    data: PathBuf,
    /// Where the database is: an empty one on PostgreSQL (`postgres://…`), or `sqlite:` (a file in the folder).
    #[arg(long, default_value = "sqlite:")]
    database_url: String,
    /// End after the story: exit status 0 where all of it went well.
    #[arg(long)]
    once: bool,
    /// The first of six ports on loopback; 0 takes free ones.
    #[arg(long, default_value_t = 8448)]
    port: u16,
}

/// Plays the demo; `web` is the config file's web client, if it names one.
pub async fn run(demo: Demo, web: Web) -> Result<ExitCode> {
    let listeners = Listeners::bind(demo.port).await?;
    let data = fresh_folder(&demo.data)?;
    log(&data)?;
    let mut config = config(&data, &listeners)?;
    config.web = web;
    config.server.database_url = demo.database_url;
    let mut narrator = Narrator::new();
    let mails = mail_sink::Sink::start(listeners.sink, data.join("mails"))?;
    let running = serve::start(config.clone(), Clock::default(), listeners.server).await?;
    let stop = watch::Sender::new(false);
    let mut beside = JoinSet::new();
    // From here to their own binding nothing else takes these two ports, most likely; if it does, the demo fails.
    drop((listeners.bot, listeners.bridge));
    start_parts(&config, &stop, &mut beside);
    narrator.tell(&format!("{} runs: server, city bot, e-mail bridge", config.server.public_url));

    let result = {
        let told = story::tell(&mut narrator, &config, &running, &mails);
        tokio::select! {
            told = told => told,
            ended = beside.join_next() => Err(part_ended(ended)),
        }
    };
    let code = match result {
        Ok(()) => {
            narrator.end("the whole story went well");
            if demo.once { ExitCode::SUCCESS } else { stay(&data, &config, &mut beside).await }
        }
        Err(error) => {
            narrator.fail(&sentence(&error));
            eprintln!("The log is in {}.", data.join("log").display());
            ExitCode::FAILURE
        }
    };
    stop.send_replace(true);
    while beside.join_next().await.is_some() {}
    running.stop().await;
    Ok(code)
}

/// Waits for Ctrl-C, SIGTERM, or a part that ends by itself.
async fn stay(data: &Path, config: &Config, beside: &mut JoinSet<Result<()>>) -> ExitCode {
    println!("\nThe city stays up at {}; Ctrl-C ends it.", config.server.public_url);
    println!("Where to log in, as whom and with which certificate: {}", data.join(story::HOW_TO).display());
    tokio::select! {
        () = super::stop_signal() => ExitCode::SUCCESS,
        ended = beside.join_next() => {
            eprintln!("heya demo: {}", sentence(&part_ended(ended)));
            ExitCode::FAILURE
        }
    }
}

fn start_parts(config: &Config, stop: &watch::Sender<bool>, beside: &mut JoinSet<Result<()>>) {
    let stopped = |mut stop: watch::Receiver<bool>| async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let (bot, until) = (config.clone(), stopped(stop.subscribe()));
    beside.spawn(async move { parts::run_city(&bot, until).await });
    let (bridge, until) = (config.clone(), stopped(stop.subscribe()));
    beside.spawn(async move { parts::run_mail(&bridge, until).await });
}

fn part_ended(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => error.into(),
        _ => Error::internal("the city bot or the e-mail bridge stopped by itself"),
    }
}

/// All sockets of the demo, bound before anything starts.
struct Listeners {
    server: Sockets,
    bot: TcpListener,
    bridge: TcpListener,
    sink: TcpListener,
}

impl Listeners {
    async fn bind(first: u16) -> Result<Self> {
        if first != 0 && first.checked_add(PORTS - 1).is_none() {
            return Err(Error::internal(format!("--port {first} leaves no room for {PORTS} ports")));
        }
        let bind = async |nth: u16| {
            let port = if first == 0 { 0 } else { first + nth };
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
                Error::internal(format!(
                    "cannot listen on 127.0.0.1:{port}: {error} (other ports: --port N, or 0)"
                ))
            })
        };
        Ok(Self {
            server: Sockets { public: bind(0).await?, enrol: bind(1).await?, internal: bind(2).await? },
            bot: bind(3).await?,
            bridge: bind(4).await?,
            sink: bind(5).await?,
        })
    }
}

/// The city's default policies, on loopback, with mail to the sink.
fn config(data: &Path, listeners: &Listeners) -> Result<Config> {
    let at = |listener: &TcpListener| -> Result<SocketAddr> { Ok(listener.local_addr()?) };
    let mut config = Config::default();
    let server = &mut config.server;
    server.listen = at(&listeners.server.public)?;
    server.enrol_listen = at(&listeners.server.enrol)?;
    server.internal_listen = at(&listeners.server.internal)?;
    server.public_url = format!("https://localhost:{}", server.listen.port());
    server.data_dir = data.to_owned();
    config.city.bot_listen = at(&listeners.bot)?;
    config.mail.enabled = true;
    config.mail.listen = at(&listeners.bridge)?;
    config.mail.smtp_host = Ipv4Addr::LOCALHOST.to_string();
    config.mail.smtp_port = at(&listeners.sink)?.port();
    config.mail.smtp_security = "none".to_owned();
    config.mail.digest_seconds = 1;
    Ok(config)
}

/// An empty, marked folder; its absolute path.
fn fresh_folder(path: &Path) -> Result<PathBuf> {
    if path.symlink_metadata().is_ok() {
        if !path.join(MARK).is_file() {
            return Err(Error::internal(format!(
                "{} exists and is no older demo's folder: name another one with --data",
                path.display()
            )));
        }
        std::fs::remove_dir_all(path)?;
    }
    files::private_folder(path)?;
    files::write_private(&path.join(MARK), b"heya demo: this folder is removed by the next one\n")?;
    Ok(path.canonicalize()?)
}

/// Everything goes to `log` in the folder, in detail: the end of the story looks there for what must not be in a log.
/// The screen shows errors only.
fn log(data: &Path) -> Result<()> {
    let path = data.join("log");
    files::write_private(&path, b"")?;
    let file = std::fs::OpenOptions::new().append(true).open(&path)?;
    let only = |text: &str| {
        tracing_subscriber::EnvFilter::try_new(text).map_err(|error| Error::internal(error.to_string()))
    };
    let to_file = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::sync::Mutex::new(file))
        .with_filter(only("info,heya=debug,heya_city=debug,heya_mail=debug")?);
    let to_screen = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(only("error")?);
    tracing_subscriber::registry()
        .with(to_file)
        .with(to_screen)
        .try_init()
        .map_err(|error| Error::internal(error.to_string()))
}
