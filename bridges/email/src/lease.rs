//! The two loops that call the homeserver: one takes over the mails it owes, one tells it how they ended.

use reqwest::StatusCode;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::Notify;

use crate::{
    Clock,
    outbox::Schedule,
    server::{CallError, LeasedMail, Server},
    store::{Lang, NewOwed, Store},
    templates::Name,
};

/// What the loops need.
pub(crate) struct Courier {
    pub(crate) server: Server,
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Clock,
    pub(crate) schedule: Schedule,
    /// Rung when a mail may have become due.
    pub(crate) wake: Arc<Notify>,
    /// Rung when there is something to report.
    pub(crate) reports: Arc<Notify>,
    pub(crate) give_up_after: Duration,
}

/// A link longer than this is none of the server's.
const PARAMETER_BYTES_MAX: usize = 2048;
const ID_BYTES_MAX: usize = 64;
const PAUSE_MS_FIRST: i64 = 1_000;
const PAUSE_MS_MAX: i64 = 30_000;

impl Courier {
    /// Leases mails until dropped.
    pub(crate) async fn lease(&self) {
        let mut failures = 0;
        loop {
            let result = match self.server.lease().await {
                Ok(mails) => self.take(mails).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match result {
                Ok(()) => failures = 0,
                Err(error) => {
                    tracing::warn!(error, failures, "mails could not be leased");
                    self.clock.sleep_until(self.clock.now_ms() + pause_ms(failures)).await;
                    failures += 1;
                }
            }
        }
    }

    async fn take(&self, mails: Vec<LeasedMail>) -> Result<(), sqlx::Error> {
        for mail in mails {
            let now_ms = self.clock.now_ms();
            match self.owed(mail, now_ms) {
                Ok(owed) => self.store.add_owed(&owed, now_ms).await?,
                Err(Some((id, problem))) => {
                    tracing::error!(problem, "the server owes a mail that cannot be made");
                    self.store.refuse_owed(&id, problem, now_ms).await?;
                }
                Err(None) => tracing::error!("the server owes a mail without a usable id"),
            }
        }
        self.wake.notify_one();
        self.reports.notify_one();
        Ok(())
    }

    /// Keeps of a leased mail what its template needs, and refuses what no template can use.
    fn owed(&self, mail: LeasedMail, now_ms: i64) -> Result<NewOwed, Option<(String, &'static str)>> {
        // The id becomes part of the Message-ID header.
        let is_id = |id: &str| {
            (1..=ID_BYTES_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if !is_id(&mail.id) {
            return Err(None);
        }
        let fail = |problem| Some((mail.id.clone(), problem));
        let name = Name::of_owed(&mail.template).ok_or_else(|| fail("unknown template"))?;
        let parameter = name.parameter().ok_or_else(|| fail("unknown template"))?;
        let value = match mail.parameters.get(parameter) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Number(number)) => number.to_string(),
            _ => return Err(fail("missing parameter")),
        };
        let is_link = value.starts_with("https://") || value.starts_with("http://");
        if value.is_empty()
            || value.len() > PARAMETER_BYTES_MAX
            || value.chars().any(|character| character.is_control() || character.is_whitespace())
            || (parameter == "link" && !is_link)
        {
            return Err(fail("unusable parameter"));
        }
        // Somebody waits for every other mail of the server's.
        let urgent = name != Name::RoomOpened;
        Ok(NewOwed {
            template: name.file_stem(),
            lang: Lang::of(&mail.lang),
            address: mail.to,
            parameters: BTreeMap::from([(parameter.to_owned(), value)]),
            urgent,
            due_ms: self.schedule.after_quiet_hours(now_ms, urgent),
            server_id: mail.id,
        })
    }

    /// Reports until dropped.
    pub(crate) async fn report(&self) {
        loop {
            let due_ms = match self.report_next().await {
                Ok(None) => continue,
                Ok(Some(due_ms)) => due_ms,
                Err(error) => {
                    tracing::error!(%error, "reports to the server could not be read or settled");
                    self.clock.now_ms() + PAUSE_MS_MAX
                }
            };
            tokio::select! {
                () = self.clock.sleep_until(due_ms) => {}
                () = self.reports.notified() => {}
            }
        }
    }

    /// Sends the next report if it is due; otherwise answers when one will be.
    async fn report_next(&self) -> Result<Option<i64>, sqlx::Error> {
        let now_ms = self.clock.now_ms();
        let Some((report, due_ms)) = self.store.next_report().await? else { return Ok(Some(i64::MAX)) };
        if due_ms > now_ms {
            return Ok(Some(due_ms));
        }
        let Err(error) = self.server.report(&report.path, report.id, report.body).await else {
            self.store.report_settled(report.id).await?;
            return Ok(None);
        };
        let age_ms = now_ms - report.created_ms;
        let is_final = match &error {
            // It knows no such mail (any more), or will not understand it the next time either.
            CallError::Status(status) => matches!(
                *status,
                StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
            ),
            _ => false,
        };
        if is_final || age_ms > i64::try_from(self.give_up_after.as_millis()).unwrap_or(i64::MAX) {
            tracing::error!(report.id, %error, "a report to the server is given up");
            self.store.report_settled(report.id).await?;
        } else {
            tracing::warn!(report.id, %error, "a report did not reach the server");
            self.store.report_deferred(report.id, now_ms + pause_ms(report.attempts)).await?;
        }
        Ok(None)
    }
}

/// Doubles up to the ceiling, with jitter.
fn pause_ms(failures: i64) -> i64 {
    let pause_ms = (PAUSE_MS_FIRST << failures.clamp(0, 10)).min(PAUSE_MS_MAX);
    rand::random_range(pause_ms / 2..=pause_ms)
}
