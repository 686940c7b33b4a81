//! Two people of a city with matrix-rust-sdk, each with the client certificate of their terminal: log in, sync, write,
//! read, receipts, typing, redaction.
//!
//! `HEYA_CITY` names the JSON file of a running city (`python -m harness up`, see `tests/run`); without it the test is
//! skipped and says so.

use std::{sync::Arc, time::Duration};

use matrix_sdk::{
    Client, SessionMeta,
    config::SyncSettings,
    ruma::{
        OwnedRoomId,
        api::client::receipt::create_receipt::v3::ReceiptType,
        events::{
            receipt::ReceiptThread,
            room::message::{OriginalSyncRoomMessageEvent, RoomMessageEventContent},
        },
    },
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

fn city() -> Option<City> {
    let Ok(path) = std::env::var("HEYA_CITY") else {
        println!("skipped: HEYA_CITY names no running city (tests/run sets it)");
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

#[tokio::test(flavor = "multi_thread")]
async fn two_people_write_to_each_other() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(city) = city() else { return };
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
    let Some(city) = city() else { return };
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
