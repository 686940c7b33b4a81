//! The one place that reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, OffsetDateTime, UtcOffset};

/// Milliseconds since 1970, UTC.
pub(crate) fn now_ms() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the one place of the bot that reads the wall clock")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Today's date in Japan (UTC+9 all year): dates that people write in forms are Japanese dates.
pub(crate) fn today() -> Date {
    japanese_time(now_ms()).date()
}

/// A moment on the Japanese clock, for texts.
pub(crate) fn japanese_time(ms: i64) -> OffsetDateTime {
    let offset = UtcOffset::from_hms(9, 0, 0).unwrap_or(UtcOffset::UTC);
    OffsetDateTime::from_unix_timestamp(ms / 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH).to_offset(offset)
}
