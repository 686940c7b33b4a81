//! Media: what was uploaded, which blob holds it, which events show it.

use super::{
    Conn, all, one, run,
    script::{Script, queue_many},
};
use crate::error::Result;

/// An uploaded medium.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Medium {
    /// The media id of its mxc URI.
    pub media_id: String,
    /// The uploader.
    pub user_id: String,
    /// The blob.
    pub sha256: String,
    /// The content type, as sniffed or declared.
    pub content_type: String,
    /// The file name.
    pub file_name: Option<String>,
    /// Size.
    pub bytes: i64,
}

/// Records an upload.
pub async fn insert(conn: &mut Conn, medium: &Medium, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO blobs (sha256, bytes, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        &medium.sha256,
        medium.bytes,
        now
    )?;
    run!(
        conn,
        "INSERT INTO media (media_id, user_id, sha256, content_type, file_name, bytes, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &medium.media_id,
        &medium.user_id,
        &medium.sha256,
        &medium.content_type,
        &medium.file_name,
        medium.bytes,
        now
    )?;
    Ok(())
}

/// A media id that waits for its content: (whose, until when).
pub async fn pending(conn: &mut Conn, media_id: &str) -> Result<Option<(String, i64)>> {
    one!(conn, (String, i64), "SELECT user_id, expires_at FROM media_pending WHERE media_id = $1", media_id)
}

/// How many media ids of a user wait for their content.
pub async fn pending_of(conn: &mut Conn, user_id: &str, now: i64) -> Result<i64> {
    Ok(one!(
        conn,
        (i64,),
        "SELECT COUNT(*) FROM media_pending WHERE user_id = $1 AND expires_at > $2",
        user_id,
        now
    )?
    .map_or(0, |(n,)| n))
}

/// Gives out a media id that waits for its content.
pub async fn put_pending(
    conn: &mut Conn,
    media_id: &str,
    user_id: &str,
    now: i64,
    expires_at: i64,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO media_pending (media_id, user_id, created_at, expires_at) VALUES ($1, $2, $3, $4)",
        media_id,
        user_id,
        now,
        expires_at
    )?;
    Ok(())
}

/// The content of a waiting media id has come; false where it waits no more.
pub async fn take_pending(conn: &mut Conn, media_id: &str, now: i64) -> Result<bool> {
    Ok(run!(conn, "DELETE FROM media_pending WHERE media_id = $1 AND expires_at > $2", media_id, now)? == 1)
}

/// Forgets media ids whose content did not come, with the links that events have made to them.
pub async fn expire_pending(conn: &mut Conn, now: i64) -> Result<()> {
    run!(
        conn,
        "DELETE FROM media_links WHERE media_id IN (SELECT media_id FROM media_pending WHERE expires_at <= $1)",
        now
    )?;
    run!(conn, "DELETE FROM media_pending WHERE expires_at <= $1", now)?;
    Ok(())
}

/// Bytes of all media of a user.
pub async fn bytes_of(conn: &mut Conn, user_id: &str) -> Result<i64> {
    Ok(one!(
        conn,
        (i64,),
        "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM media WHERE user_id = $1",
        user_id
    )?
    .map_or(0, |(n,)| n))
}

/// Bytes of all blobs, and whether this one is among them.
pub async fn bytes_in_all(conn: &mut Conn, sha256: &str) -> Result<(i64, bool)> {
    let sum =
        one!(conn, (i64,), "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM blobs")?.map_or(0, |(n,)| n);
    Ok((sum, is_blob(conn, sha256).await?))
}

/// Whether a medium is of these bytes.
pub async fn is_blob(conn: &mut Conn, sha256: &str) -> Result<bool> {
    Ok(one!(conn, (i64,), "SELECT bytes FROM blobs WHERE sha256 = $1", sha256)?.is_some())
}

/// A medium by its id.
pub async fn medium(conn: &mut Conn, media_id: &str) -> Result<Option<Medium>> {
    one!(
        conn,
        Medium,
        "SELECT media_id, user_id, sha256, content_type, file_name, bytes FROM media WHERE media_id = $1",
        media_id
    )
}

/// Where a medium is shown: (room or "", event or "").
pub async fn links(conn: &mut Conn, media_id: &str) -> Result<Vec<(String, String)>> {
    all!(conn, (String, String), "SELECT room_id, event_id FROM media_links WHERE media_id = $1", media_id)
}

/// The media that an event shows.
pub async fn of_event(conn: &mut Conn, event_id: &str) -> Result<Vec<String>> {
    Ok(all!(conn, (String,), "SELECT media_id FROM media_links WHERE event_id = $1", event_id)?
        .into_iter()
        .map(|(id,)| id)
        .collect())
}

/// Takes the link of a medium to an event away.
pub async fn unlink(conn: &mut Conn, media_id: &str, event_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM media_links WHERE media_id = $1 AND event_id = $2", media_id, event_id)?;
    Ok(())
}

/// Links media to events.
pub(crate) fn write_links(script: &mut Script, links: &[(String, String, String)]) {
    queue_many!(
        script,
        "INSERT INTO media_links (media_id, room_id, event_id) ",
        links,
        |b, row| {
            b.push_bind(&row.0).push_bind(&row.1).push_bind(&row.2);
        },
        " ON CONFLICT DO NOTHING"
    );
}

/// Media that no event shows and that are older than a time.
pub async fn unlinked(conn: &mut Conn, before_ms: i64, limit: i64) -> Result<Vec<String>> {
    Ok(all!(
        conn,
        (String,),
        "SELECT media_id FROM media WHERE created_at < $1 \
         AND NOT EXISTS (SELECT 1 FROM media_links l WHERE l.media_id = media.media_id) LIMIT $2",
        before_ms,
        limit
    )?
    .into_iter()
    .map(|(id,)| id)
    .collect())
}

/// How many media of a user no event shows.
pub async fn unlinked_of(conn: &mut Conn, user_id: &str) -> Result<i64> {
    Ok(one!(
        conn,
        (i64,),
        "SELECT COUNT(*) FROM media WHERE user_id = $1 \
         AND NOT EXISTS (SELECT 1 FROM media_links l WHERE l.media_id = media.media_id)",
        user_id
    )?
    .map_or(0, |(n,)| n))
}

/// Forgets a medium; returns its blob where nothing else uses it any more.
pub async fn delete(conn: &mut Conn, media_id: &str) -> Result<Option<String>> {
    let Some(medium) = medium(conn, media_id).await? else { return Ok(None) };
    run!(conn, "DELETE FROM media WHERE media_id = $1", media_id)?;
    run!(conn, "DELETE FROM media_links WHERE media_id = $1", media_id)?;
    let gone = run!(
        conn,
        "DELETE FROM blobs WHERE sha256 = $1 AND NOT EXISTS (SELECT 1 FROM media m WHERE m.sha256 = $1)",
        &medium.sha256
    )?;
    Ok((gone > 0).then_some(medium.sha256))
}

/// All blobs, with their sizes: for backup and its check.
pub async fn blobs(conn: &mut Conn) -> Result<Vec<(String, i64)>> {
    all!(conn, (String, i64), "SELECT sha256, bytes FROM blobs ORDER BY sha256")
}

/// A medium is its uploader's picture no more.
pub async fn unlink_picture(conn: &mut Conn, media_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM media_links WHERE media_id = $1 AND room_id = '' AND event_id = ''", media_id)?;
    Ok(())
}

/// Forgets a blob and all media of it: a restore's, where the file was gone before the backup had copied it.
pub async fn forget_blob(conn: &mut Conn, sha256: &str) -> Result<()> {
    run!(
        conn,
        "DELETE FROM media_links WHERE media_id IN (SELECT media_id FROM media WHERE sha256 = $1)",
        sha256
    )?;
    run!(conn, "DELETE FROM media WHERE sha256 = $1", sha256)?;
    run!(conn, "DELETE FROM blobs WHERE sha256 = $1", sha256)?;
    Ok(())
}
