//! Files that only their owner reads: keys, secrets, handover sheets.

use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use crate::error::{Error, Result};

/// Makes a folder that only its owner enters, or checks that it is one.
pub fn private_folder(path: &Path) -> Result<()> {
    if !path.is_dir() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| Error::internal(format!("cannot make {}: {error}", path.display())))?;
    }
    Ok(())
}

/// Writes a file that only its owner reads: whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let mut file =
        std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&part)?;
    // One that a crash, or somebody, left there may be open to others.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    Ok(())
}

/// Writes a file that everybody may read, in place of what was there: whole or not at all.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let mut file =
        std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o644).open(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    Ok(())
}

/// Takes the lock of a data folder: one server at a time. It goes with the process, however that ends.
pub fn lock(path: &Path) -> Result<std::fs::File> {
    try_lock(path)?.ok_or_else(|| {
        Error::internal(format!("another Heya uses this data folder ({} is locked)", path.display()))
    })
}

/// Takes a lock that is a file; none where another process has it.
pub fn try_lock(path: &Path) -> Result<Option<std::fs::File>> {
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

/// A secret in a file: read, or made with 256 random bits at the first start. A file that others may read is refused.
pub fn secret(path: &Path) -> Result<String> {
    if !path.exists() {
        write_private(path, crate::clock::random_token(43).as_bytes())?;
    }
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Error::internal(format!(
            "{} may be read by others: run chmod 600 on it",
            path.display()
        )));
    }
    let secret = std::fs::read_to_string(path)?.trim().to_owned();
    if secret.len() < 16 {
        return Err(Error::internal(format!(
            "the secret in {} is shorter than 16 characters",
            path.display()
        )));
    }
    Ok(secret)
}
