//! Revocation lists: ours are accepted, every other is refused with its reason.

use super::*;

fn revocation(serial: &[u8]) -> Revocation {
    Revocation {
        serial: serial.to_vec(),
        revoked_at: NOW - DAY,
        reason: Some(RevocationReason::KeyCompromise),
    }
}

fn refusal(result: Result<RevokedSerials, TlsError>) -> String {
    match result {
        Err(error @ TlsError::BadCrl(_)) => error.to_string(),
        other => panic!("expected a refusal: {other:?}"),
    }
}

#[test]
fn our_list_holds_what_was_revoked() {
    let ca = memory_ca();
    let (lost, kept) = (terminal(&ca, 1), terminal(&ca, 2));
    let file = ca.crl(&[revocation(&lost.serial), revocation(&[0xff, 1])], NOW, NOW + DAY).unwrap();
    let list = ca.check_crl(file.as_bytes(), NOW, None).unwrap();
    assert!(list.contains(&lost.serial) && list.contains(&[0xff, 1]) && !list.contains(&kept.serial));
    assert_eq!((list.len(), list.iter().count(), list.this_update()), (2, 2, NOW));
    assert!(!list.is_overdue(NOW) && list.is_overdue(NOW + DAY * 2));

    let empty = ca.crl(&[], NOW, NOW + DAY).unwrap();
    assert!(ca.check_crl(empty.as_bytes(), NOW, None).unwrap().is_empty());
    // A stalled renewal locks nobody out.
    assert!(ca.check_crl(empty.as_bytes(), NOW + DAY * 100, None).is_ok());
}

#[test]
fn a_list_that_is_not_ours_is_refused() {
    let (ca, impostor) = (memory_ca(), memory_ca());
    let foreign = Ca::in_memory("another CA", NOW, DAY).unwrap();
    let check = |file: String| refusal(ca.check_crl(file.as_bytes(), NOW, None));
    assert!(check(foreign.crl(&[], NOW, NOW + DAY).unwrap()).contains("another CA"));
    assert!(check(impostor.crl(&[], NOW, NOW + DAY).unwrap()).contains("signature"));
    assert!(check(ca.crl(&[], NOW + DAY, NOW + DAY * 2).unwrap()).contains("future"));
    assert!(check(String::new()).contains("neither"));
    assert!(check(ca.certificate_pem()).contains("neither"));
    assert!(refusal(ca.check_crl(&vec![0x30; 17 << 20], NOW, None)).contains("longer"));
}

#[test]
fn a_changed_or_cut_list_is_refused() {
    use rustls_pki_types::pem::PemObject;
    let ca = memory_ca();
    let file = ca.crl(&[revocation(&[1, 2, 3]), revocation(&[1, 2, 4])], NOW, NOW + DAY).unwrap();
    let der =
        rustls_pki_types::CertificateRevocationListDer::from_pem_slice(file.as_bytes()).unwrap().to_vec();
    assert_eq!(ca.check_crl(&der, NOW, None).unwrap().len(), 2, "DER is accepted too");
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1;
        assert!(ca.check_crl(&changed, NOW, None).is_err(), "byte {at}");
        assert!(ca.check_crl(&der[..at], NOW, None).is_err(), "cut at {at}");
    }
    assert!(ca.check_crl(&[der.as_slice(), &[0]].concat(), NOW, None).is_err());
}

#[test]
fn an_older_list_never_replaces_a_newer_one() {
    let ca = memory_ca();
    let list = |at: OffsetDateTime| ca.crl(&[], at, at + DAY).unwrap();
    let newer = ca.check_crl(list(NOW).as_bytes(), NOW, None).unwrap();
    let older = list(NOW - Duration::HOUR);
    assert!(refusal(ca.check_crl(older.as_bytes(), NOW, Some(&newer))).contains("older"));
    assert!(ca.check_crl(list(NOW).as_bytes(), NOW, Some(&newer)).is_ok());
    assert!(ca.check_crl(list(NOW + Duration::SECOND).as_bytes(), NOW, Some(&newer)).is_ok());
    // Neither does an expired one, unless the one in use has expired too.
    let expired = ca.crl(&[], NOW + Duration::HOUR, NOW + Duration::HOUR * 2).unwrap();
    let told = refusal(ca.check_crl(expired.as_bytes(), NOW + Duration::HOUR * 3, Some(&newer)));
    assert!(told.contains("expired"), "{told}");
    assert!(ca.check_crl(expired.as_bytes(), NOW + DAY * 2, Some(&newer)).is_ok());
}

#[test]
fn a_list_is_read_from_a_file() {
    let (folder, ca) = (Folder::new(), memory_ca());
    let path = folder.write("city.crl", ca.crl(&[], NOW, NOW + DAY).unwrap());
    assert!(ca.load_crl(&path, NOW, None).is_ok());
    let missing = ca.load_crl(&folder.file("none.crl"), NOW, None).unwrap_err().to_string();
    assert!(missing.contains("none.crl"), "{missing}");
}

#[test]
fn openssl_reads_our_list() {
    let (folder, ca) = (Folder::new(), memory_ca());
    folder.write("ca.pem", ca.certificate_pem());
    folder.write("city.crl", ca.crl(&[revocation(&[0x41, 2])], NOW, NOW + DAY).unwrap());
    let arguments = ["crl", "-in", "city.crl", "-CAfile", "ca.pem", "-noout", "-text"];
    let Some(output) = run(&folder.0, "openssl", &arguments) else { return };
    let output = output.unwrap();
    assert!(output.contains("verify OK") && output.contains("Serial Number: 4102"), "{output}");
    assert!(output.contains("Key Compromise"), "{output}");
}
