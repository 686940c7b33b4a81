//! Who or what stands before a word of action, and where to or from.

use crate::cases::Person;
use crate::people::{self, Named};

/// Words for the room as a place in this system.
const ROOM_WORDS: [&str; 6] = ["部屋", "ルーム", "グループ", "チャット", "トーク", "メンバー"];

/// What people are added to all day that is no room.
const SERVICES: [&str; 14] = [
    "訪問",
    "デイ",
    "往診",
    "リハ",
    "入浴",
    "送迎",
    "食事",
    "予定",
    "枠",
    "スケジュール",
    "会議",
    "カンファ",
    "受診",
    "予約",
];

/// What an action on members is about.
#[derive(Debug, Default)]
pub(super) struct Object {
    pub(super) people: Vec<Person>,
    pub(super) only_facilities: bool,
    /// `看護師さん`
    pub(super) somebody: bool,
    /// `メンバーの追加`
    pub(super) names_members: bool,
    /// `部屋の削除`
    pub(super) names_room: bool,
    /// `下記の方`
    pub(super) lists_below: bool,
    pub(super) is_empty: bool,
    /// Whoever a clause before it speaks of: 「渡辺さんが入りますので、追加を」.
    pub(super) mentioned: Vec<Person>,
    /// The room is named as where to or where from.
    pub(super) in_room: bool,
    pub(super) plainly_this_room: bool,
    /// A visit or an appointment is spoken of beside the person: 「明日のデイ、山田さんを追加」.
    pub(super) beside_service: bool,
    /// Another place is: 車いすに, 予定から.
    pub(super) elsewhere: bool,
}

impl Object {
    pub(super) fn read(before: &str) -> Self {
        let mut object = Self::default();
        let rest = object.take_room(before);
        object.elsewhere = goes_elsewhere(last_clause(&rest));
        let phrase = rest.trim_end_matches([' ', '、']);
        let phrase = phrase.trim_end_matches("として");
        let phrase = ["のご", "をご", "を", "も", "の", "は", "が"]
            .iter()
            .find_map(|particle| phrase.strip_suffix(particle))
            .unwrap_or(phrase);
        let phrase = phrase.trim_end_matches(['、', ' ']);
        let phrase =
            ["をメンバー", "をこの部屋"].iter().find_map(|end| phrase.strip_suffix(end)).unwrap_or(phrase);
        let clause = last_clause(phrase).trim();
        object.beside_service = clause.rsplit('、').skip(1).any(|item| {
            SERVICES.iter().any(|service| item.contains(service))
                && people::in_sentence(item.trim().trim_end_matches('と')) == Named::Nothing
        });
        object.is_empty = clause.is_empty();
        if object.is_empty && !phrase.is_empty() {
            object.mentioned = mentioned(phrase);
        }
        object.names_members = phrase.ends_with("メンバー");
        object.names_room = phrase.ends_with("部屋") || phrase.ends_with("ルーム");
        object.lists_below = ["下記", "以下", "次の", "左記"].iter().any(|word| {
            phrase.rsplit('、').next().is_some_and(|last| {
                last.starts_with(word) || last.trim_start_matches("この部屋に").starts_with(word)
            })
        });
        let (people, facilities, somebody) = named(phrase);
        object.only_facilities = people.is_empty() && !facilities.is_empty();
        object.people = people;
        object.people.extend(facilities);
        object.somebody = somebody;
        object
    }

    /// Takes 「この部屋に」, 「部屋から」, 「メンバーとして」 out.
    fn take_room(&mut self, before: &str) -> String {
        let mut text = before.to_owned();
        let particles =
            ["にも", "に", "への", "へ", "からも", "からの", "から", "として", "の方に", "内に", "より"];
        while let Some((start, end)) = ROOM_WORDS.iter().find_map(|room| {
            particles.iter().find_map(|particle| {
                let found = format!("{room}{particle}");
                text.find(&found).map(|at| (at, at + found.len()))
            })
        }) {
            // The phrase begins after the particle or comma before it.
            let begin = text[..start]
                .rfind(['を', 'も', '、', ' ', 'が', 'は'])
                .map_or(0, |at| at + text[at..].chars().next().map_or(0, char::len_utf8));
            let phrase = &text[begin..end];
            self.in_room = true;
            self.plainly_this_room |=
                ["この", "こちら", "当", "本", "メンバー", "グループ", "チャット", "トーク"]
                    .iter()
                    .any(|word| phrase.contains(word));
            text.replace_range(begin..end, "");
        }
        for here in ["こちらに", "ここに", "ここから", "こちらから", "こちらへ"] {
            if text.contains(here) {
                self.in_room = true;
                self.plainly_this_room = true;
                text = text.replace(here, "");
            }
        }
        text
    }
}

/// Whether a place other than the room is named: 車いすに, 明日の訪問に, 予定から.
fn goes_elsewhere(text: &str) -> bool {
    const NOT_PLACES: [&str; 33] = [
        "日",
        "月",
        "週",
        "時",
        "今",
        "末",
        "まで",
        "ため",
        "よう",
        "急",
        "一緒",
        "新た",
        "早急",
        "至急",
        "とも",
        "共",
        "先",
        "うち",
        "前",
        "後",
        "市",
        "途中",
        "際",
        "既",
        "すで",
        "さら",
        "更",
        "正式",
        "追加",
        "方",
        "様",
        "役所",
        "担当者",
    ];
    let follows = [
        "な", "伴", "つ", "よ", "関", "入", "就", "着", "代", "と", "は、", "お世", "配属", "異動", "変",
        "替",
    ];
    for (at, particle) in text.match_indices(['に', 'へ']) {
        let word = &text[..at];
        let after = &text[at + particle.len()..];
        let name_goes_on =
            after.starts_with(|c: char| ('ぁ'..='ん').contains(&c)) && !after.starts_with(['お', 'ご']);
        let place = word.ends_with(|c: char| !c.is_whitespace())
            && !NOT_PLACES.iter().any(|word_end| word.ends_with(word_end))
            && !follows.iter().any(|next| after.starts_with(next))
            && !name_goes_on;
        if place {
            return true;
        }
    }
    for (at, particle) in text.match_indices("から") {
        let word = &text[..at];
        let after = &text[at + particle.len()..];
        let time = ["日", "月", "週", "時", "今", "明", "後", "市", "年", "度", "回"]
            .iter()
            .any(|end| word.ends_with(end));
        // 〜ですから、 gives a reason; あおば病院から佐藤さんを names an origin of a person.
        let reason =
            after.starts_with(['、', ' ']) || ["す", "た", "る", "だ"].iter().any(|end| word.ends_with(end));
        if !time && !reason && !people::is_facility(word) {
            return true;
        }
    }
    false
}

/// What follows the last reason or condition: 「退職したので、」 says nothing about whom to add.
fn last_clause(phrase: &str) -> &str {
    [
        "であれば",
        "でしたら",
        "ましたら",
        "ので",
        "ため",
        "けど",
        "けれど",
        "ですが",
        "ますが",
        "から、",
        "につき",
    ]
    .iter()
    .filter_map(|word| phrase.rfind(word).map(|at| at + word.len()))
    .max()
    .map_or(phrase, |at| &phrase[at..])
}

/// The people and facilities at the end of a phrase, and whether somebody unnamed is there.
pub(super) fn named(phrase: &str) -> (Vec<Person>, Vec<Person>, bool) {
    let clause = last_clause(phrase);
    let mut people = Vec::new();
    let mut facilities = Vec::new();
    let mut somebody = false;
    // From the end: the last item must be a person; those before it belong to the list only as long as they
    // are too.
    for item in clause.rsplit(['、', ',']) {
        let mut any = false;
        for part in people::split_and(without_greeting(item)).into_iter().rev() {
            match people::in_sentence(part) {
                Named::Person(person) => people.insert(0, person),
                Named::Facility(facility) => facilities.insert(0, facility),
                Named::Somebody => somebody = true,
                Named::Nothing => continue,
            }
            any = true;
        }
        // 市の担当者様、…: an address, not an item.
        if !any {
            break;
        }
    }
    // 「市の担当者様、佐藤さんを」
    people.retain(|person| {
        !["担当者", "担当", "市役所", "皆", "各位", "事務局", "市"].contains(&person.said.as_str())
    });
    (people, facilities, somebody)
}

/// 「すみません 佐藤さん」 → 「佐藤さん」; 「佐藤 花子さん」 stays.
fn without_greeting(item: &str) -> &str {
    let item = item.trim();
    match item.split_once(' ') {
        Some((before, after))
            if before.ends_with(|c: char| ('ぁ'..='ん').contains(&c))
                && !before.ends_with('の')
                && before.chars().count() > 3 =>
        {
            after.trim()
        }
        _ => item,
    }
}

/// People a clause or sentence speaks of: 「佐藤さんが担当になりました」.
pub(super) fn mentioned(sentence: &str) -> Vec<Person> {
    let Some((before, _)) = sentence.split_once(['が', 'は', 'も']) else { return Vec::new() };
    named(before).0
}
