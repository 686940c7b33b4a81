//! The wording of the mails: small text files with `{placeholders}`, checked whole at start, so that no mail fails on one.
//!
//! A file is `Subject: …`, an empty line, and the body; `item.txt` (one notice within a mail) is body only. `{{` and `}}` stand
//! for braces. Values are put in once and never read again as templates.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use crate::{TemplateSet, store::Lang};

/// A template file by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    Notice,
    Item,
    Invite,
    RoomOpened,
    VerifyAddress,
    PasswordReset,
    Lockout,
}

/// What is wrong with a template. Says which file, and quotes placeholders only.
#[derive(Debug, thiserror::Error)]
#[error("template {lang}/{file}: {problem}")]
pub struct TemplateError {
    lang: &'static str,
    file: String,
    problem: String,
}

/// All templates in all languages.
#[derive(Debug)]
pub(crate) struct Templates(HashMap<(Lang, Name), Template>);

#[derive(Debug)]
struct Template {
    subject: Vec<Part>,
    body: Vec<Part>,
}

#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Value(String),
}

/// Placeholder → value.
pub(crate) type Values = BTreeMap<&'static str, String>;

/// No template needs more; a larger file is a mistake.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// What every template may say.
const COMMON: [&str; 3] = ["service", "login_url", "contact"];

impl Name {
    const ALL: [Self; 7] = [
        Self::Notice,
        Self::Item,
        Self::Invite,
        Self::RoomOpened,
        Self::VerifyAddress,
        Self::PasswordReset,
        Self::Lockout,
    ];

    /// The name of a template as the server says it in a lease.
    pub(crate) fn of_owed(name: &str) -> Option<Self> {
        match name {
            "room_opened" => Some(Self::RoomOpened),
            "verify_address" => Some(Self::VerifyAddress),
            "password_reset" => Some(Self::PasswordReset),
            "lockout" => Some(Self::Lockout),
            _ => None,
        }
    }

    pub(crate) fn file_stem(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Item => "item",
            Self::Invite => "invite",
            Self::RoomOpened => "room_opened",
            Self::VerifyAddress => "verify_address",
            Self::PasswordReset => "password_reset",
            Self::Lockout => "lockout",
        }
    }

    /// The parameter that comes with a mail the server owes, and without which the mail is useless.
    pub(crate) fn parameter(self) -> Option<&'static str> {
        match self {
            Self::VerifyAddress | Self::PasswordReset => Some("link"),
            Self::RoomOpened => Some("room_number"),
            Self::Lockout => Some("login_id"),
            Self::Notice | Self::Item | Self::Invite => None,
        }
    }

    fn body_placeholders(self) -> &'static [&'static str] {
        match self {
            Self::Notice => &["count", "rooms", "items", "mark"],
            Self::Invite => &["count", "rooms", "items"],
            Self::Item => &["room_name", "sender", "addressed", "importance", "room_number"],
            Self::RoomOpened => &["rooms"],
            Self::VerifyAddress | Self::PasswordReset => &["link"],
            Self::Lockout => &["login_id"],
        }
    }

    /// Links and IDs stay out of subjects: they show on locked screens.
    fn subject_placeholders(self) -> &'static [&'static str] {
        match self {
            Self::Notice => &["count", "rooms", "mark"],
            Self::Invite => &["count", "rooms"],
            Self::RoomOpened => &["rooms"],
            _ => &[],
        }
    }

    fn shipped(self, set: TemplateSet, lang: Lang) -> &'static str {
        macro_rules! text {
            ($path:literal) => {
                include_str!(concat!("../templates/", $path, ".txt"))
            };
        }
        match (set, lang, self) {
            (TemplateSet::Handbook, Lang::Ja, Self::Notice) => text!("handbook/ja/notice"),
            (TemplateSet::Handbook, Lang::Ja, Self::Item) => text!("handbook/ja/item"),
            (TemplateSet::Handbook, Lang::En, Self::Notice) => text!("handbook/en/notice"),
            (TemplateSet::Handbook, Lang::En, Self::Item) => text!("handbook/en/item"),
            (_, Lang::Ja, Self::Notice) => text!("nameless/ja/notice"),
            (_, Lang::Ja, Self::Item) => text!("nameless/ja/item"),
            (_, Lang::Ja, Self::Invite) => text!("nameless/ja/invite"),
            (_, Lang::Ja, Self::RoomOpened) => text!("nameless/ja/room_opened"),
            (_, Lang::Ja, Self::VerifyAddress) => text!("nameless/ja/verify_address"),
            (_, Lang::Ja, Self::PasswordReset) => text!("nameless/ja/password_reset"),
            (_, Lang::Ja, Self::Lockout) => text!("nameless/ja/lockout"),
            (_, Lang::En, Self::Notice) => text!("nameless/en/notice"),
            (_, Lang::En, Self::Item) => text!("nameless/en/item"),
            (_, Lang::En, Self::Invite) => text!("nameless/en/invite"),
            (_, Lang::En, Self::RoomOpened) => text!("nameless/en/room_opened"),
            (_, Lang::En, Self::VerifyAddress) => text!("nameless/en/verify_address"),
            (_, Lang::En, Self::PasswordReset) => text!("nameless/en/password_reset"),
            (_, Lang::En, Self::Lockout) => text!("nameless/en/lockout"),
        }
    }
}

impl Templates {
    /// Reads the shipped set, and the city's own files over it.
    pub(crate) fn load(set: TemplateSet, own: Option<&Path>) -> Result<Self, TemplateError> {
        let mut templates = HashMap::new();
        for lang in [Lang::Ja, Lang::En] {
            for name in Name::ALL {
                let file = format!("{}.txt", name.file_stem());
                let fail = |problem: String| TemplateError { lang: lang.code(), file: file.clone(), problem };
                let own = match own {
                    Some(folder) => read_own(&folder.join(lang.code()).join(&file)).map_err(fail)?,
                    None => None,
                };
                let template = match own {
                    Some(text) => Template::parse(name, &text),
                    None => Template::parse(name, name.shipped(set, lang)),
                };
                templates.insert((lang, name), template.map_err(fail)?);
            }
        }
        Ok(Self(templates))
    }

    /// Whether any template says who wrote or in which room. If none does, the bridge never stores it.
    pub(crate) fn name_people(&self) -> bool {
        let shows_items = self.0.iter().any(|((_, name), template)| {
            matches!(name, Name::Notice | Name::Invite) && template.uses("items")
        });
        shows_items
            && self.0.iter().any(|((_, name), template)| {
                *name == Name::Item && (template.uses("room_name") || template.uses("sender"))
            })
    }

    /// Subject (one line) and body.
    pub(crate) fn render(&self, lang: Lang, name: Name, values: &Values) -> (String, String) {
        let Some(template) = self.0.get(&(lang, name)) else {
            // load() fills in every pair of language and name.
            return (String::new(), String::new());
        };
        let subject = fill(&template.subject, values);
        (subject.replace(char::is_control, " "), fill(&template.body, values))
    }
}

impl Template {
    fn parse(name: Name, text: &str) -> Result<Self, String> {
        let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
        let (subject, body) = if name == Name::Item {
            ("", text.as_str())
        } else {
            let (head, body) = text.split_once('\n').unwrap_or((&text, ""));
            let subject = head.strip_prefix("Subject:").ok_or("the first line is not `Subject: …`")?;
            let body = body.strip_prefix('\n').ok_or("no empty line after the subject")?;
            (subject.trim(), body)
        };
        if name != Name::Item && (subject.is_empty() || body.trim().is_empty()) {
            return Err("subject or body is empty".to_owned());
        }
        let template = Self {
            subject: parts(subject, name.subject_placeholders(), &["service"])?,
            body: parts(body, name.body_placeholders(), &COMMON)?,
        };
        if name.parameter() == Some("link") && !template.uses("link") {
            return Err("{link} is missing".to_owned());
        }
        Ok(template)
    }

    fn uses(&self, placeholder: &str) -> bool {
        self.subject
            .iter()
            .chain(&self.body)
            .any(|part| matches!(part, Part::Value(name) if name == placeholder))
    }
}

fn parts(text: &str, allowed: &[&str], common: &[&str]) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            literal.push_str(brace);
            rest = after;
            continue;
        }
        let Some((name, after)) = rest.split_once('}').filter(|_| brace == "{") else {
            return Err("a brace has no partner".to_owned());
        };
        if !allowed.contains(&name) && !common.contains(&name) {
            return Err(format!("unknown placeholder {{{name}}} here"));
        }
        parts.push(Part::Text(std::mem::take(&mut literal)));
        parts.push(Part::Value(name.to_owned()));
        rest = after;
    }
    literal.push_str(rest);
    parts.push(Part::Text(literal));
    Ok(parts)
}

fn fill(parts: &[Part], values: &Values) -> String {
    parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Value(name) => values.get(name.as_str()).map_or("", String::as_str),
        })
        .collect()
}

fn read_own(path: &Path) -> Result<Option<String>, String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > FILE_BYTES_MAX => Err("the file is larger than 16 KiB".to_owned()),
        Ok(_) => std::fs::read_to_string(path).map(Some).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_sets_load_and_only_the_handbook_names_people() {
        assert!(!Templates::load(TemplateSet::Nameless, None).unwrap().name_people());
        assert!(Templates::load(TemplateSet::Handbook, None).unwrap().name_people());
    }

    #[test]
    fn the_handbook_speaks_as_the_handbook() {
        let templates = Templates::load(TemplateSet::Handbook, None).unwrap();
        let item = [
            ("room_name", "〇〇 〇〇さんの部屋"),
            ("sender", "〇〇課"),
            ("addressed", "参加者全員"),
            ("importance", "なし"),
        ];
        let values = item.map(|(name, value)| (name, value.to_owned())).into();
        let (_, item) = templates.render(Lang::Ja, Name::Item, &values);
        let values = Values::from([("service", "Heya".to_owned()), ("items", item)]);
        let (subject, body) = templates.render(Lang::Ja, Name::Notice, &values);
        assert_eq!(subject, "**Heya** コミュニティ着信通知");
        assert!(body.starts_with(
            "〇〇 〇〇さんの部屋に〇〇課 さんから投稿がありました。\n\n[宛 先] 参加者全員\n\n[重 要 度] なし\n"
        ));
        assert!(body.contains("Heyaにログインして内容を確認して下さい。"));
    }

    #[test]
    fn values_are_not_templates_and_subjects_are_one_line() {
        let template = parts("{{{service}}} {service}", &[], &COMMON).unwrap();
        let values = Values::from([("service", "{link}".to_owned())]);
        assert_eq!(fill(&template, &values), "{{link}} {link}");

        let templates = Templates::load(TemplateSet::Nameless, None).unwrap();
        let values = Values::from([("service", "Heya\r\nBcc: x@example.jp".to_owned())]);
        let (subject, _) = templates.render(Lang::Ja, Name::Notice, &values);
        assert!(!subject.contains(['\r', '\n']));
    }

    #[test]
    fn mistakes_are_named() {
        #[track_caller]
        fn check(name: Name, text: &str, problem: &str) {
            assert!(Template::parse(name, text).unwrap_err().contains(problem));
        }
        check(Name::Notice, "Subject: a\n\n{patient}", "unknown placeholder {patient}");
        check(Name::Notice, "Subject: a\n\n{sender}", "unknown placeholder {sender}");
        check(Name::VerifyAddress, "Subject: {link}\n\nb", "unknown placeholder {link}");
        check(Name::VerifyAddress, "Subject: a\n\nb", "{link} is missing");
        check(Name::Notice, "Subject: a\n\n{count", "no partner");
        check(Name::Notice, "Subject: a\n\ncount}", "no partner");
        check(Name::Notice, "Betreff: a\n\nb", "first line");
        check(Name::Notice, "Subject: a\nb", "empty line");
    }
}
