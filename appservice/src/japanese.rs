//! Reading what people type: widths, spaces, quotes, dates.

use time::{Date, Month};
use unicode_normalization::UnicodeNormalization;

/// NFKC (full-width letters, digits, `：` and spaces become plain ones; `①` becomes `1`), every run of
/// blanks one space, lines trimmed, invisible characters gone.
pub(crate) fn normalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let mut blank = true;
        for c in line.nfkc() {
            if c.is_whitespace() {
                if !blank {
                    out.push(' ');
                }
                blank = true;
            } else if !is_invisible(c) {
                out.push(c);
                blank = false;
            }
        }
        while out.ends_with(' ') {
            out.pop();
        }
        out.push('\n');
    }
    out.trim().to_owned()
}

/// Mentions that clients write as links, `[name](https://matrix.to/#/@p104217:example.jp)`, become the
/// login id: the one spelling of a name that leaves no doubt.
pub(crate) fn resolve_mentions(text: &str) -> String {
    const LINK: &str = "](https://matrix.to/#/";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(LINK) {
        let (before, after) = (&rest[..at], &rest[at + LINK.len()..]);
        let Some(close) = after.find(')') else { break };
        let target = after[..close].strip_prefix('@').or_else(|| after[..close].strip_prefix("%40"));
        let localpart = target.and_then(|target| target.split([':', '%', '?']).next()).unwrap_or("");
        match before.rfind('[') {
            Some(open) if !localpart.is_empty() => {
                out.push_str(&before[..open]);
                out.push_str(localpart);
            }
            _ => out.push_str(&rest[..at + LINK.len() + close + 1]),
        }
        rest = &after[close + 1..];
    }
    out.push_str(rest);
    out
}

/// For comparing names: NFKC, no spaces, no case (internal-api: "after NFKC and removal of spaces").
pub(crate) fn fold(text: &str) -> String {
    text.nfkc().filter(|c| !c.is_whitespace() && !is_invisible(*c)).flat_map(char::to_lowercase).collect()
}

fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{fe0e}' | '\u{fe0f}' | '\u{feff}')
}

/// Takes surrounding quotes and blanks off.
pub(crate) fn unquote(text: &str) -> &str {
    text.trim()
        .trim_matches(|c| matches!(c, '「' | '」' | '『' | '』' | '"' | '\'' | '“' | '”' | '【' | '】'))
        .trim()
}

/// A date as people write it: `1940-05-01`, `1940/5/1`, `1940年5月1日`, `昭和15年5月1日`, `S15.5.1`, `令和元年…`. The
/// text must be normalised.
pub(crate) fn parse_date(text: &str) -> Option<Date> {
    let text: String = text.replace('元', "1").chars().filter(|c| !c.is_whitespace()).collect();
    // The first year of an era counts as 1, so 0 stands one year before it.
    const ERAS: [(&[&str], i32); 5] = [
        (&["令和", "R", "r"], 2018),
        (&["平成", "H", "h"], 1988),
        (&["昭和", "S", "s"], 1925),
        (&["大正", "T", "t"], 1911),
        (&["明治", "M", "m"], 1867),
    ];
    let mut base = 0;
    let mut rest = text.as_str();
    for (names, before) in ERAS {
        if let Some(after) = names.iter().find_map(|name| text.strip_prefix(name)) {
            base = before;
            rest = after;
            break;
        }
    }
    let mut numbers: Vec<i32> = Vec::new();
    for part in rest.split(|c: char| !c.is_ascii_digit()) {
        if part.is_empty() {
            continue;
        }
        numbers.push(part.parse().ok()?);
    }
    if let ([packed], 0) = (numbers.as_slice(), base)
        && *packed >= 10_000_000
    {
        numbers = vec![packed / 10_000, packed / 100 % 100, packed % 100];
    }
    let [year, month, day, ..] = numbers.as_slice() else { return None };
    // A year of two digits without an era could mean two centuries and two eras.
    if base == 0 && *year < 1860 {
        return None;
    }
    let month = Month::try_from(u8::try_from(*month).ok()?).ok()?;
    Date::from_calendar_date(base + year, month, u8::try_from(*day).ok()?).ok()
}

/// `YYYY-MM-DD`, the form of the internal API.
pub(crate) fn iso(date: Date) -> String {
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_people_write_them() {
        for text in [
            "1940-05-01",
            "1940/5/1",
            "1940年5月1日",
            "昭和15年5月1日",
            "S15.5.1",
            "19400501",
            "昭和 15 年 5 月 1 日",
        ] {
            assert_eq!(parse_date(text).map(iso).as_deref(), Some("1940-05-01"), "{text}");
        }
        assert_eq!(parse_date("令和元年6月2日").map(iso).as_deref(), Some("2019-06-02"));
        assert_eq!(parse_date(&normalise("１９４０／５／１")).map(iso).as_deref(), Some("1940-05-01"));
        for text in ["", "40/5/1", "1940/13/1", "1940-02-30", "来週"] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }

    #[test]
    fn mentions_become_login_ids() {
        let text = "[あおば 佐藤](https://matrix.to/#/@p104217:example.jp)さんと[x](https://example.jp)を";
        assert_eq!(resolve_mentions(text), "p104217さんと[x](https://example.jp)を");
        assert_eq!(resolve_mentions("](https://matrix.to/#/@a"), "](https://matrix.to/#/@a");
        assert_eq!(resolve_mentions("](https://matrix.to/#/@a)[b"), "](https://matrix.to/#/@a)[b");
    }

    #[test]
    fn widths_and_spaces() {
        assert_eq!(normalise("　追加　　１４ \r\n 佐藤 "), "追加 14\n佐藤");
        assert_eq!(fold("佐藤　花子"), fold("佐藤花子"));
    }
}
