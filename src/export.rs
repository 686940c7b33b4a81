//! A room written out (書き出し): a page that people can read and print, every event as it was signed, the files, and a
//! manifest with hashes (C27, H19). It goes into `exports/` in the data folder, readable by its owner only.

mod polls;

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use askama::Template;
use ruma::{RoomId, events::StateEventType};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use self::polls::Poll;
pub(crate) use self::polls::words;
use crate::{
    audit::{hex, written_date, written_time},
    error::{Error, Result},
    rooms::{direct, life::kind_name, pdu::Event},
    server::Server,
    store,
};

/// Events read and written at once.
const CHUNK: usize = 500;
/// What lies in a folder until it is whole.
const PART: &str = ".part";

/// What an export holds; also its `manifest.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// The folder, in the data folder.
    pub folder: String,
    /// The room number (部屋番号).
    pub room_number: i64,
    /// How many events.
    pub events: usize,
    /// How many files.
    pub media: usize,
    /// Media of the room that are not on the disk any more.
    #[serde(default)]
    pub missing: Vec<String>,
    /// SHA-256 of every file, by its name in the folder.
    pub files: BTreeMap<String, String>,
}

#[derive(Template)]
#[template(path = "export_head.html")]
struct Head<'a> {
    city: &'a str,
    service: &'a str,
    name: &'a str,
    number: i64,
    kind: &'a str,
    opened_on: String,
    closed_on: Option<String>,
    written_on: String,
}

#[derive(Template)]
#[template(path = "export_events.html")]
struct Lines<'a> {
    lines: &'a [Line],
}

#[derive(Template)]
#[template(path = "export_foot.html")]
struct Foot {
    events: usize,
    media: usize,
    missing: usize,
}

/// One event, as people read it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    at: String,
    /// Who: the display name at the time, and the login id.
    who: String,
    /// What happened, where it is no post: joined, removed, named.
    happened: String,
    /// What was written.
    text: String,
    /// A note beside it: corrected, redacted, a reply.
    note: &'static str,
    /// The file, as (path in the folder, name, whether it is a picture).
    file: Option<(String, String, bool)>,
}

/// Writes a room into `folder` of the data folder. A folder that is there is whole and is not written again; one that a
/// crash left half-written begins anew. One export at a time.
pub async fn write(server: &Arc<Server>, room_id: &RoomId, folder: &str) -> Result<Manifest> {
    let _one_at_a_time = server.exports.lock().await;
    let target = server.data().join(folder);
    if let Ok(written) = std::fs::read(target.join("manifest.json")) {
        return Ok(serde_json::from_slice(&written)?);
    }
    let part = PathBuf::from(format!("{}{PART}", target.display()));
    if part.exists() {
        std::fs::remove_dir_all(&part)?;
    }
    let written = async {
        let mut export = Export::begin(server, room_id, folder, part.clone()).await?;
        export.events().await?;
        export.finish(&target)
    };
    let written = written.await;
    if written.is_err() {
        // Half an export would be taken for one, and outlive the room.
        let _ = std::fs::remove_dir_all(&part);
    }
    written
}

/// Removes what a crash left half-written. An export that was ordered meanwhile is no leftover: it holds the same lock.
pub async fn remove_parts(server: &Server) -> Result<()> {
    let _one_at_a_time = server.exports.lock().await;
    for entry in std::fs::read_dir(server.data().join("exports"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(PART) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

struct Export<'a> {
    server: &'a Arc<Server>,
    room_id: &'a RoomId,
    part: PathBuf,
    page: Hashed,
    events: Hashed,
    manifest: Manifest,
    /// Display names as of the event being written.
    names: HashMap<String, String>,
    /// Polls up to the event being written, by the event that asks.
    polls: HashMap<String, Poll>,
    /// Files written, by media id.
    files: HashMap<String, Option<(String, String, bool)>>,
}

impl<'a> Export<'a> {
    async fn begin(
        server: &'a Arc<Server>,
        room_id: &'a RoomId,
        folder: &str,
        part: PathBuf,
    ) -> Result<Export<'a>> {
        crate::files::private_folder(&part.join("media"))?;
        let room = server.live.room(&server.db, room_id).await?;
        let view = room.current()?;
        let row = &view.row;
        let number =
            row.room_number.ok_or_else(|| crate::error::not_found("That is no room of the city."))?;
        let mut name = view.state.content_str(&StateEventType::RoomName, "", "name").unwrap_or_default();
        if row.kind == "direct" && name.is_empty() {
            name = direct::name(&view.state, &server.city_user);
        }
        let mut page = Hashed::create(&part.join("index.html"))?;
        let head = Head {
            city: &server.config.city.name,
            service: &server.config.city.service,
            name: &name,
            number,
            kind: kind_name(&row.kind),
            opened_on: written_date(row.created_at),
            closed_on: row.closed_at.map(written_date),
            written_on: written_date(server.now()),
        };
        page.write(render(&head)?.as_bytes())?;
        Ok(Self {
            server,
            room_id,
            events: Hashed::create(&part.join("events.jsonl"))?,
            page,
            part,
            manifest: Manifest {
                folder: folder.to_owned(),
                room_number: number,
                events: 0,
                media: 0,
                missing: Vec::new(),
                files: BTreeMap::new(),
            },
            names: HashMap::from([(server.city_user.to_string(), server.config.city.name.clone())]),
            polls: HashMap::new(),
            files: HashMap::new(),
        })
    }

    async fn events(&mut self) -> Result<()> {
        let mut after = 0;
        loop {
            let list =
                store::events::after(&mut self.server.db.read().await?, self.room_id, after, CHUNK).await?;
            let Some(last) = list.last() else { return Ok(()) };
            after = last.position;
            let mut lines = Vec::with_capacity(list.len());
            for event in &list {
                self.events.write(
                    format!("{{\"event_id\":\"{}\",\"pdu\":{}}}\n", event.event_id, event.pdu).as_bytes(),
                )?;
                let mut line = line(event, &mut self.names, &mut self.polls);
                if let Some(line) = &mut line {
                    line.file = self.file_of(event).await?;
                }
                lines.extend(line);
            }
            self.manifest.events += list.len();
            self.page.write(render(&Lines { lines: &lines })?.as_bytes())?;
        }
    }

    /// The file that a post shows, copied once.
    async fn file_of(&mut self, event: &Event) -> Result<Option<(String, String, bool)>> {
        let Some(url) = event.content_str("url") else { return Ok(None) };
        let prefix = format!("mxc://{}/", self.server.name);
        let Some(media_id) = url.strip_prefix(&prefix).filter(|id| crate::media::links::is_media_id(id))
        else {
            return Ok(None);
        };
        if let Some(known) = self.files.get(media_id) {
            return Ok(known.clone());
        }
        let mut conn = self.server.db.read().await?;
        // What the sender could not read themself was never linked to the room, and is not taken along.
        let linked = store::media::links(&mut conn, media_id)
            .await?
            .iter()
            .any(|(room, _)| room == self.room_id.as_str());
        let medium = if linked { store::media::medium(&mut conn, media_id).await? } else { None };
        drop(conn);
        let Some(medium) = medium else {
            self.files.insert(media_id.to_owned(), None);
            return Ok(None);
        };
        let name = medium.file_name.clone().or_else(|| event.content_str("body")).unwrap_or_default();
        let path = format!("media/{media_id}{}", extension(&name, &medium.content_type));
        let Ok(mut from) = self.server.blobs.open(&medium.sha256).await else {
            // A damaged disk must not keep the rest from being written out.
            tracing::error!(medium = media_id, "a file of the room is missing on the disk");
            self.manifest.missing.push(media_id.to_owned());
            self.files.insert(media_id.to_owned(), None);
            return Ok(None);
        };
        let to = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.part.join(&path))?;
        let mut to = tokio::fs::File::from_std(to);
        tokio::io::copy(&mut from, &mut to).await?;
        to.sync_all().await?;
        self.manifest.files.insert(path.clone(), medium.sha256);
        self.manifest.media += 1;
        let file = Some((path, name, medium.content_type.starts_with("image/")));
        self.files.insert(media_id.to_owned(), file.clone());
        Ok(file)
    }

    fn finish(mut self, target: &Path) -> Result<Manifest> {
        let foot = Foot {
            events: self.manifest.events,
            media: self.manifest.media,
            missing: self.manifest.missing.len(),
        };
        self.page.write(render(&foot)?.as_bytes())?;
        self.manifest.files.insert("index.html".to_owned(), self.page.finish()?);
        self.manifest.files.insert("events.jsonl".to_owned(), self.events.finish()?);
        let text = serde_json::to_vec_pretty(&self.manifest)?;
        crate::files::write_private(&self.part.join("manifest.json"), &text)?;
        std::fs::rename(&self.part, target)?;
        if let Some(above) = target.parent() {
            std::fs::File::open(above)?.sync_all()?;
        }
        Ok(self.manifest)
    }
}

fn render(template: &impl Template) -> Result<String> {
    template.render().map_err(|error| Error::internal(error.to_string()))
}

/// Endings that a file keeps: what opens them runs nothing. A page or a drawing with a script in it (`.html`, `.svg`)
/// would run beside patients' data, without a server's headers around it.
const KEPT_ENDINGS: [&str; 22] = [
    "jpg", "jpeg", "png", "gif", "webp", "heic", "bmp", "tif", "tiff", "pdf", "txt", "csv", "docx", "xlsx",
    "pptx", "mp3", "m4a", "wav", "mp4", "mov", "zip", "dcm",
];

/// The extension of a file's name where it is a harmless one, else one for its type.
fn extension(name: &str, content_type: &str) -> String {
    if let Some((_, extension)) = name.rsplit_once('.')
        && let extension = extension.to_ascii_lowercase()
        && KEPT_ENDINGS.contains(&extension.as_str())
    {
        return format!(".{extension}");
    }
    match content_type {
        "image/jpeg" => ".jpg",
        "image/png" => ".png",
        "image/gif" => ".gif",
        "image/webp" => ".webp",
        "application/pdf" => ".pdf",
        "text/plain" => ".txt",
        _ => ".bin",
    }
    .to_owned()
}

/// An event as a line; none where people are told nothing by it.
fn line(
    event: &Event,
    names: &mut HashMap<String, String>,
    polls: &mut HashMap<String, Poll>,
) -> Option<Line> {
    let login = |id: &str| id.trim_start_matches('@').split(':').next().unwrap_or_default().to_owned();
    let called = |id: &str, names: &HashMap<String, String>| match names.get(id) {
        Some(name) => format!("{name}（{}）", login(id)),
        None => login(id),
    };
    let kind = event.kind.to_string();
    let mut line = Line { at: written_time(event.ts), ..Line::default() };
    if kind == "m.room.member" {
        let target = event.state_key.clone().unwrap_or_default();
        if let Some(name) = event.content_str("displayname") {
            names.insert(target.clone(), name);
        }
        let who = called(&target, names);
        line.happened = match event.membership.as_deref() {
            Some("join") => format!("{who}が参加しました"),
            Some("invite") => format!("{who}が招待されました"),
            Some("leave") if event.sender == target => format!("{who}が退出しました"),
            Some("leave") => format!("{who}がメンバーから削除されました"),
            Some("ban") => format!("{who}が参加を禁止されました"),
            _ => return None,
        };
        line.who = called(event.sender.as_str(), names);
        return Some(line);
    }
    line.who = called(event.sender.as_str(), names);
    match kind.as_str() {
        "m.room.create" => line.happened = "部屋が開設されました".to_owned(),
        "m.room.name" => {
            line.happened = format!("部屋の名称：{}", event.content_str("name").unwrap_or_default());
        }
        "m.room.topic" => {
            line.happened = format!("部屋の説明：{}", event.content_str("topic").unwrap_or_default());
        }
        "m.reaction" => {
            let relation = event.content_field("m.relates_to")?;
            line.happened = format!("リアクション {}", relation["key"].as_str()?);
        }
        "jp.heya.room" => {
            line.happened = match event.content_str("status").as_deref() {
                Some("closed") => "部屋が終了しました".to_owned(),
                Some("archived") => "部屋が保管されました".to_owned(),
                Some("open") if event.depth > 10 => "部屋が開かれました".to_owned(),
                _ => return None,
            };
        }
        "m.room.redaction" => line.happened = "投稿が取り消されました".to_owned(),
        "m.room.encrypted" => line.note = "暗号化された投稿です",
        "m.room.message" | "m.sticker" => {
            if event.redacted_by.is_some() {
                line.note = "取り消された投稿です";
                return Some(line);
            }
            let content: Value = serde_json::from_str(event.content.get()).ok()?;
            let relation = &content["m.relates_to"];
            let replaced = relation["rel_type"] == "m.replace";
            let body = if replaced { &content["m.new_content"]["body"] } else { &content["body"] };
            line.text = body.as_str().unwrap_or_default().to_owned();
            line.note = if replaced {
                "訂正"
            } else if relation["rel_type"] == "m.thread" {
                "スレッド"
            } else if relation["m.in_reply_to"].is_object() {
                "返信"
            } else {
                ""
            };
        }
        "m.poll.start"
        | "org.matrix.msc3381.poll.start"
        | "m.poll.response"
        | "org.matrix.msc3381.poll.response"
        | "m.poll.end"
        | "org.matrix.msc3381.poll.end"
            if event.redacted_by.is_some() =>
        {
            line.note = "取り消された投稿です";
        }
        "m.poll.start" | "org.matrix.msc3381.poll.start" => {
            let content: Value = serde_json::from_str(event.content.get()).ok()?;
            let (asks, poll) = Poll::of(event, &content);
            line.note = "投票";
            line.text = poll.asked();
            // Nobody edits what somebody else asks, or asked before it was taken back.
            if event.event_id == *asks || polls.get(&asks).is_some_and(|known| known.by == poll.by) {
                polls.insert(asks, poll);
            }
        }
        "m.poll.response" | "org.matrix.msc3381.poll.response" => {
            let content: Value = serde_json::from_str(event.content.get()).ok()?;
            let poll = content["m.relates_to"]["event_id"].as_str().and_then(|asks| polls.get(asks));
            line.note = "投票への回答";
            line.text = poll.map(|poll| poll.chosen(&content)).unwrap_or_default();
            if line.text.is_empty() {
                line.text = "（無効な回答）".to_owned();
            }
        }
        "m.poll.end" | "org.matrix.msc3381.poll.end" => {
            line.note = "投票の終了";
            line.text = words_of(event);
            if line.text.is_empty() {
                line.happened = "投票が終了しました".to_owned();
            }
        }
        // What else clients write: the page says that it is there, with its words where it has some.
        kind if !event.is_state() => {
            line.note = "ほかの種類の投稿";
            line.text = if event.redacted_by.is_some() { String::new() } else { words_of(event) };
            if line.text.is_empty() {
                line.text = kind.to_owned();
            }
        }
        _ => return None,
    }
    Some(line)
}

/// The text that an event of any type has for clients that do not know it (client-server API, "Extensible events").
fn words_of(event: &Event) -> String {
    words(&serde_json::from_str(event.content.get()).unwrap_or_default())
}

/// A file that is hashed as it is written.
struct Hashed {
    file: std::io::BufWriter<std::fs::File>,
    hasher: Sha256,
}

impl Hashed {
    fn create(path: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file: std::io::BufWriter::new(file), hasher: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }

    /// Synced to the disk; the hash, in hex.
    fn finish(self) -> Result<String> {
        let file = self.file.into_inner().map_err(|error| Error::internal(error.to_string()))?;
        file.sync_all()?;
        Ok(hex(&self.hasher.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_plain() {
        assert_eq!(extension("写真.JPG", "image/jpeg"), ".jpg");
        assert_eq!(extension("a.tar.gz", "application/gzip"), ".bin");
        assert_eq!(extension("../../etc/passwd", "text/plain"), ".txt");
        assert_eq!(extension("x.あいう", "image/png"), ".png");
        assert_eq!(extension("", "application/octet-stream"), ".bin");
        assert_eq!(extension("page.html", "text/html"), ".bin");
        assert_eq!(extension("drawing.SVG", "image/svg+xml"), ".bin");
    }
}
