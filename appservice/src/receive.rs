//! Taking a file of e-applications (電子申請) that the staff posted in the control room. First it is only read, and the
//! bot says what is in it; on the staff's word each application becomes a case to be decided, or a record of consent.
//!
//! A receipt number (整理番号) counts once. A row that cannot be taken is set aside with its reason and keeps none of the
//! others; the same file, or a mended one, may be taken again and again.

use crate::applications::{self, Application, Reason, Wanted};
use crate::cases::{Action, origin_in_file};
use crate::clock::today;
use crate::control::Facts;
use crate::japanese::fold;
use crate::lookup::Found;
use crate::outbox::{Bot, NewTask, Unfinished};
use crate::store::{self, Due, Filed, Origin, SetAside, Tx};

/// What came of a file, for the staff. Numbers and receipt numbers only: it names nobody.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Applications that can be taken, or were: receipt number, procedure, and the cases they became.
    pub taken: Vec<(String, applications::Procedure, Vec<i64>)>,
    /// How many were taken before.
    pub before: usize,
    pub aside: Vec<SetAside>,
}

impl Bot {
    /// Reads the file and, with `import`, takes what is in it: the transaction in which that is written and the answer
    /// belongs, the answer, and what else is owed. Nothing where the post was taken back meanwhile.
    pub(crate) async fn applications(
        &self,
        due: &Due,
        facts: &Facts,
        file: &str,
        by: &str,
        import: bool,
    ) -> Result<Option<(Tx, String, Vec<NewTask>)>, Unfinished> {
        let Some(mxc) = self.store.application_file(file).await? else { return Ok(None) };
        let list = match self.server.medium(&mxc, applications::FILE_BYTES_MAX).await? {
            Some(bytes) => applications::read(&bytes, &self.headings, today()),
            None => Err(applications::Unreadable::TooLong),
        };
        let list = match list {
            Ok(list) => list,
            Err(problem) => {
                let body = self.texts.unreadable_applications(&problem);
                return Ok(Some((self.store.begin().await?, body, Vec::new())));
            }
        };
        let aside = |line: u64, receipt: Option<String>, reason: &Reason| SetAside {
            line: i64::try_from(line).unwrap_or(i64::MAX),
            receipt,
            reason: self.texts.set_aside_because(reason),
        };
        let mut outcome = Outcome::default();
        outcome.aside.extend(list.aside.into_iter().map(|row| aside(row.line, row.receipt, &row.reason)));
        // The server is asked before the transaction: the bot has one connection.
        let registered: Vec<String> =
            self.server.facilities().await?.iter().map(|facility| fold(&facility.name)).collect();
        let mut complete = Vec::new();
        for application in list.applications {
            match self.lacking(&application, &registered).await? {
                Ok(applicant) => complete.push((application, applicant)),
                Err(reason) => {
                    outcome.aside.push(aside(application.line, Some(application.receipt), &reason));
                }
            }
        }
        let mut tx = self.store.begin().await?;
        let mut next = Vec::new();
        for (application, applicant) in complete {
            if store::is_taken(&mut tx, &application.receipt).await? {
                outcome.before += 1;
                continue;
            }
            let mut cases = Vec::new();
            if import {
                let requester = applicant.as_deref().unwrap_or(by);
                let origin = origin_in_file(file, &application.receipt);
                let of_row = Origin {
                    room_id: &facts.control_room,
                    event_id: &origin,
                    sender: requester,
                    by_staff: true,
                };
                cases = self.take(&mut tx, &mut next, facts, &application, of_row, &registered).await?;
                store::take_application(&mut tx, &application.receipt, cases.last().copied(), by).await?;
            }
            outcome.taken.push((application.receipt, application.procedure, cases));
        }
        // What was taken before needs no mending.
        let mut waiting = Vec::new();
        for row in outcome.aside {
            match &row.receipt {
                Some(receipt) if store::is_taken(&mut tx, receipt).await? => outcome.before += 1,
                _ => waiting.push(row),
            }
        }
        waiting.sort_by_key(|row| row.line);
        outcome.aside = waiting;
        if import {
            store::set_aside(&mut tx, file, &outcome.aside).await?;
            tracing::info!(
                taken = outcome.taken.len(),
                before = outcome.before,
                aside = outcome.aside.len(),
                task = due.key,
                "applications taken"
            );
        }
        Ok(Some((tx, self.texts.applications(&outcome, import), next)))
    }

    /// Who the applicant is, or what only the registers tell that the application lacks.
    async fn lacking(
        &self,
        application: &Application,
        registered: &[String],
    ) -> Result<Result<Option<String>, Reason>, Unfinished> {
        if let Wanted::Issue { facility, kind: None, .. } = &application.wanted
            && !registered.contains(&fold(facility))
        {
            return Ok(Err(Reason::FacilityKind));
        }
        let Some(person) = &application.applicant else { return Ok(Ok(None)) };
        Ok(match self.server.find_person(person, true).await? {
            Found::One(row) if row.status == "active" => Ok(Some(row.user_id)),
            // Who applies for an ID has none yet.
            _ if matches!(application.wanted, Wanted::Issue { .. }) => Ok(None),
            Found::One(_) | Found::Some(_) | Found::None => Err(Reason::ApplicantUnknown),
        })
    }

    /// Makes of an application what it asks for; the cases that it became.
    async fn take(
        &self,
        tx: &mut Tx,
        next: &mut Vec<NewTask>,
        facts: &Facts,
        application: &Application,
        origin: Origin<'_>,
        registered: &[String],
    ) -> Result<Vec<i64>, Unfinished> {
        let actions = match &application.wanted {
            Wanted::Consent(consent) => {
                store::add_consent(tx, consent, origin.sender, origin.event_id).await?;
                // A scan is attached by replying to this.
                let body = self.texts.consent_to_city(consent, origin.sender);
                let key = format!("{}-consent", key_of(origin.event_id));
                next.push(self.tell_city(facts, key, body).because_of(origin.event_id));
                return Ok(Vec::new());
            }
            Wanted::Case(action) => vec![action.clone()],
            Wanted::Issue { issue, facility, kind } => {
                let register = kind.filter(|_| !registered.contains(&fold(facility))).map(|kind| {
                    Action::RegisterFacility { name: facility.clone(), facility_kind: kind.to_owned() }
                });
                register.into_iter().chain([issue.clone()]).collect()
            }
        };
        let mut cases = Vec::new();
        for action in actions {
            let number = match store::file_case(tx, origin, &action).await? {
                Filed::New(number) => {
                    tracing::info!(case = number, action = action.word(), "case filed by an application");
                    next.push(NewTask::examine(origin.room_id, number, 0));
                    number
                }
                // The same is asked for already, by another application or another way.
                Filed::Open(number) | Filed::Known(number) => number,
            };
            cases.push(number);
        }
        Ok(cases)
    }
}

/// An origin as a part of a key, which is a Matrix transaction id too.
fn key_of(origin: &str) -> String {
    origin.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_') { c } else { '.' }).collect()
}
