//! A registration file (Application Service API, "Registration"): read with suspicion, and compared with the others.
//!
//! Files are YAML, as appservices write them; JSON is a part of YAML. Unknown keys are passed over, as the specification
//! has it. Whatever is wrong is told with the field's name and never with a value: the file holds two tokens.

use std::path::Path;

use regex_automata::{
    Anchored,
    dfa::{Automaton as _, StartKind, dense},
    util::start,
};
use ruma::{ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A registration file has a few hundred bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Namespaces of one kind.
const NAMESPACES_MAX: usize = 100;
/// A compiled expression, in bytes.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Pairs of states looked at while two expressions are compared.
const PAIRS_MAX: usize = 100_000;

/// What a registration says.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Registration {
    /// The name of the appservice.
    pub id: String,
    /// Where it listens; none where it only sends.
    pub url: Option<String>,
    /// Its token towards us.
    pub as_token: String,
    /// Our token towards it.
    pub hs_token: String,
    /// The localpart of its own user.
    pub sender_localpart: String,
    /// What it is interested in.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Whether it wants typing and receipts.
    #[serde(default)]
    pub receive_ephemeral: bool,
    /// Whether its users are limited in their rate; its own user never is.
    #[serde(default)]
    pub rate_limited: Option<bool>,
    /// Protocols it bridges.
    #[serde(default)]
    pub protocols: Option<Vec<String>>,
}

/// Namespaces of a registration.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Namespaces {
    /// User ids.
    #[serde(default)]
    pub users: Vec<Namespace>,
    /// Aliases.
    #[serde(default)]
    pub aliases: Vec<Namespace>,
    /// Room ids.
    #[serde(default)]
    pub rooms: Vec<Namespace>,
}

/// One namespace.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Namespace {
    /// Nobody else may make users or aliases in it.
    pub exclusive: bool,
    /// What it matches: the whole id.
    pub regex: String,
}

impl Registration {
    /// Reads a registration file. The error names the file and the field.
    pub fn read(path: &Path, server_name: &ServerName) -> Result<Self> {
        let told = |reason: String| Error::internal(format!("{}: {reason}", path.display()));
        let length = std::fs::metadata(path).map_err(|error| told(error.to_string()))?.len();
        if length > FILE_BYTES_MAX {
            return Err(told(format!("the file is longer than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| told(error.to_string()))?;
        Self::parse(&text, server_name).map_err(told)
    }

    /// Reads a registration from YAML or JSON.
    pub fn parse(text: &str, server_name: &ServerName) -> Result<Self, String> {
        let options = serde_saphyr::options! {
            // A snippet would put the file's text, and so its tokens, into the error.
            with_snippet: false,
            // A token that is `y` or `on` is a text.
            strict_booleans: true,
            budget: serde_saphyr::budget! {
                max_events: 20_000,
                max_aliases: 100,
                max_anchors: 100,
                max_depth: 16,
            },
        };
        let value: Value =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| match error.location() {
                Some(at) => {
                    format!("this is no YAML that can be read, at line {}, column {}", at.line(), at.column())
                }
                None => "this is no YAML that can be read".to_owned(),
            })?;
        let Value::Object(fields) = value else {
            return Err("a registration is a list of `key: value`".to_owned());
        };
        let given = |field: &str| fields.get(field).filter(|value| !value.is_null());
        let namespaces = match given("namespaces") {
            Some(Value::Object(namespaces)) => Namespaces {
                users: list(namespaces, "users")?,
                aliases: list(namespaces, "aliases")?,
                rooms: list(namespaces, "rooms")?,
            },
            Some(_) => return Err("namespaces is not a map of users, aliases and rooms".to_owned()),
            None => return Err("namespaces is missing".to_owned()),
        };
        if !fields.contains_key("url") {
            return Err("url is missing (null where the appservice only sends)".to_owned());
        }
        let flag = |field: &str| match given(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(format!("{field} is neither true nor false")),
        };
        let registration = Self {
            id: string(&fields, "id", "")?,
            url: given("url").map(|_| string(&fields, "url", "")).transpose()?,
            as_token: string(&fields, "as_token", "")?,
            hs_token: string(&fields, "hs_token", "")?,
            sender_localpart: string(&fields, "sender_localpart", "")?,
            namespaces,
            // The second is what it was called before Matrix 1.13, and what many files still say.
            receive_ephemeral: flag("receive_ephemeral")?
                .or(flag("de.sorunome.msc2409.push_ephemeral")?)
                .unwrap_or(false),
            rate_limited: flag("rate_limited")?,
            protocols: match given("protocols") {
                None => None,
                Some(Value::Array(all)) => Some(
                    all.iter()
                        .map(|one| one.as_str().map(ToOwned::to_owned))
                        .collect::<Option<_>>()
                        .ok_or("protocols is not a list of texts")?,
                ),
                Some(_) => return Err("protocols is not a list of texts".to_owned()),
            },
        };
        registration.check(server_name)?;
        Ok(registration)
    }

    fn check(&self, server_name: &ServerName) -> Result<(), String> {
        if let Some(url) = &self.url {
            let parsed = reqwest::Url::parse(url).map_err(|_| "url is no URL".to_owned())?;
            if !matches!(parsed.scheme(), "http" | "https") || parsed.query().is_some() {
                return Err("url is not http:// or https:// with a host and perhaps a path".to_owned());
            }
        }
        let sender = UserId::parse_with_server_name(self.sender_localpart.as_str(), server_name);
        if self.sender_localpart.starts_with('@') || sender.is_err() {
            return Err("sender_localpart is not the part of a user id between @ and :".to_owned());
        }
        if self.as_token == self.hs_token {
            return Err("as_token and hs_token are the same".to_owned());
        }
        for (kind, all) in self.namespaces.kinds() {
            for (i, namespace) in all.iter().enumerate() {
                compile(&namespace.regex)
                    .map_err(|reason| format!("namespaces.{kind}[{i}].regex cannot be used: {reason}"))?;
            }
        }
        Ok(())
    }
}

impl Namespaces {
    /// The three lists by their names.
    pub fn kinds(&self) -> [(&'static str, &[Namespace]); 3] {
        [("users", &self.users), ("aliases", &self.aliases), ("rooms", &self.rooms)]
    }
}

/// A namespace's expression. The whole id must match, and the size of what is compiled is bounded.
pub fn compile(text: &str) -> Result<regex::Regex, &'static str> {
    regex::RegexBuilder::new(&whole(text)).size_limit(REGEX_BYTES_MAX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "it is too large",
        _ => "it is no regular expression (there is no looking ahead, and no looking back)",
    })
}

fn whole(text: &str) -> String {
    format!("^(?:{text})$")
}

/// Whether some text is matched by both expressions: the two automata are walked side by side until both accept.
/// Expressions that are too large to be compared count as overlapping.
pub fn overlap(a: &str, b: &str) -> bool {
    let (Some(a), Some(b)) = (automaton(a), automaton(b)) else { return true };
    let begin = start::Config::new().anchored(Anchored::Yes);
    let (Ok(first), Ok(second)) = (a.start_state(&begin), b.start_state(&begin)) else { return true };
    // One byte for each pair of classes stands for all that both automata treat alike.
    let mut seen_classes = std::collections::BTreeSet::new();
    let bytes: Vec<u8> = (0..=u8::MAX)
        .filter(|byte| seen_classes.insert((a.byte_classes().get(*byte), b.byte_classes().get(*byte))))
        .collect();
    let mut seen = std::collections::HashSet::from([(first, second)]);
    let mut waiting = vec![(first, second)];
    while let Some((of_a, of_b)) = waiting.pop() {
        if a.is_match_state(a.next_eoi_state(of_a)) && b.is_match_state(b.next_eoi_state(of_b)) {
            return true;
        }
        for &byte in &bytes {
            let next = (a.next_state(of_a, byte), b.next_state(of_b, byte));
            if a.is_dead_state(next.0) || b.is_dead_state(next.1) {
                continue;
            }
            if a.is_quit_state(next.0) || b.is_quit_state(next.1) || seen.len() > PAIRS_MAX {
                return true;
            }
            if seen.insert(next) {
                waiting.push(next);
            }
        }
    }
    false
}

fn automaton(text: &str) -> Option<dense::DFA<Vec<u32>>> {
    let config = dense::Config::new()
        .start_kind(StartKind::Anchored)
        .dfa_size_limit(Some(16 << 20))
        .determinize_size_limit(Some(16 << 20));
    dense::Builder::new().configure(config).build(&whole(text)).ok()
}

fn list(namespaces: &Map<String, Value>, kind: &str) -> Result<Vec<Namespace>, String> {
    let all = match namespaces.get(kind) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(all)) => all,
        Some(_) => return Err(format!("namespaces.{kind} is not a list")),
    };
    if all.len() > NAMESPACES_MAX {
        return Err(format!("namespaces.{kind} has more than {NAMESPACES_MAX} entries"));
    }
    all.iter()
        .enumerate()
        .map(|(i, one)| {
            let place = format!("namespaces.{kind}[{i}].");
            let Value::Object(one) = one else {
                return Err(format!("namespaces.{kind}[{i}] is not a pair of exclusive and regex"));
            };
            match one.get("exclusive") {
                Some(Value::Bool(exclusive)) => {
                    Ok(Namespace { exclusive: *exclusive, regex: string(one, "regex", &place)? })
                }
                Some(_) => Err(format!("{place}exclusive is neither true nor false")),
                None => Err(format!("{place}exclusive is missing")),
            }
        })
        .collect()
}

/// A text that must be there and not be empty.
fn string(fields: &Map<String, Value>, field: &str, place: &str) -> Result<String, String> {
    match fields.get(field) {
        None | Some(Value::Null) => Err(format!("{place}{field} is missing")),
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("{place}{field} is empty")),
        Some(Value::String(text)) if text.len() > 1_000 => Err(format!("{place}{field} is too long")),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{place}{field} is not a text; put it into quotation marks")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const MAUTRIX: &str = r#"
# As a bridge writes it.
id: telegram
url: http://localhost:29317
as_token: as-secret-1
hs_token: hs-secret-1
sender_localpart: telegrambot
rate_limited: false
de.sorunome.msc2409.push_ephemeral: true
push_ephemeral: true
receive_ephemeral: true
io.element.msc4190: true
namespaces:
    users:
        - regex: ^@telegram_.*:example\.jp$
          exclusive: true
        - exclusive: true
          regex: '^@telegrambot:example\.jp$'
    aliases:
        - exclusive: true
          regex: '\#telegram_.*:example\.jp'
    rooms: []
"#;

    fn parse(text: &str) -> Result<Registration, String> {
        Registration::parse(text, <&ServerName>::try_from("example.jp").unwrap())
    }

    #[test]
    fn yaml_as_bridges_write_it() {
        let read = parse(MAUTRIX).expect("a registration");
        assert_eq!((read.id.as_str(), read.url.as_deref()), ("telegram", Some("http://localhost:29317")));
        assert!(read.receive_ephemeral && read.rate_limited == Some(false));
        assert_eq!(read.namespaces.users.len(), 2);
        let users = compile(&read.namespaces.users[0].regex).unwrap();
        assert!(users.is_match("@telegram_12:example.jp") && !users.is_match("@telegram_12:example.jp.x"));
        let aliases = compile(&read.namespaces.aliases[0].regex).unwrap();
        assert!(aliases.is_match("#telegram_x:example.jp"));
    }

    #[test]
    fn json_anchors_and_no_url() {
        let json = r#"{"id": "a", "url": null, "as_token": "x", "hs_token": "y", "sender_localpart": "a", "namespaces": {}}"#;
        let read = parse(json).expect("a registration");
        assert!(read.url.is_none() && read.namespaces.users.is_empty() && !read.receive_ephemeral);
        let shared = "id: a\nurl: null\nas_token: x\nhs_token: y\nsender_localpart: &name a_\nnamespaces:\n  users:\n  - &one {exclusive: false, regex: '@a_.*'}\n  rooms: [*one]\n";
        assert_eq!(parse(shared).expect("a registration").namespaces.rooms[0].regex, "@a_.*");
    }

    #[test]
    fn what_is_wrong_is_named_and_no_value_is_told() {
        let without = |line: &str| {
            MAUTRIX.lines().filter(|l| !l.trim_start().starts_with(line)).collect::<Vec<_>>().join("\n")
        };
        for field in ["id", "url", "as_token", "hs_token", "sender_localpart"] {
            let told = parse(&without(&format!("{field}:"))).unwrap_err();
            assert!(told.starts_with(&format!("{field} is missing")), "{told}");
        }
        for (from, to, told) in [
            (
                "exclusive: true",
                "exclusive: yes please",
                "namespaces.users[0].exclusive is neither true nor false",
            ),
            ("^@telegram_.*:", "^@telegram_(.*:", "namespaces.users[0].regex cannot be used"),
            ("^@telegram_.*:", "^(?!p)@telegram_.*:", "namespaces.users[0].regex cannot be used"),
            (
                "^@telegram_.*:",
                "^@(\\w{500}){500}:",
                "namespaces.users[0].regex cannot be used: it is too large",
            ),
            ("as-secret-1", "12345", "as_token is not a text"),
            ("hs-secret-1", "as-secret-1", "as_token and hs_token are the same"),
            ("telegrambot\n", "'@telegrambot'\n", "sender_localpart is not"),
            ("http://localhost:29317", "ftp://localhost", "url is not http:// or https://"),
            ("receive_ephemeral: true", "receive_ephemeral: maybe", "receive_ephemeral is neither"),
            ("rooms: []", "rooms: x", "namespaces.rooms is not a list"),
            ("rate_limited: false", "id: twice", "this is no YAML that can be read, at line"),
            ("rooms: []", "rooms: [", "this is no YAML that can be read"),
            ("rooms: []", "rooms: [*nobody]", "this is no YAML that can be read"),
        ] {
            let text = MAUTRIX.replacen(from, to, 1);
            assert_ne!(text, MAUTRIX, "{from}");
            let error = parse(&text).expect_err(to);
            assert!(error.starts_with(told), "{to}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(parse("just a text").is_err() && parse("").is_err());
    }

    #[test]
    fn anchors_do_not_grow_without_end() {
        let mut text = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let many = vec![format!("*a{}", i - 1); 10].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{many}]\n"));
        }
        assert!(parse(&text).unwrap_err().starts_with("this is no YAML"));
        let deep = format!("a: {}{}", "[".repeat(200), "]".repeat(200));
        assert!(parse(&deep).unwrap_err().starts_with("this is no YAML"));
    }

    #[test]
    fn expressions_that_share_a_text_overlap() {
        for (a, b, shared) in [
            ("@irc_.*:example\\.jp", "@telegram_.*:example\\.jp", false),
            ("@irc_.*:example\\.jp", "@irc_bot:example\\.jp", true),
            ("@irc_.*", "@.*_x:example\\.jp", true),
            ("^@irc_.*$", "@[pf][0-9]+:example\\.jp", false),
            ("@.*:example\\.jp", "@[pf][0-9]+:example\\.jp", true),
            ("@p1000[a-z]+:example\\.jp", "@[pf][0-9]+:example\\.jp", false),
            ("#a.*", "@a.*", false),
            ("@a{3,5}", "@a{6,9}", false),
            ("@(?i:IRC)_x", "@irc_x", true),
        ] {
            assert_eq!(overlap(a, b), shared, "{a} and {b}");
            assert_eq!(overlap(b, a), shared, "{b} and {a}");
        }
    }
}
