//! What the columns of a CSV file are called, and the procedures in it: our words, those of the forms, and the city's own
//! from the config.

use std::collections::{BTreeMap, HashMap};

use super::Procedure;
use crate::Error;
use crate::forms::{self, Field};
use crate::japanese::{fold, normalise};

/// A column's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    columns: HashMap<String, Column>,
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
            own.columns.insert(fold(theirs), known_column(ours).ok_or_else(|| unknown(ours))?);
        }
        for (theirs, ours) in procedures {
            own.procedures.insert(fold(theirs), known_procedure(ours).ok_or_else(|| unknown(ours))?);
        }
        Ok(own)
    }

    pub(super) fn column(&self, heading: &str) -> Option<Column> {
        self.columns.get(&fold(heading)).copied().or_else(|| known_column(heading))
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
