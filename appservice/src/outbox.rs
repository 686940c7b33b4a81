//! What the bot owes the server, and the worker that pays it.
//!
//! Each task is a row. The worker takes the oldest task of a lane (a room), calls the server, and stores
//! what the answer means in the same transaction that deletes the row. Killed between the call and that
//! commit, it makes the same call again after the restart, under the same key, and gets the same answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::Error;
use crate::applications::Headings;
use crate::cases::event_of;
use crate::clock::now_ms;
use crate::control::{Control, Facts};
use crate::lookup::Look;
use crate::server::{CallError, Server};
use crate::store::{self, Due, Store, Tx};
use crate::texts::Texts;

/// The longest pause between two attempts (DESIGN 17).
const PAUSE_MAX: Duration = Duration::from_secs(30);
const PAUSE_FIRST: Duration = Duration::from_millis(250);

/// The longest message the bot writes, in bytes; the contract's bodies are at most 64 KiB.
const BODY_BYTES_MAX: usize = 24 * 1024;

/// In a notice about a case: its number. The bot reads it in its own message when that comes back in a
/// transaction, which is always before any reaction to it, even where the answer to the sending was lost.
pub(crate) const CASE_FIELD: &str = "jp.heya.case";

/// In every notice: the event that it follows from. When a subject's record is purged, what follows from their cases is
/// found by it.
pub(crate) const ORIGIN_FIELD: &str = "jp.heya.origin";

/// Something to do towards the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub(crate) enum Task {
    /// Write a notice into a room.
    Say(Words),
    /// Follow an invitation.
    Join { room: String },
    /// Look up who and what a case means, then show it to the city.
    Examine { case: i64 },
    /// Carry out an approved case.
    Execute { case: i64 },
    /// Answer a question of the staff from the server's data.
    Look { look: Look, reply_to: String },
    /// Choose what mails somebody gets (`highlight`, `direct`, `all`), or say what is chosen; answered where asked.
    MailScope { user: String, scope: Option<String>, room: String, reply_to: String },
    /// Read the file of e-applications that an event posted: say what is in it, or take it.
    Applications { file: String, by: String, import: bool, reply_to: String },
}

/// A notice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Words {
    pub room: String,
    pub body: String,
    #[serde(default)]
    pub reply_to: Option<String>,
    /// Who is notified.
    #[serde(default)]
    pub mention: Vec<String>,
    /// The case that a reaction to this notice decides.
    #[serde(default)]
    pub case: Option<i64>,
    /// The event that the notice follows from.
    #[serde(default)]
    pub origin: Option<String>,
}

/// A task to be put into the outbox.
#[derive(Clone, Debug)]
pub(crate) struct NewTask {
    pub lane: String,
    /// Unique; also the Matrix transaction id of a notice.
    pub key: String,
    pub task: Task,
}

impl NewTask {
    pub(crate) fn say(room: &str, key: String, body: String) -> Self {
        let words = Words {
            room: room.to_owned(),
            body: shorten(body),
            reply_to: None,
            mention: Vec::new(),
            case: None,
            origin: None,
        };
        Self { lane: room.to_owned(), key, task: Task::Say(words) }
    }

    pub(crate) fn examine(room: &str, case: i64, revision: i64) -> Self {
        Self {
            lane: room.to_owned(),
            key: format!("case-{case}-examine-{revision}"),
            task: Task::Examine { case },
        }
    }

    pub(crate) fn execute(room: &str, case: i64, attempt: i64) -> Self {
        Self {
            lane: room.to_owned(),
            key: format!("case-{case}-execute-{attempt}"),
            task: Task::Execute { case },
        }
    }

    /// Says which event the notice follows from.
    pub(crate) fn because_of(mut self, event_id: &str) -> Self {
        if let Task::Say(words) = &mut self.task {
            words.origin = Some(event_id.to_owned());
        }
        self
    }

    /// Makes the notice a reply.
    pub(crate) fn replying(mut self, event_id: &str) -> Self {
        if let Task::Say(words) = &mut self.task {
            words.reply_to = Some(event_of(event_id).to_owned());
        }
        self
    }

    /// Notifies somebody.
    pub(crate) fn to(mut self, user: &str) -> Self {
        if let Task::Say(words) = &mut self.task {
            words.mention.push(user.to_owned());
        }
        self
    }

    /// Lets a reaction to the notice decide the case.
    pub(crate) fn about(mut self, case: i64) -> Self {
        if let Task::Say(words) = &mut self.task {
            words.case = Some(case);
        }
        self
    }
}

fn shorten(mut body: String) -> String {
    if body.len() > BODY_BYTES_MAX {
        let end = body.floor_char_boundary(BODY_BYTES_MAX);
        body.truncate(end);
        body.push('…');
    }
    body
}

/// Everything the bot is made of.
#[derive(Debug)]
pub(crate) struct Bot {
    pub store: Store,
    pub server: Server,
    pub texts: Texts,
    pub headings: Headings,
    pub control: Arc<Control>,
    /// Rung after a commit that put something into the outbox.
    pub wake: Arc<Notify>,
}

/// When each lane was served last, in numbers that grow.
#[derive(Debug, Default)]
struct Turns {
    served: HashMap<String, u64>,
    turn: u64,
}

impl Turns {
    /// Lanes that are remembered; beyond it all begin anew.
    const LANES_MAX: usize = 10_000;

    fn serve(&mut self, lane: &str) {
        if self.served.len() >= Self::LANES_MAX {
            self.served.clear();
        }
        self.turn += 1;
        self.served.insert(lane.to_owned(), self.turn);
    }
}

/// Why a task is not finished.
#[derive(Debug)]
pub(crate) enum Unfinished {
    Call(CallError),
    Store(Error),
    /// `GET /control` has not been answered yet.
    NoControl,
}

impl From<CallError> for Unfinished {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<Error> for Unfinished {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<sqlx::Error> for Unfinished {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Bot {
    /// Works until dropped. A failing database is waited for, not died of: what is owed is still owed.
    pub(crate) async fn drain(&self) -> Result<(), Error> {
        let mut failures: u32 = 0;
        let mut turns = Turns::default();
        loop {
            match self.step(&mut turns).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::error!(%error, detail = error.detail(), failures, "the outbox cannot be read or written");
                    tokio::time::sleep(backoff(failures)).await;
                }
            }
        }
    }

    async fn step(&self, turns: &mut Turns) -> Result<(), Error> {
        let Some(due) = self.store.due(now_ms(), &turns.served).await? else {
            return self.rest().await;
        };
        turns.serve(&due.lane);
        let pause = match self.perform(&due).await {
            Ok(()) => return Ok(()),
            Err(Unfinished::Call(CallError::Refused { status, errcode, .. })) => {
                return self.complain(&due, status, &errcode).await;
            }
            // One bad row must not hold up the others; where the whole database fails, postponing fails too.
            Err(Unfinished::Store(error)) => {
                tracing::error!(task = due.key, %error, detail = error.detail(), "will be tried again");
                backoff(attempts_of(&due))
            }
            Err(Unfinished::Call(CallError::Transient { reason, retry_after })) => {
                tracing::warn!(task = due.key, reason, attempts = due.attempts, "will be tried again");
                retry_after.map_or_else(|| backoff(attempts_of(&due)), |asked| asked.min(PAUSE_MAX))
            }
            Err(Unfinished::NoControl) => backoff(attempts_of(&due)),
        };
        let pause = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
        self.store.postpone(due.id, now_ms().saturating_add(pause)).await
    }

    /// Waits for new work or for the time of a postponed task.
    async fn rest(&self) -> Result<(), Error> {
        let pause = match self.store.next_due().await? {
            Some(at) => {
                Duration::from_millis(u64::try_from(at.saturating_sub(now_ms())).unwrap_or(0).max(10))
            }
            None => Duration::from_secs(60),
        };
        // A ring between the query and this wait is kept by `Notify`, so none is missed.
        let _ = tokio::time::timeout(pause, self.wake.notified()).await;
        Ok(())
    }

    async fn perform(&self, due: &Due) -> Result<(), Unfinished> {
        let facts = self.control.facts().ok_or(Unfinished::NoControl)?;
        match &due.task {
            Task::Say(words) => self.say(due, words).await,
            Task::Join { room } => self.join(due, room).await,
            Task::Examine { case } => self.examine(due, &facts, *case).await,
            Task::Execute { case } => self.execute(due, &facts, *case).await,
            Task::MailScope { user, scope, room, reply_to } => {
                let body = json!({"scope": scope, "acting": user});
                let path = ["_heya", "v1", "accounts", user, "mail-scope"];
                let answer = self.server.post(&path, &due.key, Some(reply_to), &body).await?;
                let body = self.texts.mail_scope(&answer);
                let answer = NewTask::say(room, format!("{}-answer", due.key), body).replying(reply_to);
                self.finish(due, [answer.to(user)]).await
            }
            Task::Applications { file, by, import, reply_to } => {
                let body = self.applications(due, &facts, file, by, *import).await?;
                let Some((tx, body, next)) = body else { return self.finish(due, []).await };
                let answer = NewTask::say(&facts.control_room, format!("{}-answer", due.key), body);
                let answer = answer.replying(reply_to).to(by).because_of(file);
                self.finish_in(tx, due, [answer].into_iter().chain(next)).await
            }
            Task::Look { look, reply_to } => {
                let body = self.look(look).await?;
                let answer =
                    NewTask::say(&facts.control_room, format!("{}-answer", due.key), body).replying(reply_to);
                self.finish(due, [answer.because_of(reply_to)]).await
            }
        }
    }

    /// Ends a task: what follows from it and its disappearance are one transaction.
    pub(crate) async fn finish(
        &self,
        due: &Due,
        next: impl IntoIterator<Item = NewTask>,
    ) -> Result<(), Unfinished> {
        let tx = self.store.begin().await?;
        self.finish_in(tx, due, next).await
    }

    /// The same in a transaction that has changed more.
    pub(crate) async fn finish_in(
        &self,
        mut tx: Tx,
        due: &Due,
        next: impl IntoIterator<Item = NewTask>,
    ) -> Result<(), Unfinished> {
        for task in next {
            store::enqueue(&mut tx, task).await?;
        }
        store::finish_task(&mut tx, due.id).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn say(&self, due: &Due, words: &Words) -> Result<(), Unfinished> {
        let mut content = json!({"msgtype": "m.notice", "body": words.body, "m.mentions": {}});
        if !words.mention.is_empty() {
            content["m.mentions"] = json!({"user_ids": words.mention});
        }
        if let Some(case) = words.case {
            content[CASE_FIELD] = case.into();
        }
        if let Some(origin) = &words.origin {
            content[ORIGIN_FIELD] = origin.as_str().into();
        }
        if let Some(event_id) = &words.reply_to {
            content["m.relates_to"] = json!({"m.in_reply_to": {"event_id": event_id}});
        }
        let path = ["_matrix", "client", "v3", "rooms", &words.room, "send", "m.room.message", &due.key];
        let answer = self.server.put(&path, &content).await?;
        let mut tx = self.store.begin().await?;
        if let (Some(case), Some(event_id)) = (words.case, answer.get("event_id").and_then(Value::as_str)) {
            store::remember_message(&mut tx, event_id, case).await?;
        }
        self.finish_in(tx, due, []).await
    }

    async fn join(&self, due: &Due, room: &str) -> Result<(), Unfinished> {
        let path = ["_matrix", "client", "v3", "rooms", room, "join"];
        self.server.post(&path, &due.key, None, &json!({})).await?;
        let welcome = NewTask::say(room, format!("{}-welcome", due.key), self.texts.welcome());
        self.finish(due, [welcome]).await
    }

    /// A refusal for good: the city is told what could not be done, and the queue goes on.
    async fn complain(&self, due: &Due, status: u16, errcode: &str) -> Result<(), Error> {
        tracing::warn!(task = due.key, status, errcode, "refused for good");
        let mut tx = self.store.begin().await?;
        store::finish_task(&mut tx, due.id).await?;
        let facts = self.control.facts();
        // About the control room itself nobody could be told there.
        if let Some(facts) =
            facts.filter(|facts| facts.control_room != due.lane || !matches!(due.task, Task::Say(_)))
        {
            let body = self.texts.undeliverable(&due.task, errcode);
            store::enqueue(&mut tx, NewTask::say(&facts.control_room, format!("{}-refused", due.key), body))
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Speaks to the control room.
    pub(crate) fn tell_city(&self, facts: &Facts, key: String, body: String) -> NewTask {
        NewTask::say(&facts.control_room, key, body)
    }
}

fn attempts_of(due: &Due) -> u32 {
    u32::try_from(due.attempts).unwrap_or(u32::MAX).saturating_add(1)
}

/// The pause before attempt `failures + 1`: doubling, never above 30 s, with half of it left to chance so
/// that callers that failed together do not come back together.
pub(crate) fn backoff(failures: u32) -> Duration {
    let full = PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(PAUSE_MAX);
    let half = u64::try_from(full.as_millis() / 2).unwrap_or(0);
    Duration::from_millis(half + rand::rng().random_range(0..=half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_ceiling() {
        for failures in 1..100 {
            let pause = backoff(failures);
            assert!(pause <= PAUSE_MAX && pause >= PAUSE_FIRST / 2, "{failures}: {pause:?}");
        }
        assert!(backoff(60) >= PAUSE_MAX / 2);
    }

    #[test]
    fn long_bodies_are_cut_between_letters() {
        let cut = shorten("あ".repeat(BODY_BYTES_MAX));
        assert!(cut.len() <= BODY_BYTES_MAX + '…'.len_utf8() && cut.ends_with('…'));
    }
}
