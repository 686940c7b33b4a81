//! E-applications (電子申請): the CSV file that the city's application service gives, read into what each row asks for
//! (handbook §11). Pure: bytes in, applications out; what cannot be taken says why, without naming anybody.

mod headings;

use std::collections::{BTreeSet, HashMap, HashSet};

use sha2::{Digest, Sha256};
use time::Date;

pub(crate) use headings::Headings;

use crate::cases::{Action, Facility, Person, Place, subject_key};
use crate::commands::facility_kind;
use crate::forms::{Consent, Field, Form, Gap, is_yes};
use crate::japanese::{normalise, unquote};
use headings::Column;

/// The longest file that is read, in bytes.
pub(crate) const FILE_BYTES_MAX: usize = 1024 * 1024;
/// The most rows of one file: each becomes a case that somebody decides.
pub(crate) const ROWS_MAX: usize = 300;
/// The longest cell, in bytes.
const CELL_BYTES_MAX: usize = 4_000;
/// The longest receipt number, in bytes.
const RECEIPT_BYTES_MAX: usize = 64;

/// The procedures (手続き) that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Procedure {
    /// 利用申請 (forms 1 and 2): an ID for a facility or a person.
    Use,
    /// 同意の報告 (form 4).
    Consent,
    /// 同意の撤回.
    Withdrawal,
    /// 部屋の開設 (form 5).
    Open,
    /// メンバーの追加 (form 5).
    Add,
    /// メンバーの削除 (form 5).
    Remove,
    /// 部屋の終了 (form 5).
    Close,
}

/// What a row asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Consent(Consent),
    Case(Action),
    /// An ID, and the registration of its facility where the register does not have it.
    Issue {
        issue: Action,
        facility: String,
        kind: Option<&'static str>,
    },
}

/// An application that can be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Application {
    /// The row's line in the file.
    pub line: u64,
    /// 整理番号: the same number is the same application, however often it comes.
    pub receipt: String,
    pub procedure: Procedure,
    /// Who applied, as written; needed where only a room's members may ask.
    pub applicant: Option<Person>,
    /// The same for the same content of the row.
    pub content: String,
    pub wanted: Wanted,
}

/// A row that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aside {
    pub line: u64,
    /// Where the row has one.
    pub receipt: Option<String>,
    pub reason: Reason,
}

/// Why a row is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No receipt number, or none that can be one.
    Receipt,
    /// An earlier row of the file has the same receipt number.
    Twice,
    /// The receipt number was taken, with other content.
    Differs,
    /// The same is asked for by this case, which is open.
    Same(i64),
    /// The same is asked for by an earlier row of the file, of this receipt number.
    SameRow(String),
    Procedure,
    /// More or fewer cells than headings.
    Cells,
    TooLong,
    Gaps(Vec<Gap>),
    Applicant,
    /// The register does not tell who the applicant is.
    ApplicantUnknown,
    /// The applicant is not in the room (H18).
    NotAMember,
    RoomNumber,
    NoSuchRoom,
    RoomClosed,
    /// Nobody has reported the subject's consent (H15).
    NoConsent,
    /// It was explained before the consent was withdrawn.
    Withdrawn,
    People,
    Facility,
    FacilityKind,
    IdKind,
    PersonName,
    Pledge,
}

/// Why a whole file cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    TooLong,
    TooManyRows,
    /// The server has the post and not the file.
    Missing,
    /// Neither UTF-8 nor CP932.
    Encoding,
    /// Something else than commas is between the cells.
    NoCommas,
    /// A quotation mark is not closed: what follows it cannot be told apart.
    Quotes,
    /// No heading for the receipt number.
    NoReceipts,
    /// Neither a heading for the procedure nor one in the file's name.
    NoProcedure,
    /// Two headings mean the same: these.
    ColumnTwice(String, String),
    Empty,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    pub applications: Vec<Application>,
    pub aside: Vec<Aside>,
    /// The subjects that the file names, whether or not anything comes of it: a purge must find it.
    pub subjects: BTreeSet<String>,
}

/// Reads a file: CP932 (what Windows calls Shift_JIS) or UTF-8, with or without its mark. Where it has no column for the
/// procedure, its name says it.
pub(crate) fn read(bytes: &[u8], name: &str, headings: &Headings, today: Date) -> Result<List, Unreadable> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Unreadable::TooLong);
    }
    // One kind of line ends, by which the reader counts lines.
    let text = decode(bytes)?.replace("\r\n", "\n").replace('\r', "\n");
    // The reader would take everything up to the next quotation mark for one cell, rows and all.
    if text.bytes().filter(|byte| *byte == b'"').count() % 2 != 0 {
        return Err(Unreadable::Quotes);
    }
    let mut reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(text.as_bytes());
    let mut records = reader.records();
    let first = records.next().and_then(Result::ok).ok_or(Unreadable::Empty)?;
    if first.len() == 1 && first.iter().any(|cell| cell.contains(['\t', ';'])) {
        return Err(Unreadable::NoCommas);
    }
    let columns = headings.columns(&first)?;
    let of_all = match columns.contains(&Some(Column::Procedure)) {
        true => None,
        false => Some(headings.procedure_in(name).ok_or(Unreadable::NoProcedure)?),
    };
    let mut list = List::default();
    let mut seen = HashSet::new();
    let mut rows = 0;
    for record in records {
        // The text is UTF-8 and lengths are free, so that no row can be unreadable by itself.
        let record = record.map_err(|_| Unreadable::Encoding)?;
        if record.iter().all(|cell| cell.trim().is_empty()) {
            continue;
        }
        rows += 1;
        if rows > ROWS_MAX {
            return Err(Unreadable::TooManyRows);
        }
        let line = record.position().map_or(0, csv::Position::line);
        let row = Row::of(&columns, &record);
        list.subjects.extend(row.subject(today));
        let receipt = row.receipt();
        let read = match &receipt {
            _ if record.len() != columns.len() => Err(Reason::Cells),
            _ if row.is_too_long => Err(Reason::TooLong),
            None => Err(Reason::Receipt),
            Some(receipt) if !seen.insert(receipt.clone()) => Err(Reason::Twice),
            Some(receipt) => {
                let said = row.cell(Column::Procedure).and_then(|said| headings.procedure(said));
                match of_all.or(said) {
                    Some(procedure) => row.application(line, receipt, procedure, today),
                    None => Err(Reason::Procedure),
                }
            }
        };
        match read {
            Ok(application) => list.applications.push(application),
            Err(reason) => list.aside.push(Aside { line, receipt, reason }),
        }
    }
    if list.applications.is_empty() && list.aside.is_empty() {
        return Err(Unreadable::Empty);
    }
    Ok(list)
}

fn decode(bytes: &[u8]) -> Result<String, Unreadable> {
    // With its mark or without: a text in CP932 with Japanese in it is practically never valid UTF-8.
    if let Ok(text) = std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)) {
        return Ok(text.to_owned());
    }
    // WHATWG's Shift_JIS is Windows-31J, which is CP932 (Encoding Standard, 12.3).
    let (text, wrong) = encoding_rs::SHIFT_JIS.decode_without_bom_handling(bytes);
    if wrong { Err(Unreadable::Encoding) } else { Ok(text.into_owned()) }
}

/// The cells of a row by their columns, normalised; cells without a known heading are not looked at.
struct Row {
    own: HashMap<Column, String>,
    form: Form,
    content: String,
    is_too_long: bool,
}

impl Row {
    fn of(columns: &[Option<Column>], record: &csv::StringRecord) -> Self {
        let mut own = HashMap::new();
        let mut fields = Vec::new();
        let mut content = Sha256::new();
        let mut is_too_long = false;
        for (column, cell) in columns.iter().zip(record) {
            let Some(column) = column else { continue };
            is_too_long |= cell.len() > CELL_BYTES_MAX;
            let cell = normalise(cell);
            content.update(format!("{column:?}={}:{cell}", cell.len()));
            match column {
                _ if cell.is_empty() => {}
                Column::Form(field) => fields.push((*field, cell)),
                column => {
                    own.insert(*column, cell);
                }
            }
        }
        let content = content.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { own, form: Form::of(fields), content, is_too_long }
    }

    fn cell(&self, wanted: Column) -> Option<&str> {
        self.own.get(&wanted).map(|cell| unquote(cell))
    }

    /// The key of the subject that the row names; without a birth date that can be read, of the name alone.
    fn subject(&self, today: Date) -> Option<String> {
        let name = self.form.subject_name()?;
        Some(subject_key(&name, &self.form.birth_date(today).unwrap_or_default()))
    }

    fn receipt(&self) -> Option<String> {
        let receipt = self.cell(Column::Receipt)?;
        // A number, as such services give it: a name in a column that was taken for another must not become one.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let fits = receipt.len() <= RECEIPT_BYTES_MAX
            && receipt.chars().all(plain)
            && receipt.contains(|c: char| c.is_ascii_digit());
        fits.then(|| receipt.to_owned())
    }

    fn application(
        &self,
        line: u64,
        receipt: &str,
        procedure: Procedure,
        today: Date,
    ) -> Result<Application, Reason> {
        let applicant = self.cell(Column::Applicant).map(person);
        let wanted = match procedure {
            Procedure::Use => self.issue()?,
            Procedure::Consent => Wanted::Consent(self.form.consent(today).map_err(Reason::Gaps)?),
            Procedure::Withdrawal => {
                let (name, birth_date) = self.form.withdrawal(today).map_err(Reason::Gaps)?;
                Wanted::Case(Action::Withdrawal { name, birth_date })
            }
            Procedure::Open => {
                let mut action = self.form.opening(today).map_err(Reason::Gaps)?;
                if let Action::OpenSubject { people, .. } | Action::OpenAssociation { people, .. } =
                    &mut action
                {
                    // Whoever asks for a room is in it.
                    people.splice(0..0, applicant.clone());
                }
                Wanted::Case(action)
            }
            Procedure::Add | Procedure::Remove => {
                let (place, people) = (self.place()?, self.form.members());
                if people.is_empty() {
                    return Err(Reason::People);
                }
                Wanted::Case(if procedure == Procedure::Add {
                    Action::Add { place, people }
                } else {
                    Action::Remove { place, people }
                })
            }
            Procedure::Close => Wanted::Case(Action::Close { place: self.place()? }),
        };
        // A room's members may ask for these, and nobody else (handbook §8, §9).
        if matches!(procedure, Procedure::Add | Procedure::Remove | Procedure::Close) && applicant.is_none() {
            return Err(Reason::Applicant);
        }
        let content = self.content.clone();
        Ok(Application { line, receipt: receipt.to_owned(), procedure, applicant, content, wanted })
    }

    fn place(&self) -> Result<Place, Reason> {
        let said = self.cell(Column::RoomNumber).ok_or(Reason::RoomNumber)?;
        let number = said.trim_end_matches('番').parse::<i64>().ok().filter(|number| *number > 0);
        Ok(Place { number: Some(number.ok_or(Reason::RoomNumber)?), ..Place::default() })
    }

    fn issue(&self) -> Result<Wanted, Reason> {
        let facility = self.cell(Column::Facility).filter(|name| name.chars().count() <= 60);
        let facility = facility.ok_or(Reason::Facility)?.replace('\n', " ");
        if !self.cell(Column::Pledge).is_some_and(is_yes) {
            return Err(Reason::Pledge);
        }
        let kind = match self.cell(Column::FacilityKind) {
            Some(said) => Some(facility_kind(said).ok_or(Reason::FacilityKind)?),
            None => None,
        };
        let of = Facility { said: facility.clone(), number: None };
        let said = self.cell(Column::IdKind).unwrap_or_default();
        let facility_id = said.contains("施設") || said.eq_ignore_ascii_case("facility");
        let personal_id = said.contains("個人") || said.eq_ignore_ascii_case("personal");
        let issue = if facility_id && !personal_id {
            Action::IssueFacilityId { facility: of }
        } else if personal_id && !facility_id {
            let name = self.form.subject_name().ok_or(Reason::PersonName)?;
            // As with the command: Latin names keep their space.
            let name = if name.is_ascii() { name } else { name.replace(' ', "") };
            let profession = self.form.value(Field::Role).map(str::to_owned);
            Action::IssuePersonalId { facility: of, name, profession }
        } else {
            return Err(Reason::IdKind);
        };
        Ok(Wanted::Issue { issue, facility, kind })
    }
}

/// Whoever a cell names: a login id, a Matrix id, or a name.
fn person(said: &str) -> Person {
    crate::people::list(said).into_iter().next().unwrap_or_else(|| Person::named(said))
}

#[cfg(test)]
mod tests;
