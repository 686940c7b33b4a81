//! The control room's commands, in Japanese with English aliases. Pure: text in, command out.

use time::Date;

use crate::cases::{Action, Facility, Person, Place, Step};
use crate::forms::{Consent, Field, Form, Gap};
use crate::japanese::{normalise, resolve_mentions, unquote};
use crate::lookup::{Look, RoomStatus};
use crate::people;

/// What a member of city staff wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    /// A change: becomes a case that is approved by being given.
    Act(Action),
    Consent(Consent),
    WithdrawConsent {
        name: String,
        birth_date: String,
    },
    Look(Look),
    OpenCases,
    ShowCase(i64),
    /// No number: the case of the message that is replied to.
    Approve {
        cases: Vec<i64>,
        second_room: bool,
    },
    Refuse {
        case: Option<i64>,
        reason: String,
    },
    /// Says who is meant in a case.
    Assign {
        case: i64,
        people: Vec<Person>,
    },
    /// Takes the e-applications of the file that is replied to.
    Import,
}

/// A command's name; `texts` has the usage of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Help,
    Register,
    Issue,
    Code,
    Reset,
    Consent,
    Open,
    Add,
    Remove,
    Close,
    Reopen,
    Announce,
    Cases,
    List,
    Approve,
    Refuse,
    Assign,
    EndAccount,
    RevokeTerminal,
    Life(Step),
    Redact,
    Import,
}

/// A command that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// Shown with the command's usage.
    Usage(Name),
    /// 誓約済 is not stated (H8).
    Pledge(Name),
    /// A form that is empty or has gaps.
    Gaps(Name, Vec<Gap>),
}

const NAMES: [(Name, &[&str]); 28] = [
    (Name::Help, &["ヘルプ", "使い方", "help"]),
    (Name::Register, &["事業所登録", "事業所の登録", "register"]),
    (Name::Issue, &["発行", "id発行", "issue"]),
    (Name::Code, &["端末コード", "code"]),
    (Name::Reset, &["パスワード再発行", "パスワードの再発行", "reset"]),
    (Name::Consent, &["同意", "同意の報告", "同意の撤回", "同意撤回", "consent"]),
    (Name::Open, &["開設", "開設依頼", "部屋の開設", "open"]),
    (Name::Add, &["追加", "add"]),
    (Name::Remove, &["削除", "remove"]),
    (Name::Close, &["終了", "close"]),
    (Name::Reopen, &["再開", "reopen"]),
    (Name::Announce, &["お知らせ", "市からのお知らせ", "announce"]),
    (Name::Cases, &["案件", "cases", "case"]),
    (Name::List, &["一覧", "list"]),
    (Name::Approve, &["承認", "approve"]),
    (Name::Refuse, &["差し戻し", "差戻し", "差戻", "refuse"]),
    (Name::Assign, &["指定", "assign"]),
    (Name::EndAccount, &["利用終了", "end"]),
    (Name::RevokeTerminal, &["端末失効", "revoke"]),
    (Name::Life(Step::Archive), &["保管", "archive"]),
    (Name::Life(Step::Export), &["書き出し", "書出し", "export"]),
    (Name::Life(Step::Hold), &["法的保全", "hold"]),
    (Name::Life(Step::Release), &["法的保全の解除", "法的保全解除", "保全解除", "release"]),
    (Name::Life(Step::Purge), &["消去", "purge"]),
    (Name::Life(Step::BreakGlass), &["緊急閲覧", "break-glass"]),
    (Name::Life(Step::EndBreakGlass), &["緊急閲覧終了", "緊急閲覧の終了", "end-break-glass"]),
    (Name::Redact, &["投稿取消", "投稿取り消し", "投稿の取消", "redact"]),
    (Name::Import, &["取り込み", "取込", "取込み", "import"]),
];

/// How kinds of facility are called in Japanese, and by the internal API.
const KINDS: [(&str, &str); 6] = [
    ("医療機関", "medical"),
    ("訪問看護", "visiting_nurse"),
    ("介護", "care"),
    ("薬局", "pharmacy"),
    ("職能団体", "association"),
    ("その他", "other"),
];

/// The kind of facility that a word names, as the internal API calls it.
pub(crate) fn facility_kind(said: &str) -> Option<&'static str> {
    KINDS.iter().find(|(ja, en)| said == *ja || said == *en).map(|(_, en)| *en)
}

const PLEDGED: [&str; 4] = ["誓約済", "誓約済み", "誓約済です", "pledged"];

/// Reads a message of the control room; nothing when it is no command: staff also talk to each other there.
pub(crate) fn parse(text: &str, today: Date) -> Option<Result<Command, Problem>> {
    let text = normalise(&resolve_mentions(text));
    let (first, below) = text.split_once('\n').unwrap_or((text.as_str(), ""));
    let first = first.trim_start_matches(['!', '/']);
    let first =
        ["@city:", "@city", "city:"].iter().find_map(|to| first.strip_prefix(to)).unwrap_or(first).trim();
    let (word, rest) = split_word(first);
    let lower = word.to_lowercase();
    let (name, lower) = match name_of(&lower) {
        Some(name) => (name, lower),
        // 承認12, 案件12
        None => {
            let stem = lower.trim_end_matches(|c: char| c.is_ascii_digit());
            let name =
                name_of(stem).filter(|name| matches!(name, Name::Approve | Name::Cases | Name::Refuse))?;
            let number = &word[stem.len()..];
            return Some(
                Input { name, word: stem, rest: &format!("{number} {rest}"), below, all: &text, today }
                    .command(),
            );
        }
    };
    Some(Input { name, word: &lower, rest, below, all: &text, today }.command())
}

/// `メール通知`, alone or with what is chosen; the word of the internal API. Nothing when the text is about something
/// else: people also talk about mails.
pub(crate) fn mail_scope(text: &str) -> Option<Option<&'static str>> {
    let text = normalise(&resolve_mentions(text));
    let text = text.trim().trim_start_matches(['!', '/']);
    let rest = ["メール通知", "mail"].iter().find_map(|word| text.strip_prefix(word))?;
    if rest.is_empty() {
        return Some(None);
    }
    let choice = rest.strip_prefix([' ', ':', '\u{3000}'])?.trim();
    Some(Some(match choice.to_lowercase().as_str() {
        "自分宛て" | "自分宛" | "自分あて" | "宛先" | "mentions" => "highlight",
        "ダイレクト" | "ダイレクトメッセージ" | "dm" | "direct" => "direct",
        "すべて" | "全て" | "すべての部屋" | "全部" | "all" => "all",
        _ => return Some(None),
    }))
}

/// Whether a file calls itself a consent form (`同意書 12`, `同意書_12.pdf`, `案件12 同意書`), and of which case.
pub(crate) fn consent_scan(words: &str) -> Option<Option<i64>> {
    /// Case numbers; a longer run of digits is a date or the camera's own number.
    const DIGITS_MAX: usize = 7;
    let words = normalise(words).to_lowercase();
    let number_after = |word: &str| {
        let (_, rest) = words.split_once(word)?;
        let rest = rest.trim_start_matches([' ', '_', '-', '#', ':', '(', '案', '件', '番', '号']);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok().filter(|_| digits.len() <= DIGITS_MAX)
    };
    let word = ["同意書", "consent form"].into_iter().find(|word| words.contains(word))?;
    Some(number_after(word).or_else(|| number_after("案件")).or_else(|| number_after("case")))
}

fn name_of(word: &str) -> Option<Name> {
    NAMES.into_iter().find(|(_, words)| words.contains(&word)).map(|(name, _)| name)
}

/// The first word: up to a blank or a colon.
fn split_word(line: &str) -> (&str, &str) {
    match line.find([' ', ':']) {
        Some(at) => (&line[..at], line[at + 1..].trim()),
        None => (line, ""),
    }
}

struct Input<'a> {
    name: Name,
    word: &'a str,
    /// The rest of the first line.
    rest: &'a str,
    /// The lines after it.
    below: &'a str,
    all: &'a str,
    today: Date,
}

impl Input<'_> {
    fn command(&self) -> Result<Command, Problem> {
        let usage = Problem::Usage(self.name);
        let words = words(self.rest);
        match self.name {
            Name::Help => Ok(Command::Help),
            Name::Register => self.register(words),
            Name::Issue => self.issue(words),
            Name::Code => {
                one_person(self.rest).map(|person| Command::Act(Action::IssueCode { person })).ok_or(usage)
            }
            Name::Reset => {
                one_person(self.rest).map(|person| Command::Act(Action::ResetAccount { person })).ok_or(usage)
            }
            Name::Consent => self.consent(),
            Name::Open => self.open(),
            Name::Add | Name::Remove => self.members(),
            Name::Close => Ok(Command::Act(Action::Close { place: only_room(&words).ok_or(usage)? })),
            Name::Reopen => Ok(Command::Act(Action::Reopen { place: only_room(&words).ok_or(usage)? })),
            Name::Announce => self.announce(),
            Name::Cases => match words.first() {
                None => Ok(Command::OpenCases),
                Some(word) => number(word).map(Command::ShowCase).ok_or(usage),
            },
            Name::List => self.list(&words),
            Name::Approve => {
                let cases: Vec<i64> = words.iter().filter_map(|word| number(word)).collect();
                let second_room = words
                    .iter()
                    .any(|word| word.contains("二つ目") || word.contains("2つ目") || *word == "second");
                if cases.len() + usize::from(second_room) < words.len() {
                    Err(usage)
                } else {
                    Ok(Command::Approve { cases, second_room })
                }
            }
            Name::Refuse => {
                let case = words.first().and_then(|word| number(word));
                let reason = if case.is_some() { split_word(self.rest).1 } else { self.rest };
                Ok(Command::Refuse { case, reason: with_lines(reason, self.below) })
            }
            Name::Assign => {
                let (first, rest) = split_word(self.rest);
                let people = people::list(&with_lines(rest, self.below));
                match number(first) {
                    Some(case) if !people.is_empty() => Ok(Command::Assign { case, people }),
                    _ => Err(usage),
                }
            }
            Name::EndAccount => {
                let (who, reason) = split_word(self.rest);
                let person = one_person(who).ok_or(usage)?;
                Ok(Command::Act(Action::EndAccount { person, reason: with_lines(reason, self.below) }))
            }
            Name::Life(step) => {
                if !step.takes_reason() {
                    let place = only_room(&words).filter(|_| self.below.is_empty()).ok_or(usage)?;
                    return Ok(Command::Act(Action::Life { step, place, reason: String::new() }));
                }
                let (place, reason) = room_first(&words).ok_or(usage.clone())?;
                let reason = with_lines(&reason, self.below);
                if step.needs_reason() && reason.is_empty() || is_question(&reason) {
                    return Err(usage);
                }
                Ok(Command::Act(Action::Life { step, place, reason }))
            }
            Name::Redact => self.redact(&words),
            Name::Import if words.is_empty() && self.below.is_empty() => Ok(Command::Import),
            Name::Import => Err(usage),
            Name::RevokeTerminal => {
                let (first, reason) = split_word(self.rest);
                let terminal =
                    number(first.trim_start_matches("端末")).filter(|_| !is_question(reason)).ok_or(usage)?;
                Ok(Command::Act(Action::RevokeTerminal { terminal, reason: with_lines(reason, self.below) }))
            }
        }
    }

    fn register(&self, mut words: Vec<&str>) -> Result<Command, Problem> {
        let pledged = take_pledge(&mut words);
        let kind = words.iter().rposition(|word| facility_kind(word).is_some());
        let kind = kind.and_then(|at| facility_kind(words.remove(at)));
        let (Some(kind), false) = (kind, words.is_empty()) else {
            return Err(Problem::Usage(self.name));
        };
        if !pledged {
            return Err(Problem::Pledge(self.name));
        }
        Ok(Command::Act(Action::RegisterFacility { name: words.join(" "), facility_kind: kind.to_owned() }))
    }

    fn issue(&self, mut words: Vec<&str>) -> Result<Command, Problem> {
        let pledged = take_pledge(&mut words);
        if words.len() < 2 {
            return Err(Problem::Usage(self.name));
        }
        if !pledged {
            return Err(Problem::Pledge(self.name));
        }
        let facility = Facility { said: words.remove(0).to_owned(), number: None };
        if words.len() == 1 && ["施設id", "施設", "facility"].contains(&words[0].to_lowercase().as_str())
        {
            return Ok(Command::Act(Action::IssueFacilityId { facility }));
        }
        words.retain(|word| word.to_lowercase() != "個人id");
        // The last word is the profession when there are two or more and it is one.
        let profession = match words.as_slice() {
            [_, .., last] if people::is_profession(last) => words.pop().map(str::to_owned),
            _ => None,
        };
        // 佐藤 花子 is written 佐藤花子; Latin names keep their space.
        let latin = words.iter().all(|word| word.is_ascii());
        let name = words.join(if latin { " " } else { "" });
        let name = ["さん", "様"]
            .iter()
            .find_map(|honorific| name.strip_suffix(honorific))
            .unwrap_or(&name)
            .to_owned();
        if name.is_empty() {
            return Err(Problem::Usage(self.name));
        }
        Ok(Command::Act(Action::IssuePersonalId { facility, name, profession }))
    }

    fn consent(&self) -> Result<Command, Problem> {
        let form = Form::read(self.all);
        if self.word.contains("撤回") || self.rest.starts_with("撤回") || self.rest.starts_with("withdraw")
        {
            let whose = form.withdrawal(self.today).map_err(|gaps| Problem::Gaps(self.name, gaps))?;
            return Ok(Command::WithdrawConsent { name: whose.0, birth_date: whose.1 });
        }
        form.consent(self.today).map(Command::Consent).map_err(|gaps| Problem::Gaps(self.name, gaps))
    }

    fn open(&self) -> Result<Command, Problem> {
        // 開設 職能団体 〇〇市薬剤師会, in one line
        if let Some(name) =
            self.rest.strip_prefix("職能団体").or_else(|| self.rest.strip_prefix("association"))
            && !Form::read(self.all).has(Field::RoomName)
        {
            let name = unquote(name.trim_start_matches(':'));
            if name.is_empty() {
                return Err(Problem::Gaps(self.name, vec![Gap::RoomName]));
            }
            let people = Form::read(self.below).members();
            return Ok(Command::Act(Action::OpenAssociation { name: name.to_owned(), people }));
        }
        Form::read(self.all)
            .opening(self.today)
            .map(Command::Act)
            .map_err(|gaps| Problem::Gaps(self.name, gaps))
    }

    fn members(&self) -> Result<Command, Problem> {
        let usage = Problem::Usage(self.name);
        let (place, rest) = room(&words(self.rest)).ok_or(usage.clone())?;
        let rest = ["を追加", "を削除"].iter().find_map(|verb| rest.strip_suffix(verb)).unwrap_or(&rest);
        let people = people::list(&with_lines(rest, self.below));
        if people.is_empty() {
            return Err(usage);
        }
        let adding = self.name == Name::Add;
        Ok(Command::Act(if adding {
            Action::Add { place, people }
        } else {
            Action::Remove { place, people }
        }))
    }

    /// To everybody, or to the facilities named in the first line. In one line only with 全員: a notice that
    /// was meant for one facility must not reach all by a missing line break.
    fn announce(&self) -> Result<Command, Problem> {
        let (to, rest) = split_word(self.rest);
        let everybody = |word: &str| ["全員", "全事業所", "すべて", "全体", "all"].contains(&word);
        let (facilities, body) = if self.below.is_empty() {
            (None, if everybody(to) { rest } else { "" })
        } else if self.rest.is_empty() || everybody(self.rest) {
            (None, self.below)
        } else {
            let named = self.rest.trim_start_matches("宛先").trim_start_matches(':');
            let facilities = named.split(['、', ',']).map(unquote).filter(|name| !name.is_empty());
            (
                Some(
                    facilities
                        .map(|name| Facility { said: name.to_owned(), number: None })
                        .collect::<Vec<_>>(),
                ),
                self.below,
            )
        };
        if body.is_empty() {
            return Err(Problem::Usage(self.name));
        }
        Ok(Command::Act(Action::Announce { body: body.to_owned(), facilities }))
    }

    /// `投稿取消 14 https://matrix.to/#/!room/$event?via=… 理由`: the link is what clients give for a post.
    fn redact(&self, words: &[&str]) -> Result<Command, Problem> {
        let usage = Problem::Usage(self.name);
        let at = words.iter().position(|word| event_id(word).is_some()).ok_or(usage.clone())?;
        let event_id = event_id(words[at]).ok_or(usage.clone())?;
        let rest: Vec<&str> =
            words.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, word)| *word).collect();
        let (place, reason) = room(&rest).ok_or(usage)?;
        let reason = with_lines(&reason, self.below);
        Ok(Command::Act(Action::Redact { place, event_id, reason }))
    }

    fn list(&self, words: &[&str]) -> Result<Command, Problem> {
        let look = match words {
            [] | ["部屋" | "rooms"] => Look::Rooms { status: RoomStatus::Open },
            ["終了" | "終了した部屋" | "closed"] | ["部屋" | "rooms", "終了" | "closed"] => {
                Look::Rooms { status: RoomStatus::Closed }
            }
            ["保管" | "保管した部屋" | "archived"] | ["部屋" | "rooms", "保管" | "archived"] => {
                Look::Rooms { status: RoomStatus::Archived }
            }
            ["事業所" | "facilities"] => Look::Facilities,
            ["利用者" | "accounts" | "id", query @ ..] => Look::Accounts { query: query.concat() },
            ["端末" | "terminals", who] => {
                Look::Terminals { person: one_person(who).ok_or(Problem::Usage(self.name))? }
            }
            _ => return Err(Problem::Usage(self.name)),
        };
        Ok(Command::Look(look))
    }
}

/// Words of a line; 「」 keep a name with blanks together.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let mut quoted = false;
    for (at, c) in line.char_indices() {
        match c {
            '「' | '『' | '“' => quoted = true,
            '」' | '』' | '”' => quoted = false,
            ' ' if !quoted => {
                words.push(unquote(&line[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    words.push(unquote(&line[start..]));
    words.retain(|word| !word.is_empty());
    words
}

fn number(word: &str) -> Option<i64> {
    let word = word.trim_start_matches("案件").trim_start_matches('#').trim_end_matches(['番', '、', ',']);
    word.parse().ok().filter(|number| *number > 0)
}

/// The room number among the words, and the other words.
fn room(words: &[&str]) -> Option<(Place, String)> {
    let as_number = |word: &str| {
        let word =
            ["部屋番号", "部屋", "room"].iter().find_map(|prefix| word.strip_prefix(prefix)).unwrap_or(word);
        let word = word.trim_start_matches([':', '#']);
        let word = ["番の部屋", "号室", "番", "に", "から"]
            .iter()
            .find_map(|suffix| word.strip_suffix(suffix))
            .unwrap_or(word);
        word.parse::<i64>().ok().filter(|number| *number > 0)
    };
    let at = words.iter().position(|word| as_number(word).is_some())?;
    let number = as_number(words[at])?;
    let skip = |i: usize| i == at || i + 1 == at && ["部屋", "部屋番号", "room"].contains(&words[i]);
    let rest: Vec<&str> =
        words.iter().enumerate().filter(|(i, _)| !skip(*i)).map(|(_, word)| *word).collect();
    Some((Place { number: Some(number), ..Place::default() }, rest.join(" ")))
}

/// The event id in a link to a post, or by itself: `$` and 43 letters of URL-safe base64 (room versions 4 and later).
fn event_id(word: &str) -> Option<String> {
    let word = word.replace("%24", "$");
    let id = &word[word.find('$')?..];
    let length =
        id.bytes().skip(1).take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')).count();
    (length == 43).then(|| id[..44].to_owned())
}

/// The room number as the first of the words, and the other words. Staff also talk about rooms in the control room: a
/// number somewhere in a sentence changes nothing.
fn room_first(words: &[&str]) -> Option<(Place, String)> {
    let first = if ["部屋", "部屋番号", "room"].contains(words.first()?) { 2 } else { 1 };
    let (place, nothing) = room(words.get(..first)?)?;
    nothing.is_empty().then(|| (place, words[first..].join(" ")))
}

/// A room number and nothing else.
fn only_room(words: &[&str]) -> Option<Place> {
    room_first(words).filter(|(_, rest)| rest.is_empty()).map(|(place, _)| place)
}

/// Whether a text asks something.
fn is_question(text: &str) -> bool {
    let text = text.trim_end_matches(['。', '.', ' ']);
    ["？", "?", "か"].iter().any(|end| text.ends_with(end))
}

fn one_person(text: &str) -> Option<Person> {
    let mut people = people::list(text);
    if people.len() == 1 { people.pop() } else { None }
}

fn take_pledge(words: &mut Vec<&str>) -> bool {
    let before = words.len();
    words.retain(|word| !PLEDGED.contains(&word.trim_matches(['(', ')'])));
    words.len() < before
}

fn with_lines(line: &str, below: &str) -> String {
    if below.is_empty() { line.to_owned() } else { format!("{line}\n{below}").trim().to_owned() }
}

#[cfg(test)]
mod tests;
