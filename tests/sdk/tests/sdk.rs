//! Two people of a city with matrix-rust-sdk, each with the client certificate of their terminal: log in, sync, write,
//! read, receipts, typing, redaction; by sliding sync; and in a city that allows encryption: verify each other, talk encrypted, and get
//! old messages back on a new device.
//!
//! `HEYA_CITY` and `HEYA_CITY_ENCRYPTED` name the JSON file of a running city (`python -m harness up`, see `tests/run`);
//! without it a test is skipped and says so.

// The sync's future is nested deeper than the compiler follows by itself.
#![recursion_limit = "256"]

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use matrix_sdk::{
    Client, SessionMeta, SlidingSyncList, SlidingSyncMode,
    config::SyncSettings,
    deserialized_responses::{EncryptionInfo, VerificationLevel, VerificationState},
    encryption::{
        BackupDownloadStrategy, EncryptionSettings,
        verification::{SasVerification, Verification, VerificationRequest},
    },
    ruma::{
        OwnedRoomId,
        api::client::receipt::create_receipt::v3::ReceiptType,
        events::{
            StateEventType,
            receipt::ReceiptThread,
            room::message::{OriginalSyncRoomMessageEvent, RoomMessageEventContent},
        },
    },
    sliding_sync::Version,
};
use tokio::sync::mpsc;

struct City {
    url: String,
    ca: Vec<u8>,
    people: Vec<Person>,
}

struct Person {
    login_id: String,
    password: String,
    identity: Vec<u8>,
}

fn city(variable: &str) -> Option<City> {
    let Ok(path) = std::env::var(variable) else {
        println!("skipped: {variable} names no running city (tests/run sets it)");
        return None;
    };
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let people = json["people"]
        .as_array()
        .unwrap()
        .iter()
        .map(|person| {
            let mut identity = std::fs::read(text(&person["cert"])).unwrap();
            identity.extend(std::fs::read(text(&person["key"])).unwrap());
            Person { login_id: text(&person["login_id"]), password: text(&person["password"]), identity }
        })
        .collect();
    Some(City { url: text(&json["base_url"]), ca: std::fs::read(text(&json["ca"])).unwrap(), people })
}

impl City {
    fn http(&self, identity: Option<&[u8]>) -> reqwest::Client {
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_pem(&self.ca).unwrap()]);
        if let Some(identity) = identity {
            builder = builder.identity(reqwest::Identity::from_pem(identity).unwrap());
        }
        builder.build().unwrap()
    }

    async fn client(&self, person: &Person) -> Client {
        let client = Client::builder()
            .homeserver_url(&self.url)
            .http_client(self.http(Some(&person.identity)))
            .with_encryption_settings(EncryptionSettings {
                // Where encryption is forbidden this finds out so, and goes on.
                auto_enable_cross_signing: true,
                backup_download_strategy: BackupDownloadStrategy::OneShot,
                auto_enable_backups: false,
            })
            .build()
            .await
            .unwrap();
        client
            .matrix_auth()
            .login_username(&person.login_id, &person.password)
            .initial_device_display_name("matrix-rust-sdk")
            .send()
            .await
            .unwrap();
        client
    }
}

/// Simplified sliding sync (MSC4186), as Element X uses it: found by itself, a growing list, then live.
#[tokio::test(flavor = "multi_thread")]
async fn sliding_sync_brings_rooms_and_messages() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(city) = city("HEYA_CITY") else { return };
    let alice = city.client(&city.people[0]).await;
    let bob = city.client(&city.people[1]).await;
    let offered = bob.available_sliding_sync_versions().await;
    assert!(offered.iter().any(|version| matches!(version, Version::Native)), "{offered:?}");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    bob.add_event_handler(move |event: OriginalSyncRoomMessageEvent| {
        let heard = heard.clone();
        async move {
            let _ = heard.send(event);
        }
    });
    alice.sync_once(SyncSettings::default()).await.unwrap();
    let list = SlidingSyncList::builder("all")
        .sync_mode(SlidingSyncMode::new_growing(5))
        .timeline_limit(5)
        .required_state(vec![
            (StateEventType::RoomName, String::new()),
            (StateEventType::RoomMember, "$LAZY".to_owned()),
        ]);
    let sync = bob
        .sliding_sync("rooms")
        .unwrap()
        .version(Version::Native)
        .add_list(list)
        .with_all_extensions()
        .build()
        .await
        .unwrap();
    let mut answers = std::pin::pin!(sync.sync());
    let within = Duration::from_secs(20);
    let room_id: OwnedRoomId = loop {
        let answer = tokio::time::timeout(within, answers.next()).await.expect("no answer").expect("no end");
        answer.unwrap();
        let both = |room: &matrix_sdk::Room| bob.get_room(room.room_id()).is_some();
        if let Some(room) = alice.joined_rooms().into_iter().find(both) {
            break room.room_id().to_owned();
        }
    };
    let theirs = bob.get_room(&room_id).unwrap();
    assert_eq!(theirs.name(), alice.get_room(&room_id).unwrap().name());
    let sent = alice.get_room(&room_id).unwrap();
    let sent = sent.send(RoomMessageEventContent::text_plain("朝の体温は三十七度二分です")).await.unwrap();
    let event_id = sent.response.event_id;
    let listening = async {
        loop {
            tokio::select! {
                answer = answers.next() => {
                    answer.expect("no end").unwrap();
                }
                Some(event) = hearing.recv() => {
                    if event.event_id == event_id {
                        return event;
                    }
                }
            }
        }
    };
    let got = tokio::time::timeout(within, listening).await.expect("not heard");
    assert_eq!(got.content.body(), "朝の体温は三十七度二分です");
    assert_eq!(got.sender, alice.user_id().unwrap());
    bob.logout().await.unwrap();
    alice.logout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_write_to_each_other() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(city) = city("HEYA_CITY") else { return };
    let alice = city.client(&city.people[0]).await;
    let bob = city.client(&city.people[1]).await;
    let (heard, mut hearing) = mpsc::unbounded_channel();
    bob.add_event_handler(move |event: OriginalSyncRoomMessageEvent| {
        let heard = heard.clone();
        async move {
            let _ = heard.send(event);
        }
    });
    for client in [&alice, &bob] {
        client.sync_once(SyncSettings::default()).await.unwrap();
    }
    let room_id: OwnedRoomId = alice
        .joined_rooms()
        .iter()
        .map(|room| room.room_id().to_owned())
        .find(|id| bob.get_room(id).is_some())
        .expect("the city opened a room for both");
    let syncing = Arc::new(bob.clone());
    let task =
        tokio::spawn(
            async move { syncing.sync(SyncSettings::default().timeout(Duration::from_secs(20))).await },
        );
    let room = alice.get_room(&room_id).unwrap();
    room.typing_notice(true).await.unwrap();
    let sent = room.send(RoomMessageEventContent::text_plain("昨夜から発熱があります")).await.unwrap();
    let event_id = sent.response.event_id;
    let got = loop {
        let event =
            tokio::time::timeout(Duration::from_secs(20), hearing.recv()).await.expect("not heard").unwrap();
        if event.event_id == event_id {
            break event;
        }
    };
    assert_eq!(got.content.body(), "昨夜から発熱があります");
    assert_eq!(got.sender, alice.user_id().unwrap());
    let theirs = bob.get_room(&room_id).unwrap();
    theirs.send_single_receipt(ReceiptType::Read, ReceiptThread::Unthreaded, event_id.clone()).await.unwrap();
    let members = theirs.members(matrix_sdk::RoomMemberships::JOIN).await.unwrap();
    assert!(members.len() >= 3, "{}", members.len());
    room.redact(&event_id, Some("間違い"), None).await.unwrap();
    let meta: &SessionMeta = alice.session_meta().unwrap();
    assert_eq!(meta.user_id.localpart(), city.people[0].login_id);
    task.abort();
    alice.logout().await.unwrap();
    assert!(alice.whoami().await.is_err(), "the session went on after the logout");
}

#[tokio::test]
async fn each_factor_alone_fails() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(city) = city("HEYA_CITY") else { return };
    let person = &city.people[0];
    let without = Client::builder().homeserver_url(&city.url).http_client(city.http(None)).build().await;
    // Even discovery of the versions needs the certificate; where the builder does not ask, the login is refused.
    if let Ok(client) = without {
        let refused = client.matrix_auth().login_username(&person.login_id, &person.password).send().await;
        assert!(refused.is_err(), "logged in without a certificate");
    }
    let client = Client::builder()
        .homeserver_url(&city.url)
        .http_client(city.http(Some(&person.identity)))
        .build()
        .await
        .unwrap();
    let refused = client.matrix_auth().login_username(&person.login_id, "wrong").send().await;
    assert!(refused.is_err(), "logged in with a wrong password");
}

/// Asks until there is an answer.
async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..300 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} did not happen within 30 seconds");
}

fn keep_syncing(client: &Client) -> tokio::task::JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        let settings = SyncSettings::default().timeout(Duration::from_secs(10));
        let _ = client.sync(settings).await;
    })
}

/// Compares emoji, as two people do who sit side by side.
async fn verify(asking: &Client, asked: &Client) {
    let (me, them) = (asking.user_id().unwrap(), asked.user_id().unwrap());
    let identity = until("the other's identity", async || {
        asking.encryption().request_user_identity(them).await.unwrap()
    })
    .await;
    assert!(!identity.is_verified());
    let request: VerificationRequest = identity.request_verification().await.unwrap();
    let flow = request.flow_id().to_owned();
    let theirs =
        until("the request", async || asked.encryption().get_verification_request(me, &flow).await).await;
    theirs.accept().await.unwrap();
    until("the acceptance", async || request.is_ready().then_some(())).await;
    let mine = request.start_sas().await.unwrap().unwrap();
    let theirs: SasVerification =
        until("the start", async || match asked.encryption().get_verification(me, &flow).await {
            Some(Verification::SasV1(sas)) => Some(sas),
            _ => None,
        })
        .await;
    theirs.accept().await.unwrap();
    let emoji = async |sas: &SasVerification| {
        until("the emoji", async || sas.can_be_presented().then(|| sas.emoji()).flatten()).await
    };
    let seen = (emoji(&mine).await, emoji(&theirs).await);
    assert_eq!(seen.0.map(|one| one.symbol), seen.1.map(|one| one.symbol));
    mine.confirm().await.unwrap();
    theirs.confirm().await.unwrap();
    until("the end", async || (mine.is_done() && theirs.is_done()).then_some(())).await;
    for (client, other) in [(asking, them), (asked, me)] {
        until("the trust", async || {
            let identity = client.encryption().get_user_identity(other).await.unwrap()?;
            identity.is_verified().then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_verify_each_other_and_talk_encrypted() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(city) = city("HEYA_CITY_ENCRYPTED") else { return };
    let alice = city.client(&city.people[0]).await;
    let bob = city.client(&city.people[1]).await;
    let (heard, mut hearing) = mpsc::unbounded_channel();
    bob.add_event_handler(move |event: OriginalSyncRoomMessageEvent, how: Option<EncryptionInfo>| {
        let heard = heard.clone();
        async move {
            let _ = heard.send((event, how));
        }
    });
    let mut syncing = Vec::new();
    for client in [&alice, &bob] {
        client.sync_once(SyncSettings::default()).await.unwrap();
        syncing.push(keep_syncing(client));
        client.encryption().wait_for_e2ee_initialization_tasks().await;
        // The first identity took no password. The library asks for its own keys beside uploading and signing them, before
        // its first sync; where the answer is from before the signature, no later sync says that anything changed (a first
        // sync has no device_lists), so the keys are asked for again here.
        until("the device signed by its owner", async || {
            client.encryption().request_user_identity(client.user_id().unwrap()).await.unwrap()?;
            client.encryption().get_own_device().await.unwrap()?.is_cross_signed_by_owner().then_some(())
        })
        .await;
    }
    let room = alice.create_dm(bob.user_id().unwrap()).await.unwrap();
    until("the invitation", async || bob.get_room(room.room_id())).await.join().await.unwrap();
    until("both in the room that alice knows as theirs", async || {
        let known = alice.get_dm_room(bob.user_id().unwrap())?;
        (known.room_id() == room.room_id() && known.joined_members_count() == 2).then_some(())
    })
    .await;
    assert!(room.latest_encryption_state().await.unwrap().is_encrypted());
    // The library drops a request whose device it has not heard of, and bob asks for alice's devices only after the sync
    // that showed him the room.
    until("alice's device in bob's list", async || {
        let devices = bob.encryption().get_user_devices(alice.user_id().unwrap()).await.unwrap();
        devices.get(alice.device_id().unwrap()).map(|_| ())
    })
    .await;
    verify(&alice, &bob).await;
    let mut sent = Vec::new();
    for text in ["昨夜から発熱があります", "明日の朝に伺います"] {
        let event_id = room.send(RoomMessageEventContent::text_plain(text)).await.unwrap().response.event_id;
        let (event, how) = loop {
            let got = tokio::time::timeout(Duration::from_secs(30), hearing.recv())
                .await
                .expect("not heard")
                .unwrap();
            if got.0.event_id == event_id {
                break got;
            }
        };
        assert_eq!(event.content.body(), text);
        // The megolm session began with the verification itself, so it may still count as one of before the trust; what
        // matters here is that the device is one that its owner signed.
        let state = how.expect("not encrypted").verification_state.clone();
        assert!(
            matches!(
                state,
                VerificationState::Verified
                    | VerificationState::Unverified(VerificationLevel::UnverifiedIdentity)
            ),
            "{state:?}"
        );
        sent.push((event_id, text));
    }
    // The server has nothing to read.
    let raw = city.http(Some(&city.people[0].identity));
    let url = format!("{}/_matrix/client/v3/rooms/{}/event/{}", city.url, room.room_id(), sent[0].0);
    let stored = raw.get(url).bearer_auth(alice.access_token().unwrap()).send().await.unwrap();
    let stored = stored.text().await.unwrap();
    assert!(stored.contains("m.room.encrypted") && !stored.contains("発熱"), "{stored}");
    // A backup, and another device that gets everything back with the recovery key.
    let recovery_key = alice.encryption().recovery().enable().wait_for_backups_to_upload().await.unwrap();
    assert!(alice.encryption().backups().fetch_exists_on_server().await.unwrap());
    let second = city.client(&city.people[0]).await;
    second.sync_once(SyncSettings::default()).await.unwrap();
    syncing.push(keep_syncing(&second));
    second.encryption().wait_for_e2ee_initialization_tasks().await;
    let theirs = second.get_room(room.room_id()).unwrap();
    assert!(theirs.event(&sent[0].0, None).await.unwrap().encryption_info().is_none(), "read without a key");
    second.encryption().recovery().recover(&recovery_key).await.unwrap();
    for (event_id, text) in &sent {
        let event = until("the old message", async || {
            theirs.event(event_id, None).await.ok().filter(|event| event.encryption_info().is_some())
        })
        .await;
        assert!(event.raw().json().get().contains(text));
    }
    let own = second.encryption().get_own_device().await.unwrap().unwrap();
    assert!(own.is_cross_signed_by_owner());
    // Bob's messages reach the new device, too: his device lists were brought up to date.
    let answer = bob.get_room(room.room_id()).unwrap();
    until("the new device in bob's list", async || {
        let devices = bob.encryption().get_user_devices(alice.user_id().unwrap()).await.unwrap();
        devices.get(second.device_id().unwrap()).map(|_| ())
    })
    .await;
    let event_id =
        answer.send(RoomMessageEventContent::text_plain("承知しました")).await.unwrap().response.event_id;
    let event = until("the answer on the new device", async || {
        theirs.event(&event_id, None).await.ok().filter(|event| event.encryption_info().is_some())
    })
    .await;
    assert!(event.raw().json().get().contains("承知しました"));
    for task in syncing {
        task.abort();
    }
}
