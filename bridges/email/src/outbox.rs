//! The loop that sends what is due. A mail leaves the queue only by a committed row: whatever happens in between, the next
//! process finds it there.

use std::{sync::Arc, time::Duration};
use time::Time;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    Clock, Config,
    message::{Unsendable, Writer},
    sender::{Outcome, Sender},
    store::{Mail, Store},
};

/// What the loop needs.
pub(crate) struct Outbox {
    pub(crate) store: Arc<Store>,
    pub(crate) writer: Writer,
    pub(crate) sender: Sender,
    pub(crate) clock: Clock,
    pub(crate) schedule: Schedule,
    /// Rung when a mail may have become due.
    pub(crate) wake: Arc<Notify>,
    /// Rung when there is something to report to the server.
    pub(crate) reports: Arc<Notify>,
    pub(crate) give_up_after: Duration,
    pub(crate) concurrency: usize,
}

/// When mails go out.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    digest_ms: i64,
    quiet_hours: Option<(Time, Time)>,
    retry_ceiling_ms: i64,
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// Japan Standard Time is UTC+9 and has no summer time.
const JST_MS: i64 = 9 * 60 * 60 * 1000;
/// The pause after the first failure; it doubles with each further one.
const RETRY_FIRST_MS: i64 = 15_000;
/// After a failure of the database.
const STORE_PAUSE_MS: i64 = 5_000;

impl Outbox {
    /// Runs until told to stop, and then until the mails that are under way have their outcome.
    pub(crate) async fn run(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        let mut clean_up_ms = self.clock.now_ms();
        loop {
            while tasks.try_join_next().is_some() {}
            let now_ms = self.clock.now_ms();
            if now_ms >= clean_up_ms {
                clean_up_ms = now_ms + 60 * 60 * 1000;
                if let Err(error) = self.store.clean_up(now_ms).await {
                    tracing::error!(%error, "the outbox could not be cleaned up");
                }
            }
            let free = self.concurrency.saturating_sub(tasks.len());
            let next_ms = match self.start_due(&mut tasks, now_ms, free).await {
                Ok(next_ms) => next_ms,
                Err(error) => {
                    tracing::error!(%error, "the outbox could not be read");
                    Some(now_ms + STORE_PAUSE_MS)
                }
            };
            if tasks.is_empty() {
                self.sender.close_idle().await;
            }
            let is_full = tasks.len() >= self.concurrency;
            tokio::select! {
                _ = stopping.wait_for(|is_stopping| *is_stopping) => break,
                () = self.wake.notified() => {}
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                () = self.clock.sleep_until(next_ms.unwrap_or(i64::MAX).min(clean_up_ms)), if !is_full => {}
            }
        }
        while tasks.join_next().await.is_some() {}
        self.sender.close_idle().await;
    }

    async fn start_due(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        now_ms: i64,
        free: usize,
    ) -> Result<Option<i64>, sqlx::Error> {
        let next_ms = self.store.next_due_ms().await?;
        if free == 0 || next_ms.is_none_or(|due_ms| due_ms > now_ms) {
            return Ok(next_ms);
        }
        for mail in self.store.claim_due(now_ms, free).await? {
            let outbox = Arc::clone(self);
            tasks.spawn(async move { outbox.deliver(mail).await });
        }
        self.store.next_due_ms().await
    }

    async fn deliver(&self, mail: Mail) {
        let outcome = match self.writer.message(&self.store, &mail) {
            Ok((from, to, message)) => self.sender.send(&from, &to, &message).await,
            Err(Unsendable::Address) => Outcome::AddressRefused(553),
            Err(Unsendable::Message) => Outcome::MailRefused(554),
            // deferred() cancels a mail that has nothing left to say.
            Err(Unsendable::Empty) => Outcome::Deferred(None),
        };
        // The row says "sending" until the outcome is written: without it the mail would hang until the next start.
        while let Err(error) = self.settle(&mail, outcome).await {
            tracing::error!(mail.id, %error, "the outcome of a mail could not be stored");
            self.clock.sleep_until(self.clock.now_ms() + STORE_PAUSE_MS).await;
        }
        self.reports.notify_one();
    }

    async fn settle(&self, mail: &Mail, outcome: Outcome) -> Result<(), sqlx::Error> {
        let now_ms = self.clock.now_ms();
        let (code, ambiguous) = match outcome {
            Outcome::Accepted => {
                tracing::info!(mail.id, attempts = mail.attempts + 1, "mail sent");
                return self.store.sent(mail, now_ms).await;
            }
            Outcome::AddressRefused(code) => {
                tracing::warn!(mail.id, code, "the address is refused for good");
                return self.store.refused(mail, code, true, now_ms).await;
            }
            Outcome::MailRefused(code) => {
                tracing::error!(mail.id, code, "the SMTP server refuses the mail itself");
                return self.store.refused(mail, code, false, now_ms).await;
            }
            Outcome::Deferred(code) => (code, false),
            Outcome::AddressDeferred(code) => (Some(code), false),
            Outcome::Ambiguous => (None, true),
        };
        let give_up_ms =
            mail.created_ms + i64::try_from(self.give_up_after.as_millis()).unwrap_or(i64::MAX / 2);
        if now_ms >= give_up_ms {
            tracing::error!(mail.id, code, attempts = mail.attempts + 1, "the mail was tried for too long");
            if let Outcome::AddressDeferred(code) = outcome {
                return self.store.refused(mail, code, true, now_ms).await;
            }
            // Our own line was down: no reason to take anybody's notifications away.
            let detail = code.map_or_else(|| "unreachable".to_owned(), |code| code.to_string());
            return self.store.expired(mail, &detail, now_ms).await;
        }
        let pause_ms = self.schedule.retry_pause_ms(mail.attempts);
        let due_ms = self.schedule.after_quiet_hours(now_ms + pause_ms, mail.urgent);
        tracing::info!(mail.id, code, attempts = mail.attempts + 1, pause_ms, "mail not sent yet");
        self.store.deferred(mail, due_ms, ambiguous, now_ms).await
    }
}

impl Schedule {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            digest_ms: i64::from(config.digest_seconds) * 1000,
            quiet_hours: config.quiet_hours,
            retry_ceiling_ms: i64::try_from(config.retry_ceiling.as_millis()).unwrap_or(i64::MAX).max(1),
        }
    }

    /// When a digest begun now goes out.
    pub(crate) fn digest_due_ms(&self, now_ms: i64) -> i64 {
        self.after_quiet_hours(now_ms + self.digest_ms, false)
    }

    /// `at_ms`, or the end of the quiet hours it falls into.
    pub(crate) fn after_quiet_hours(&self, at_ms: i64, urgent: bool) -> i64 {
        let Some((start, end)) = self.quiet_hours.filter(|_| !urgent) else { return at_ms };
        let of_day = |time: Time| {
            let (hour, minute, second) = time.as_hms();
            (i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second)) * 1000
        };
        let since_start = (at_ms + JST_MS - of_day(start)).rem_euclid(DAY_MS);
        let length = (of_day(end) - of_day(start)).rem_euclid(DAY_MS);
        if since_start < length { at_ms + length - since_start } else { at_ms }
    }

    /// Doubles up to the ceiling; between half and all of it, so that mails which failed together do not return together.
    pub(crate) fn retry_pause_ms(&self, attempts: i64) -> i64 {
        let factor = 1_i64 << attempts.clamp(0, 20);
        let pause_ms = (RETRY_FIRST_MS * factor).min(self.retry_ceiling_ms);
        rand::random_range(pause_ms / 2..=pause_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(quiet_hours: Option<(u8, u8)>) -> Schedule {
        let time = |hour| Time::from_hms(hour, 0, 0).unwrap();
        Schedule {
            digest_ms: 30_000,
            quiet_hours: quiet_hours.map(|(start, end)| (time(start), time(end))),
            retry_ceiling_ms: 900_000,
        }
    }

    #[test]
    fn quiet_hours_are_japanese_and_may_span_midnight() {
        #[track_caller]
        fn check(quiet_hours: Option<(u8, u8)>, hour_jst: i64, expected_jst: i64) {
            let at_ms = (hour_jst - 9) * 3_600_000;
            assert_eq!(schedule(quiet_hours).after_quiet_hours(at_ms, false), (expected_jst - 9) * 3_600_000);
            assert_eq!(schedule(quiet_hours).after_quiet_hours(at_ms, true), at_ms);
        }
        check(None, 23, 23);
        check(Some((22, 7)), 21, 21);
        check(Some((22, 7)), 22, 31);
        check(Some((22, 7)), 24 + 3, 24 + 7);
        check(Some((22, 7)), 24 + 7, 24 + 7);
        check(Some((12, 13)), 12, 13);
        check(Some((12, 12)), 12, 12);
    }

    #[test]
    fn pauses_grow_to_the_ceiling() {
        for (attempts, longest) in [(0, 15_000), (1, 30_000), (5, 480_000), (6, 900_000), (1000, 900_000)] {
            let pause = schedule(None).retry_pause_ms(attempts);
            assert!((longest / 2..=longest).contains(&pause), "{attempts}: {pause}");
        }
    }
}
