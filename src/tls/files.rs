//! Reading and writing the files of this module: bounded, private where they must be, and never half written.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::TlsError;

/// Certificates and keys are a few kilobytes; a chain of ten stays far below this.
pub(super) const PEM_BYTES_MAX: u64 = 256 * 1024;

/// Reads a file of at most `bytes_max` bytes.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, TlsError> {
    let file = File::open(path).map_err(file_error(path))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too long" from "just fits", without trusting the file's stated length.
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(file_error(path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(bad_file(path, format!("the file is longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Writes a new file that only its owner can read, durably, or leaves nothing.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    write(path, bytes, 0o600)
}

/// Writes a new file that everyone may read, durably, or leaves nothing.
pub(super) fn write_public(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    write(path, bytes, 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    if path.symlink_metadata().is_ok() {
        return Err(file_error(path)(std::io::ErrorKind::AlreadyExists.into()));
    }
    let temporary = with_suffix(path, ".new");
    // The mode is set at creation: a chmod afterwards would leave a moment in which others can open the file.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    // A leftover of an interrupted start was never in use.
    let _ = fs::remove_file(&temporary);
    let mut file = options.open(&temporary).map_err(file_error(&temporary))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        let _ = fs::remove_file(&temporary);
        return Err(file_error(path)(error));
    }
    if let Some(folder) = path.parent() {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(file_error(folder))?;
    }
    Ok(())
}

/// Makes a folder that only its owner can enter, if it is not there yet.
pub(super) fn private_folder(path: &Path) -> Result<(), TlsError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(file_error(path))
}

/// Refuses a key file that others than its owner can read or write.
pub(super) fn check_private(path: &Path) -> Result<(), TlsError> {
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).map_err(file_error(path))?);
        if mode & 0o077 != 0 {
            let reason = format!("others can read this key (mode {:03o}); set it to 600", mode & 0o777);
            return Err(bad_file(path, reason));
        }
    }
    Ok(())
}

/// What tells a changed file from an unchanged one without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Option<(SystemTime, u64, [i64; 3])>);

impl Stamp {
    /// The file as it is now; a missing file has a stamp too.
    pub(super) fn of(path: &Path) -> Self {
        // `metadata` follows symbolic links, so a renewal that swaps the link (certbot, Kubernetes) is seen.
        let stamp = |meta: fs::Metadata| Some((meta.modified().ok()?, meta.len(), inode(&meta)));
        Self(fs::metadata(path).ok().and_then(stamp))
    }
}

/// Which file it is and when anything about it changed: also sees a copy that kept the old date, and a mended
/// permission.
#[cfg(unix)]
fn inode(meta: &fs::Metadata) -> [i64; 3] {
    use std::os::unix::fs::MetadataExt;
    [meta.ino().cast_signed(), meta.ctime(), meta.ctime_nsec()]
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> [i64; 3] {
    [0; 3]
}

pub(super) fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::File { path, source }
}

pub(super) fn bad_file(path: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::BadFile { path: path.to_owned(), reason: reason.into() }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
