//! Generations: backups that are named by their time, in one folder, of which the newest are kept.

use std::path::{Path, PathBuf};

use super::Manifest;
use crate::{
    config::Config,
    error::{Error, Result},
};

/// How the folders of generations begin; the time in Japan follows.
const PREFIX: &str = "heya-";

/// Writes the next generation, then removes the oldest complete ones beyond `backup.keep`. The folder, what it has, and how
/// many were removed.
pub async fn next(config: &Config, now: i64) -> Result<(PathBuf, Manifest, usize)> {
    let folder = place(config);
    // Nothing is made beside a database that is not there.
    super::open(config).await?.close().await;
    crate::files::private_folder(&folder)?;
    let _lock = crate::files::try_lock(&folder.join("lock"))?.ok_or_else(|| {
        Error::internal("another backup is being written (別のバックアップを書いているところです)")
    })?;
    // What an earlier one left that was killed; with the lock it is nobody's.
    for name in names(&folder)?.into_iter().filter(|name| name.ends_with(".part")) {
        std::fs::remove_dir_all(folder.join(name))?;
    }
    let newest = complete(config, &folder)?.pop().map(|(_, name)| folder.join(name));
    let time = stamp(now);
    let mut free = folder.join(format!("{PREFIX}{time}"));
    let mut n = 1;
    while free.exists() {
        n += 1;
        free = folder.join(format!("{PREFIX}{time}-{n}"));
    }
    let manifest = super::write_beside(config, &free, newest.as_deref(), now).await?;
    let removed = remove_old(config, &folder, &free)?;
    Ok((free, manifest, removed))
}

/// Where generations are.
fn place(config: &Config) -> PathBuf {
    if config.backup.folder.as_os_str().is_empty() {
        config.server.data_dir.join("backups")
    } else {
        config.backup.folder.clone()
    }
}

/// Folders with a generation's name, finished or not.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && entry.file_type()?.is_dir() {
            names.push(name);
        }
    }
    Ok(names)
}

/// The complete generations of this server, the newest last, with when they were written.
fn complete(config: &Config, folder: &Path) -> Result<Vec<(i64, String)>> {
    let mut found = Vec::new();
    for name in names(folder)?.into_iter().filter(|name| !name.ends_with(".part")) {
        // Another server's, and what is no backup, is not ours to remove.
        if let Ok(manifest) = Manifest::read(&folder.join(&name))
            && manifest.server_name == config.server_name()
        {
            found.push((manifest.written_at, name));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn remove_old(config: &Config, folder: &Path, written: &Path) -> Result<usize> {
    let keep = config.backup.keep;
    let all = complete(config, folder)?;
    if keep == 0 || all.len() <= keep {
        return Ok(0);
    }
    let mut removed = 0;
    for (_, name) in &all[..all.len() - keep] {
        let path = folder.join(name);
        // A clock that was set back: what has just been written is the newest all the same.
        if path == written {
            continue;
        }
        // Half a generation must not be taken for one.
        let part = folder.join(format!("{name}.part"));
        std::fs::rename(&path, &part)?;
        std::fs::remove_dir_all(&part)?;
        removed += 1;
    }
    Ok(removed)
}

/// The time in Japan, as a part of a file name: `2026-04-01T031500`.
fn stamp(now: i64) -> String {
    let japan = time::UtcOffset::from_hms(9, 0, 0).unwrap_or(time::UtcOffset::UTC);
    let at = time::OffsetDateTime::from_unix_timestamp(now / 1000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .to_offset(japan);
    format!("{}T{:02}{:02}{:02}", at.date(), at.hour(), at.minute(), at.second())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_stamp_is_the_time_in_japan() {
        assert_eq!(super::stamp(1_775_000_000_000), "2026-04-01T083320");
    }
}
