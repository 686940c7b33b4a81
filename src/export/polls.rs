//! Polls in words, as the page of a room that is written out has them.

use serde_json::Value;

use crate::rooms::pdu::Event;

/// Answers of a poll that are shown; MSC3381 allows 20.
const ANSWERS_MAX: usize = 100;

/// The text of a part of an event.
pub(crate) fn words(part: &Value) -> String {
    ["/body", "/m.text/0/body", "/m.text", "/org.matrix.msc1767.text"]
        .iter()
        .find_map(|path| part.pointer(path)?.as_str())
        .unwrap_or_default()
        .to_owned()
}

/// A poll (MSC3381, by its accepted and its earlier names).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Poll {
    /// Who asks.
    pub(super) by: String,
    question: String,
    /// Id and words of each answer, as they were offered.
    answers: Vec<(String, String)>,
    /// How many of them somebody may choose.
    most: usize,
}

impl Poll {
    /// The poll of an event, and the event that asks it: an edit puts its questions in the place of another's.
    pub(super) fn of(event: &Event, content: &Value) -> (String, Self) {
        let relation = &content["m.relates_to"];
        let (asks, content) = match relation["event_id"].as_str() {
            Some(first) if relation["rel_type"] == "m.replace" => (first, &content["m.new_content"]),
            _ => (event.event_id.as_str(), content),
        };
        let Some(poll) = content.get("m.poll").or_else(|| content.get("org.matrix.msc3381.poll.start"))
        else {
            return (
                asks.to_owned(),
                Self { by: event.sender.to_string(), question: words(content), ..Self::default() },
            );
        };
        let answers = poll["answers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let answers = answers.iter().take(ANSWERS_MAX).filter_map(|answer| {
            let id = answer.get("m.id").or_else(|| answer.get("id"))?.as_str()?;
            Some((id.to_owned(), words(answer)))
        });
        let most = poll["max_selections"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
        let (by, question) = (event.sender.to_string(), words(&poll["question"]));
        (asks.to_owned(), Self { by, question, answers: answers.collect(), most })
    }

    /// Question and answers, one under the other.
    pub(super) fn asked(&self) -> String {
        let answers = self.answers.iter().map(|(_, words)| format!("\n・{words}"));
        self.question.clone() + &answers.collect::<String>()
    }

    /// The words of what a response chooses; those beyond the allowed number are not counted (MSC3381).
    pub(super) fn chosen(&self, response: &Value) -> String {
        let chosen = response
            .get("m.selections")
            .or_else(|| response.pointer("/org.matrix.msc3381.poll.response/answers"))
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let chosen = chosen.iter().take(self.most).filter_map(|id| {
            let id = id.as_str()?;
            self.answers.iter().find(|(known, _)| known == id).map(|(_, words)| words.as_str())
        });
        chosen.collect::<Vec<_>>().join("、")
    }
}
