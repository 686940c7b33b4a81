//! What the benchmarks share: the server as a process of its own, a client over loopback, and how a figure is told.

#![allow(dead_code, reason = "each benchmark uses what it needs")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// A server of its own, on data of its own, which go with it.
pub struct Server {
    child: Child,
    pub port: u16,
    pub data: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

static SERVERS: AtomicU64 = AtomicU64::new(0);

impl Server {
    /// Starts an empty one; how long that took.
    pub fn start() -> (Self, Duration) {
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let data = std::env::temp_dir().join(format!("heya-bench-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&data).unwrap();
        let ports: Vec<u16> = (0..3)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .map(|socket| socket.local_addr().unwrap().port())
            .collect();
        let database = std::env::var("HEYA_BENCH_DATABASE").unwrap_or_else(|_| "sqlite:".to_owned());
        let config = format!(
            "[server]\npublic_url = \"http://127.0.0.1:{}\"\nlisten = \"127.0.0.1:{}\"\nenrol_listen = \"127.0.0.1:{}\"\n\
             internal_listen = \"127.0.0.1:{}\"\ndata_dir = {:?}\ndatabase_url = {database:?}\n",
            ports[0], ports[0], ports[1], ports[2], data
        );
        std::fs::write(data.join("config.toml"), config).unwrap();
        let (child, took) = Self::run(&data, ports[0]);
        (Self { child, port: ports[0], data }, took)
    }

    fn run(data: &Path, port: u16) -> (Child, Duration) {
        // Another build, to be measured beside this one.
        let binary = std::env::var("HEYA_BENCH_BINARY");
        let binary = binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_heya"));
        let begun = Instant::now();
        let mut child = Command::new(binary)
            .args(["--config", data.join("config.toml").to_str().unwrap(), "serve", "--profile", "open"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "the server ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        (child, begun.elapsed())
    }

    /// Ends it politely; the data stay.
    pub fn stop(&mut self) {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(asked.success());
        self.child.wait().unwrap();
    }

    /// Starts it again on the same data: nothing is in memory.
    pub fn start_again(&mut self) -> Duration {
        let (child, took) = Self::run(&self.data, self.port);
        self.child = child;
        took
    }

    fn stat(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// CPU time used so far.
    pub fn cpu(&self) -> Duration {
        let stat = self.stat("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory, MiB.
    pub fn rss(&self) -> f64 {
        let status = self.stat("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

/// One connection.
pub struct Client {
    send: SendRequest<Full<Bytes>>,
    token: String,
    host: String,
}

impl Client {
    pub async fn connect(port: u16, token: &str) -> Self {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { send, token: token.to_owned(), host: format!("127.0.0.1:{port}") }
    }

    pub async fn raw(&mut self, method: &str, path: &str, body: String) -> Bytes {
        self.bytes(method, path, "application/json", body.into()).await
    }

    async fn bytes(&mut self, method: &str, path: &str, kind: &str, body: Bytes) -> Bytes {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", kind)
            .body(Full::new(body))
            .unwrap();
        self.send.ready().await.unwrap();
        let answer = self.send.send_request(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        body
    }

    /// Uploads a file; its `mxc:` URI.
    pub async fn upload(&mut self, body: Vec<u8>, kind: &str) -> String {
        let answer = self.bytes("POST", "/_matrix/media/v3/upload", kind, body.into()).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["content_uri"].as_str().unwrap().to_owned()
    }

    pub async fn call(&mut self, method: &str, path: &str, body: Value) -> Value {
        serde_json::from_slice(&self.raw(method, path, body.to_string()).await).unwrap()
    }
}

pub async fn account(port: u16, name: &str) -> (String, String) {
    let mut client = Client::connect(port, "").await;
    let body = json!({"username": name, "password": "bench", "auth": {"type": "m.login.dummy"}});
    let answer = client.call("POST", "/_matrix/client/v3/register", body).await;
    (answer["user_id"].as_str().unwrap().to_owned(), answer["access_token"].as_str().unwrap().to_owned())
}

/// A room of some people, all joined.
pub async fn room(port: u16, people: &[(String, String)]) -> String {
    let mut creator = Client::connect(port, &people[0].1).await;
    let invite: Vec<&String> = people[1..].iter().map(|(id, _)| id).collect();
    let answer = creator
        .call("POST", "/_matrix/client/v3/createRoom", json!({"name": "部屋", "invite": invite}))
        .await;
    let room_id = answer["room_id"].as_str().unwrap().to_owned();
    for (_, token) in &people[1..] {
        let mut client = Client::connect(port, token).await;
        client.call("POST", &format!("/_matrix/client/v3/rooms/{room_id}/join"), json!({})).await;
    }
    room_id
}

pub fn percentile(sorted: &[Duration], p: usize) -> f64 {
    sorted
        .get((sorted.len() * p / 100).min(sorted.len().saturating_sub(1)))
        .map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

pub fn line(what: &str, value: String) {
    println!("{what:<44} {value}");
    let _ = std::io::stdout().flush();
}

static TXN: AtomicU64 = AtomicU64::new(0);

pub async fn send(client: &mut Client, room_id: &str) {
    let txn = TXN.fetch_add(1, Ordering::Relaxed);
    let path = format!("/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{txn}");
    client
        .raw(
            "PUT",
            &path,
            r#"{"msgtype":"m.text","body":"昨夜から発熱があり、水分は取れています。"}"#.to_owned(),
        )
        .await;
}

pub fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let disk =
        Command::new("df").args(["--output=source,fstype", &std::env::temp_dir().to_string_lossy()]).output();
    let disk =
        disk.map(|out| String::from_utf8_lossy(&out.stdout).lines().nth(1).unwrap_or_default().to_owned());
    format!("{} × {}, {}", cores, model.trim_start_matches([' ', '\t', ':']), disk.unwrap_or_default())
}
