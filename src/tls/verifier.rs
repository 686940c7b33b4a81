//! What rustls asks us about a client's certificate during the handshake.
//!
//! rustls' own verifier refuses a bad certificate with a TLS alert, which browsers turn into an error page no
//! one understands. Ours lets it in with possession of the key proven, so that the HTTP side can say in words
//! that a certificate is expired, revoked or unknown. With `strict` the handshake refuses.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TrustAnchors;

/// Asks for a certificate of our CA and proves that the peer holds its key.
#[derive(Debug)]
pub struct PossessionVerifier {
    anchors: TrustAnchors,
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
    strict: bool,
}

impl PossessionVerifier {
    /// `strict` refuses in the handshake whoever shows no valid certificate of `anchors`; otherwise everyone who
    /// proves possession comes in and is judged afterwards.
    pub fn new(anchors: TrustAnchors, strict: bool) -> Self {
        let algorithms = super::provider().signature_verification_algorithms;
        Self { hints: anchors.hints(), anchors, algorithms, strict }
    }
}

impl ClientCertVerifier for PossessionVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.strict
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.strict {
            self.anchors.check(end_entity, now).map_err(refusal)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = public_key(cert)?;
        let key = webpki::RawPublicKeyEntity::try_from(&key).map_err(refusal)?;
        let candidates = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == dss.scheme);
        let Some((_, candidates)) = candidates else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        // In TLS 1.2 a scheme names the hash only; the curve is the certificate's (RFC 8446, 4.2.3), so a
        // candidate for another kind of key is passed over.
        let mut last = webpki::Error::BadDer;
        for algorithm in *candidates {
            match key.verify_signature(*algorithm, message, dss.signature()) {
                Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
                Err(error @ webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {
                    last = error
                }
                Err(error) => return Err(refusal(error)),
            }
        }
        Err(refusal(last))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &public_key(cert)?, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The public key alone. rustls' ready-made functions take the whole certificate and refuse what webpki cannot
/// read (version 1, which `openssl x509 -req` still makes, or unknown critical extensions); those are
/// "unknown" for us, not a broken handshake.
fn public_key(cert: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    let (_, certificate) = X509Certificate::from_der(cert).map_err(|_| CertificateError::BadEncoding)?;
    Ok(SubjectPublicKeyInfoDer::from(certificate.tbs_certificate.subject_pki.raw.to_vec()))
}

/// Which alert the client gets (RFC 8446, 6.2), by way of rustls' names.
fn refusal(error: webpki::Error) -> Error {
    use webpki::Error as E;
    let reason = match error {
        E::CertExpired { .. } => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        _ => CertificateError::BadEncoding,
    };
    reason.into()
}
