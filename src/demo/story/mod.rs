//! What happens in the demo: the way of a subject's room from the city's first log-in to the room's end. Every step
//! checks what it tells.

use std::path::{Path, PathBuf};

use heya::{
    config::Config,
    error::{Error, Result},
    files,
    serve::Running,
    store::Db,
};

use super::{
    client::{Place, Seen, Session},
    enrolment::{Sheets, Terminal, enrol},
    mail_sink::Sink,
    narrator::Narrator,
};

mod ends;
mod people;
mod rooms;

/// The file that says how to log in, for the folder's owner only.
pub const HOW_TO: &str = "how-to-log-in.txt";

/// What all steps need.
struct Stage<'a> {
    narrator: &'a mut Narrator,
    config: &'a Config,
    db: &'a Db,
    mails: &'a Sink,
    place: Place,
    /// Where .p12 files go.
    terminals: PathBuf,
    /// Passwords, codes and tokens: none may be in the log.
    secrets: Vec<String>,
}

/// Somebody with an ID, a terminal and a session.
struct Person {
    /// What they are, for whoever logs in as them later.
    role: &'static str,
    login_id: String,
    password: String,
    terminal: Terminal,
    session: Session,
}

/// Everybody, and the rooms that all of the story needs.
struct Cast {
    /// The city's first member of staff.
    staff: Person,
    /// The visiting-nurse station, by its facility ID (施設ID).
    station: Person,
    /// A nurse of that station.
    nurse: Person,
    /// The care manager, of another facility.
    manager: Person,
    /// The control room (市の管理室).
    control: String,
    /// The announcement room (市からのお知らせ).
    announcement: String,
}

/// A case as the control room sees it.
struct Case {
    number: i64,
    /// The message that shows it.
    message: String,
    text: String,
}

/// Tells the story to its end.
pub async fn tell(narrator: &mut Narrator, config: &Config, running: &Running, mails: &Sink) -> Result<()> {
    let data = &config.server.data_dir;
    let terminals = data.join("terminals");
    files::private_folder(&terminals)?;
    let ca = std::fs::read(data.join("keys").join("ca.pem"))?;
    let mut stage = Stage {
        narrator,
        config,
        db: &running.server.db,
        mails,
        place: Place {
            ca: reqwest::Certificate::from_pem(&ca)?,
            public: config.server.public_url.clone(),
            enrol: config.enrol_url(),
        },
        terminals,
        secrets: Vec::new(),
    };
    let first = running.first.as_ref().ok_or_else(|| {
        Error::internal("the database is not empty: the demo needs one where no city has begun")
    })?;
    let mut cast = people::gather(&mut stage, &first.sheets).await?;
    people::both_factors(&mut stage, &mut cast).await?;
    let room = rooms::open(&mut stage, &mut cast).await?;
    let room = rooms::write(&mut stage, &mut cast, &room).await?;
    rooms::add_the_nurse(&mut stage, &mut cast, &room).await?;
    rooms::announce(&mut stage, &mut cast).await?;
    ends::lose_a_terminal(&mut stage, &mut cast).await?;
    ends::close(&mut stage, &mut cast, &room).await?;
    ends::audit(&mut stage, &cast, &room).await?;
    ends::look_for_leaks(&mut stage)?;
    write_how_to(&stage, &cast)
}

impl Stage<'_> {
    fn data(&self) -> &Path {
        &self.config.server.data_dir
    }

    fn city_user(&self) -> String {
        format!("@city:{}", self.config.server_name())
    }

    fn tell(&mut self, what: impl AsRef<str>) {
        self.narrator.tell(what.as_ref());
    }

    /// From two sheets to a session.
    async fn enrol(&mut self, role: &'static str, sheets: &[String], label: &str) -> Result<Person> {
        let sheets = Sheets::read(self.data(), sheets)?;
        // Three kinds of characters and 83 bits: within the rules whatever the random ones are.
        let password = format!("Ky3-{}", heya::clock::random_token(14));
        let terminal = enrol(&self.place, &sheets, Some(&password), label, &self.terminals).await?;
        let session =
            Session::begin(self.place.terminal(Some(&terminal.identity))?, &sheets.login_id, &password)
                .await?;
        self.secrets.extend([
            sheets.password.clone(),
            sheets.code.replace('-', ""),
            sheets.code.clone(),
            password.clone(),
            terminal.file_password.clone(),
            session.token().to_owned(),
        ]);
        Ok(Person { role, login_id: sheets.login_id, password, terminal, session })
    }
}

impl Cast {
    fn everybody(&self) -> [&Person; 4] {
        [&self.staff, &self.station, &self.nurse, &self.manager]
    }

    /// The member of staff writes a command in the control room and reads the bot's answer.
    async fn command(&mut self, text: &str, answer: &str) -> Result<Seen> {
        command(&mut self.staff, &self.control, text, answer).await
    }

    /// Waits for a case in the control room that contains a text.
    async fn case(&mut self, mark: usize, text: &str) -> Result<Case> {
        let control = self.control.clone();
        let find = |seen: &Seen| {
            let number = seen.event["content"]["jp.heya.case"].as_i64()?;
            let shown = seen.room == control && seen.text().starts_with(&format!("案件 {number}（"));
            (shown && seen.text().contains(text)).then(|| Case {
                number,
                message: seen.id(),
                text: seen.text().to_owned(),
            })
        };
        self.staff.session.until(&format!("the case 「{text}」 in the control room"), mark, find).await
    }
}

async fn command(staff: &mut Person, control: &str, text: &str, answer: &str) -> Result<Seen> {
    let mark = staff.session.mark();
    staff.session.say(control, text).await?;
    staff.session.heard(control, mark, answer).await
}

/// An error where something is not as it must be.
fn check(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::internal(what())) }
}

/// An error where two things are not the same.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, got: &T) -> Result<()> {
    check(expected == got, || format!("{what}: expected {expected:?}, got {got:?}"))
}

fn write_how_to(stage: &Stage<'_>, cast: &Cast) -> Result<()> {
    let config = stage.config;
    let mut text = format!(
        "Heya demo: how to log in with Element (or any Matrix client in a browser)\n\n\
         1. Trust the demo's CA in the browser:            {}\n\
         2. Import one of the .p12 files below (a certificate of a terminal) with its password.\n\
         3. Open {} in that browser and choose the certificate,\n\
         \u{20}  or give this address as the homeserver to a client that can show certificates.\n\
         4. Log in with the ID and the password. Both belong to the terminal's facility: an ID of one facility is refused\n\
         \u{20}  on a terminal of the other.\n\n\
         Enrolment of further terminals: {}/enrol\n\
         Mail that was sent:             {}\n\n",
        stage.data().join("keys").join("ca.pem").display(),
        config.server.public_url,
        config.enrol_url(),
        stage.data().join("mails").display(),
    );
    for person in cast.everybody() {
        text.push_str(&format!(
            "{}\n  ID:                {}\n  password:          {}\n  certificate file:  {}\n  its password:      {}\n\n",
            person.role,
            person.login_id,
            person.password,
            person.terminal.file.display(),
            person.terminal.file_password,
        ));
    }
    files::write_private(&stage.data().join(HOW_TO), text.as_bytes())
}
