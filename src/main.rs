//! The `heya` command: arguments, logging, and then the library.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use heya::{
    clock::Clock,
    config::Config,
    error::{Error, Result},
    parts,
    serve::{self, Sockets},
};

mod command;
mod demo;

/// Heya (部屋): a Matrix homeserver for a city's home medical and long-term-care network.
#[derive(Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Arguments {
    /// The configuration file; `config.toml` where none is named, and every setting's default where that is missing.
    #[arg(long, short, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a city: server, city bot and e-mail bridge in one process.
    ///
    /// The first start makes the data folder, the CA, the control room, and two handover sheets for the city's first
    /// member of staff; the log says where they are. Stop with Ctrl-C or SIGTERM.
    Serve {
        /// `city` (the config's policies) or `open` (everything open, loopback only, for client developers).
        #[arg(long, default_value = "city")]
        profile: String,
        /// With the open profile: TLS by the config's certificate, or by one of Heya's own CA; plain HTTP without it.
        #[arg(long)]
        tls: bool,
        /// Only the server: bot and bridge run elsewhere (`heya city`, `heya mail`).
        #[arg(long)]
        server_only: bool,
    },
    /// Start a small city on this machine and play a story in it: enrolment, a subject's room, mail, a lost terminal.
    ///
    /// Every step is printed and checked; the city then stays up, to log in with Element. Needs nothing installed.
    Demo(demo::Demo),
    /// Run the city bot alone, beside a server started with `serve --server-only`.
    ///
    /// On the server's machine, with the same config and data folder. Start the server first: it makes the tokens in
    /// `keys/`. Leave `city.bot` on: the server then sends the bot its events.
    City,
    /// Run the e-mail bridge alone, beside a server started with `serve --server-only`.
    ///
    /// On the server's machine, with the same config and data folder. Start the server first: it makes the tokens in
    /// `keys/`. Leave `mail.enabled` on: the server then hands its notifications to the bridge.
    Mail,
    /// Terminals' certificates. Works while the server runs.
    #[command(subcommand)]
    Cert(command::cert::Cert),
    /// Print every route: listener, method, path template. For tests and for reviews.
    Routes,
    /// The audit log (操作履歴・閲覧履歴). Reading it is itself logged.
    #[command(subcommand)]
    Audit(command::audit::Audit),
    /// Write a register (台帳) as CSV, for a spreadsheet: facilities, IDs, terminals, rooms, who is in them, cases.
    ///
    /// The server must run: that a register was written out is logged. UTF-8 with a byte order mark. A cell that a spreadsheet
    /// would take for a formula has an apostrophe before it. Names of subjects are in it: handle the file accordingly.
    Register {
        /// Which one.
        which: command::register::Which,
        /// The file to write, readable by its owner only, in place of what was there; none: standard output.
        file: Option<PathBuf>,
    },
    /// Write a backup: the database, then the media it names. Works while the server runs.
    ///
    /// Without FOLDER it is a generation: a new folder in `backup.folder` of the config. When it is complete, the oldest
    /// complete generations are removed until the newest `backup.keep` are left (14 where the config does not say).
    /// Keys are not in it: keep a copy of `data/keys` in a safe place of its own. On PostgreSQL this runs `pg_dump`, which
    /// must be installed, of the database's version or newer.
    Backup {
        /// The folder to write, instead of a generation; it must not exist. Nothing else is removed.
        folder: Option<PathBuf>,
    },
    /// Put a backup back into an empty data folder. The server must not run.
    ///
    /// Put `keys/` back first; on PostgreSQL make the empty database: this runs `pg_restore`. What was put back is counted and
    /// compared with the backup. Then `heya serve`: clients begin afresh.
    Restore {
        /// The folder that `heya backup` wrote.
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    // One cryptographic provider everywhere, before anything could ask for another. A second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let asked = !error.use_stderr();
            // Nobody is left to tell where the terminal is gone.
            let _ = error.print();
            return if asked { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("heya: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(code) => code,
        Err(error) => {
            let text = match &error {
                Error::Refused(refusal) => refusal.message.clone(),
                Error::Internal(source) => source.to_string(),
            };
            eprintln!("heya: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let config = match &arguments.config {
        // A mistyped name must not be a city with other settings.
        Some(path) => Config::read(path)?,
        None if std::path::Path::new("config.toml").exists() => Config::read("config.toml".as_ref())?,
        None => Config::parse("")?,
    };
    std::panic::set_hook(Box::new(log_panic));
    // The demo logs to a file of its own.
    if !matches!(arguments.command, Command::Demo(_)) {
        log(&config);
    }
    match arguments.command {
        Command::Serve { profile, tls, server_only } => serve(config, &profile, tls, server_only).await?,
        Command::Demo(demo) => return demo::run(demo, config.web).await,
        Command::City => parts::run_city(&config, stop_signal()).await?,
        Command::Mail => parts::run_mail(&config, stop_signal()).await?,
        Command::Cert(cert) => command::cert::run(&config, cert).await?,
        Command::Routes => {
            for (listener, method, path) in serve::all_routes(&config)? {
                println!("{listener}\t{method}\t{path}");
            }
        }
        Command::Audit(audit) => return command::audit::run(&config, audit).await,
        Command::Register { which, file } => command::register::run(&config, which, file.as_deref()).await?,
        Command::Backup { folder } => command::backup::backup(&config, folder.as_deref()).await?,
        Command::Restore { folder } => command::backup::restore(&config, &folder).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where a panic happened. What it says is logged only where it is a text of the program's: one that was put together may
/// hold what somebody wrote.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let text = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(not logged)");
    tracing::error!(place, text, "the program panicked");
}

fn log(config: &Config) {
    let level = std::env::var("HEYA_LOG").unwrap_or_else(|_| config.server.log.clone());
    let filter = tracing_subscriber::EnvFilter::try_new(format!(
        "warn,heya={level},heya_city={level},heya_mail={level}"
    ))
    .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

async fn serve(mut config: Config, profile: &str, tls: bool, server_only: bool) -> Result<()> {
    match profile {
        "city" if tls => {
            return Err(Error::internal("--tls belongs to --profile open: a city always has TLS"));
        }
        "city" => {}
        "open" => config.open_profile(tls)?,
        other => return Err(Error::internal(format!("--profile is \"city\" or \"open\", not \"{other}\""))),
    }
    let sockets = Sockets::bind(&config).await?;
    let running = serve::start(config.clone(), Clock::default(), sockets).await?;
    tracing::info!(
        address = %config.server.listen,
        url = %config.server.public_url,
        enrolment = %config.enrol_url(),
        "serving"
    );
    let stop = tokio::sync::watch::Sender::new(false);
    let stopped = |mut stop: tokio::sync::watch::Receiver<bool>| async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let mut beside = tokio::task::JoinSet::new();
    let city = !server_only && config.city.bot && !config.policy.open_profile;
    if city {
        let (config, stop) = (config.clone(), stopped(stop.subscribe()));
        beside.spawn(async move { parts::run_city(&config, stop).await });
    }
    if !server_only && config.mail.enabled {
        let (config, stop) = (config.clone(), stopped(stop.subscribe()));
        beside.spawn(async move { parts::run_mail(&config, stop).await });
    }
    let mut failure = None;
    tokio::select! {
        () = stop_signal() => tracing::info!("stopping"),
        Some(ended) = beside.join_next(), if !beside.is_empty() => {
            failure = match ended {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(error) => Some(error.into()),
            };
        }
    }
    stop.send_replace(true);
    while beside.join_next().await.is_some() {}
    running.stop().await;
    failure.map_or(Ok(()), Err)
}

/// Ctrl-C or SIGTERM.
async fn stop_signal() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    match terminate {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}
