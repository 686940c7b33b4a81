//! Certificates made by another program (OpenSSL): an outside CA with RSA keys, and forms that rustls cannot read.

use rustls_pki_types::pem::PemObject;

use super::*;

/// Runs several OpenSSL commands, words separated by spaces; `false` where OpenSSL is missing.
fn openssl(folder: &Folder, commands: &[&str]) -> bool {
    commands.iter().all(|command| {
        let arguments: Vec<&str> = command.split(' ').collect();
        run(&folder.0, "openssl", &arguments).map(|result| result.unwrap()).is_some()
    })
}

fn identity(folder: &Folder, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let read = |ending: &str| fs::read(folder.file(&format!("{name}.{ending}"))).unwrap();
    (
        CertificateDer::from_pem_slice(&read("pem")).unwrap(),
        PrivateKeyDer::from_pem_slice(&read("key")).unwrap(),
    )
}

#[tokio::test]
async fn terminals_of_an_outside_rsa_ca_are_known_by_their_serial_number() {
    let folder = Folder::new();
    folder.write("client.ext", "extendedKeyUsage=clientAuth\n");
    if !openssl(
        &folder,
        &[
            "req -x509 -newkey rsa:2048 -noenc -keyout ca.key -out ca.pem -subj /CN=outside -days 9999",
            "req -new -newkey rsa:2048 -noenc -keyout client.key -out client.csr -subj /CN=client",
            "x509 -req -in client.csr -CA ca.pem -CAkey ca.key -set_serial 0x00c0ffee -days 9999 -extfile client.ext -out client.pem",
        ],
    ) {
        return;
    }
    let ca = Ca::external(&folder.file("ca.pem")).unwrap();
    let server = Server::new(AskFor::Certificate(ca.trust_anchors().unwrap()), true);
    for version in VERSIONS {
        let client = server.client(version, Some(identity(&folder, "client")));
        let Ok(Presented::Terminal(terminal)) = server.meet(&client).await.0 else {
            panic!("not recognised")
        };
        assert_eq!((terminal.serial.as_slice(), terminal.terminal), ([0xc0, 0xff, 0xee].as_slice(), None));
    }
}

#[tokio::test]
async fn certificates_that_rustls_cannot_read_are_unknown_and_not_a_broken_handshake() {
    let folder = Folder::new();
    let ca = Ca::create(&folder.file("keys"), CA_NAME, NOW - DAY, DAY * 3650).unwrap();
    folder.write("critical.ext", "1.2.3.4=critical,ASN1:NULL\nextendedKeyUsage=clientAuth\n");
    let request = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=old";
    let sign = "x509 -req -CA keys/ca.pem -CAkey keys/ca.key -set_serial 7 -days 9999";
    if !openssl(
        &folder,
        &[
            &format!("{request} -keyout v1.key -out v1.csr"),
            &format!("{sign} -in v1.csr -out v1.pem"),
            &format!("{request} -keyout critical.key -out critical.csr"),
            &format!("{sign} -in critical.csr -extfile critical.ext -out critical.pem"),
        ],
    ) {
        return;
    }
    let server = Server::new(AskFor::Certificate(ca.trust_anchors().unwrap()), true);
    let strict = Server::new(AskFor::Strictly(ca.trust_anchors().unwrap()), true);
    for version in VERSIONS {
        for name in ["v1", "critical"] {
            let (seen, client) = server.meet(&server.client(version, Some(identity(&folder, name)))).await;
            assert!(client.is_ok(), "{version:?} {name}");
            assert_eq!(seen.unwrap(), Presented::Unknown, "{version:?} {name}");
            let refused = strict.meet(&strict.client(version, Some(identity(&folder, name)))).await;
            assert!(refused.0.is_err() && refused.1.is_err(), "{version:?} {name}");
        }
    }
}

#[test]
fn a_list_of_an_outside_ca_is_read() {
    let folder = Folder::new();
    folder.write("index", "R\t361231000000Z\t261101000000Z\t00C0FFEE\tunknown\t/CN=client\n");
    folder.write("number", "01\n");
    folder.write(
        "ca.conf",
        "[ca]\ndefault_ca=c\n[c]\ndatabase=index\ncrlnumber=number\ndefault_md=sha384\ndefault_crl_days=30\n",
    );
    if !openssl(
        &folder,
        &[
            "req -x509 -newkey rsa:2048 -noenc -keyout ca.key -out ca.pem -subj /CN=outside -days 9999",
            "ca -config ca.conf -gencrl -keyfile ca.key -cert ca.pem -out city.crl",
        ],
    ) {
        return;
    }
    let ca = Ca::external(&folder.file("ca.pem")).unwrap();
    // OpenSSL signed it by the machine's clock, whatever that says; "now" is long after.
    let list = ca.load_crl(&folder.file("city.crl"), NOW + DAY * 36_500, None).unwrap();
    assert!(list.len() == 1 && list.contains(&[0xc0, 0xff, 0xee]));
}
