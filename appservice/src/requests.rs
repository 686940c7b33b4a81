//! Understanding what people write in their rooms: is it a request to the city, and for what? Pure: text
//! in, meaning out.
//!
//! The rule is that nothing is filed on a guess. A sentence is a request only when three things are there:
//! a word of action (追加, 外す, 終了 …), an object that fits it (a person with an honorific, the room itself)
//! and an ending that asks (`tails`). Where the ending or the object leaves a doubt, the person is asked;
//! everything else is silence, because nurses add medicines, remove drips and end visits all day.
//! `tests/requests.tsv` has the sentences this was made for.

use time::Date;

use crate::cases::{Action, Person, Place};
use crate::commands::Name;
use crate::forms::{Consent, Field, Form, Gap};
use crate::japanese::{normalise, resolve_mentions};
use crate::people;
use crate::tails::{self, Tail};

/// What was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Nothing,
    Request(Vec<Action>),
    /// Perhaps a request: the person is asked.
    Unsure(Vec<Action>),
    /// A change of members that names nobody.
    WhoIsMeant {
        adding: bool,
    },
    Consent(Result<Consent, Vec<Gap>>),
    /// Name and birth date of whoever withdraws.
    Withdrawal(Result<(String, String), Vec<Gap>>),
    Opening(Result<Action, Vec<Gap>>),
    Help,
    Yes,
    No,
}

/// Longer texts are reports, not requests; forms are short too.
const LETTERS_MAX: usize = 3000;

/// Understands a message.
pub(crate) fn hear(text: &str, today: Date) -> Heard {
    let text = normalise(&resolve_mentions(text));
    if text.is_empty() || text.chars().count() > LETTERS_MAX {
        return Heard::Nothing;
    }
    if let Some(heard) = form(&text, today) {
        return heard;
    }
    let plain = without_quotations(&text);
    let sentences: Vec<&str> =
        plain.split_inclusive(['。', '!', '?', '\n']).map(str::trim).filter(|s| !s.is_empty()).collect();
    let mut found = Found::default();
    for (at, sentence) in sentences.iter().enumerate() {
        if ["例えば", "例:", "例)", "たとえば"].iter().any(|word| sentence.starts_with(word)) {
            continue;
        }
        let earlier = &sentences[..at];
        match unusual(sentence) {
            Some(Name::Open) => return Heard::Opening(Form::read(&text).opening(today)),
            Some(Name::Consent) => return Heard::Consent(Form::read(&text).consent(today)),
            Some(_) => return Heard::Withdrawal(Form::read(&text).withdrawal(today)),
            None => found.read(sentence, earlier, &sentences[at + 1..], &plain),
        }
    }
    // One doubt among several requests: all are asked about, so that none is lost.
    if !found.unsure.is_empty() {
        found.unsure.splice(0..0, found.sure.drain(..));
    }
    // 「やっぱり結構です」 after a request takes it back; better ask.
    if ["やっぱり", "やはり", "取り消", "取消", "キャンセル", "撤回"].iter().any(|word| plain.contains(word))
    {
        found.unsure.append(&mut found.sure);
    }
    if !found.sure.is_empty() {
        Heard::Request(found.sure)
    } else if !found.unsure.is_empty() {
        Heard::Unsure(found.unsure)
    } else if let Some(adding) = found.nobody_named {
        Heard::WhoIsMeant { adding }
    } else {
        short_answer(&plain)
    }
}

/// A filled (or empty) form: recognised by its title or by its fields.
fn form(text: &str, today: Date) -> Option<Heard> {
    let title = text.lines().next().unwrap_or("").trim_matches(['【', '】', ' ', '■', '●', '「', '」', ':']);
    let form = Form::read(text);
    let short = title.chars().count() <= 16;
    if short
        && (title.starts_with("同意の撤回") || title.starts_with("同意撤回"))
        && (form.len() > 0 || !title.contains('し'))
    {
        return Some(Heard::Withdrawal(form.withdrawal(today)));
    }
    let consent_fields =
        [Field::ExplainedBy, Field::ExplainedOn, Field::Items, Field::SharesInformation, Field::CityObtains];
    if form.len() >= 2
        && (short && title.contains("同意の報告")
            || consent_fields.iter().filter(|f| form.has(**f)).count() >= 2)
        || title == "同意の報告"
    {
        return Some(Heard::Consent(form.consent(today)));
    }
    let subject = form.has(Field::Name) && form.has(Field::Eligibility);
    let titled = text.lines().take(3).any(|line| line.contains("開設") && line.chars().count() <= 40);
    if form.len() >= 2 && titled || form.len() >= 4 && subject || form.has(Field::RoomName) && titled {
        return Some(Heard::Opening(form.opening(today)));
    }
    (["開設依頼", "部屋の開設", "部屋の開設依頼"].contains(&title) && text == title)
        .then(|| Heard::Opening(form.opening(today)))
}

/// Sentences that are answered with a form.
fn unusual(sentence: &str) -> Option<Name> {
    if let Some((_, rest)) = sentence.split_once("同意の報告") {
        let asks = matches!(tails::after_noun(rest), Tail::Request | Tail::Wish | Tail::Statement);
        return asks.then_some(Name::Consent);
    }
    if let Some((_, rest)) = sentence.split_once("撤回")
        && sentence.contains("同意")
    {
        let told = ["され", "がありました", "の申し出", "の意思", "したいと"]
            .iter()
            .any(|word| rest.starts_with(word));
        let asks = matches!(tails::after_noun(rest), Tail::Request | Tail::Wish | Tail::Statement);
        return (told || asks).then_some(Name::Refuse);
    }
    for (word, noun) in [("開設", true), ("作って", false), ("作成", true), ("立ち上げて", false)]
    {
        let Some((before, rest)) = sentence.split_once(word) else { continue };
        let before = before.trim_end_matches(['を', 'の', ' ', 'も', 'ご']);
        if !["部屋", "ルーム"].iter().any(|room| before.ends_with(room)) {
            continue;
        }
        let tail = if noun { tails::after_noun(rest) } else { tails::after_te(rest) };
        if matches!(tail, Tail::Request | Tail::Wish) {
            return Some(Name::Open);
        }
    }
    None
}

fn short_answer(text: &str) -> Heard {
    let text =
        text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '。' | '!' | '.' | '、' | '「' | '」'));
    let lower = text.to_lowercase();
    if lower.chars().count() > 20 {
        return Heard::Nothing;
    }
    let is = |words: &[&str]| words.contains(&lower.as_str());
    if is(&["ヘルプ", "使い方", "help"]) {
        Heard::Help
    } else if is(&[
        "いいえ",
        "いえ",
        "違います",
        "ちがいます",
        "no",
        "依頼ではありません",
        "依頼ではないです",
        "不要です",
        "結構です",
    ]) || lower.starts_with("いいえ")
    {
        Heard::No
    } else if is(&[
        "はい",
        "ええ",
        "そうです",
        "yes",
        "お願いします",
        "お願いいたします",
        "依頼です",
        "依頼します",
        "市への依頼です",
    ]) || lower.starts_with("はい")
        && ["はい、", "はい。", "はい "].iter().any(|w| lower.starts_with(w))
        && !["ない", "違", "ません", "?", "か。"].iter().any(|no| lower.contains(no))
    {
        Heard::Yes
    } else {
        Heard::Nothing
    }
}

/// What somebody quotes is not what they ask for; but quotes around a name stay.
fn without_quotations(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find(['「', '『']) {
        out.push_str(&rest[..open]);
        let inner = &rest[open + '「'.len_utf8()..];
        let Some(close) = inner.find(['」', '』']) else {
            rest = inner;
            continue;
        };
        let quoted = &inner[..close];
        if ACTIONS.iter().any(|action| quoted.contains(action.word)) {
            out.push('…');
        } else {
            out.push_str(quoted);
        }
        rest = &inner[close + '」'.len_utf8()..];
    }
    out.push_str(rest);
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Add,
    Remove,
    Close,
}

/// How plain a word is without the room being named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// 追加, 招待, 削除: of a person, that is done in the system.
    Nothing,
    /// 外す, 除外: may be said of other things; without the room it is asked.
    RoomOrAsk,
    /// 入れる, 加える: said of everything; without the room it is none of ours.
    Room,
}

struct Word {
    word: &'static str,
    verb: Verb,
    needs: Needs,
    /// A noun (追加 を/して) or a verb's stem (外し て).
    noun: bool,
}

const fn noun(word: &'static str, verb: Verb, needs: Needs) -> Word {
    Word { word, verb, needs, noun: true }
}

const fn stem(word: &'static str, verb: Verb, needs: Needs) -> Word {
    Word { word, verb, needs, noun: false }
}

const ACTIONS: [Word; 23] = [
    noun("追加", Verb::Add, Needs::Nothing),
    noun("招待", Verb::Add, Needs::Nothing),
    noun("参加", Verb::Add, Needs::Room),
    noun("登録", Verb::Add, Needs::Room),
    stem("入れ", Verb::Add, Needs::Room),
    stem("加え", Verb::Add, Needs::Room),
    noun("削除", Verb::Remove, Needs::Nothing),
    noun("除外", Verb::Remove, Needs::RoomOrAsk),
    noun("退室", Verb::Remove, Needs::RoomOrAsk),
    noun("退出", Verb::Remove, Needs::RoomOrAsk),
    stem("外し", Verb::Remove, Needs::RoomOrAsk),
    stem("外す", Verb::Remove, Needs::RoomOrAsk),
    stem("はずし", Verb::Remove, Needs::RoomOrAsk),
    stem("抜い", Verb::Remove, Needs::Room),
    noun("終了", Verb::Close, Needs::Nothing),
    noun("閉鎖", Verb::Close, Needs::Nothing),
    noun("クローズ", Verb::Close, Needs::Nothing),
    noun("解散", Verb::Close, Needs::RoomOrAsk),
    stem("閉じ", Verb::Close, Needs::Nothing),
    stem("終え", Verb::Close, Needs::Nothing),
    stem("終わりにし", Verb::Close, Needs::Nothing),
    // 部屋を閉めて may be a door, 部屋を消して a light.
    stem("閉め", Verb::Close, Needs::RoomOrAsk),
    stem("消し", Verb::Close, Needs::RoomOrAsk),
];

#[derive(Default)]
struct Found {
    sure: Vec<Action>,
    unsure: Vec<Action>,
    nobody_named: Option<bool>,
}

impl Found {
    /// Reads one sentence. `earlier` may say who is meant, `later` may list the people.
    fn read(&mut self, sentence: &str, earlier: &[&str], later: &[&str], whole: &str) {
        let (sentence, number) = take_room_number(sentence);
        let mut hits: Vec<(usize, &Word)> = ACTIONS
            .iter()
            .flat_map(|action| sentence.match_indices(action.word).map(move |(at, _)| (at, action)))
            .collect();
        hits.sort_by_key(|(at, _)| *at);
        let mut from = 0;
        let tails: Vec<Tail> =
            hits.iter().map(|(at, action)| tail(&sentence[at + action.word.len()..], action)).collect();
        for (i, (at, action)) in hits.iter().enumerate() {
            if *at < from {
                continue;
            }
            let before = sentence[from..*at].trim_start_matches(['て', '、', ' ']);
            let tail = match tails[i] {
                // 外して、…追加してください: the sentence's last word of action decides.
                Tail::Chain => tails[i + 1..]
                    .iter()
                    .rev()
                    .find(|tail| **tail != Tail::Other)
                    .copied()
                    .unwrap_or(Tail::Other),
                // 外して後任の加藤さんを追加してください: without a comma, where another person follows.
                Tail::Other
                    if hits
                        .get(i + 1)
                        .is_some_and(|next| goes_on(&sentence[at + action.word.len()..next.0])) =>
                {
                    tails[i + 1]
                }
                tail => tail,
            };
            if tail == Tail::Other || tail == Tail::Chain {
                continue;
            }
            from = at + action.word.len();
            let place = Place { number, ..Place::default() };
            match action.verb {
                Verb::Close => self.close(before, action, tail, place),
                verb => self.members(verb, before, action, tail, place, earlier, later, whole),
            }
        }
    }

    fn close(&mut self, before: &str, action: &Word, tail: Tail, place: Place) {
        if !is_the_room(before) {
            return;
        }
        let sure = tail == Tail::Request && action.needs == Needs::Nothing;
        self.keep(sure, Action::Close { place });
    }

    fn keep(&mut self, sure: bool, action: Action) {
        let list = if sure { &mut self.sure } else { &mut self.unsure };
        if !list.contains(&action) {
            list.push(action);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one sentence's facts, used once")]
    fn members(
        &mut self,
        verb: Verb,
        before: &str,
        action: &Word,
        tail: Tail,
        place: Place,
        earlier: &[&str],
        later: &[&str],
        whole: &str,
    ) {
        let object = object::Object::read(before);
        if object.elsewhere && !object.in_room {
            return;
        }
        let in_room = object.in_room || place.number.is_some();
        let adding = verb == Verb::Add;
        let build = |people: Vec<Person>| match verb {
            Verb::Add => Action::Add { place: place.clone(), people },
            _ => Action::Remove { place: place.clone(), people },
        };
        let asked = tail == Tail::Request;
        // 部屋の削除をお願いします
        if !adding && object.names_room {
            if asked && action.word == "削除" {
                self.keep(false, Action::Close { place });
            }
            return;
        }
        if object.lists_below {
            let people = people::list(
                &later
                    .iter()
                    .take_while(|line| !line.ends_with('。'))
                    .copied()
                    .collect::<Vec<_>>()
                    .join("\n"),
            );
            if asked && !people.is_empty() {
                self.keep(action.needs == Needs::Nothing || in_room, build(people));
            } else if asked {
                self.nobody_named = Some(adding);
            }
            return;
        }
        if object.people.is_empty() {
            let vague = object.somebody && action.noun || object.names_members;
            if object.is_empty && asked && action.needs == Needs::Nothing {
                // 「佐藤さんが担当になりました。追加をお願いします。」
                let mut mentioned = object.mentioned;
                if let (true, Some(sentence)) = (mentioned.is_empty(), earlier.last()) {
                    mentioned = object::mentioned(sentence);
                }
                if !mentioned.is_empty() {
                    self.keep(false, build(mentioned));
                } else if in_room {
                    self.nobody_named = Some(adding);
                }
            } else if vague && (asked || tail == Tail::Wish) && (action.needs == Needs::Nothing || in_room) {
                self.nobody_named = Some(adding);
            }
            return;
        }
        let leaves = [
            "退職",
            "異動",
            "退社",
            "転勤",
            "担当を外れ",
            "担当が変わ",
            "担当変更",
            "交代",
            "後任",
            "引き継",
        ]
        .iter()
        .any(|word| whole.contains(word));
        let sure = asked
            && match action.needs {
                Needs::Nothing => in_room || !object.only_facilities && !object.beside_service,
                Needs::RoomOrAsk => {
                    in_room || leaves || object.people.iter().any(|person| person.facility.is_some())
                }
                // 部屋に入れてください may be said of a real room.
                Needs::Room => in_room && (object.plainly_this_room || place.number.is_some()),
            };
        let worth_asking = match action.needs {
            Needs::Room => in_room,
            Needs::RoomOrAsk => in_room || matches!(tail, Tail::Request | Tail::Wish),
            Needs::Nothing => in_room || matches!(tail, Tail::Request | Tail::Wish | Tail::Reported),
        };
        if sure || worth_asking {
            self.keep(sure, build(object.people));
        }
    }
}

/// Whether a te-form is followed by another person before the next word of action.
fn goes_on(between: &str) -> bool {
    let after = between
        .strip_prefix("して")
        .or_else(|| between.strip_prefix('て'))
        .or_else(|| between.strip_prefix('で'));
    after.is_some_and(|next| ["さん", "先生", "様", "氏"].iter().any(|honorific| next.contains(honorific)))
}

fn tail(rest: &str, action: &Word) -> Tail {
    if action.noun {
        // 追加するようお願いします, 追加することは可能ですか
        if let Some(next) = rest.strip_prefix("するよう").or_else(|| rest.strip_prefix("させるよう"))
        {
            return tails::after_noun(next.trim_start_matches('に'));
        }
        if let Some(next) = rest.strip_prefix("することは").or_else(|| rest.strip_prefix("することって"))
        {
            return if next.starts_with("可能") || next.starts_with("でき") {
                Tail::Wish
            } else {
                Tail::Other
            };
        }
        return tails::after_noun(rest);
    }
    // 外すようお願いします, 入れることは可能ですか
    let dictionary = rest.strip_prefix('る').unwrap_or(rest);
    if let Some(next) = dictionary.strip_prefix("よう") {
        return tails::after_noun(next.trim_start_matches('に'));
    }
    if let Some(next) = dictionary.strip_prefix("ことは") {
        return if next.starts_with("可能") || next.starts_with("でき") {
            Tail::Wish
        } else {
            Tail::Other
        };
    }
    if let Some(next) = rest.strip_prefix('て').or_else(|| rest.strip_prefix('で')) {
        return tails::after_te(next);
    }
    for wish in ["たい", "たく"] {
        if let Some(next) = rest.strip_prefix(wish) {
            let denied = ["な", "あり", "かった"].iter().any(|word| next.starts_with(word));
            return if denied { Tail::Other } else { Tail::Wish };
        }
    }
    if rest.starts_with("ます") && !rest.starts_with("ますか") && !rest.starts_with("ますが") {
        Tail::Statement
    } else {
        Tail::Other
    }
}

/// Whether what stands before 終了 is the room itself: 「この部屋を」, 「部屋の利用を」, 「この部屋を本日で」.
fn is_the_room(before: &str) -> bool {
    let rooms = ["部屋", "ルーム", "グループ", "チャット"];
    let uses = ["", "の利用", "の使用", "の運用", "の共有", "での情報共有", "の情報共有", "での共有"];
    let stripped = before.trim_end_matches([' ', '、', 'を', 'の', 'は', 'も', 'ご']);
    if rooms.iter().any(|room| uses.iter().any(|of| stripped.ends_with(&format!("{room}{of}")))) {
        return true;
    }
    // この部屋を[本日で]終了: something short about time between, no other object.
    rooms.iter().any(|room| {
        uses.iter().any(|of| {
            ["を", "は", "も"].iter().any(|particle| {
                before.rsplit_once(&format!("{room}{of}{particle}")).is_some_and(|(_, between)| {
                    let between = between.replace("をもって", "").replace("をもちまして", "");
                    between.chars().count() <= 14 && !between.contains(['を', 'が', 'に', 'は', 'て'])
                })
            })
        })
    })
}

/// `部屋14に`, `部屋番号14の`, `14番の部屋`: the number, and the sentence without it.
fn take_room_number(sentence: &str) -> (String, Option<i64>) {
    for word in ["部屋番号", "部屋"] {
        for (at, _) in sentence.match_indices(word) {
            let rest = &sentence[at + word.len()..];
            let after = rest.trim_start_matches([':', ' ', 'が', 'の']);
            let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
            if (1..=6).contains(&digits.len()) {
                let end = after[digits.len()..].trim_start_matches('番').trim_start_matches("の部屋");
                return (format!("{}部屋{end}", &sentence[..at]), digits.parse().ok());
            }
        }
    }
    if let Some((before, after)) = sentence.split_once("番の部屋") {
        let stem = before.trim_end_matches(|c: char| c.is_ascii_digit());
        if stem.len() < before.len() && before.len() - stem.len() <= 6 {
            return (format!("{stem}部屋{after}"), before[stem.len()..].parse().ok());
        }
    }
    (sentence.to_owned(), None)
}

mod object;
#[cfg(test)]
mod tests;
