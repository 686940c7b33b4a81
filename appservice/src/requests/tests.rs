//! Runs every sentence of `tests/requests.tsv`.

use time::macros::date;

use super::{Heard, hear};
use crate::cases::{Action, Person, Place};

/// The sentences: text (`\n` for a new line), outcome, action, who (`facility/name`, several with `;`).
const SENTENCES: &str = include_str!("../../tests/requests.tsv");

fn people(people: &[Person]) -> String {
    let all: Vec<String> = people
        .iter()
        .map(|person| match &person.facility {
            Some(facility) => format!("{facility}/{}", person.said),
            None => person.said.clone(),
        })
        .collect();
    all.join(";")
}

fn at(place: &Place) -> String {
    place.number.map(|number| format!("#{number} ")).unwrap_or_default()
}

fn described(actions: &[Action]) -> (String, String) {
    let words: Vec<&str> = actions.iter().map(Action::word).collect();
    let who: Vec<String> = actions
        .iter()
        .map(|action| match action {
            Action::Add { place, people: who } | Action::Remove { place, people: who } => {
                at(place) + &people(who)
            }
            Action::Close { place } => at(place).trim().to_owned(),
            other => panic!("no request in a room: {other:?}"),
        })
        .collect();
    (words.join("+"), who.join("|"))
}

#[test]
fn every_sentence_is_understood() {
    let mut wrong = Vec::new();
    let (mut total, mut silent) = (0, 0);
    for line in SENTENCES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or("");
        let (text, outcome, action, who) = (next().replace("\\n", "\n"), next(), next(), next());
        total += 1;
        silent += usize::from(outcome == "silence");
        let heard = hear(&text, date!(2026 - 11 - 23));
        let (found, (word, found_who)) = match &heard {
            Heard::Nothing => ("silence", (String::from("-"), String::new())),
            Heard::Request(actions) => ("request", described(actions)),
            Heard::Unsure(actions) => ("unsure", described(actions)),
            Heard::WhoIsMeant { adding } => {
                ("who", (if *adding { "add" } else { "remove" }.into(), String::new()))
            }
            Heard::Consent(result) => {
                (if result.is_ok() { "request" } else { "form" }, ("consent".into(), String::new()))
            }
            Heard::Withdrawal(result) => {
                (if result.is_ok() { "request" } else { "form" }, ("withdrawal".into(), String::new()))
            }
            Heard::Opening(result) => {
                (if result.is_ok() { "request" } else { "form" }, ("open".into(), String::new()))
            }
            Heard::Help => ("help", (String::from("-"), String::new())),
            Heard::Yes => ("yes", (String::from("-"), String::new())),
            Heard::No => ("no", (String::from("-"), String::new())),
        };
        if (found, word.as_str(), found_who.as_str()) != (outcome, action, who) {
            wrong.push(format!(
                "{text}\n  wanted {outcome} {action} {who}\n  found  {found} {word} {found_who}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {total}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(total >= 80 && silent * 2 >= total - 20, "{total} sentences, {silent} of them no requests");
}

/// Whatever people type, reading it ends and does not panic: pieces of the sentences, cut anywhere and
/// glued together.
#[test]
fn any_text_can_be_read() {
    let letters: Vec<char> = SENTENCES.chars().collect();
    let mut state: usize = 1;
    let mut next = |below: usize| {
        // A plain linear congruence: the same texts in every run.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..1500 {
        let mut text = String::new();
        for _ in 0..=next(6) {
            let start = next(letters.len());
            let end = (start + next(40)).min(letters.len());
            text.extend(&letters[start..end]);
        }
        hear(&text, date!(2026 - 11 - 23));
        let _ = crate::commands::parse(&text, date!(2026 - 11 - 23));
    }
    let long = "この部屋に佐藤さんと鈴木さんを追加して、".repeat(150);
    hear(&long, date!(2026 - 11 - 23));
}
