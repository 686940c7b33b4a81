//! Dates in passwords. The register has no birth dates, so that none can be compared; instead whatever reads as a date that
//! somebody can be born on counts for nothing (C7).

use time::{Date, Month, OffsetDateTime, UtcOffset};

/// The oldest date of birth that is looked for.
const YEAR_MIN: i32 = 1900;
/// Eras, in lower case, and the year before their first.
const ERAS: [(&str, i32); 10] = [
    ("明治", 1867),
    ("大正", 1911),
    ("昭和", 1925),
    ("平成", 1988),
    ("令和", 2018),
    ("m", 1867),
    ("t", 1911),
    ("s", 1925),
    ("h", 1988),
    ("r", 2018),
];
/// What stands between year, month and day where something does.
const SEPARATORS: [char; 7] = ['-', '/', '.', '_', ' ', '年', '月'];

/// The text (after NFKC) without every date from 1900 to today: `19400501`, `1940-5-1`, `1940/05/01`, `1940年5月1日`,
/// `S150501`, `S15.5.1`, `昭和15年5月1日`.
pub fn without(text: &str, now_ms: i64) -> String {
    let japan = UtcOffset::from_hms(9, 0, 0).unwrap_or(UtcOffset::UTC);
    let today = OffsetDateTime::from_unix_timestamp(now_ms / 1000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .to_offset(japan)
        .date();
    let mut left = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match after_date(rest, today) {
            Some(after) => rest = after,
            None => {
                left.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    left
}

/// What follows the date that the text begins with.
fn after_date(text: &str, today: Date) -> Option<&str> {
    let of_era = ERAS.iter().filter_map(|(era, before)| {
        let after =
            text.get(..era.len()).filter(|begin| begin.to_lowercase() == *era).map(|_| &text[era.len()..])?;
        Some((after, *before))
    });
    for (after, before) in of_era {
        if let Some(rest) = after.strip_prefix('元')
            && let Some(rest) = after_day(before + 1, rest, today)
        {
            return Some(rest);
        }
        for digits in [2, 1] {
            if let Some((year, rest)) = number(after, digits)
                && let Some(rest) = after_day(before + year, rest, today)
            {
                return Some(rest);
            }
        }
    }
    let (year, rest) = number(text, 4)?;
    after_day(year, rest, today)
}

/// What follows month and day, where they make a date of that year that is not over the bounds.
fn after_day(year: i32, text: &str, today: Date) -> Option<&str> {
    // Without separators both have two digits: 111 would be either.
    let lengths: &[usize] = if separated(text).is_some() { &[2, 1] } else { &[2] };
    for month_digits in lengths {
        let Some((month, rest)) = number(separated(text).unwrap_or(text), *month_digits) else { continue };
        if separated(text).is_some() != separated(rest).is_some() {
            continue;
        }
        for day_digits in lengths {
            let Some((day, rest)) = number(separated(rest).unwrap_or(rest), *day_digits) else { continue };
            let date = u8::try_from(month)
                .ok()
                .and_then(|month| Month::try_from(month).ok())
                .and_then(|month| Date::from_calendar_date(year, month, u8::try_from(day).ok()?).ok());
            if date.is_some_and(|date| date.year() >= YEAR_MIN && date <= today) {
                return Some(rest.strip_prefix('日').unwrap_or(rest));
            }
        }
    }
    None
}

/// What follows a separator.
fn separated(text: &str) -> Option<&str> {
    text.strip_prefix(SEPARATORS)
}

/// The number of exactly so many digits that the text begins with, and what follows.
fn number(text: &str, digits: usize) -> Option<(i32, &str)> {
    let begin = text.get(..digits).filter(|begin| begin.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some((begin.parse().ok()?, &text[digits..]))
}

#[cfg(test)]
mod tests {
    use super::without;

    /// 2026-11-26, noon in Japan.
    const NOW: i64 = 1_795_662_000_000;

    #[test]
    fn what_reads_as_a_date_of_birth_is_left_out() {
        for (text, left) in [
            ("19400501", ""),
            ("Hana19400501!", "Hana!"),
            ("1940-05-01x", "x"),
            ("1940/5/1x", "x"),
            ("1940.5.1x", "x"),
            ("昭和15年5月1日x", "x"),
            ("1940年5月1日x", "x"),
            ("S150501-abc", "-abc"),
            ("s15.5.1-abc", "-abc"),
            ("h010108x", "x"),
            ("令和元年5月1日x", "x"),
            ("R080101x", "x"),
            ("T150101T15-1-1M450730", ""),
            ("20261126x", "x"),
            ("1940050119410602", ""),
        ] {
            assert_eq!(without(text, NOW), left, "{text}");
        }
        for kept in [
            "20261127",
            "18991231",
            "19400231",
            "19401301",
            "194005",
            "S159901",
            "s1551",
            "M010101",
            "Ume-hana-37",
            "1940-0501",
            "2026",
            "桜もち2026年",
            "é１",
            "",
        ] {
            assert_eq!(without(kept, NOW), kept);
        }
    }
}
