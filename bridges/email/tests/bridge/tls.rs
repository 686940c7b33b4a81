//! What is asked for happens, or nothing is sent.

use heya_mail::Security;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{path::PathBuf, sync::Arc};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use crate::{
    harness::{City, posted},
    smtp::{Smtp, Tls},
};

#[tokio::test]
async fn tls_trusts_the_ca_file_and_nothing_else() {
    let (tls, ca_file) = certificate();
    let (_, other_ca_file) = certificate();
    let mut city = City::start_on(Smtp::start_with(Tls::Always(tls)).await, |config| {
        config.digest_seconds = 0;
        config.smtp.security = Security::Tls;
        config.smtp.ca_file = Some(other_ca_file.clone());
    })
    .await;
    city.notify(posted("$one")).await;
    city.attempted(1).await;
    city.smtp.assert_silent();
    city.config.smtp.ca_file = Some(ca_file.clone());
    city.restart().await;
    city.pass_retry_pause().await;
    city.smtp.next_mail().await;
    for file in [ca_file, other_ca_file] {
        std::fs::remove_file(file).unwrap();
    }
}

#[tokio::test]
async fn without_starttls_on_offer_nothing_is_sent() {
    let mut city = City::start_with(|config| {
        config.digest_seconds = 0;
        config.smtp.security = Security::StartTls;
    })
    .await;
    city.notify(posted("$one")).await;
    city.attempted(1).await;
    city.smtp.assert_silent();
    city.homeserver.assert_silent();
}

#[tokio::test]
async fn starttls_is_used_where_it_is_asked_for() {
    let (tls, ca_file) = certificate();
    let mut city = City::start_on(Smtp::start_with(Tls::Offered(tls)).await, |config| {
        config.digest_seconds = 0;
        config.smtp.security = Security::StartTls;
        config.smtp.ca_file = Some(ca_file.clone());
    })
    .await;
    city.notify(posted("$one")).await;
    city.smtp.next_mail().await;
    std::fs::remove_file(ca_file).unwrap();
}

/// A certificate for 127.0.0.1, and the file of the CA that it is from.
fn certificate() -> (TlsAcceptor, PathBuf) {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let ca_file = std::env::temp_dir().join(format!("heya-mail-{:032x}.pem", rand::random::<u128>()));
    std::fs::write(&ca_file, ca.pem()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca_file)
}
