//! What a presented certificate is worth: judged once per connection, its state asked on every request.

use std::fmt;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{TlsError, hex, issue, serial_bytes};

/// The subject alternative name that carries a terminal's number, `heya:terminal/5`.
pub(super) const TERMINAL_URI: &str = "heya:terminal/";

/// What a connection showed in its handshake, with possession of the key proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presented {
    /// No certificate.
    None,
    /// A certificate that is not a terminal's: another CA, another usage, or unreadable.
    Unknown,
    /// A certificate our CA issued for client authentication. It may be expired or revoked: ask
    /// [`TerminalIdentity::state`] on every request.
    Terminal(TerminalIdentity),
}

/// The identity that a certificate of our CA gives to a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct TerminalIdentity {
    /// The serial number in the form of [`serial_bytes`].
    pub serial: Vec<u8>,
    /// SHA-256 of the certificate's DER.
    pub fingerprint: [u8; 32],
    /// The terminal named in the certificate; an outside CA's certificates name none, and are registered by
    /// serial number.
    pub terminal: Option<i64>,
    /// The first second of the certificate's validity.
    pub not_before: OffsetDateTime,
    /// The last second of the certificate's validity.
    pub not_after: OffsetDateTime,
}

/// The state of a certificate of our CA at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateState {
    /// It opens the door.
    Valid,
    /// Its validity has not begun.
    NotYetValid,
    /// Its validity is over.
    Expired,
    /// It was revoked; that is said even where it is expired too.
    Revoked,
}

impl TerminalIdentity {
    /// The certificate's state now; `revoked` is what the caller's memory knows about [`Self::serial`].
    pub fn state(&self, now: OffsetDateTime, revoked: bool) -> CertificateState {
        if revoked {
            CertificateState::Revoked
        } else if now < self.not_before {
            CertificateState::NotYetValid
        // The last second belongs to the validity (RFC 5280, 4.1.2.5), fractions of it included.
        } else if now.unix_timestamp() > self.not_after.unix_timestamp() {
            CertificateState::Expired
        } else {
            CertificateState::Valid
        }
    }
}

impl fmt::Debug for TerminalIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TerminalIdentity")
            .field("serial", &hex(&self.serial))
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}

/// The CA that client certificates are judged by.
#[derive(Debug, Clone)]
pub struct TrustAnchors {
    anchors: Vec<TrustAnchor<'static>>,
}

impl TrustAnchors {
    /// Trusts certificates signed by this CA itself.
    pub fn new(ca: CertificateDer<'static>) -> Result<Self, TlsError> {
        let anchor = anchor_from_trusted_cert(&ca)
            .map_err(|_| TlsError::Refused("the CA's certificate cannot serve as a trust anchor"))?;
        Ok(Self { anchors: vec![anchor.to_owned()] })
    }

    pub(super) fn hints(&self) -> Vec<rustls::DistinguishedName> {
        self.anchors.iter().map(|anchor| rustls::DistinguishedName::in_sequence(&anchor.subject)).collect()
    }

    /// Chain, signature and usage by rustls-webpki, at the time `at`.
    ///
    /// Intermediates that the peer sends are not looked at: our CA signs terminals' certificates itself, and a
    /// path that strangers can lengthen is work they can make us do.
    pub(super) fn check(&self, leaf: &CertificateDer<'_>, at: UnixTime) -> Result<(), webpki::Error> {
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(
                super::provider().signature_verification_algorithms.all,
                &self.anchors,
                &[],
                at,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map(|_path| ())
    }
}

/// Judges the certificates a peer presented (leaf first), once per connection.
///
/// The chain is checked at the moment nearest to `now` inside the leaf's validity, so that an expired
/// certificate of ours is recognised as ours: its owner is told "expired", a stranger "unknown".
pub fn judge(peer_certs: &[CertificateDer<'_>], anchors: &TrustAnchors, now: OffsetDateTime) -> Presented {
    let Some(leaf) = peer_certs.first() else { return Presented::None };
    let Some(identity) = read(leaf) else {
        tracing::debug!("client certificate cannot be read");
        return Presented::Unknown;
    };
    if identity.not_after < identity.not_before {
        return Presented::Unknown;
    }
    match anchors.check(leaf, unix_time(now.clamp(identity.not_before, identity.not_after))) {
        Ok(()) => Presented::Terminal(identity),
        Err(error) => {
            tracing::debug!(%error, "client certificate is not a terminal's");
            Presented::Unknown
        }
    }
}

/// Checks a certificate that a person wants to have registered.
pub(super) fn inspect(
    file: &[u8],
    anchors: &TrustAnchors,
    now: OffsetDateTime,
) -> Result<TerminalIdentity, TlsError> {
    const UNREADABLE: TlsError = TlsError::Refused("this is not a certificate in PEM or DER");
    // A DER certificate begins with the tag of a SEQUENCE; PEM is text.
    let leaf = if file.first() == Some(&0x30) {
        CertificateDer::from(file.to_vec())
    } else {
        if file.windows(11).any(|words| words == b"PRIVATE KEY") {
            return Err(TlsError::Refused(
                "there is a private key in this file: give the certificate alone, and keep the key where it is",
            ));
        }
        let mut all = CertificateDer::pem_slice_iter(file);
        let Some(Ok(leaf)) = all.next() else { return Err(UNREADABLE) };
        if all.next().is_some() {
            return Err(TlsError::Refused(
                "there is more than one certificate in this file: give the terminal's alone",
            ));
        }
        leaf
    };
    let identity = read(&leaf).ok_or(UNREADABLE)?;
    anchors.check(&leaf, unix_time(now)).map_err(|error| {
        use webpki::Error as E;
        TlsError::Refused(match error {
            E::CertExpired { .. } => "this certificate has expired",
            E::CertNotValidYet { .. } => "this certificate is not valid yet",
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => {
                "this certificate was not issued by the CA in tls.client_ca"
            }
            E::RequiredEkuNotFoundContext(_) => "this certificate is not for client authentication",
            _ => "this certificate cannot serve for client authentication",
        })
    })?;
    Ok(identity)
}

/// Reads what we need of a certificate. Believe it only after [`TrustAnchors::check`].
fn read(der: &CertificateDer<'_>) -> Option<TerminalIdentity> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let names = certificate.subject_alternative_name().ok()?;
    let mut terminals =
        names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(TERMINAL_URI)?.parse().ok(),
            _ => None,
        });
    let terminal = terminals.next();
    // A certificate of two terminals is none of ours.
    (rest.is_empty() && terminals.next().is_none()).then_some(())?;
    Some(TerminalIdentity {
        serial: serial_bytes(certificate.raw_serial())?,
        fingerprint: issue::fingerprint(der),
        terminal,
        not_before: validity.not_before.to_datetime(),
        not_after: validity.not_after.to_datetime(),
    })
}

pub(super) fn unix_time(at: OffsetDateTime) -> UnixTime {
    // X.509 times before 1970 do not occur in certificates of ours.
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.unix_timestamp().try_into().unwrap_or(0)))
}
