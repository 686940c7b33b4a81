//! Taking a file of e-applications (電子申請) that the staff posted in the control room. First it is only read, and the
//! bot says what is in it; on the staff's word each application becomes a case to be decided, or a record of consent.
//!
//! A receipt number (整理番号) counts once. A row that cannot be taken is set aside with its reason and keeps none of the
//! others; the same file, or a mended one, may be taken again and again.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use crate::applications::{self, Application, Procedure, Reason, Unreadable, Wanted};
use crate::cases::{Action, Place, origin_in_file};
use crate::clock::{japanese_time, today};
use crate::control::Facts;
use crate::japanese::{fold, iso};
use crate::lookup::Found;
use crate::outbox::{Bot, NewTask, Unfinished};
use crate::server::{CallError, SERVER_ERROR};
use crate::store::{self, Due, Filed, Origin, SetAside, Taken, Tx};

/// So often a file is asked for that the server has and cannot give.
const ATTEMPTS_MAX: i64 = 5;

/// What came of a file, for the staff. Numbers and receipt numbers only: it names nobody.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Applications that can be taken, or were: receipt number, procedure, and the cases they became.
    pub taken: Vec<(String, Procedure, Vec<i64>)>,
    /// How many were taken before.
    pub before: usize,
    pub aside: Vec<SetAside>,
}

/// Who applied: Matrix id, and as the city knows them.
struct Applicant {
    user_id: String,
    label: String,
}

/// What the registers say, asked for once for a file.
#[derive(Default)]
struct Registers {
    /// The folded names of the registered facilities.
    facilities: HashSet<String>,
    /// By room number: its state and who is in it; nothing where there is no such room.
    rooms: HashMap<i64, Option<(String, Vec<String>)>>,
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
        let Some((mxc, name)) = self.store.application_file(file).await? else { return Ok(None) };
        let list = match self.server.medium(&mxc, applications::FILE_BYTES_MAX).await {
            Ok(Some(bytes)) => applications::read(&bytes, &name, &self.headings, today()),
            Ok(None) => Err(Unreadable::TooLong),
            // The server is there and the file is not: everybody else's work must not wait for it for ever.
            Err(CallError::Transient { reason: SERVER_ERROR, .. }) if due.attempts >= ATTEMPTS_MAX => {
                Err(Unreadable::Missing)
            }
            Err(error) => return Err(error.into()),
        };
        let list = match list {
            Ok(list) => list,
            Err(problem) => {
                let body = self.texts.unreadable_applications(&problem);
                return Ok(Some((self.store.begin().await?, body, Vec::new())));
            }
        };
        // The server is asked before the transaction: the bot has one connection.
        let facilities = self.server.facilities().await?;
        let mut registers = Registers {
            facilities: facilities.iter().map(|facility| fold(&facility.name)).collect(),
            rooms: HashMap::new(),
        };
        let mut aside: Vec<(u64, Option<String>, Reason)> =
            list.aside.into_iter().map(|row| (row.line, row.receipt, row.reason)).collect();
        let mut complete = Vec::new();
        for application in list.applications {
            match self.lacking(&application, &mut registers, facts).await? {
                Ok(applicant) => complete.push((application, applicant)),
                Err(reason) => aside.push((application.line, Some(application.receipt), reason)),
            }
        }
        let consents: HashSet<String> = complete
            .iter()
            .filter_map(|(application, _)| match &application.wanted {
                Wanted::Consent(consent) => Some(consent.key()),
                _ => None,
            })
            .collect();

        let mut tx = self.store.begin().await?;
        store::remember_subjects(&mut tx, file, &list.subjects).await?;
        let mut outcome = Outcome::default();
        // What was taken before needs no mending; a second row of one number does.
        let mut waiting = Vec::new();
        for (line, receipt, reason) in aside {
            match &receipt {
                Some(number)
                    if reason != Reason::Twice && store::taken(&mut tx, number).await? != Taken::No =>
                {
                    outcome.before += 1;
                }
                _ => waiting.push((line, receipt, reason)),
            }
        }
        let mut next = Vec::new();
        // By case: the receipt number of this file that it was filed for.
        let mut filed: HashMap<i64, String> = HashMap::new();
        for (application, applicant) in complete {
            match store::taken(&mut tx, &application.receipt).await? {
                Taken::As(content) if content == application.content || content.is_empty() => {
                    outcome.before += 1;
                    continue;
                }
                Taken::As(_) => {
                    waiting.push((application.line, Some(application.receipt), Reason::Differs));
                    continue;
                }
                Taken::No => {}
            }
            let requester = applicant.as_ref().map_or(by, |applicant| &applicant.user_id);
            let origin = origin_in_file(file, &application.receipt);
            let of_row =
                Origin { room_id: &facts.control_room, event_id: &origin, sender: requester, by_staff: true };
            if let Some(reason) = refused(&mut tx, &application, of_row, &consents).await? {
                let reason = match reason {
                    // A case that is thrown away again is no number to name.
                    Reason::Same(case) if !import => {
                        filed.get(&case).cloned().map_or(Reason::Same(case), Reason::SameRow)
                    }
                    other => other,
                };
                waiting.push((application.line, Some(application.receipt), reason));
                continue;
            }
            // A file that is only read is taken as well, and the transaction thrown away: what two of its rows ask for alike
            // is told before, too.
            let who = applicant.as_ref().map_or(by, |applicant| &applicant.label);
            let cases = self.take(&mut tx, &mut next, facts, &application, of_row, who, &registers).await?;
            store::take_application(&mut tx, &application, cases.last().copied(), by).await?;
            filed.extend(cases.iter().map(|case| (*case, application.receipt.clone())));
            let cases = if import { cases } else { Vec::new() };
            outcome.taken.push((application.receipt, application.procedure, cases));
        }
        waiting.sort_by_key(|(line, ..)| *line);
        outcome.aside = waiting
            .into_iter()
            .map(|(line, receipt, reason)| SetAside {
                line: i64::try_from(line).unwrap_or(i64::MAX),
                receipt,
                reason: self.texts.set_aside_because(&reason),
            })
            .collect();
        if import {
            store::set_aside(&mut tx, file, &outcome.aside).await?;
            let (taken, before, aside) = (outcome.taken.len(), outcome.before, outcome.aside.len());
            let cases = outcome.taken.iter().map(|(_, _, cases)| cases.len()).sum::<usize>();
            tracing::info!(taken, before, aside, cases, "applications taken");
        } else {
            tx.rollback().await?;
            next.clear();
            tx = self.store.begin().await?;
            store::remember_subjects(&mut tx, file, &list.subjects).await?;
        }
        Ok(Some((tx, self.texts.applications(&outcome, import), next)))
    }

    /// Who the applicant is, or what only the registers tell that the application lacks.
    async fn lacking(
        &self,
        application: &Application,
        registers: &mut Registers,
        facts: &Facts,
    ) -> Result<Result<Option<Applicant>, Reason>, Unfinished> {
        if let Wanted::Issue { facility, kind: None, .. } = &application.wanted
            && !registers.facilities.contains(&fold(facility))
        {
            return Ok(Err(Reason::FacilityKind));
        }
        let applicant = match &application.applicant {
            None => None,
            Some(person) => match self.server.find_person(person, true).await? {
                Found::One(row) if row.status == "active" => {
                    Some(Applicant { label: row.label(), user_id: row.user_id })
                }
                // Who applies for an ID has none yet.
                _ if matches!(application.wanted, Wanted::Issue { .. }) => None,
                Found::One(_) | Found::Some(_) | Found::None => return Ok(Err(Reason::ApplicantUnknown)),
            },
        };
        if let Wanted::Case(
            Action::Add { place, .. } | Action::Remove { place, .. } | Action::Close { place },
        ) = &application.wanted
            && let Some(number) = place.number
        {
            let found = match registers.rooms.entry(number) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    let mut place = Place { number: Some(number), ..Place::default() };
                    unknown.insert(self.find_place(&mut place, &facts.control_room).await?)
                }
            };
            let Some((status, members)) = found else { return Ok(Err(Reason::NoSuchRoom)) };
            if !applicant.as_ref().is_some_and(|applicant| members.contains(&applicant.user_id)) {
                return Ok(Err(Reason::NotAMember));
            }
            if status != "open" {
                return Ok(Err(Reason::RoomClosed));
            }
        }
        Ok(Ok(applicant))
    }

    /// Makes of an application what it asks for; the cases that it became.
    #[expect(clippy::too_many_arguments, reason = "one row with everything that is known of it")]
    async fn take(
        &self,
        tx: &mut Tx,
        next: &mut Vec<NewTask>,
        facts: &Facts,
        application: &Application,
        origin: Origin<'_>,
        who: &str,
        registers: &Registers,
    ) -> Result<Vec<i64>, Unfinished> {
        let actions = match &application.wanted {
            Wanted::Consent(consent) => {
                store::add_consent(tx, consent, origin.sender, origin.event_id).await?;
                // A scan is attached by replying to this.
                let who = self.texts.applied(&application.receipt, who);
                let body = self.texts.consent_to_city(consent, &who);
                let key = format!("{}-consent", key_of(origin.event_id));
                next.push(self.tell_city(facts, key, body).because_of(origin.event_id));
                return Ok(Vec::new());
            }
            Wanted::Case(action) => vec![action.clone()],
            Wanted::Issue { issue, facility, kind } => {
                let register = kind.filter(|_| !registers.facilities.contains(&fold(facility))).map(|kind| {
                    Action::RegisterFacility { name: facility.clone(), facility_kind: kind.to_owned() }
                });
                register.into_iter().chain([issue.clone()]).collect()
            }
        };
        let mut cases = Vec::new();
        for action in actions {
            let number = match store::file_case(tx, origin, &action).await? {
                Filed::New(number) => {
                    next.push(NewTask::examine(origin.room_id, number, 0));
                    number
                }
                // A facility's registration, which another application asks for already; or a receipt number that was
                // given back.
                Filed::Open(number) | Filed::Known(number) => number,
            };
            cases.push(number);
        }
        Ok(cases)
    }
}

/// What the bot's own records say against an application.
async fn refused(
    tx: &mut Tx,
    application: &Application,
    origin: Origin<'_>,
    consents: &HashSet<String>,
) -> Result<Option<Reason>, Unfinished> {
    let action = match &application.wanted {
        Wanted::Consent(consent) => {
            let withdrawn = store::consent_withdrawn_at(tx, &consent.key()).await?;
            let since = withdrawn.map(|at| iso(japanese_time(at).date()));
            return Ok(since.filter(|since| consent.explained_on < *since).map(|_| Reason::Withdrawn));
        }
        Wanted::Case(action) | Wanted::Issue { issue: action, .. } => action,
    };
    if let Action::OpenSubject { subject, .. } = action
        && !consents.contains(&subject.key())
        && !store::has_consent(tx, &subject.key(), None).await?
    {
        return Ok(Some(Reason::NoConsent));
    }
    // Who is named in the one and not in the other would be lost.
    Ok(store::open_case(tx, origin, action).await?.map(Reason::Same))
}

/// An origin as a part of a key, which is a Matrix transaction id too: one for each.
fn key_of(origin: &str) -> String {
    origin.trim_start_matches('$').replace('#', ".").replace('/', "~")
}
