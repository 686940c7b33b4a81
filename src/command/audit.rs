//! `heya audit`: proves the chain, shows who looked at a subject's room, and what was edited or redacted there.

use std::{collections::HashMap, process::ExitCode};

use clap::Subcommand;
use heya::{
    audit::{Entry, Verdict, verify, written_time},
    config::Config,
    error::{Error, Result},
    originals,
    store::{self, Db},
};
use ruma::OwnedRoomId;

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
    /// Show what was edited or redacted in a room, with every version, who did it and when (C26).
    ///
    /// For an auditor: members see none of this. It holds what was written about the subject, on the terminal's screen
    /// only. The server must run: that it was read, and why, is logged first. A purged room has nothing of it; a room of
    /// two people has no number while somebody is in it.
    Originals {
        /// The room number (部屋番号).
        #[arg(long)]
        room: i64,
        /// Why it is read (理由), for the log; at most 500 characters.
        #[arg(long)]
        reason: String,
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
        Audit::Originals { room, reason } => {
            let body = serde_json::json!({"room": room, "reason": reason});
            super::call(config, reqwest::Method::POST, "audit/originals", Some(body)).await?;
            originals(&db, room).await?;
            ExitCode::SUCCESS
        }
    };
    db.close().await;
    Ok(code)
}

/// What people wrote, on one line: a line break in a reason must not look like another entry.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\u{2028}' | '\u{2029}' => '␤',
            // They turn around or hide what stands beside them.
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => '␣',
            c if c.is_control() => '␤',
            c => c,
        })
        .collect()
}

async fn list(db: &Db, room: Option<i64>, limit: i64) -> Result<()> {
    let mut conn = db.read().await?;
    let mut room_id = None;
    if let Some(number) = room {
        room_id = Some(room_id_of(&mut conn, number).await?);
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

async fn room_id_of(conn: &mut store::Conn, number: i64) -> Result<OwnedRoomId> {
    let row = store::rooms::by_number(conn, number).await?;
    Ok(row.ok_or_else(|| Error::internal(format!("部屋番号{number}の部屋はありません")))?.room_id)
}

async fn originals(db: &Db, room: i64) -> Result<()> {
    let mut conn = db.read().await?;
    let row = store::rooms::by_number(&mut conn, room).await?;
    let row = row.ok_or_else(|| Error::internal(format!("部屋番号{room}の部屋はありません")))?;
    if matches!(row.status.as_str(), "purging" | "purged") {
        println!("部屋番号{room}の部屋は消去されています。");
        return Ok(());
    }
    let room_id = row.room_id;
    let posts = originals::of_room(&mut conn, &room_id).await?;
    if posts.is_empty() {
        println!("部屋番号{room}に、訂正または取り消された投稿はありません。");
        return Ok(());
    }
    println!("部屋番号{room}で訂正または取り消された投稿: {}件", posts.len());
    let mut names: HashMap<String, String> = HashMap::new();
    for (n, post) in posts.iter().enumerate() {
        for (at, version) in post.versions.iter().enumerate() {
            let event = &version.event;
            let what = match (at, event.is_state()) {
                (0, false) => "投稿".to_owned(),
                (0, true) => format!("設定 {}", one_line(&event.kind.to_string())),
                _ => "訂正".to_owned(),
            };
            if at == 0 {
                println!("\n{}. {}", n + 1, event.event_id);
            }
            let who = called(&mut conn, &mut names, event.sender.as_str()).await?;
            println!("   {} {what} {who}", written_time(event.ts));
            for line in originals::text(event).lines() {
                println!("   │ {}", one_line(line));
            }
            if let Some(by) = &version.redaction {
                let who = called(&mut conn, &mut names, by.sender.as_str()).await?;
                let reason = by.content_str("reason").filter(|reason| !reason.is_empty());
                let reason = reason.map(|reason| format!(" 理由: {}", one_line(&reason))).unwrap_or_default();
                println!("   {} 取消 {who}{reason}", written_time(by.ts));
            }
        }
    }
    Ok(())
}

/// A person's name and id, asked for once.
async fn called(
    conn: &mut store::Conn,
    names: &mut HashMap<String, String>,
    user_id: &str,
) -> Result<String> {
    if let Some(known) = names.get(user_id) {
        return Ok(known.clone());
    }
    let profile = store::personal::profile(conn, user_id).await?;
    let called = match profile.and_then(|profile| profile.display_name).filter(|name| !name.is_empty()) {
        Some(name) => format!("{} ({})", one_line(&name), one_line(user_id)),
        None => one_line(user_id),
    };
    names.insert(user_id.to_owned(), called.clone());
    Ok(called)
}
