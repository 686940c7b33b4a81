//! Tests of the module: real handshakes over loopback, real importers of our bundles. Time stands still.

#![allow(clippy::disallowed_methods, reason = "file times are the system's")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bundle;
mod ca;
mod crl;
mod handshake;
mod outside;
mod reload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::acceptor::Time;
use super::*;

const NOW: OffsetDateTime = datetime!(2026-11-23 09:00 UTC);
const DAY: Duration = Duration::DAY;
const CA_NAME: &str = "〇〇市 試験用認証局";
const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

fn install_provider() {
    // Another test was first: the same provider.
    let _ = provider().install_default();
}

fn stopped_clock() -> Clock {
    Arc::new(|| NOW)
}

/// A CA that has existed for two years, so that it could issue certificates that are expired by now.
fn memory_ca() -> Ca {
    Ca::in_memory(CA_NAME, NOW - DAY * 730, DAY * 3650).unwrap()
}

fn subject(terminal: i64) -> TerminalSubject {
    TerminalSubject {
        common_name: format!("〇〇訪問看護 端末{terminal}"),
        terminal,
        facility: 312,
        server_name: "heya.example.jp:8443".to_owned(),
    }
}

fn terminal(ca: &Ca, terminal: i64) -> IssuedCertificate {
    ca.issue(&subject(terminal), NOW, DAY * 365).unwrap()
}

fn expired(ca: &Ca) -> IssuedCertificate {
    ca.issue(&subject(5), NOW - DAY * 400, DAY * 365).unwrap()
}

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("heya-tls-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.file(name), content).unwrap();
        self.file(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server's side: its own CA and certificate in files.
struct Server {
    _folder: Folder,
    ca: Ca,
    files: ServerFiles,
    acceptor: TlsAcceptor,
}

impl Server {
    fn new(ask_for: AskFor, tls12: bool) -> Self {
        install_provider();
        let folder = Folder::new();
        let ca = Ca::in_memory("server CA", NOW, DAY * 10).unwrap();
        let files = ServerFiles { certificate: folder.file("server.pem"), key: folder.file("server.key") };
        Self::place(&ca, &files);
        let options = TlsOptions { files: files.clone(), tls12, clock: stopped_clock() };
        let acceptor = TlsAcceptor::new(options, ask_for).unwrap();
        Self { _folder: folder, ca, files, acceptor }
    }

    /// Puts a new server certificate into the files.
    fn place(ca: &Ca, files: &ServerFiles) -> IssuedCertificate {
        let issued = ca.issue_server(&["localhost"], &[[127, 0, 0, 1].into()], NOW, DAY).unwrap();
        let _ = (fs::remove_file(&files.certificate), fs::remove_file(&files.key));
        issued.write(files).unwrap();
        assert!(issued.write(files).is_err(), "existing files stay");
        issued
    }

    /// One connection: what the server makes of it, and what the client reads.
    async fn meet(
        &self,
        client: &Arc<ClientConfig>,
    ) -> (Result<Presented, AcceptError>, std::io::Result<ClientSide>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut stream, presented) =
                self.acceptor.accept(stream, std::time::Duration::from_secs(20)).await?;
            stream.write_all(b"hello").await?;
            stream.shutdown().await?;
            Ok(presented)
        };
        let client = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = tokio_rustls::TlsConnector::from(client.clone()).connect(name, stream).await?;
            // In TLS 1.3 a refusal arrives only here.
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            assert_eq!(text, "hello");
            let connection = stream.get_ref().1;
            Ok(ClientSide {
                certificate: connection.peer_certificates().unwrap()[0].clone().into_owned(),
                alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
                resumed: connection.handshake_kind() != Some(rustls::HandshakeKind::Full),
                version: connection.protocol_version().unwrap(),
            })
        };
        tokio::join!(server, client)
    }

    /// A client that shows `certificate` with `key`, whatever the server hints at.
    fn client(
        &self,
        version: &'static SupportedProtocolVersion,
        identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.certificate().clone()).unwrap();
        let builder =
            ClientConfig::builder_with_details(Arc::new(provider()), Arc::new(Time(stopped_clock())))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = provider().key_provider.load_private_key(key).unwrap();
                let key = CertifiedKey::new(vec![certificate], key);
                builder.with_client_cert_resolver(Arc::new(Always(Arc::new(key))))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    fn client_with(
        &self,
        version: &'static SupportedProtocolVersion,
        issued: &IssuedCertificate,
    ) -> Arc<ClientConfig> {
        self.client(version, Some((issued.certificate_der.clone(), issued.rustls_key())))
    }
}

struct ClientSide {
    certificate: CertificateDer<'static>,
    alpn: Option<Vec<u8>>,
    resumed: bool,
    version: rustls::ProtocolVersion,
}

/// Shows its certificate without reading it (rustls' own resolver refuses what it cannot parse).
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Runs a program; `None` where it is not installed (said on stderr), its output otherwise.
fn run(folder: &Path, program: &str, arguments: &[&str]) -> Option<Result<String, String>> {
    match Command::new(program).args(arguments).current_dir(folder).output() {
        Ok(output) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let all = text(&output.stdout) + &text(&output.stderr);
            Some(if output.status.success() { Ok(all) } else { Err(all) })
        }
        Err(error) => {
            eprintln!("skipped: {program} cannot be run here ({error})");
            None
        }
    }
}
