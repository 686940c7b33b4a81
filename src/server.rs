//! One running homeserver: what every request needs, put together once at the start.

use std::{path::PathBuf, sync::Arc};

use ruma::{OwnedServerName, OwnedUserId, UserId};

use crate::{
    accounts::{
        interactive::Interactive, login::Lockout, moderation::Moderation, oauth, passwords::Passwords,
        sessions::Sessions, terminals::Terminals,
    },
    appservices::Appservices,
    audit::Chain,
    clock::Clock,
    config::{ClientCertificate, Config, SessionBinding},
    error::{Error, Result},
    http::limits::Limiter,
    media::Blobs,
    push::Pushers,
    rooms::{
        batch::Batch,
        committer::{Committer, Context, Hint, UnitFuture},
        live::{Live, parking::Mutex},
        pdu::Signer,
    },
    store::{self, Db},
    tls,
};

/// The homeserver.
pub struct Server {
    /// `config.toml`.
    pub config: Config,
    /// The name in user ids.
    pub name: OwnedServerName,
    /// `@city:…`, who makes every city room.
    pub city_user: OwnedUserId,
    /// Time.
    pub clock: Clock,
    /// The database, to read from.
    pub db: Arc<Db>,
    /// What is in memory.
    pub live: Arc<Live>,
    /// The one way to write.
    pub committer: Committer,
    /// Password hashing.
    pub passwords: Passwords,
    /// Failed logins.
    pub lockout: Lockout,
    /// Access tokens.
    pub sessions: Arc<Sessions>,
    /// Accounts that are suspended or locked.
    pub moderation: Arc<Moderation>,
    /// Terminals and certificates.
    pub terminals: Arc<Terminals>,
    /// The CA of the terminals.
    pub ca: Arc<tls::Ca>,
    /// Appservices and their registrations.
    pub appservices: Appservices,
    /// Pushers.
    pub pushers: Arc<Pushers>,
    /// What each connection of a sliding sync has been told.
    pub sliding: crate::sync::sliding::connection::Connections,
    /// Blobs of media.
    pub blobs: Blobs,
    /// User-interactive authentications under way.
    pub interactive: Interactive,
    /// What the OAuth 2.0 API has under way: device grants, sessions of the account page.
    pub oauth: oauth::Under,
    /// Nonces of registration by shared secret.
    pub nonces: Mutex<Vec<String>>,
    /// Looks at rooms that the audit log has.
    pub looks: crate::reading::Looks,
    /// Requests per session and address.
    pub limiter: Limiter,
    /// Enrolments under way.
    pub enrolments: crate::accounts::enrol::Enrolments,
    /// This run of a restored or first database: tokens of another epoch are foreign (DESIGN 8).
    pub epoch: String,
    /// The secret of the mail bridge.
    pub mail_token: String,
    /// The secret of local commands (`heya cert …`) on the internal listener.
    pub command_token: String,
    /// Keys the references of subjects.
    pub subject_secret: String,
    /// The city's TURN server.
    pub turn: Option<crate::voip::Turn>,
    /// The secret of `/_synapse/admin/v1/register`.
    pub registration_secret: String,
    /// Told when the server stops: long polls end.
    pub stopping: tokio::sync::watch::Sender<bool>,
    /// Time and length of the revocation list when it was last read.
    pub list_stamp: Mutex<Option<(std::time::SystemTime, u64)>>,
    /// Held while the server runs: one server per data folder.
    pub lock: std::fs::File,
    /// Held while a room is written out: one export at a time.
    pub exports: tokio::sync::Mutex<()>,
    /// Wakes the search index before its time.
    pub search_wanted: tokio::sync::Notify,
    /// Wakes the mail lease when a mail is owed.
    pub mail_owed: Arc<tokio::sync::Notify>,
}

impl Server {
    /// Opens the data folder and the database, and starts the committer. Its handle is to be awaited at the end, so
    /// that what was accepted is written.
    pub async fn open(config: Config, clock: Clock) -> Result<(Arc<Self>, tokio::task::JoinHandle<()>)> {
        let data = config.server.data_dir.clone();
        let keys = data.join("keys");
        for folder in [
            &data,
            &keys,
            &data.join("media"),
            &data.join("audit"),
            &data.join("backups"),
            &data.join("sheets"),
            &data.join("exports"),
            &data.join("certificates"),
        ] {
            crate::files::private_folder(folder)?;
        }
        let lock = crate::files::lock(&data.join("lock"))?;
        let db = Arc::new(Db::open(&config.server.database_url, &data).await?);
        // A purge that a crash followed may have left pages as they were in the log.
        db.settle().await;
        let name = OwnedServerName::try_from(config.server_name())?;
        let signer = Arc::new(signing_key(&keys, &name)?);
        let live = Arc::new(Live::load(&db, clock.now_ms()).await?);
        crate::keys::check_no_encrypted_room(config.policy.encryption, &live.lists)?;
        let context = Context {
            db: Arc::clone(&db),
            live: Arc::clone(&live),
            signer,
            policy: Arc::new(config.policy.clone()),
            clock: clock.clone(),
            chain: Chain::load(&db, data.join("audit").join("heads")).await?,
        };
        let (committer, task) = Committer::start(context).await?;
        let epoch = fixed_at_first_start(&committer, &db, &name).await?;
        // The key is written last: without it and with nothing issued, an interrupted first start begins anew. Where
        // certificates were issued it was lost, and a new CA would lock every terminal out without a word.
        let lost = keys.join("ca.pem").exists() && !keys.join("ca.key").exists();
        if lost && !store::terminals::certificates(&mut db.read().await?).await?.is_empty() {
            return Err(Error::internal(format!(
                "{} is missing: put it back from the copy of keys/. (To begin with a new CA, remove ca.pem too; every \
                 terminal must then enrol again.)",
                keys.join("ca.key").display()
            )));
        }
        let ca = if config.tls.client_ca.as_os_str().is_empty() {
            tls::Ca::load_or_create(
                &keys,
                &format!("{} Heya CA", name),
                crate::accounts::terminals::at(clock.now_ms()),
                time::Duration::days(3650),
            )
        } else {
            tls::Ca::external(&config.tls.client_ca)
        }
        .map_err(|error| Error::internal(error.to_string()))?;
        let terminals = Arc::new(Terminals::load(&db, !ca.has_key()).await?);
        if !config.tls.client_crl.as_os_str().is_empty() {
            terminals.revoke_by_list(crate::accounts::terminals::load_list(
                &ca,
                &config.tls.client_crl,
                clock.now_ms(),
            )?);
        }
        let pushers = Arc::new(Pushers::load(&db, config.push.origins()).await?);
        let city_user = UserId::parse_with_server_name("city", &name)?;
        let appservices = Appservices::load(&config, &keys, &name)?;
        let server = Arc::new(Self {
            passwords: Passwords::new(config.limits.password_hashes, config.policy.open_profile)?,
            lockout: Lockout::new(config.policy.login_failures_max, config.policy.lockout_minutes),
            sessions: Arc::new(Sessions::load(&db, Arc::clone(&pushers)).await?),
            moderation: Arc::new(Moderation::load(&db).await?),
            terminals,
            ca: Arc::new(ca),
            appservices,
            pushers,
            sliding: crate::sync::sliding::connection::Connections::default(),
            blobs: Blobs::new(data.join("media")),
            interactive: Interactive::default(),
            oauth: oauth::Under::default(),
            nonces: Mutex::default(),
            looks: crate::reading::Looks::default(),
            limiter: Limiter::default(),
            enrolments: crate::accounts::enrol::Enrolments::default(),
            epoch,
            mail_token: crate::files::secret(&keys.join("mail.token"))?,
            command_token: crate::files::secret(&keys.join("command.token"))?,
            subject_secret: crate::files::secret(&keys.join("subject.secret"))?,
            turn: crate::voip::Turn::of(&config.voip, &keys)?,
            registration_secret: crate::files::secret(&keys.join("registration.secret"))?,
            stopping: tokio::sync::watch::Sender::new(false),
            list_stamp: Mutex::default(),
            lock,
            exports: tokio::sync::Mutex::default(),
            search_wanted: tokio::sync::Notify::new(),
            mail_owed: Arc::default(),
            name,
            city_user,
            clock,
            db,
            live,
            committer,
            config,
        });
        Ok((server, task))
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.config.server.data_dir.clone()
    }

    /// Now, in milliseconds.
    pub fn now(&self) -> i64 {
        self.clock.now_ms()
    }

    /// Runs a unit in the committer and answers when it is durable.
    pub async fn commit<T, F>(&self, hint: Hint, unit: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'b> FnOnce(&'b mut Batch) -> UnitFuture<'b, T> + Send + 'static,
    {
        self.committer.submit(hint, unit).await
    }

    /// Whether a session may be bound to its log-in (DESIGN 2).
    pub fn allows_login_binding(&self) -> bool {
        let policy = &self.config.policy;
        policy.oauth
            && policy.session_binding == SessionBinding::Login
            && policy.client_certificate == ClientCertificate::Connection
    }

    /// Whether a user id is of this server.
    pub fn is_local(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.name
    }
}

/// Ends when the server stops.
pub async fn stopped(stopping: &mut tokio::sync::watch::Receiver<bool>) {
    // The sender lives as long as the server: an error means that it has stopped, too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// The ed25519 key that signs events: made at the first start, `keys/signing.key` (PKCS#8 DER).
fn signing_key(keys: &std::path::Path, name: &ruma::ServerName) -> Result<Signer> {
    let path = keys.join("signing.key");
    if !path.exists() {
        crate::files::write_private(&path, &ruma::signatures::Ed25519KeyPair::generate())?;
    }
    let key = ruma::signatures::Ed25519KeyPair::from_der(&std::fs::read(&path)?, "heya1".to_owned())
        .map_err(|error| Error::internal(format!("{}: {error}", path.display())))?;
    Ok(Signer { server_name: name.to_owned(), key })
}

/// The server's name is stored at the first start and never changes; the epoch is new with every database.
async fn fixed_at_first_start(committer: &Committer, db: &Db, name: &ruma::ServerName) -> Result<String> {
    let mut conn = db.read().await?;
    if let Some(stored) = store::meta::value(&mut conn, "server_name").await? {
        if stored != name.as_str() {
            return Err(Error::internal(format!(
                "this database belongs to the server name {stored}; config.toml says {name}. The name is part of every \
                 user id and cannot change: set server.server_name = \"{stored}\""
            )));
        }
        return store::meta::value(&mut conn, "epoch")
            .await?
            .ok_or_else(|| Error::internal("the database has no epoch"));
    }
    drop(conn);
    let name = name.to_string();
    let epoch = crate::clock::random_token(8);
    let answer = epoch.clone();
    committer
        .submit(Hint::default(), move |batch| {
            Box::pin(async move {
                let conn = batch.sql().await?;
                store::meta::set(conn, "server_name", &name).await?;
                store::meta::set(conn, "epoch", &epoch).await
            })
        })
        .await?;
    Ok(answer)
}
