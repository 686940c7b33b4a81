//! `heya backup` and `heya restore`.

use std::path::Path;

use heya::{backup, config::Config, error::Result};

/// Writes a backup.
pub async fn backup(config: &Config, folder: &Path) -> Result<()> {
    let done = backup::write(config, folder).await?;
    println!("バックアップを書きました: {} (メディア {}件)", folder.display(), done.blobs);
    Ok(())
}

/// Puts a backup back.
pub async fn restore(config: &Config, folder: &Path) -> Result<()> {
    let done = backup::restore(config, folder).await?;
    println!("復元しました: メディア {}件。heya serve で開始できます。", done.blobs);
    Ok(())
}
