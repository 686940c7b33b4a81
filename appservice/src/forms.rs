//! Forms that people fill in: lines of `項目：値`. A form with gaps is answered with what is missing.

use time::Date;

use crate::cases::{Action, Person, Subject, subject_key};
use crate::japanese::{iso, normalise, parse_date, unquote};
use crate::people;

/// A line's meaning, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Name,
    BirthDate,
    Address,
    ExplainedBy,
    Role,
    ExplainedOn,
    Items,
    SharesInformation,
    CityObtains,
    Eligibility,
    Note,
    Members,
    RoomName,
    Kind,
    Second,
}

/// What a form lacks; `texts` words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    Name,
    BirthDate,
    Address,
    ExplainedBy,
    Role,
    /// Explained by somebody who is neither care manager, doctor nor nurse (H15).
    RoleNotAllowed,
    ExplainedOn,
    /// ① information is shared among those who care.
    SharesInformation,
    /// ② the city obtains the information.
    CityObtains,
    Eligibility,
    /// Eligibility ③ without a note of the approval (H7).
    Note,
    RoomName,
}

/// A complete report of consent (同意の報告, form 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Consent {
    pub name: String,
    pub birth_date: String,
    pub address: String,
    pub explained_by: String,
    pub role: String,
    pub explained_on: String,
}

impl Consent {
    pub(crate) fn key(&self) -> String {
        subject_key(&self.name, &self.birth_date)
    }
}

/// Whom a post names as a subject, as far as it can be read: the key of [`subject_key`], without a birth date where none
/// is readable.
pub(crate) fn subject_in(text: &str, today: Date) -> Option<String> {
    let form = Form::read(&normalise(text));
    let birth_date = form.birth_date(today).unwrap_or_default();
    Some(subject_key(&form.subject_name()?, &birth_date))
}

/// A filled form: fields in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Form(Vec<(Field, String)>);

impl Form {
    /// Reads the lines of a normalised text that name a field; a line without a name continues the field
    /// before it.
    pub(crate) fn read(text: &str) -> Self {
        let mut fields: Vec<(Field, String)> = Vec::new();
        let mut continues = false;
        for line in text.lines() {
            // A blank line ends a value: what follows it is a closing remark.
            if line.is_empty() {
                continues = false;
                continue;
            }
            match line.split_once(':').and_then(|(name, value)| Some((field(name)?, value))) {
                Some((name, value)) => {
                    fields.push((name, value.trim().to_owned()));
                    continues = true;
                }
                None => {
                    if let Some((_, value)) = fields.last_mut().filter(|_| continues) {
                        if !value.is_empty() {
                            value.push('\n');
                        }
                        value.push_str(line.trim());
                    }
                }
            }
        }
        Self(fields)
    }

    /// A form whose fields are already told apart, each with its normalised value.
    pub(crate) fn of(fields: Vec<(Field, String)>) -> Self {
        Self(fields)
    }

    /// How many lines name a field.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn has(&self, wanted: Field) -> bool {
        self.0.iter().any(|(field, _)| *field == wanted)
    }

    /// The first line of a field's value; nothing when empty or too long to be one.
    pub(crate) fn value(&self, wanted: Field) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(field, _)| *field == wanted)?;
        let line = unquote(value.lines().next()?);
        (!line.is_empty() && line.len() <= 600).then_some(line)
    }

    fn all(&self, wanted: Field) -> Option<&str> {
        self.0.iter().find(|(field, _)| *field == wanted).map(|(_, value)| value.as_str())
    }

    /// The name of a person, without an honorific.
    pub(crate) fn subject_name(&self) -> Option<String> {
        let name = self.value(Field::Name)?;
        let name = ["さん", "様", "氏"]
            .iter()
            .find_map(|honorific| name.strip_suffix(honorific))
            .unwrap_or(name)
            .trim();
        (!name.is_empty() && name.chars().count() <= 60).then(|| name.to_owned())
    }

    /// The subject's birth date, `YYYY-MM-DD`.
    pub(crate) fn birth_date(&self, today: Date) -> Option<String> {
        self.date(Field::BirthDate, today)
    }

    fn date(&self, wanted: Field, today: Date) -> Option<String> {
        parse_date(self.value(wanted)?).filter(|date| *date <= today).map(iso)
    }

    /// The form as a report of consent, or what it lacks.
    pub(crate) fn consent(&self, today: Date) -> Result<Consent, Vec<Gap>> {
        let mut gaps = Vec::new();
        let name = noted(self.subject_name(), Gap::Name, &mut gaps);
        let birth_date = noted(self.date(Field::BirthDate, today), Gap::BirthDate, &mut gaps);
        let address = noted(self.value(Field::Address).map(str::to_owned), Gap::Address, &mut gaps);
        let explained_by =
            noted(self.value(Field::ExplainedBy).map(str::to_owned), Gap::ExplainedBy, &mut gaps);
        let role = noted(self.value(Field::Role).map(str::to_owned), Gap::Role, &mut gaps);
        if !role.is_empty() && !may_explain(&role) {
            gaps.push(Gap::RoleNotAllowed);
        }
        let explained_on = noted(self.date(Field::ExplainedOn, today), Gap::ExplainedOn, &mut gaps);
        let (shares, obtains) = self.ticks();
        if !shares {
            gaps.push(Gap::SharesInformation);
        }
        if !obtains {
            gaps.push(Gap::CityObtains);
        }
        if !gaps.is_empty() {
            return Err(gaps);
        }
        Ok(Consent { name, birth_date, address, explained_by, role, explained_on })
    }

    /// Which of the two items are ticked: a line each, or named in one line.
    fn ticks(&self) -> (bool, bool) {
        let items = self.all(Field::Items).unwrap_or("");
        let ticked = |field, words: [&str; 2]| {
            self.value(field).is_some_and(is_yes)
                || items
                    .split(['、', ',', ' ', '\n'])
                    .any(|part| words.iter().any(|word| part.contains(word)) && !is_no(part))
        };
        (ticked(Field::SharesInformation, ["1", "情報共有"]), ticked(Field::CityObtains, ["2", "取得"]))
    }

    /// The form as a request to open a room, or what it lacks.
    pub(crate) fn opening(&self, today: Date) -> Result<Action, Vec<Gap>> {
        let people = self.members();
        if self.is_association() {
            let name = self.value(Field::RoomName).map(str::to_owned).ok_or_else(|| vec![Gap::RoomName])?;
            return Ok(Action::OpenAssociation { name, people });
        }
        let mut gaps = Vec::new();
        let name = noted(self.subject_name(), Gap::Name, &mut gaps);
        let birth_date = noted(self.date(Field::BirthDate, today), Gap::BirthDate, &mut gaps);
        let address = noted(self.value(Field::Address).map(str::to_owned), Gap::Address, &mut gaps);
        let (eligibility, note_inline) = self.eligibility();
        let eligibility = noted(eligibility.map(str::to_owned), Gap::Eligibility, &mut gaps);
        let approval_note = self.value(Field::Note).map(str::to_owned).or(note_inline);
        if eligibility == "approved" && approval_note.is_none() {
            gaps.push(Gap::Note);
        }
        if !gaps.is_empty() {
            return Err(gaps);
        }
        let confirm_second = self.value(Field::Second).is_some_and(is_yes);
        let subject = Subject { name, birth_date, address, eligibility, approval_note };
        Ok(Action::OpenSubject { subject, people, confirm_second })
    }

    /// The people listed as members.
    pub(crate) fn members(&self) -> Vec<Person> {
        self.all(Field::Members).map(people::list).unwrap_or_default()
    }

    fn is_association(&self) -> bool {
        self.value(Field::Kind)
            .is_some_and(|kind| kind.contains("職能") || kind.eq_ignore_ascii_case("association"))
            || self.has(Field::RoomName) && !self.has(Field::Name)
    }

    /// ① at home now, ② planned, ③ the mayor's approval (handbook §3); with ③ a note may follow in the same
    /// line.
    fn eligibility(&self) -> (Option<&'static str>, Option<String>) {
        let Some(value) = self.value(Field::Eligibility) else { return (None, None) };
        let rest = value.trim_start_matches(['(', '要', '件']).trim();
        let code = match rest.chars().next() {
            Some('1') => Some("home"),
            Some('2') => Some("planned"),
            Some('3') => Some("approved"),
            _ if value.contains("予定") => Some("planned"),
            _ if value.contains("市長") => Some("approved"),
            _ if value.contains("在宅") || value.contains("療養") => Some("home"),
            _ => None,
        };
        let note =
            rest.strip_prefix('3').map(|note| note.trim_matches([')', '(', ' ', '、', ',']).to_owned());
        // The words of the form itself are not a note.
        (code, note.filter(|note| !note.is_empty() && !note.contains("市長が必要と認め")))
    }

    /// Whose consent is withdrawn: name and birth date.
    pub(crate) fn withdrawal(&self, today: Date) -> Result<(String, String), Vec<Gap>> {
        let mut gaps = Vec::new();
        let name = noted(self.subject_name(), Gap::Name, &mut gaps);
        let birth_date = noted(self.date(Field::BirthDate, today), Gap::BirthDate, &mut gaps);
        if gaps.is_empty() { Ok((name, birth_date)) } else { Err(gaps) }
    }
}

fn noted(value: Option<String>, gap: Gap, gaps: &mut Vec<Gap>) -> String {
    value.unwrap_or_else(|| {
        gaps.push(gap);
        String::new()
    })
}

/// Consent is explained by the care manager, the doctor or a nurse (handbook §7).
fn may_explain(role: &str) -> bool {
    ["ケアマネ", "介護支援専門員", "主治医", "医師", "看護師", "care manager", "doctor", "nurse", "physician"]
        .iter()
        .any(|allowed| role.to_lowercase().contains(allowed))
        && !["歯科衛生", "助手", "補助"].iter().any(|other| role.contains(other))
}

/// Whether a value says yes.
pub(crate) fn is_yes(value: &str) -> bool {
    let value = value.trim().to_lowercase();
    !is_no(&value)
        && [
            "はい",
            "有",
            "あり",
            "○",
            "〇",
            "◯",
            "⭕",
            "☑",
            "✅",
            "✓",
            "✔",
            "レ",
            "済",
            "同意",
            "誓約し",
            "誓約する",
            "確認し",
            "承諾",
            "了承",
            "可",
            "yes",
            "ok",
            "true",
        ]
        .iter()
        .any(|yes| value.contains(yes))
}

fn is_no(value: &str) -> bool {
    [
        "いいえ",
        "無",
        "なし",
        "未",
        "×",
        "✕",
        "不",
        "☐",
        "□",
        "ない",
        "ません",
        "せぬ",
        "せず",
        "かね",
        "拒",
        "断り",
        "no",
    ]
    .iter()
    .any(|no| value.contains(no))
}

/// The field that a name means; the name must be normalised.
pub(crate) fn field(name: &str) -> Option<Field> {
    let name: String = name
        .chars()
        .filter(|c| {
            !c.is_whitespace() && !matches!(c, '・' | '-' | '*' | '■' | '●' | '【' | '】' | '☑' | '☐' | '□')
        })
        .collect();
    let name = name.to_lowercase();
    let name = name.strip_prefix("対象者の").or_else(|| name.strip_prefix("システム対象者")).unwrap_or(&name);
    Some(match name {
        "対象者" | "対象者氏名" | "対象者名" | "氏名" | "お名前" | "名前" | "name" | "subject" => {
            Field::Name
        }
        "生年月日" | "対象者生年月日" | "birthdate" | "dateofbirth" => Field::BirthDate,
        "住所" | "対象者住所" | "address" => Field::Address,
        "説明者" | "説明した人" | "説明者氏名" | "explainedby" => Field::ExplainedBy,
        "説明者の職種" | "説明者職種" | "職種" | "role" => Field::Role,
        "説明日" | "同意日" | "説明した日" | "explainedon" | "date" => Field::ExplainedOn,
        "同意項目" | "同意事項" | "同意" | "items" => Field::Items,
        "要件" | "対象者要件" | "対象者の要件" | "該当要件" | "eligibility" => {
            Field::Eligibility
        }
        "理由" | "承認理由" | "要件3の理由" | "市長が認める理由" | "備考" | "note" => {
            Field::Note
        }
        "メンバー" | "部屋のメンバー" | "参加者" | "招待する人" | "members" => {
            Field::Members
        }
        "部屋の名称" | "部屋の名前" | "部屋名" | "名称" | "roomname" => Field::RoomName,
        "種類" | "部屋の種類" | "kind" => Field::Kind,
        "二つ目の部屋" | "2つ目の部屋" | "second" => Field::Second,
        _ if name.starts_with('1') && (name.contains("情報共有") || name.contains("sharing"))
            || name == "情報共有"
            || name == "情報共有への同意" =>
        {
            Field::SharesInformation
        }
        _ if name.starts_with('2')
            && (name.contains('市') || name.contains("取得") || name.contains("city"))
            || name.starts_with("市が情報を取得") =>
        {
            Field::CityObtains
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use time::macros::date;

    use super::*;
    use crate::japanese::normalise;

    const TODAY: Date = date!(2026 - 11 - 23);

    fn form(text: &str) -> Form {
        Form::read(&normalise(text))
    }

    const CONSENT: &str = "同意の報告\n対象者氏名：山田　太郎\n生年月日：昭和15年5月1日\n住所：〇〇市1-2-3\n説明者：佐藤花子\n説明者の職種：ケアマネジャー\n説明日：2026/11/20\n①情報共有への同意：はい\n②市が情報を取得することへの同意：はい";

    #[test]
    fn a_complete_consent() {
        let consent = form(CONSENT).consent(TODAY).unwrap();
        assert_eq!((consent.name.as_str(), consent.birth_date.as_str()), ("山田 太郎", "1940-05-01"));
        assert_eq!(consent.key(), subject_key("山田太郎", "1940-05-01"));
        let one_line = CONSENT.split("\n①").next().unwrap().to_owned() + "\n同意項目：①②";
        assert!(form(&one_line).consent(TODAY).is_ok());
    }

    #[test]
    fn what_a_consent_lacks() {
        let gaps = |text: &str| form(text).consent(TODAY).unwrap_err();
        assert_eq!(
            gaps(&CONSENT.replace("同意：はい", "同意：")),
            [Gap::SharesInformation, Gap::CityObtains]
        );
        assert_eq!(
            gaps(&CONSENT.replace("取得することへの同意：はい", "取得することへの同意：いいえ")),
            [Gap::CityObtains]
        );
        assert_eq!(
            gaps(&(CONSENT.split("\n①").next().unwrap().to_owned() + "\n同意項目：①")),
            [Gap::CityObtains]
        );
        assert_eq!(gaps(&CONSENT.replace("ケアマネジャー", "事務員")), [Gap::RoleNotAllowed]);
        assert_eq!(gaps(&CONSENT.replace("2026/11/20", "2026/11/24")), [Gap::ExplainedOn]);
    }

    #[test]
    fn openings() {
        let text = "開設\n対象者：山田太郎\n生年月日：S15.5.1\n住所：〇〇市1-2-3\n要件：①\nメンバー：佐藤花子さん、p104300\n鈴木一郎";
        let Ok(Action::OpenSubject { subject, people, .. }) = form(text).opening(TODAY) else {
            panic!("no opening")
        };
        assert_eq!((subject.eligibility.as_str(), people.len()), ("home", 3));
        assert_eq!(form(&text.replace('①', "③")).opening(TODAY), Err(vec![Gap::Note]));
        assert!(form(&(text.replace('①', "③") + "\n理由：難病のため")).opening(TODAY).is_ok());
        assert_eq!(form(&text.replace('①', "")).opening(TODAY), Err(vec![Gap::Eligibility]));
        let association = "開設\n種類：職能団体\n部屋の名称：〇〇市薬剤師会";
        assert!(matches!(form(association).opening(TODAY), Ok(Action::OpenAssociation { .. })));
    }
}
