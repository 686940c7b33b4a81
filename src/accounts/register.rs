//! The register: facilities (事業所), their IDs, and the first start of a city.

use std::sync::Arc;

use ruma::{OwnedUserId, UserId};
use unicode_normalization::UnicodeNormalization as _;

use super::{
    sessions::hash_of,
    sheets::{self, Letterhead, Secret},
};
use crate::{
    audit,
    error::{Code, Result, invalid, not_found, refuse},
    rooms::{batch::Batch, city, committer::Hint, member},
    server::Server,
    store::{
        self,
        accounts::{Account, Facility},
    },
};

/// How long a one-time code is good.
const CODE_DAYS: i64 = 30;
/// The longest name of a facility or person, in characters.
const NAME_MAX: usize = 100;

/// An ID to issue.
pub struct NewAccount {
    /// The facility.
    pub facility: i64,
    /// `facility` (施設ID) or `personal` (個人ID).
    pub kind: String,
    /// The person's name, for a personal ID.
    pub name: String,
    /// The profession.
    pub profession: String,
    /// In whose name: for the audit log.
    pub acting: String,
}

/// An ID that was issued, with its two sheets.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Issued {
    /// The Matrix id.
    pub user_id: OwnedUserId,
    /// What people type.
    pub login_id: String,
    /// What people see.
    pub display_name: String,
    /// Paths of the handover sheets in the data folder.
    pub sheets: Vec<String>,
}

/// A secret for a sheet, with its hash made beforehand: hashing is too slow for the committer.
pub struct Prepared {
    password: String,
    hash: String,
    letterhead: Letterhead,
}

/// Makes an initial password and hashes it.
pub async fn prepare(server: &Server) -> Result<Prepared> {
    let password = grouped();
    let hash = server.passwords.hash(&password).await?;
    Ok(Prepared { password, hash, letterhead: Letterhead::of(server) })
}

/// Twelve characters without look-alikes, in groups that people can copy from paper: 59 bits.
fn grouped() -> String {
    let code = crate::clock::readable_code(12);
    format!("{}-{}-{}", &code[..4], &code[4..8], &code[8..])
}

/// A code as people type it: without hyphens and spaces, in upper case, full-width or not.
pub fn code_normal(code: &str) -> String {
    code.nfkc().filter(char::is_ascii_alphanumeric).flat_map(char::to_uppercase).take(64).collect()
}

/// What the search for people looks in.
pub fn search_key(parts: &[&str]) -> String {
    parts.join(" ").nfkc().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
}

fn name_checked(name: &str, what: &str) -> Result<String> {
    let name = name.trim().to_owned();
    if name.is_empty() || name.chars().count() > NAME_MAX || name.chars().any(char::is_control) {
        return Err(invalid(format!("{what} must have 1 to {NAME_MAX} characters.")));
    }
    Ok(name)
}

/// Registers a facility.
pub async fn add_facility(batch: &mut Batch, name: &str, kind: &str, acting: &str) -> Result<i64> {
    let name = name_checked(name, "The facility's name")?;
    if store::accounts::facility_named(batch.reading(), &name).await?.is_some() {
        return Err(refuse(Code::Exists, "A facility of this name is registered already."));
    }
    let now = batch.now;
    let conn = batch.sql().await?;
    let id = store::meta::next_number(conn, "facility", 1).await?;
    let facility = Facility { id, name: name.clone(), kind: kind.to_owned(), active: true };
    store::accounts::insert_facility(conn, &facility, now).await?;
    batch.audit(audit::Entry {
        at: now,
        actor: acting.to_owned(),
        action: "facility.register".to_owned(),
        target: format!("facility {id}"),
        result: "ok".to_owned(),
        detail: name,
        ..audit::Entry::default()
    });
    Ok(id)
}

/// Issues an ID: account, initial password, one-time code, and their two sheets; a facility ID is in the announcement
/// room at once.
pub async fn issue(
    batch: &mut Batch,
    city_user: &UserId,
    new: NewAccount,
    prepared: Prepared,
) -> Result<Issued> {
    let now = batch.now;
    let facility = store::accounts::facility(batch.reading(), new.facility)
        .await?
        .filter(|facility| facility.active)
        .ok_or_else(|| not_found("There is no such facility."))?;
    let (prefix, first, name, display_name) = match new.kind.as_str() {
        "facility" => {
            if store::accounts::facility_account(batch.reading(), facility.id).await?.is_some() {
                return Err(refuse(Code::Exists, "This facility has its facility ID already."));
            }
            ("f", 1, String::new(), facility.name.clone())
        }
        "personal" => {
            let name = name_checked(&new.name, "The person's name")?;
            let display = format!("{} {name}", facility.name);
            ("p", 100_001, name, display)
        }
        _ => return Err(invalid("kind is \"facility\" or \"personal\".")),
    };
    let conn = batch.sql().await?;
    let number =
        store::meta::next_number(conn, if prefix == "f" { "facility_id" } else { "person" }, first).await?;
    let login_id = format!("{prefix}{number:04}");
    let user_id = UserId::parse_with_server_name(login_id.as_str(), batch.server_name())?;
    let account = Account {
        user_id: user_id.to_string(),
        kind: new.kind.clone(),
        facility: Some(facility.id),
        name,
        profession: new.profession,
        display_name: Some(display_name.clone()),
        password_hash: Some(prepared.hash),
        password_own: false,
        status: "issued".to_owned(),
    };
    let key = search_key(&[&login_id, &account.name, &facility.name]);
    store::accounts::insert_account(batch.sql().await?, &account, &key, now).await?;
    let password_sheet = sheets::write(
        batch,
        &prepared.letterhead,
        &display_name,
        &login_id,
        Secret::Password(&prepared.password),
    )
    .await?;
    let code_sheet = add_code(batch, &prepared.letterhead, &user_id, &display_name, false).await?;
    if new.kind == "facility"
        && let Some(room) = store::meta::value(batch.reading(), "announcement_room").await?
        && let Ok(room) = <&ruma::RoomId>::try_from(room.as_str())
    {
        member::invite(batch, room, city_user, &user_id, None).await?;
    }
    batch.audit(audit::Entry {
        at: now,
        actor: new.acting,
        action: "account.issue".to_owned(),
        target: user_id.to_string(),
        result: "ok".to_owned(),
        ..audit::Entry::default()
    });
    Ok(Issued { user_id, login_id, display_name, sheets: vec![password_sheet, code_sheet] })
}

/// Makes a one-time code and its sheet.
pub async fn add_code(
    batch: &mut Batch,
    letterhead: &Letterhead,
    user_id: &UserId,
    display_name: &str,
    further: bool,
) -> Result<String> {
    let code = grouped();
    let expires_at = batch.now + CODE_DAYS * 86_400_000;
    let row = store::terminals::Code {
        code_hash: hash_of(&code_normal(&code)),
        user_id: user_id.to_string(),
        further,
        private_ok: false,
        expires_at,
        spent_at: None,
    };
    store::terminals::insert_code(batch.sql().await?, &row).await?;
    sheets::write(
        batch,
        letterhead,
        display_name,
        user_id.localpart(),
        Secret::Code(&code, expires_at, further),
    )
    .await
}

/// A new initial password and code for an account, with their sheets.
pub async fn hand_over_again(
    batch: &mut Batch,
    user_id: &UserId,
    display_name: &str,
    prepared: Prepared,
) -> Result<Vec<String>> {
    let now = batch.now;
    store::accounts::set_password(batch.sql().await?, user_id.as_str(), &prepared.hash, false, now).await?;
    let secret = Secret::Password(&prepared.password);
    let password =
        sheets::write(batch, &prepared.letterhead, display_name, user_id.localpart(), secret).await?;
    let code = add_code(batch, &prepared.letterhead, user_id, display_name, false).await?;
    Ok(vec![password, code])
}

/// Whether someone is an active member of city staff.
pub async fn is_city_staff(conn: &mut store::Conn, user_id: &str) -> Result<bool> {
    let Some(account) = store::accounts::account(conn, user_id).await? else { return Ok(false) };
    if account.status == "ended" {
        return Ok(false);
    }
    let Some(facility) = account.facility else { return Ok(false) };
    Ok(store::accounts::facility(conn, facility).await?.is_some_and(|f| f.kind == "city"))
}

/// The accounts of city staff.
pub async fn city_staff(conn: &mut store::Conn) -> Result<Vec<OwnedUserId>> {
    let mut staff = Vec::new();
    for (id, _, kind, active, _) in store::accounts::facilities(conn).await? {
        if kind == "city" && active {
            for user_id in store::accounts::of_facility(conn, id).await? {
                staff.push(user_id.try_into()?);
            }
        }
    }
    Ok(staff)
}

/// The first start of a city: `@city`, the city's own facility, its first member of staff with two sheets, the control
/// room and the announcement room. One unit; nothing happens where it was done.
pub async fn first_start(server: &Arc<Server>) -> Result<Option<Issued>> {
    if store::meta::value(&mut server.db.read().await?, "control_room").await?.is_some() {
        return Ok(None);
    }
    let prepared = prepare(server).await?;
    let city_user = server.city_user.clone();
    let (facility, staff) = (server.config.city.facility.clone(), server.config.city.first_staff.clone());
    let service = server.config.city.name.clone();
    let issued = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let now = batch.now;
                let account = Account {
                    user_id: city_user.to_string(),
                    kind: "appservice".to_owned(),
                    facility: None,
                    name: String::new(),
                    profession: String::new(),
                    display_name: Some(service),
                    password_hash: None,
                    password_own: false,
                    status: "active".to_owned(),
                };
                store::accounts::insert_account(batch.sql().await?, &account, "", now).await?;
                let facility = add_facility(batch, &facility, "city", "server").await?;
                let new = NewAccount {
                    facility,
                    kind: "personal".to_owned(),
                    name: staff,
                    profession: String::new(),
                    acting: "server".to_owned(),
                };
                let issued = issue(batch, &city_user, new, prepared).await?;
                for (kind, name, key) in [
                    ("control", "市の管理室", "control_room"),
                    ("announcement", "市からのお知らせ", "announcement_room"),
                ] {
                    let opening = city::Opening {
                        kind: kind.to_owned(),
                        name: name.to_owned(),
                        subject_key: None,
                        facility: None,
                        members: vec![issued.user_id.clone()],
                        staff: vec![issued.user_id.clone()],
                        notice: None,
                        case: None,
                    };
                    let (room_id, _) = city::open(batch, &city_user, opening).await?;
                    store::meta::set(batch.sql().await?, key, room_id.as_str()).await?;
                }
                Ok(issued)
            })
        })
        .await?;
    Ok(Some(issued))
}
