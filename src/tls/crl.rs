//! Revocation lists: the one our CA writes for others, and the one an outside CA gives us.
//!
//! A list is a set of serial numbers in memory, asked on every request. It never takes part in the handshake,
//! where resumption and open connections would pass it by.

use std::collections::HashSet;
use std::path::Path;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, SubjectPublicKeyInfoDer};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{Ca, TlsError, files, serial_bytes};

pub use rcgen::RevocationReason;

/// A list of 50,000 entries has 1.8 MB; this is room for ten cities.
const CRL_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How many entries a list may have.
const CRL_ENTRIES_MAX: usize = 400_000;
/// How far the clock of whoever signed the list may be ahead of ours.
const CLOCK_SKEW_MAX: Duration = Duration::minutes(5);

/// One revoked certificate.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// The certificate's serial number, as in [`super::TerminalIdentity::serial`].
    pub serial: Vec<u8>,
    /// When it was revoked.
    pub revoked_at: OffsetDateTime,
    /// Why, where that is known.
    pub reason: Option<RevocationReason>,
}

impl Ca {
    /// Writes a revocation list in this CA's name, for others who check our certificates, as text.
    pub fn crl(
        &self,
        revoked: &[Revocation],
        now: OffsetDateTime,
        next_update: OffsetDateTime,
    ) -> Result<String, TlsError> {
        self.crl_der(revoked, now, next_update).map(|der| crl_pem(&der))
    }

    /// The same in DER, as it travels (RFC 2585).
    ///
    /// Its number is the time, so that a later list always has a higher one without anything being remembered.
    pub fn crl_der(
        &self,
        revoked: &[Revocation],
        now: OffsetDateTime,
        next_update: OffsetDateTime,
    ) -> Result<Vec<u8>, TlsError> {
        let number = now.unix_timestamp_nanos().max(1).to_be_bytes();
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update,
            crl_number: SerialNumber::from_slice(&number),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|entry| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&entry.serial),
                    revocation_time: entry.revoked_at,
                    reason_code: entry.reason,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(self.issuer()?)?.der().to_vec())
    }

    /// Reads a revocation list from a file; everything said at [`Self::check_crl`] holds.
    pub fn load_crl(
        &self,
        path: &Path,
        now: OffsetDateTime,
        previous: Option<&RevokedSerials>,
    ) -> Result<RevokedSerials, TlsError> {
        self.check_crl(&files::read(path, CRL_BYTES_MAX)?, now, previous)
    }

    /// Checks a revocation list (PEM or DER) and gives the serial numbers in it.
    ///
    /// It is taken only if it is complete, signed by this CA's key, not from the future and not older than the
    /// one in use: a list that says less than the truth would let revoked terminals in again. One that has expired
    /// never replaces one that has not; but where there is no better one it is taken, since a CA that is late must
    /// not lock the city out (see [`RevokedSerials::is_overdue`]).
    pub fn check_crl(
        &self,
        file: &[u8],
        now: OffsetDateTime,
        previous: Option<&RevokedSerials>,
    ) -> Result<RevokedSerials, TlsError> {
        check(self.certificate(), file, now, previous).map_err(TlsError::BadCrl)
    }
}

/// A revocation list as text, as proxies want it.
pub fn crl_pem(der: &[u8]) -> String {
    super::issue::pem("X509 CRL", der).to_string()
}

/// The serial numbers of a revocation list that passed its checks.
#[derive(Debug, Clone)]
pub struct RevokedSerials {
    serials: HashSet<Vec<u8>>,
    this_update: OffsetDateTime,
    next_update: Option<OffsetDateTime>,
    number: Vec<u8>,
}

impl RevokedSerials {
    /// Whether the certificate with this serial number is revoked.
    pub fn contains(&self, serial: &[u8]) -> bool {
        self.serials.contains(serial)
    }

    /// All revoked serial numbers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.serials.iter().map(Vec::as_slice)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.serials.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }

    /// When the list was signed.
    pub fn this_update(&self) -> OffsetDateTime {
        self.this_update
    }

    /// Whether the CA promised a newer list before `now`. A reason to warn the city, not to lock it out.
    pub fn is_overdue(&self, now: OffsetDateTime) -> bool {
        self.next_update.is_some_and(|next| next < now)
    }
}

fn check(
    ca: &CertificateDer<'_>,
    file: &[u8],
    now: OffsetDateTime,
    previous: Option<&RevokedSerials>,
) -> Result<RevokedSerials, String> {
    if file.len() as u64 > CRL_BYTES_MAX {
        return Err(format!("it is longer than {CRL_BYTES_MAX} bytes"));
    }
    // A DER list begins with the tag of a SEQUENCE; PEM is text.
    let der = if file.first() == Some(&0x30) {
        CertificateRevocationListDer::from(file.to_vec())
    } else {
        CertificateRevocationListDer::from_pem_slice(file)
            .map_err(|_| "it is neither a PEM nor a DER revocation list".to_owned())?
    };
    // Two readers: webpki for the form (it refuses deltas, indirect lists and unknown critical extensions),
    // x509-parser for the entries.
    let form = webpki::BorrowedCertRevocationList::from_der(&der);
    form.map_err(|error| format!("it is not a complete list of the usual form ({error})"))?;
    let Ok((rest, list)) = CertificateRevocationList::from_der(&der) else {
        return Err("it cannot be read".to_owned());
    };
    if !rest.is_empty() {
        return Err("there is something behind it".to_owned());
    }

    let Ok((_, ca)) = X509Certificate::from_der(ca) else {
        return Err("the CA's certificate cannot be read".to_owned());
    };
    if list.issuer().as_raw() != ca.subject().as_raw() {
        return Err("it was issued by another CA than the one trusted here".to_owned());
    }
    if let Ok(Some(usage)) = ca.key_usage()
        && !usage.value.crl_sign()
    {
        return Err("the CA may not sign revocation lists (key usage)".to_owned());
    }
    if !signed_by(&list, &ca) {
        return Err("its signature is not by the key of the CA trusted here, although the name is the same"
            .to_owned());
    }

    if list.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::IssuingDistributionPoint(point) => {
            point.only_contains_ca_certs || point.only_contains_attribute_certs || point.indirect_crl
        }
        _ => false,
    }) {
        return Err("it does not cover the certificates of terminals".to_owned());
    }
    let this_update = list.last_update().to_datetime();
    if this_update > now.saturating_add(CLOCK_SKEW_MAX) {
        return Err("it is from the future; is this machine's clock right?".to_owned());
    }
    let number = list.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default();
    if let Some(previous) = previous {
        let older = (number.len(), &number) < (previous.number.len(), &previous.number);
        if older || this_update < previous.this_update {
            return Err("it is older than the one in use".to_owned());
        }
        let expired = list.next_update().is_some_and(|next| next.to_datetime() < now);
        if expired && !previous.is_overdue(now) {
            return Err("it has expired, and the one in use has not".to_owned());
        }
    }
    let entries = &list.tbs_cert_list.revoked_certificates;
    if entries.len() > CRL_ENTRIES_MAX {
        return Err(format!("it has more than {CRL_ENTRIES_MAX} entries"));
    }
    Ok(RevokedSerials {
        // A serial number that no certificate accepted by us can have is left out.
        serials: entries.iter().filter_map(|entry| serial_bytes(entry.raw_serial())).collect(),
        this_update,
        next_update: list.next_update().map(|next| next.to_datetime()),
        number,
    })
}

/// Tries each of ring's algorithms that fits the CA's key; all of them are strong (no SHA-1), so whichever
/// verifies proves the signature.
fn signed_by(list: &CertificateRevocationList<'_>, ca: &X509Certificate<'_>) -> bool {
    let key = SubjectPublicKeyInfoDer::from(ca.tbs_certificate.subject_pki.raw);
    let Ok(key) = webpki::RawPublicKeyEntity::try_from(&key) else { return false };
    let (signed, signature) = (list.tbs_cert_list.as_ref(), &list.signature_value.data);
    let algorithms = super::provider().signature_verification_algorithms.all;
    algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, signed, signature).is_ok())
}
