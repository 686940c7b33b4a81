//! SMTP. One mail, one recipient, one outcome. lettre's transport does not tell which command was refused, and that is what
//! decides: a refused recipient is the address's fault, a refused log-in or sender is ours and must cost nobody their mails.

use lettre::{
    Address,
    transport::smtp::{
        Error,
        authentication::{Credentials, DEFAULT_MECHANISMS},
        client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters},
        commands::{Data, Mail, Rcpt},
        extension::{ClientId, Extension, MailBodyParameter, MailParameter},
    },
};
use std::{
    error::Error as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{Security, Smtp};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The SMTP server has taken the mail over.
    Accepted,
    /// The address is refused for good.
    AddressRefused(u16),
    /// This mail is refused for good, for what it is; the address may be good.
    MailRefused(u16),
    /// The recipient is not accepted now. Nothing was delivered.
    AddressDeferred(u16),
    /// Not now, for a reason that is not the recipient's. Nothing was delivered.
    Deferred(Option<u16>),
    /// The connection was lost after the mail was handed over: it may have arrived.
    Ambiguous,
}

/// Sends mails, keeping a few connections open between them.
pub(crate) struct Sender {
    smtp: Smtp,
    tls: Option<TlsParameters>,
    hello: ClientId,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: AsyncSmtpConnection,
    since: Instant,
}

const PEM_HEAD: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Servers close idle connections; well before that we open a new one.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// What to do after a command failed.
struct Failed {
    outcome: Outcome,
    /// The failure may be that of an old connection.
    lost: bool,
}

impl Sender {
    /// Reads the CA file. The connection is made when there is a mail.
    pub(crate) fn new(smtp: Smtp) -> Result<Self, String> {
        let tls = match smtp.security {
            Security::None => None,
            Security::StartTls | Security::Tls => {
                let builder = TlsParameters::builder(smtp.host.clone());
                let builder = match &smtp.ca_file {
                    None => builder.certificate_store(CertificateStore::WebpkiRoots),
                    Some(path) => {
                        let pem = std::fs::read(path).map_err(|error| format!("smtp.ca_file: {error}"))?;
                        // lettre takes an empty file for a store that trusts nobody.
                        if !pem.windows(PEM_HEAD.len()).any(|bytes| bytes == PEM_HEAD) {
                            return Err("smtp.ca_file: no PEM certificates".to_owned());
                        }
                        let roots =
                            Certificate::from_pem(&pem).map_err(|_| "smtp.ca_file: no PEM certificates")?;
                        builder.certificate_store(CertificateStore::None).add_root_certificate(roots)
                    }
                };
                Some(builder.build_rustls().map_err(|_| "smtp.ca_file: no usable certificate")?)
            }
        };
        Ok(Self { smtp, tls, hello: ClientId::default(), idle: Mutex::default() })
    }

    /// One attempt, within the configured time.
    pub(crate) async fn send(&self, from: &Address, to: &Address, message: &[u8]) -> Outcome {
        let mut handed_over = false;
        match tokio::time::timeout(self.smtp.timeout, self.attempt(from, to, message, &mut handed_over)).await
        {
            Ok(outcome) => outcome,
            Err(_) if handed_over => Outcome::Ambiguous,
            Err(_) => Outcome::Deferred(None),
        }
    }

    async fn attempt(&self, from: &Address, to: &Address, message: &[u8], handed_over: &mut bool) -> Outcome {
        if let Some(mut connection) = self.take_idle() {
            match self.deliver(&mut connection, from, to, message, handed_over).await {
                Ok(()) => {
                    self.put_idle(connection);
                    return Outcome::Accepted;
                }
                // It had been closed in the meantime; nothing was handed over, so once more on a new one.
                Err(failed) if failed.lost && !*handed_over => {}
                Err(failed) => return failed.outcome,
            }
        }
        let mut connection = match self.connect().await {
            Ok(connection) => connection,
            Err(error) => {
                // Whatever is refused here, log-in included, is between the city's server and us.
                tracing::warn!(code = code(&error), "the SMTP server cannot be reached or refuses us");
                return Outcome::Deferred(code(&error));
            }
        };
        match self.deliver(&mut connection, from, to, message, handed_over).await {
            Ok(()) => {
                self.put_idle(connection);
                Outcome::Accepted
            }
            Err(failed) => {
                if !failed.lost {
                    close(connection).await;
                }
                failed.outcome
            }
        }
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let smtp = &self.smtp;
        let wrapper = if smtp.security == Security::Tls { self.tls.clone() } else { None };
        let address = (smtp.host.as_str(), smtp.port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(address, Some(smtp.timeout), &self.hello, wrapper, None)
                .await?;
        if let (Security::StartTls, Some(tls)) = (smtp.security, &self.tls) {
            // Fails where the server does not offer it: there is no way on in the clear.
            connection.starttls(tls.clone(), &self.hello).await?;
        }
        if let (Some(username), Some(password)) = (&smtp.username, &smtp.password) {
            let credentials = Credentials::new(username.clone(), password.clone());
            connection.auth(DEFAULT_MECHANISMS, &credentials).await?;
        }
        Ok(connection)
    }

    async fn deliver(
        &self,
        connection: &mut AsyncSmtpConnection,
        from: &Address,
        to: &Address,
        message: &[u8],
        handed_over: &mut bool,
    ) -> Result<(), Failed> {
        let mut options = Vec::new();
        let (from_text, to_text): (&str, &str) = (from.as_ref(), to.as_ref());
        if !from_text.is_ascii() || !to_text.is_ascii() {
            if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
                // RFC 6531, section 3.5: 553 is what a server says to an address it cannot write.
                return Err(Failed { outcome: Outcome::AddressRefused(553), lost: false });
            }
            options.push(MailParameter::SmtpUtfEight);
        }
        if !message.is_ascii() {
            // Bodies are encoded; only the header line of an internationalised address is not.
            options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        connection.command(Mail::new(Some(from.clone()), options)).await.map_err(ours)?;
        connection.command(Rcpt::new(to.clone(), Vec::new())).await.map_err(|error| {
            let outcome = match code(&error) {
                Some(code) if is_about_address(code, &error, true) => Outcome::AddressRefused(code),
                Some(code) if error.is_transient() && code != 421 => Outcome::AddressDeferred(code),
                _ => return ours(error),
            };
            Failed { outcome, lost: false }
        })?;
        connection.command(Data).await.map_err(ours)?;
        *handed_over = true;
        connection.message(message).await.map(drop).map_err(|error| {
            let outcome = match code(&error) {
                Some(code) if is_about_address(code, &error, false) => Outcome::AddressRefused(code),
                Some(code) if error.is_permanent() => Outcome::MailRefused(code),
                Some(code) => Outcome::Deferred(Some(code)),
                None => Outcome::Ambiguous,
            };
            Failed { outcome, lost: error.status().is_none() }
        })
    }

    /// Takes leave of the server once there is nothing more to send.
    pub(crate) async fn close_idle(&self) {
        while let Some(connection) = self.take_idle() {
            close(connection).await;
        }
    }

    fn take_idle(&self) -> Option<AsyncSmtpConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < IDLE_MAX);
        idle.pop().map(|idle| idle.connection)
    }

    fn put_idle(&self, connection: AsyncSmtpConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(Idle { connection, since: Instant::now() });
    }
}

/// QUIT is a courtesy: the outcome stands, and nobody waits long for the answer.
async fn close(mut connection: AsyncSmtpConnection) {
    let _ = tokio::time::timeout(Duration::from_secs(1), connection.abort()).await;
}

/// A failure that says nothing about the address: another attempt later, even after a 5xx, until somebody has mended it.
fn ours(error: Error) -> Failed {
    if error.is_permanent() {
        tracing::warn!(code = code(&error), "the SMTP server refuses us, not the recipient");
    }
    let code = code(&error);
    Failed { outcome: Outcome::Deferred(code), lost: code.is_none_or(|code| code == 421) }
}

fn code(error: &Error) -> Option<u16> {
    error.status().map(u16::from)
}

/// Whether a permanent reply is about the recipient. An enhanced code (RFC 3463) says so: x.1 is addressing, x.2 the mailbox,
/// everything else (5.7.1 "relay access denied") is the servers' affair. Without one: the codes of RFC 5321, section 4.2.3 that
/// name the mailbox, and 554 where it answers RCPT.
fn is_about_address(code: u16, error: &Error, answers_rcpt: bool) -> bool {
    if !error.is_permanent() {
        return false;
    }
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    let mut enhanced = text.split_whitespace().next().unwrap_or_default().split('.');
    if let (Some("5"), Some(subject), Some(detail)) = (enhanced.next(), enhanced.next(), enhanced.next())
        && detail.bytes().all(|byte| byte.is_ascii_digit())
    {
        return matches!(subject, "1" | "2") && matches!(code, 550..=554);
    }
    matches!(code, 550..=553) || (answers_rcpt && code == 554)
}
