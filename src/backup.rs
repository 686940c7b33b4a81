//! Backup and restore (DESIGN 20): the database first, then the blobs that it names, so that every blob of the
//! snapshot is there; keys apart. A restore begins a new epoch (tokens of before are foreign) and drops one-time keys,
//! which must never be handed out twice.
//!
//! On PostgreSQL the database itself is the office's `pg_dump`; `heya backup` then writes everything else.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    audit::hex,
    config::Config,
    error::{Error, Result},
    store::{self, Db},
};

/// What stands in `manifest.json`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// The server's name.
    pub server_name: String,
    /// Newest position in the snapshot.
    pub position: i64,
    /// Number of blobs.
    pub blobs: usize,
    /// SHA-256 of the database files, by name.
    pub databases: std::collections::BTreeMap<String, String>,
}

/// The databases in a data folder: the server's, the bot's, the bridge's.
const DATABASES: [&str; 3] = ["heya.sqlite", "city.sqlite", "mail.sqlite"];

/// Writes a backup into a new folder.
pub async fn write(config: &Config, folder: &Path) -> Result<Manifest> {
    if folder.exists() {
        return Err(Error::internal(format!("{} exists already", folder.display())));
    }
    let part = folder.with_extension("part");
    if part.exists() {
        std::fs::remove_dir_all(&part)?;
    }
    let written = write_part(config, &part).await;
    match &written {
        Ok(_) => std::fs::rename(&part, folder)?,
        // Half a backup would be taken for one.
        Err(_) => {
            let _ = std::fs::remove_dir_all(&part);
        }
    }
    written
}

async fn write_part(config: &Config, part: &Path) -> Result<Manifest> {
    let data = &config.server.data_dir;
    let db = Db::open_existing(&config.server.database_url, data).await?;
    crate::files::private_folder(part)?;
    // Before the database: entries written in between would look like a cut-off log after a restore.
    let heads = data.join("audit").join("heads");
    if heads.exists() {
        copy(&heads, &part.join("audit").join("heads"))?;
    }
    let mut databases = std::collections::BTreeMap::new();
    let mut position = 0;
    for name in DATABASES {
        let to = part.join(name);
        let written = if name == "heya.sqlite" {
            db.snapshot(&to).await?
        } else {
            let from = data.join(name);
            from.exists() && Db::copy_sqlite(&from, &to).await?
        };
        if written {
            databases.insert(name.to_owned(), hash(&to)?);
        }
    }
    // What the snapshot names, not what the live database names a moment later.
    let source = if databases.contains_key("heya.sqlite") {
        Db::open(&format!("sqlite:{}", part.join("heya.sqlite").display()), part).await?
    } else {
        db
    };
    let mut conn = source.read().await?;
    let server_name = store::meta::value(&mut conn, "server_name").await?.unwrap_or_default();
    position += store::meta::position(&mut conn).await?;
    let blobs = store::media::blobs(&mut conn).await?;
    drop(conn);
    source.close().await;
    for rest in ["heya.sqlite-wal", "heya.sqlite-shm"] {
        let _ = std::fs::remove_file(part.join(rest));
    }
    if databases.contains_key("heya.sqlite") {
        databases.insert("heya.sqlite".to_owned(), hash(&part.join("heya.sqlite"))?);
    }
    for (sha256, _) in &blobs {
        let name = Path::new("media").join(&sha256[..2]).join(sha256);
        copy(&data.join(&name), &part.join(&name))?;
        if hash(&part.join(&name))? != *sha256 {
            return Err(Error::internal(format!("the medium {sha256} is damaged on the disk")));
        }
    }
    // The only papers that a purge leaves.
    copy_tree(&data.join("certificates"), &part.join("certificates"))?;
    let manifest = Manifest { server_name, position, blobs: blobs.len(), databases };
    crate::files::write_private(
        &part.join("manifest.json"),
        serde_json::to_string_pretty(&manifest)?.as_bytes(),
    )?;
    Ok(manifest)
}

/// Puts a backup back into a data folder without a database. Everything is checked before anything is written.
pub async fn restore(config: &Config, folder: &Path) -> Result<Manifest> {
    let manifest: Manifest = serde_json::from_slice(
        &std::fs::read(folder.join("manifest.json"))
            .map_err(|error| Error::internal(format!("{} is no backup: {error}", folder.display())))?,
    )?;
    let data = &config.server.data_dir;
    for name in DATABASES {
        if data.join(name).exists() {
            return Err(Error::internal(format!(
                "{} exists: a backup goes into a data folder without databases",
                data.join(name).display()
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
    for (name, expected) in &manifest.databases {
        if !DATABASES.contains(&name.as_str()) || hash(&folder.join(name))? != *expected {
            return Err(Error::internal(format!("{name} in the backup is damaged")));
        }
    }
    crate::files::private_folder(data)?;
    let _lock = crate::files::lock(&data.join("lock"))?;
    copy_tree(&folder.join("media"), &data.join("media"))?;
    copy_tree(&folder.join("certificates"), &data.join("certificates"))?;
    let heads = folder.join("audit").join("heads");
    if heads.exists() {
        copy(&heads, &data.join("audit").join("heads"))?;
    }
    for name in manifest.databases.keys() {
        copy(&folder.join(name), &data.join(name))?;
    }
    let db = Db::open(&config.server.database_url, data).await?;
    let mut conn = db.writer().await?;
    conn.begin().await?;
    store::meta::set(&mut conn, "epoch", &crate::clock::random_token(8)).await?;
    store::run!(&mut conn, "DELETE FROM one_time_keys")?;
    store::run!(&mut conn, "COMMIT")?;
    drop(conn);
    db.close().await;
    Ok(manifest)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        crate::files::private_folder(folder)?;
    }
    std::fs::copy(from, to).map_err(|error| Error::internal(format!("{}: {error}", from.display())))?;
    std::fs::File::open(to)?.sync_all()?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
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
