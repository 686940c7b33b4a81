//! Media: blobs in the data folder, what they are, who may read them, thumbnails.
//!
//! A blob is a file named by its SHA-256, `<folder>/ab/abcdef…`, so the same picture is stored once. A row in `blobs`
//! is written only after the file is safe on the disk, and the file is removed only after the row is gone: a crash in
//! between leaves a file that nobody knows ([`remove_orphans`]), never a row without its file. [`Blobs`] is the one
//! type that knows the folder; an object store can come later behind the same methods.

use std::{
    collections::HashSet,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, Semaphore},
};

use crate::{
    config::Encryption,
    error::{Code, Error, Result, forbidden, refuse},
    rooms::committer::Hint,
    server::Server,
    store::{self, Conn},
};

pub mod links;
pub mod sniff;
pub mod thumbnail;

/// Uploads received at once.
const UPLOADS_AT_ONCE: usize = 64;
/// Thumbnails computed at once: each may hold an image of `limits.image_pixels` in memory.
const THUMBNAILS_AT_ONCE: usize = 2;
/// Media that no event shows are kept this long (DESIGN 12).
const UNLINKED_MS: i64 = 24 * 60 * 60 * 1000;
/// Media forgotten in one unit.
const FORGET_CHUNK: i64 = 200;

/// The blobs' folder.
pub struct Blobs {
    folder: PathBuf,
    /// Held for reading from when a blob's file is in place until its row is written, for writing while rows and
    /// files are removed: a file that has just been uploaded again is not removed.
    placing: Arc<RwLock<()>>,
    uploads: Arc<Semaphore>,
    thumbnails: Arc<Semaphore>,
    /// Told when content has come that somebody may wait for.
    pub(crate) arrived: Notify,
}

/// The limits of one upload.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    /// Bytes.
    pub bytes_max: u64,
    /// The longest wait for the next bytes.
    pub idle: Duration,
    /// The longest time for all of it.
    pub total: Duration,
}

/// A blob that is on the disk. To be kept until its row is written.
#[derive(Debug)]
pub struct Stored {
    /// The SHA-256, in hexadecimal.
    pub sha256: String,
    /// The size.
    pub bytes: u64,
    _placed: OwnedRwLockReadGuard<()>,
}

/// The right to remove blobs: no upload is between its file and its row.
pub struct Alone {
    _alone: OwnedRwLockWriteGuard<()>,
}

impl Blobs {
    /// The blobs in a folder. What uploads of an earlier run left unfinished is removed.
    pub fn new(folder: PathBuf) -> Self {
        // Where there is none this fails, and where it cannot be removed it only takes space.
        let _ = std::fs::remove_dir_all(folder.join("tmp"));
        Self {
            folder,
            placing: Arc::default(),
            uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
            thumbnails: Arc::new(Semaphore::new(THUMBNAILS_AT_ONCE)),
            arrived: Notify::new(),
        }
    }

    /// Writes a body to the disk while it arrives, lets `check` look at the whole file (or refuse it), and puts it in
    /// its place. When this answers, the blob survives a power cut.
    pub async fn put_stream<T, F>(&self, body: Body, limits: UploadLimits, check: F) -> Result<(Stored, T)>
    where
        T: Send + 'static,
        F: FnOnce(&mut std::fs::File) -> Result<T> + Send + 'static,
    {
        let _upload = Arc::clone(&self.uploads).try_acquire_owned().map_err(|_| {
            refuse(
                Code::LimitExceeded { retry_after_ms: 2_000 },
                "Too many uploads at once: please try again.",
            )
        })?;
        let received = tokio::time::timeout(limits.total, self.receive(body, limits)).await;
        let (part, mut file, sha256, bytes) = received.map_err(|_| too_slow())??;
        let found = tokio::task::spawn_blocking(move || {
            let found = check(&mut file)?;
            file.sync_all()?;
            Ok::<T, Error>(found)
        })
        .await??;
        let path = self.path(&sha256)?;
        let placed = Arc::clone(&self.placing).read_owned().await;
        tokio::task::spawn_blocking(move || part.place(&path)).await??;
        Ok((Stored { sha256, bytes, _placed: placed }, found))
    }

    /// Opens a blob to read.
    pub async fn open(&self, sha256: &str) -> Result<tokio::fs::File> {
        Ok(tokio::fs::File::open(self.path(sha256)?).await?)
    }

    /// Waits until no upload is between its file and its row, and keeps new ones waiting. Take it *before* the unit
    /// that removes rows, and keep it until [`Blobs::remove`] is done; never ask for it inside a unit.
    pub async fn alone(&self) -> Alone {
        Alone { _alone: Arc::clone(&self.placing).write_owned().await }
    }

    /// Removes a blob and its thumbnails; nothing happens where there is none.
    pub async fn remove(&self, _alone: &Alone, sha256: &str) -> Result<()> {
        let mut paths = vec![self.path(sha256)?];
        for size in thumbnail::SIZES {
            for extension in thumbnail::EXTENSIONS {
                paths.push(self.thumbnail_path(sha256, size, extension)?);
            }
        }
        for path in paths {
            match tokio::fs::remove_file(path).await {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, sha256: &str) -> Result<PathBuf> {
        Ok(self.folder.join(shard(sha256)?).join(sha256))
    }

    fn thumbnail_path(&self, sha256: &str, size: thumbnail::Size, extension: &str) -> Result<PathBuf> {
        let name = format!("{sha256}-{}x{}.{extension}", size.width, size.height);
        Ok(self.folder.join("thumbs").join(shard(sha256)?).join(name))
    }

    fn part(&self) -> Result<Part> {
        let folder = self.folder.join("tmp");
        crate::files::private_folder(&folder)?;
        Ok(Part { path: folder.join(crate::clock::random_token(24)), placed: false })
    }

    async fn receive(
        &self,
        mut body: Body,
        limits: UploadLimits,
    ) -> Result<(Part, std::fs::File, String, u64)> {
        let part = self.part()?;
        let mut file = tokio::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part.path)
            .await?;
        let mut hasher = Sha256::new();
        let mut bytes = 0_u64;
        while let Some(frame) =
            tokio::time::timeout(limits.idle, body.frame()).await.map_err(|_| too_slow())?
        {
            let frame = frame.map_err(|_| refuse(Code::InvalidParam, "The upload broke off."))?;
            let Ok(data) = frame.into_data() else { continue };
            bytes += data.len() as u64;
            if bytes > limits.bytes_max {
                return Err(too_large(limits.bytes_max));
            }
            hasher.update(&data);
            file.write_all(&data).await?;
        }
        file.flush().await?;
        let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((part, file.into_std().await, sha256, bytes))
    }
}

/// The refusal of an upload that is too large.
pub fn too_large(bytes_max: u64) -> Error {
    refuse(
        Code::TooLarge,
        format!(
            "ファイルが大きすぎます（{}MBまで）。(The file is too large: at most {bytes_max} bytes.)",
            bytes_max >> 20
        ),
    )
}

fn too_slow() -> Error {
    refuse(Code::TooLarge, "The upload took too long: please try again.")
}

/// The folder of a blob within the folder; also the check that this is a SHA-256 and no path.
fn shard(sha256: &str) -> Result<&str> {
    if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Error::internal("a blob's name is not a SHA-256"));
    }
    Ok(&sha256[..2])
}

/// A file in the making, removed if it does not get to its place.
struct Part {
    path: PathBuf,
    placed: bool,
}

impl Part {
    /// Renames the file, which is synced, and syncs its folder, so that the name survives a power cut too.
    fn place(mut self, path: &Path) -> Result<()> {
        let folder = path.parent().ok_or_else(|| Error::internal("a blob without a folder"))?;
        let fresh = !folder.is_dir();
        crate::files::private_folder(folder)?;
        std::fs::rename(&self.path, path)?;
        self.placed = true;
        std::fs::File::open(folder)?.sync_all()?;
        if let (true, Some(above)) = (fresh, folder.parent()) {
            std::fs::File::open(above)?.sync_all()?;
        }
        Ok(())
    }

    /// Writes a small file at once.
    fn write(self, content: &[u8], path: &Path) -> Result<()> {
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?;
        file.write_all(content)?;
        file.sync_data()?;
        self.place(path)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.placed {
            // What cannot be removed now is removed at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Refuses an upload beyond what an account, or the server, keeps (client-server API, `POST /upload`: 403 at a quota).
pub async fn check_quota(
    conn: &mut Conn,
    limits: &crate::config::Limits,
    user_id: &str,
    new: Option<(&str, u64)>,
) -> Result<()> {
    let number = |n: i64| u64::try_from(n).unwrap_or_default();
    let (sha256, bytes) = new.unwrap_or(("", 1));
    let own = limits.media_bytes_per_account;
    if own > 0 && number(store::media::bytes_of(conn, user_id).await?) + bytes > own {
        return Err(forbidden(
            "この利用者IDで保存できるファイルの合計を超えます。不要な投稿を削除するか、市に問い合わせてください。\
             (The quota for uploads of this account is used up.)",
        ));
    }
    if limits.media_bytes_in_all > 0 {
        let (sum, known) = store::media::bytes_in_all(conn, sha256).await?;
        if number(sum) + if known { 0 } else { bytes } > limits.media_bytes_in_all {
            tracing::warn!("an upload was refused: limits.media_bytes_in_all is used up");
            return Err(forbidden(
                "サーバーに保存できるファイルの合計を超えます。市に問い合わせてください。\
                 (The server's quota for uploads is used up.)",
            ));
        }
    }
    Ok(())
}

/// Forgets media that no event has shown for 24 hours, and removes the blobs that nothing else uses. To be called now
/// and then. With encryption allowed nothing is forgotten: encrypted events hide what they show.
pub async fn expire_unlinked(server: &Arc<Server>) -> Result<usize> {
    server
        .commit(Hint::default(), |batch| {
            Box::pin(async move {
                let now = batch.now;
                store::media::expire_pending(batch.sql().await?, now).await
            })
        })
        .await?;
    if server.config.policy.encryption == Encryption::Allowed {
        return Ok(0);
    }
    let mut total = 0;
    loop {
        let alone = server.blobs.alone().await;
        let (forgotten, blobs) = server
            .commit(Hint::default(), |batch| {
                Box::pin(async move {
                    let before = batch.now - UNLINKED_MS;
                    let conn = batch.sql().await?;
                    let ids = store::media::unlinked(conn, before, FORGET_CHUNK).await?;
                    let mut blobs = Vec::new();
                    for id in &ids {
                        blobs.extend(store::media::delete(conn, id).await?);
                    }
                    Ok((ids.len(), blobs))
                })
            })
            .await?;
        for sha256 in &blobs {
            server.blobs.remove(&alone, sha256).await?;
        }
        total += forgotten;
        if i64::try_from(forgotten).unwrap_or(i64::MAX) < FORGET_CHUNK {
            return Ok(total);
        }
    }
}

/// Removes the file of an upload that was refused at the end, where no other medium is of the same bytes.
pub async fn drop_unused(server: &Arc<Server>, sha256: &str) -> Result<()> {
    let alone = server.blobs.alone().await;
    let asked = sha256.to_owned();
    let used = server
        .commit(Hint::default(), |batch| {
            Box::pin(async move { store::media::is_blob(batch.reading(), &asked).await })
        })
        .await?;
    if used { Ok(()) } else { server.blobs.remove(&alone, sha256).await }
}

/// Removes files that the database does not know: what a crash between a file and its row, or between a row's end and
/// its file's, left behind. To be called at the start.
pub async fn remove_orphans(server: &Arc<Server>) -> Result<usize> {
    let alone = server.blobs.alone().await;
    // Asked in a unit: it comes after any unit of an upload whose caller has gone away.
    let known = server
        .commit(Hint::default(), |batch| Box::pin(async move { store::media::blobs(batch.reading()).await }))
        .await?;
    let known: HashSet<String> = known.into_iter().map(|(sha256, _)| sha256).collect();
    let folder = server.blobs.folder.clone();
    let removed = tokio::task::spawn_blocking(move || {
        Ok::<usize, Error>(sweep(&folder, &known)? + sweep(&folder.join("thumbs"), &known)?)
    })
    .await??;
    drop(alone);
    Ok(removed)
}

/// Removes the files in `<folder>/??/` whose names do not begin with a known SHA-256.
fn sweep(folder: &Path, known: &HashSet<String>) -> std::io::Result<usize> {
    let mut removed = 0;
    if !folder.is_dir() {
        return Ok(0);
    }
    for shard in std::fs::read_dir(folder)? {
        let shard = shard?;
        if shard.file_name().len() != 2 || !shard.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(shard.path())? {
            let file = file?;
            let name = file.file_name();
            let sha256 = name.to_str().and_then(|name| name.get(..64));
            if sha256.is_some_and(|sha256| !known.contains(sha256)) {
                std::fs::remove_file(file.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use bytes::Bytes;
    use hyper::body::Frame;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const LIMITS: UploadLimits =
        UploadLimits { bytes_max: 100, idle: Duration::from_secs(10), total: Duration::from_secs(10) };
    /// SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// A folder that is removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("heya-media-{}", crate::clock::random_token(12)));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn unfinished(&self) -> usize {
            std::fs::read_dir(self.0.join("tmp")).map_or(0, Iterator::count)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A body of which nothing ever comes.
    struct Silence;

    impl hyper::body::Body for Silence {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Pending
        }
    }

    async fn put(blobs: &Blobs, text: &'static str) -> Result<Stored> {
        blobs.put_stream(Body::from(text), LIMITS, |_| Ok(())).await.map(|(stored, ())| stored)
    }

    #[tokio::test]
    async fn a_blob_is_stored_once_read_and_removed() {
        let folder = Folder::new();
        let blobs = Blobs::new(folder.0.clone());
        let stored = put(&blobs, "abc").await.unwrap();
        assert_eq!((stored.sha256.as_str(), stored.bytes), (ABC, 3));
        drop(put(&blobs, "abc").await.unwrap());
        drop(stored);
        assert_eq!(std::fs::read_dir(folder.0.join("ba")).unwrap().count(), 1);
        assert_eq!(folder.unfinished(), 0);
        let mut text = String::new();
        blobs.open(ABC).await.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abc");
        let alone = blobs.alone().await;
        blobs.remove(&alone, ABC).await.unwrap();
        blobs.remove(&alone, ABC).await.unwrap();
        assert!(blobs.open(ABC).await.is_err());
    }

    #[tokio::test]
    async fn what_is_refused_leaves_nothing() {
        let folder = Folder::new();
        let blobs = Blobs::new(folder.0.clone());
        let code = |result: Result<(Stored, ())>| result.err().and_then(|error| error.code());

        let small = UploadLimits { bytes_max: 2, ..LIMITS };
        assert_eq!(code(blobs.put_stream(Body::from("abc"), small, |_| Ok(())).await), Some(Code::TooLarge));
        let refused =
            blobs.put_stream(Body::from("abc"), LIMITS, |_| Err(crate::error::forbidden("no"))).await;
        assert_eq!(code(refused), Some(Code::Forbidden));
        let hasty = UploadLimits { idle: Duration::from_millis(1), ..LIMITS };
        assert_eq!(code(blobs.put_stream(Body::new(Silence), hasty, |_| Ok(())).await), Some(Code::TooLarge));
        assert_eq!(folder.unfinished(), 0);
        assert!(blobs.open(ABC).await.is_err());
    }

    #[tokio::test]
    async fn nothing_is_removed_while_an_upload_waits_for_its_row() {
        let folder = Folder::new();
        let blobs = Blobs::new(folder.0.clone());
        let stored = put(&blobs, "abc").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(1), blobs.alone()).await.is_err());
        drop(stored);
        drop(blobs.alone().await);
    }

    #[tokio::test]
    async fn orphans_are_swept() {
        let folder = Folder::new();
        let blobs = Blobs::new(folder.0.clone());
        drop(put(&blobs, "abc").await.unwrap());
        drop(put(&blobs, "another").await.unwrap());
        assert_eq!(sweep(&folder.0, &HashSet::from([ABC.to_owned()])).unwrap(), 1);
        assert!(blobs.open(ABC).await.is_ok());
        assert_eq!(sweep(&folder.0.join("thumbs"), &HashSet::new()).unwrap(), 0);
    }

    #[test]
    fn only_a_hash_names_a_blob() {
        for bad in ["", "../../etc/passwd", &ABC.to_uppercase(), &ABC[..63]] {
            assert!(shard(bad).is_err());
        }
        assert_eq!(shard(ABC).unwrap(), "ba");
    }
}
