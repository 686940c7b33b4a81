//! The city's registers (台帳) as tables that people open in a spreadsheet: facilities, accounts with when they were last
//! used, rooms, and who is in them (REQUIREMENTS C18, C20, C27). What terminals there are the running server says, and
//! the cases are the bot's.

use std::collections::BTreeMap;

use crate::{
    audit::sortable_time,
    error::Result,
    rooms::{life::kind_name, pdu::name_in},
    store,
};

/// A heading and rows, each as long as the heading.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// What the columns are called.
    pub heading: Vec<&'static str>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// A register that the database holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// 事業所.
    Facilities,
    /// 利用者: facility IDs and personal IDs.
    Accounts,
    /// 部屋.
    Rooms,
    /// 参加者: who is in which room, or was.
    Members,
}

/// Reads one.
pub async fn table(conn: &mut store::Conn, register: Register) -> Result<Table> {
    match register {
        Register::Facilities => facilities(conn).await,
        Register::Accounts => accounts(conn).await,
        Register::Rooms => rooms(conn).await,
        Register::Members => members(conn).await,
    }
}

/// A moment on the Japanese clock; nothing where there is none.
pub fn moment(ms: Option<i64>) -> String {
    ms.map(sortable_time).unwrap_or_default()
}

/// A number; nothing where there is none.
pub fn number(number: Option<i64>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

/// The login id in a Matrix id.
pub fn login_id(user_id: &str) -> String {
    user_id.trim_start_matches('@').split(':').next().unwrap_or_default().to_owned()
}

async fn facilities(conn: &mut store::Conn) -> Result<Table> {
    let rows =
        store::accounts::facilities(conn).await?.into_iter().map(|(id, name, kind, active, accounts)| {
            let kind = match kind.as_str() {
                "city" => "市",
                "medical" => "医療機関",
                "visiting_nurse" => "訪問看護",
                "care" => "介護",
                "pharmacy" => "薬局",
                "association" => "職能団体",
                _ => "その他",
            };
            let active = if active { "利用中" } else { "利用終了" };
            vec![id.to_string(), name, kind.to_owned(), active.to_owned(), accounts.to_string()]
        });
    Ok(Table {
        heading: vec!["事業所番号", "事業所", "種別", "状態", "利用中のID"], rows: rows.collect()
    })
}

async fn accounts(conn: &mut store::Conn) -> Result<Table> {
    let rows = store::registers::accounts(conn).await?.into_iter().map(|account| {
        let kind = match account.kind.as_str() {
            "facility" => "施設ID",
            "personal" => "個人ID",
            _ => "登録したID",
        };
        let status = match account.status.as_str() {
            "issued" => "発行済(未登録)",
            "active" => "利用中",
            _ => "利用終了",
        };
        vec![
            login_id(&account.user_id),
            kind.to_owned(),
            account.name,
            account.profession,
            number(account.facility),
            account.facility_name.unwrap_or_default(),
            account.display_name.unwrap_or_default(),
            status.to_owned(),
            sortable_time(account.created_at),
            moment(account.last_used),
            moment(account.ended_at),
        ]
    });
    Ok(Table {
        heading: vec![
            "ID",
            "区分",
            "氏名",
            "職種",
            "事業所番号",
            "事業所",
            "表示名",
            "状態",
            "発行日時",
            "最終利用日時",
            "利用終了日時",
        ],
        rows: rows.collect(),
    })
}

async fn rooms(conn: &mut store::Conn) -> Result<Table> {
    // How many are in each room, and whose a room of two people is or was: the city does not read its name.
    let mut inside: BTreeMap<i64, usize> = BTreeMap::new();
    let mut people: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for member in store::registers::members(conn).await? {
        *inside.entry(member.room_number).or_default() += usize::from(member.membership == "join");
        people.entry(member.room_number).or_default().push(login_id(&member.user_id));
    }
    let rows = store::registers::rooms(conn).await?.into_iter().map(|room| {
        let name = if room.kind == "direct" {
            people.get(&room.room_number).map(|people| people.join("、")).unwrap_or_default()
        } else {
            name_in(room.name.as_deref()).unwrap_or_default()
        };
        let status = match room.status.as_str() {
            "open" => "利用中",
            "closed" => "終了",
            "archived" => "保管",
            "purging" => "消去中",
            _ => "消去済",
        };
        vec![
            room.room_number.to_string(),
            kind_name(&room.kind).to_owned(),
            name,
            status.to_owned(),
            inside.get(&room.room_number).copied().unwrap_or_default().to_string(),
            sortable_time(room.created_at),
            moment(room.closed_at),
            moment(room.archived_at),
            room.held.unwrap_or_default(),
        ]
    });
    Ok(Table {
        heading: vec![
            "部屋番号",
            "種別",
            "部屋の名前",
            "状態",
            "参加者数",
            "開設日時",
            "終了日時",
            "保管日時",
            "法的保全の理由",
        ],
        rows: rows.collect(),
    })
}

async fn members(conn: &mut store::Conn) -> Result<Table> {
    let rows = store::registers::members(conn).await?.into_iter().map(|member| {
        let membership = match member.membership.as_str() {
            "join" => "参加中",
            "invite" => "招待中",
            "knock" => "参加を希望",
            "ban" => "参加禁止",
            _ => "退出",
        };
        vec![
            member.room_number.to_string(),
            login_id(&member.user_id),
            member.name,
            member.profession,
            number(member.facility),
            member.facility_name.unwrap_or_default(),
            membership.to_owned(),
        ]
    });
    Ok(Table {
        heading: vec!["部屋番号", "ID", "氏名", "職種", "事業所番号", "事業所", "状態"],
        rows: rows.collect(),
    })
}
