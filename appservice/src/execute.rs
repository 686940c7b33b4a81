//! Carrying out an approved case: exactly one changing call, under the case's key, then telling everybody
//! concerned.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::cases::{Action, Case, Person, State, Step, subject_key};
use crate::control::Facts;
use crate::examine::{refused, room_number};
use crate::lookup::Found;
use crate::outbox::{Bot, NewTask, Unfinished};
use crate::server::CallError;
use crate::store::{self, Due, Tx};

/// What lines may hold that go with a purged room, as the internal API takes them.
const LINES_MAX: usize = 500;

/// Why a room is not opened although it was approved; worded like the server's codes.
pub(crate) const CONSENT_WITHDRAWN: &str = "JP_HEYA_CONSENT_WITHDRAWN";

impl Bot {
    /// Executes a case; called again after a crash it makes the same call under the same key.
    pub(crate) async fn execute(&self, due: &Due, facts: &Facts, number: i64) -> Result<(), Unfinished> {
        let Some(mut case) = self.store.case(number).await? else { return self.finish(due, []).await };
        // Whoever approved it acts; a command of the staff is approved by whoever gave it.
        let acting = case.decided_by.clone().unwrap_or_else(|| case.requester.clone());
        match case.state {
            State::Approved => {
                let mut tx = self.store.begin().await?;
                store::change_case(&mut tx, number, State::Executing, &acting, None).await?;
                // Consent may have been withdrawn since the case was examined. Asked only before the first
                // call: after a crash the room may exist, and only the same call tells.
                if let Action::OpenSubject { subject, .. } = &case.action
                    && !store::has_consent(&mut tx, &subject.key(), None).await?
                {
                    return self.failed(tx, due, facts, &case, CONSENT_WITHDRAWN, None).await;
                }
                tx.commit().await.map_err(Error::from)?;
                case.state = State::Executing;
            }
            State::Executing => {}
            State::Filed | State::Done | State::Refused | State::Failed => return self.finish(due, []).await,
        }
        match self.call(&case, &acting).await {
            Ok(answer) => self.succeeded(due, facts, &case, &acting, &answer).await,
            Err(error @ (Unfinished::Store(_) | Unfinished::NoControl)) => Err(error),
            Err(Unfinished::Call(error)) => {
                let (errcode, number_of_room) = refused(error)?;
                let tx = self.store.begin().await?;
                self.failed(tx, due, facts, &case, &errcode, number_of_room).await
            }
        }
    }

    async fn succeeded(
        &self,
        due: &Due,
        facts: &Facts,
        case: &Case,
        acting: &str,
        answer: &Value,
    ) -> Result<(), Unfinished> {
        let key = case.key();
        let mut next = Vec::new();
        let mut tx = self.store.begin().await?;
        let done = match &case.action {
            // The bot's own record: marked in the transaction that ends the case, so neither is without the
            // other.
            Action::Withdrawal { name, birth_date } => {
                let marked = store::withdraw_consent(&mut tx, &subject_key(name, birth_date), acting).await?;
                self.texts.withdrawn_to_city(case, marked)
            }
            // With the room's record goes what the bot knows of its subject.
            Action::Life { step: Step::Purge, place, .. } => {
                let opened_by = answer["opened_by_case"].as_str().and_then(|n| n.parse().ok());
                let room_id = place.room_id.as_deref().unwrap_or_default();
                store::forget_subject(&mut tx, room_id, opened_by, files_before(case)).await?;
                let nameless = store::case(&mut tx, case.number).await?;
                self.texts.done_to_city(nameless.as_ref().unwrap_or(case), answer)
            }
            Action::RegisterFacility { name, .. } => {
                next.extend(go_on(&mut tx, name).await?);
                self.texts.done_to_city(case, answer)
            }
            _ => self.texts.done_to_city(case, answer),
        };
        let told = self.tell_city(facts, format!("{key}-done-city"), done).because_of(&case.event_id);
        next.push(if case.by_staff { told.replying(&case.event_id).to(case.asker()) } else { told });
        // In a room that has just been closed nobody can write any more; its closing notice says it.
        let closed_here = matches!(&case.action, Action::Close { place } if place.room_id.as_deref() == Some(case.room_id.as_str()));
        if !case.by_staff && !closed_here {
            let body = self.texts.done_to_requester(case, room_number(answer));
            let told = NewTask::say(&case.room_id, format!("{key}-done"), body).because_of(&case.event_id);
            next.push(told.replying(&case.event_id).to(&case.requester));
        }
        store::change_case(&mut tx, case.number, State::Done, acting, None).await?;
        tracing::info!(case = case.number, action = case.action.word(), "case done");
        self.finish_in(tx, due, next).await?;
        if matches!(case.action, Action::Life { step: Step::Purge, .. }) {
            self.store.settle().await?;
        }
        Ok(())
    }

    async fn failed(
        &self,
        mut tx: Tx,
        due: &Due,
        facts: &Facts,
        case: &Case,
        errcode: &str,
        room_number: Option<i64>,
    ) -> Result<(), Unfinished> {
        store::change_case(&mut tx, case.number, State::Failed, &facts.city_user, Some(errcode)).await?;
        tracing::warn!(case = case.number, action = case.action.word(), errcode, "case failed");
        let body = self.texts.failed_to_city(case, errcode, room_number);
        let told = self
            .tell_city(facts, format!("{}-failed", case.key()), body)
            .about(case.number)
            .because_of(&case.event_id);
        let told = if case.by_staff { told.replying(&case.event_id).to(case.asker()) } else { told };
        let mut next = vec![told];
        // Somebody has registered it another way meanwhile.
        if let (Action::RegisterFacility { name, .. }, "JP_HEYA_EXISTS") = (&case.action, errcode) {
            next.extend(go_on(&mut tx, name).await?);
        }
        self.finish_in(tx, due, next).await
    }

    /// The one changing call of a case (docs/internal-api.md); a withdrawal has none.
    async fn call(&self, case: &Case, acting: &str) -> Result<Value, Unfinished> {
        let key = case.key();
        let number = case.number.to_string();
        let room =
            |place: &crate::cases::Place| place.room_id.clone().unwrap_or_else(|| case.room_id.clone());
        // A change that was asked for in the room itself is answered there by a reply; others are announced
        // in it.
        let elsewhere = |place: &crate::cases::Place| case.by_staff || room(place) != case.room_id;
        let (path, body): (Vec<String>, Value) = match &case.action {
            Action::Add { place, people } | Action::Remove { place, people } => {
                let adding = matches!(case.action, Action::Add { .. });
                let (add, remove) = if adding { (ids(people), vec![]) } else { (vec![], ids(people)) };
                let notice = elsewhere(place).then(|| self.texts.members_changed(adding, people));
                let body = json!({"case": number, "add": add, "remove": remove, "notice": notice});
                (vec!["rooms".into(), room(place), "members".into()], body)
            }
            Action::Close { place } => {
                let body = json!({"case": number, "notice": self.texts.closing_notice()});
                (vec!["rooms".into(), room(place), "close".into()], body)
            }
            Action::Reopen { place } => {
                let body = json!({"case": number, "notice": self.texts.reopening_notice()});
                (vec!["rooms".into(), room(place), "reopen".into()], body)
            }
            Action::OpenSubject { subject, people, confirm_second } => {
                let mut body = json!({
                    "case": number, "kind": "subject", "members": ids(people), "confirm_second": confirm_second,
                    "opening_notice": self.texts.opening_notice(), "requested_by": case.requester,
                });
                let mut of_subject = Map::new();
                of_subject.insert("name".into(), subject.name.clone().into());
                of_subject.insert("birth_date".into(), subject.birth_date.clone().into());
                of_subject.insert("address".into(), subject.address.clone().into());
                of_subject.insert("eligibility".into(), subject.eligibility.clone().into());
                if let Some(note) = &subject.approval_note {
                    of_subject.insert("approval_note".into(), note.clone().into());
                }
                body["subject"] = of_subject.into();
                (vec!["rooms".into()], body)
            }
            Action::OpenAssociation { name, people } => {
                let body = json!({
                    "case": number, "kind": "association", "name": name, "members": ids(people),
                    "opening_notice": self.texts.opening_notice(), "requested_by": case.requester, "confirm_second": false,
                });
                (vec!["rooms".into()], body)
            }
            Action::RegisterFacility { name, facility_kind } => {
                (vec!["facilities".into()], json!({"name": name, "kind": facility_kind, "pledge": true}))
            }
            Action::IssueFacilityId { facility } => (
                vec!["accounts".into()],
                json!({"facility": facility.number, "kind": "facility", "pledge": true}),
            ),
            Action::IssuePersonalId { facility, name, profession } => {
                let mut body =
                    json!({"facility": facility.number, "kind": "personal", "name": name, "pledge": true});
                if let Some(profession) = profession {
                    body["profession"] = profession.clone().into();
                }
                (vec!["accounts".into()], body)
            }
            Action::IssueCode { person } => (vec!["accounts".into(), id(person), "codes".into()], json!({})),
            Action::ResetAccount { person } => {
                (vec!["accounts".into(), id(person), "reset".into()], json!({}))
            }
            Action::EndAccount { person, reason } => {
                (vec!["accounts".into(), id(person), "end".into()], json!({"reason": reason}))
            }
            Action::RevokeTerminal { terminal, reason } => {
                (vec!["terminals".into(), terminal.to_string(), "revoke".into()], json!({"reason": reason}))
            }
            Action::Announce { body, facilities } => {
                let to: Option<Vec<i64>> = facilities
                    .as_ref()
                    .map(|all| all.iter().filter_map(|facility| facility.number).collect());
                (vec!["announcements".into()], json!({"case": number, "body": body, "facilities": to}))
            }
            Action::Life { step, place, reason } => {
                let mut body = json!({"case": number, "reason": reason});
                if *step == Step::Purge {
                    body["forget"] = self.to_forget(place, files_before(case)).await?;
                }
                if *step == Step::BreakGlass {
                    body["notice"] =
                        self.texts.break_glass_notice(&self.name_of(acting).await?, reason).into();
                }
                let mut path = vec!["rooms".into(), room(place)];
                path.extend(step.path().iter().map(|part| (*part).to_owned()));
                (path, body)
            }
            Action::Redact { place, event_id, reason } => {
                let body = json!({"case": number, "event_id": event_id, "reason": reason});
                (vec!["rooms".into(), room(place), "redact".into()], body)
            }
            // The server knows nothing of consents.
            Action::Withdrawal { .. } => return Ok(json!({})),
        };
        let mut body = body;
        body["acting"] = acting.into();
        let mut full = vec!["_heya", "v1"];
        full.extend(path.iter().map(String::as_str));
        Ok(self.server.post(&full, &key, case.decided_event.as_deref(), &body).await?)
    }
}

impl Bot {
    /// What of the city's own rooms is forgotten with a purged room: the events of its subject's cases and reports, with
    /// what follows from them, and its lines in lists. The same until the case is done, so that a repeated call is the
    /// same call.
    async fn to_forget(&self, place: &crate::cases::Place, files_before: i64) -> Result<Value, Unfinished> {
        let room_id = place.room_id.as_deref().unwrap_or_default();
        let answer = self.server.get(&["_heya", "v1", "rooms", room_id], &[]).await?;
        let opened_by = answer["opened_by_case"].as_str().and_then(|number| number.parse().ok());
        let mut tx = self.store.begin().await?;
        let events = store::events_to_forget(&mut tx, room_id, opened_by, files_before).await?;
        let mut lines = BTreeSet::new();
        if let (Some(number), Some(name)) = (place.number, &place.name) {
            lines.insert(crate::texts::room_line(number, name));
        }
        // As lists of cases have it, by each name that it had then.
        for mut case in store::cases_of_events(&mut tx, &events).await? {
            let named = case.action.place_mut().filter(|of| of.room_id == place.room_id && of.name.is_some());
            if let Some((named, number, name)) =
                named.and_then(|named| Some((&*named, named.number?, named.name.as_ref()?)))
            {
                lines.extend([self.texts.place(named), crate::texts::room_line(number, name)]);
            }
        }
        let lines: Vec<String> = lines.into_iter().take(LINES_MAX).collect();
        Ok(json!({"events": events, "lines": lines}))
    }

    /// Somebody's display name; their Matrix id where the register has none.
    async fn name_of(&self, user_id: &str) -> Result<String, CallError> {
        Ok(match self.server.find_person(&Person::named(user_id), true).await? {
            Found::One(row) => row.display_name,
            Found::Some(_) | Found::None => user_id.to_owned(),
        })
    }
}

/// The applications that waited for a facility to be registered are examined again.
async fn go_on(tx: &mut Tx, facility: &str) -> Result<Vec<NewTask>, Unfinished> {
    let mut next = Vec::new();
    for waiting in store::waiting_for_facility(tx, facility).await? {
        store::update_action(tx, waiting.number, &waiting.action, false).await?;
        next.push(NewTask::examine(&waiting.room_id, waiting.number, waiting.revision + 1));
    }
    Ok(next)
}

/// Files of e-applications that are older go with a purge: by when it was decided, so that a repeated call is the same.
fn files_before(case: &Case) -> i64 {
    case.decided_at.unwrap_or(case.filed_at) - store::FILE_OF_USE_MS
}

fn id(person: &Person) -> String {
    person.user_id.clone().unwrap_or_default()
}

fn ids(people: &[Person]) -> Vec<&str> {
    people.iter().filter_map(|person| person.user_id.as_deref()).collect()
}
