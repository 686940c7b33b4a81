//! An SMTP server that answers as it is told and remembers what it was given.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::{Notify, mpsc},
};
use tokio_rustls::TlsAcceptor;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// RCPT was answered with this reply.
    Refused(String),
    /// A mail was accepted.
    Mail { to: String, text: String },
    /// The connection was cut after the mail had come.
    Cut { text: String },
    /// The mail has come and waits for its answer.
    Held,
}

/// How to answer the next mail; without a plan it is accepted.
#[derive(Debug, Clone)]
pub enum Plan {
    Greeting(&'static str),
    Rcpt(&'static str),
    End(&'static str),
    Cut,
    /// The mail has come, and is accepted when the test says so.
    Hold(Arc<Notify>),
}

/// Whether the server speaks TLS.
#[derive(Clone)]
pub enum Tls {
    None,
    /// STARTTLS.
    Offered(TlsAcceptor),
    /// From the first byte.
    Always(TlsAcceptor),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub struct Smtp {
    pub port: u16,
    plans: Arc<Mutex<VecDeque<Plan>>>,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Smtp {
    pub async fn start() -> Self {
        Self::start_with(Tls::None).await
    }

    pub async fn start_with(tls: Tls) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plans = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, seen) = mpsc::unbounded_channel();
        let shared = Arc::clone(&plans);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (plans, sender, tls) = (Arc::clone(&shared), sender.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Tls::None => talk(Box::new(stream), None, plans, sender).await,
                        Tls::Offered(tls) => talk(Box::new(stream), Some(tls), plans, sender).await,
                        Tls::Always(tls) => {
                            talk(Box::new(tls.accept(stream).await.ok()?), None, plans, sender).await
                        }
                    }
                });
            }
        });
        Self { port, plans, seen }
    }

    pub fn plan(&self, plan: Plan) {
        self.plans.lock().unwrap().push_back(plan);
    }

    pub async fn next(&mut self) -> Seen {
        let wait = std::time::Duration::from_secs(20);
        tokio::time::timeout(wait, self.seen.recv()).await.expect("nothing came to the SMTP server").unwrap()
    }

    pub async fn next_mail(&mut self) -> Mail {
        match self.next().await {
            Seen::Mail { to, text } => Mail { to, text },
            other => panic!("no mail but {other:?}"),
        }
    }

    /// Nothing has come so far.
    pub fn assert_silent(&mut self) {
        assert_eq!(self.seen.try_recv().ok(), None);
    }
}

#[derive(Debug)]
pub struct Mail {
    pub to: String,
    pub text: String,
}

impl Mail {
    pub fn header(&self, name: &str) -> String {
        header(&self.text, name)
    }

    /// The body, decoded.
    pub fn body(&self) -> String {
        let (_, body) = self.text.split_once("\r\n\r\n").unwrap();
        let bytes = match self.header("Content-Transfer-Encoding").as_str() {
            "base64" => base64(body),
            "quoted-printable" => quoted_printable(body),
            _ => body.as_bytes().to_vec(),
        };
        String::from_utf8(bytes).unwrap()
    }

    /// The subject, decoded (RFC 2047, base64).
    pub fn subject(&self) -> String {
        let words = self.header("Subject");
        let bytes = words.split_whitespace().flat_map(|word| {
            match word.strip_prefix("=?utf-8?b?").and_then(|word| word.strip_suffix("?=")) {
                Some(word) => base64(word),
                None => word.as_bytes().to_vec(),
            }
        });
        String::from_utf8(bytes.collect()).unwrap()
    }
}

pub fn header(text: &str, name: &str) -> String {
    let (head, _) = text.split_once("\r\n\r\n").unwrap();
    let head = head.replace("\r\n ", " ");
    let line = head.lines().find(|line| line.starts_with(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name}"))[name.len() + 2..].to_owned()
}

async fn talk(
    stream: Box<dyn Stream>,
    mut starttls: Option<TlsAcceptor>,
    plans: Arc<Mutex<VecDeque<Plan>>>,
    seen: mpsc::UnboundedSender<Seen>,
) -> Option<()> {
    let next = |is_mine: fn(&Plan) -> bool| {
        let mut plans = plans.lock().unwrap();
        plans.front().is_some_and(is_mine).then(|| plans.pop_front()).flatten()
    };
    let mut stream = BufReader::new(stream);
    if let Some(Plan::Greeting(reply)) = next(|plan| matches!(plan, Plan::Greeting(_))) {
        seen.send(Seen::Refused(reply.to_owned())).ok()?;
        stream.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
        return None;
    }
    stream.write_all(b"220 smtp.example.jp\r\n").await.ok()?;
    let mut to = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply = match verb.as_str() {
            "STAR" => {
                stream.write_all(b"220 Go on\r\n").await.ok()?;
                let tls = starttls.take()?.accept(stream.into_inner()).await.ok()?;
                stream = BufReader::new(Box::new(tls));
                continue;
            }
            "EHLO" if starttls.is_some() => "250-smtp.example.jp\r\n250 STARTTLS".to_owned(),
            "MAIL" if starttls.is_some() => "530 5.7.0 Must issue a STARTTLS command first".to_owned(),
            "EHLO" => "250-smtp.example.jp\r\n250 8BITMIME".to_owned(),
            "RCPT" => {
                to = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                match next(|plan| matches!(plan, Plan::Rcpt(_))) {
                    Some(Plan::Rcpt(reply)) => {
                        seen.send(Seen::Refused(reply.to_owned())).ok()?;
                        reply.to_owned()
                    }
                    _ => "250 2.1.5 Ok".to_owned(),
                }
            }
            "DATA" => {
                stream.write_all(b"354 Go on\r\n").await.ok()?;
                let mut text = String::new();
                while !text.ends_with("\r\n.\r\n") {
                    if stream.read_line(&mut text).await.ok()? == 0 {
                        return None;
                    }
                }
                text.truncate(text.len() - 3);
                match next(|plan| matches!(plan, Plan::End(_) | Plan::Cut | Plan::Hold(_))) {
                    Some(Plan::Cut) => {
                        seen.send(Seen::Cut { text }).ok()?;
                        return None;
                    }
                    Some(Plan::End(reply)) => {
                        seen.send(Seen::Refused(reply.to_owned())).ok()?;
                        reply.to_owned()
                    }
                    Some(Plan::Hold(go_on)) => {
                        seen.send(Seen::Held).ok()?;
                        go_on.notified().await;
                        "250 2.0.0 Taken".to_owned()
                    }
                    _ => {
                        seen.send(Seen::Mail { to: to.clone(), text }).ok()?;
                        "250 2.0.0 Taken".to_owned()
                    }
                }
            }
            "QUIT" => "221 2.0.0 Bye".to_owned(),
            _ => "250 2.0.0 Ok".to_owned(),
        };
        stream.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
    }
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes().filter_map(|byte| ALPHABET.iter().position(|&other| other == byte)) {
        bits = (bits << 6 | u32::try_from(digit).unwrap()) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    bytes
}

fn quoted_printable(text: &str) -> Vec<u8> {
    let text = text.replace("=\r\n", "");
    let mut parts = text.split('=');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    bytes
}
