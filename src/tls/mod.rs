//! Everything about TLS and X.509: the certificate authority of the city's terminals, the bundles that
//! people install, the handshake, and what a presented certificate is worth.
//!
//! | file | idea |
//! |---|---|
//! | [`ca`] | the CA's certificate and key: made, loaded, or trusted from outside |
//! | [`issue`] | certificates of terminals (and of the demo's own server) |
//! | [`crl`] | revocation lists: written by us, or read with suspicion |
//! | [`bundle`], [`mobileconfig`] | the file a person installs |
//! | [`identity`] | a presented certificate judged: [`Presented`], [`TerminalIdentity`] |
//! | [`verifier`] | what rustls asks us during the handshake |
//! | [`acceptor`] | listener side: handshake, time-out, reload of the server certificate |
//! | [`connections`] | live connections by certificate, so that a revocation ends them |
//!
//! # Invariants
//!
//! - Only this module parses certificates. Others see [`TerminalIdentity`] and bytes.
//! - It knows no SQL, no HTTP, no account and no configuration file; time comes in as a parameter.
//! - The handshake proves that the peer holds the key of the certificate it shows, nothing more (unless
//!   [`AskFor::Strictly`]). What the certificate is worth is judged once per connection; whether it is
//!   expired or revoked is asked on every request with [`TerminalIdentity::state`], because an open connection
//!   outlives both.
//! - No session is ever resumed: a resumed TLS session skips the certificate, so it would outlive a revocation.
//!   A `ServerConfig` is rebuilt whole, never cloned (a clone shares the session store).
//! - A certificate is known by its serial number's bytes, in the form of [`serial_bytes`]; they are
//!   unique because there is exactly one CA and it signs terminals' certificates itself (no intermediates).
//! - A file that does not pass its checks never replaces what is in use.
//! - No private key and no password appears in an error, a log line or a `Debug` output.

pub mod acceptor;
pub mod bundle;
pub mod ca;
pub mod connections;
pub mod crl;
mod files;
pub mod identity;
pub mod issue;
pub mod mobileconfig;
pub mod verifier;

#[cfg(test)]
mod tests;

pub use acceptor::{AcceptError, AskFor, ServerFiles, TlsAcceptor, TlsOptions};
pub use bundle::{BundleEncoding, pkcs12};
pub use ca::Ca;
pub use connections::{ConnectionGuard, Connections};
pub use crl::{Revocation, RevocationReason, RevokedSerials, crl_pem};
pub use identity::{CertificateState, Presented, TerminalIdentity, TrustAnchors, judge};
pub use issue::{IssuedCertificate, TerminalSubject};
pub use mobileconfig::Profile;

use std::path::PathBuf;

/// Where the module gets the time from. Tests hold it still.
pub type Clock = std::sync::Arc<dyn Fn() -> time::OffsetDateTime + Send + Sync>;

/// What can go wrong outside a handshake. The texts are for the operator's log: whole sentences, no secrets.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read and its content is not what it has to be.
    #[error("{path}: {reason}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// Why it is refused.
        reason: String,
    },
    /// A revocation list is refused; the one in use stays.
    #[error("the revocation list is refused: {0}")]
    BadCrl(String),
    /// What was asked for cannot be issued.
    #[error("{0}")]
    Refused(&'static str),
    /// This CA was trusted from a file and has no key here.
    #[error("this CA's key is not held here, so nothing can be issued or revoked in its name")]
    NoCaKey,
    /// Certificate or revocation list could not be built.
    #[error("certificate could not be built: {0}")]
    Build(#[from] rcgen::Error),
    /// The bundle could not be built.
    #[error("PKCS#12 bundle could not be built: {0}")]
    Bundle(String),
    /// rustls refused the configuration.
    #[error("TLS configuration is refused: {0}")]
    Config(#[from] rustls::Error),
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system")]
    NoRandomness,
}

/// The one cryptographic provider of the program (ring), with its algorithms.
pub(crate) fn provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// A serial number as we compare and store it: the magnitude's bytes, big endian, without leading zeros.
///
/// `None` for what RFC 5280 (4.1.2.2) forbids: zero, negative or more than 20 bytes. Negative ones would
/// otherwise collide with positive ones once the sign byte is gone.
pub fn serial_bytes(der_integer: &[u8]) -> Option<Vec<u8>> {
    let negative = der_integer.first().is_some_and(|first| first & 0x80 != 0);
    let magnitude: Vec<u8> = der_integer.iter().copied().skip_while(|byte| *byte == 0).collect();
    (!negative && !magnitude.is_empty() && magnitude.len() <= 20).then_some(magnitude)
}

/// Bytes as lower-case hexadecimal digits, the way serial numbers and fingerprints are shown to people.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
