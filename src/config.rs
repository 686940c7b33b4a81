//! `config.toml`: its types, reading and checking. Read once, checked whole, all problems told together,
//! unknown keys refused. Secrets are files in the data folder, never values here.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The whole file. Every key has a default; `config.toml` lists them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names, listeners, database.
    pub server: Server,
    /// TLS and certificates.
    pub tls: Tls,
    /// What is allowed.
    pub policy: Policy,
    /// Sizes, counts, times.
    pub limits: Limits,
    /// The city: what it is called, whom to ask.
    pub city: City,
    /// The e-mail bridge.
    pub mail: Mail,
    /// Push gateways.
    pub push: Push,
    /// Calls.
    pub voip: Voip,
    /// The web client and pages.
    pub web: Web,
    /// How long closed rooms are kept.
    pub retention: Retention,
    /// Backups.
    pub backup: Backup,
    /// Other appservices, by name: the path of each registration file.
    pub appservices: BTreeMap<String, PathBuf>,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The name in user ids. Empty: the host of `public_url`. Fixed at the first start.
    pub server_name: String,
    /// Where clients reach the service.
    pub public_url: String,
    /// The public listener, TLS with client certificates.
    pub listen: SocketAddr,
    /// Where enrolment, mail links and help are reached. Empty: `https://` host of `public_url` and the port of
    /// `enrol_listen`.
    pub enrol_url: String,
    /// The enrolment listener: TLS without client certificates.
    pub enrol_listen: SocketAddr,
    /// The internal listener: bot, bridge, commands. Loopback only.
    pub internal_listen: SocketAddr,
    /// The one folder with everything.
    pub data_dir: PathBuf,
    /// `sqlite:` (a file in the data folder), `sqlite:PATH` or `postgres://…`.
    pub database_url: String,
    /// `error`, `warn`, `info`, `debug`.
    pub log: String,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            server_name: String::new(),
            public_url: "https://localhost:8448".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8448)),
            enrol_url: String::new(),
            enrol_listen: SocketAddr::from(([127, 0, 0, 1], 8447)),
            internal_listen: SocketAddr::from(([127, 0, 0, 1], 8449)),
            data_dir: PathBuf::from("data"),
            database_url: "sqlite:".to_owned(),
            log: "info".to_owned(),
        }
    }
}

/// `[backup]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backup {
    /// Where `heya backup` writes generations. Empty: `backups` in the data folder.
    pub folder: PathBuf,
    /// How many generations are kept; 0: all.
    pub keep: usize,
}

impl Default for Backup {
    fn default() -> Self {
        Self { folder: PathBuf::new(), keep: 14 }
    }
}

/// `[tls]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Off: plain HTTP, only with the open profile or behind nothing at all on loopback.
    pub enabled: bool,
    /// The server's certificate chain (PEM). Empty: one by our own CA, for trying out.
    pub certificate: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// TLS 1.2 with forward-secret AEAD suites beside 1.3 (some phones need it).
    pub tls12: bool,
    /// Refuse in the TLS handshake already, instead of with a page that people can read.
    pub strict_handshake: bool,
    /// A CA of the city's own instead of ours: its certificate (PEM). Heya then issues no certificates.
    pub client_ca: PathBuf,
    /// Its revocation list (PEM or DER), read again when it changes.
    pub client_crl: PathBuf,
    /// How long a certificate of ours is valid, in days.
    pub client_days: u32,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            enabled: true,
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            tls12: true,
            strict_handshake: false,
            client_ca: PathBuf::new(),
            client_crl: PathBuf::new(),
            client_days: 397,
        }
    }
}

/// Who must show a client certificate.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificate {
    /// Every connection.
    Connection,
    /// Nobody.
    Off,
}

/// What the sessions of OAuth log-ins may be bound to (DESIGN 2).
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SessionBinding {
    /// To connections of the terminal.
    Connection,
    /// To the terminal's certificate as it was shown at the log-in, where the app cannot show one itself.
    Login,
}

/// Who may make accounts.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    /// The city only.
    Closed,
    /// Whoever has the token in `keys/registration.token`.
    Token,
    /// Anybody (`m.login.dummy`).
    Open,
}

/// Who may make rooms.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum CreateRooms {
    /// The city; and two people who share a room, for the two of them.
    City,
    /// Everybody.
    Everybody,
}

/// Encryption between users (DESIGN 13).
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// Refused on every way in.
    Forbidden,
    /// Left to the users.
    Allowed,
}

/// `[policy]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Who must show a client certificate.
    pub client_certificate: ClientCertificate,
    /// The OAuth 2.0 API beside `m.login.password`.
    pub oauth: bool,
    /// What the sessions of OAuth log-ins may be bound to.
    pub session_binding: SessionBinding,
    /// A forgotten password is replaced by a link in a mail, on a terminal of the account's facility.
    pub password_reset_by_mail: bool,
    /// Tokens that prove to other services who somebody is.
    pub openid_tokens: bool,
    /// Who may make accounts.
    pub registration: Registration,
    /// `/_synapse/admin/v1/register` with the secret in `keys/registration.secret`.
    pub shared_secret_registration: bool,
    /// The rest of `/_synapse/admin`, for city staff.
    pub admin_api: bool,
    /// Who may make rooms.
    pub create_rooms: CreateRooms,
    /// Two-person rooms between people who share a room.
    pub direct_rooms: bool,
    /// A list of public rooms.
    pub public_directory: bool,
    /// Knocking (入室の申請): asking to be let into a room whose join rule allows it.
    pub knocking: bool,
    /// Rooms that the members of another room may join by themselves.
    pub restricted_joins: bool,
    /// Who is there at the moment, told to those who share a room. `--profile open` leaves it as it is: it costs every
    /// member a wake-up whenever somebody comes or goes.
    pub presence: bool,
    /// Guests: accounts without a password, in rooms that let them in.
    pub guests: bool,
    /// Encryption between users.
    pub encryption: Encryption,
    /// Requests are counted and slowed down.
    pub rate_limits: bool,
    /// Invitations by the city's bot are accepted for local accounts.
    pub accept_city_invitations: bool,
    /// What someone who left may still read: `nothing`, or `until_leave`.
    pub former_members_read: String,
    /// Hours until an emergency access (緊急閲覧) ends by itself.
    pub break_glass_hours: u32,
    /// The least length of a password.
    pub password_length_min: usize,
    /// How many former passwords may not come back.
    pub password_history: usize,
    /// Failures per ID and terminal before it is locked.
    pub login_failures_max: u32,
    /// Minutes that a lock lasts.
    pub lockout_minutes: u32,
    /// Set by `--profile open` only.
    #[serde(skip)]
    pub open_profile: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            client_certificate: ClientCertificate::Connection,
            oauth: false,
            session_binding: SessionBinding::Connection,
            password_reset_by_mail: false,
            openid_tokens: false,
            registration: Registration::Closed,
            shared_secret_registration: false,
            admin_api: false,
            create_rooms: CreateRooms::City,
            direct_rooms: true,
            public_directory: false,
            knocking: false,
            restricted_joins: false,
            presence: false,
            guests: false,
            encryption: Encryption::Forbidden,
            rate_limits: true,
            accept_city_invitations: true,
            former_members_read: "nothing".to_owned(),
            break_glass_hours: 24,
            password_length_min: 8,
            password_history: 5,
            login_failures_max: 5,
            lockout_minutes: 15,
            open_profile: false,
        }
    }
}

/// `[retention]`: years from a room's closing until it may be purged, by what the room was for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Rooms of subjects.
    pub subject_years: u32,
    /// Rooms of professional associations.
    pub association_years: u32,
    /// Liaison rooms.
    pub liaison_years: u32,
    /// Rooms of two people, from when nobody is left in them.
    pub direct_years: u32,
}

impl Default for Retention {
    /// Five years: the retention of care records that Japanese law asks of most providers (C28).
    fn default() -> Self {
        Self { subject_years: 5, association_years: 5, liaison_years: 5, direct_years: 5 }
    }
}

impl Retention {
    /// Milliseconds from its closing until a room of this kind may be purged.
    pub fn of(&self, kind: &str) -> i64 {
        let years = match kind {
            "subject" => self.subject_years,
            "liaison" => self.liaison_years,
            "direct" => self.direct_years,
            _ => self.association_years,
        };
        // 365.25 days: a few hours more or less of several years.
        i64::from(years) * 31_557_600_000
    }
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at once on the public listener.
    pub connections: usize,
    /// Seconds for a TLS handshake.
    pub handshake_seconds: u64,
    /// Seconds for a request's head, and for its body.
    pub request_seconds: u64,
    /// Bytes of a JSON body.
    pub json_bytes: usize,
    /// Bytes of an upload.
    pub upload_bytes: usize,
    /// Pixels of an image that thumbnails are made of.
    pub image_pixels: u64,
    /// Bytes of all uploads of one account; 0: no limit.
    pub media_bytes_per_account: u64,
    /// Bytes of all files on the disk; 0: no limit.
    pub media_bytes_in_all: u64,
    /// Media ids of one account that wait for their content.
    pub pending_uploads: u32,
    /// Seconds that a media id waits for its content.
    pub pending_upload_seconds: u64,
    /// Password hashes computed at once.
    pub password_hashes: usize,
    /// Seconds that an access token is good which can be refreshed.
    pub access_token_seconds: u32,
    /// Requests per second of one session, over time, where rate limits are on.
    pub requests_per_second: u32,
    /// Requests of one session at once, where rate limits are on.
    pub requests_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            handshake_seconds: 10,
            request_seconds: 60,
            json_bytes: 1 << 20,
            upload_bytes: 50 << 20,
            image_pixels: 40_000_000,
            media_bytes_per_account: 10 << 30,
            media_bytes_in_all: 0,
            pending_uploads: 20,
            pending_upload_seconds: 86_400,
            password_hashes: 2,
            access_token_seconds: 600,
            requests_per_second: 50,
            requests_burst: 500,
        }
    }
}

/// A link on the pages.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What it says.
    pub label: String,
    /// Where it goes.
    pub url: String,
}

/// `[city]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct City {
    /// The city's name.
    pub name: String,
    /// The service's name, on pages and in mails.
    pub service: String,
    /// Whom to ask: shown on every error and enrolment page.
    pub contact: String,
    /// Links shown with the pages.
    pub links: Vec<Link>,
    /// The first member of city staff, who enrols from the sheets that the first start writes.
    pub first_staff: String,
    /// The city's own facility.
    pub facility: String,
    /// `serve` runs the city bot in its process.
    pub bot: bool,
    /// Where the bot listens for the server.
    pub bot_listen: SocketAddr,
    /// How the city's e-application service (電子申請) calls the columns of its CSV files, and what each means.
    pub application_columns: BTreeMap<String, String>,
    /// How it calls its procedures (手続き), and what each means.
    pub application_procedures: BTreeMap<String, String>,
}

impl Default for City {
    fn default() -> Self {
        Self {
            name: "〇〇市".to_owned(),
            service: "Heya".to_owned(),
            contact: "〇〇市 高齢者支援担当課\n電話 0000-00-0000".to_owned(),
            links: Vec::new(),
            first_staff: "市担当者".to_owned(),
            facility: "〇〇市".to_owned(),
            bot: true,
            bot_listen: SocketAddr::from(([127, 0, 0, 1], 8450)),
            application_columns: BTreeMap::new(),
            application_procedures: BTreeMap::new(),
        }
    }
}

/// `[mail]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mail {
    /// `serve` runs the e-mail bridge in its process.
    pub enabled: bool,
    /// Where the bridge listens for the server.
    pub listen: SocketAddr,
    /// The sender.
    pub from: String,
    /// The city's SMTP server.
    pub smtp_host: String,
    /// Its port.
    pub smtp_port: u16,
    /// `starttls`, `tls`, or `none` (loopback only).
    pub smtp_security: String,
    /// The user name; the password is in `keys/smtp.password`.
    pub smtp_user: String,
    /// Trust only this CA (PEM).
    pub smtp_ca: PathBuf,
    /// `nameless`, or `handbook` (the handbook's wording, which names room and sender).
    pub template: String,
    /// A folder with the city's own templates.
    pub template_dir: PathBuf,
    /// Notifications of one account within so many seconds become one mail.
    pub digest_seconds: u64,
    /// No mail between these hours (24 h clock, Japan time), such as `["22:00", "07:00"]`.
    pub quiet_hours: Vec<String>,
}

impl Default for Mail {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: SocketAddr::from(([127, 0, 0, 1], 8451)),
            from: "heya@example.jp".to_owned(),
            smtp_host: "localhost".to_owned(),
            smtp_port: 587,
            smtp_security: "starttls".to_owned(),
            smtp_user: String::new(),
            smtp_ca: PathBuf::new(),
            template: "nameless".to_owned(),
            template_dir: PathBuf::new(),
            digest_seconds: 30,
            quiet_hours: Vec::new(),
        }
    }
}

/// `[push]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Push {
    /// The gateways that HTTP pushers may name, as origins (`https://host`, or with a port).
    pub gateways: Vec<String>,
    /// Trust only this CA (PEM) for them. Empty: the public CAs.
    pub ca: PathBuf,
}

impl Push {
    /// The gateways in the one form that origins are compared in.
    pub fn origins(&self) -> Vec<String> {
        let mut origins: Vec<String> = self.gateways.iter().filter_map(|url| https_origin(url)).collect();
        origins.sort_unstable();
        origins.dedup();
        origins
    }
}

/// The origin of an https URL without a user's name in it; nothing where it is no such URL.
pub fn https_origin(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let plain = url.scheme() == "https" && url.username().is_empty() && url.password().is_none();
    plain.then(|| url.origin().ascii_serialization())
}

/// `[voip]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Voip {
    /// The city's TURN server as `turn:` and `turns:` URIs; with none no client offers calls. The secret it shares with
    /// this server is in `keys/turn.secret`.
    pub turn_uris: Vec<String>,
    /// For how many seconds credentials for it are good.
    pub turn_seconds: u32,
}

impl Default for Voip {
    fn default() -> Self {
        Self { turn_uris: Vec::new(), turn_seconds: 3600 }
    }
}

/// `[web]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Web {
    /// A folder with a web client (Element Web), served at `/`. Empty: a page that explains.
    pub client_dir: PathBuf,
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &std::path::Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::internal(format!("cannot read {}: {error}", path.display())))?;
        Self::parse(&text).map_err(|error| Error::internal(format!("{}: {error}", path.display())))
    }

    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| Error::internal(error.to_string()))?;
        let problems = config.problems();
        if problems.is_empty() { Ok(config) } else { Err(Error::internal(problems.join("\n"))) }
    }

    /// Every setting as `section.key` → its value, for the audit log (C23). A password in the database's URL is left out;
    /// other secrets are never settings.
    pub fn flat(&self) -> Result<BTreeMap<String, String>> {
        let table = toml::Table::try_from(self).map_err(|error| Error::internal(error.to_string()))?;
        let mut flat = BTreeMap::new();
        for (section, value) in table {
            for (key, value) in value.as_table().into_iter().flatten() {
                flat.insert(format!("{section}.{key}"), value.to_string());
            }
        }
        // Of the database's URL the scheme, host and name only: a password may stand in several of its other parts.
        if let Some(url) = flat.get_mut("server.database_url")
            && let Some((scheme, rest)) = url.clone().split_once("://")
        {
            let rest = rest.split('?').next().unwrap_or_default();
            let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            *url = format!("{scheme}://{}", rest.trim_end_matches('"'));
        }
        Ok(flat)
    }

    /// Turns every policy to its most open value, for client developers and test suites: loopback only, plain HTTP or TLS.
    pub fn open_profile(&mut self, tls: bool) -> Result<()> {
        for (name, address) in [
            ("listen", self.server.listen),
            ("enrol_listen", self.server.enrol_listen),
            ("internal_listen", self.server.internal_listen),
        ] {
            if !address.ip().is_loopback() {
                return Err(Error::internal(format!(
                    "--profile open listens on loopback only: server.{name} is {address}"
                )));
            }
        }
        let policy = &mut self.policy;
        policy.client_certificate = ClientCertificate::Off;
        policy.oauth = true;
        policy.session_binding = SessionBinding::Connection;
        policy.password_reset_by_mail = true;
        policy.openid_tokens = true;
        policy.registration = Registration::Open;
        policy.shared_secret_registration = true;
        policy.admin_api = true;
        policy.create_rooms = CreateRooms::Everybody;
        policy.public_directory = true;
        policy.knocking = true;
        policy.restricted_joins = true;
        policy.guests = true;
        policy.encryption = Encryption::Allowed;
        policy.rate_limits = false;
        policy.former_members_read = "until_leave".to_owned();
        policy.open_profile = true;
        self.tls.enabled = tls;
        Ok(())
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.server.public_url.starts_with("https://") && !self.server.public_url.starts_with("http://") {
            problems.push("server.public_url must begin with https://".to_owned());
        }
        if self.host().is_empty() {
            problems.push("server.public_url has no host".to_owned());
        }
        for (name, address) in [
            ("server.internal_listen", self.server.internal_listen),
            ("city.bot_listen", self.city.bot_listen),
            ("mail.listen", self.mail.listen),
        ] {
            if !address.ip().is_loopback() {
                problems.push(format!("{name} must be a loopback address: it is {address}"));
            }
        }
        if self.tls.certificate.as_os_str().is_empty() != self.tls.key.as_os_str().is_empty() {
            problems.push("tls.certificate and tls.key go together".to_owned());
        }
        if !self.tls.client_crl.as_os_str().is_empty() && self.tls.client_ca.as_os_str().is_empty() {
            problems.push("tls.client_crl belongs to tls.client_ca".to_owned());
        }
        if !["nothing", "until_leave"].contains(&self.policy.former_members_read.as_str()) {
            problems.push("policy.former_members_read is \"nothing\" or \"until_leave\"".to_owned());
        }
        if self.policy.guests && self.policy.client_certificate == ClientCertificate::Connection {
            problems
                .push("policy.guests needs policy.client_certificate = \"off\": guests have none".to_owned());
        }
        if self.policy.session_binding == SessionBinding::Login {
            if !self.policy.oauth || self.policy.client_certificate != ClientCertificate::Connection {
                problems.push(
                    "policy.session_binding = \"login\" needs policy.oauth = true and \
                     policy.client_certificate = \"connection\""
                        .to_owned(),
                );
            }
            if self.tls.strict_handshake {
                problems.push(
                    "policy.session_binding = \"login\" and tls.strict_handshake = true exclude each other: such \
                     sessions come without a certificate"
                        .to_owned(),
                );
            }
        }
        if !(1..=600).contains(&self.limits.access_token_seconds) {
            problems.push("limits.access_token_seconds is between 1 and 600".to_owned());
        }
        if !(1..=168).contains(&self.policy.break_glass_hours) {
            problems.push("policy.break_glass_hours is between 1 and 168".to_owned());
        }
        let retention = &self.retention;
        if [
            retention.subject_years,
            retention.association_years,
            retention.liaison_years,
            retention.direct_years,
        ]
        .iter()
        .any(|years| *years > 100)
        {
            problems.push("retention is at most 100 years".to_owned());
        }
        for uri in &self.voip.turn_uris {
            if !["turn:", "turns:"]
                .iter()
                .any(|scheme| uri.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
            {
                problems.push(
                    "voip.turn_uris are URIs such as \"turn:turn.example.jp:3478?transport=udp\"".to_owned(),
                );
            }
        }
        if !(60..=86_400).contains(&self.voip.turn_seconds) {
            problems.push("voip.turn_seconds is between 60 and 86400".to_owned());
        }
        if self.policy.password_length_min < 8 {
            problems.push("policy.password_length_min must be 8 or more".to_owned());
        }
        if !["starttls", "tls", "none"].contains(&self.mail.smtp_security.as_str()) {
            problems.push("mail.smtp_security is \"starttls\", \"tls\" or \"none\"".to_owned());
        }
        if !["nameless", "handbook"].contains(&self.mail.template.as_str()) {
            problems.push("mail.template is \"nameless\" or \"handbook\"".to_owned());
        }
        if !self.mail.quiet_hours.is_empty() && self.mail.quiet_hours.len() != 2 {
            problems.push("mail.quiet_hours has a beginning and an end".to_owned());
        }
        for gateway in &self.push.gateways {
            let bare = gateway
                .split_once("://")
                .is_some_and(|(_, rest)| !rest.trim_end_matches('/').contains(['/', '?', '#', '@']));
            if !bare || https_origin(gateway).is_none() {
                problems.push("push.gateways are origins such as \"https://push.example.jp\"".to_owned());
            }
        }
        if self.limits.json_bytes < 70_000 {
            problems.push("limits.json_bytes must hold an event: 70000 or more".to_owned());
        }
        problems
    }

    /// The host (and port, where it is not 443) of `public_url`.
    pub fn host(&self) -> &str {
        authority(&self.server.public_url)
    }

    /// The server's name.
    pub fn server_name(&self) -> String {
        let name = &self.server.server_name;
        if name.is_empty() { self.host().to_owned() } else { name.clone() }
    }

    /// Where enrolment is reached, without a slash at the end.
    pub fn enrol_url(&self) -> String {
        if !self.server.enrol_url.is_empty() {
            return self.server.enrol_url.trim_end_matches('/').to_owned();
        }
        let host = self.host();
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        format!("https://{host}:{}", self.server.enrol_listen.port())
    }
}

/// The host and port of a URL.
pub fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}
