//! What the columns of a CSV file are called, and the procedures in it: our words, those of the forms, and the city's own
//! from the config.

use std::collections::{BTreeMap, HashMap};

use super::{Procedure, Unreadable};
use crate::Error;
use crate::forms::{self, Field};
use crate::japanese::{fold, normalise};

/// A column's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Column {
    Receipt,
    Procedure,
    Applicant,
    RoomNumber,
    Facility,
    FacilityKind,
    IdKind,
    Pledge,
    /// A line of a form.
    Form(Field),
}

const COLUMNS: [(Column, &[&str]); 8] = [
    (Column::Receipt, &["整理番号", "受付番号", "申込番号", "receipt"]),
    (Column::Procedure, &["手続き", "手続", "手続き名", "手続名", "申請の種類", "procedure"]),
    (Column::Applicant, &["申請者", "申請者の利用者id", "申請者id", "申請者氏名", "applicant"]),
    (Column::RoomNumber, &["部屋番号", "roomnumber"]),
    (Column::Facility, &["事業所", "事業所名", "事業所の名前", "事業所の名称", "施設名", "facility"]),
    (Column::FacilityKind, &["事業所の種類", "事業所種別", "facilitykind"]),
    (Column::IdKind, &["idの種類", "id種別", "idkind"]),
    (Column::Pledge, &["誓約", "誓約書", "誓約済", "pledge"]),
];

/// A column that is not to be looked at.
const IGNORED: [&str; 2] = ["見ない", "ignore"];

const PROCEDURES: [(Procedure, &[&str]); 7] = [
    (Procedure::Use, &["利用申請", "利用", "発行", "id発行", "use"]),
    (Procedure::Consent, &["同意", "同意の報告", "同意報告", "consent"]),
    (Procedure::Withdrawal, &["同意の撤回", "同意撤回", "withdrawal"]),
    (Procedure::Open, &["開設", "開設依頼", "部屋の開設", "open"]),
    (Procedure::Add, &["追加", "利用者の追加", "メンバーの追加", "add"]),
    (Procedure::Remove, &["削除", "利用者の削除", "メンバーの削除", "remove"]),
    (Procedure::Close, &["終了", "部屋の終了", "close"]),
];

/// The headings of one city. Its own words come first.
#[derive(Debug, Default)]
pub(crate) struct Headings {
    /// Nothing: a column that is not looked at.
    columns: HashMap<String, Option<Column>>,
    procedures: HashMap<String, Procedure>,
}

impl Headings {
    /// Takes the city's words for ours.
    ///
    /// # Errors
    /// `Heading` where a word that is to be meant is none of ours.
    pub(crate) fn new(
        columns: &BTreeMap<String, String>,
        procedures: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let unknown = |word: &String| Error::Heading(word.clone());
        let mut own = Self::default();
        for (theirs, ours) in columns {
            let column = known_column(ours);
            if column.is_none() && !IGNORED.contains(&fold(ours).as_str()) {
                return Err(unknown(ours));
            }
            own.columns.insert(fold(theirs), column);
        }
        for (theirs, ours) in procedures {
            own.procedures.insert(fold(theirs), known_procedure(ours).ok_or_else(|| unknown(ours))?);
        }
        Ok(own)
    }

    /// What the columns of a file mean. A word of the city's own goes before one of ours for the same; otherwise no
    /// meaning may come twice, since which of two names is the subject's must not be guessed.
    pub(super) fn columns(&self, first: &csv::StringRecord) -> Result<Vec<Option<Column>>, Unreadable> {
        let own: Vec<Option<Column>> =
            first.iter().map(|heading| self.columns.get(&fold(heading)).copied().flatten()).collect();
        let mut columns = own.clone();
        for (at, heading) in first.iter().enumerate() {
            if !self.columns.contains_key(&fold(heading)) {
                columns[at] = known_column(heading).filter(|column| !own.contains(&Some(*column)));
            }
        }
        for (at, column) in columns.iter().enumerate() {
            let before = columns.iter().take(at).position(|other| other.is_some() && other == column);
            if let Some(before) = before {
                let shown = |at: usize| first.get(at).unwrap_or_default().chars().take(40).collect();
                return Err(Unreadable::ColumnTwice(shown(before), shown(at)));
            }
        }
        if columns.contains(&Some(Column::Receipt)) { Ok(columns) } else { Err(Unreadable::NoReceipts) }
    }

    /// The procedure that a file's name says, where it says one: services give a file for each.
    pub(super) fn procedure_in(&self, name: &str) -> Option<Procedure> {
        let name = fold(name);
        let own = self.procedures.iter().map(|(word, procedure)| (word.as_str(), *procedure));
        let ours = PROCEDURES
            .into_iter()
            .flat_map(|(procedure, words)| words.iter().map(move |word| (*word, procedure)));
        let said: Vec<(&str, Procedure)> = own.chain(ours).filter(|(word, _)| name.contains(word)).collect();
        // 利用者の追加 has 利用 and 追加 in it, too.
        let longest = said.iter().map(|(word, _)| word.len()).max()?;
        let mut meant = said.into_iter().filter(|(word, _)| word.len() == longest).map(|(_, meant)| meant);
        let first = meant.next()?;
        meant.all(|other| other == first).then_some(first)
    }

    pub(super) fn procedure(&self, said: &str) -> Option<Procedure> {
        self.procedures.get(&fold(said)).copied().or_else(|| known_procedure(said))
    }
}

fn known_column(heading: &str) -> Option<Column> {
    let word = fold(heading);
    let own = COLUMNS.into_iter().find(|(_, words)| words.contains(&word.as_str()));
    own.map(|(column, _)| column).or_else(|| forms::field(&normalise(heading)).map(Column::Form))
}

fn known_procedure(said: &str) -> Option<Procedure> {
    let word = fold(said);
    PROCEDURES.into_iter().find(|(_, words)| words.contains(&word.as_str())).map(|(procedure, _)| procedure)
}
