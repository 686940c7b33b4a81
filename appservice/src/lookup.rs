//! Reading the server's registers: rooms, facilities, accounts, terminals; and finding whom a name means.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cases::{Facility, Person};
use crate::japanese::fold;
use crate::outbox::{Bot, Unfinished};
use crate::server::{CallError, Server};

/// A question of the staff about the registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "look", rename_all = "snake_case")]
pub(crate) enum Look {
    Rooms { status: RoomStatus },
    Facilities,
    Accounts { query: String },
    Terminals { person: Person },
}

/// Where a room stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RoomStatus {
    Open,
    Closed,
    Archived,
}

impl RoomStatus {
    /// In the words of the internal API.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Archived => "archived",
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RoomRow {
    pub room_id: String,
    pub room_number: i64,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub status: String,
    /// From when on it may be purged, in milliseconds.
    #[serde(default)]
    pub purge_from: Option<i64>,
    #[serde(default)]
    pub held: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RoomWithMembers {
    #[serde(flatten)]
    pub room: RoomRow,
    #[serde(default)]
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Member {
    pub user_id: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct FacilityRow {
    pub facility: i64,
    pub name: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub active: bool,
    #[serde(default)]
    pub accounts: i64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AccountRow {
    pub user_id: String,
    pub login_id: String,
    pub display_name: String,
    #[serde(default)]
    pub name: Option<String>,
    pub kind: String,
    #[serde(default)]
    pub facility_name: Option<String>,
    pub status: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TerminalRow {
    pub terminal: i64,
    #[serde(default)]
    pub label: String,
    pub status: String,
    #[serde(default)]
    pub last_seen: Option<i64>,
}

/// Whom a name means.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    One(AccountRow),
    /// Several, or one that is only similar: a person must choose.
    Some(Vec<AccountRow>),
    None,
}

impl AccountRow {
    /// As staff read it: name and login id.
    pub(crate) fn label(&self) -> String {
        format!("{}（{}）", self.display_name, self.login_id)
    }
}

impl Server {
    pub(crate) async fn rooms(&self, status: &str) -> Result<Vec<RoomRow>, CallError> {
        self.list(&["_heya", "v1", "rooms"], &[("status", status)], "rooms").await
    }

    /// A city room with its members; nothing when the room is no city room.
    pub(crate) async fn room(&self, room_id: &str) -> Result<Option<RoomWithMembers>, CallError> {
        match self.get(&["_heya", "v1", "rooms", room_id], &[]).await {
            Ok(answer) => serde_json::from_value(answer).map(Some).map_err(|_| unexpected()),
            Err(CallError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn facilities(&self) -> Result<Vec<FacilityRow>, CallError> {
        self.list(&["_heya", "v1", "facilities"], &[], "facilities").await
    }

    pub(crate) async fn accounts(&self, query: &str) -> Result<Vec<AccountRow>, CallError> {
        // In a body: what is looked for comes from what people wrote, and may be anybody's name.
        let path = ["_heya", "v1", "accounts", "search"];
        let mut answer = self.ask(&path, &serde_json::json!({"query": query})).await?;
        serde_json::from_value(answer["accounts"].take()).map_err(|_| unexpected())
    }

    pub(crate) async fn terminals(&self, user_id: &str) -> Result<Vec<TerminalRow>, CallError> {
        self.list(&["_heya", "v1", "accounts", user_id, "terminals"], &[], "terminals").await
    }

    async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        field: &str,
    ) -> Result<Vec<T>, CallError> {
        let mut answer = self.get(path, query).await?;
        serde_json::from_value(answer[field].take()).map_err(|_| unexpected())
    }

    /// Whom `person` means. `exact_only` is for what happens without a further look by the city: a name
    /// that is only similar is then no answer but a candidate.
    pub(crate) async fn find_person(&self, person: &Person, exact_only: bool) -> Result<Found, CallError> {
        let said = person.user_id.as_deref().unwrap_or(&person.said);
        let localpart = said.strip_prefix('@').map_or(said, |rest| rest.split(':').next().unwrap_or(rest));
        let mut rows = self.accounts(localpart).await?;
        rows.retain(|row| row.status != "ended");
        Ok(choose(&rows, person, said, localpart, exact_only))
    }

    /// The facility that a name means: the same name, or the only one that contains it.
    pub(crate) async fn find_facility(&self, facility: &Facility) -> Result<Vec<FacilityRow>, CallError> {
        let wanted = fold(&facility.said);
        let mut rows = self.facilities().await?;
        rows.retain(|row| row.active && fold(&row.name).contains(&wanted));
        if let Some(same) = rows.iter().position(|row| fold(&row.name) == wanted) {
            return Ok(vec![rows.swap_remove(same)]);
        }
        Ok(rows)
    }
}

fn choose(rows: &[AccountRow], person: &Person, said: &str, localpart: &str, exact_only: bool) -> Found {
    // An id of another server is nobody's here.
    let is_id = said.starts_with('@') && said.contains(':');
    let is_meant =
        |row: &&AccountRow| row.user_id == said || !is_id && row.login_id == localpart.to_ascii_lowercase();
    if let Some(row) = rows.iter().find(is_meant) {
        return Found::One(row.clone());
    }
    let wanted = fold(said);
    let facility = person.facility.as_deref().map(fold);
    let right_facility = |row: &&AccountRow| {
        let of_row = row.facility_name.as_deref().map(fold).unwrap_or_default();
        facility.as_ref().is_none_or(|facility| of_row.contains(facility.as_str()))
    };
    let is_exact = |row: &AccountRow| {
        let same = |name: Option<&str>| name.is_some_and(|name| fold(name) == wanted);
        same(Some(&row.display_name))
            || if row.kind == "facility" {
                same(row.facility_name.as_deref())
            } else {
                same(row.name.as_deref())
            }
    };
    let exact: Vec<&AccountRow> = rows.iter().filter(right_facility).filter(|row| is_exact(row)).collect();
    if let [only] = exact.as_slice() {
        return Found::One((*only).clone());
    }
    if !exact.is_empty() {
        return Found::Some(exact.into_iter().cloned().collect());
    }
    let similar = |row: &&AccountRow| {
        row.name.as_deref().is_some_and(|name| fold(name).contains(&wanted))
            || row.facility_name.as_deref().is_some_and(|name| fold(name).contains(&wanted))
    };
    let near: Vec<AccountRow> = rows.iter().filter(right_facility).filter(similar).cloned().collect();
    match near.as_slice() {
        [] if rows.is_empty() => Found::None,
        // Right name, other facility than the one named: shown, not taken.
        [] => Found::Some(rows.to_vec()),
        [only] if !exact_only && only.kind == "personal" => Found::One(only.clone()),
        _ => Found::Some(near),
    }
}

fn unexpected() -> CallError {
    CallError::Transient { reason: "unexpected answer", retry_after: None }
}

impl Bot {
    /// The answer to a question of the staff.
    pub(crate) async fn look(&self, look: &Look) -> Result<String, Unfinished> {
        Ok(match look {
            Look::Rooms { status } => self.texts.rooms(&self.server.rooms(status.word()).await?, *status),
            Look::Facilities => self.texts.facilities(&self.server.facilities().await?),
            Look::Accounts { query } => self.texts.accounts(&self.server.accounts(query).await?),
            Look::Terminals { person } => match self.server.find_person(person, true).await? {
                Found::One(row) => self.texts.terminals(&row, &self.server.terminals(&row.user_id).await?),
                Found::Some(rows) => self.texts.which_person(person, &rows),
                Found::None => self.texts.nobody_of_that_name(person),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(login_id: &str, facility: &str, name: Option<&str>) -> AccountRow {
        AccountRow {
            user_id: format!("@{login_id}:example.jp"),
            login_id: login_id.to_owned(),
            display_name: name.map_or_else(|| facility.to_owned(), |name| format!("{facility} {name}")),
            name: name.map(str::to_owned),
            kind: if name.is_some() { "personal" } else { "facility" }.to_owned(),
            facility_name: Some(facility.to_owned()),
            status: "active".to_owned(),
        }
    }

    fn chosen(rows: &[AccountRow], said: &str, facility: Option<&str>, exact_only: bool) -> String {
        let person = Person { facility: facility.map(str::to_owned), ..Person::named(said) };
        match choose(rows, &person, said, said, exact_only) {
            Found::One(row) => row.login_id,
            Found::Some(rows) => format!("{} candidates", rows.len()),
            Found::None => "nobody".to_owned(),
        }
    }

    #[test]
    fn names_are_told_apart() {
        let rows = [
            row("p1", "あおば訪問看護", Some("佐藤花子")),
            row("p2", "みどり薬局", Some("佐藤花子")),
            row("p3", "みどり薬局", Some("鈴木一郎")),
            row("f1", "あおば訪問看護", None),
        ];
        assert_eq!(chosen(&rows, "佐藤 花子", Some("あおば訪問看護"), true), "p1");
        assert_eq!(chosen(&rows, "佐藤花子", None, true), "2 candidates");
        assert_eq!(chosen(&rows, "佐藤花子", Some("ひまわり医院"), true), "4 candidates");
        assert_eq!(chosen(&rows, "鈴木", None, true), "1 candidates");
        assert_eq!(chosen(&rows, "鈴木", None, false), "p3");
        assert_eq!(chosen(&rows, "あおば訪問看護", None, true), "f1");
        assert_eq!(chosen(&rows, "P3", None, true), "p3");
        assert_eq!(chosen(&[], "田中", None, true), "nobody");
    }
}
