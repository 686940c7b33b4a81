//! Typing and receipts for appservices that want them (`receive_ephemeral`; Application Service API, "Pushing ephemeral
//! data"). They go in transactions of their own, which are never stored and never stand before an event: what could not
//! be delivered of typing is dropped, and receipts are told again as they are by then.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ruma::OwnedRoomId;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Appservice, delivery};
use crate::{error::Result, server::Server, store};

/// Receipts looked at for one transaction.
const RECEIPTS_MAX: usize = 500;
/// How long one of these transactions may hold the events up.
const TIME: Duration = Duration::from_secs(5);

/// How far an appservice has come with what is not stored for it.
pub struct Ephemeral {
    receipts: i64,
    typing: u64,
    failures: u32,
    not_before: Option<Instant>,
}

impl Ephemeral {
    /// Begins at a position: the one that the appservice's events have come to.
    pub fn begin(server: &Server, position: i64) -> Self {
        Self { receipts: position, typing: server.live.volatile(), failures: 0, not_before: None }
    }

    /// Delivers what is new. When to try again, where the appservice did not take it.
    pub async fn deliver(
        &mut self,
        server: &Arc<Server>,
        appservice: &Arc<Appservice>,
        url: &str,
    ) -> Result<Option<Instant>> {
        if self.not_before.is_some_and(|time| time > Instant::now()) {
            return Ok(self.not_before);
        }
        self.not_before = None;
        loop {
            let typing_upto = server.live.volatile();
            let mut events = typing(server, appservice, self.typing).await?;
            self.typing = typing_upto;
            let (receipts, upto, more) = receipts(server, appservice, self.receipts).await?;
            events.extend(receipts);
            if !events.is_empty() {
                let body = json!({"events": [], "ephemeral": events}).to_string();
                let txn_id = format!("{}-e-{}", server.epoch, crate::clock::random_token(12));
                if delivery::send(server, appservice, url, &txn_id, body, TIME).await.is_err() {
                    self.failures += 1;
                    let again = Instant::now() + delivery::back_off(self.failures);
                    self.not_before = Some(again);
                    return Ok(Some(again));
                }
                self.failures = 0;
            }
            self.receipts = upto;
            if !more {
                return Ok(None);
            }
        }
    }

    /// Tries again at once: the appservice has shown that it is there.
    pub fn wake(&mut self) {
        self.not_before = None;
    }
}

async fn typing(server: &Arc<Server>, appservice: &Appservice, since: u64) -> Result<Vec<Value>> {
    let mut events = Vec::new();
    for (room_id, user_ids) in server.live.typing_since(since) {
        if appservice.is_interested_in(server, &room_id, None).await? {
            events.push(json!({"type": "m.typing", "room_id": room_id, "content": {"user_ids": user_ids}}));
        }
    }
    Ok(events)
}

/// Receipts after a position by room; the position they reach to, and whether there are more.
async fn receipts(
    server: &Arc<Server>,
    appservice: &Appservice,
    after: i64,
) -> Result<(Vec<Value>, i64, bool)> {
    let present = server.live.position();
    if present <= after {
        return Ok((Vec::new(), after, false));
    }
    let moved =
        store::rooms::receipts_between(&mut server.db.read().await?, after, present, RECEIPTS_MAX).await?;
    let more = moved.len() == RECEIPTS_MAX;
    let upto = if more { moved.last().map_or(present, |last| last.position) } else { present };
    let mut interest: BTreeMap<OwnedRoomId, bool> = BTreeMap::new();
    let mut contents: BTreeMap<OwnedRoomId, Value> = BTreeMap::new();
    for receipt in moved {
        // A private receipt is its owner's alone (client-server API, "Private read receipts"), and no person of a city is
        // an appservice's, however wide its namespace is.
        let own =
            appservice.may_act_as(&receipt.user_id) && !server.appservices.is_the_citys(&receipt.user_id);
        if receipt.kind == "m.read.private" && !own {
            continue;
        }
        let wanted = match interest.get(&receipt.room_id) {
            Some(wanted) => *wanted,
            None => {
                let wanted = appservice.is_interested_in(server, &receipt.room_id, None).await?;
                interest.insert(receipt.room_id.clone(), wanted);
                wanted
            }
        };
        if wanted {
            let mut data = json!({"ts": receipt.ts});
            if !receipt.thread.is_empty() {
                data["thread_id"] = receipt.thread.as_str().into();
            }
            let content = contents.entry(receipt.room_id).or_insert_with(|| json!({}));
            content[receipt.event_id.as_str()][&receipt.kind][receipt.user_id.as_str()] = data;
        }
    }
    let events = contents
        .into_iter()
        .map(|(room_id, content)| json!({"type": "m.receipt", "room_id": room_id, "content": content}))
        .collect();
    Ok((events, upto, more))
}
