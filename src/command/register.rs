//! `heya register`: a register (台帳) as CSV. What was written out, and by whom, stands in the audit log first.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use clap::ValueEnum;
use heya::{
    config::Config,
    error::{Error, Result},
    files, parts,
    registers::{Register, Table, login_id, moment, number, table},
    store::{self, Db},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::call;

/// A register.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Which {
    /// Facilities (事業所).
    Facilities,
    /// IDs of facilities and people, with when each was last used (利用者).
    Accounts,
    /// Terminals with their newest certificates (端末).
    Terminals,
    /// Rooms that have a number, with where they stand (部屋).
    Rooms,
    /// Who is in which room, or was (参加者).
    Members,
    /// Everything the city was asked to do, with who decided (案件).
    Cases,
}

/// Runs it.
pub async fn run(config: &Config, which: Which, file: Option<&Path>) -> Result<()> {
    // As it is typed, which is as the log has it.
    let word = which.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    call(config, Method::POST, "audit/register", Some(json!({"register": word}))).await?;
    let db = Db::open_existing(&config.server.database_url, &config.server.data_dir).await?;
    let read = read(config, &db, which).await;
    db.close().await;
    let table = read?;
    let text = csv(&table)?;
    match file {
        Some(file) => {
            files::write_private(file, &text)
                .map_err(|error| Error::internal(format!("{}: {error}", file.display())))?;
            println!("台帳を書きました: {} ({}件)", file.display(), table.rows.len());
        }
        None => std::io::stdout().write_all(&text)?,
    }
    Ok(())
}

async fn read(config: &Config, db: &Db, which: Which) -> Result<Table> {
    let mut conn = db.read().await?;
    let register = match which {
        Which::Facilities => Register::Facilities,
        Which::Accounts => Register::Accounts,
        Which::Rooms => Register::Rooms,
        Which::Members => Register::Members,
        Which::Terminals => return terminals(config, &mut conn).await,
        Which::Cases => return cases(config, &mut conn).await,
    };
    table(&mut conn, register).await
}

/// What the running server says: it knows the list of a city's own CA.
async fn terminals(config: &Config, conn: &mut store::Conn) -> Result<Table> {
    let facilities: BTreeMap<i64, String> =
        store::accounts::facilities(conn).await?.into_iter().map(|(id, name, ..)| (id, name)).collect();
    let answer = call(config, Method::GET, "terminals", None).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = answer["terminals"].as_array().into_iter().flatten().map(|row| {
        let status = match row["status"].as_str() {
            Some("valid") => "有効",
            Some("expired") => "期限切れ",
            Some("revoked") => "失効",
            _ => "なし",
        };
        let facility = row["facility"].as_i64();
        vec![
            number(row["terminal"].as_i64()),
            text(&row["label"]),
            number(facility),
            facility.and_then(|id| facilities.get(&id)).cloned().unwrap_or_default(),
            if row["ownership"] == "private" { "私的端末" } else { "事業所の端末" }.to_owned(),
            login_id(row["enrolled_by"].as_str().unwrap_or_default()),
            text(&row["serial"]),
            status.to_owned(),
            moment(row["expires"].as_i64()),
            moment(row["last_seen"].as_i64()),
        ]
    });
    Ok(Table {
        heading: vec![
            "端末番号",
            "端末の名前",
            "事業所番号",
            "事業所",
            "所有",
            "登録したID",
            "証明書番号",
            "証明書の状態",
            "有効期限",
            "最終利用日時",
        ],
        rows: rows.collect(),
    })
}

/// What the bot's file holds, with rooms and people as the registers call them.
async fn cases(config: &Config, conn: &mut store::Conn) -> Result<Table> {
    let cases = parts::cases(config).await?;
    let rooms: BTreeMap<String, i64> = store::registers::rooms(conn)
        .await?
        .into_iter()
        .map(|room| (room.room_id, room.room_number))
        .collect();
    let names: BTreeMap<String, String> = store::registers::accounts(conn)
        .await?
        .into_iter()
        .map(|account| (account.user_id, account.name))
        .collect();
    let who = |user_id: &str| match names.get(user_id).filter(|name| !name.is_empty()) {
        Some(name) => format!("{name} ({})", login_id(user_id)),
        None => login_id(user_id),
    };
    let rows = cases.into_iter().map(|case| {
        vec![
            case.number.to_string(),
            case.state,
            case.what,
            number(rooms.get(&case.room_id).copied()),
            who(&case.requester),
            moment(Some(case.filed_at)),
            case.decided_by.as_deref().map(who).unwrap_or_default(),
            moment(case.decided_at),
            case.reason.unwrap_or_default(),
        ]
    });
    Ok(Table {
        heading: vec![
            "案件番号",
            "状態",
            "内容",
            "受け付けた部屋",
            "依頼した人",
            "受付日時",
            "決めた人",
            "決定日時",
            "理由",
        ],
        rows: rows.collect(),
    })
}

/// RFC 4180, with the byte order mark by which Excel knows UTF-8.
fn csv(table: &Table) -> Result<Vec<u8>> {
    let mut text = "\u{feff}".as_bytes().to_vec();
    {
        let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(&mut text);
        writer.write_record(&table.heading).map_err(unwritten)?;
        for row in &table.rows {
            writer.write_record(row.iter().map(|cell| harmless(cell))).map_err(unwritten)?;
        }
        writer.flush()?;
    }
    Ok(text)
}

fn unwritten(error: csv::Error) -> Error {
    Error::internal(error.to_string())
}

/// What somebody chose as a name must not run as a formula in the city's spreadsheet (OWASP, "CSV Injection"). Full-width
/// signs count too: Excel takes them for the others.
fn harmless(cell: &str) -> String {
    match cell.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠') => {
            format!("'{cell}")
        }
        _ => cell.to_owned(),
    }
}
