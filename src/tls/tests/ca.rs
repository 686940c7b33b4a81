//! The CA: made, stored, loaded, trusted from outside, and what it issues.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

#[test]
fn a_ca_is_made_once_and_loaded_afterwards() {
    let folder = Folder::new();
    let keys = folder.file("keys");
    let made = Ca::load_or_create(&keys, CA_NAME, NOW, DAY * 3650).unwrap();
    let loaded = Ca::load_or_create(&keys, "ignored", NOW, DAY).unwrap();
    assert_eq!(made.certificate(), loaded.certificate());
    assert_eq!(loaded.certificate_pem(), fs::read_to_string(keys.join("ca.pem")).unwrap());
    assert!(loaded.has_key());

    let issued = loaded.issue(&subject(5), NOW, DAY).unwrap();
    let anchors = made.trust_anchors().unwrap();
    assert!(matches!(
        judge(std::slice::from_ref(&issued.certificate_der), &anchors, NOW),
        Presented::Terminal(_)
    ));
    // A second CA is never written over the first.
    assert!(Ca::create(&keys, CA_NAME, NOW, DAY).is_err());
    assert_eq!(Ca::load(&keys).unwrap().certificate(), made.certificate());
    assert!(fs::read_dir(&keys).unwrap().all(|entry| !entry.unwrap().path().ends_with(".new")));
}

#[cfg(unix)]
#[test]
fn the_key_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let keys = folder.file("keys");
    Ca::create(&keys, CA_NAME, NOW, DAY).unwrap();
    let mode = |name: &str| fs::metadata(keys.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("ca.key"), 0o600);
    assert_eq!(mode("."), 0o700);
    let files = ServerFiles { certificate: folder.file("server.pem"), key: folder.file("keys/server.key") };
    memory_ca().issue_server(&["localhost"], &[], NOW, DAY).unwrap().write(&files).unwrap();
    assert_eq!(mode("server.key"), 0o600);
    fs::set_permissions(keys.join("ca.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let error = Ca::load(&keys).unwrap_err().to_string();
    assert!(error.contains("others can read this key"), "{error}");
}

/// A first start that was killed between the certificate and the key, which is written last: nothing was issued.
#[test]
fn a_certificate_that_never_had_its_key_begins_anew() {
    let one = Folder::new();
    let keys = one.file("keys");
    Ca::create(&keys, CA_NAME, NOW, DAY).unwrap();
    let before = fs::read(keys.join("ca.pem")).unwrap();
    fs::remove_file(keys.join("ca.key")).unwrap();
    assert!(Ca::load_or_create(&keys, CA_NAME, NOW, DAY).unwrap().has_key());
    assert_ne!(fs::read(keys.join("ca.pem")).unwrap(), before);
    Ca::load(&keys).unwrap();
}

#[test]
fn a_ca_that_is_not_whole_is_refused() {
    let (one, two) = (Folder::new(), Folder::new());
    let (keys, other) = (one.file("keys"), two.file("keys"));
    Ca::create(&keys, CA_NAME, NOW, DAY).unwrap();
    Ca::create(&other, CA_NAME, NOW, DAY).unwrap();
    let key = fs::read(keys.join("ca.key")).unwrap();
    let load = || Ca::load_or_create(&keys, CA_NAME, NOW, DAY).unwrap_err().to_string();

    fs::write(keys.join("ca.key"), fs::read(other.join("ca.key")).unwrap()).unwrap();
    assert!(load().contains("not the key of ca.pem"), "{}", load());
    fs::write(keys.join("ca.key"), "nonsense").unwrap();
    assert!(load().contains("not a private key"), "{}", load());
    fs::write(keys.join("ca.key"), key).unwrap();
    fs::remove_file(keys.join("ca.pem")).unwrap();
    assert!(load().contains("ca.pem"), "{}", load());
}

#[test]
fn a_ca_from_outside_is_trusted_and_cannot_issue() {
    let folder = Folder::new();
    let (ca, another) = (memory_ca(), memory_ca());
    let external = Ca::external(&folder.write("ca.pem", ca.certificate_pem())).unwrap();
    assert!(!external.has_key());
    assert!(matches!(external.issue(&subject(1), NOW, DAY), Err(TlsError::NoCaKey)));
    assert!(matches!(external.crl(&[], NOW, NOW + DAY), Err(TlsError::NoCaKey)));
    let certificate = terminal(&ca, 9).certificate_der;
    assert!(matches!(
        judge(&[certificate], &external.trust_anchors().unwrap(), NOW),
        Presented::Terminal(TerminalIdentity { terminal: Some(9), .. })
    ));

    let refused = |content: &str| Ca::external(&folder.write("x.pem", content)).unwrap_err().to_string();
    assert!(
        refused(&format!("{}{}", ca.certificate_pem(), another.certificate_pem())).contains("more than one")
    );
    assert!(refused(&terminal(&ca, 5).certificate_pem).contains("not the certificate of a CA"));
    assert!(refused("").contains("not a certificate"));
}

#[test]
fn a_terminals_certificate_says_what_it_must() {
    let ca = memory_ca();
    let issued = terminal(&ca, 5);
    let (_, certificate) = X509Certificate::from_der(&issued.certificate_der).unwrap();
    assert_eq!(certificate.raw_serial(), issued.serial);
    assert_eq!(issued.serial.len(), 16);
    assert_eq!(serial_bytes(certificate.raw_serial()).unwrap(), issued.serial);
    assert_eq!(certificate.subject().to_string(), "CN=〇〇訪問看護 端末5");
    assert_eq!(certificate.issuer().to_string(), format!("CN={CA_NAME}"));
    assert!(!certificate.is_ca());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        ["URI(heya:terminal/5)", "URI(heya:facility/312)", "URI(heya:server/heya.example.jp:8443)"]
    );
    let authority_key = "2.5.29.35";
    assert!(certificate.extensions().iter().any(|extension| extension.oid.to_id_string() == authority_key));
    assert_eq!(certificate.validity().not_after.to_datetime(), NOW + DAY * 365);
    assert!(issued.not_before < NOW);

    let renewed = terminal(&ca, 5);
    assert_ne!(renewed.serial, issued.serial);
    assert_ne!(*renewed.key_der, *issued.key_der);
    let debug = format!("{issued:?} {ca:?}");
    assert!(!debug.contains("PRIVATE") && debug.len() < 200, "{debug}");
}

#[test]
fn what_cannot_be_issued_is_refused() {
    let ca = Ca::in_memory(CA_NAME, NOW, DAY * 30).unwrap();
    let with_name =
        |name: &str| ca.issue(&TerminalSubject { common_name: name.into(), ..subject(1) }, NOW, DAY);
    assert!(with_name("").is_err());
    assert!(with_name(&"あ".repeat(65)).is_err());
    assert!(with_name("a\nb").is_err());
    assert!(with_name(&"あ".repeat(64)).is_ok());
    let foreign_letters = TerminalSubject { server_name: "部屋.example.jp".into(), ..subject(1) };
    assert!(ca.issue(&foreign_letters, NOW, DAY).is_err());
    assert!(ca.issue(&subject(1), NOW, -DAY).is_err());
    assert!(ca.issue(&subject(1), NOW + DAY * 31, DAY).is_err(), "the CA is over");
    // Nothing outlives the CA.
    assert_eq!(ca.issue(&subject(1), NOW, DAY * 365).unwrap().not_after, ca.not_after());
}

#[test]
fn an_altered_certificate_is_never_a_terminals() {
    let ca = memory_ca();
    let (issued, anchors) = (terminal(&ca, 5), ca.trust_anchors().unwrap());
    let judged = |der: &[u8]| judge(&[CertificateDer::from(der.to_vec())], &anchors, NOW);
    assert!(matches!(judged(&issued.certificate_der), Presented::Terminal(_)));
    for at in 0..issued.certificate_der.len() {
        assert_eq!(judged(&issued.certificate_der[..at]), Presented::Unknown, "cut at {at}");
        for bit in 0..8 {
            let mut altered = issued.certificate_der.to_vec();
            altered[at] ^= 1 << bit;
            assert_eq!(judged(&altered), Presented::Unknown, "byte {at}, bit {bit}");
        }
    }
    assert_eq!(judged(&[&issued.certificate_der[..], &[0]].concat()), Presented::Unknown);
    assert_eq!(judge(&[], &anchors, NOW), Presented::None);
}

#[test]
fn serial_numbers_have_one_form() {
    for (der, expected) in [
        (&[0x40, 0, 1][..], Some(&[0x40, 0, 1][..])),
        (&[0, 0xff], Some(&[0xff])),
        (&[0], None),
        (&[], None),
        (&[0xff], None),
        (&[1; 21], None),
    ] {
        assert_eq!(serial_bytes(der).as_deref(), expected, "{der:?}");
    }
}
