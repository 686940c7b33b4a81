//! `heya audit`: proves the chain, and shows who looked at a subject's room.

use std::process::ExitCode;

use clap::Subcommand;
use heya::{
    audit::{Entry, Verdict, verify, written_time},
    config::Config,
    error::{Error, Result},
    store::{self, Db},
};

/// `heya audit …`
#[derive(Subcommand)]
pub enum Audit {
    /// Prove that no entry was changed, removed or cut off. Exit status 1 where one was.
    Verify,
    /// List what happened in a room, or all of the log: who, when, from which terminal, what.
    ///
    /// The server must run: that the log was read is itself logged.
    List {
        /// The room number (部屋番号).
        #[arg(long)]
        room: Option<i64>,
        /// At most so many entries, the newest.
        #[arg(long, default_value_t = 200)]
        limit: i64,
    },
}

/// Runs it.
pub async fn run(config: &Config, audit: Audit) -> Result<ExitCode> {
    let db = Db::open_existing(&config.server.database_url, &config.server.data_dir).await?;
    let code = match audit {
        Audit::Verify => {
            let heads = config.server.data_dir.join("audit").join("heads");
            match verify(&db, &heads).await? {
                Verdict::Whole { entries } => {
                    println!("操作履歴は正しくつながっています({entries}件)。");
                    ExitCode::SUCCESS
                }
                Verdict::Unproved { entries } => {
                    println!(
                        "操作履歴は{entries}件つながっていますが、データベースの外の控え({})がないか読めないため、末尾が消されていないことを確かめられません。",
                        heads.display()
                    );
                    ExitCode::FAILURE
                }
                Verdict::Broken { seq, what } => {
                    println!("操作履歴が書き換えられています: {seq}件目 ({what})");
                    ExitCode::FAILURE
                }
            }
        }
        Audit::List { room, limit } => {
            // Reading the log is itself logged, by the running server.
            let body = serde_json::json!({"room": room});
            super::call(config, reqwest::Method::POST, "audit/read", Some(body)).await?;
            list(&db, room, limit).await?;
            ExitCode::SUCCESS
        }
    };
    db.close().await;
    Ok(code)
}

/// What people wrote, on one line: a line break in a reason must not look like another entry.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { '␤' } else { c })
        .collect()
}

async fn list(db: &Db, room: Option<i64>, limit: i64) -> Result<()> {
    let mut conn = db.read().await?;
    let mut room_id = None;
    if let Some(number) = room {
        let found = store::rooms::city_rooms(&mut conn).await?;
        let row = found.into_iter().find(|row| row.room_number == Some(number));
        room_id =
            Some(row.ok_or_else(|| Error::internal(format!("部屋番号{number}の部屋はありません")))?.room_id);
    }
    let rows = match &room_id {
        Some(room_id) => store::audit::of_room(&mut conn, room_id.as_str(), limit).await?,
        None => {
            let newest = store::audit::newest(&mut conn).await?.map_or(0, |(seq, _)| seq);
            store::audit::after(&mut conn, (newest - limit).max(0), limit).await?
        }
    };
    for row in rows {
        let entry: Entry = serde_json::from_str(&row.entry)?;
        let who = if entry.name.is_empty() {
            one_line(&entry.actor)
        } else {
            format!("{} ({})", one_line(&entry.name), entry.actor)
        };
        println!(
            "{:>6} {} {who} {} {} 端末{} 証明書{} {} {} {}",
            row.seq,
            written_time(entry.at),
            entry.action,
            entry.result,
            entry.terminal.map_or_else(|| "-".to_owned(), |t| t.to_string()),
            entry.certificate.as_deref().unwrap_or("-"),
            entry.address.as_deref().unwrap_or("-"),
            one_line(&entry.target),
            one_line(&entry.detail),
        );
    }
    let Some(room_id) = room_id else { return Ok(()) };
    let marks = store::audit::marks(&mut conn, room_id.as_str()).await?;
    if marks.is_empty() {
        return Ok(());
    }
    println!("\n閲覧のまとめ(端末ごと。配信 = 端末に届いた、開封 = 既読・履歴・検索・ファイル)");
    for mark in marks {
        let profile = store::personal::profile(&mut conn, &mark.user_id).await?;
        let name = profile.and_then(|profile| profile.display_name).unwrap_or_default();
        println!(
            "{} {} ({}) 端末{} {} {}回",
            written_time(mark.last_at),
            one_line(&name),
            one_line(&mark.user_id),
            if mark.terminal == 0 { "-".to_owned() } else { mark.terminal.to_string() },
            if mark.action == "room.delivered" { "配信" } else { "開封" },
            mark.looks,
        );
    }
    Ok(())
}
