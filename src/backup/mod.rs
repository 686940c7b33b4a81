//! Backup and restore (DESIGN 20): the database first, then the blobs that it names, so that every blob of the
//! snapshot is there; keys apart. A restore begins a new epoch (tokens of before are foreign) and drops one-time keys,
//! which must never be handed out twice; it counts what it has put back (REQUIREMENTS C29).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    audit::{self, Verdict, hex},
    config::Config,
    error::{Error, Result},
    store::{self, Db},
};

pub mod generations;
mod postgres;

/// What stands in `manifest.json`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// The server's name.
    pub server_name: String,
    /// When it was written, in milliseconds since 1970.
    #[serde(default)]
    pub written_at: i64,
    /// Newest position in the snapshot.
    pub position: i64,
    /// Number of blobs.
    pub blobs: usize,
    /// Blobs that were deleted while the backup was being written (a purge, a medium that nobody showed): the snapshot names
    /// them still, and a restore takes them out.
    #[serde(default)]
    pub gone: Vec<String>,
    /// SHA-256 of the database files, by name.
    pub databases: BTreeMap<String, String>,
    /// How many rows the snapshot has, by table.
    #[serde(default)]
    pub rows: BTreeMap<String, i64>,
    /// Number and hash of the audit log's newest entry in the snapshot.
    #[serde(default)]
    pub audit: Option<(i64, String)>,
}

impl Manifest {
    /// Reads a backup's.
    pub fn read(folder: &Path) -> Result<Self> {
        let text = std::fs::read(folder.join("manifest.json"))
            .map_err(|error| Error::internal(format!("{} is no backup: {error}", folder.display())))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// What a restore has put back.
#[derive(Debug)]
pub struct Restored {
    /// The backup's manifest, which the restored city fits.
    pub manifest: Manifest,
    /// What the audit log's chain proves.
    pub audit: Verdict,
}

/// The server's database in a backup: SQLite's file, or PostgreSQL's dump.
const SQLITE: &str = "heya.sqlite";
const POSTGRES: &str = "heya.pgdump";
/// The bot's and the bridge's databases, in the data folder and in a backup.
const BESIDE: [&str; 2] = ["city.sqlite", "mail.sqlite"];
/// Other folders of the data folder that go with it: the papers that a purge leaves, and rooms written out, which may be
/// all that is left of a purged room. Not `sheets/` (initial passwords) and `keys/`.
const FOLDERS: [&str; 2] = ["certificates", "exports"];

/// Writes a backup into a new folder.
pub async fn write(config: &Config, folder: &Path, now: i64) -> Result<Manifest> {
    write_beside(config, folder, None, now).await
}

/// Writes a backup into a new folder. What media it has in common with `former`, it shares with it on the disk.
async fn write_beside(config: &Config, folder: &Path, former: Option<&Path>, now: i64) -> Result<Manifest> {
    if folder.exists() {
        return Err(Error::internal(format!("{} exists already", folder.display())));
    }
    // Without a slash at the end, which would put the part into the folder.
    let folder: &Path = &folder.components().collect::<PathBuf>();
    let mut part = folder.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    if part.exists() {
        std::fs::remove_dir_all(&part)?;
    }
    let written = write_part(config, &part, former, now).await;
    match &written {
        Ok(_) => {
            std::fs::rename(&part, folder)?;
            if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                std::fs::File::open(parent)?.sync_all()?;
            }
        }
        // Half a backup would be taken for one.
        Err(_) => {
            let _ = std::fs::remove_dir_all(&part);
        }
    }
    written
}

async fn open(config: &Config) -> Result<Db> {
    Db::open_existing(&config.server.database_url, &config.server.data_dir).await
}

async fn write_part(config: &Config, part: &Path, former: Option<&Path>, now: i64) -> Result<Manifest> {
    let data = &config.server.data_dir;
    let db = open(config).await?;
    crate::files::private_folder(part)?;
    // Before the database: entries written in between would look like a cut-off log after a restore.
    let heads = data.join("audit").join("heads");
    if heads.exists() {
        copy(&heads, &part.join("audit").join("heads"))?;
    }
    let mut databases = BTreeMap::new();
    // What is counted is the snapshot, not what the live database has a moment later.
    let (named, blobs) = if db.snapshot(&part.join(SQLITE)).await? {
        db.close().await;
        let copied = Db::open(&format!("sqlite:{}", part.join(SQLITE).display()), part).await?;
        let named = Snapshot::read(&mut copied.read().await?).await?;
        copied.close().await;
        for rest in ["heya.sqlite-wal", "heya.sqlite-shm"] {
            let _ = std::fs::remove_file(part.join(rest));
        }
        databases.insert(SQLITE.to_owned(), hash(&part.join(SQLITE))?);
        named
    } else {
        let mut conn = db.read().await?;
        let snapshot = conn.export_snapshot().await?;
        postgres::dump(&config.server.database_url, &snapshot, &part.join(POSTGRES)).await?;
        databases.insert(POSTGRES.to_owned(), hash(&part.join(POSTGRES))?);
        let named = Snapshot::read(&mut conn).await?;
        store::run!(&mut conn, "COMMIT")?;
        drop(conn);
        db.close().await;
        named
    };
    for name in BESIDE {
        let (from, to) = (data.join(name), part.join(name));
        if from.exists() && Db::copy_sqlite(&from, &to).await? {
            databases.insert(name.to_owned(), hash(&to)?);
        }
    }
    let mut gone = Vec::new();
    for (sha256, _) in &blobs {
        let name = Path::new("media").join(&sha256[..2]).join(sha256);
        let to = part.join(&name);
        // A medium never changes: generations share it.
        if let Some(former) = former
            && let Some(folder) = to.parent()
        {
            crate::files::private_folder(folder)?;
            if std::fs::hard_link(former.join(&name), &to).is_ok() && hash(&to)? == *sha256 {
                continue;
            }
            let _ = std::fs::remove_file(&to);
        }
        if !data.join(&name).exists() && !is_named_now(config, sha256).await? {
            gone.push(sha256.clone());
            continue;
        }
        copy(&data.join(&name), &to)?;
        if hash(&to)? != *sha256 {
            return Err(Error::internal(format!("the medium {sha256} is damaged on the disk")));
        }
    }
    for name in FOLDERS {
        copy_tree(&data.join(name), &part.join(name))?;
    }
    let Snapshot { server_name, position, rows, audit } = named;
    let manifest =
        Manifest { server_name, written_at: now, position, blobs: blobs.len(), gone, databases, rows, audit };
    crate::files::write_private(
        &part.join("manifest.json"),
        serde_json::to_string_pretty(&manifest)?.as_bytes(),
    )?;
    Ok(manifest)
}

/// Whether the live database still names a blob.
async fn is_named_now(config: &Config, sha256: &str) -> Result<bool> {
    let db = open(config).await?;
    let named = store::media::is_blob(&mut db.read().await?, sha256).await;
    db.close().await;
    named
}

/// What a database has, to be compared.
#[derive(PartialEq)]
struct Snapshot {
    server_name: String,
    position: i64,
    rows: BTreeMap<String, i64>,
    audit: Option<(i64, String)>,
}

impl Snapshot {
    /// Reads it, and the media that are named.
    async fn read(conn: &mut store::Conn) -> Result<(Self, Vec<(String, i64)>)> {
        let read = Self {
            server_name: store::meta::value(conn, "server_name").await?.unwrap_or_default(),
            position: store::meta::position(conn).await?,
            rows: store::meta::counts(conn).await?,
            audit: store::audit::newest(conn).await?,
        };
        Ok((read, store::media::blobs(conn).await?))
    }
}

/// Puts a backup back into a data folder without a database. Everything is checked before anything is written, and counted
/// afterwards.
pub async fn restore(config: &Config, folder: &Path) -> Result<Restored> {
    let manifest = Manifest::read(folder)?;
    let data = &config.server.data_dir;
    let url = &config.server.database_url;
    let file = Db::sqlite_file(url, data);
    for path in BESIDE.iter().map(|name| data.join(name)).chain(file.clone()) {
        if path.exists() {
            return Err(Error::internal(format!(
                "{} exists: a backup goes into a data folder without databases",
                path.display()
            )));
        }
    }
    if manifest.server_name != config.server_name() {
        return Err(Error::internal(format!(
            "the backup is of the server {}; config.toml says {}",
            manifest.server_name,
            config.server_name()
        )));
    }
    let (own, other) = if file.is_some() { (SQLITE, POSTGRES) } else { (POSTGRES, SQLITE) };
    if manifest.databases.contains_key(other) {
        return Err(Error::internal(format!(
            "the backup has {other}, and server.database_url names the other kind of database: a backup goes back into \
             the kind that it was made of"
        )));
    }
    for (name, expected) in &manifest.databases {
        let known = name == own || BESIDE.contains(&name.as_str());
        if !known || hash(&folder.join(name))? != *expected {
            return Err(Error::internal(format!("{name} in the backup is damaged")));
        }
    }
    check_media(&folder.join("media"), manifest.blobs.saturating_sub(manifest.gone.len()))?;
    crate::files::private_folder(data)?;
    let _lock = crate::files::lock(&data.join("lock"))?;
    if own == POSTGRES && manifest.databases.contains_key(POSTGRES) {
        if !store::is_empty_postgres(url).await? {
            return Err(Error::internal(
                "the PostgreSQL database has tables: a backup goes into an empty one (空のデータベースを作ってください)",
            ));
        }
        // First: it is loaded whole or not at all, and then the same command may be given again.
        postgres::load(url, &folder.join(POSTGRES)).await?;
    }
    copy_tree(&folder.join("media"), &data.join("media"))?;
    for name in FOLDERS {
        copy_tree(&folder.join(name), &data.join(name))?;
    }
    let heads = folder.join("audit").join("heads");
    if heads.exists() {
        copy(&heads, &data.join("audit").join("heads"))?;
    }
    for name in manifest.databases.keys().filter(|name| *name != POSTGRES) {
        let to = if name == SQLITE { file.clone() } else { None };
        copy(&folder.join(name), &to.unwrap_or_else(|| data.join(name)))?;
    }
    let db = Db::open(url, data).await?;
    compare(&db, &manifest).await?;
    let mut conn = db.writer().await?;
    conn.begin().await?;
    store::meta::set(&mut conn, "epoch", &crate::clock::random_token(8)).await?;
    store::run!(&mut conn, "DELETE FROM one_time_keys")?;
    for sha256 in &manifest.gone {
        store::media::forget_blob(&mut conn, sha256).await?;
    }
    store::run!(&mut conn, "COMMIT")?;
    drop(conn);
    let audit = audit::verify(&db, &data.join("audit").join("heads")).await?;
    db.close().await;
    Ok(Restored { manifest, audit })
}

/// Whether the restored database has what the backup's had.
async fn compare(db: &Db, manifest: &Manifest) -> Result<()> {
    // A backup by an older Heya counts nothing.
    if manifest.rows.is_empty() {
        return Ok(());
    }
    let (found, blobs) = Snapshot::read(&mut db.read().await?).await?;
    let expected = Snapshot {
        server_name: manifest.server_name.clone(),
        position: manifest.position,
        rows: manifest.rows.clone(),
        audit: manifest.audit.clone(),
    };
    if found == expected && blobs.len() == manifest.blobs {
        return Ok(());
    }
    let differing: Vec<&str> = expected
        .rows
        .iter()
        .filter(|(table, rows)| found.rows.get(*table) != Some(rows))
        .map(|(table, _)| table.as_str())
        .collect();
    Err(Error::internal(format!(
        "the restored database is not what was backed up (position {} of {}; tables that differ: {})",
        found.position,
        expected.position,
        differing.join(", ")
    )))
}

/// A medium's name is its hash.
fn check_media(media: &Path, expected: usize) -> Result<()> {
    let mut found = 0;
    if media.exists() {
        for folder in std::fs::read_dir(media)? {
            for entry in std::fs::read_dir(folder?.path())? {
                let path = entry?.path();
                if path.file_name().is_none_or(|name| hash(&path).map_or(true, |hash| name != hash.as_str()))
                {
                    return Err(Error::internal(format!("{} in the backup is damaged", path.display())));
                }
                found += 1;
            }
        }
    }
    if found == expected {
        return Ok(());
    }
    Err(Error::internal(format!("the backup has {found} media; its manifest names {expected}")))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        crate::files::private_folder(folder)?;
    }
    std::fs::copy(from, to).map_err(|error| Error::internal(format!("{}: {error}", from.display())))?;
    std::fs::File::open(to)?.sync_all()?;
    Ok(())
}

/// Copies a folder, without what is being written in it.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "part") {
            continue;
        }
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}

fn hash(path: &Path) -> Result<String> {
    let mut file =
        std::fs::File::open(path).map_err(|error| Error::internal(format!("{}: {error}", path.display())))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}
