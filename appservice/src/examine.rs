//! Looking up what a case means before anybody decides: which room, which people, which facility, whether the
//! consent is there. What cannot be told is asked of the city; what cannot be done is refused at once with
//! the reason.

use serde_json::Value;

use crate::cases::{Action, Case, Person, Place, State};
use crate::control::Facts;
use crate::japanese::fold;
use crate::lookup::{Found, RoomStatus};
use crate::outbox::{Bot, NewTask, Unfinished};
use crate::server::CallError;
use crate::store::{self, Due};

/// What looking up came to.
enum Verdict {
    /// Everything is known.
    Ready,
    /// A person must say who or what is meant; one sentence each.
    Unclear(Vec<String>),
    /// It cannot be done; the reason, for whoever asked.
    Impossible(String),
}

impl Bot {
    /// Examines a case that is filed and not decided.
    pub(crate) async fn examine(&self, due: &Due, facts: &Facts, number: i64) -> Result<(), Unfinished> {
        let Some(mut case) = self.store.case(number).await?.filter(|case| case.state == State::Filed) else {
            return self.finish(due, []).await;
        };
        let verdict = self.judge(&mut case).await?;
        let asked_by = self.label_of(&case.requester).await?;
        let asked_by =
            case.receipt().map_or(asked_by.clone(), |receipt| self.texts.applied(receipt, &asked_by));
        let consent = self.what_is_known_of_consent(&case).await?;
        let mut tx = self.store.begin().await?;
        // Somebody may have decided it meanwhile.
        if !store::case(&mut tx, number).await?.is_some_and(|now| now.state == State::Filed) {
            return self.finish_in(tx, due, []).await;
        }
        let ready = matches!(verdict, Verdict::Ready);
        store::update_action(&mut tx, number, &case.action, ready).await?;
        let key = |what: &str| format!("case-{number}-{what}-{}", case.revision);
        let mut next = Vec::new();
        match verdict {
            Verdict::Ready if case.is_approved_as_given() => {
                store::change_case(&mut tx, number, State::Approved, &case.requester, None).await?;
                store::remember_decision(&mut tx, number, &case.event_id).await?;
                next.push(NewTask::execute(&case.room_id, number, case.attempts + 1));
            }
            Verdict::Ready => {
                let shown = self.tell_city(
                    facts,
                    key("shown"),
                    self.texts.case_to_decide(&case, &asked_by, consent.as_deref(), &[]),
                );
                next.push(shown.about(number).because_of(&case.event_id));
                next.extend(self.receipt(&case));
            }
            Verdict::Unclear(problems) => {
                let shown = self.tell_city(
                    facts,
                    key("shown"),
                    self.texts.case_to_decide(&case, &asked_by, consent.as_deref(), &problems),
                );
                next.push(if case.by_staff && case.receipt().is_none() {
                    shown.replying(&case.event_id).to(&case.requester).because_of(&case.event_id)
                } else {
                    shown.about(number).because_of(&case.event_id)
                });
                next.extend(self.receipt(&case));
            }
            Verdict::Impossible(reason) => {
                store::change_case(&mut tx, number, State::Refused, &facts.city_user, Some(&reason)).await?;
                let answer =
                    NewTask::say(&case.room_id, key("impossible"), self.texts.impossible(number, &reason));
                let answer = answer.replying(&case.event_id).because_of(&case.event_id);
                next.push(match case.receipt() {
                    // Who applied is not in the control room.
                    Some(receipt) => {
                        store::give_back_application(&mut tx, receipt, number).await?;
                        answer
                    }
                    None => answer.to(&case.requester),
                });
            }
        }
        self.finish_in(tx, due, next).await
    }

    /// The number, told to whoever asked; once per case.
    fn receipt(&self, case: &Case) -> Option<NewTask> {
        if case.by_staff || case.revision > 0 {
            return None;
        }
        let said =
            NewTask::say(&case.room_id, format!("case-{}-receipt", case.number), self.texts.receipt(case));
        Some(said.replying(&case.event_id).to(&case.requester).because_of(&case.event_id))
    }

    /// Somebody as the city knows them; their Matrix id where the register does not.
    async fn label_of(&self, user_id: &str) -> Result<String, Unfinished> {
        let found = self.server.find_person(&Person::named(user_id), true).await?;
        Ok(match found {
            Found::One(row) => row.label(),
            Found::Some(_) | Found::None => user_id.to_owned(),
        })
    }

    /// For the staff: who reported the subject's consent, and when. Reports are taken from anybody; approving
    /// the case is what confirms them.
    async fn what_is_known_of_consent(&self, case: &Case) -> Result<Option<String>, Unfinished> {
        let Some(key) = case.action.consent_key() else { return Ok(None) };
        let mut tx = self.store.begin().await?;
        let reports = store::reports_of_consent(&mut tx, &key).await?;
        let scans = store::scans_of_subject(&mut tx, &key).await?;
        let withdrawn = store::consent_withdrawn_at(&mut tx, &key).await?;
        // The only connection is not held while the server is asked.
        drop(tx);
        let mut lines = Vec::new();
        for report in &reports {
            let who = self.label_of(&report.reported_by).await?;
            lines.push(self.texts.report_of_consent(report, &who));
        }
        let known = self.texts.reports_of_consent(&lines);
        let known = match withdrawn {
            Some(at) => format!("{known}\n{}", self.texts.was_withdrawn(at)),
            None => known,
        };
        Ok(Some(if lines.is_empty() { known } else { format!("{known}\n{}", self.texts.scans(scans)) }))
    }

    async fn judge(&self, case: &mut Case) -> Result<Verdict, Unfinished> {
        let mut members: Option<Vec<String>> = None;
        // The server knows in which state a room must be for these.
        let in_any_state =
            matches!(case.action, Action::Reopen { .. } | Action::Life { .. } | Action::Redact { .. });
        if let Action::Add { place, .. }
        | Action::Remove { place, .. }
        | Action::Close { place }
        | Action::Life { place, .. }
        | Action::Redact { place, .. }
        | Action::Reopen { place } = &mut case.action
        {
            match self.find_place(place, &case.room_id).await? {
                None => return Ok(Verdict::Impossible(self.texts.no_such_room(place.number))),
                Some((status, in_room)) => {
                    // A request from outside the room is made by a member or not at all (H18).
                    if case.is_for_members() && !in_room.contains(&case.requester) {
                        return Ok(Verdict::Impossible(self.texts.not_a_member()));
                    }
                    if !in_any_state && status != "open" {
                        return Ok(Verdict::Impossible(self.texts.room_is_closed()));
                    }
                    members = Some(in_room);
                }
            }
        }
        if let Action::OpenSubject { subject, .. } = &case.action {
            let mut tx = self.store.begin().await?;
            // Outside the control room only the requester's own report counts: otherwise the answer would
            // tell them what somebody else reported, and so who is a subject.
            let reporter = (!case.by_staff).then_some(case.requester.as_str());
            let consented = store::has_consent(&mut tx, &subject.key(), reporter).await?;
            drop(tx);
            if !consented {
                return Ok(Verdict::Impossible(self.texts.consent_missing(case.by_staff)));
            }
        }
        let mut problems = Vec::new();
        // An application names its facility in full; a similar name is another facility.
        let exact = case.receipt().is_some();
        self.find_facilities(&mut case.action, exact, &mut problems).await?;
        let (must_be_in, takes_issued) = match &case.action {
            Action::Remove { .. } => (members.as_deref(), true),
            Action::IssueCode { .. } | Action::ResetAccount { .. } | Action::EndAccount { .. } => {
                (None, true)
            }
            _ => (None, false),
        };
        let by_staff = case.by_staff;
        for person in case.action.people_mut() {
            if let Some(problem) = self.identify(person, must_be_in, takes_issued, by_staff).await? {
                problems.push(problem);
            }
        }
        case.action.merge_people();
        Ok(if problems.is_empty() { Verdict::Ready } else { Verdict::Unclear(problems) })
    }

    /// The room, its status and who is in it.
    pub(crate) async fn find_place(
        &self,
        place: &mut Place,
        here: &str,
    ) -> Result<Option<(String, Vec<String>)>, Unfinished> {
        let room_id = match place.number {
            None => place.room_id.clone().unwrap_or_else(|| here.to_owned()),
            Some(number) => {
                let mut found = None;
                for status in [RoomStatus::Open, RoomStatus::Closed, RoomStatus::Archived] {
                    let rooms = self.server.rooms(status.word()).await?;
                    found = rooms.into_iter().find(|room| room.room_number == number);
                    if found.is_some() {
                        break;
                    }
                }
                match found {
                    Some(room) => room.room_id,
                    None => return Ok(None),
                }
            }
        };
        let Some(found) = self.server.room(&room_id).await? else { return Ok(None) };
        place.room_id = Some(room_id);
        place.number = Some(found.room.room_number);
        place.name = Some(found.room.name);
        Ok(Some((found.room.status, found.members.into_iter().map(|member| member.user_id).collect())))
    }

    async fn find_facilities(
        &self,
        action: &mut Action,
        exact: bool,
        problems: &mut Vec<String>,
    ) -> Result<(), Unfinished> {
        let wanted = match action {
            Action::IssueFacilityId { facility } | Action::IssuePersonalId { facility, .. } => {
                std::slice::from_mut(facility)
            }
            Action::Announce { facilities: Some(facilities), .. } => facilities.as_mut_slice(),
            // To everybody, and it begins with names of facilities: whoever wrote it may have meant those.
            Action::Announce { facilities: None, body } => {
                let first = body.lines().next().unwrap_or_default();
                let named: Vec<String> =
                    first.split(['、', ',']).map(fold).filter(|name| !name.is_empty()).collect();
                let mut rows = self.server.facilities().await?;
                // The city itself is nobody's addressee.
                rows.retain(|row| row.kind != "city");
                let known = |name: &String| rows.iter().any(|row| fold(&row.name) == *name);
                if !named.is_empty() && named.iter().all(known) {
                    problems.push(self.texts.is_it_for_them(first));
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        for facility in wanted {
            let mut rows = self.server.find_facility(facility).await?;
            if exact {
                rows.retain(|row| fold(&row.name) == fold(&facility.said));
            }
            if rows.len() == 1 {
                let row = rows.swap_remove(0);
                facility.said = row.name;
                facility.number = Some(row.facility);
            } else {
                problems.push(self.texts.which_facility(&facility.said, &rows));
            }
        }
        Ok(())
    }

    /// Finds out who is meant; a sentence for the city where that cannot be told.
    async fn identify(
        &self,
        person: &mut Person,
        must_be_in: Option<&[String]>,
        takes_issued: bool,
        by_staff: bool,
    ) -> Result<Option<String>, Unfinished> {
        // In a room of a few people a surname is enough; but only who is in the room can be removed from it.
        let mut found = self.server.find_person(person, by_staff && must_be_in.is_none()).await?;
        if let (Some(members), Found::Some(rows)) = (must_be_in, &found) {
            let here: Vec<_> = rows.iter().filter(|row| members.contains(&row.user_id)).cloned().collect();
            found = match here.as_slice() {
                [] => Found::None,
                [only] => Found::One(only.clone()),
                _ => Found::Some(here),
            };
        }
        let row = match found {
            Found::One(row) => row,
            Found::Some(rows) => return Ok(Some(self.texts.which_person(person, &rows))),
            Found::None => return Ok(Some(self.texts.nobody_of_that_name(person))),
        };
        if must_be_in.is_some_and(|members| !members.contains(&row.user_id)) {
            return Ok(Some(self.texts.not_in_that_room(&row)));
        }
        if row.status != "active" && !takes_issued {
            return Ok(Some(self.texts.not_enrolled(&row)));
        }
        person.label = Some(row.label());
        person.user_id = Some(row.user_id);
        Ok(None)
    }
}

/// The `room_number` of an answer.
pub(crate) fn room_number(answer: &Value) -> Option<i64> {
    answer.get("room_number").and_then(Value::as_i64)
}

/// What a refusal of the server says beyond its code.
pub(crate) fn refused(error: CallError) -> Result<(String, Option<i64>), Unfinished> {
    match error {
        CallError::Refused { errcode, room_number, .. } => Ok((errcode, room_number)),
        transient @ CallError::Transient { .. } => Err(transient.into()),
    }
}
