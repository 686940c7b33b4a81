//! What the server does per second, and how long people wait: `cargo bench` (about two minutes).
//!
//! The server runs as a process of its own, in the open profile, on SQLite with every commit synced to the disk (or on
//! PostgreSQL, with `HEYA_BENCH_DATABASE=postgres://…` naming an empty database). The load comes from this process over
//! loopback, closed loop: each worker sends its next request when its last is answered. Machine and disk are named in
//! the output; timings are comparable within one run only.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark fails by panicking"
)]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Client, Server, account, line, machine, percentile, room, send};
use serde_json::Value;

/// Sends for a while with so many in flight, in rooms of five.
async fn sends(
    server: &Server,
    people: &[(String, String)],
    rooms: &[String],
    at_once: usize,
    time: Duration,
) {
    let (cpu, begun) = (server.cpu(), Instant::now());
    let end = begun + time;
    let workers: Vec<_> = (0..at_once)
        .map(|i| {
            let (token, room_id) =
                (people[i % people.len()].1.clone(), rooms[(i % people.len()) / 5].clone());
            let port = server.port;
            tokio::spawn(async move {
                let mut client = Client::connect(port, &token).await;
                let mut times = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    send(&mut client, &room_id).await;
                    times.push(begun.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for worker in workers {
        times.extend(worker.await.unwrap());
    }
    let n = times.len() as f64;
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), (server.cpu() - cpu).as_secs_f64());
    times.sort_unstable();
    line(
        &format!("sends, {at_once} in flight, durable"),
        format!(
            "{:.0}/s   p50 {:.2} ms  p99 {:.2} ms   {:.3} ms CPU each",
            n / wall,
            percentile(&times, 50),
            percentile(&times, 99),
            cpu * 1000.0 / n
        ),
    );
}

/// How long after a send's answer the waiting clients have it.
async fn wakes(server: &Server, people: &[(String, String)], room_id: &str) {
    let waiting = people.len() - 1;
    let (told, mut hear) = tokio::sync::mpsc::unbounded_channel::<Instant>();
    let ready = Arc::new(tokio::sync::Barrier::new(waiting + 1));
    let rounds = 30;
    for (_, token) in &people[1..] {
        let (port, token, told, ready) = (server.port, token.clone(), told.clone(), Arc::clone(&ready));
        tokio::spawn(async move {
            let mut client = Client::connect(port, &token).await;
            let filter = "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A1%7D%7D%7D";
            let first =
                client.call("GET", &format!("/_matrix/client/v3/sync?filter={filter}"), Value::Null).await;
            let mut since = first["next_batch"].as_str().unwrap().to_owned();
            for _ in 0..rounds {
                ready.wait().await;
                loop {
                    let path = format!("/_matrix/client/v3/sync?filter={filter}&since={since}&timeout=20000");
                    let answer = client.call("GET", &path, Value::Null).await;
                    since = answer["next_batch"].as_str().unwrap().to_owned();
                    if answer["rooms"]["join"].as_object().is_some_and(|rooms| !rooms.is_empty()) {
                        break;
                    }
                }
                let _ = told.send(Instant::now());
            }
        });
    }
    let mut sender = Client::connect(server.port, &people[0].1).await;
    let mut times = Vec::new();
    for _ in 0..rounds {
        ready.wait().await;
        // The polls need a moment to reach the server.
        tokio::time::sleep(Duration::from_millis(150)).await;
        send(&mut sender, room_id).await;
        let answered = Instant::now();
        for _ in 0..waiting {
            times.push(hear.recv().await.unwrap().saturating_duration_since(answered));
        }
    }
    times.sort_unstable();
    line(
        &format!("answer to wake, {waiting} waiting"),
        format!("p50 {:.2} ms  p99 {:.2} ms", percentile(&times, 50), percentile(&times, 99)),
    );
}

async fn idle_syncs(server: &Server, people: &[(String, String)], time: Duration) {
    let (cpu, begun) = (server.cpu(), Instant::now());
    let end = begun + time;
    let workers: Vec<_> = people
        .iter()
        .take(8)
        .map(|(_, token)| {
            let (port, token) = (server.port, token.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(port, &token).await;
                let first = client.call("GET", "/_matrix/client/v3/sync", Value::Null).await;
                let path = format!("/_matrix/client/v3/sync?since={}", first["next_batch"].as_str().unwrap());
                let mut n = 0_u64;
                while Instant::now() < end {
                    client.raw("GET", &path, String::new()).await;
                    n += 1;
                }
                n
            })
        })
        .collect();
    let mut n = 0;
    for worker in workers {
        n += worker.await.unwrap();
    }
    let cpu = (server.cpu() - cpu).as_secs_f64() * 1000.0 / n as f64;
    line("idle syncs", format!("{:.0}/s   {cpu:.3} ms CPU each", n as f64 / begun.elapsed().as_secs_f64()));
}

async fn pages(server: &Server, token: &str, room_id: &str, time: Duration) {
    let begun = Instant::now();
    let mut client = Client::connect(server.port, token).await;
    let path = format!("/_matrix/client/v3/rooms/{room_id}/messages?dir=b&limit=100");
    let mut n = 0_u64;
    while begun.elapsed() < time {
        client.raw("GET", &path, String::new()).await;
        n += 1;
    }
    line("pages of 100 events, one reader", format!("{:.0}/s", n as f64 / begun.elapsed().as_secs_f64()));
}

async fn long_polls(server: &Server, people: &[(String, String)], n: usize) {
    let before = server.rss();
    let mut held = Vec::new();
    for i in 0..n {
        let mut client = Client::connect(server.port, &people[i % people.len()].1).await;
        let filter = "%7B%22room%22%3A%7B%22rooms%22%3A%5B%5D%7D%7D";
        let first =
            client.call("GET", &format!("/_matrix/client/v3/sync?filter={filter}"), Value::Null).await;
        let since = first["next_batch"].as_str().unwrap().to_owned();
        held.push(tokio::spawn(async move {
            client
                .raw(
                    "GET",
                    &format!("/_matrix/client/v3/sync?filter={filter}&since={since}&timeout=60000"),
                    String::new(),
                )
                .await
        }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    line(
        &format!("memory with {n} long polls held"),
        format!("{:.0} MiB (before: {before:.0} MiB)", server.rss()),
    );
    for poll in held {
        poll.abort();
    }
}

#[tokio::main]
async fn main() {
    let seconds = std::env::var("HEYA_BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    let time = Duration::from_secs(seconds);
    let (server, started) = Server::start();
    line("machine", machine());
    line("start-up, empty", format!("{:.0} ms", started.as_secs_f64() * 1000.0));
    line("memory, idle, empty", format!("{:.0} MiB", server.rss()));
    let mut people = Vec::new();
    for i in 0..101 {
        people.push(account(server.port, &format!("bench{i}")).await);
    }
    let mut rooms = Vec::new();
    for five in people[..65].chunks(5) {
        rooms.push(room(server.port, five).await);
    }
    for at_once in [1, 8, 64] {
        sends(&server, &people[..65], &rooms, at_once, time).await;
    }
    let large = room(server.port, &people).await;
    wakes(&server, &people, &large).await;
    idle_syncs(&server, &people, time).await;
    pages(&server, &people[0].1, &rooms[0], time).await;
    long_polls(&server, &people, 1_000).await;
    line("memory, at the end", format!("{:.0} MiB", server.rss()));
}
