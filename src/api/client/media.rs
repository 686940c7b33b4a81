//! Media over HTTP: upload, download, thumbnails (client-server API, "Content repository"). A medium that the caller
//! may not read is answered like one that does not exist. The unauthenticated paths of before Matrix 1.11 are frozen.

use std::{
    io::SeekFrom,
    pin::Pin,
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
    error::{Code, Error, Result, invalid, not_found, refuse},
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

/// The endpoints.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::POST, "/_matrix/media/v3/upload", upload)
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

/// Uploads of one person that no message shows yet.
const UNLINKED_MAX: i64 = 100;

/// `POST /_matrix/media/v3/upload`: the body goes to the disk while it arrives.
async fn upload(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    let requester = caller::requester(&server, &call.parts).await?;
    let waiting = store::media::unlinked_of(&mut server.db.read().await?, requester.user_id.as_str()).await?;
    if waiting >= UNLINKED_MAX {
        return Err(refuse(
            Code::LimitExceeded { retry_after_ms: 3_600_000 },
            "Too many uploads that no message shows: please send or wait.",
        ));
    }
    let file_name = call.query("filename").filter(|name| !name.is_empty());
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
    let media_id = crate::clock::random_token(24);
    let uri = format!("mxc://{}/{media_id}", server.name);
    let medium = Medium {
        media_id,
        user_id: requester.user_id.to_string(),
        sha256: stored.sha256.clone(),
        content_type,
        file_name,
        bytes: i64::try_from(stored.bytes).map_err(|_| media::too_large(bytes_max))?,
    };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                store::media::insert(batch.sql().await?, &medium, now).await
            })
        })
        .await?;
    // Until here the blob could not be removed as one that nothing uses.
    drop(stored);
    Ok(json!({"content_uri": uri}).into())
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
    let medium = readable(&server, &requester, &args).await?;
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
    let medium = readable(&server, &requester, &args).await?;
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

/// The medium of a path's server name and media id, if the caller may read it; the reading goes to the audit log
/// before the answer.
async fn readable(server: &Arc<Server>, requester: &Requester, args: &[String]) -> Result<Medium> {
    let unknown = || not_found("ファイルが見つかりません。(No such media.)");
    let [server_name, media_id, ..] = args else { return Err(unknown()) };
    if server_name.as_str() != server.name.as_str() || !links::is_media_id(media_id) {
        return Err(unknown());
    }
    let mut conn = server.db.read().await?;
    let medium = store::media::medium(&mut conn, media_id).await?.ok_or_else(unknown)?;
    let seen = links::seen(server, &mut conn, &requester.user_id, &medium).await?.ok_or_else(unknown)?;
    drop(conn);
    if let Seen::Room(room_id) = &seen {
        crate::reading::opened(server, requester, room_id, "media").await?;
    }
    Ok(medium)
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
    set(&mut response, header::CACHE_CONTROL, "private, max-age=31536000, immutable")?;
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
