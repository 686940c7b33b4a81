//! What reading costs, and what long histories and many waiting clients do to it: `cargo bench --bench reading` (about
//! three minutes). Each part has a server of its own on SQLite, so that its memory is told apart.
//!
//! `HEYA_BENCH_PARTS=rooms,history,thumbnails,polls` runs some parts only. `HEYA_BENCH_MESSAGES` is the length of the long
//! room, 100,000 where it is not set; 1,000,000 takes some minutes and 4 GB of disk. Its events are written into the
//! database while the server is stopped (their hashes are not true, which reading does not check), its index likewise.
//! `HEYA_BENCH_POLLS` is the number of long polls; each takes a file descriptor on either side. `HEYA_BENCH_BINARY`
//! measures another build of the server.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark fails by panicking"
)]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Client, Server, account, line, machine, percentile, room, send};
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

type Person = (String, String);

const ROOMS: usize = 300;
const EVENTS: usize = 50;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn times(mut list: Vec<Duration>) -> String {
    list.sort_unstable();
    format!("p50 {:.1} ms  p99 {:.1} ms", percentile(&list, 50), percentile(&list, 99))
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

fn memory(server: &Server, when: &str) {
    line(&format!("memory, {when}"), format!("{:.0} MiB", server.rss()));
}

async fn get(client: &mut Client, path: &str) -> (Duration, Vec<u8>) {
    let begun = Instant::now();
    let body = client.raw("GET", path, String::new()).await;
    (begun.elapsed(), body.to_vec())
}

// ── Many rooms ──────────────────────────────────────────────────────────────────────────────

/// Who is in a room: the reader and four of twenty others.
fn five(people: &[Person], room: usize) -> Vec<Person> {
    let mut five: Vec<Person> = (0..4).map(|i| people[1 + (room * 4 + i) % 20].clone()).collect();
    five.push(people[0].clone());
    five
}

async fn make_rooms(server: &Server, people: &[Person]) -> Vec<String> {
    let mut rooms = Vec::new();
    let alone = 50;
    let begun = Instant::now();
    for i in 0..alone {
        rooms.push((i, room(server.port, &five(people, i)).await));
    }
    let rate = alone as f64 / begun.elapsed().as_secs_f64();
    line("rooms of five, all joined, one by one", format!("{rate:.1}/s"));
    let begun = Instant::now();
    let workers: Vec<_> = (0..8)
        .map(|worker| {
            let (port, people) = (server.port, people.to_vec());
            tokio::spawn(async move {
                let mut made = Vec::new();
                for i in (alone + worker..ROOMS).step_by(8) {
                    made.push((i, room(port, &five(&people, i)).await));
                }
                made
            })
        })
        .collect();
    for worker in workers {
        rooms.extend(worker.await.unwrap());
    }
    let rate = (ROOMS - alone) as f64 / begun.elapsed().as_secs_f64();
    line("rooms of five, all joined, 8 at once", format!("{rate:.1}/s"));
    rooms.sort_unstable();
    rooms.into_iter().map(|(_, room_id)| room_id).collect()
}

/// By all but the reader, who has read nothing: everything counts as unread.
async fn fill_rooms(server: &Server, people: &[Person], rooms: &[String]) {
    let next = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..16)
        .map(|_| {
            let (port, people) = (server.port, people.to_vec());
            let (rooms, next) = (rooms.to_vec(), Arc::clone(&next));
            tokio::spawn(async move {
                let mut clients = Vec::new();
                for (_, token) in &people[1..] {
                    clients.push(Client::connect(port, token).await);
                }
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= ROOMS * EVENTS {
                        break;
                    }
                    let (room, round) = (i % ROOMS, i / ROOMS);
                    let sender = (room * 4 + round % 4) % 20;
                    send(&mut clients[sender], &rooms[room]).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

fn first_sync(lazy: bool) -> String {
    let state = if lazy { "%7B%22lazy_load_members%22%3Atrue%7D" } else { "%7B%7D" };
    format!(
        "/_matrix/client/v3/sync?filter=%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A{EVENTS}%7D%2C%22state%22%3A{state}%7D%7D"
    )
}

fn joined(body: &[u8]) -> usize {
    let answer: Value = serde_json::from_slice(body).unwrap();
    answer["rooms"]["join"].as_object().map_or(0, serde_json::Map::len)
}

async fn syncs(server: &mut Server, token: &str, rooms: &[String]) {
    for (lazy, members) in [(true, "lazy members"), (false, "all members")] {
        server.stop();
        server.start_again();
        let mut client = Client::connect(server.port, token).await;
        let path = first_sync(lazy);
        let (first, body) = get(&mut client, &path).await;
        assert_eq!(joined(&body), ROOMS);
        let mut again = Vec::new();
        for _ in 0..5 {
            again.push(get(&mut client, &path).await.0);
        }
        again.sort_unstable();
        line(
            &format!("first sync, {ROOMS} rooms × {EVENTS}, {members}"),
            format!(
                "{:.0} ms from the disk, {:.0} ms from memory, {:.1} MB",
                ms(first),
                percentile(&again, 50),
                body.len() as f64 / 1e6
            ),
        );
        memory(server, "after that");
    }
    let mut client = Client::connect(server.port, token).await;
    let first = client.call("GET", &first_sync(true), Value::Null).await;
    let mut since = first["next_batch"].as_str().unwrap().to_owned();
    let path = format!("/_matrix/client/v3/sync?since={since}");
    let mut quiet = Vec::new();
    for _ in 0..2_000 {
        quiet.push(get(&mut client, &path).await.0);
    }
    quiet.sort_unstable();
    line("sync with nothing new", format!("p50 {:.2} ms", percentile(&quiet, 50)));
    let mut writer = Client::connect(server.port, token).await;
    let mut news = Vec::new();
    for i in 0..200 {
        send(&mut writer, &rooms[i % ROOMS]).await;
        let (took, body) = get(&mut client, &format!("/_matrix/client/v3/sync?since={since}")).await;
        assert_eq!(joined(&body), 1);
        let answer: Value = serde_json::from_slice(&body).unwrap();
        since = answer["next_batch"].as_str().unwrap().to_owned();
        news.push(took);
    }
    line("sync with one new message", times(news));
}

async fn slide(client: &mut Client, pos: Option<&str>) -> (Duration, Value) {
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let path = pos.map_or_else(|| path.to_owned(), |pos| format!("{path}?pos={pos}"));
    let state = [
        ["m.room.name", ""],
        ["m.room.avatar", ""],
        ["m.room.encryption", ""],
        ["m.room.member", "$LAZY"],
        ["m.room.member", "$ME"],
        ["m.room.create", ""],
        ["m.room.power_levels", ""],
    ];
    let on = json!({"enabled": true});
    let body = json!({
        "lists": {"all": {"ranges": [[0, 19]], "timeline_limit": 20, "required_state": state}},
        "extensions": {"to_device": on, "e2ee": on, "account_data": on, "receipts": on, "typing": on},
    })
    .to_string();
    let begun = Instant::now();
    let answer = client.raw("POST", &path, body).await;
    let took = begun.elapsed();
    (took, serde_json::from_slice(&answer).unwrap())
}

async fn sliding(server: &mut Server, token: &str, rooms: &[String]) {
    server.stop();
    server.start_again();
    let mut client = Client::connect(server.port, token).await;
    let (cold, answer) = slide(&mut client, None).await;
    assert_eq!(answer["rooms"].as_object().unwrap().len(), 20);
    let mut again = Vec::new();
    let mut pos = String::new();
    for _ in 0..10 {
        let (took, answer) = slide(&mut client, None).await;
        pos = answer["pos"].as_str().unwrap().to_owned();
        again.push(took);
    }
    again.sort_unstable();
    line(
        &format!("sliding sync, first window, 20 of {ROOMS}"),
        format!("{:.0} ms from the disk, {:.1} ms from memory", ms(cold), percentile(&again, 50)),
    );
    let (mut quiet, mut news) = (Vec::new(), Vec::new());
    let mut writer = Client::connect(server.port, token).await;
    for i in 0..200 {
        let (took, answer) = slide(&mut client, Some(&pos)).await;
        pos = answer["pos"].as_str().unwrap().to_owned();
        quiet.push(took);
        send(&mut writer, &rooms[i % ROOMS]).await;
        let (took, answer) = slide(&mut client, Some(&pos)).await;
        pos = answer["pos"].as_str().unwrap().to_owned();
        assert!(answer["rooms"].get(&rooms[i % ROOMS]).is_some());
        news.push(took);
    }
    line("sliding sync, nothing new", times(quiet));
    line("sliding sync, one new message", times(news));
    memory(server, "after sliding syncs");
}

async fn many_rooms() {
    let (mut server, _) = Server::start();
    let mut people = Vec::new();
    for i in 0..21 {
        people.push(account(server.port, &format!("bench{i}")).await);
    }
    let rooms = make_rooms(&server, &people).await;
    fill_rooms(&server, &people, &rooms).await;
    memory(&server, &format!("{ROOMS} rooms × {EVENTS} events written"));
    syncs(&mut server, &people[0].1, &rooms).await;
    sliding(&mut server, &people[0].1, &rooms).await;
}

// ── One long room ───────────────────────────────────────────────────────────────────────────

/// What stands in one of ten thousand messages.
const RARE: &str = "誤嚥性肺炎";

/// What people in home care write, different each time and the same in every run.
fn text(i: usize) -> String {
    const WHEN: [&str; 8] = ["今朝", "昨夜", "本日午前", "夕食後", "訪問時", "入浴後", "先週から", "昨日"];
    const WHAT: [&str; 10] = [
        "血圧が高めです",
        "微熱があります",
        "食欲が戻りました",
        "服薬を確認しました",
        "水分が摂れています",
        "痛みの訴えがあります",
        "褥瘡の処置をしました",
        "むくみが少しあります",
        "よく眠れています",
        "咳が続いています",
    ];
    const SO: [&str; 9] = [
        "経過を見ます",
        "主治医に報告しました",
        "ご家族に伝えました",
        "明日また訪問します",
        "記録をご覧ください",
        "薬局に問い合わせ中です",
        "次回のリハビリで確認します",
        "変わりありません",
        "相談したいです",
    ];
    let rare = if i % 10_000 == 5_000 { RARE } else { "" };
    format!(
        "{}、{}。体温{}.{}、SpO2 {}%。{rare}{}。",
        WHEN[i % 8],
        WHAT[(i / 8) % 10],
        35 + (i / 3) % 4,
        i % 10,
        90 + (i / 7) % 10,
        SO[(i / 80) % 9]
    )
}

/// Writes messages into a room, in the way of the newest one there, and what search finds them by.
async fn fill(server: &Server, room_id: &str, n: usize) {
    let options = SqliteConnectOptions::new().filename(server.data.join("heya.sqlite"));
    let mut db = SqliteConnection::connect_with(&options).await.unwrap();
    let run = |sql: &'static str| sqlx::query(sql);
    run("PRAGMA synchronous = OFF").execute(&mut db).await.unwrap();
    run("PRAGMA cache_size = -200000").execute(&mut db).await.unwrap();
    let (pdu, sender, depth): (String, String, i64) = sqlx::query_as(
        "SELECT pdu, sender, depth FROM events WHERE room_id = $1 AND type = 'm.room.message' \
         ORDER BY room_order DESC LIMIT 1",
    )
    .bind(room_id)
    .fetch_one(&mut db)
    .await
    .unwrap();
    let (begin,): (i64,) =
        sqlx::query_as("SELECT n FROM positions WHERE id = 1").fetch_one(&mut db).await.unwrap();
    let mut pdu: Value = serde_json::from_str(&pdu).unwrap();
    run("BEGIN").execute(&mut db).await.unwrap();
    let id = |i: usize| format!("$bench{i:038}");
    let mut terms: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let all: Vec<usize> = (0..n).collect();
    for chunk in all.chunks(1_000) {
        let mut rows = Vec::new();
        for &i in chunk {
            let (body, place) = (text(i), i64::try_from(i).unwrap() + 1);
            for term in heya::search::terms(&body) {
                terms.entry(term).or_default().push(begin + place);
            }
            pdu["content"]["body"] = body.into();
            pdu["depth"] = (depth + place).into();
            if i > 0 {
                pdu["prev_events"] = json!([id(i - 1)]);
            }
            rows.push((begin + place, id(i), depth + place, pdu.to_string()));
        }
        let mut query = sqlx::QueryBuilder::<sqlx::Sqlite>::new(
            "INSERT INTO events (position, event_id, room_id, room_order, depth, type, sender, pdu, outlier, rejected, \
             soft_failed) ",
        );
        query.push_values(&rows, |mut b, (position, event_id, depth, pdu)| {
            b.push_bind(*position)
                .push_bind(event_id)
                .push_bind(room_id)
                .push_bind(*position)
                .push_bind(*depth)
                .push("'m.room.message'")
                .push_bind(&sender)
                .push_bind(pdu)
                .push("FALSE, FALSE, FALSE");
        });
        query.build().execute(&mut db).await.unwrap();
    }
    // In the order of the primary key.
    let (room,): (i64,) =
        sqlx::query_as("SELECT position FROM events WHERE room_id = $1 AND type = 'm.room.create'")
            .bind(room_id)
            .fetch_one(&mut db)
            .await
            .unwrap();
    for (term, positions) in &terms {
        for chunk in positions.chunks(50_000) {
            sqlx::query(
                "INSERT INTO search_terms (term, room, position) SELECT $1, $2, value FROM json_each($3) WHERE TRUE \
                 ON CONFLICT DO NOTHING",
            )
            .bind(term)
            .bind(room)
            .bind(serde_json::to_string(chunk).unwrap())
            .execute(&mut db)
            .await
            .unwrap();
        }
    }
    let end = begin + i64::try_from(n).unwrap();
    sqlx::query("UPDATE rooms SET head = $1, depth = $2, last_position = $3 WHERE room_id = $4")
        .bind(json!([id(n - 1)]).to_string())
        .bind(depth + end - begin)
        .bind(end)
        .bind(room_id)
        .execute(&mut db)
        .await
        .unwrap();
    sqlx::query("UPDATE positions SET n = $1 WHERE id = 1").bind(end).execute(&mut db).await.unwrap();
    sqlx::query("UPDATE followers SET position = $1").bind(end).execute(&mut db).await.unwrap();
    run("COMMIT").execute(&mut db).await.unwrap();
    let (rows,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM search_terms").fetch_one(&mut db).await.unwrap();
    db.close().await.unwrap();
    let bytes = std::fs::metadata(server.data.join("heya.sqlite")).map_or(0, |file| file.len());
    line(
        &format!("a room of {n} messages"),
        format!("{rows} entries of the index, {:.1} GB on disk", bytes as f64 / 1e9),
    );
}

/// Median time of a send, of so many one after another.
async fn send_times(server: &Server, token: &str, room_id: &str, n: usize) -> f64 {
    let mut client = Client::connect(server.port, token).await;
    let mut list = Vec::new();
    for _ in 0..n {
        let begun = Instant::now();
        send(&mut client, room_id).await;
        list.push(begun.elapsed());
    }
    list.sort_unstable();
    percentile(&list, 50)
}

async fn through_the_past(server: &Server, token: &str, room_id: &str, n: usize) {
    let mut client = Client::connect(server.port, token).await;
    let mut from = String::new();
    let mut list = Vec::new();
    let mut events = 0;
    while events < n.min(100_000) {
        let path = format!("/_matrix/client/v3/rooms/{room_id}/messages?dir=b&limit=100{from}");
        let (took, body) = get(&mut client, &path).await;
        let answer: Value = serde_json::from_slice(&body).unwrap();
        events += answer["chunk"].as_array().unwrap().len();
        list.push(took);
        let Some(end) = answer["end"].as_str() else { break };
        from = format!("&from={end}");
    }
    let middle = |part: &[Duration]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        percentile(&part, 50)
    };
    // The very first page is of events in memory: those after it are of the database, as the last ones are.
    let some = (list.len() / 10).clamp(1, 50);
    let (first, last) = (middle(&list[1..=some]), middle(&list[list.len() - some..]));
    let rate = events as f64 / list.iter().sum::<Duration>().as_secs_f64();
    line(
        &format!("/messages through {events} events"),
        format!("first pages {first:.2} ms, last {last:.2} ms: × {:.2}; {rate:.0} events/s", last / first),
    );
}

async fn searches(server: &Server, token: &str) {
    let mut client = Client::connect(server.port, token).await;
    for (words, what) in
        [(RARE, "in 1 of 10,000"), ("服薬", "in 1 of 10"), ("血圧 主治医", "in 1 of 90"), ("体温", "in all")]
    {
        let body =
            json!({"search_categories": {"room_events": {"search_term": words, "order_by": "recent"}}});
        let mut list = Vec::new();
        for _ in 0..7 {
            let begun = Instant::now();
            let answer = client.call("POST", "/_matrix/client/v3/search", body.clone()).await;
            list.push(begun.elapsed());
            let results = answer["search_categories"]["room_events"]["results"].as_array().unwrap();
            assert!(!results.is_empty(), "{words} is not found");
        }
        list.sort_unstable();
        line(&format!("search, two words or one, {what}"), format!("{:.1} ms", percentile(&list, 50)));
    }
}

async fn long_room() {
    let n = setting("HEYA_BENCH_MESSAGES", 100_000);
    let (mut server, _) = Server::start();
    let mut people = Vec::new();
    for i in 0..5 {
        people.push(account(server.port, &format!("bench{i}")).await);
    }
    let token = people[0].1.clone();
    let room_id = room(server.port, &people).await;
    send_times(&server, &token, &room_id, 50).await;
    let hundredth = send_times(&server, &token, &room_id, 300).await;
    memory(&server, "room of 350 messages");
    // The index catches up, so that its cursor stands at the end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.stop();
    fill(&server, &room_id, n).await;
    let took = server.start_again();
    line("start-up after that", format!("{:.0} ms", ms(took)));
    send_times(&server, &token, &room_id, 50).await;
    let latest = send_times(&server, &token, &room_id, 300).await;
    line(
        &format!("a send, event 100 against {n}"),
        format!("{hundredth:.2} ms, {latest:.2} ms: × {:.2}", latest / hundredth),
    );
    memory(&server, "after the sends");
    through_the_past(&server, &token, &room_id, n).await;
    memory(&server, "after the pages");
    searches(&server, &token).await;
    memory(&server, "after the searches");
}

// ── Pictures ────────────────────────────────────────────────────────────────────────────────

/// A picture as a telephone makes it: 12 million pixels, none like another.
fn picture(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let image = image::RgbImage::from_fn(4_000, 3_000, |x, y| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let noise = u8::try_from(state % 16).unwrap();
        let shade = |n: u32| u8::try_from((n + seed * 37) % 240).unwrap() + noise;
        image::Rgb([shade(x / 16), shade(y / 12), shade((x + y) / 28)])
    });
    let mut out = std::io::Cursor::new(Vec::new());
    image.write_to(&mut out, image::ImageFormat::Jpeg).unwrap();
    out.into_inner()
}

async fn thumbnails() {
    let (server, _) = Server::start();
    let (_, token) = account(server.port, "bench0").await;
    let mut client = Client::connect(server.port, &token).await;
    let count = 24;
    let mut bytes = 0;
    let mut uris = Vec::new();
    for seed in 0..count {
        let body = picture(seed);
        bytes = body.len();
        uris.push(client.upload(body, "image/jpeg").await);
    }
    memory(&server, "before thumbnails");
    let path = |uri: &str| {
        let media = uri.trim_start_matches("mxc://");
        format!("/_matrix/client/v1/media/thumbnail/{media}?width=320&height=240&method=scale")
    };
    let begun = Instant::now();
    let workers: Vec<_> = uris
        .chunks(uris.len() / 2)
        .map(|part| {
            let (port, token, paths) =
                (server.port, token.clone(), part.iter().map(|u| path(u)).collect::<Vec<_>>());
            tokio::spawn(async move {
                let mut client = Client::connect(port, &token).await;
                for path in paths {
                    client.raw("GET", &path, String::new()).await;
                }
            })
        })
        .collect();
    let mut most: f64 = 0.0;
    while !workers.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(server.rss());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for worker in workers {
        worker.await.unwrap();
    }
    let rate = f64::from(count) / begun.elapsed().as_secs_f64();
    line(
        "thumbnails made, 2 at once",
        format!(
            "{rate:.1}/s of 4000 × 3000 JPEG of {:.1} MB; memory at most {most:.0} MiB",
            bytes as f64 / 1e6
        ),
    );
    let begun = Instant::now();
    let mut n = 0_usize;
    while begun.elapsed() < Duration::from_secs(3) {
        client.raw("GET", &path(&uris[n % uris.len()]), String::new()).await;
        n += 1;
    }
    line("thumbnails there already", format!("{:.0}/s", n as f64 / begun.elapsed().as_secs_f64()));
    memory(&server, "after thumbnails");
}

// ── Who waits ───────────────────────────────────────────────────────────────────────────────

/// How many files this process may have open; the server inherits that.
fn files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(1_024)
}

async fn long_polls() {
    let (server, _) = Server::start();
    let mut people = Vec::new();
    for i in 0..100 {
        people.push(account(server.port, &format!("bench{i}")).await);
    }
    for five in people.chunks(5) {
        room(server.port, five).await;
    }
    let n = setting("HEYA_BENCH_POLLS", 10_000).min(files().saturating_sub(200));
    let before = server.rss();
    let mut held = Vec::new();
    let begun = Instant::now();
    for i in 0..n {
        let mut client = Client::connect(server.port, &people[i % people.len()].1).await;
        let first = client.call("GET", "/_matrix/client/v3/sync", Value::Null).await;
        let since = first["next_batch"].as_str().unwrap().to_owned();
        held.push(tokio::spawn(async move {
            let path = format!("/_matrix/client/v3/sync?since={since}&timeout=300000");
            client.raw("GET", &path, String::new()).await
        }));
    }
    let took = begun.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!held.iter().any(tokio::task::JoinHandle::is_finished), "some polls ended ({took:.0} s)");
    let rss = server.rss();
    line(
        &format!("memory with {n} long polls held"),
        format!("{rss:.0} MiB (before: {before:.0} MiB): {:.1} KiB each", (rss - before) * 1024.0 / n as f64),
    );
    for poll in held {
        poll.abort();
    }
}

#[tokio::main]
async fn main() {
    let parts = std::env::var("HEYA_BENCH_PARTS").ok();
    let wanted = |part: &str| parts.as_ref().is_none_or(|parts| parts.split(',').any(|one| one == part));
    line("machine", machine());
    if wanted("rooms") {
        many_rooms().await;
    }
    if wanted("history") {
        long_room().await;
    }
    if wanted("thumbnails") {
        thumbnails().await;
    }
    if wanted("polls") {
        long_polls().await;
    }
}
