//! Reading who is meant: `あおば訪問看護の佐藤花子さん`, `佐藤看護師（あおば訪問看護）`, `p104217`, lists of those.
//!
//! Texts come in normalised (`japanese::normalise`).

use crate::cases::Person;

const HONORIFICS: [&str; 6] = ["さん", "さま", "様", "先生", "氏", "殿"];

/// Professions: after a name they take the place of an honorific, alone they name nobody. Longer ones first.
const PROFESSIONS: [&str; 33] = [
    "ケアマネージャー",
    "ケアマネジャー",
    "ケアマネ",
    "介護支援専門員",
    "訪問看護師",
    "看護師長",
    "看護師",
    "歯科医師",
    "主治医",
    "医師",
    "ドクター",
    "薬剤師",
    "理学療法士",
    "作業療法士",
    "言語聴覚士",
    "管理栄養士",
    "栄養士",
    "歯科衛生士",
    "保健師",
    "社会福祉士",
    "介護福祉士",
    "サービス提供責任者",
    "ヘルパー",
    "介護士",
    "相談員",
    "生活相談員",
    "リハビリ",
    "管理者",
    "PT",
    "OT",
    "ST",
    "Dr",
    "Ns",
];

/// How names of facilities end.
const FACILITY_ENDINGS: [&str; 22] = [
    "訪問看護ステーション",
    "看護ステーション",
    "ステーション",
    "訪問看護",
    "訪看",
    "訪問介護",
    "居宅介護支援",
    "居宅",
    "クリニック",
    "医院",
    "病院",
    "診療所",
    "歯科",
    "薬局",
    "デイサービス",
    "デイケア",
    "事業所",
    "センター",
    "包括",
    "ホーム",
    "介護",
    "ケアプラン",
];

/// People around a subject who have no account: never somebody to add or remove.
const NOT_USERS: [&str; 22] = [
    "家族",
    "ご家族",
    "御家族",
    "本人",
    "ご本人",
    "利用者",
    "患者",
    "奥",
    "奥様",
    "旦那",
    "ご主人",
    "主人",
    "娘",
    "息子",
    "お嫁",
    "嫁",
    "妻",
    "夫",
    "お子",
    "母",
    "お母",
    "お父",
];

/// Words that stand before `の` or a facility's ending without being a facility's name.
const NO_FACILITY_NAME: [&str; 14] =
    ["曜", "週", "毎", "回", "時", "午前", "午後", "新規", "別", "他", "追加", "サービス", "今の", "次の"];

/// The most people one list may name; each is looked up.
const PEOPLE_MAX: usize = 100;

/// What a phrase names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// A person with an account, as far as words can tell.
    Person(Person),
    /// A whole facility: its facility ID (施設ID), or else its service.
    Facility(Person),
    /// `看護師さん`: some user, but nobody says who.
    Somebody,
    /// A thing, a patient, a relative.
    Nothing,
}

/// Reads a phrase in running text: only an honorific, a profession, a login id or a facility's ending makes
/// a person.
pub(crate) fn in_sentence(phrase: &str) -> Named {
    read(phrase, false)
}

/// Reads a list that is meant to be one (a form, a command): bare names count. Delimiters are new lines,
/// commas, `・` inside a line only after an honorific, and `と` after an honorific.
pub(crate) fn list(text: &str) -> Vec<Person> {
    let mut people: Vec<Person> = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches(['・', '-', '*', '●', '○', '■', '•', '‐', '－']).trim();
        for item in line.split(['、', ',', ';', '/']).flat_map(split_and) {
            let item = item.trim().trim_end_matches(['。', '.']);
            let ids: Vec<&str> = item.split(' ').collect();
            if ids.iter().all(|id| is_login_id(id) || id.starts_with('@')) && !item.is_empty() {
                people.extend(ids.into_iter().filter_map(|id| match read(id, true) {
                    Named::Person(person) => Some(person),
                    _ => None,
                }));
            } else if let Named::Person(person) | Named::Facility(person) = read(item, true) {
                people.push(person);
            }
        }
    }
    people.dedup();
    people.truncate(PEOPLE_MAX);
    people
}

/// Splits at `と`, `及び` and the like, but only where what stands before is plainly a person or facility:
/// names contain `と` too.
pub(crate) fn split_and(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in text.char_indices() {
        let before = &text[start.min(at)..at];
        let Some(word) = ["と", "及び", "および", "ならびに", "並びに", "・", "&", "＆"]
            .into_iter()
            .find(|word| text[at..].starts_with(word))
        else {
            continue;
        };
        if at > start && (is_plainly_person(before) || is_facility(before)) {
            parts.push(before.trim());
            start = at + word.len();
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// `p104217`, `f0312`: as the server makes them.
pub(crate) fn is_login_id(text: &str) -> bool {
    let mut chars = text.chars();
    matches!(chars.next(), Some('p' | 'f' | 'P' | 'F'))
        && (3..=10).contains(&(text.len() - 1))
        && chars.all(|c| c.is_ascii_digit())
}

/// Whether the word is the name of a profession.
pub(crate) fn is_profession(word: &str) -> bool {
    PROFESSIONS.contains(&word)
}

/// Whether the text ends like a person in running text: honorific, or profession with something before it,
/// or an id.
pub(crate) fn is_plainly_person(text: &str) -> bool {
    let text = text.trim().trim_end_matches(')');
    is_login_id(text)
        || HONORIFICS.iter().any(|honorific| text.ends_with(honorific))
        || PROFESSIONS.iter().any(|profession| text.len() > profession.len() && text.ends_with(profession))
}

/// Whether the text ends as names of facilities do.
pub(crate) fn is_facility(text: &str) -> bool {
    FACILITY_ENDINGS.iter().any(|ending| text.ends_with(ending))
}

/// A facility with a name of its own: `あおば訪問看護` but not `訪問看護` or `火曜のデイサービス`.
fn is_named_facility(text: &str) -> bool {
    let Some(stem) =
        FACILITY_ENDINGS.iter().filter_map(|ending| text.strip_suffix(ending)).min_by_key(|stem| stem.len())
    else {
        return false;
    };
    // 訪問歯科, 地域包括支援センター: kinds of service.
    !stem.is_empty()
        && !["訪問", "通所", "地域", "地域包括", "地域包括支援", "総合", "近くの"].contains(&stem)
        && !stem.contains(|c: char| c.is_ascii_digit())
        && !NO_FACILITY_NAME.iter().any(|word| stem.contains(word))
}

fn read(phrase: &str, bare_names: bool) -> Named {
    // Quotes around a name say nothing about it.
    let phrase = phrase.replace(['「', '」', '『', '』', '"', '“', '”'], "");
    let phrase = phrase.trim();
    // 佐藤花子さん(あおば訪問看護)
    let (phrase, in_brackets) = match phrase.split_once('(') {
        Some((before, rest)) => (before.trim(), Some(rest.trim_end_matches(')').trim())),
        None => (phrase, None),
    };
    if phrase.is_empty() {
        return Named::Nothing;
    }
    if let Some(id) = in_brackets.filter(|text| is_login_id(text)) {
        return Named::Person(Person::named(id.to_lowercase()));
    }
    if is_login_id(phrase) {
        return Named::Person(Person::named(phrase.to_lowercase()));
    }
    if phrase.starts_with('@') && phrase.contains(':') && !phrase.contains(' ') {
        return Named::Person(Person::named(phrase));
    }
    // 娘の花子さん
    if phrase.rsplit_once('の').is_some_and(|(before, _)| {
        NOT_USERS.iter().any(|word| before.ends_with(word) || before.ends_with(&format!("{word}さん")))
    }) {
        return Named::Nothing;
    }
    let (mut facility, name) = split_facility(phrase);
    if let Some(inside) = in_brackets
        && facility.is_none()
    {
        facility = Some(inside.to_owned());
    }
    let (name, marked) = strip_honorific(&name);
    let name = name.trim();
    if is_login_id(name) {
        return Named::Person(Person::named(name.to_lowercase()));
    }
    if facility.is_none() && !marked && is_facility(name) {
        let whole = if is_named_facility(name) { Some(name) } else { None };
        return whole.map_or(Named::Nothing, |name| Named::Facility(Person::named(name)));
    }
    if NOT_USERS.contains(&name) || NOT_USERS.iter().any(|word| name.ends_with(word) && name.contains('の'))
    {
        return Named::Nothing;
    }
    if name.is_empty()
        || PROFESSIONS.contains(&name)
        || ["担当", "スタッフ", "担当者", "職員", "方", "かた", "メンバー"].contains(&name)
    {
        return if marked || facility.is_some() { Named::Somebody } else { Named::Nothing };
    }
    if !(marked || bare_names || facility.is_some() && looks_like_name(name)) {
        return Named::Nothing;
    }
    if name.chars().count() > 30
        || name.contains(|c: char| c.is_ascii_digit() || matches!(c, '。' | '?' | '!' | ':'))
    {
        return Named::Nothing;
    }
    Named::Person(Person { said: name.to_owned(), facility, ..Person::default() })
}

/// A bare name after a facility must look like one, or `あおば訪問看護の記録` would be a person.
fn looks_like_name(name: &str) -> bool {
    let length = name.chars().filter(|c| *c != ' ').count();
    const THINGS: [&str; 24] = [
        "記録",
        "訪問",
        "予定",
        "書",
        "薬",
        "票",
        "表",
        "日",
        "時間",
        "回",
        "枠",
        "件",
        "連絡",
        "計画",
        "写真",
        "資料",
        "情報",
        "利用",
        "料",
        "曜",
        "週",
        "サービス",
        "画像",
        "処方",
    ];
    (2..=12).contains(&length) && !THINGS.iter().any(|thing| name.contains(thing))
}

/// Takes the facility off the front: before the last `の`, or before a space.
fn split_facility(phrase: &str) -> (Option<String>, String) {
    let mut cut = None;
    for (at, c) in phrase.char_indices() {
        if matches!(c, 'の' | ' ') && is_facility(phrase[..at].trim()) {
            cut = Some((at, at + c.len_utf8()));
        }
    }
    if let Some((end, start)) = cut {
        let facility = strip_clause(phrase[..end].trim());
        let name = phrase[start..].trim();
        let named = is_named_facility(facility).then(|| facility.to_owned());
        // あおば訪問看護の看護師の佐藤さん
        return (named, strip_clause(after_last_no(name)).to_owned());
    }
    let name = after_last_no(phrase);
    let name = strip_clause(name);
    // あおば訪問看護佐藤さん: without anything between.
    if is_plainly_person(name)
        && let Some(end) =
            FACILITY_ENDINGS.iter().filter_map(|ending| name.rfind(ending).map(|at| at + ending.len())).max()
        && !strip_honorific(&name[end..]).0.is_empty()
        && is_named_facility(&name[..end])
        && !name[end..].starts_with(['師', '士'])
    {
        return (Some(name[..end].to_owned()), name[end..].to_owned());
    }
    (None, name.to_owned())
}

fn after_last_no(text: &str) -> &str {
    match text.rfind('の') {
        // ひらがな names contain の; a single letter before it is part of a name.
        Some(at) if at >= 'の'.len_utf8() * 2 || text.len() - at > 9 => text[at + 'の'.len_utf8()..].trim(),
        _ => text,
    }
}

/// 新しく担当になった佐藤さん → 佐藤さん: takes a relative clause off the front.
fn strip_clause(text: &str) -> &str {
    const ENDS: [&str; 22] = [
        "なります",
        "外れる",
        "外れた",
        "れる",
        "れた",
        "辞めた",
        "辞める",
        "になった",
        "になりました",
        "になる",
        "している",
        "していた",
        "された",
        "される",
        "した",
        "する",
        "入った",
        "入る",
        "くださる",
        "いただく",
        "いる",
        "という",
    ];
    let mut rest = text;
    for end in ENDS {
        if let Some((_, after)) = rest.rsplit_once(end)
            && !after.is_empty()
        {
            rest = after;
        }
    }
    rest.trim_start_matches([' ', '、'])
}

fn strip_honorific(name: &str) -> (&str, bool) {
    let mut name = name.trim();
    let mut marked = false;
    for honorific in HONORIFICS {
        if let Some(stem) = name.strip_suffix(honorific) {
            // 奥様 and 旦那様 are words, not names with an honorific; they are judged whole.
            name = stem.trim();
            marked = true;
            break;
        }
    }
    for profession in PROFESSIONS {
        if let Some(stem) = name.strip_suffix(profession)
            && !stem.trim().is_empty()
        {
            return (stem.trim(), true);
        }
    }
    (name, marked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(said: &str, facility: Option<&str>) -> Named {
        Named::Person(Person {
            said: said.to_owned(),
            facility: facility.map(str::to_owned),
            ..Person::default()
        })
    }

    #[test]
    fn phrases_in_sentences() {
        let cases = [
            ("あおば訪問看護の佐藤花子さん", person("佐藤花子", Some("あおば訪問看護"))),
            ("〇〇訪問看護の△△さん", person("△△", Some("〇〇訪問看護"))),
            ("みんなの訪問看護の佐藤さん", person("佐藤", Some("みんなの訪問看護"))),
            ("新しく担当になったあおば訪問看護の佐藤さん", person("佐藤", Some("あおば訪問看護"))),
            ("薬剤師の鈴木さん", person("鈴木", None)),
            ("佐藤看護師", person("佐藤", None)),
            ("「佐藤花子」さん", person("佐藤花子", None)),
            ("佐藤さん(あおば訪問看護)", person("佐藤", Some("あおば訪問看護"))),
            ("あおば訪問看護 佐藤 花子さん", person("佐藤 花子", Some("あおば訪問看護"))),
            ("p104217", person("p104217", None)),
            ("看護師さん", Named::Somebody),
            ("ご家族様", Named::Nothing),
            ("訪問看護", Named::Nothing),
            ("週2回の訪問看護", Named::Nothing),
            ("薬", Named::Nothing),
            ("山田さんの酸素", Named::Nothing),
            ("あおば訪問看護", Named::Facility(Person::named("あおば訪問看護"))),
        ];
        for (phrase, expected) in cases {
            assert_eq!(in_sentence(phrase), expected, "{phrase}");
        }
    }

    #[test]
    fn lists() {
        let said = |text: &str| {
            list(text)
                .iter()
                .map(|p| format!("{}/{}", p.facility.as_deref().unwrap_or("-"), p.said))
                .collect::<Vec<_>>()
        };
        assert_eq!(said("佐藤花子さんと鈴木さん、p104300"), ["-/佐藤花子", "-/鈴木", "-/p104300"]);
        assert_eq!(
            said("・あおば訪問看護 佐藤花子\n・みどり薬局 鈴木一郎さん"),
            ["あおば訪問看護/佐藤花子", "みどり薬局/鈴木一郎"]
        );
        assert_eq!(said("さとう はなこ"), ["-/さとう はなこ"]);
        assert_eq!(said("p104217 p104300"), ["-/p104217", "-/p104300"]);
    }
}
