//! One appservice's queue: reads the stream, freezes a transaction, sends it until it is acknowledged.

use std::{sync::Arc, time::Duration};

use ruma::OwnedUserId;

use super::Appservice;
use crate::{
    error::Result,
    rooms::{committer::Hint, pdu::Event},
    server::Server,
    store,
    sync::render,
};

/// Events and bytes of one transaction.
const EVENTS_MAX: usize = 100;
const BYTES_MAX: usize = 1 << 20;
/// Events read from the stream at once.
const READ_MAX: usize = 500;
/// How far memory may run ahead of the stored cursor: what is read again after a restart at most.
const UNSTORED_MAX: i64 = 5_000;
/// The ceiling of the back-off.
const WAIT_MAX_MS: u64 = 30_000;

/// Delivers to one appservice until the server stops.
pub async fn run(server: Arc<Server>, appservice: Arc<Appservice>) {
    let Some(url) = appservice.registration.url.clone() else { return };
    let mut stopping = server.stopping.subscribe();
    let mut failures = 0_u32;
    loop {
        let committed = server.live.committed.notified();
        tokio::pin!(committed);
        committed.as_mut().enable();
        let wake = appservice.wake.notified();
        tokio::pin!(wake);
        wake.as_mut().enable();
        let wait = match step(&server, &appservice, &url).await {
            Ok(true) => {
                failures = 0;
                None
            }
            Ok(false) => {
                failures = 0;
                Some(None)
            }
            Err(error) => {
                failures += 1;
                if failures.is_power_of_two() {
                    tracing::warn!(appservice.id = %appservice.id, failures, %error, "an appservice does not take its events");
                }
                Some(Some(back_off(failures)))
            }
        };
        appservice.lag.lock().failures = failures;
        match wait {
            None => {
                if *stopping.borrow() {
                    return;
                }
            }
            Some(None) => {
                tokio::select! {
                    () = &mut committed => {}
                    () = crate::server::stopped(&mut stopping) => return,
                }
            }
            Some(Some(wait)) => {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = &mut wake => {}
                    () = crate::server::stopped(&mut stopping) => return,
                }
            }
        }
    }
}

fn back_off(failures: u32) -> Duration {
    use rand::RngExt as _;
    let ceiling = (100_u64 << failures.min(9)).min(WAIT_MAX_MS);
    Duration::from_millis(rand::rng().random_range(ceiling / 2..=ceiling))
}

/// Sends what is frozen, or freezes what is new. False where there is nothing to do.
async fn step(server: &Arc<Server>, appservice: &Arc<Appservice>, url: &str) -> Result<bool> {
    let frozen = store::appservices::transaction(&mut server.db.read().await?, &appservice.id).await?;
    if let Some((txn_id, body, upto)) = frozen {
        send(server, appservice, url, &txn_id, body).await?;
        let id = appservice.id.clone();
        server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move {
                    let conn = batch.sql().await?;
                    store::appservices::delivered(conn, &id).await?;
                    store::meta::move_follower(conn, &format!("appservice {id}"), upto).await
                })
            })
            .await?;
        appservice.lag.lock().position = upto;
        return Ok(true);
    }
    freeze(server, appservice).await
}

/// Reads on in the stream; freezes a transaction where there is something that the appservice watches.
async fn freeze(server: &Arc<Server>, appservice: &Arc<Appservice>) -> Result<bool> {
    let name = format!("appservice {}", appservice.id);
    let present = server.live.position();
    let mut conn = server.db.read().await?;
    let stored = store::meta::follower(&mut conn, &name).await?.unwrap_or(0);
    // Memory runs ahead of the stored cursor over events that are none of the appservice's.
    let begin = appservice.lag.lock().position.max(stored);
    if begin >= present {
        return Ok(false);
    }
    let mut upto = begin;
    let mut picked: Vec<Arc<Event>> = Vec::new();
    let mut bytes = 0;
    'reading: loop {
        let read = store::events::arrived(&mut conn, upto, present, READ_MAX).await?;
        let Some(last) = read.last().map(|event| event.position) else {
            upto = present;
            break;
        };
        for event in read {
            if picked.len() == EVENTS_MAX || bytes > BYTES_MAX {
                break 'reading;
            }
            let position = event.position;
            if watches(server, appservice, &event).await? {
                bytes += event.pdu.len();
                picked.push(event);
            }
            upto = position;
        }
        if upto < last || !picked.is_empty() {
            break;
        }
    }
    drop(conn);
    if picked.is_empty() {
        appservice.lag.lock().position = upto;
        if upto - stored > UNSTORED_MAX {
            move_to(server, name, upto).await?;
        }
        return Ok(true);
    }
    let now = server.now();
    let mut body = String::from("{\"events\":");
    render::write_list(&mut body, &picked, |out, event| render::write_event(out, event, None, now, true));
    body.push('}');
    let id = appservice.id.clone();
    let txn_id = format!("{}-{upto}", server.epoch);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                store::appservices::freeze(batch.sql().await?, &id, &txn_id, &body, upto).await
            })
        })
        .await?;
    Ok(true)
}

/// Moves the cursor over events that are none of the appservice's; written rarely, since it costs a commit.
async fn move_to(server: &Arc<Server>, name: String, upto: i64) -> Result<()> {
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move { store::meta::move_follower(batch.sql().await?, &name, upto).await })
        })
        .await
}

/// Whether an event is of a room with one of the appservice's users, or about one.
async fn watches(server: &Arc<Server>, appservice: &Appservice, event: &Event) -> Result<bool> {
    if appservice.is_interested_in_user(event.sender.as_str())
        || appservice.is_interested_in_room(event.room_id.as_str())
        || event.membership.is_some()
            && event.state_key.as_deref().is_some_and(|key| appservice.is_interested_in_user(key))
    {
        return Ok(true);
    }
    if server.live.is_joined(&appservice.sender, &event.room_id) {
        return Ok(true);
    }
    let room = server.live.room(&server.db, &event.room_id).await?;
    let members: Vec<OwnedUserId> = room.current()?.state.members("join").map(|(id, _)| id).collect();
    Ok(members.iter().any(|id| appservice.is_interested_in_user(id.as_str())))
}

async fn send(
    server: &Arc<Server>,
    appservice: &Appservice,
    url: &str,
    txn_id: &str,
    body: String,
) -> Result<()> {
    let answer = server
        .appservices
        .client()
        .put(format!("{}/_matrix/app/v1/transactions/{txn_id}", url.trim_end_matches('/')))
        .bearer_auth(&appservice.registration.hs_token)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .send()
        .await?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(crate::error::Error::internal(format!("the appservice answered {}", answer.status())))
    }
}
