//! Media over HTTP: upload, download, thumbnails (client-server API, "Content repository"). A medium that the caller
//! may not read is answered like one that does not exist. The unauthenticated paths of before Matrix 1.11 are frozen.

use std::{
    io::SeekFrom,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use serde_json::json;
use tokio::io::{AsyncRead as _, AsyncSeekExt as _, ReadBuf};

use crate::{
    error::{Code, Error, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    media::{
        self, UploadLimits,
        links::{self, Seen},
        sniff,
        thumbnail::{self, Thumbnail},
    },
    rooms::committer::Hint,
    server::Server,
    store::{self, media::Medium},
};

/// An upload may take this many times `limits.request_seconds`, while no pause may be longer than one.
const UPLOAD_TIMES: u32 = 30;
/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 64 << 10;
/// What browsers may do with a medium: nothing (client-server API, "Serving inline content").
const SANDBOX: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                       style-src 'unsafe-inline'; object-src 'self';";

/// A medium never changes, but who may see it does, and several people use one terminal: browsers ask each time, and are
/// told by the tag that they have it.
const CACHE: &str = "private, no-cache";

/// The endpoints.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::POST, "/_matrix/media/v3/upload", upload)
        .at(Method::POST, "/_matrix/media/v1/create", create)
        .at(Method::PUT, "/_matrix/media/v3/upload/{serverName}/{mediaId}", upload_later)
        .at(Method::GET, "/_matrix/client/v1/media/config", config)
        .at(Method::GET, "/_matrix/media/v3/config", config)
        .at(Method::GET, "/_matrix/client/v1/media/download/{serverName}/{mediaId}", download)
        .at(Method::GET, "/_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}", download)
        .at(Method::GET, "/_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}", thumbnail)
        .at(Method::GET, "/_matrix/client/v1/media/preview_url", preview_url)
        .at(Method::GET, "/_matrix/media/v3/preview_url", preview_url)
        .at(Method::GET, "/_matrix/media/v3/download/{serverName}/{mediaId}", frozen)
        .at(Method::GET, "/_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}", frozen)
        .at(Method::GET, "/_matrix/media/v3/thumbnail/{serverName}/{mediaId}", frozen)
}

/// How long somebody waits for content that has not come yet: where they say nothing, and at most.
const NOT_YET_DEFAULT: Duration = Duration::from_secs(20);
const NOT_YET_MAX: Duration = Duration::from_secs(60);
/// Uploads of one person that no message shows yet.
const UNLINKED_MAX: i64 = 100;

/// `POST /_matrix/media/v3/upload`: the body goes to the disk while it arrives.
async fn upload(server: Arc<Server>, call: Call) -> Result<Answer> {
    let requester = caller::requester(&server, &call.parts).await?;
    let media_id = crate::clock::random_token(24);
    let uri = format!("mxc://{}/{media_id}", server.name);
    receive(server, requester, call, media_id, false).await?;
    Ok(json!({"content_uri": uri}).into())
}

/// `POST /_matrix/media/v1/create`: an id now, the content later (MSC2246).
async fn create(server: Arc<Server>, call: Call) -> Result<Answer> {
    let requester = caller::requester(&server, &call.parts).await?;
    call.body(&server).await?;
    let media_id = crate::clock::random_token(24);
    let uri = format!("mxc://{}/{media_id}", server.name);
    let max = i64::from(server.config.limits.pending_uploads);
    let lasts = i64::try_from(server.config.limits.pending_upload_seconds).unwrap_or(i64::MAX / 4096);
    let expires_at = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let (now, user_id) = (batch.now, requester.user_id.as_str());
                if store::media::pending_of(batch.reading(), user_id, now).await? >= max {
                    return Err(refuse(
                        Code::LimitExceeded { retry_after_ms: 60_000 },
                        "Too many uploads were begun and not finished: please finish them or wait.",
                    ));
                }
                let expires_at = now + lasts * 1000;
                store::media::put_pending(batch.sql().await?, &media_id, user_id, now, expires_at).await?;
                Ok(expires_at)
            })
        })
        .await?;
    Ok(json!({"content_uri": uri, "unused_expires_at": expires_at}).into())
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`: once, by whoever has the id.
async fn upload_later(server: Arc<Server>, call: Call) -> Result<Answer> {
    let requester = caller::requester(&server, &call.parts).await?;
    let media_id = call.arg(1).to_owned();
    let unknown = || not_found("There is no such media id that waits for its content.");
    if call.arg(0) != server.name.as_str() || !links::is_media_id(&media_id) {
        return Err(unknown());
    }
    {
        let mut conn = server.db.read().await?;
        match store::media::pending(&mut conn, &media_id).await? {
            Some((owner, _)) if owner != requester.user_id.as_str() => {
                return Err(forbidden("Only whoever got this media id may upload to it."));
            }
            Some((_, until)) if until > server.now() => {}
            Some(_) => return Err(unknown()),
            None => {
                let known = store::media::medium(&mut conn, &media_id).await?;
                // Of others' media nobody learns whether they are there.
                return Err(match known.filter(|medium| medium.user_id == requester.user_id.as_str()) {
                    Some(_) => overwrites(),
                    None => unknown(),
                });
            }
        }
    }
    receive(Arc::clone(&server), requester, call, media_id, true).await?;
    server.blobs.arrived.notify_waiters();
    Ok(json!({}).into())
}

fn overwrites() -> Error {
    refuse(Code::CannotOverwriteMedia, "This media id has its content already.")
}

/// Receives a body, and records it under a media id; one that waited is used up in the same unit.
async fn receive(
    server: Arc<Server>,
    requester: Requester,
    mut call: Call,
    media_id: String,
    waited: bool,
) -> Result<()> {
    {
        let mut conn = server.db.read().await?;
        let unlinked = store::media::unlinked_of(&mut conn, requester.user_id.as_str()).await?;
        if unlinked >= UNLINKED_MAX {
            return Err(refuse(
                Code::LimitExceeded { retry_after_ms: 3_600_000 },
                "Too many uploads that no message shows: please send or wait.",
            ));
        }
        // Before the body, so that nothing is sent in vain; and again in the unit, where it counts.
        media::check_quota(&mut conn, &server.config.limits, requester.user_id.as_str(), None).await?;
    }
    let file_name = call.query("filename").filter(|name| !name.is_empty()).map(sniff::plain_name);
    let body = call.take_body().unwrap_or_default();
    let parts = call.parts;
    if let Some(name) = &file_name {
        sniff::check_name(name)?;
    }
    let idle = Duration::from_secs(server.config.limits.request_seconds);
    let bytes_max = server.config.limits.upload_bytes as u64;
    let limits = UploadLimits { bytes_max, idle, total: idle * UPLOAD_TIMES };
    let announced =
        text(&parts.headers, header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| length > bytes_max) {
        return Err(media::too_large(bytes_max));
    }
    let declared = text(&parts.headers, header::CONTENT_TYPE).map(str::to_owned);
    let named = file_name.clone();
    let (stored, content_type) = server
        .blobs
        .put_stream(body, limits, move |file| sniff::examine(file, declared.as_deref(), named.as_deref()))
        .await?;
    let medium = Medium {
        media_id,
        user_id: requester.user_id.to_string(),
        sha256: stored.sha256.clone(),
        content_type,
        file_name,
        bytes: i64::try_from(stored.bytes).map_err(|_| media::too_large(bytes_max))?,
    };
    let (limits, bytes) = (server.config.limits.clone(), stored.bytes);
    let recorded = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let new = Some((medium.sha256.as_str(), bytes));
                media::check_quota(batch.reading(), &limits, &medium.user_id, new).await?;
                let conn = batch.sql().await?;
                if waited && !store::media::take_pending(conn, &medium.media_id, now).await? {
                    return Err(overwrites());
                }
                store::media::insert(conn, &medium, now).await
            })
        })
        .await;
    let sha256 = stored.sha256.clone();
    // Until here the blob could not be removed as one that nothing uses.
    drop(stored);
    if recorded.is_err() {
        media::drop_unused(&server, &sha256).await?;
    }
    recorded
}

/// `GET …/media/config`.
async fn config(server: Arc<Server>, call: Call) -> Result<Answer> {
    caller::requester(&server, &call.parts).await?;
    Ok(json!({"m.upload.size": server.config.limits.upload_bytes}).into())
}

/// `GET …/media/download/{serverName}/{mediaId}[/{fileName}]`.
async fn download(server: Arc<Server>, call: Call) -> Result<Answer> {
    let Call { parts, args, .. } = call;
    let requester = caller::requester(&server, &parts).await?;
    let wait = wait_of(&parts)?;
    let medium = readable(&server, &requester, &args, wait).await?;
    // The name in the path is the client's wish: it must not turn a file into a program.
    let wished = args
        .into_iter()
        .nth(2)
        .filter(|name| sniff::check_name(name).is_ok() && !sniff::is_program_name(name));
    original(&server, &parts.headers, &medium, wished.as_deref()).await
}

/// `GET …/media/thumbnail/{serverName}/{mediaId}`.
async fn thumbnail(server: Arc<Server>, call: Call) -> Result<Answer> {
    let requester = caller::requester(&server, &call.parts).await?;
    let size = wished_size(&call)?;
    let Call { parts, args, .. } = call;
    let wait = wait_of(&parts)?;
    let medium = readable(&server, &requester, &args, wait).await?;
    match thumbnail::thumbnail(&server.blobs, &medium, size, server.config.limits.image_pixels).await? {
        Thumbnail::Original => original(&server, &parts.headers, &medium, None).await,
        Thumbnail::Made { file, content_type, size } => {
            let name = if content_type == "image/png" { "thumbnail.png" } else { "thumbnail.jpg" };
            let etag = format!("\"{}-{}x{}\"", medium.sha256, size.width, size.height);
            let shown = Shown { content_type, name: Some(name), etag: &etag };
            send(file, &parts.headers, &shown).await
        }
    }
}

fn wished_size(call: &Call) -> Result<thumbnail::Size> {
    let pixels = |name: &str| {
        let text =
            call.query(name).ok_or_else(|| refuse(Code::MissingParam, format!("{name} is missing.")))?;
        text.parse::<u32>()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| invalid(format!("{name} is not a number of pixels.")))
    };
    let method = match call.query("method").as_deref() {
        Some("crop") => thumbnail::Method::Crop,
        Some("scale") | None => thumbnail::Method::Scale,
        Some(_) => return Err(invalid("method is crop or scale.")),
    };
    Ok(thumbnail::choose(pixels("width")?, pixels("height")?, method))
}

/// Why the caller may read a medium; none where they may not.
async fn seen(server: &Server, requester: &Requester, medium: &Medium) -> Result<Option<Seen>> {
    let seen = links::seen(server, &requester.user_id, medium).await?;
    let Some(id) = requester.appservice.as_deref().filter(|_| seen.is_none()) else { return Ok(seen) };
    let appservices = server.appservices.all();
    match appservices.iter().find(|one| one.id == id && one.sender == requester.user_id) {
        Some(appservice) => links::seen_by_users_of(server, appservice, medium).await,
        None => Ok(None),
    }
}

/// `GET …/media/preview_url`: the server fetches nothing from outside (REQUIREMENTS C31).
async fn preview_url(server: Arc<Server>, call: Call) -> Result<Answer> {
    caller::requester(&server, &call.parts).await?;
    Err(not_found("Previews of web pages are switched off on this server."))
}

/// The paths of before Matrix 1.11, which ask for no token: nothing is served there. Whoever shows no certificate
/// learns not even that.
async fn frozen(server: Arc<Server>, call: Call) -> Result<Answer> {
    caller::terminal(&server, &caller::peer(&call.parts)?)?;
    Err(not_found("Media are served at /_matrix/client/v1/media only, to users who are logged in."))
}

/// How long somebody waits for content that has not come yet (`timeout_ms`).
fn wait_of(parts: &http::request::Parts) -> Result<Duration> {
    let query = crate::http::route::form(parts.uri.query().unwrap_or_default());
    let Some((_, text)) = query.iter().find(|(key, _)| key == "timeout_ms") else {
        return Ok(NOT_YET_DEFAULT);
    };
    let ms: u64 = text.parse().map_err(|_| invalid("timeout_ms is not a number of milliseconds."))?;
    Ok(Duration::from_millis(ms).min(NOT_YET_MAX))
}

/// The medium of a path's server name and media id, if the caller may read it; the reading goes to the audit log
/// before the answer. Content that has not come yet is waited for.
async fn readable(
    server: &Arc<Server>,
    requester: &Requester,
    args: &[String],
    wait: Duration,
) -> Result<Medium> {
    let unknown = || not_found("ファイルが見つかりません。(No such media.)");
    let [server_name, media_id, ..] = args else { return Err(unknown()) };
    if server_name.as_str() != server.name.as_str() || !links::is_media_id(media_id) {
        return Err(unknown());
    }
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        // Asked for before looking: content that comes in between is not missed.
        let mut arrived = pin!(server.blobs.arrived.notified());
        arrived.as_mut().enable();
        let medium = store::media::medium(&mut server.db.read().await?, media_id).await?;
        if let Some(medium) = medium {
            let seen = seen(server, requester, &medium).await?.ok_or_else(unknown)?;
            if let Seen::Room(room_id) = &seen {
                crate::reading::opened(server, requester, room_id, "media").await?;
            }
            return Ok(medium);
        }
        let pending = store::media::pending(&mut server.db.read().await?, media_id).await?;
        let (owner, until) = pending.ok_or_else(unknown)?;
        let to_come = Medium {
            media_id: media_id.clone(),
            user_id: owner,
            sha256: String::new(),
            content_type: String::new(),
            file_name: None,
            bytes: 0,
        };
        if until <= server.now() || !links::may_read(server, &requester.user_id, &to_come).await? {
            return Err(unknown());
        }
        if tokio::time::timeout_at(deadline, arrived).await.is_err() {
            return Err(refuse(
                Code::NotYetUploaded,
                "ファイルはまだ送信中です。(The content has not been uploaded yet.)",
            ));
        }
    }
}

async fn original(
    server: &Server,
    headers: &HeaderMap,
    medium: &Medium,
    wished: Option<&str>,
) -> Result<Answer> {
    let file = server.blobs.open(&medium.sha256).await?;
    let etag = format!("\"{}\"", medium.sha256);
    let name = wished.or(medium.file_name.as_deref());
    let shown = Shown { content_type: &medium.content_type, name, etag: &etag };
    send(file, headers, &shown).await
}

/// What the answer's headers say of a file.
struct Shown<'a> {
    content_type: &'a str,
    name: Option<&'a str>,
    etag: &'a str,
}

/// Streams a file, or the part of it that was asked for.
async fn send(mut file: tokio::fs::File, headers: &HeaderMap, shown: &Shown<'_>) -> Result<Answer> {
    let length = file.metadata().await?.len();
    // What the client has already need not come again (RFC 9110, 13.1.2).
    if text(headers, header::IF_NONE_MATCH)
        .is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == shown.etag))
    {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        set(&mut response, header::ETAG, shown.etag)?;
        set(&mut response, header::CACHE_CONTROL, CACHE)?;
        return Ok(Answer::Response(response));
    }
    // A range of another version than the client has is no use to it (RFC 9110, 13.1.5).
    let same = text(headers, header::IF_RANGE).is_none_or(|tag| tag == shown.etag);
    let wanted = range(text(headers, header::RANGE).filter(|_| same), length);
    let mut response = Response::new(Body::empty());
    let (from, left) = match wanted {
        Wanted::Whole => (0, length),
        Wanted::Part { first, last } => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, header::CONTENT_RANGE, &format!("bytes {first}-{last}/{length}"))?;
            (first, last - first + 1)
        }
        Wanted::Nothing => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{length}"))?;
            return Ok(Answer::Response(response));
        }
    };
    if from > 0 {
        file.seek(SeekFrom::Start(from)).await?;
    }
    let kind = sniff::served_type(shown.content_type);
    set(&mut response, header::CONTENT_TYPE, kind)?;
    set(&mut response, header::CONTENT_LENGTH, &left.to_string())?;
    set(&mut response, header::CONTENT_DISPOSITION, &disposition(sniff::is_inline(kind), shown.name))?;
    set(&mut response, header::ETAG, shown.etag)?;
    set(&mut response, header::ACCEPT_RANGES, "bytes")?;
    set(&mut response, header::CACHE_CONTROL, CACHE)?;
    set(&mut response, header::CONTENT_SECURITY_POLICY, SANDBOX)?;
    set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    set(&mut response, header::HeaderName::from_static("cross-origin-resource-policy"), "cross-origin")?;
    *response.body_mut() = Body::new(FileBody { file, left, buffer: BytesMut::new() });
    Ok(Answer::Response(response))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) -> Result<()> {
    let value = HeaderValue::from_str(value).map_err(|error| Error::internal(error.to_string()))?;
    response.headers_mut().insert(name, value);
    Ok(())
}

/// What a `Range` header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part { first: u64, last: u64 },
    Nothing,
}

/// Reads a `Range` header (RFC 9110, 14.1.2 and 14.2): one range; several, or what is no range, are ignored.
fn range(header: Option<&str>, length: u64) -> Wanted {
    let Some((first, last)) =
        header.and_then(|text| text.strip_prefix("bytes=")).and_then(|text| text.trim().split_once('-'))
    else {
        return Wanted::Whole;
    };
    // `parse` takes a sign too.
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return Wanted::Whole;
    }
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Err(_), Ok(0)) if first.is_empty() => Wanted::Nothing,
        (Err(_), Ok(_)) if first.is_empty() && length == 0 => Wanted::Nothing,
        (Err(_), Ok(suffix)) if first.is_empty() => {
            Wanted::Part { first: length.saturating_sub(suffix), last: length - 1 }
        }
        (Ok(first), Err(_)) if last.is_empty() && first < length => Wanted::Part { first, last: length - 1 },
        (Ok(_), Err(_)) if last.is_empty() => Wanted::Nothing,
        (Ok(first), Ok(last)) if first > last => Wanted::Whole,
        (Ok(first), Ok(_)) if first >= length => Wanted::Nothing,
        (Ok(first), Ok(last)) => Wanted::Part { first, last: last.min(length - 1) },
        _ => Wanted::Whole,
    }
}

/// A `Content-Disposition` (RFC 6266): the name in ASCII for old clients, and as it is in `filename*` (RFC 8187).
fn disposition(inline: bool, name: Option<&str>) -> String {
    use std::fmt::Write as _;
    let kind = if inline { "inline" } else { "attachment" };
    let Some(name) = name else { return kind.to_owned() };
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%') || c == ' ' { c } else { '_' })
        .collect();
    let mut text = format!("{kind}; filename=\"{plain}\"");
    if plain != name {
        text.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a String does not fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

/// A file on its way out: one chunk in memory.
struct FileBody {
    file: tokio::fs::File,
    left: u64,
    buffer: BytesMut,
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = &mut *self;
        if this.left == 0 {
            return Poll::Ready(None);
        }
        if this.buffer.is_empty() {
            this.buffer = BytesMut::zeroed(CHUNK_BYTES);
        }
        let room = usize::try_from(this.left).unwrap_or(usize::MAX).min(this.buffer.len());
        let mut read = ReadBuf::new(&mut this.buffer[..room]);
        match Pin::new(&mut this.file).poll_read(cx, &mut read) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok(())) => {
                let n = read.filled().len();
                if n == 0 {
                    return Poll::Ready(Some(Err(std::io::ErrorKind::UnexpectedEof.into())));
                }
                this.left -= n as u64;
                Poll::Ready(Some(Ok(Frame::data(this.buffer.split_to(n).freeze()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn one_range_is_served() {
        let part = |first, last| Wanted::Part { first, last };
        for (text, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-5", part(2, 5)),
            ("bytes=2-", part(2, 9)),
            ("bytes=2-100", part(2, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-100", part(0, 9)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=10-12", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=99999999999999999999-", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
        ] {
            assert_eq!(range(Some(text), 10), expected, "{text}");
        }
        assert_eq!(range(None, 10), Wanted::Whole);
        assert_eq!(range(Some("bytes=0-"), 0), Wanted::Nothing);
        assert_eq!(range(Some("bytes=-1"), 0), Wanted::Nothing);
    }

    #[test]
    fn names_are_written_so_that_nothing_else_can_be() {
        assert_eq!(disposition(true, None), "inline");
        assert_eq!(disposition(false, Some("a b.pdf")), "attachment; filename=\"a b.pdf\"");
        assert_eq!(
            disposition(false, Some("報告.pdf")),
            "attachment; filename=\"__.pdf\"; filename*=UTF-8''%E5%A0%B1%E5%91%8A.pdf"
        );
        assert_eq!(
            disposition(true, Some("a\"; x=\r\n\\")),
            "inline; filename=\"a_; x=___\"; filename*=UTF-8''a%22%3B%20x%3D%0D%0A%5C"
        );
    }

    /// An answer's status, its headers, and its body.
    async fn sent(
        headers: &[(header::HeaderName, &str)],
        content_type: &str,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let path = std::env::temp_dir().join(format!("heya-send-{}", crate::clock::random_token(12)));
        std::fs::write(&path, b"0123456789").unwrap();
        let file = tokio::fs::File::open(&path).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect();
        let shown = Shown { content_type, name: Some("a.txt"), etag: "\"tag\"" };
        let Answer::Response(response) = send(file, &headers, &shown).await.unwrap() else { panic!("JSON") };
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn a_file_is_sent_whole_or_in_part() {
        let (status, headers, body) = sent(&[], "text/plain").await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"0123456789"[..]));
        assert_eq!(headers[header::CONTENT_LENGTH], "10");
        assert_eq!(headers[header::CONTENT_DISPOSITION], "inline; filename=\"a.txt\"");
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");

        let (status, headers, body) = sent(&[(header::RANGE, "bytes=2-4")], "text/plain").await;
        assert_eq!((status, &body[..]), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
        assert_eq!(headers[header::CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(headers[header::CONTENT_LENGTH], "3");

        let (status, headers, _) = sent(&[(header::RANGE, "bytes=10-")], "text/plain").await;
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(headers[header::CONTENT_RANGE], "bytes */10");

        let stale = [(header::RANGE, "bytes=2-4"), (header::IF_RANGE, "\"other\"")];
        assert_eq!(sent(&stale, "text/plain").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn markup_is_sent_as_an_attachment() {
        for kind in ["image/svg+xml", "text/html", "application/xml"] {
            let (_, headers, _) = sent(&[], kind).await;
            assert_eq!(headers[header::CONTENT_TYPE], "application/octet-stream");
            assert_eq!(headers[header::CONTENT_DISPOSITION], "attachment; filename=\"a.txt\"");
        }
    }
}
