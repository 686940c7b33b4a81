//! `heya backup` and `heya restore`.

use std::path::Path;

use heya::{
    audit::Verdict,
    backup::{self, Manifest, generations},
    clock::Clock,
    config::Config,
    error::Result,
};

/// Writes a backup into a folder, or the next generation.
pub async fn backup(config: &Config, folder: Option<&Path>) -> Result<()> {
    let now = Clock::default().now_ms();
    if let Some(folder) = folder {
        written(folder, &backup::write(config, folder, now).await?);
        return Ok(());
    }
    let (folder, manifest, removed) = generations::next(config, now).await?;
    written(&folder, &manifest);
    if removed > 0 {
        println!("古いバックアップを{removed}件消しました(新しい{}件を残します)。", config.backup.keep);
    }
    Ok(())
}

fn written(folder: &Path, manifest: &Manifest) {
    let rows = |table: &str| manifest.rows.get(table).copied().unwrap_or_default();
    println!(
        "バックアップを書きました: {} (部屋 {}件、投稿など {}件、メディア {}件)",
        folder.display(),
        rows("rooms"),
        rows("events"),
        manifest.blobs
    );
}

/// Puts a backup back.
pub async fn restore(config: &Config, folder: &Path) -> Result<()> {
    let done = backup::restore(config, folder).await?;
    let rows = |table: &str| done.manifest.rows.get(table).copied().unwrap_or_default();
    println!(
        "復元しました: 部屋 {}件、投稿など {}件、メディア {}件。件数とハッシュはバックアップと同じです。heya serve で開始できます。",
        rows("rooms"),
        rows("events"),
        done.manifest.blobs
    );
    println!(
        "バックアップより後に失効・終了・初期化した端末、ID、パスワードと、保管期限で消去した部屋は、その時点の状態に戻っています。\
         もう一度、失効・終了・初期化・消去をしてください。"
    );
    match done.audit {
        Verdict::Whole { entries } => println!("操作履歴は正しくつながっています({entries}件)。"),
        Verdict::Unproved { .. } | Verdict::Broken { .. } => {
            println!(
                "操作履歴を heya audit verify で確かめてください: 正しくつながっていると確かめられません。"
            );
        }
    }
    Ok(())
}
