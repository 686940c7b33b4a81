//! A small SMTP server (RFC 5321) for the demo: takes every mail, sends none on, and keeps each as an .eml file.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::Engine as _;
use heya::{
    error::{Error, Result},
    files,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use super::client::PATIENCE;

/// RFC 5321, 4.5.3.1.6, allows 1,000; mailers that fold nothing write longer ones.
const LINE_BYTES_MAX: u64 = 16 << 10;
const MAIL_BYTES_MAX: usize = 1 << 20;
const MAILS_MAX: usize = 1_000;
const CONNECTIONS_MAX: usize = 16;
/// A bridge keeps its connection for the next mail.
const IDLE: Duration = Duration::from_secs(300);

/// A mail that came.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The recipient of the envelope.
    pub to: String,
    /// As it came.
    pub raw: String,
    /// The subject, decoded.
    pub subject: String,
    /// The body, decoded.
    pub body: String,
}

/// What came until now.
#[derive(Clone)]
pub struct Sink {
    mails: Arc<Mutex<Vec<Mail>>>,
    count: watch::Receiver<usize>,
}

impl Sink {
    /// Serves on a listener until the program ends.
    pub fn start(listener: TcpListener, folder: PathBuf) -> Result<Self> {
        files::private_folder(&folder)?;
        let (told, count) = watch::channel(0);
        let sink = Self { mails: Arc::default(), count };
        let inbox = Arc::new(Inbox { mails: Arc::clone(&sink.mails), told, folder });
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tokio::spawn(async move {
            while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let inbox = Arc::clone(&inbox);
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Err(error) = converse(stream, &inbox).await {
                        tracing::debug!(%error, "a connection to the mail sink broke off");
                    }
                });
            }
        });
        Ok(sink)
    }

    /// How many came until now: later ones are after this mark.
    pub fn mark(&self) -> usize {
        self.mails.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Mail> {
        self.mails.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a mail to an address, after a mark, with a text in its subject and one in its body.
    pub async fn expect(&self, to: &str, mark: usize, subject: &str, body: &str) -> Result<Mail> {
        let fits = |mail: &&Mail| mail.to == to && mail.subject.contains(subject) && mail.body.contains(body);
        let mut count = self.count.clone();
        let wait = async {
            loop {
                count.borrow_and_update();
                if let Some(mail) = self.all().iter().skip(mark).find(fits) {
                    return Ok(mail.clone());
                }
                count.changed().await.map_err(|_| Error::internal("the mail sink has ended"))?;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| {
            let subjects: Vec<String> = self.all().into_iter().skip(mark).map(|mail| mail.subject).collect();
            Err(Error::internal(format!(
                "waited {} s for the mail 「{subject}」; there came {subjects:?}",
                PATIENCE.as_secs()
            )))
        })
    }
}

struct Inbox {
    mails: Arc<Mutex<Vec<Mail>>>,
    told: watch::Sender<usize>,
    folder: PathBuf,
}

impl Inbox {
    /// Keeps a mail; the file first, so that whoever waits for the mail finds it.
    fn take(&self, to: String, raw: String) -> Result<()> {
        let mut mails = self.mails.lock().unwrap_or_else(PoisonError::into_inner);
        if mails.len() >= MAILS_MAX {
            return Err(Error::internal("the demo's mailbox is full"));
        }
        let count = mails.len() + 1;
        write(&self.folder, count, &raw)?;
        let (subject, body) = decode(&raw);
        mails.push(Mail { to, raw, subject, body });
        drop(mails);
        self.told.send_replace(count);
        Ok(())
    }
}

fn write(folder: &Path, number: usize, raw: &str) -> Result<()> {
    files::write_private(&folder.join(format!("{number:04}.eml")), raw.as_bytes())
}

/// One SMTP connection.
async fn converse(stream: TcpStream, inbox: &Inbox) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut to = String::new();
    writer.write_all(b"220 localhost heya demo\r\n").await?;
    loop {
        let Some(line) = line(&mut reader).await? else { return Ok(()) };
        let upper = line.to_ascii_uppercase();
        let reply: &[u8] = if upper.starts_with("EHLO") {
            b"250-localhost\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
        } else if upper.starts_with("RCPT TO:") {
            to = super::enrolment::between(&line, "<", ">").unwrap_or_default().to_owned();
            b"250 OK\r\n"
        } else if upper == "DATA" {
            writer.write_all(b"354 go on\r\n").await?;
            let Some(raw) = data(&mut reader).await? else { return Ok(()) };
            if inbox.take(std::mem::take(&mut to), raw).is_ok() {
                b"250 kept\r\n"
            } else {
                b"452 cannot keep it\r\n"
            }
        } else if upper == "QUIT" {
            writer.write_all(b"221 bye\r\n").await?;
            return Ok(());
        } else if ["HELO", "MAIL FROM:", "RSET", "NOOP"].iter().any(|word| upper.starts_with(word)) {
            b"250 OK\r\n"
        } else {
            b"500 unknown\r\n"
        };
        writer.write_all(reply).await?;
    }
}

/// A line without its end; none at the end of the connection, or where it is too long.
async fn line(reader: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut limited = reader.take(LINE_BYTES_MAX);
    let read = tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut bytes)).await;
    let complete = matches!(read, Ok(Ok(_))) && bytes.ends_with(b"\n");
    Ok(complete.then(|| String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()))
}

/// A mail up to the lonely dot (RFC 5321, 4.5.2).
async fn data(reader: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut raw = String::new();
    loop {
        match line(reader).await? {
            Some(line) if line == "." => return Ok(Some(raw)),
            Some(line) if raw.len() + line.len() <= MAIL_BYTES_MAX => {
                raw.push_str(line.strip_prefix('.').unwrap_or(&line));
                raw.push_str("\r\n");
            }
            _ => return Ok(None),
        }
    }
}

/// Subject and body of a mail with one part, decoded.
fn decode(raw: &str) -> (String, String) {
    let (head, body) = raw.split_once("\r\n\r\n").unwrap_or((raw, ""));
    // RFC 5322, 2.2.3: folded headers go on after a blank.
    let head = head.replace("\r\n ", " ").replace("\r\n\t", " ");
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)))
            .map_or("", |(_, value)| value.trim())
            .to_owned()
    };
    let body = match field("Content-Transfer-Encoding").to_ascii_lowercase().as_str() {
        "base64" => text_of(base64_bytes(body)),
        "quoted-printable" => text_of(quoted_printable(body.as_bytes(), false)),
        _ => body.to_owned(),
    };
    (words(&field("Subject")), body)
}

/// Encoded words (RFC 2047): blanks between two of them do not count.
fn words(text: &str) -> String {
    let mut out = String::new();
    for word in text.split(' ') {
        let inner = word.strip_prefix("=?").and_then(|word| word.strip_suffix("?="));
        let parts: Vec<&str> = inner.map(|inner| inner.splitn(3, '?').collect()).unwrap_or_default();
        match parts.as_slice() {
            [_, "b" | "B", coded] => out.push_str(&text_of(base64_bytes(coded))),
            [_, "q" | "Q", coded] => out.push_str(&text_of(quoted_printable(coded.as_bytes(), true))),
            _ => {
                if !out.is_empty() {
                    out.push(' ');
                }
                out.push_str(word);
            }
        }
    }
    out
}

fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

fn base64_bytes(text: &str) -> Vec<u8> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
}

/// RFC 2045, 6.7; in headers (RFC 2047, 4.2) `_` is a blank.
fn quoted_printable(text: &[u8], header: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let coded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = match (byte, coded) {
            (b'=', Some(coded)) => {
                out.push(coded);
                &after[2..]
            }
            (b'=', None) => after.strip_prefix(b"\r\n").unwrap_or(after),
            (b'_', _) if header => {
                out.push(b' ');
                after
            }
            _ => {
                out.push(byte);
                after
            }
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mails_are_decoded() {
        let raw = "Subject: =?utf-8?b?6KaL5pys?=\r\n =?utf-8?q?_=E5=A4=AA?= x\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9=83=8E=\r\n!\r\n";
        assert_eq!(decode(raw), ("見本 太 x".to_owned(), "郎!\r\n".to_owned()));
        let raw = "subject: plain\r\ncontent-transfer-encoding: base64\r\n\r\n6KaL\r\n5pys\r\n";
        assert_eq!(decode(raw), ("plain".to_owned(), "見本".to_owned()));
        assert_eq!(decode("Subject: a\r\n\r\nb = c\r\n").1, "b = c\r\n");
    }

    #[tokio::test]
    async fn a_conversation_becomes_a_file() {
        let folder = std::env::temp_dir().join(format!("heya-sink-{}", std::process::id()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sink = Sink::start(listener, folder.clone()).unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let said = "EHLO x\r\nMAIL FROM:<a@example.jp>\r\nRCPT TO:<b@example.jp>\r\nDATA\r\nSubject: hi\r\n\r\n..dot\r\n.\r\nQUIT\r\n";
        stream.write_all(said.as_bytes()).await.unwrap();
        let mail = sink.expect("b@example.jp", 0, "hi", ".dot").await.unwrap();
        assert!(mail.raw.contains("\r\n\r\n.dot\r\n"));
        assert!(folder.join("0001.eml").is_file());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
