//! Issuing certificates: a terminal's (client authentication only), and a server's for the demo and tests.
//!
//! Renewing is issuing again with a new key; the old certificate stays valid until it is revoked or ends.

use std::fmt;
use std::net::IpAddr;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::{Ca, ServerFiles, TlsError, files, identity};

/// X.520's upper bound of a common name (RFC 5280, appendix A: ub-common-name).
pub(super) const COMMON_NAME_CHARS_MAX: usize = 64;

/// Terminals' clocks are not always right, and one that is slow must still accept its new certificate.
const BACKDATED: Duration = Duration::minutes(5);

/// Whom a terminal's certificate is made out to.
#[derive(Debug, Clone)]
pub struct TerminalSubject {
    /// What the person sees when the browser asks which certificate to use, for example `〇〇訪問看護 端末5`.
    ///
    /// TLS 1.2 sends certificates unencrypted, so this is never a person's name.
    pub common_name: String,
    /// The terminal.
    pub terminal: i64,
    /// The facility the terminal belongs to.
    pub facility: i64,
    /// The city's server name.
    pub server_name: String,
}

/// A certificate and its private key, as they leave the CA. The key is wiped when this is dropped.
pub struct IssuedCertificate {
    /// The certificate, DER.
    pub certificate_der: CertificateDer<'static>,
    /// The same, PEM.
    pub certificate_pem: String,
    /// The certificate of the CA that signed it.
    pub ca_der: CertificateDer<'static>,
    /// The private key, PKCS#8 DER.
    pub key_der: Zeroizing<Vec<u8>>,
    /// The common name of the subject.
    pub common_name: String,
    /// The serial number, as in [`super::TerminalIdentity::serial`].
    pub serial: Vec<u8>,
    /// The first second of its validity.
    pub not_before: OffsetDateTime,
    /// The last second of its validity.
    pub not_after: OffsetDateTime,
    /// SHA-256 of the certificate's DER.
    pub fingerprint_sha256: [u8; 32],
}

impl Ca {
    /// Makes a new key and a certificate for it with which the terminal can log in (client authentication).
    ///
    /// It ends after `valid_for`, or with the CA's own certificate where that comes first.
    pub fn issue(
        &self,
        subject: &TerminalSubject,
        now: OffsetDateTime,
        valid_for: Duration,
    ) -> Result<IssuedCertificate, TlsError> {
        let mut params = self.leaf(&subject.common_name, now, valid_for)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = [
            format!("{}{}", identity::TERMINAL_URI, subject.terminal),
            format!("heya:facility/{}", subject.facility),
            format!("heya:server/{}", subject.server_name),
        ]
        .into_iter()
        .map(|uri| Ok(SanType::URI(uri.try_into()?)))
        .collect::<Result<_, rcgen::Error>>()?;
        self.sign(params, &subject.common_name)
    }

    /// Makes a server's certificate for the given host names and addresses: the demo and tests only, since a
    /// city's server certificate comes from a public CA.
    pub fn issue_server(
        &self,
        names: &[&str],
        addresses: &[IpAddr],
        now: OffsetDateTime,
        valid_for: Duration,
    ) -> Result<IssuedCertificate, TlsError> {
        let common_name = names.first().copied().unwrap_or("heya");
        let mut params = self.leaf(common_name, now, valid_for)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| Ok(SanType::DnsName((*name).try_into()?)))
            .chain(addresses.iter().map(|address| Ok(SanType::IpAddress(*address))))
            .collect::<Result<_, rcgen::Error>>()?;
        self.sign(params, common_name)
    }

    fn leaf(
        &self,
        common_name: &str,
        now: OffsetDateTime,
        valid_for: Duration,
    ) -> Result<CertificateParams, TlsError> {
        let length = common_name.chars().count();
        if length == 0 || length > COMMON_NAME_CHARS_MAX || common_name.chars().any(char::is_control) {
            return Err(TlsError::Refused(
                "a certificate's common name has 1 to 64 characters and no control characters",
            ));
        }
        if !self.is_valid_at(now) {
            return Err(TlsError::Refused("the CA's own certificate is not valid at this time"));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?.into());
        (params.not_before, params.not_after) = validity(now, valid_for)?;
        params.not_after = params.not_after.min(self.not_after());
        Ok(params)
    }

    fn sign(&self, params: CertificateParams, common_name: &str) -> Result<IssuedCertificate, TlsError> {
        let issuer = self.issuer()?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, issuer)?;
        Ok(IssuedCertificate {
            fingerprint_sha256: fingerprint(certificate.der()),
            certificate_der: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            ca_der: self.certificate().clone(),
            key_der: Zeroizing::new(key.serialize_der()),
            common_name: common_name.to_owned(),
            serial: params.serial_number.as_ref().map(rcgen::SerialNumber::to_bytes).unwrap_or_default(),
            not_before: params.not_before,
            not_after: params.not_after,
        })
    }
}

impl IssuedCertificate {
    /// The private key as PKCS#8 PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        pem("PRIVATE KEY", &self.key_der)
    }

    /// Stores a server's certificate (with the CA's behind it) and key as the files a listener reads; the key
    /// for its owner only. Existing files are never replaced.
    pub fn write(&self, files: &ServerFiles) -> Result<(), TlsError> {
        let chain = [self.certificate_pem.as_str(), &pem("CERTIFICATE", &self.ca_der)].concat();
        files::write_private(&files.key, self.key_pem().as_bytes())?;
        files::write_public(&files.certificate, chain.as_bytes())
    }

    /// The private key as rustls wants it. The copy is not wiped.
    pub fn rustls_key(&self) -> rustls_pki_types::PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_der.to_vec()).into()
    }
}

impl fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedCertificate").field("serial", &super::hex(&self.serial)).finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate's DER.
pub(super) fn fingerprint(der: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// 16 random bytes that are a positive integer of exactly 16 bytes: the top bit is clear, so DER needs no sign
/// byte, and the next is set, so there is no leading zero. 126 random bits are far above the 64 that CAs are
/// held to (CA/Browser Forum baseline requirements, 7.1).
pub(super) fn random_serial() -> Result<Vec<u8>, TlsError> {
    let mut serial = vec![0; 16];
    super::provider().secure_random.fill(&mut serial).map_err(|_| TlsError::NoRandomness)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

/// The validity of a certificate issued at `now`, in whole seconds as X.509 knows them.
pub(super) fn validity(
    now: OffsetDateTime,
    valid_for: Duration,
) -> Result<(OffsetDateTime, OffsetDateTime), TlsError> {
    const RANGE: TlsError = TlsError::Refused("this validity cannot be written into a certificate");
    let now = now.replace_nanosecond(0).map_err(|_| RANGE)?;
    let not_before = now.checked_sub(BACKDATED).ok_or(RANGE)?;
    let not_after = now.checked_add(valid_for).ok_or(RANGE)?;
    if not_after <= now || not_after.year() > 9999 || not_before.year() < 1970 {
        return Err(RANGE);
    }
    Ok((not_before, not_after))
}

/// DER as PEM (RFC 7468: lines of 64 characters). Wiped on drop, since it may hold a key.
pub(super) fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    use base64::Engine;
    let base64 = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(base64.len() + base64.len() / 64 + 80));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for start in (0..base64.len()).step_by(64) {
        text.push_str(&base64[start..base64.len().min(start + 64)]);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
