//! The certificate authority of one city's terminals: its certificate and, where it is our own, its key.
//!
//! Either we made it (`ca.pem` and `ca.key` in the keys folder) or the city trusts another CA, whose certificate
//! we are given in a file. The second kind can be a trust anchor and check revocation lists, and nothing else.

use std::fmt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::files::{self, PEM_BYTES_MAX, bad_file};
use super::{TerminalIdentity, TlsError, TrustAnchors, identity, issue};

/// The certificate's file in the keys folder.
const CERTIFICATE_FILE: &str = "ca.pem";
/// The private key's file in the keys folder, readable by its owner only.
const KEY_FILE: &str = "ca.key";

/// The CA whose certificates open the door.
pub struct Ca {
    certificate: CertificateDer<'static>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    issuer: Option<Issuer<'static, KeyPair>>,
}

impl Ca {
    /// Loads the CA in `folder`, or makes one there where neither of its two files exists.
    ///
    /// One file without the other is an error: a new key would lock out every terminal.
    pub fn load_or_create(
        folder: &Path,
        name: &str,
        now: OffsetDateTime,
        valid_for: Duration,
    ) -> Result<Self, TlsError> {
        let present = |file: &str| folder.join(file).symlink_metadata().is_ok();
        match (present(CERTIFICATE_FILE), present(KEY_FILE)) {
            (true, true) | (false, true) => Self::load(folder),
            // The key is written last: without it nothing was ever issued, and a certificate alone is what an
            // interrupted first start left.
            (certificate, false) => {
                if certificate {
                    let path = folder.join(CERTIFICATE_FILE);
                    std::fs::remove_file(&path).map_err(files::file_error(&path))?;
                }
                Self::create(folder, name, now, valid_for)
            }
        }
    }

    /// Makes a CA and stores it in `folder` (made too, for its owner only). Existing files are never replaced.
    ///
    /// `name` is what browsers show as the issuer, for example `〇〇市 多職種連携 認証局`.
    pub fn create(
        folder: &Path,
        name: &str,
        now: OffsetDateTime,
        valid_for: Duration,
    ) -> Result<Self, TlsError> {
        let (ca, certificate_pem, key_pem) = Self::generate(name, now, valid_for)?;
        files::private_folder(folder)?;
        files::write_public(&folder.join(CERTIFICATE_FILE), certificate_pem.as_bytes())?;
        files::write_private(&folder.join(KEY_FILE), key_pem.as_bytes())?;
        Ok(ca)
    }

    /// Makes a CA that lives in memory only (tests, demo).
    pub fn in_memory(name: &str, now: OffsetDateTime, valid_for: Duration) -> Result<Self, TlsError> {
        Self::generate(name, now, valid_for).map(|(ca, ..)| ca)
    }

    /// Loads a CA of ours from `folder`.
    pub fn load(folder: &Path) -> Result<Self, TlsError> {
        let (certificate_path, key_path) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        let mut ca = Self::external(&certificate_path)?;
        files::check_private(&key_path)?;
        let pem = Zeroizing::new(files::read(&key_path, PEM_BYTES_MAX)?);
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| bad_file(&key_path, "this is not a private key in PKCS#8 PEM"))?;
        let key =
            KeyPair::try_from(&der).map_err(|_| bad_file(&key_path, "this kind of key cannot be used"))?;
        if key.subject_public_key_info() != subject_public_key_info(&ca.certificate) {
            return Err(bad_file(&key_path, "this key is not the key of ca.pem beside it"));
        }
        ca.issuer = Some(Issuer::from_ca_cert_der(&ca.certificate, key)?);
        Ok(ca)
    }

    /// Trusts the CA whose certificate is in the file `path`; its key stays where it is.
    ///
    /// It has to be the CA that signs the terminals' certificates itself, and one only: certificates are known
    /// by their serial number, which is unique within one CA.
    pub fn external(path: &Path) -> Result<Self, TlsError> {
        let pem = files::read(path, PEM_BYTES_MAX)?;
        let mut certificates = CertificateDer::pem_slice_iter(&pem);
        let Some(Ok(certificate)) = certificates.next() else {
            return Err(bad_file(path, "this is not a certificate in PEM"));
        };
        if certificates.next().is_some() {
            return Err(bad_file(
                path,
                "there is more than one certificate in this file; keep only the CA that signs the terminals' own",
            ));
        }
        let (not_before, not_after) = check_ca(&certificate).map_err(|reason| bad_file(path, reason))?;
        Ok(Self { certificate, not_before, not_after, issuer: None })
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate as text.
    pub fn certificate_pem(&self) -> String {
        issue::pem("CERTIFICATE", &self.certificate).to_string()
    }

    /// When the CA's own certificate ends. Nothing issued by it lasts longer.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Whether certificates can be issued here.
    pub fn has_key(&self) -> bool {
        self.issuer.is_some()
    }

    /// Checks a certificate (PEM or DER) that is to be let in: one alone, signed by this CA, for client authentication,
    /// valid now. The sentences are for whoever asked.
    pub fn inspect(&self, file: &[u8], now: OffsetDateTime) -> Result<TerminalIdentity, TlsError> {
        identity::inspect(file, &self.trust_anchors()?, now)
    }

    /// This CA as the one that client certificates are judged by.
    pub fn trust_anchors(&self) -> Result<TrustAnchors, TlsError> {
        TrustAnchors::new(self.certificate.clone())
    }

    pub(super) fn issuer(&self) -> Result<&Issuer<'static, KeyPair>, TlsError> {
        self.issuer.as_ref().ok_or(TlsError::NoCaKey)
    }

    pub(super) fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    fn generate(
        name: &str,
        now: OffsetDateTime,
        valid_for: Duration,
    ) -> Result<(Self, String, Zeroizing<String>), TlsError> {
        if name.is_empty() || name.chars().count() > issue::COMMON_NAME_CHARS_MAX {
            return Err(TlsError::Refused("a CA's name has between 1 and 64 characters"));
        }
        let key = KeyPair::generate()?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        // No CA below this one: with intermediates a serial number would no longer name one certificate.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(issue::random_serial()?.into());
        (params.not_before, params.not_after) = issue::validity(now, valid_for)?;
        let (not_before, not_after) = (params.not_before, params.not_after);
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        let (certificate, pem) = (issuer.der().clone(), issuer.pem());
        // `CertifiedIssuer` gives its parts only by reference, and we keep the same shape as a loaded CA.
        let key = KeyPair::from_pem(&key_pem)?;
        let issuer = Some(Issuer::from_ca_cert_der(&certificate, key)?);
        Ok((Self { certificate, not_before, not_after, issuer }, pem, key_pem))
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("not_after", &self.not_after).field("has_key", &self.has_key()).finish()
    }
}

/// Checks that `der` is a CA's certificate that may sign certificates; gives its validity.
fn check_ca(der: &CertificateDer<'_>) -> Result<(OffsetDateTime, OffsetDateTime), &'static str> {
    let Ok((rest, certificate)) = X509Certificate::from_der(der) else {
        return Err("the certificate cannot be read");
    };
    if !rest.is_empty() {
        return Err("there is something behind the certificate");
    }
    if !certificate.is_ca() {
        return Err("this is not the certificate of a CA (basic constraints)");
    }
    if let Ok(Some(usage)) = certificate.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err("this CA may not sign certificates (key usage)");
    }
    let validity = certificate.validity();
    Ok((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}

fn subject_public_key_info(der: &CertificateDer<'_>) -> Vec<u8> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate.tbs_certificate.subject_pki.raw.to_vec())
        .unwrap_or_default()
}
