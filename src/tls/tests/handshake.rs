//! Handshakes on both versions of TLS, with every kind of certificate.

use super::*;

fn lenient(ca: &Ca) -> Server {
    Server::new(AskFor::Certificate(ca.trust_anchors().unwrap()), true)
}

fn strict(ca: &Ca) -> Server {
    Server::new(AskFor::Strictly(ca.trust_anchors().unwrap()), true)
}

async fn presented(server: &Server, client: &Arc<ClientConfig>) -> Presented {
    let (server, client) = server.meet(client).await;
    client.expect("the client is let in");
    server.expect("the server lets in")
}

#[tokio::test]
async fn without_a_certificate_one_comes_in_as_nobody() {
    let server = lenient(&memory_ca());
    for version in VERSIONS {
        assert_eq!(presented(&server, &server.client(version, None)).await, Presented::None);
    }
}

#[tokio::test]
async fn a_terminal_is_known_by_its_certificate() {
    let ca = memory_ca();
    let server = lenient(&ca);
    let issued = terminal(&ca, 5);
    for version in VERSIONS {
        let Presented::Terminal(identity) = presented(&server, &server.client_with(version, &issued)).await
        else {
            panic!("{version:?}: not recognised");
        };
        assert_eq!(identity.serial, issued.serial);
        assert_eq!(identity.fingerprint, issued.fingerprint_sha256);
        assert_eq!(identity.terminal, Some(5));
        assert_eq!((identity.not_before, identity.not_after), (issued.not_before, issued.not_after));
        assert_eq!(identity.state(NOW, false), CertificateState::Valid);
        assert_eq!(identity.state(NOW, true), CertificateState::Revoked);
        assert_eq!(identity.state(identity.not_after, false), CertificateState::Valid);
        assert_eq!(identity.state(identity.not_after + Duration::SECOND, false), CertificateState::Expired);
        assert_eq!(identity.state(NOW + DAY * 9999, true), CertificateState::Revoked);
        assert_eq!(identity.state(NOW - DAY, false), CertificateState::NotYetValid);
    }
}

#[tokio::test]
async fn an_expired_certificate_is_recognised_and_said_to_be_expired() {
    let ca = memory_ca();
    let (server, issued) = (lenient(&ca), expired(&ca));
    for version in VERSIONS {
        let Presented::Terminal(identity) = presented(&server, &server.client_with(version, &issued)).await
        else {
            panic!("{version:?}: not recognised");
        };
        assert_eq!(identity.state(NOW, false), CertificateState::Expired);
    }
}

#[tokio::test]
async fn strangers_certificates_come_in_as_unknown() {
    let ca = memory_ca();
    let server = lenient(&ca);
    let foreign = Ca::in_memory("another CA", NOW - DAY, DAY * 3650).unwrap();
    // Same name, another key.
    let impostor = memory_ca();
    let wrong_usage = ca.issue_server(&["terminal.example.jp"], &[], NOW, DAY).unwrap();
    for issued in [terminal(&foreign, 5), terminal(&impostor, 5), expired(&impostor), wrong_usage] {
        for version in VERSIONS {
            assert_eq!(presented(&server, &server.client_with(version, &issued)).await, Presented::Unknown);
        }
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_is_no_handshake() {
    let ca = memory_ca();
    let server = lenient(&ca);
    let (own, other) = (terminal(&ca, 5), terminal(&ca, 6));
    for version in VERSIONS {
        let client = server.client(version, Some((own.certificate_der.clone(), other.rustls_key())));
        let (server, client) = server.meet(&client).await;
        assert!(matches!(server, Err(AcceptError::Handshake(_))));
        assert!(client.is_err());
    }
}

#[tokio::test]
async fn a_strict_listener_refuses_in_the_handshake() {
    let ca = memory_ca();
    let server = strict(&ca);
    let impostor = terminal(&memory_ca(), 5);
    let wrong_usage = ca.issue_server(&["terminal.example.jp"], &[], NOW, DAY).unwrap();
    for version in VERSIONS {
        for client in [
            server.client(version, None),
            server.client_with(version, &impostor),
            server.client_with(version, &wrong_usage),
            server.client_with(version, &expired(&ca)),
        ] {
            let (server, client) = server.meet(&client).await;
            assert!(matches!(server, Err(AcceptError::Handshake(_))));
            let refusal = client.err().expect("refused").to_string();
            assert!(refusal.contains("alert"), "{version:?}: {refusal}");
        }
        let own = server.client_with(version, &terminal(&ca, 5));
        assert!(matches!(presented(&server, &own).await, Presented::Terminal(_)));
    }
}

#[tokio::test]
async fn the_enrolment_listener_asks_for_nothing() {
    let server = Server::new(AskFor::Nothing, true);
    let issued = terminal(&memory_ca(), 5);
    for version in VERSIONS {
        assert_eq!(presented(&server, &server.client_with(version, &issued)).await, Presented::None);
    }
}

#[tokio::test]
async fn no_session_is_resumed() {
    let ca = memory_ca();
    let (server, issued) = (lenient(&ca), terminal(&ca, 5));
    for version in VERSIONS {
        // The client's configuration remembers sessions, and would use them if it were offered any.
        let client = server.client_with(version, &issued);
        for _ in 0..3 {
            let (presented, client) = server.meet(&client).await;
            assert!(!client.unwrap().resumed);
            assert!(matches!(presented, Ok(Presented::Terminal(_))));
        }
    }
}

#[tokio::test]
async fn http2_is_chosen_and_each_version_is_spoken() {
    let server = Server::new(AskFor::Nothing, true);
    for version in VERSIONS {
        let client = server.meet(&server.client(version, None)).await.1.unwrap();
        assert_eq!(client.alpn.as_deref(), Some(b"h2".as_slice()));
        assert_eq!(client.version, version.version);
    }
}

#[tokio::test]
async fn tls12_can_be_switched_off() {
    let server = Server::new(AskFor::Nothing, false);
    assert!(server.meet(&server.client(&version::TLS12, None)).await.1.is_err());
    assert!(server.meet(&server.client(&version::TLS13, None)).await.1.is_ok());
}

#[tokio::test]
async fn a_silent_client_is_dropped_after_the_time_out() {
    let server = Server::new(AskFor::Nothing, true);
    let (_client, stream) = tokio::io::duplex(64);
    let result = server.acceptor.accept(stream, std::time::Duration::from_millis(1)).await;
    assert!(matches!(result, Err(AcceptError::TimedOut)));
}

#[test]
fn only_forward_secret_authenticated_suites_are_offered() {
    for suite in acceptor::provider().cipher_suites {
        let name = format!("{:?}", suite.suite());
        assert!(name.starts_with("TLS13_") || name.starts_with("TLS_ECDHE_"), "{name}");
        assert!(name.contains("_GCM_") || name.contains("_CHACHA20_POLY1305_"), "{name}");
    }
}

#[tokio::test]
async fn old_versions_and_plain_rsa_key_exchange_are_refused() {
    let server = Server::new(AskFor::Nothing, true);
    // Alerts of RFC 8446, 6.2: 70 protocol_version, 40 handshake_failure.
    for (version, suites, alert) in [
        (0x0301_u16, [0xc013_u16, 0x002f], 70),
        (0x0302, [0xc013, 0x002f], 70),
        // TLS_RSA_WITH_AES_128_GCM_SHA256 and TLS_RSA_WITH_AES_256_GCM_SHA384: no forward secrecy.
        (0x0303, [0x009c, 0x009d], 40),
        // ECDHE with CBC: no authenticated encryption.
        (0x0303, [0xc009, 0xc013], 40),
    ] {
        let (mut client, stream) = tokio::io::duplex(4096);
        let handshake = server.acceptor.accept(stream, std::time::Duration::from_secs(20));
        let exchange = async {
            client.write_all(&client_hello(version, &suites)).await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let (handshake, answer) = tokio::join!(handshake, exchange);
        assert!(matches!(handshake, Err(AcceptError::Handshake(_))));
        // A record of type 21 (alert): level 2 (fatal), then what it is.
        assert_eq!((answer[0], &answer[5..]), (21, [2, alert].as_slice()), "{version:#06x} {suites:#06x?}");
    }
}

/// A ClientHello (RFC 5246, 7.4.1.2) with the extensions a server needs to get as far as the suites.
fn client_hello(version: u16, suites: &[u16]) -> Vec<u8> {
    fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
        [&content.len().to_be_bytes()[8 - length_bytes..], content].concat()
    }
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let extension = |kind: u16, content: &[u8]| [&kind.to_be_bytes()[..], &vector(2, content)].concat();
    let extensions = [
        extension(10, &vector(2, &[0, 23])),                  // groups: P-256
        extension(11, &vector(1, &[0])),                      // uncompressed points
        extension(13, &vector(2, &[4, 3, 4, 1, 8, 4, 2, 1])), // signatures: ECDSA and RSA, SHA-256 and SHA-1
    ]
    .concat();
    let hello = [
        &version.to_be_bytes()[..],
        &[7; 32], // random
        &[0],     // no session
        &vector(2, &suites),
        &[1, 0], // no compression
        &vector(2, &extensions),
    ]
    .concat();
    let message = [&[1][..], &vector(3, &hello)].concat();
    [&[22, 3, 1][..], &vector(2, &message)].concat()
}
