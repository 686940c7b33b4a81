//! 重要度 (H17): a post whose text begins with 【重要】 or 【至急】 says so itself, since no client has a field for it. The bridge
//! is told the word, never the text.

use crate::rooms::pdu::Event;

/// What a post begins with, in the brackets that people type, and the bridge's word for it (docs/internal-api.md).
const MARKS: [(&str, &str); 2] = [("至急", "urgent"), ("重要", "important")];
const BRACKETS: [(char, char); 4] = [('【', '】'), ('[', ']'), ('［', '］'), ('〔', '〕')];

/// The importance of a post; none of what is no message, is encrypted, or corrects a post: a correction does not ring
/// again.
pub fn of(event: &Event) -> Option<&'static str> {
    let message = event.kind.to_string() == "m.room.message" && event.redacted_by.is_none();
    if !message || event.relation().is_some_and(|relation| relation.rel_type == "m.replace") {
        return None;
    }
    of_text(&event.content_str("body")?)
}

fn of_text(body: &str) -> Option<&'static str> {
    let mut text = body.trim_start();
    // Older clients put what is answered before the answer (client-server API, "Fallbacks for rich replies").
    if text.starts_with("> <") {
        while let Some(rest) = text.strip_prefix('>') {
            text = rest.split_once('\n').map_or("", |(_, after)| after);
        }
        text = text.trim_start();
    }
    BRACKETS.iter().find_map(|(open, close)| {
        let (inside, _) = text.strip_prefix(*open)?.split_once(*close)?;
        MARKS.iter().find(|(mark, _)| inside.trim() == *mark).map(|(_, word)| *word)
    })
}

#[cfg(test)]
mod tests {
    use super::of_text;

    #[test]
    fn what_a_post_begins_with() {
        for (text, word) in [
            ("【至急】点滴が足りません", Some("urgent")),
            ("【重要】来週の予定", Some("important")),
            ("[重要] 来週の予定", Some("important")),
            ("［至急］\n来週の予定", Some("urgent")),
            ("　【 至急 】", Some("urgent")),
            ("> <@p1:example.jp> 前の投稿\n> 二行目\n\n【重要】承知しました", Some("important")),
            ("> <@p1:example.jp> 【至急】前の投稿\n\n承知しました", None),
            ("> <@p1:example.jp> 【至急】前の投稿", None),
            ("本日は【至急】ではありません", None),
            ("【重要事項】", None),
            ("重要", None),
            ("【重要", None),
            ("【】", None),
            ("", None),
        ] {
            assert_eq!(of_text(text), word, "{text}");
        }
    }
}
