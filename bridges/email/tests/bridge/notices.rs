//! From a notification to a mail.

use heya_mail::TemplateSet;
use serde_json::json;
use std::sync::Arc;
use time::Time;
use tokio::sync::Notify;

use crate::{
    harness::{ADDRESS, City, device, posted},
    smtp::{Plan, Seen, header},
};

#[tokio::test]
async fn notifications_within_the_digest_are_one_mail() {
    let mut city = City::start().await;
    city.notify(posted("$one")).await;
    let mut other_room = posted("$two");
    other_room["room_id"] = json!("!nine");
    other_room["devices"] = json!([device("direct", Some(9))]);
    city.notify(other_room).await;
    city.notify(posted("$one")).await;
    city.advance(29);
    city.notify(posted("$three")).await;
    city.smtp.assert_silent();
    city.advance(1);

    let mail = city.smtp.next_mail().await;
    assert_eq!(mail.to, ADDRESS);
    assert_eq!(mail.subject(), "【Heya】着信のお知らせ");
    assert_eq!(mail.header("Auto-Submitted"), "auto-generated");
    assert_eq!(mail.header("Content-Type"), "text/plain; charset=utf-8");
    let body = mail.body();
    assert!(body.contains("あなたへの着信が 3 件"), "{body}");
    assert!(body.contains("部屋番号：9、14\r\n"), "{body}");
    assert!(body.contains("https://heya.example.jp/"), "{body}");

    // A repeat after sending is recognised, too: the next mail tells of the new event only.
    city.notify(posted("$two")).await;
    city.notify(posted("$four")).await;
    city.advance(30);
    let next = city.smtp.next_mail().await;
    assert!(next.body().contains("着信が 1 件"));
    assert_ne!(next.header("Message-ID"), mail.header("Message-ID"));
}

#[tokio::test]
async fn a_nameless_mail_and_its_outbox_name_nobody() {
    let mut city = City::start().await;
    city.notify(posted("$one")).await;
    let files = city.files();
    city.advance(30);
    let mail = city.smtp.next_mail().await;
    for name in ["佐藤", "花子", "山田", "太郎", "あおば", "p100002"] {
        assert!(!mail.text.contains(name) && !mail.body().contains(name) && !mail.subject().contains(name));
        assert!(!files.windows(name.len()).any(|bytes| bytes == name.as_bytes()), "{name} is stored");
    }
}

#[tokio::test]
async fn the_handbook_names_room_and_author() {
    let mut city = City::start_with(|config| config.template = TemplateSet::Handbook).await;
    let mut notification = posted("$one");
    notification["room_name"] = json!("山田\r\nBcc: x@example.jp");
    notification["devices"][0]["data"]["jp.heya.importance"] = json!("important");
    city.notify(notification).await;
    city.advance(30);
    let mail = city.smtp.next_mail().await;
    assert_eq!(mail.subject(), "**Heya**コミュニティ着信通知");
    let body = mail.body();
    assert!(
        body.starts_with("山田  Bcc: x@example.jpにあおば訪問看護 佐藤花子 さんから投稿がありました。\r\n"),
        "{body}"
    );
    assert!(body.contains("[宛 先] 個別\r\n\r\n[重 要 度] 重要\r\n"), "{body}");
}

#[tokio::test]
async fn the_subject_says_what_is_most_important() {
    let mut city = City::start().await;
    for (importances, subject) in [
        (&["none", "important"][..], "【重要】【Heya】着信のお知らせ"),
        (&["none"], "【Heya】着信のお知らせ"),
        (&["important", "urgent"], "【至急】【Heya】着信のお知らせ"),
    ] {
        for (n, importance) in importances.iter().enumerate() {
            let mut notification = posted(&format!("${subject}{n}"));
            notification["devices"][0]["data"]["jp.heya.importance"] = json!(importance);
            city.notify(notification).await;
        }
        city.advance(30);
        assert_eq!(city.smtp.next_mail().await.subject(), subject);
    }
    city.advance(300);
    let mut english = posted("$english");
    english["devices"][0]["data"]["jp.heya.importance"] = json!("urgent");
    english["devices"][0]["data"]["jp.heya.lang"] = json!("en");
    city.notify(english).await;
    assert_eq!(city.smtp.next_mail().await.header("Subject"), "[urgent] [Heya] You have new notices");
}

#[tokio::test]
async fn reading_cancels_what_was_not_sent() {
    let mut city = City::start().await;
    city.notify(posted("$one")).await;
    let mut other_room = posted("$two");
    other_room["room_id"] = json!("!nine");
    other_room["devices"] = json!([device("highlight", Some(9))]);
    city.notify(other_room).await;

    // Room 14 was read; zero counts are omitted.
    city.notify(json!({"room_id": "!fourteen", "devices": [device("highlight", None)]})).await;
    // Nothing else was.
    city.notify(json!({"counts": {"unread": 3}, "devices": [device("highlight", None)]})).await;
    city.advance(30);
    assert!(city.smtp.next_mail().await.body().contains("部屋番号：9\r\n"));

    city.notify(posted("$three")).await;
    city.notify(json!({"counts": {"unread": 0}, "devices": [device("highlight", None)]})).await;
    // The server's repeat of a notification that was read does not bring it back.
    city.notify(posted("$three")).await;
    city.advance(30);
    city.notify(posted("$four")).await;
    city.advance(30);
    assert!(city.smtp.next_mail().await.body().contains("着信が 1 件"));
    city.smtp.assert_silent();
}

#[tokio::test]
async fn a_mail_that_failed_for_now_goes_again_as_the_same_mail() {
    let mut city = City::start_with(|config| config.digest_seconds = 0).await;
    city.smtp.plan(Plan::End("451 4.3.0 Try again"));
    city.notify(posted("$one")).await;
    assert_eq!(city.smtp.next().await, Seen::Refused("451 4.3.0 Try again".to_owned()));
    city.smtp.plan(Plan::Cut);
    city.pass_retry_pause().await;
    let Seen::Cut { text } = city.smtp.next().await else { panic!("not cut") };
    // What comes now is another mail: the receiver may know the first one already.
    city.notify(posted("$two")).await;
    let second = city.smtp.next_mail().await;
    city.pass_retry_pause().await;
    let first = city.smtp.next_mail().await;
    assert_eq!(first.text, text);
    assert_ne!(header(&text, "Message-ID"), second.header("Message-ID"));
    assert!(!text.contains("pusher-1") && !text.contains("p100001"));
}

#[tokio::test]
async fn a_killed_bridge_loses_nothing() {
    let mut city = City::start().await;
    city.notify(posted("$one")).await;
    city.restart().await;
    city.notify(posted("$one")).await;
    city.smtp.plan(Plan::Cut);
    city.advance(30);
    let Seen::Cut { text } = city.smtp.next().await else { panic!("not cut") };
    // It dies before it can write down what happened, or after: the same mail goes again.
    city.restart().await;
    city.pass_retry_pause().await;
    assert_eq!(city.smtp.next_mail().await.text, text);
    city.settled().await;
    city.restart().await;
    city.notify(posted("$one")).await;
    city.notify(posted("$two")).await;
    city.advance(30);
    assert!(city.smtp.next_mail().await.body().contains("着信が 1 件"));
}

#[tokio::test]
async fn an_orderly_end_waits_for_the_mail_that_is_under_way() {
    let mut city = City::start_with(|config| config.digest_seconds = 0).await;
    let go_on = Arc::new(Notify::new());
    city.smtp.plan(Plan::Hold(Arc::clone(&go_on)));
    city.notify(posted("$one")).await;
    assert_eq!(city.smtp.next().await, Seen::Held);
    city.stop(|| go_on.notify_one()).await;
    city.one_is_sent().await;
}

#[tokio::test]
async fn quiet_hours_end_in_one_mail_and_urgent_ones_do_not_wait() {
    let time = |hour| Time::from_hms(hour, 0, 0).unwrap();
    let quiet_hours = Some((time(11), time(13)));
    let mut city = City::start_with(|config| config.quiet_hours = quiet_hours).await;
    city.notify(posted("$one")).await;
    city.advance(3599);
    city.notify(posted("$two")).await;
    city.smtp.assert_silent();
    city.advance(1);
    assert!(city.smtp.next_mail().await.body().contains("着信が 2 件"));

    city.advance(22 * 3600 + 60);
    let mut urgent = posted("$three");
    urgent["devices"][0]["data"]["jp.heya.importance"] = json!("urgent");
    city.notify(posted("$four")).await;
    city.notify(urgent).await;
    assert!(city.smtp.next_mail().await.body().contains("着信が 2 件"));
}

#[tokio::test]
async fn urgent_posts_of_a_room_call_once_in_five_minutes() {
    let time = |hour| Time::from_hms(hour, 0, 0).unwrap();
    let mut city = City::start_with(|config| config.quiet_hours = Some((time(11), time(23)))).await;
    let urgent = |event: &str, room: i64| {
        let mut urgent = posted(event);
        urgent["devices"] = json!([device("highlight", Some(room))]);
        urgent["devices"][0]["data"]["jp.heya.importance"] = json!("urgent");
        urgent
    };
    city.notify(urgent("$one", 14)).await;
    assert!(city.smtp.next_mail().await.body().contains("着信が 1 件"));
    for n in 0..5 {
        city.notify(urgent(&format!("$more{n}"), 14)).await;
    }
    city.advance(299);
    city.smtp.assert_silent();
    city.advance(1);
    let body = city.smtp.next_mail().await.body();
    assert!(body.contains("着信が 5 件"), "{body}");
    city.notify(urgent("$soon", 14)).await;
    city.advance(299);
    city.smtp.assert_silent();
    city.advance(1);
    assert!(city.smtp.next_mail().await.body().contains("着信が 1 件"));
    // Another room's is not held up.
    city.notify(urgent("$other", 9)).await;
    assert!(city.smtp.next_mail().await.body().contains("部屋番号：9\r\n"));
}

#[tokio::test]
async fn invitations_and_openings_have_their_own_words_in_both_languages() {
    let mut city = City::start_with(|config| config.digest_seconds = 0).await;
    let mut invitation = posted("$one");
    invitation["devices"] = json!([device("invite", Some(14))]);
    city.notify(invitation).await;
    assert_eq!(city.smtp.next_mail().await.subject(), "【Heya】部屋への招待のお知らせ");
    let mut opening = posted("$two");
    opening["devices"] = json!([device("opening", Some(14))]);
    opening["devices"][0]["data"]["jp.heya.lang"] = json!("en");
    city.notify(opening).await;
    assert_eq!(city.smtp.next_mail().await.header("Subject"), "[Heya] A room has been opened");
}

#[tokio::test]
async fn strangers_and_nonsense_are_turned_away() {
    let city = City::start().await;
    let body = json!({ "notification": posted("$one") }).to_string();
    let check = async |token: &str, body: String, status: u16, errcode: &str| {
        let (answered, answer) = city.post(token, body).await;
        assert_eq!((answered, answer["errcode"].as_str()), (status, Some(errcode)));
    };
    check("token-of-the-mail-bridgf", body.clone(), 401, "M_UNKNOWN_TOKEN").await;
    check("", body.clone(), 401, "M_UNKNOWN_TOKEN").await;
    check(crate::harness::TOKEN, "{".to_owned(), 400, "M_NOT_JSON").await;
    check(crate::harness::TOKEN, "{}".to_owned(), 400, "M_BAD_JSON").await;
    check(crate::harness::TOKEN, "x".repeat(65 * 1024), 413, "M_TOO_LARGE").await;
    let body = body.replace("$one", &"x".repeat(300));
    check(crate::harness::TOKEN, body, 400, "M_INVALID_PARAM").await;
}
