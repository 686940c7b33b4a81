//! The listener's side of TLS: handshake with a time-out, and a server certificate that can be changed while
//! running.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::files::{self, PEM_BYTES_MAX, Stamp, bad_file};
use super::verifier::PossessionVerifier;
use super::{Clock, Presented, TlsError, TrustAnchors, identity, judge};

/// Where the server's own certificate comes from.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// PEM: the server's certificate, then the CAs above it.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// How a listener treats clients' certificates.
#[derive(Debug, Clone)]
pub enum AskFor {
    /// Not asked for: the enrolment listener, whose visitors have none yet.
    Nothing,
    /// Asked for; whoever has none, or a bad one, still comes in and is told so in words.
    Certificate(TrustAnchors),
    /// Asked for; the handshake refuses whoever has no valid one (`strict_handshake`).
    Strictly(TrustAnchors),
}

/// What a listener is made from.
#[derive(Clone)]
pub struct TlsOptions {
    /// The server's certificate and key.
    pub files: ServerFiles,
    /// Whether TLS 1.2 is spoken beside 1.3 (forward-secret AEAD suites only).
    pub tls12: bool,
    /// Where the time comes from.
    pub clock: Clock,
}

/// Why a connection did not get through its handshake. Not worth more than a debug line: it is what scanners
/// produce all day.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The client took too long.
    #[error("TLS handshake timed out")]
    TimedOut,
    /// The handshake failed.
    #[error("TLS handshake failed: {0}")]
    Handshake(#[from] io::Error),
}

/// Accepts TLS connections of one listener.
pub struct TlsAcceptor {
    options: TlsOptions,
    current: ArcSwap<Current>,
    /// Held while files are read, so that two reloads cannot overtake each other.
    stamps: Mutex<Stamps>,
}

/// What new connections use; replaced as one.
struct Current {
    ask_for: AskFor,
    config: Arc<ServerConfig>,
    certificate_not_after: OffsetDateTime,
}

#[derive(PartialEq, Eq)]
struct Stamps {
    certificate: Stamp,
    key: Stamp,
}

impl TlsAcceptor {
    /// A listener that asks for certificates as `ask_for` says. Reads the server's certificate and key.
    pub fn new(options: TlsOptions, ask_for: AskFor) -> Result<Self, TlsError> {
        let stamps = Stamps::of(&options.files);
        let current = Current::build(&options, ask_for)?;
        Ok(Self { options, current: ArcSwap::from_pointee(current), stamps: Mutex::new(stamps) })
    }

    /// A listener that asks for no certificate (enrolment, mail links, help).
    pub fn without_client_certificates(options: TlsOptions) -> Result<Self, TlsError> {
        Self::new(options, AskFor::Nothing)
    }

    /// Does the handshake and judges what certificate was shown.
    pub async fn accept<S>(
        &self,
        stream: S,
        timeout: Duration,
    ) -> Result<(TlsStream<S>, Presented), AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let current = self.current.load_full();
        let handshake = tokio_rustls::TlsAcceptor::from(current.config.clone()).accept(stream);
        let stream = tokio::time::timeout(timeout, handshake).await.map_err(|_| AcceptError::TimedOut)??;
        let presented = match (&current.ask_for, stream.get_ref().1.peer_certificates()) {
            (AskFor::Certificate(anchors) | AskFor::Strictly(anchors), Some(certificates)) => {
                judge(certificates, anchors, (self.options.clock)())
            }
            _ => Presented::None,
        };
        Ok((stream, presented))
    }

    /// Reads the server's certificate and key again. On any error the ones in use stay.
    ///
    /// Open connections keep what they have. Blocks for two small files.
    pub fn reload(&self) -> Result<(), TlsError> {
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload_locked(&mut stamps)
    }

    /// [`Self::reload`] if one of the files has another time or length than when it was last tried; tells
    /// whether it was. A broken pair is reported once, not at every look.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        if *stamps == Stamps::of(&self.options.files) {
            return Ok(false);
        }
        self.reload_locked(&mut stamps).map(|()| true)
    }

    /// Judges new connections by other anchors or another strictness from now on.
    ///
    /// Open connections were judged by the old ones; the caller ends them ([`super::Connections::revoke_all`]).
    pub fn replace_ask_for(&self, ask_for: AskFor) -> Result<(), TlsError> {
        let _one_at_a_time = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        self.current.store(Arc::new(Current::build(&self.options, ask_for)?));
        Ok(())
    }

    /// When the server's certificate in use ends, for the city's alarm.
    pub fn certificate_not_after(&self) -> OffsetDateTime {
        self.current.load().certificate_not_after
    }

    fn reload_locked(&self, stamps: &mut Stamps) -> Result<(), TlsError> {
        // Taken before reading: a change during the read is then seen as one by the next look.
        *stamps = Stamps::of(&self.options.files);
        let ask_for = self.current.load().ask_for.clone();
        self.current.store(Arc::new(Current::build(&self.options, ask_for)?));
        Ok(())
    }
}

impl Stamps {
    fn of(files: &ServerFiles) -> Self {
        Self { certificate: Stamp::of(&files.certificate), key: Stamp::of(&files.key) }
    }
}

impl Current {
    fn build(options: &TlsOptions, ask_for: AskFor) -> Result<Self, TlsError> {
        let (chain, certificate_not_after) = read_chain(&options.files)?;
        let key = read_key(&options.files)?;
        // Always from the beginning: cloning a configuration shares its session store and ticketer.
        let builder =
            ServerConfig::builder_with_details(Arc::new(provider()), Arc::new(Time(options.clock.clone())))
                .with_protocol_versions(versions(options.tls12))?;
        let builder =
            match &ask_for {
                AskFor::Nothing => builder.with_no_client_auth(),
                AskFor::Certificate(anchors) => builder
                    .with_client_cert_verifier(Arc::new(PossessionVerifier::new(anchors.clone(), false))),
                AskFor::Strictly(anchors) => builder
                    .with_client_cert_verifier(Arc::new(PossessionVerifier::new(anchors.clone(), true))),
            };
        // Refuses a key that is not the certificate's.
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            bad_file(&options.files.key, format!("certificate and key do not fit: {error}"))
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // No resumption of any kind; rustls' defaults are a store of 256 sessions and two tickets.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self { ask_for, config: Arc::new(config), certificate_not_after })
    }
}

/// ring's provider with the cipher suites named one by one, so that an update of rustls cannot add one
/// unnoticed: all have forward secrecy and authenticated encryption (IPA's TLS guide, "high security").
pub(super) fn provider() -> rustls::crypto::CryptoProvider {
    use rustls::crypto::ring::cipher_suite as suite;
    rustls::crypto::CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        ..super::provider()
    }
}

fn versions(tls12: bool) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    if tls12 { &BOTH } else { &BOTH[..1] }
}

fn read_chain(files: &ServerFiles) -> Result<(Vec<CertificateDer<'static>>, OffsetDateTime), TlsError> {
    let pem = files::read(&files.certificate, PEM_BYTES_MAX)?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| bad_file(&files.certificate, "this is not PEM"))?;
    let Some(leaf) = chain.first() else {
        return Err(bad_file(&files.certificate, "there is no certificate in this file"));
    };
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
        return Err(bad_file(&files.certificate, "the first certificate cannot be read"));
    };
    let not_after = leaf.validity().not_after.to_datetime();
    Ok((chain, not_after))
}

fn read_key(files: &ServerFiles) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = Zeroizing::new(files::read(&files.key, PEM_BYTES_MAX)?);
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| bad_file(&files.key, "there is no private key in this file"))
}

/// Our clock in rustls' form.
pub(super) struct Time(pub(super) Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(identity::unix_time((self.0)()))
    }
}

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Time")
    }
}
