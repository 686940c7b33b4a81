//! The parts beside the server in one process: the city bot and the e-mail bridge, made from the same `config.toml`.
//! The only module that knows them; they know the server only over HTTP.

use std::{path::Path, time::Duration};

use tokio::net::TcpListener;

use crate::{
    appservices::Registration,
    config::Config,
    error::{Error, Result},
};

/// The city bot's configuration.
pub fn city(config: &Config) -> Result<heya_city::Config> {
    let path = config.server.data_dir.join("keys").join("city.registration.json");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Error::internal(format!("{}: {error} (the server's first start makes it)", path.display()))
    })?;
    let registration: Registration = serde_json::from_str(&text)?;
    Ok(heya_city::Config {
        server_url: format!("http://{}", config.server.internal_listen),
        as_token: registration.as_token,
        hs_token: registration.hs_token,
        database: config.server.data_dir.join("city.sqlite"),
        city_name: config.city.name.clone(),
        contact: config.city.contact.clone(),
        language: heya_city::Language::default(),
        application_columns: config.city.application_columns.clone(),
        application_procedures: config.city.application_procedures.clone(),
    })
}

/// Runs the city bot until `shutdown`.
pub async fn run_city(config: &Config, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    let listener = bind("city.bot_listen", config.city.bot_listen).await?;
    let bot = city(config)?;
    heya_city::run(bot, listener, shutdown)
        .await
        .map_err(|error| Error::internal(format!("the city bot: {error}")))
}

/// Every case that the bot knows, oldest first. Works beside the running bot.
pub async fn cases(config: &Config) -> Result<Vec<heya_city::register::Line>> {
    heya_city::register::cases(&city(config)?)
        .await
        .map_err(|error| Error::internal(format!("案件の台帳を読めません: {error}")))
}

/// The e-mail bridge's configuration.
pub fn mail(config: &Config) -> Result<heya_mail::Config> {
    let keys = config.server.data_dir.join("keys");
    let mail = &config.mail;
    let password = keys.join("smtp.password");
    let smtp = heya_mail::Smtp {
        host: mail.smtp_host.clone(),
        port: mail.smtp_port,
        security: match mail.smtp_security.as_str() {
            "none" => heya_mail::Security::None,
            "tls" => heya_mail::Security::Tls,
            _ => heya_mail::Security::StartTls,
        },
        username: (!mail.smtp_user.is_empty()).then(|| mail.smtp_user.clone()),
        password: if mail.smtp_user.is_empty() { None } else { Some(read_secret(&password)?) },
        ca_file: some(&mail.smtp_ca),
        timeout: Duration::from_secs(60),
    };
    let mut bridge = heya_mail::Config::new(
        format!("http://{}", config.server.internal_listen),
        read_secret(&keys.join("mail.token"))?,
        config.server.data_dir.join("mail.sqlite"),
        mail.from.clone(),
        smtp,
    );
    bridge.service_name.clone_from(&config.city.service);
    bridge.login_url.clone_from(&config.server.public_url);
    bridge.contact.clone_from(&config.city.contact);
    bridge.template = if mail.template == "handbook" {
        heya_mail::TemplateSet::Handbook
    } else {
        heya_mail::TemplateSet::Nameless
    };
    bridge.template_dir = some(&mail.template_dir);
    bridge.digest_seconds = u32::try_from(mail.digest_seconds).unwrap_or(u32::MAX);
    if let [from, to] = mail.quiet_hours.as_slice() {
        bridge.quiet_hours = Some((hour(from)?, hour(to)?));
    }
    Ok(bridge)
}

/// Runs the e-mail bridge until `shutdown`.
pub async fn run_mail(config: &Config, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    let listener = bind("mail.listen", config.mail.listen).await?;
    let bridge = mail(config)?;
    heya_mail::run(bridge, listener, shutdown)
        .await
        .map_err(|error| Error::internal(format!("the e-mail bridge: {error}")))
}

async fn bind(name: &str, address: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::internal(format!("cannot listen on {address} ({name}): {error}")))
}

fn read_secret(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| Error::internal(format!("{}: {error}", path.display())))
}

fn some(path: &Path) -> Option<std::path::PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

fn hour(text: &str) -> Result<time::Time> {
    time::Time::parse(text, time::macros::format_description!("[hour]:[minute]"))
        .map_err(|_| Error::internal(format!("mail.quiet_hours: {text} is no time such as 22:00")))
}
