//! Time as a parameter, so that tests hold it still: digests, quiet hours and back-off never read the system clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// What time it is, and waiting for a later one. Milliseconds since 1970 (UTC) throughout.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Held(watch::Receiver<i64>),
}

/// Moves a [`Clock`] that a test holds.
#[derive(Debug)]
pub struct Hand(watch::Sender<i64>);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `now_ms` until its hand is moved.
    #[must_use]
    pub fn held(now_ms: i64) -> (Self, Hand) {
        let (sender, receiver) = watch::channel(now_ms);
        (Self(Source::Held(receiver)), Hand(sender))
    }

    /// Now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place of the bridge that reads the wall clock")]
    pub fn now_ms(&self) -> i64 {
        match &self.0 {
            Source::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
            Source::Held(now) => *now.borrow(),
        }
    }

    /// Waits until it is `at_ms` or later.
    pub(crate) async fn sleep_until(&self, at_ms: i64) {
        match &self.0 {
            Source::System => {
                // The wall clock may be set while we wait: look again at least once a minute.
                loop {
                    let left = at_ms.saturating_sub(self.now_ms());
                    let Ok(left @ 1..) = u64::try_from(left) else { return };
                    tokio::time::sleep(Duration::from_millis(left.min(60_000))).await;
                }
            }
            Source::Held(now) => {
                if now.clone().wait_for(|now| *now >= at_ms).await.is_err() {
                    // The hand is gone, so this time never comes.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

impl Hand {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now += i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 2));
    }
}
