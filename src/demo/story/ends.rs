//! Steps 9 to 11: a terminal is lost, the room is closed, and the audit log is proved.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use heya::{
    audit::{Entry, Verdict, verify},
    error::{Error, Result},
    store::{self, Db},
};
use reqwest::{Method, header};
use serde_json::json;

use super::{
    super::{
        client::{Seen, Session, answer, part},
        enrolment::{Sheets, enrol},
        leaks,
    },
    Cast, Person, Stage, check,
    people::{MANAGER, NURSE, sheets_of},
    rooms::Room,
    same,
};

/// A long poll that nothing but the loss of its terminal ends in time.
const LONG: Duration = Duration::from_secs(60);
/// From the command to the end of the long poll.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);
/// Until a request has reached the server, most certainly.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// Step 9: one command ends certificate, sessions and long polls of a lost terminal; the nurse gets another.
pub async fn lose_a_terminal(stage: &mut Stage<'_>, cast: &mut Cast) -> Result<()> {
    stage.narrator.step(9);
    let listed = cast.command(&format!("一覧 端末 {}", cast.nurse.login_id), "・端末 ").await?;
    let number: i64 = listed
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("・端末 ")?.split(' ').next()?.parse().ok())
        .ok_or_else(|| Error::internal("the bot listed no terminal of the nurse"))?;
    cast.nurse.session.catch_up().await?;
    let poll = cast.nurse.session.poll(LONG);
    let mut poll = tokio::spawn(async move { answer(poll).await });
    if let Ok(ended) = tokio::time::timeout(ON_ITS_WAY, &mut poll).await {
        let status = ended??.status;
        return Err(Error::internal(format!(
            "the nurse's long poll was to be held, and was answered with {status}"
        )));
    }
    let begun = Instant::now();
    let control = cast.control.clone();
    let mark = cast.staff.session.mark();
    cast.staff.session.say(&control, &format!("端末失効 {number} 紛失")).await?;
    let ended = tokio::time::timeout(REVOKED_WITHIN, poll).await.map_err(|_| {
        Error::internal(format!(
            "the long poll of the lost terminal went on for {} s",
            REVOKED_WITHIN.as_secs()
        ))
    })?;
    let took = begun.elapsed();
    // The connection broke, or the answer says that the session has ended: both are an end.
    if let Ok(answered) = ended? {
        check(answered.status.is_client_error(), || format!("the long poll ended with {}", answered.status))?;
    }
    let told = cast.staff.session.heard(&control, mark, "終了したログイン：").await?;
    check(told.text().contains("終了したログイン：1"), || {
        format!("not one session ended: {}", told.text())
    })?;
    stage
        .narrator
        .tell_in(&format!("the city revoked terminal {number} (端末失効); its long poll died"), took);

    let lost = stage.place.terminal(Some(&cast.nurse.terminal.identity))?;
    let token = cast.nurse.session.token();
    let whoami = |http: &super::super::client::Http| {
        http.request(Method::GET, "/_matrix/client/v3/account/whoami").bearer_auth(token)
    };
    let body = answer(whoami(&lost)).await?.expect("the lost terminal on a new connection", 403)?;
    same("jp.heya.certificate", &Some("revoked"), &body["jp.heya.certificate"].as_str())?;
    // Its own client, whose connection broke, comes no further than a new one.
    if let Ok(answered) = answer(whoami(&cast.nurse.session.http)).await {
        answered.expect("the lost terminal's client", 403)?;
    }
    let other = stage.place.terminal(Some(&cast.station.terminal.identity))?;
    let body = answer(whoami(&other)).await?.expect("its token on another terminal of the facility", 401)?;
    same("the errcode", &Some("M_UNKNOWN_TOKEN"), &body["errcode"].as_str())?;
    let login = super::super::client::try_login(&lost, &cast.nurse.login_id, &cast.nurse.password).await?;
    login.expect("logging in on the lost terminal", 403)?;
    stage.tell("its certificate is refused (revoked), its token is worth nothing elsewhere");

    let code = cast.command(&format!("端末コード {}", cast.nurse.login_id), "票：").await?;
    let sheets = sheets_of(code.text());
    let sheet = sheets.first().ok_or_else(|| Error::internal("there is no sheet with a code"))?;
    let nurse = &mut cast.nurse;
    let sheets = Sheets::further(stage.data(), sheet, &nurse.login_id, &nurse.password)?;
    nurse.terminal = enrol(&stage.place, &sheets, None, "訪問用スマートフォン2号", &stage.terminals).await?;
    let http = stage.place.terminal(Some(&nurse.terminal.identity))?;
    nurse.session = Session::begin(http, &nurse.login_id, &nurse.password).await?;
    stage.secrets.extend([
        sheets.code,
        nurse.terminal.file_password.clone(),
        nurse.session.token().to_owned(),
    ]);
    stage.tell(format!("{NURSE} enrolled another phone with a new code and the same password"));
    Ok(())
}

/// Step 10: a member asks for the end; afterwards nobody can write and members can read.
pub async fn close(stage: &mut Stage<'_>, cast: &mut Cast, room: &Room) -> Result<()> {
    stage.narrator.step(10);
    let id = room.id.as_str();
    let before = cast.station.session.say(id, "これまでありがとうございました。").await?;
    let in_control = cast.staff.session.mark();
    cast.manager.session.say(id, "この部屋を終了してください").await?;
    let case = cast.case(in_control, "部屋の終了").await?;
    stage.tell(format!("{MANAGER} asked in the room to close it; the bot filed case {}", case.number));
    cast.command(&format!("承認 {}", case.number), &format!("案件 {} を完了しました", case.number)).await?;
    let closed = |seen: &Seen| {
        let event = &seen.event;
        (seen.room == id && event["type"] == "jp.heya.room" && event["content"]["status"] == "closed")
            .then_some(())
    };
    cast.manager.session.until("the end of the room", 0, closed).await?;
    stage.tell(format!("the city approved; room {} is closed", room.number));

    let invited = cast.nurse.session.user_id.clone();
    let mut ways = 0;
    for person in [&mut cast.manager, &mut cast.station, &mut cast.staff] {
        ways += no_way_to_write(person, id, &room.written, &before, &invited).await?;
    }
    stage.tell(format!(
        "{ways} tries of three members to write (message, photo, state, reaction, redaction, typing, invitation): 403 each"
    ));
    for person in [&cast.manager, &cast.station, &cast.staff, &cast.nurse] {
        let path = format!("v3/rooms/{}/messages?dir=b&limit=100", part(id));
        let page = person
            .session
            .call(Method::GET, &path, None)
            .await?
            .expect("the history of the closed room", 200)?;
        let kept =
            page["chunk"].as_array().into_iter().flatten().any(|event| event["event_id"] == before.as_str());
        check(kept, || format!("{} does not find the last message in the history", person.login_id))?;
        let path = format!("v1/media/download/{}", room.photo);
        person.session.call(Method::GET, &path, None).await?.expect("the photo in the closed room", 200)?;
    }
    stage.tell("its history and photo stay readable to its members");
    Ok(())
}

/// Tries every way to write; the number of ways.
async fn no_way_to_write(
    person: &mut Person,
    id: &str,
    earlier: &str,
    last: &str,
    invited: &str,
) -> Result<usize> {
    let room = part(id);
    let session = &mut person.session;
    let upload = session.http.request(Method::POST, "/_matrix/media/v3/upload?filename=late.txt");
    let upload = upload.bearer_auth(session.token()).header(header::CONTENT_TYPE, "text/plain").body("late");
    let uploaded = answer(upload).await?.expect("uploading a file that goes nowhere", 200)?;
    let message = json!({"msgtype": "m.text", "body": "まだ書けますか"});
    let file = json!({"msgtype": "m.file", "body": "late.txt", "url": uploaded["content_uri"]});
    let edit = json!({"msgtype": "m.text", "body": "* x", "m.new_content": {"msgtype": "m.text", "body": "x"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": earlier}});
    let mut tries = Vec::new();
    tries.push(("a message", session.send(id, "m.room.message", message).await?));
    tries.push(("a file", session.send(id, "m.room.message", file).await?));
    tries.push(("an edit", session.send(id, "m.room.message", edit).await?));
    tries.push(("a reaction", session.react(id, last, "👍").await?));
    let user = part(&session.user_id);
    for (what, method, path, body) in [
        ("a topic", Method::PUT, "state/m.room.topic/".to_owned(), json!({"topic": "x"})),
        ("a redaction", Method::PUT, format!("redact/{}/late", part(earlier)), json!({})),
        ("typing", Method::PUT, format!("typing/{user}"), json!({"typing": true, "timeout": 5000})),
        ("an invitation", Method::POST, "invite".to_owned(), json!({"user_id": invited})),
    ] {
        tries.push((what, session.call(method, &format!("v3/rooms/{room}/{path}"), Some(body)).await?));
    }
    for (what, tried) in &tries {
        tried.expect(&format!("{what} of {} in the closed room", person.login_id), 403)?;
    }
    Ok(tries.len())
}

/// Step 11: the log is whole, tampering is found, and it tells who looked.
pub async fn audit(stage: &mut Stage<'_>, cast: &Cast, room: &Room) -> Result<()> {
    stage.narrator.step(11);
    let heads = stage.data().join("audit").join("heads");
    match verify(stage.db, &heads).await? {
        Verdict::Whole { entries } => {
            stage.tell(format!("the audit log is whole: {entries} entries, each proved"))
        }
        Verdict::Unproved { .. } => {
            return Err(Error::internal("nothing beside the database proves the end of the audit log"));
        }
        Verdict::Broken { seq, what } => {
            return Err(Error::internal(format!("the audit log is broken at {seq}: {what}")));
        }
    }
    let copy = Copy::make(stage).await?;
    // Reading the log is itself logged, as `heya audit list` does it: from here on the copy lacks the log's end.
    let read = json!({"room": room.number});
    crate::command::call(stage.config, Method::POST, "audit/read", Some(read)).await?;
    match copy {
        Some(copy) => copy.tamper(stage).await?,
        None => stage.tell("(tampering is tried with copies of SQLite only)"),
    }
    let rows = store::audit::of_room(&mut stage.db.read().await?, &room.id, 1_000).await?;
    let mut looked: BTreeMap<String, (String, i64)> = BTreeMap::new();
    for row in rows {
        let entry: Entry = serde_json::from_str(&row.entry)?;
        if let ("room.opened" | "room.delivered", Some(terminal)) = (entry.action.as_str(), entry.terminal) {
            let at = looked.entry(entry.actor).or_insert((entry.name, 0));
            at.1 = terminal;
        }
    }
    for person in cast.everybody() {
        check(looked.contains_key(&person.session.user_id), || {
            format!("the audit log does not tell that {} looked at the room", person.login_id)
        })?;
    }
    same("how many looked at the room", &cast.everybody().len(), &looked.len())?;
    let list: Vec<String> = looked
        .iter()
        .map(|(id, (name, terminal))| {
            format!("{} on terminal {terminal}", if name.is_empty() { id.as_str() } else { name.as_str() })
        })
        .collect();
    stage.tell(format!("who looked at the subject of room {}: {}", room.number, list.join(", ")));
    Ok(())
}

/// A copy of the database with the log's newest hashes of that moment.
struct Copy {
    folder: PathBuf,
    database: PathBuf,
    heads: PathBuf,
}

impl Copy {
    /// None on PostgreSQL.
    async fn make(stage: &Stage<'_>) -> Result<Option<Self>> {
        let folder = stage.data().join("copy");
        heya::files::private_folder(&folder)?;
        let copy = Self { database: folder.join("heya.sqlite"), heads: folder.join("heads"), folder };
        // The heads first: the database goes on, and then has them all.
        std::fs::copy(stage.data().join("audit").join("heads"), &copy.heads)?;
        Ok(stage.db.snapshot(&copy.database).await?.then_some(copy))
    }

    async fn verdict(&self, database: &Path, heads: &Path) -> Result<Verdict> {
        let db = Db::open(&format!("sqlite:{}", database.display()), &self.folder).await?;
        let verdict = verify(&db, heads).await?;
        db.close().await;
        Ok(verdict)
    }

    /// Changes an entry, as with an editor for files, and puts the copy in the place of the newer database.
    async fn tamper(self, stage: &mut Stage<'_>) -> Result<()> {
        let whole = self.verdict(&self.database, &self.heads).await?;
        check(matches!(whole, Verdict::Whole { .. }), || format!("the copy is not whole: {whole:?}"))?;
        let mut bytes = std::fs::read(&self.database)?;
        let (from, to) = (br#""action":"login""#, br#""action":"loved""#);
        // Everywhere: a page may hold an old picture of a row beside the row.
        let places: Vec<usize> = bytes
            .windows(from.len())
            .enumerate()
            .filter(|(_, text)| *text == from)
            .map(|(at, _)| at)
            .collect();
        for at in places {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        let changed = self.folder.join("changed.sqlite");
        std::fs::write(&changed, bytes)?;
        let live = stage.data().join("audit").join("heads");
        for (how, database, heads) in [
            ("with a changed entry", &changed, &self.heads),
            ("without the newest entries", &self.database, &live),
        ] {
            let Verdict::Broken { seq, what } = self.verdict(database, heads).await? else {
                return Err(Error::internal(format!("a copy of the audit log {how} passed for whole")));
            };
            stage.tell(format!("a copy {how}: found at entry {seq} ({what})"));
        }
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}

/// Nothing of the subject is in a mail or in the log, and no secret in the log.
pub fn look_for_leaks(stage: &mut Stage<'_>) -> Result<()> {
    let mails = stage.mails.all();
    check(!mails.is_empty(), || "no mail came at all".to_owned())?;
    leaks::check_mails(&mails)?;
    stage.tell(format!(
        "{} mails in {}: none names the subject",
        mails.len(),
        stage.data().join("mails").display()
    ));
    let log = std::fs::read_to_string(stage.data().join("log"))?;
    check(log.lines().count() > 10, || "the log is empty".to_owned())?;
    leaks::check_log(&log, &stage.secrets)?;
    stage.tell(format!(
        "the log ({} lines, in detail) holds neither the subject nor a word of the room, and none of {} secrets",
        log.lines().count(),
        stage.secrets.len()
    ));
    Ok(())
}
