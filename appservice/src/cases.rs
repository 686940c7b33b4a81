//! What a case (案件) is: something the city is asked to do, the states it passes, and who decided.

use serde::{Deserialize, Serialize};

use crate::japanese::fold;

/// Where a case stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Filed,
    Approved,
    Executing,
    Done,
    Refused,
    Failed,
}

impl State {
    pub(crate) const ALL: [Self; 6] =
        [Self::Filed, Self::Approved, Self::Executing, Self::Done, Self::Refused, Self::Failed];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Filed => "filed",
            Self::Approved => "approved",
            Self::Executing => "executing",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// The legal changes. A failed case may be approved again (after its cause was mended) or refused.
    pub(crate) fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Filed | Self::Failed, Self::Approved | Self::Refused)
                | (Self::Approved, Self::Executing)
                | (Self::Executing, Self::Done | Self::Failed)
        )
    }
}

/// A person or facility ID as somebody named it, and who that turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Person {
    /// The name, login id or Matrix id as it was written.
    pub said: String,
    /// The facility named with it.
    #[serde(default)]
    pub facility: Option<String>,
    #[serde(default)]
    pub user_id: Option<String>,
    /// `あおば訪問看護 佐藤花子（p104217）`, once looked up.
    #[serde(default)]
    pub label: Option<String>,
}

impl Person {
    pub(crate) fn named(said: impl Into<String>) -> Self {
        Self { said: said.into(), ..Self::default() }
    }

    /// As a person reads it: who it is, or else what was written.
    pub(crate) fn text(&self) -> String {
        match (&self.label, &self.facility) {
            (Some(label), _) => label.clone(),
            (None, Some(facility)) => format!("{facility} {}", self.said),
            (None, None) => self.said.clone(),
        }
    }
}

/// The room a case is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    #[serde(default)]
    pub room_id: Option<String>,
    #[serde(default)]
    pub number: Option<i64>,
    #[serde(default)]
    pub name: Option<String>,
}

/// A facility as somebody named it, and its number once looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facility {
    pub said: String,
    #[serde(default)]
    pub number: Option<i64>,
}

/// The subject (システム対象者) of a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub name: String,
    /// `YYYY-MM-DD`.
    pub birth_date: String,
    pub address: String,
    /// `home`, `planned` or `approved`, as the internal API says (handbook §3 ①②③).
    pub eligibility: String,
    #[serde(default)]
    pub approval_note: Option<String>,
}

impl Subject {
    /// The same person for us: name without spaces, and birth date.
    pub(crate) fn key(&self) -> String {
        subject_key(&self.name, &self.birth_date)
    }
}

pub(crate) fn subject_key(name: &str, birth_date: &str) -> String {
    format!("{}|{birth_date}", fold(name))
}

/// A step in the life of a room after it is open (docs/internal-api.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// 保管: members are removed, the record stays.
    Archive,
    /// 書き出し: the record as a folder of files.
    Export,
    /// 法的保全: never purged while it stands.
    Hold,
    /// 法的保全の解除.
    Release,
    /// 消去: everything goes, a certificate stays.
    Purge,
    /// 緊急閲覧: whoever asks is in the room for a limited time, and it is told so.
    BreakGlass,
    /// 緊急閲覧の終了.
    EndBreakGlass,
}

impl Step {
    /// The path of its call after the room, and its word in keys.
    pub(crate) fn path(self) -> &'static [&'static str] {
        match self {
            Self::Archive => &["archive"],
            Self::Export => &["export"],
            Self::Hold => &["hold"],
            Self::Release => &["release"],
            Self::Purge => &["purge"],
            Self::BreakGlass => &["break-glass"],
            Self::EndBreakGlass => &["break-glass", "end"],
        }
    }

    /// Whether something may stand after the room number.
    pub(crate) fn takes_reason(self) -> bool {
        matches!(self, Self::Hold | Self::Release | Self::BreakGlass)
    }

    /// Whether it is said why.
    pub(crate) fn needs_reason(self) -> bool {
        matches!(self, Self::Hold | Self::BreakGlass)
    }
}

/// What is to be done. A withdrawal is what somebody outside the control room says of a subject's consent: anybody
/// could say so, so it counts once the staff approve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Action {
    Add { place: Place, people: Vec<Person> },
    Remove { place: Place, people: Vec<Person> },
    Close { place: Place },
    Reopen { place: Place },
    OpenSubject { subject: Subject, people: Vec<Person>, confirm_second: bool },
    OpenAssociation { name: String, people: Vec<Person> },
    RegisterFacility { name: String, facility_kind: String },
    IssueFacilityId { facility: Facility },
    IssuePersonalId { facility: Facility, name: String, profession: Option<String> },
    IssueCode { person: Person },
    ResetAccount { person: Person },
    EndAccount { person: Person, reason: String },
    RevokeTerminal { terminal: i64, reason: String },
    Announce { body: String, facilities: Option<Vec<Facility>> },
    Withdrawal { name: String, birth_date: String },
    Life { step: Step, place: Place, reason: String },
    Redact { place: Place, event_id: String, reason: String },
}

impl Action {
    /// One word for logs and idempotency keys.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Remove { .. } => "remove",
            Self::Close { .. } => "close",
            Self::Reopen { .. } => "reopen",
            Self::OpenSubject { .. } | Self::OpenAssociation { .. } => "open",
            Self::RegisterFacility { .. } => "register",
            Self::IssueFacilityId { .. } | Self::IssuePersonalId { .. } => "issue",
            Self::IssueCode { .. } => "code",
            Self::ResetAccount { .. } => "reset",
            Self::EndAccount { .. } => "end",
            Self::RevokeTerminal { .. } => "revoke",
            Self::Announce { .. } => "announce",
            Self::Withdrawal { .. } => "withdrawal",
            Self::Life { step: Step::EndBreakGlass, .. } => "break-glass-end",
            Self::Life { step, .. } => step.path()[0],
            Self::Redact { .. } => "redact",
        }
    }

    /// Whether it is shown and approved even where the staff ask for it: neither an archived room's members nor what is
    /// purged come back, nor an ID that has ended. (A lost terminal's end waits for nobody.)
    pub(crate) fn asks_first(&self) -> bool {
        matches!(self, Self::Life { step: Step::Purge | Step::Archive, .. } | Self::EndAccount { .. })
    }

    /// The subject's key, where the action rests on what is known of a subject's consent.
    pub(crate) fn consent_key(&self) -> Option<String> {
        match self {
            Self::OpenSubject { subject, .. } => Some(subject.key()),
            Self::Withdrawal { name, birth_date } => Some(subject_key(name, birth_date)),
            _ => None,
        }
    }

    /// The room that the action is about.
    pub(crate) fn place_mut(&mut self) -> Option<&mut Place> {
        match self {
            Self::Add { place, .. }
            | Self::Remove { place, .. }
            | Self::Close { place }
            | Self::Reopen { place }
            | Self::Life { place, .. }
            | Self::Redact { place, .. } => Some(place),
            _ => None,
        }
    }

    /// The people who are to be looked up.
    pub(crate) fn people_mut(&mut self) -> &mut [Person] {
        match self {
            Self::Add { people, .. }
            | Self::Remove { people, .. }
            | Self::OpenSubject { people, .. }
            | Self::OpenAssociation { people, .. } => people,
            Self::IssueCode { person } | Self::ResetAccount { person } | Self::EndAccount { person, .. } => {
                std::slice::from_mut(person)
            }
            _ => &mut [],
        }
    }

    /// Puts other people in the place of those that could not be told apart; false where the action names
    /// nobody.
    pub(crate) fn name_people(&mut self, named: Vec<Person>) -> bool {
        match self {
            Self::Add { people, .. }
            | Self::Remove { people, .. }
            | Self::OpenSubject { people, .. }
            | Self::OpenAssociation { people, .. } => {
                people.retain(|person| person.user_id.is_some());
                for person in named {
                    if !people.iter().any(|known| known.user_id.as_deref() == Some(&person.said)) {
                        people.push(person);
                    }
                }
                true
            }
            Self::IssueCode { person } | Self::ResetAccount { person } | Self::EndAccount { person, .. } => {
                if let Some(first) = named.into_iter().next() {
                    *person = first;
                }
                true
            }
            _ => false,
        }
    }

    /// Names everybody once: two names may turn out to be one account.
    pub(crate) fn merge_people(&mut self) {
        if let Self::Add { people, .. }
        | Self::Remove { people, .. }
        | Self::OpenSubject { people, .. }
        | Self::OpenAssociation { people, .. } = self
        {
            let mut seen = std::collections::HashSet::new();
            people.retain(|person| person.user_id.as_ref().is_none_or(|id| seen.insert(id.clone())));
        }
    }

    /// The same for the same request, whatever the spelling: a duplicate is recognised by it.
    pub(crate) fn fingerprint(&self) -> String {
        let place = |place: &Place| place.number.map(|number| number.to_string()).unwrap_or_default();
        let names = |people: &[Person]| {
            let mut names: Vec<String> = people.iter().map(|person| fold(&person.said)).collect();
            names.sort();
            names.join(",")
        };
        let word = self.word();
        match self {
            Self::Add { place: at, people } | Self::Remove { place: at, people } => {
                format!("{word}|{}|{}", place(at), names(people))
            }
            Self::Close { place: at } | Self::Reopen { place: at } => format!("{word}|{}", place(at)),
            Self::OpenSubject { subject, .. } => format!("{word}|{}", subject.key()),
            Self::OpenAssociation { name, .. } | Self::RegisterFacility { name, .. } => {
                format!("{word}|{}", fold(name))
            }
            Self::IssueFacilityId { facility } => format!("{word}|{}", fold(&facility.said)),
            Self::IssuePersonalId { facility, name, .. } => {
                format!("{word}|{}|{}", fold(&facility.said), fold(name))
            }
            Self::IssueCode { person } | Self::ResetAccount { person } | Self::EndAccount { person, .. } => {
                format!("{word}|{}", fold(&person.said))
            }
            Self::RevokeTerminal { terminal, .. } => format!("{word}|{terminal}"),
            Self::Announce { body, .. } => format!("{word}|{}", fold(body)),
            Self::Withdrawal { name, birth_date } => format!("{word}|{}", subject_key(name, birth_date)),
            Self::Life { place: at, .. } => format!("{word}|{}", place(at)),
            Self::Redact { event_id, .. } => format!("{word}|{event_id}"),
        }
    }
}

/// A case as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub number: i64,
    pub action: Action,
    pub state: State,
    pub ready: bool,
    pub revision: i64,
    pub attempts: i64,
    pub room_id: String,
    /// By which event; of an application in a file, with its receipt number ([`origin_in_file`]).
    pub event_id: String,
    pub requester: String,
    pub by_staff: bool,
    pub filed_at: i64,
    pub decided_by: Option<String>,
    pub decided_at: Option<i64>,
    /// The event by which `decided_by` did it.
    pub decided_event: Option<String>,
    pub reason: Option<String>,
}

/// Stands between the event of a file and the receipt number of a row in it: many cases come by one file, and each must
/// be told from the others. No event id has it (Matrix specification, appendix "Event IDs").
const IN_FILE: char = '#';

/// Where an application in a file comes from.
pub(crate) fn origin_in_file(file: &str, receipt: &str) -> String {
    format!("{file}{IN_FILE}{receipt}")
}

/// The event of an origin: itself, or the file's.
pub(crate) fn event_of(origin: &str) -> &str {
    origin.split_once(IN_FILE).map_or(origin, |(event, _)| event)
}

impl Case {
    /// The receipt number (整理番号) of the e-application that the case came by.
    pub(crate) fn receipt(&self) -> Option<&str> {
        self.event_id.split_once(IN_FILE).map(|(_, receipt)| receipt)
    }

    /// Whether giving it was approving it: a word of the staff's own.
    pub(crate) fn is_approved_as_given(&self) -> bool {
        self.by_staff && self.receipt().is_none() && !self.action.asks_first()
    }

    /// Whether only members of the room may ask: the staff's own word is enough, an application's not (H18).
    pub(crate) fn is_for_members(&self) -> bool {
        !self.by_staff || self.receipt().is_some()
    }

    /// Who in the control room is told: whoever gave it, and of an application whoever decided it.
    pub(crate) fn asker(&self) -> &str {
        let decided_by = self.decided_by.as_deref().filter(|_| self.receipt().is_some());
        decided_by.unwrap_or(&self.requester)
    }

    /// The key of the call that carries the case out. The first is `case-12-open`; a later attempt after a
    /// failure is another call, because the same key would only repeat the refusal.
    pub(crate) fn key(&self) -> String {
        let word = self.action.word();
        match self.attempts {
            ..=1 => format!("case-{}-{word}", self.number),
            attempt => format!("case-{}-{word}-{attempt}", self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::State::{Approved, Done, Executing, Failed, Filed, Refused};
    use super::*;

    #[test]
    fn only_these_changes_are_legal() {
        let legal = [
            (Filed, Approved),
            (Filed, Refused),
            (Approved, Executing),
            (Executing, Done),
            (Executing, Failed),
            (Failed, Approved),
            (Failed, Refused),
        ];
        for from in State::ALL {
            for to in State::ALL {
                assert_eq!(from.may_become(to), legal.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn the_same_request_has_one_fingerprint() {
        let add = |names: &[&str]| Action::Add {
            place: Place::default(),
            people: names.iter().map(|name| Person::named(*name)).collect(),
        };
        assert_eq!(add(&["佐藤 花子", "鈴木"]).fingerprint(), add(&["鈴木", "佐藤花子"]).fingerprint());
        assert_ne!(add(&["佐藤"]).fingerprint(), add(&["鈴木"]).fingerprint());
    }
}
