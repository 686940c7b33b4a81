//! From an event to rows: cases, consents, questions, and what the outbox owes. No call to the server
//! happens here.

use serde::Deserialize;
use serde_json::Value;
use sqlx::SqliteConnection;

use crate::Error;
use crate::cases::{Action, Case, Person, State};
use crate::clock::{now_ms, today};
use crate::commands::{self, Command, Name};
use crate::control::Facts;
use crate::forms::{Consent, Gap, subject_in};
use crate::outbox::{CASE_FIELD, NewTask, ORIGIN_FIELD, Task};
use crate::requests::{self, Heard};
use crate::store::{self, Filed, Origin};
use crate::texts::Texts;

/// How long an answer to 「市への依頼でしょうか」 counts.
const ANSWER_MS_MAX: i64 = 24 * 3600 * 1000;
/// Requests and reports of consent taken from one ID, also a facility's, within a day.
const ASKED_A_DAY_MAX: i64 = 200;
/// The longest message that is read.
const BODY_BYTES_MAX: usize = 32 * 1024;

/// The longest name of a file of applications.
const NAME_BYTES_MAX: usize = 1_024;

/// An event in client format, as far as the bot looks at it.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    #[serde(rename = "type")]
    kind: String,
    room_id: String,
    event_id: String,
    sender: String,
    #[serde(default)]
    state_key: Option<String>,
    #[serde(default)]
    redacts: Option<String>,
    #[serde(default)]
    content: Value,
}

impl Event {
    /// The text a person has just written: no notice, no edit, no quotation of the message replied to.
    fn text(&self) -> Option<String> {
        let relation = &self.content["m.relates_to"];
        if self.kind != "m.room.message"
            || self.content["msgtype"] != "m.text"
            || relation["rel_type"] == "m.replace"
        {
            return None;
        }
        let body = self.content["body"].as_str().filter(|body| body.len() <= BODY_BYTES_MAX)?;
        // Older clients put the message replied to before their own, each line with `> `.
        let mut lines = body.lines().peekable();
        while lines.next_if(|line| line.starts_with('>')).is_some() {}
        Some(lines.collect::<Vec<_>>().join("\n").trim().to_owned())
    }

    /// What a posted file or picture is called, and what is written with it.
    fn file(&self) -> Option<String> {
        let is_file = matches!(self.content["msgtype"].as_str(), Some("m.file" | "m.image"))
            && self.content["url"].as_str().is_some_and(|url| url.starts_with("mxc://"))
            && self.content["m.relates_to"]["rel_type"] != "m.replace";
        if self.kind != "m.room.message" || !is_file {
            return None;
        }
        let words = ["body", "filename"].map(|field| self.content[field].as_str().unwrap_or_default());
        Some(words.join("\n")).filter(|words| words.len() <= BODY_BYTES_MAX)
    }

    /// Address and name of a posted CSV file: e-applications.
    fn list(&self) -> Option<(&str, &str)> {
        // Where there is a name, the body is what is written with it.
        let name = ["filename", "body"].iter().find_map(|field| self.content[*field].as_str())?;
        let mxc = self.content["url"].as_str()?;
        (name.len() <= NAME_BYTES_MAX && name.trim_end().to_lowercase().ends_with(".csv"))
            .then_some((mxc, name))
    }

    /// What a redaction takes back (its place depends on the room's version).
    fn taken_back(&self) -> Option<&str> {
        self.content["redacts"].as_str().or(self.redacts.as_deref())
    }

    fn replies_to(&self) -> Option<&str> {
        self.content["m.relates_to"]["m.in_reply_to"]["event_id"].as_str()
    }

    /// The event id as a part of a key: without the sigil, cut to a sane length.
    fn key(&self, what: &str) -> String {
        let id: String = self
            .event_id
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
            .take(64)
            .collect();
        format!("event-{id}-{what}")
    }

    fn origin(&self, by_staff: bool) -> Origin<'_> {
        Origin { room_id: &self.room_id, event_id: &self.event_id, sender: &self.sender, by_staff }
    }

    /// An answer to this event, to its sender.
    fn answer(&self, what: &str, body: String) -> NewTask {
        // A reaction cannot be replied to; what it is put on can.
        let about =
            if self.kind == "m.reaction" { self.content["m.relates_to"]["event_id"].as_str() } else { None };
        let task = NewTask::say(&self.room_id, self.key(what), body).because_of(&self.event_id);
        task.replying(about.unwrap_or(&self.event_id)).to(&self.sender)
    }
}

/// Takes events inside one database transaction.
pub(crate) struct Intake<'a> {
    pub db: &'a mut SqliteConnection,
    pub texts: &'a Texts,
    pub facts: &'a Facts,
}

impl Intake<'_> {
    /// Stores what follows from an event. One that cannot be stored, though the database is well, is said to be so and
    /// left: the server would send it again for ever, and nobody else would be heard.
    pub(crate) async fn take(&mut self, event: &Event) -> Result<(), Error> {
        sqlx::query("SAVEPOINT event").execute(&mut *self.db).await?;
        let taken = self.store(event).await;
        match taken {
            Err(error) if error.is_of_the_event() => {
                tracing::error!(%error, detail = error.detail(), "an event cannot be taken");
                sqlx::query("ROLLBACK TO event").execute(&mut *self.db).await?;
                self.owe(event.answer("not-understood", self.texts.not_understood())).await?;
            }
            taken => taken?,
        }
        sqlx::query("RELEASE event").execute(&mut *self.db).await?;
        Ok(())
    }

    async fn store(&mut self, event: &Event) -> Result<(), Error> {
        let own = event.sender == self.facts.city_user;
        let in_control = event.room_id == self.facts.control_room;
        match event.kind.as_str() {
            "m.room.member" if event.state_key.as_deref() == Some(&self.facts.city_user) && !own => {
                self.invited(event).await
            }
            "m.room.message" if own && in_control => {
                if let Some(number) = event.content[CASE_FIELD].as_i64() {
                    store::remember_message(self.db, &event.event_id, number).await?;
                }
                match event.content[ORIGIN_FIELD].as_str() {
                    Some(origin) => {
                        store::remember_application_message(self.db, &event.event_id, origin).await?;
                        store::remember_consent_message(self.db, &event.event_id, origin).await
                    }
                    None => Ok(()),
                }
            }
            "m.room.redaction" if in_control => match event.taken_back() {
                Some(target) => {
                    store::take_back_application_file(self.db, target).await?;
                    store::detach_scan(self.db, target).await
                }
                None => Ok(()),
            },
            "m.reaction" if in_control && self.facts.is_staff(&event.sender) => self.reacted(event).await,
            "m.room.message" if !own && event.room_id != self.facts.announcement_room => {
                if in_control
                    && self.facts.is_staff(&event.sender)
                    && let Some(words) = event.file()
                {
                    return match event.list() {
                        Some(file) => self.list(event, file).await,
                        None => self.scan(event, &words).await,
                    };
                }
                let Some(text) = event.text() else { return Ok(()) };
                match (in_control, self.facts.is_staff(&event.sender)) {
                    (true, true) => self.command(event, &text).await,
                    (true, false) => Ok(()),
                    (false, _) => self.request(event, &text).await,
                }
            }
            _ => Ok(()),
        }
    }

    async fn owe(&mut self, task: NewTask) -> Result<(), Error> {
        store::enqueue(self.db, task).await
    }

    /// The control room is told something beside the answer to the event.
    async fn tell_city(&mut self, event: &Event, what: &str, body: String) -> Result<(), Error> {
        let told = NewTask::say(&self.facts.control_room, event.key(what), body);
        self.owe(told.because_of(&event.event_id)).await
    }

    /// Everybody chooses for themselves, anywhere the bot is; the answer comes where it was asked.
    async fn mail_scope(&mut self, event: &Event, scope: Option<&'static str>) -> Result<(), Error> {
        let task = Task::MailScope {
            user: event.sender.clone(),
            scope: scope.map(str::to_owned),
            room: event.room_id.clone(),
            reply_to: event.event_id.clone(),
        };
        self.owe(NewTask { lane: event.room_id.clone(), key: event.key("mail"), task }).await
    }

    async fn invited(&mut self, event: &Event) -> Result<(), Error> {
        if event.content["membership"] != "invite" {
            return Ok(());
        }
        let room = event.room_id.clone();
        self.owe(NewTask { lane: room.clone(), key: event.key("join"), task: Task::Join { room } }).await
    }

    async fn reacted(&mut self, event: &Event) -> Result<(), Error> {
        let relation = &event.content["m.relates_to"];
        let (Some(key), Some(about)) = (relation["key"].as_str(), relation["event_id"].as_str()) else {
            return Ok(());
        };
        // Without variation selectors and skin tones: ✅ and ⭕️ come in several spellings.
        let sign = key.chars().find(|c| !matches!(c, '\u{fe0e}' | '\u{fe0f}'));
        let approves = match sign {
            Some('✅' | '👍' | '⭕') => true,
            Some('❌' | '👎') => false,
            _ => return Ok(()),
        };
        let Some(number) = store::case_of_message(self.db, about).await? else {
            return match store::application_file_of_message(self.db, about).await? {
                Some(file) if approves => self.import(event, file).await,
                _ => Ok(()),
            };
        };
        if approves { self.approve(event, number, false).await } else { self.refuse(event, number, "").await }
    }

    // --- the control room ---

    async fn command(&mut self, event: &Event, text: &str) -> Result<(), Error> {
        if let Some(scope) = commands::mail_scope(text) {
            return self.mail_scope(event, scope).await;
        }
        let command = match commands::parse(text, today()) {
            None => return Ok(()),
            Some(Err(problem)) => {
                let body = match &problem {
                    commands::Problem::Gaps(Name::Consent, _) if text.contains("撤回") => {
                        self.texts.withdrawal_with_gaps()
                    }
                    problem => self.texts.problem(problem),
                };
                self.remember_subject(event, text).await?;
                return self.owe(event.answer("usage", body)).await;
            }
            Some(Ok(command)) => command,
        };
        match command {
            Command::Help => self.owe(event.answer("help", self.texts.help())).await,
            Command::Act(action) => self.file(event, event.origin(true), &action).await,
            Command::Consent(consent) => self.consent(event, &consent).await,
            Command::WithdrawConsent { name, birth_date } => {
                self.remember_subject(event, text).await?;
                self.withdraw(event, &name, &birth_date).await
            }
            Command::Look(look) => {
                let task = Task::Look { look, reply_to: event.event_id.clone() };
                self.owe(NewTask { lane: event.room_id.clone(), key: event.key("look"), task }).await
            }
            Command::OpenCases => {
                let mut cases = Vec::new();
                for case in store::open_cases(self.db).await? {
                    let scans = self.scans(&case).await?;
                    cases.push((case, scans));
                }
                let mut body = self.texts.open_cases(&cases);
                let aside = store::still_aside(self.db).await?;
                if !aside.is_empty() {
                    body = format!("{body}\n\n{}", self.texts.applications_aside(&aside));
                }
                self.owe(event.answer("cases", body)).await
            }
            Command::ShowCase(number) => {
                let Some(case) = store::case(self.db, number).await? else {
                    return self
                        .owe(event.answer("case", self.texts.no_such_case(number)).about(number))
                        .await;
                };
                let scans = self.scans(&case).await?;
                let answer = event.answer("case", self.texts.case_in_full(&case, scans)).about(number);
                // What it shows follows from the case.
                self.owe(answer.because_of(&case.event_id)).await
            }
            Command::Approve { cases, second_room } => {
                let cases = if cases.is_empty() {
                    self.replied_case(event).await?.into_iter().collect()
                } else {
                    cases
                };
                if cases.is_empty() {
                    return self.owe(event.answer("which", self.texts.which_case())).await;
                }
                for number in cases {
                    self.approve(event, number, second_room).await?;
                }
                Ok(())
            }
            Command::Refuse { case, reason } => {
                let number = match case {
                    Some(number) => Some(number),
                    None => self.replied_case(event).await?,
                };
                match number {
                    Some(number) => self.refuse(event, number, &reason).await,
                    None => self.owe(event.answer("which", self.texts.which_case())).await,
                }
            }
            Command::Assign { case, people } => self.assign(event, case, people).await,
            Command::Import => {
                let file = match event.replies_to() {
                    Some(message) => store::application_file_of_message(self.db, message).await?,
                    None => None,
                };
                match file {
                    Some(file) => self.import(event, file).await,
                    None => self.owe(event.answer("import", self.texts.import_what())).await,
                }
            }
        }
    }

    /// A form that becomes neither a case nor a report names its subject all the same: it goes with the subject's record.
    async fn remember_subject(&mut self, event: &Event, text: &str) -> Result<(), Error> {
        match subject_in(text, today()) {
            Some(key) => store::remember_subject_post(self.db, &event.event_id, &key).await,
            None => Ok(()),
        }
    }

    async fn replied_case(&mut self, event: &Event) -> Result<Option<i64>, Error> {
        match event.replies_to() {
            Some(message) => store::case_of_message(self.db, message).await,
            None => Ok(None),
        }
    }

    async fn approve(&mut self, event: &Event, number: i64, second_room: bool) -> Result<(), Error> {
        let Some(mut case) = store::case(self.db, number).await? else {
            return self
                .owe(event.answer(&format!("no-case-{number}"), self.texts.no_such_case(number)))
                .await;
        };
        // What an application waited for may be there by now.
        if case.state == State::Filed && !case.ready && case.receipt().is_some() {
            store::update_action(self.db, number, &case.action, false).await?;
            self.owe(NewTask::examine(&case.room_id, number, case.revision + 1)).await?;
        }
        if !case.state.may_become(State::Approved) || !case.ready {
            return self.owe(event.answer(&format!("not-{number}"), self.texts.cannot_decide(&case))).await;
        }
        if case.state != State::Filed
            && let Some(twin) = store::twin(self.db, number).await?
        {
            let body = self.texts.twin_is_open(number, twin);
            return self.owe(event.answer(&format!("twin-{number}"), body)).await;
        }
        if second_room && let Action::OpenSubject { confirm_second, .. } = &mut case.action {
            *confirm_second = true;
            store::update_action(self.db, number, &case.action, true).await?;
        }
        store::change_case(self.db, number, State::Approved, &event.sender, None).await?;
        store::remember_decision(self.db, number, &event.event_id).await?;
        self.owe(NewTask::execute(&case.room_id, number, case.attempts + 1)).await
    }

    async fn refuse(&mut self, event: &Event, number: i64, reason: &str) -> Result<(), Error> {
        let Some(case) = store::case(self.db, number).await? else {
            return self
                .owe(event.answer(&format!("no-case-{number}"), self.texts.no_such_case(number)))
                .await;
        };
        if !case.state.may_become(State::Refused) {
            return self.owe(event.answer(&format!("not-{number}"), self.texts.cannot_decide(&case))).await;
        }
        store::change_case(self.db, number, State::Refused, &event.sender, Some(reason)).await?;
        store::remember_decision(self.db, number, &event.event_id).await?;
        self.owe(event.answer(&format!("refused-{number}"), self.texts.refused_to_city(number))).await?;
        if case.by_staff {
            return Ok(());
        }
        let told = NewTask::say(
            &case.room_id,
            format!("case-{number}-refused"),
            self.texts.refused_to_requester(number, reason),
        );
        self.owe(told.replying(&case.event_id).to(&case.requester).because_of(&case.event_id)).await
    }

    /// The staff say who is meant; the case is looked up anew with them.
    async fn assign(&mut self, event: &Event, number: i64, people: Vec<Person>) -> Result<(), Error> {
        let found: Option<Case> = store::case(self.db, number).await?;
        let Some(mut case) = found else {
            return self.owe(event.answer("no-case", self.texts.no_such_case(number))).await;
        };
        if case.state != State::Filed || !case.action.name_people(people) {
            return self.owe(event.answer("not-assigned", self.texts.nobody_to_assign(number))).await;
        }
        store::update_action(self.db, number, &case.action, false).await?;
        self.owe(NewTask::examine(&case.room_id, number, case.revision + 1)).await
    }

    /// A file in the control room: the scan of a consent form, where it answers a post about one or says so itself.
    async fn scan(&mut self, event: &Event, words: &str) -> Result<(), Error> {
        let said = commands::consent_scan(words);
        let (case, consent) = match (said, event.replies_to()) {
            (Some(Some(number)), _) => (Some(number), None),
            (_, Some(message)) => {
                let case = store::case_of_message(self.db, message).await?;
                let consent = store::consent_of_message(self.db, message).await?;
                (case, consent)
            }
            (_, None) => (None, None),
        };
        let of_case = match case {
            Some(number) => store::case(self.db, number).await?,
            None => None,
        };
        let key = of_case.as_ref().and_then(|case| case.action.consent_key());
        let consent = match (consent, &key) {
            (None, Some(key)) => store::consent_of_subject(self.db, key).await?,
            (consent, _) => consent,
        };
        let answer = match (consent, case) {
            (Some(consent), _) => {
                let count = store::attach_scan(self.db, &consent, &event.event_id, &event.sender).await?;
                let body = match count {
                    Some(count) => self.texts.scan_stored(&consent, count),
                    None => self.texts.too_many_scans(),
                };
                // It names the subject, and goes with what it follows from.
                event.answer("scan", body).because_of(&consent.event_id)
            }
            (None, Some(number)) if of_case.is_none() => {
                event.answer("scan", self.texts.no_such_case(number))
            }
            // A file that answers another kind of case is none of ours, unless it says that it is.
            (None, Some(number)) if key.is_some() || said.is_some() => {
                event.answer("scan", self.texts.scan_without_consent(number))
            }
            (None, None) if said.is_some() => event.answer("scan", self.texts.scan_of_what()),
            (None, _) => return Ok(()),
        };
        self.owe(answer).await
    }

    /// A CSV file in the control room: read at once, taken on a further word.
    async fn list(&mut self, event: &Event, file: (&str, &str)) -> Result<(), Error> {
        store::remember_application_file(self.db, &event.event_id, file, &event.sender).await?;
        self.read_list(event, event.event_id.clone(), false).await
    }

    async fn import(&mut self, event: &Event, file: String) -> Result<(), Error> {
        self.read_list(event, file, true).await
    }

    async fn read_list(&mut self, event: &Event, file: String, import: bool) -> Result<(), Error> {
        // A reaction cannot be replied to.
        let reply_to = if event.kind == "m.reaction" { file.clone() } else { event.event_id.clone() };
        let task = Task::Applications { file, by: event.sender.clone(), import, reply_to };
        self.owe(NewTask { lane: event.room_id.clone(), key: event.key("applications"), task }).await
    }

    /// How many scans a case's consent has; nothing where the case rests on none.
    async fn scans(&mut self, case: &Case) -> Result<Option<i64>, Error> {
        match case.action.consent_key() {
            Some(key) => Ok(Some(store::scans_of_subject(self.db, &key).await?)),
            None => Ok(None),
        }
    }

    // --- every other room ---

    async fn request(&mut self, event: &Event, text: &str) -> Result<(), Error> {
        if let Some(scope) = commands::mail_scope(text) {
            return self.mail_scope(event, scope).await;
        }
        let question = store::take_question(self.db, &event.room_id, &event.sender).await?;
        let question = question.filter(|question| now_ms() - question.asked_at <= ANSWER_MS_MAX);
        let heard = requests::hear(text, today());
        // Each is a row for years and a post or two in the control room, which the city reads. A withdrawal is always taken.
        let asks = match (&heard, &question) {
            (Heard::Request(actions) | Heard::Unsure(actions), _) => actions.len(),
            (Heard::Yes, Some(question)) => question.actions.len(),
            (Heard::Consent(Ok(_)) | Heard::Opening(Ok(_)), _) => 1,
            _ => 0,
        };
        if asks > 0 && !self.facts.is_staff(&event.sender) {
            let before = store::asked_since(self.db, &event.sender, now_ms() - 86_400_000).await?;
            if before.saturating_add(i64::try_from(asks).unwrap_or(i64::MAX)) > ASKED_A_DAY_MAX {
                self.remember_subject(event, text).await?;
                return self.owe(event.answer("too-many", self.texts.asked_too_often())).await;
            }
        }
        match (heard, question) {
            (Heard::Yes, Some(question)) => {
                let origin = Origin { event_id: &question.event_id, ..event.origin(false) };
                for action in &question.actions {
                    self.file(event, origin, action).await?;
                }
                Ok(())
            }
            (Heard::No, Some(_)) => self.owe(event.answer("not-filed", self.texts.not_filed())).await,
            (Heard::Yes | Heard::No | Heard::Nothing, _) => Ok(()),
            (Heard::Help, _) => self.owe(event.answer("help", self.texts.welcome())).await,
            (Heard::Request(actions), _) => {
                for action in &actions {
                    self.file(event, event.origin(false), action).await?;
                }
                Ok(())
            }
            (Heard::Unsure(actions), _) => {
                store::ask(self.db, &event.room_id, &event.sender, &event.event_id, &actions).await?;
                self.owe(event.answer("ask", self.texts.ask_if_request(&actions))).await
            }
            (Heard::WhoIsMeant { adding }, _) => {
                self.owe(event.answer("who", self.texts.ask_who(adding))).await
            }
            (Heard::Consent(Ok(consent)), _) => self.consent(event, &consent).await,
            (Heard::Consent(Err(gaps)), _) => {
                self.remember_subject(event, text).await?;
                self.show_form(event, Name::Consent, &gaps).await
            }
            (Heard::Withdrawal(Ok((name, birth_date))), _) => {
                self.file(event, event.origin(false), &Action::Withdrawal { name, birth_date }).await
            }
            (Heard::Withdrawal(Err(_)), _) => {
                self.remember_subject(event, text).await?;
                self.owe(event.answer("form", self.texts.withdrawal_with_gaps())).await
            }
            (Heard::Opening(Ok(mut action)), _) => {
                // Whoever asks for a room is in it.
                if let Action::OpenSubject { people, .. } | Action::OpenAssociation { people, .. } =
                    &mut action
                {
                    people.insert(0, Person::named(&event.sender));
                }
                self.file(event, event.origin(false), &action).await
            }
            (Heard::Opening(Err(gaps)), _) => {
                self.remember_subject(event, text).await?;
                self.show_form(event, Name::Open, &gaps).await
            }
        }
    }

    async fn show_form(&mut self, event: &Event, name: Name, gaps: &[Gap]) -> Result<(), Error> {
        self.owe(event.answer("form", self.texts.form_with_gaps(name, gaps))).await
    }

    // --- what both do ---

    /// Files a case and has it examined; a duplicate is answered with the number it has.
    async fn file(&mut self, event: &Event, origin: Origin<'_>, action: &Action) -> Result<(), Error> {
        match store::file_case(self.db, origin, action).await? {
            Filed::New(number) => {
                tracing::info!(
                    case = number,
                    action = action.word(),
                    by_staff = origin.by_staff,
                    "case filed"
                );
                self.owe(NewTask::examine(origin.room_id, number, 0)).await
            }
            Filed::Open(number) => {
                // The case came by another event: this one is nobody's, and may name a subject.
                if let Some(key) = action.consent_key() {
                    store::remember_subject_post(self.db, &event.event_id, &key).await?;
                }
                let answer = event.answer(&format!("duplicate-{number}"), self.texts.duplicate(number));
                self.owe(answer).await
            }
            Filed::Known(_) => Ok(()),
        }
    }

    async fn consent(&mut self, event: &Event, consent: &Consent) -> Result<(), Error> {
        store::add_consent(self.db, consent, &event.sender, &event.event_id).await?;
        self.owe(event.answer("consent", self.texts.consent_stored())).await?;
        if event.room_id == self.facts.control_room {
            return Ok(());
        }
        self.tell_city(event, "consent-city", self.texts.consent_to_city(consent, &event.sender)).await
    }

    /// A withdrawal in the control room: the staff's own word takes effect at once.
    async fn withdraw(&mut self, event: &Event, name: &str, birth_date: &str) -> Result<(), Error> {
        let key = crate::cases::subject_key(name, birth_date);
        let count = store::withdraw_consent(self.db, &key, &event.sender).await?;
        self.owe(event.answer("withdrawn", self.texts.consent_withdrawn(count))).await?;
        if count == 0 {
            return Ok(());
        }
        self.tell_city(
            event,
            "withdrawn-city",
            self.texts.withdrawal_to_city(name, birth_date, &event.sender),
        )
        .await
    }
}
