//! What the bridge has to be told. A plain struct: reading it from `config.toml` is the caller's business.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};
use time::Time;

/// Everything the bridge needs to run. [`Config::new`] sets what has a default.
#[derive(Clone)]
pub struct Config {
    /// Where the homeserver's internal listener is, e.g. `http://127.0.0.1:8090`.
    pub server_url: String,
    /// The secret that the server and the bridge share, for both directions.
    pub mail_token: String,
    /// The bridge's own SQLite file; made if it is not there.
    pub database: PathBuf,
    /// The sender, e.g. `Heya <noreply@example.jp>`.
    pub from: String,
    /// The product's name as people know it, e.g. `Heya`.
    pub service_name: String,
    /// Where to log in; goes into mails.
    pub login_url: String,
    /// The city desk: whom to ask; goes into mails. May have several lines.
    pub contact: String,
    /// The city's SMTP server.
    pub smtp: Smtp,
    /// Which of the shipped wordings to use.
    pub template: TemplateSet,
    /// A folder with the city's own wording (`ja/notice.txt`, …); each file there replaces a shipped one.
    pub template_dir: Option<PathBuf>,
    /// Notifications of one account within this many seconds become one mail; 0 sends at once.
    pub digest_seconds: u32,
    /// From when to when (Japan Standard Time) notices wait, unless urgent. Mails that somebody waits for
    /// (address check, password reset, lockout) go out at any time.
    pub quiet_hours: Option<(Time, Time)>,
    /// The longest pause between two attempts to send a mail.
    pub retry_ceiling: Duration,
    /// How long a mail is tried before it is given up.
    pub give_up_after: Duration,
    /// How many mails are sent at the same time.
    pub concurrency: usize,
}

/// How to reach the city's SMTP server.
#[derive(Clone)]
pub struct Smtp {
    /// Its host name; with TLS, the name in its certificate.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether and how the connection is encrypted.
    pub security: Security,
    /// User name for SMTP AUTH.
    pub username: Option<String>,
    /// Password for SMTP AUTH.
    pub password: Option<String>,
    /// PEM file of the certificate authorities to trust, and no others. Without it: Mozilla's.
    pub ca_file: Option<PathBuf>,
    /// For each mail: connecting and sending together.
    pub timeout: Duration,
}

/// How an SMTP connection is encrypted. What is asked for happens, or nothing is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not at all: for a relay on the same machine or in the same protected network.
    None,
    /// STARTTLS, required (RFC 3207).
    StartTls,
    /// TLS from the first byte (RFC 8314).
    Tls,
}

/// The wordings that are shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateSet {
    /// Names nobody: no author, no room name, no person cared for.
    Nameless,
    /// The wording of the city's handbook, with room name and author.
    Handbook,
}

impl Config {
    /// A configuration with the defaults: nameless mails, digests of 30 seconds, no quiet hours, attempts at least every
    /// 15 minutes for three days.
    #[must_use]
    pub fn new(server_url: String, mail_token: String, database: PathBuf, from: String, smtp: Smtp) -> Self {
        Self {
            server_url,
            mail_token,
            database,
            from,
            service_name: "Heya".to_owned(),
            login_url: String::new(),
            contact: String::new(),
            smtp,
            template: TemplateSet::Nameless,
            template_dir: None,
            digest_seconds: 30,
            quiet_hours: None,
            retry_ceiling: Duration::from_secs(15 * 60),
            give_up_after: Duration::from_secs(3 * 24 * 60 * 60),
            concurrency: 4,
        }
    }

    /// All that is wrong, in one text; `None` when nothing is. Names settings, never their values.
    pub(crate) fn problems(&self) -> Option<String> {
        let mut problems = Vec::new();
        if !(self.server_url.starts_with("http://") || self.server_url.starts_with("https://")) {
            problems.push("server_url must be an http(s) URL");
        }
        if self.mail_token.len() < 16 || !self.mail_token.bytes().all(|byte| byte.is_ascii_graphic()) {
            problems.push("mail_token must be at least 16 printable ASCII characters");
        }
        if !(self.login_url.starts_with("https://") || self.login_url.starts_with("http://")) {
            problems.push("login_url must be an http(s) URL");
        }
        if self.service_name.trim().is_empty() || self.service_name.chars().any(char::is_control) {
            problems.push("service_name must be one line of text");
        }
        if self.contact.trim().is_empty() {
            problems.push("contact must say whom to ask");
        }
        if self.template_dir.as_ref().is_some_and(|folder| !folder.is_dir()) {
            problems.push("template_dir must be a folder");
        }
        if self.concurrency == 0 || self.concurrency > 64 {
            problems.push("concurrency must be 1 to 64");
        }
        if self.digest_seconds > 24 * 60 * 60 {
            problems.push("digest_seconds must be at most one day");
        }
        if self.smtp.username.is_some() != self.smtp.password.is_some() {
            problems.push("smtp.username and smtp.password belong together");
        }
        if self.smtp.username.is_some() && self.smtp.security == Security::None && !self.smtp.is_loopback() {
            problems.push("smtp.password would travel in the clear: set smtp.security");
        }
        if self.smtp.timeout < Duration::from_secs(1) {
            problems.push("smtp.timeout must be at least one second");
        }
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}

impl Smtp {
    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Config")
            .field("server_url", &self.server_url)
            .field("mail_token", &"…")
            .field("database", &self.database)
            .field("from", &self.from)
            .field("service_name", &self.service_name)
            .field("login_url", &self.login_url)
            .field("contact", &self.contact)
            .field("smtp", &self.smtp)
            .field("template", &self.template)
            .field("template_dir", &self.template_dir)
            .field("digest_seconds", &self.digest_seconds)
            .field("quiet_hours", &self.quiet_hours)
            .field("retry_ceiling", &self.retry_ceiling)
            .field("give_up_after", &self.give_up_after)
            .field("concurrency", &self.concurrency)
            .finish()
    }
}

impl fmt::Debug for Smtp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Smtp")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("security", &self.security)
            .field("username", &self.username.as_ref().map(|_| "…"))
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("ca_file", &self.ca_file)
            .field("timeout", &self.timeout)
            .finish()
    }
}
