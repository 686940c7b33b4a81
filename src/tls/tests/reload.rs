//! Changing the server's certificate, and what terminals are judged by, while running.

use super::*;

async fn served(server: &Server) -> CertificateDer<'static> {
    server.meet(&server.client(&version::TLS13, None)).await.1.unwrap().certificate
}

#[tokio::test]
async fn a_reload_gives_new_connections_the_new_certificate() {
    let server = Server::new(AskFor::Nothing, true);
    let first = served(&server).await;
    let next = Server::place(&server.ca, &server.files);
    assert_eq!(served(&server).await, first, "nothing changes by itself");
    server.acceptor.reload().unwrap();
    assert_eq!(served(&server).await, next.certificate_der);
    assert_eq!(server.acceptor.certificate_not_after(), next.not_after);
}

#[tokio::test]
async fn a_bad_file_leaves_the_old_certificate_in_use() {
    let server = Server::new(AskFor::Nothing, true);
    let first = served(&server).await;
    let refused = |server: &Server| server.acceptor.reload().unwrap_err().to_string();

    // A new certificate whose key has not arrived yet.
    let old_key = fs::read(&server.files.key).unwrap();
    Server::place(&server.ca, &server.files);
    let new_key = fs::read(&server.files.key).unwrap();
    fs::write(&server.files.key, &old_key).unwrap();
    assert!(refused(&server).contains("do not fit"), "{}", refused(&server));
    fs::write(&server.files.key, "nothing").unwrap();
    assert!(refused(&server).contains("no private key"));
    fs::remove_file(&server.files.key).unwrap();
    assert!(refused(&server).contains("server.key"));
    fs::write(&server.files.key, new_key).unwrap();
    fs::write(&server.files.certificate, "").unwrap();
    assert!(refused(&server).contains("no certificate"));
    fs::write(&server.files.certificate, vec![b'x'; 300_000]).unwrap();
    assert!(refused(&server).contains("longer than"));
    assert_eq!(served(&server).await, first);
}

#[tokio::test]
async fn a_changed_file_is_noticed_and_a_broken_one_reported_once() {
    let server = Server::new(AskFor::Nothing, true);
    assert!(!server.acceptor.reload_if_changed().unwrap());
    let next = Server::place(&server.ca, &server.files);
    touch(&server.files.certificate, 10);
    assert!(server.acceptor.reload_if_changed().unwrap());
    assert!(!server.acceptor.reload_if_changed().unwrap());
    fs::write(&server.files.key, "broken").unwrap();
    assert!(server.acceptor.reload_if_changed().is_err());
    assert!(!server.acceptor.reload_if_changed().unwrap());
    assert_eq!(served(&server).await, next.certificate_der);
}

#[tokio::test]
async fn anchors_can_be_replaced() {
    let (old, new) = (memory_ca(), memory_ca());
    let server = Server::new(AskFor::Certificate(old.trust_anchors().unwrap()), true);
    let client = server.client_with(&version::TLS13, &terminal(&old, 5));
    assert!(matches!(server.meet(&client).await.0, Ok(Presented::Terminal(_))));
    server.acceptor.replace_ask_for(AskFor::Certificate(new.trust_anchors().unwrap())).unwrap();
    assert_eq!(server.meet(&client).await.0.unwrap(), Presented::Unknown);
    server.acceptor.reload().unwrap();
    assert_eq!(server.meet(&client).await.0.unwrap(), Presented::Unknown, "a reload keeps the new anchors");
}

/// Two writes within one tick of the file system's clock and of equal length would look unchanged.
fn touch(path: &Path, seconds: u64) {
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(seconds)).unwrap();
}
