//! The write path and the store, on SQLite and on PostgreSQL from one list.
//!
//! PostgreSQL: `HEYA_TEST_POSTGRES` is a URL of a database server on which databases may be made (`tests/run` starts
//! one); without it those runs are skipped, and say so.

use std::{path::PathBuf, sync::Arc};

use heya::{
    audit::{self, Verdict},
    clock::Clock,
    config::Config,
    error::{Code, forbidden},
    rooms::{
        append::Intent,
        city::{self, Opening},
        committer::Hint,
        create::{self, NewRoom},
        send::{Sending, send, txn_key},
    },
    server::Server,
    store,
};
use ruma::{OwnedRoomId, OwnedUserId, RoomVersionId, UserId};
use serde_json::json;

struct Place {
    config: Config,
    data: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

/// A place for a server on each database.
async fn places() -> Vec<Place> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut places = vec![place("sqlite:".to_owned())];
    match std::env::var("HEYA_TEST_POSTGRES") {
        Ok(url) => places.push(place(new_database(&url).await)),
        Err(_) => println!("skipped on PostgreSQL: HEYA_TEST_POSTGRES is not set (tests/run sets it)"),
    }
    places
}

fn place(database_url: String) -> Place {
    let data = std::env::temp_dir().join(format!("heya-test-{}", heya::clock::random_token(12)));
    let mut config = Config::default();
    config.open_profile(false).unwrap();
    config.server.server_name = "test.example".to_owned();
    config.server.data_dir.clone_from(&data);
    config.server.database_url = database_url;
    Place { config, data }
}

async fn new_database(url: &str) -> String {
    use sqlx::Connection as _;
    let name = format!("heya_{}", heya::clock::random_token(12).to_lowercase());
    let mut c = sqlx::PgConnection::connect(url).await.unwrap();
    let sql =
        format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut c).await.unwrap();
    format!("{}/{name}", url.rsplit_once('/').unwrap().0)
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:test.example")).unwrap()
}

async fn account(server: &Server, name: &str) -> OwnedUserId {
    let user_id = user(name);
    let row = store::accounts::Account {
        user_id: user_id.to_string(),
        kind: "open".to_owned(),
        facility: None,
        name: String::new(),
        profession: String::new(),
        display_name: Some(name.to_owned()),
        password_hash: None,
        password_own: false,
        status: "active".to_owned(),
    };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move { store::accounts::insert_account(batch.sql().await?, &row, "", 1).await })
        })
        .await
        .unwrap();
    user_id
}

async fn room(server: &Server, creator: &UserId, version: RoomVersionId) -> OwnedRoomId {
    let new = NewRoom {
        creator: creator.to_owned(),
        version,
        kind: "other".to_owned(),
        preset: "private_chat".to_owned(),
        creation_content: Default::default(),
        power_levels: None,
        initial_state: Vec::new(),
        name: Some("部屋".to_owned()),
        topic: None,
        invite: Vec::new(),
        is_direct: false,
    };
    server
        .commit(Hint::default(), move |batch| Box::pin(async move { create::create(batch, new).await }))
        .await
        .unwrap()
}

fn message(room_id: &OwnedRoomId, sender: &UserId, text: &str, txn: Option<&str>) -> Sending {
    Sending {
        room_id: room_id.clone(),
        sender: sender.to_owned(),
        kind: "m.room.message".into(),
        state_key: None,
        content: heya::rooms::append::canonical(json!({"msgtype": "m.text", "body": text})).unwrap(),
        txn: txn.map(|txn| txn_key(sender, Some("D"), format!("send {room_id}"), txn).unwrap()),
        ts: None,
        origin: None,
    }
}

fn topic(room_id: &OwnedRoomId, sender: &UserId, text: &str) -> Sending {
    Sending {
        kind: "m.room.topic".into(),
        state_key: Some(String::new()),
        content: heya::rooms::append::canonical(json!({"topic": text})).unwrap(),
        ..message(room_id, sender, "", None)
    }
}

async fn events(server: &Server, room_id: &OwnedRoomId) -> Vec<Arc<heya::rooms::pdu::Event>> {
    store::events::after(&mut server.db.read().await.unwrap(), room_id, 0, 100_000).await.unwrap()
}

#[tokio::test]
async fn every_room_version_makes_events_that_verify() {
    for place in places().await {
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let alice = account(&server, "alice").await;
        for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
            let room_id = room(&server, &alice, version.clone()).await;
            send(&server, message(&room_id, &alice, "x", None)).await.unwrap();
            let rules = version.rules().unwrap();
            let all = events(&server, &room_id).await;
            assert!(all.len() >= 7, "{}", all.len());
            let key = std::fs::read(place.data.join("keys/signing.key")).unwrap();
            let key = ruma::signatures::Ed25519KeyPair::from_der(&key, "heya1".to_owned()).unwrap();
            let public = ruma::serde::Base64::new(key.public_key().to_vec());
            let keys = [("ed25519:heya1".to_owned(), public)].into();
            let keys = [("test.example".to_owned(), keys)].into();
            for (i, event) in all.iter().enumerate() {
                let object = serde_json::from_str(&event.pdu).unwrap();
                ruma::signatures::verify_event(&keys, &object, &rules).unwrap();
                let hash = ruma::signatures::reference_hash(&object, &rules).unwrap();
                assert_eq!(event.event_id.as_str(), format!("${hash}"));
                if i > 0 {
                    assert_eq!(event.prev_events(), [all[i - 1].event_id.clone()], "the room is one line");
                    assert_eq!(event.depth, all[i - 1].depth + 1);
                }
            }
            if version == RoomVersionId::V12 {
                assert_eq!(room_id.as_str()[1..], all[0].event_id.as_str()[1..]);
            }
        }
    }
}

#[tokio::test]
async fn a_refused_unit_leaves_nothing_behind() {
    for place in places().await {
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let alice = account(&server, "alice").await;
        let room_id = room(&server, &alice, RoomVersionId::V12).await;
        let before = events(&server, &room_id).await.len();
        let position = server.live.position();
        // One batch: a good unit, one that fails after it has written events, SQL and account data, a good unit.
        let (a, b) = (message(&room_id, &alice, "one", None), message(&room_id, &alice, "two", None));
        let (failing_room, sender) = (room_id.clone(), alice.clone());
        let fails = server.commit(Hint { rooms: vec![room_id.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                batch
                    .append(Intent::message(
                        &failing_room,
                        &sender,
                        "m.room.message",
                        json!({"body": "gone"}),
                    )?)
                    .await?;
                batch
                    .append(Intent::state(
                        &failing_room,
                        &sender,
                        "m.room.topic",
                        "",
                        json!({"topic": "gone"}),
                    )?)
                    .await?;
                batch.account_data(&sender, "", "gone", "{}".to_owned());
                store::meta::set(batch.sql().await?, "gone", "1").await?;
                Err::<(), _>(forbidden("refused on purpose"))
            })
        });
        let (one, refused, two) = tokio::join!(send(&server, a), fails, send(&server, b));
        one.unwrap();
        two.unwrap();
        assert_eq!(refused.unwrap_err().code(), Some(Code::Forbidden));
        let after = events(&server, &room_id).await;
        assert_eq!(after.len(), before + 2);
        assert!(after.iter().all(|event| !event.pdu.contains("gone")));
        for pair in after.windows(2) {
            assert_eq!(pair[1].prev_events(), [pair[0].event_id.clone()]);
        }
        let mut conn = server.db.read().await.unwrap();
        assert_eq!(store::meta::value(&mut conn, "gone").await.unwrap(), None);
        assert_eq!(store::personal::account_data(&mut conn, alice.as_str(), "", "gone").await.unwrap(), None);
        assert_eq!(server.live.position(), position + 2);
        let view = server.live.room(&server.db, &room_id).await.unwrap().current().unwrap();
        assert_eq!(view.state.content_str(&ruma::events::StateEventType::RoomTopic, "", "topic"), None);
        assert_eq!(view.row.head, [after.last().unwrap().event_id.clone()]);
    }
}

#[tokio::test]
async fn the_state_at_every_position_is_what_the_events_say() {
    for place in places().await {
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let alice = account(&server, "alice").await;
        let room_id = room(&server, &alice, RoomVersionId::V11).await;
        // Many in one batch, and some in batches of their own.
        let burst = (0..40).map(|i| {
            let sending = if i % 3 == 0 {
                topic(&room_id, &alice, &format!("topic {}", i / 6))
            } else {
                message(&room_id, &alice, "x", None)
            };
            send(&server, sending)
        });
        for answer in futures(burst).await {
            answer.unwrap();
        }
        for i in 0..5 {
            send(&server, topic(&room_id, &alice, &format!("later {i}"))).await.unwrap();
        }
        let all = events(&server, &room_id).await;
        let mut conn = server.db.read().await.unwrap();
        let mut expected = std::collections::BTreeMap::new();
        for event in &all {
            let stored = store::rooms::state_before(&mut conn, &room_id, event.position).await.unwrap();
            let stored: std::collections::BTreeMap<_, _> = stored
                .iter()
                .map(|e| ((e.kind.to_string(), e.state_key.clone().unwrap()), e.event_id.clone()))
                .collect();
            assert_eq!(stored, expected, "before {}", event.position);
            if let Some(state_key) = &event.state_key {
                expected.insert((event.kind.to_string(), state_key.clone()), event.event_id.clone());
            }
        }
        let current = store::rooms::current_state(&mut conn, &room_id).await.unwrap();
        assert_eq!(current.len(), expected.len());
    }
}

/// A fork, as another server would bring it (DESIGN 6): an event off the room's line has a state of its own, a delta to
/// the line's, and the line does not notice.
#[tokio::test]
async fn an_event_off_the_line_has_its_own_state() {
    for place in places().await {
        let url = place.config.server.database_url.clone();
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let alice = account(&server, "alice").await;
        let room_id = room(&server, &alice, RoomVersionId::V12).await;
        for text in ["before", "after"] {
            send(&server, topic(&room_id, &alice, text)).await.unwrap();
            send(&server, message(&room_id, &alice, text, None)).await.unwrap();
        }
        let line = events(&server, &room_id).await;
        let topics: Vec<_> = line.iter().filter(|e| e.kind.to_string() == "m.room.topic").cloned().collect();
        let fork_at =
            line.iter().find(|e| e.content.get().contains("\"before\"") && !e.is_state()).unwrap().clone();
        // Two PDUs that follow the first message and not what came after it: a topic, and a message under that topic.
        let pdus = [
            ("$forked-topic", "m.room.topic", Some(""), json!({"topic": "fork"})),
            ("$forked-text", "m.room.message", None, json!({"msgtype": "m.text", "body": "fork"})),
        ];
        let url = if url == "sqlite:" {
            format!("sqlite:{}", place.data.join("heya.sqlite").display())
        } else {
            url
        };
        let (fork_order, mut position) = (fork_at.position + 1, line.last().unwrap().position);
        let mut previous = fork_at.event_id.to_string();
        for (id, (event_id, kind, state_key, content)) in (1_i64..).zip(pdus) {
            position += 1;
            let mut pdu = json!({"type": kind, "sender": alice, "room_id": room_id, "content": content,
                "origin_server_ts": 1, "depth": 9, "prev_events": [previous], "auth_events": []});
            if let Some(state_key) = state_key {
                pdu["state_key"] = state_key.into();
            }
            let parent = if id > 1 { (id - 1).to_string() } else { "NULL".to_owned() };
            change(&url, format!("INSERT INTO stored_states (id, room_id, parent, parent_order) VALUES ({id}, '{room_id}', {parent}, {fork_order})")).await;
            if id > 1 {
                change(&url, format!("INSERT INTO stored_state_changes (state_id, type, state_key, event_id) VALUES ({id}, 'm.room.topic', '', '{previous}')")).await;
            }
            let state_key = state_key.map_or("NULL".to_owned(), |key| format!("'{key}'"));
            change(&url, format!(
                "INSERT INTO events (position, event_id, room_id, room_order, depth, type, state_key, sender, pdu, outlier, rejected, soft_failed, state_id) \
                 VALUES ({position}, '{event_id}', '{room_id}', {position}, 9, '{kind}', {state_key}, '{alice}', '{pdu}', FALSE, FALSE, FALSE, {id})"
            )).await;
            change(&url, format!("UPDATE positions SET n = {position}")).await;
            previous = event_id.to_owned();
        }
        let mut conn = server.db.read().await.unwrap();
        let forked =
            store::events::by_ids(&mut conn, &["$forked-topic".to_owned(), "$forked-text".to_owned()])
                .await
                .unwrap();
        assert_eq!(forked.len(), 2);
        for event in &forked {
            assert!(store::rooms::is_off_the_line(&mut conn, event).await.unwrap());
            let state = store::rooms::state_at(&mut conn, event).await.unwrap();
            let topic = state.iter().find(|e| e.kind.to_string() == "m.room.topic").unwrap();
            // Before the forked topic the line's first one, before the forked text the forked one.
            let expected = if event.is_state() { topics[0].event_id.as_str() } else { "$forked-topic" };
            assert_eq!(topic.event_id.as_str(), expected);
            let members = state.iter().filter(|e| e.kind.to_string() == "m.room.member").count();
            assert_eq!(members, 1, "the rest is the line's");
        }
        // The line: its state at every place and now, in the database, in memory, and for whoever writes next.
        let now = store::rooms::current_state(&mut conn, &room_id).await.unwrap();
        assert!(
            now.iter().any(|e| e.event_id == topics[1].event_id)
                && !now.iter().any(|e| e.event_id == "$forked-topic")
        );
        let at_end = store::rooms::state_at(&mut conn, line.last().unwrap()).await.unwrap();
        assert!(at_end.iter().any(|e| e.event_id == topics[1].event_id));
        drop(conn);
        let next = send(&server, message(&room_id, &alice, "next", None)).await.unwrap();
        let after = events(&server, &room_id).await;
        let next = after.iter().find(|e| e.event_id == next).unwrap();
        assert_eq!(next.prev_events(), [line.last().unwrap().event_id.clone()]);
    }
}

#[tokio::test]
async fn a_transaction_id_counts_once_even_at_once_and_after_a_restart() {
    for place in places().await {
        let (server, task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let alice = account(&server, "alice").await;
        let room_id = room(&server, &alice, RoomVersionId::V12).await;
        let same =
            futures((0..20).map(|_| send(&server, message(&room_id, &alice, "once", Some("t1"))))).await;
        let first = same[0].as_ref().unwrap().clone();
        assert!(same.iter().all(|answer| *answer.as_ref().unwrap() == first));
        let n = events(&server, &room_id).await.len();
        drop(server);
        task.await.unwrap();
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let again = send(&server, message(&room_id, &alice, "once", Some("t1"))).await.unwrap();
        assert_eq!(again, first);
        assert_eq!(events(&server, &room_id).await.len(), n);
    }
}

#[tokio::test]
async fn memory_after_a_restart_is_memory_before_it() {
    for place in places().await {
        let (server, task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let alice = account(&server, "alice").await;
        let room_id = room(&server, &alice, RoomVersionId::V12).await;
        for i in 0..300 {
            send(&server, message(&room_id, &alice, &format!("{i}"), None)).await.unwrap();
        }
        let seen = |server: Arc<Server>| {
            let room_id = room_id.clone();
            async move {
                let room = server.live.room(&server.db, &room_id).await.unwrap();
                let view = room.current().unwrap();
                let mut state: Vec<_> = view.state.events().map(|e| e.event_id.clone()).collect();
                state.sort();
                (format!("{:?}", view.row), state, server.live.position())
            }
        };
        let before = seen(Arc::clone(&server)).await;
        drop(server);
        task.await.unwrap();
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        assert_eq!(seen(server).await, before);
    }
}

#[tokio::test]
async fn rooms_read_together_are_rooms_read_one_by_one() {
    for place in places().await {
        let (server, task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let alice = account(&server, "alice").await;
        let mut rooms = Vec::new();
        // More than are read at once.
        for i in 0..53 {
            let room_id = room(&server, &alice, RoomVersionId::V12).await;
            for n in 0..[0, 3, 100][i % 3] {
                send(&server, message(&room_id, &alice, &format!("{n}"), None)).await.unwrap();
            }
            for visibility in &["joined", "shared"][..i % 2 * 2] {
                let change = Sending {
                    kind: "m.room.history_visibility".into(),
                    state_key: Some(String::new()),
                    content: heya::rooms::append::canonical(json!({"history_visibility": visibility}))
                        .unwrap(),
                    ..message(&room_id, &alice, "", None)
                };
                send(&server, change).await.unwrap();
            }
            rooms.push(room_id);
        }
        drop(server);
        task.await.unwrap();
        let mut seen = Vec::new();
        for together in [false, true] {
            let (server, task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
            if together {
                let mut wanted = rooms.clone();
                wanted.push("!nothing:test.example".try_into().unwrap());
                server.live.prepare(&server.db, wanted).await.unwrap();
            }
            let mut all = Vec::new();
            for room_id in &rooms {
                assert_eq!(server.live.room_in_memory(room_id).is_some(), together);
                let (room, sight) = heya::rooms::history::sight(&server, &alice, room_id).await.unwrap();
                let view = room.current().unwrap();
                let mut state: Vec<_> = view.state.events().map(|e| e.event_id.clone()).collect();
                state.sort();
                let timeline = room.timeline.read();
                let events: Vec<_> = timeline.events.iter().map(|e| e.event_id.clone()).collect();
                all.push((format!("{:?} {sight:?}", view.row), state, events, timeline.complete_after));
            }
            seen.push(all);
            drop(server);
            task.await.unwrap();
        }
        assert_eq!(seen[0], seen[1]);
    }
}

#[tokio::test]
async fn search_finds_what_has_all_terms_newest_first() {
    for place in places().await {
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        // Rooms by their numbers, as the index knows them.
        let (here, there) = (7, 8);
        // 「毎」 stands in all, 「時」 in every second, 「稀」 in every seventh; nothing of it in another room.
        let has = |term: &str, n: i64| match term {
            "毎" => true,
            "時" => n % 2 == 0,
            "稀" => n % 7 == 0,
            _ => false,
        };
        let mut rows = Vec::new();
        for n in 1..=3_000 {
            let terms = ["毎", "時", "稀"].into_iter().filter(|term| has(term, n));
            rows.extend(terms.map(|term| (here, term.to_owned(), n)));
            rows.push((there, "無".to_owned(), n));
        }
        server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move { store::search::insert(batch.sql().await?, &rows).await })
            })
            .await
            .unwrap();
        for terms in [&["毎"][..], &["稀"], &["毎", "時"], &["稀", "毎", "時"], &["毎", "無"], &["無"], &[]]
        {
            for (before, limit) in [(i64::MAX, 200), (1_501, 10), (8, 200)] {
                let terms: Vec<String> = terms.iter().map(|term| (*term).to_owned()).collect();
                let mut conn = server.db.read().await.unwrap();
                let found = store::search::find(&mut conn, here, &terms, before, limit).await.unwrap();
                let expected: Vec<i64> = (1..=3_000)
                    .rev()
                    .filter(|n| *n < before && !terms.is_empty() && terms.iter().all(|term| has(term, *n)))
                    .take(usize::try_from(limit).unwrap())
                    .collect();
                assert_eq!(found, expected, "{terms:?} before {before}");
            }
        }
    }
}

#[tokio::test]
async fn a_closed_room_takes_nothing_from_anybody() {
    for place in places().await {
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        let alice = account(&server, "alice").await;
        let city_user = account(&server, "city").await;
        let (city_id, member) = (city_user.clone(), alice.clone());
        let (room_id, number) = server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move {
                    let opening = Opening {
                        kind: "association".to_owned(),
                        name: "会".to_owned(),
                        subject_key: None,
                        facility: None,
                        members: vec![member],
                        staff: Vec::new(),
                        notice: Some("開設しました".to_owned()),
                        case: None,
                    };
                    city::open(batch, &city_id, opening).await
                })
            })
            .await
            .unwrap();
        assert_eq!(number, 1);
        assert!(server.live.is_joined(&alice, &room_id), "the city's invitation was not accepted");
        send(&server, message(&room_id, &alice, "before", None)).await.unwrap();
        let (city_id, closing) = (city_user.clone(), room_id.clone());
        let closed = server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move { city::close(batch, &city_id, &closing, "終了します").await })
            })
            .await
            .unwrap();
        assert!(closed);
        let n = events(&server, &room_id).await.len();
        for sender in [&alice, &city_user] {
            for sending in [message(&room_id, sender, "after", None), topic(&room_id, sender, "after")] {
                assert_eq!(send(&server, sending).await.unwrap_err().code(), Some(Code::Forbidden));
            }
        }
        assert_eq!(events(&server, &room_id).await.len(), n);
    }
}

#[tokio::test]
async fn the_audit_log_shows_change_removal_and_truncation() {
    for place in places().await {
        let (server, _task) = Server::open(place.config.clone(), Clock::default()).await.unwrap();
        for i in 0..30 {
            server
                .commit(Hint::default(), move |batch| {
                    Box::pin(async move {
                        batch.audit(audit::Entry {
                            at: i,
                            action: format!("a{i}"),
                            ..audit::Entry::default()
                        });
                        Ok(())
                    })
                })
                .await
                .unwrap();
        }
        let heads = place.data.join("audit/heads");
        assert_eq!(audit::verify(&server.db, &heads).await.unwrap(), Verdict::Whole { entries: 30 });
        let url = match place.config.server.database_url.as_str() {
            "sqlite:" => format!("sqlite:{}", place.data.join("heya.sqlite").display()),
            url => url.to_owned(),
        };
        for (damage, repair) in [
            (
                "UPDATE audit SET entry = replace(entry, 'a7', 'b7') WHERE seq = 8",
                "UPDATE audit SET entry = replace(entry, 'b7', 'a7') WHERE seq = 8",
            ),
            ("UPDATE audit SET seq = 1000 WHERE seq = 12", "UPDATE audit SET seq = 12 WHERE seq = 1000"),
            ("UPDATE audit SET seq = -seq WHERE seq > 28", "UPDATE audit SET seq = -seq WHERE seq < 0"),
        ] {
            change(&url, damage).await;
            let verdict = audit::verify(&server.db, &heads).await.unwrap();
            assert!(matches!(verdict, Verdict::Broken { .. }), "not found: {damage}");
            change(&url, repair).await;
        }
        assert_eq!(audit::verify(&server.db, &heads).await.unwrap(), Verdict::Whole { entries: 30 });
    }
}

/// What somebody with a database tool could do.
async fn change(url: &str, sql: impl Into<String>) {
    let sql = sqlx::AssertSqlSafe(sql.into());
    use sqlx::Connection as _;
    if url.starts_with("sqlite:") {
        let mut c = sqlx::SqliteConnection::connect(url).await.unwrap();
        sqlx::query(sql).execute(&mut c).await.unwrap();
    } else {
        let mut c = sqlx::PgConnection::connect(url).await.unwrap();
        sqlx::query(sql).execute(&mut c).await.unwrap();
    }
}

/// Runs futures at once, in order of their answers' places.
async fn futures<F: Future>(list: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = list.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (future, answer) in &mut pinned {
            if answer.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => *answer = Some(done),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    pinned.into_iter().map(|(_, answer)| answer.unwrap()).collect()
}
