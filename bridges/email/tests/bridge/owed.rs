//! Mails that the server owes.

use serde_json::{Value, json};

use crate::{
    harness::{ADDRESS, City},
    smtp::{Plan, Seen},
};

fn verify(id: &str) -> Value {
    json!({
        "id": id,
        "template": "verify_address",
        "lang": "ja",
        "to": ADDRESS,
        "parameters": {"link": "https://mail.example.jp/verify/abc", "name": "佐藤花子"},
    })
}

#[tokio::test]
async fn a_leased_mail_is_sent_once_and_reported() {
    let mut city = City::start().await;
    city.homeserver.owe(verify("17"));
    let mail = city.smtp.next_mail().await;
    assert_eq!(mail.subject(), "【Heya】メールアドレスの確認のお願い");
    assert!(mail.body().contains("\r\nhttps://mail.example.jp/verify/abc\r\n"));
    assert!(mail.header("Message-ID").contains(".s17@example.jp"));
    let done = ("done".to_owned(), json!({"id": "17", "outcome": "sent", "detail": "250"}));
    assert_eq!(city.homeserver.next_report().await, done);
    let files = city.files();
    assert!(!files.windows(6).any(|bytes| bytes == "佐藤".as_bytes()));

    // The report was lost on the server's side: the lease comes again and is answered, not sent.
    city.homeserver.owe(verify("17"));
    assert_eq!(city.homeserver.next_report().await, done);
    city.reported().await;
    city.homeserver.assert_silent();
    city.restart().await;
    city.homeserver.owe(verify("17"));
    assert_eq!(city.homeserver.next_report().await, done);
    city.smtp.assert_silent();
}

#[tokio::test]
async fn a_refused_mail_is_reported_with_the_code() {
    let mut city = City::start().await;
    city.smtp.plan(Plan::Rcpt("550 5.1.1 No such user"));
    city.homeserver.owe(verify("18"));
    assert!(matches!(city.smtp.next().await, Seen::Refused(_)));
    let refused = |id: &str, detail: &str| {
        ("done".to_owned(), json!({"id": id, "outcome": "refused", "detail": detail}))
    };
    assert_eq!(city.homeserver.next_report().await, refused("18", "550"));

    let mut mail = verify("19");
    mail["to"] = json!("no address");
    city.homeserver.owe(mail);
    assert_eq!(city.homeserver.next_report().await, refused("19", "553"));

    let mut mail = verify("20");
    mail["parameters"] = json!({"link": "https://example.jp/\r\nX: y"});
    city.homeserver.owe(mail);
    assert_eq!(city.homeserver.next_report().await, refused("20", "unusable parameter"));
}

#[tokio::test]
async fn every_template_of_the_server_has_its_words() {
    let mut city = City::start().await;
    for (id, template, parameters, text) in [
        ("1", "password_reset", json!({"link": "https://mail.example.jp/reset/abc"}), "パスワード"),
        ("2", "room_opened", json!({"room_number": 14}), "部屋番号：14"),
        ("3", "lockout", json!({"login_id": "p100001"}), "p100001"),
    ] {
        city.homeserver.owe(
            json!({"id": id, "template": template, "lang": "ja", "to": ADDRESS, "parameters": parameters}),
        );
        let mail = city.smtp.next_mail().await;
        assert!(mail.body().contains(text), "{template}");
    }
}
