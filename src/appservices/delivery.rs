//! One appservice's queue: reads the stream, freezes a transaction, sends it until it is acknowledged.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ruma::{OwnedRoomId, events::TimelineEventType};

use super::{Appservice, ephemeral::Ephemeral};
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

/// How long an appservice may take over one transaction.
const TIME: Duration = Duration::from_secs(30);
/// While events flow without a pause, typing and receipts go between them so often.
const EPHEMERAL_EVERY: Duration = Duration::from_secs(1);

/// Delivers to one appservice until the server stops.
pub async fn run(server: Arc<Server>, appservice: Arc<Appservice>) {
    let Some(url) = appservice.registration.url.clone() else { return };
    let mut stopping = server.stopping.subscribe();
    let mut failures = 0_u32;
    let mut ephemeral: Option<Ephemeral> = None;
    let mut looked = tokio::time::Instant::now();
    let mut begun = false;
    loop {
        let committed = server.live.committed.notified();
        let typed = server.live.typed.notified();
        let wake = appservice.wake.notified();
        tokio::pin!(committed, typed, wake);
        committed.as_mut().enable();
        typed.as_mut().enable();
        wake.as_mut().enable();
        let work = async {
            if !begun {
                let position = begin(&server, &appservice).await?;
                appservice.lag.lock().position = position;
                ephemeral =
                    appservice.registration.receive_ephemeral.then(|| Ephemeral::begin(&server, position));
                begun = true;
            }
            let more = step(&server, &appservice, &url).await?;
            let due = !more || looked.elapsed() > EPHEMERAL_EVERY;
            let again = match &mut ephemeral {
                Some(ephemeral) if due => {
                    looked = tokio::time::Instant::now();
                    ephemeral.deliver(&server, &appservice, &url).await?
                }
                _ => None,
            };
            Ok::<_, crate::error::Error>((more, again))
        };
        let wait = match work.await {
            Ok((more, again)) => {
                failures = 0;
                if more { Wait::Not } else { Wait::News(again) }
            }
            Err(error) => {
                failures += 1;
                if failures.is_power_of_two() {
                    tracing::warn!(appservice.id = %appservice.id, failures, %error, "an appservice does not take its events");
                }
                Wait::So(back_off(failures))
            }
        };
        appservice.lag.lock().failures = failures;
        match wait {
            Wait::Not => {
                if *stopping.borrow() {
                    return;
                }
            }
            Wait::News(again) => {
                let again = async {
                    match again {
                        Some(time) => tokio::time::sleep_until(time).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = &mut committed => {}
                    () = &mut typed, if ephemeral.is_some() => {}
                    () = again => {}
                    () = &mut wake => {
                        if let Some(ephemeral) = &mut ephemeral {
                            ephemeral.wake();
                        }
                    }
                    () = crate::server::stopped(&mut stopping) => return,
                }
            }
            Wait::So(wait) => {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = &mut wake => {}
                    () = crate::server::stopped(&mut stopping) => return,
                }
            }
        }
    }
}

/// What a delivery waits for.
enum Wait {
    /// There is more to do.
    Not,
    /// For news, or until typing and receipts are tried again.
    News(Option<tokio::time::Instant>),
    /// After a failure, so long.
    So(Duration),
}

/// Between half of the ceiling and the ceiling, which doubles with each failure up to 30 s.
pub(super) fn back_off(failures: u32) -> Duration {
    use rand::RngExt as _;
    let ceiling = (100_u64 << failures.min(9)).min(WAIT_MAX_MS);
    Duration::from_millis(rand::rng().random_range(ceiling / 2..=ceiling))
}

/// The position that an appservice has come to. One that is new begins at the present: what happened before it was
/// registered was not meant for it. The city bot is there from the first event.
async fn begin(server: &Arc<Server>, appservice: &Appservice) -> Result<i64> {
    let name = format!("appservice {}", appservice.id);
    let stored = store::meta::follower(&mut server.db.read().await?, &name).await?;
    match stored {
        Some(position) => Ok(position),
        None if appservice.id == super::CITY => Ok(0),
        None => {
            let present = server.live.position();
            move_to(server, name, present).await?;
            Ok(present)
        }
    }
}

/// Sends what is frozen, or freezes what is new. False where there is nothing to do.
async fn step(server: &Arc<Server>, appservice: &Arc<Appservice>, url: &str) -> Result<bool> {
    let frozen = store::appservices::transaction(&mut server.db.read().await?, &appservice.id).await?;
    if let Some((txn_id, body, upto)) = frozen {
        if appservice.lag.lock().oldest.is_none() {
            let (under_way, oldest) = contents(&body);
            let mut lag = appservice.lag.lock();
            (lag.under_way, lag.oldest) = (under_way, oldest);
        }
        send(server, appservice, url, &txn_id, body, TIME).await?;
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
        let mut lag = appservice.lag.lock();
        (lag.position, lag.under_way, lag.oldest) = (upto, 0, None);
        return Ok(true);
    }
    freeze(server, appservice).await
}

/// How many events a frozen body has, and when the first of them happened.
fn contents(body: &str) -> (usize, Option<i64>) {
    #[derive(serde::Deserialize)]
    struct Body {
        events: Vec<At>,
    }
    #[derive(serde::Deserialize)]
    struct At {
        origin_server_ts: i64,
    }
    serde_json::from_str::<Body>(body).map_or((0, None), |body| {
        (body.events.len(), body.events.first().map(|event| event.origin_server_ts))
    })
}

/// Reads on in the stream; freezes a transaction where there is something that the appservice watches.
async fn freeze(server: &Arc<Server>, appservice: &Arc<Appservice>) -> Result<bool> {
    let name = format!("appservice {}", appservice.id);
    let present = server.live.position();
    let stored = store::meta::follower(&mut server.db.read().await?, &name).await?.unwrap_or(0);
    // Memory runs ahead of the stored cursor over events that are none of the appservice's.
    let begin = appservice.lag.lock().position.max(stored);
    if begin >= present {
        return Ok(false);
    }
    let mut upto = begin;
    let mut picked: Vec<Arc<Event>> = Vec::new();
    let mut bytes = 0;
    let mut rooms = HashMap::new();
    'reading: loop {
        // Given back before `watches` asks for one: whoever holds a connection while waiting for another may wait for ever.
        let read = store::events::arrived(&mut server.db.read().await?, upto, present, READ_MAX).await?;
        let Some(last) = read.last().map(|event| event.position) else {
            upto = present;
            break;
        };
        for event in read {
            if picked.len() == EVENTS_MAX || bytes > BYTES_MAX {
                break 'reading;
            }
            let position = event.position;
            if watches(server, appservice, &event, &mut rooms).await? {
                bytes += event.pdu.len();
                picked.push(event);
            }
            upto = position;
        }
        if upto < last || !picked.is_empty() {
            break;
        }
    }
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
    let mut shown: HashMap<OwnedRoomId, i64> = HashMap::new();
    for event in &picked {
        let newest = shown.entry(event.room_id.clone()).or_default();
        *newest = event.position.max(*newest);
    }
    let shown: Vec<(OwnedRoomId, i64)> = shown.into_iter().collect();
    crate::reading::sent(server, &appservice.id, &shown).await?;
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

/// Whether an event is of a room with one of the appservice's users, or about one. `rooms` remembers the answer for each
/// room until its members or aliases change.
async fn watches(
    server: &Arc<Server>,
    appservice: &Appservice,
    event: &Event,
    rooms: &mut HashMap<OwnedRoomId, bool>,
) -> Result<bool> {
    let of_room = match rooms.get(&event.room_id) {
        Some(known) => *known,
        None => {
            // As the room was then: an appservice that was away must not miss what its users saw before they left.
            let known = appservice.is_interested_in(server, &event.room_id, Some(event.position)).await?;
            rooms.insert(event.room_id.clone(), known);
            known
        }
    };
    if event.membership.is_some() || event.kind == TimelineEventType::RoomCanonicalAlias {
        rooms.remove(&event.room_id);
    }
    Ok(of_room
        || appservice.is_interested_in_user(event.sender.as_str())
        || event.membership.is_some()
            && event.state_key.as_deref().is_some_and(|key| appservice.is_interested_in_user(key)))
}

/// Sends a transaction; an error unless it was taken.
pub(super) async fn send(
    server: &Arc<Server>,
    appservice: &Appservice,
    url: &str,
    txn_id: &str,
    body: String,
    time: Duration,
) -> Result<()> {
    let answer = server
        .appservices
        .client()
        .put(format!("{}/_matrix/app/v1/transactions/{txn_id}", url.trim_end_matches('/')))
        .bearer_auth(&appservice.registration.hs_token)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .timeout(time)
        .send()
        .await
        .map_err(reqwest::Error::without_url)?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(crate::error::Error::internal(format!("the appservice answered {}", answer.status())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_thirty_seconds_and_differ() {
        for failures in 1..200 {
            let ceiling = Duration::from_millis(100 << failures.min(9)).min(Duration::from_secs(30));
            let waits: std::collections::BTreeSet<_> = (0..50).map(|_| back_off(failures)).collect();
            assert!(waits.iter().all(|wait| *wait >= ceiling / 2 && *wait <= ceiling), "{failures}");
            assert!(waits.len() > 1, "without jitter all servers come back at once");
        }
    }

    #[test]
    fn a_frozen_body_tells_its_depth_and_age() {
        let body = r#"{"events":[{"origin_server_ts":5,"x":1},{"origin_server_ts":9}]}"#;
        assert_eq!(contents(body), (2, Some(5)));
        assert_eq!(contents("{}"), (0, None));
    }
}
