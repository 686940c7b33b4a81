//! The bot against a server that forgets to answer: from consent to an open room, killed and restarted on the way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop where it is"
)]

mod fake;

use fake::{CARE_MANAGER, CITY, CONTROL, DIRECT, Fake, OTHER, ROOM, STAFF, message};
use serde_json::json;

const CONSENT: &str = "同意の報告\n対象者氏名：山田太郎\n生年月日：昭和15年5月1日\n住所：〇〇市1-2-3\n説明者：佐藤花子\n説明者の職種：ケアマネジャー\n説明日：2026/11/20\n①情報共有への同意：はい\n②市が情報を取得することへの同意：はい";
const OPENING: &str = "部屋の開設をお願いします\n対象者氏名：山田太郎\n生年月日：1940-05-01\n住所：〇〇市1-2-3\n要件：①\nメンバー：みどり薬局の鈴木一郎さん";

/// Consent → request → approval → exactly one room, although the first answer is lost, the bot is killed between the
/// steps and every transaction comes twice.
#[tokio::test]
async fn a_room_is_opened_once() {
    let fake = Fake::start().await;
    let mut bot = fake.bot().await;

    bot.deliver("1", json!([message(DIRECT, "$consent", CARE_MANAGER, CONSENT)])).await;
    bot.deliver("1", json!([message(DIRECT, "$consent", CARE_MANAGER, CONSENT)])).await;
    fake.said(DIRECT, "同意の報告を受け付けました").await;
    fake.said(CONTROL, "同意の報告がありました").await;

    bot.restart().await;
    fake.lose_answers("send", 1);
    bot.deliver("2", json!([message(DIRECT, "$open", CARE_MANAGER, OPENING)])).await;
    bot.deliver("2", json!([message(DIRECT, "$open", CARE_MANAGER, OPENING)])).await;
    let shown = fake.said(CONTROL, "案件 1（").await;
    assert!(shown.body.contains("みどり薬局 鈴木一郎（p104300）"), "who would be in: {}", shown.body);
    assert!(shown.body.contains("あおば居宅 佐藤花子（p104217）"), "the requester is in: {}", shown.body);
    let receipt = fake.said(DIRECT, "案件 1").await;
    assert_eq!(receipt.mentions, [CARE_MANAGER]);
    assert_eq!(receipt.reply_to.as_deref(), Some("$open"));
    assert_eq!(fake.rooms_opened(), 0, "nothing happens before approval");

    // The room is made but the answer is lost; the bot dies before it can ask again.
    fake.lose_answers("open", 1);
    fake.hold("open");
    // The bot's own message comes back to it before anybody's reaction, as in every transaction.
    let mut own = message(CONTROL, &shown.event_id, CITY, "");
    own["content"] = shown.content.clone();
    let approval = json!([own, reaction(&shown.event_id, "✅")]);
    bot.deliver("3", approval.clone()).await;
    fake.called("open").await;
    bot.restart().await;
    bot.deliver("3", approval).await;
    fake.release();
    fake.said(DIRECT, "部屋番号は 14 です").await;
    fake.said(CONTROL, "案件 1 を完了しました").await;
    assert_eq!(fake.rooms_opened(), 1);
    let call = fake.last_call("open");
    assert_eq!(call["acting"], STAFF);
    assert_eq!(call["members"], json!([CARE_MANAGER, "@p104300:example.jp"]));
    assert_eq!(fake.keys("open"), ["case-1-open"]);

    // A second approval says so.
    bot.deliver("4", json!([message(CONTROL, "$again", STAFF, "承認 1")])).await;
    fake.said(CONTROL, "案件 1 はすでに「完了」です").await;
    assert_eq!(fake.rooms_opened(), 1);
    fake.nothing_was_said_twice();
}

#[tokio::test]
async fn no_room_without_consent() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    bot.deliver(
        "1",
        json!([message(
            DIRECT,
            "$c",
            CARE_MANAGER,
            &CONSENT.replace("取得することへの同意：はい", "取得することへの同意：")
        )]),
    )
    .await;
    let answer = fake.said(DIRECT, "そろっていません").await;
    assert!(
        answer.body.contains("・②市が情報を取得することへの同意") && !answer.body.contains("・①"),
        "{}",
        answer.body
    );
    bot.deliver("2", json!([message(DIRECT, "$o", CARE_MANAGER, OPENING)])).await;
    fake.said(DIRECT, "同意の報告がまだありません").await;
    bot.deliver("3", json!([message(CONTROL, "$a", STAFF, "承認 1")])).await;
    fake.said(CONTROL, "すでに「差し戻し」です").await;
    assert_eq!(fake.rooms_opened(), 0);
}

#[tokio::test]
async fn members_are_added_after_approval_only() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let ask = "みどり薬局の鈴木一郎さんを追加してください";
    bot.deliver(
        "1",
        json!([
            message(ROOM, "$1", CARE_MANAGER, ask),
            message(ROOM, "$2", CARE_MANAGER, "追加の薬をお願いします")
        ]),
    )
    .await;
    fake.said(CONTROL, "案件 1（").await;
    bot.deliver("2", json!([message(ROOM, "$3", OTHER, ask)])).await;
    fake.said(ROOM, "同じ依頼をすでに受け付けています（案件 1）").await;
    // Approval counts in the control room, from staff.
    bot.deliver("3", json!([message(ROOM, "$4", STAFF, "承認 1"), message(CONTROL, "$5", OTHER, "承認 1")]))
        .await;
    bot.deliver("4", json!([message(CONTROL, "$6", STAFF, "案件 1")])).await;
    fake.said(CONTROL, "案件 1：受付").await;
    assert_eq!(fake.keys("members"), Vec::<String>::new());
    bot.deliver("5", json!([message(CONTROL, "$7", STAFF, "承認　１")])).await;
    let done = fake.said(ROOM, "完了しました（案件 1）").await;
    assert_eq!(done.mentions, [CARE_MANAGER]);
    assert_eq!(fake.keys("members"), ["case-1-add"]);
    assert_eq!(fake.last_call("members")["add"], json!(["@p104300:example.jp"]));
    fake.nothing_was_said_twice();
}

#[tokio::test]
async fn a_doubt_is_asked_and_answered_by_the_same_person() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    bot.deliver("1", json!([message(ROOM, "$1", CARE_MANAGER, "本日でこの部屋を終了します")])).await;
    fake.said(ROOM, "市への依頼でしょうか").await;
    bot.deliver("2", json!([message(ROOM, "$2", OTHER, "はい"), message(CONTROL, "$3", STAFF, "案件")]))
        .await;
    fake.said(CONTROL, "未完了の案件はありません").await;
    bot.deliver("3", json!([message(ROOM, "$4", CARE_MANAGER, "はい")])).await;
    fake.said(CONTROL, "部屋の終了：部屋 7「山田さんの部屋」").await;
    bot.deliver("4", json!([message(CONTROL, "$5", STAFF, "差し戻し 1 もう少しお待ちください")])).await;
    fake.said(ROOM, "理由：もう少しお待ちください").await;
    assert_eq!(fake.keys("close"), Vec::<String>::new());
}

#[tokio::test]
async fn staff_commands_are_cases_carried_out_at_once() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    bot.deliver("1", json!([message(CONTROL, "$1", STAFF, "追加 7 鈴木")])).await;
    let asked = fake.said(CONTROL, "「鈴木」はどなたでしょうか").await;
    assert!(asked.body.contains("p104300"), "{}", asked.body);
    bot.deliver("2", json!([message(CONTROL, "$2", STAFF, "指定 1 p104300")])).await;
    fake.said(CONTROL, "案件 1 を完了しました").await;
    assert_eq!(fake.keys("members"), ["case-1-add"]);

    // A refusal for good blocks nothing and says what to do.
    fake.refuse("close", 403, "M_FORBIDDEN");
    bot.deliver("3", json!([message(CONTROL, "$3", STAFF, "終了 7")])).await;
    fake.said(CONTROL, "案件 2 を行えませんでした（M_FORBIDDEN）").await;
    bot.deliver("4", json!([message(CONTROL, "$4", STAFF, "事業所登録 ひまわり医院 医療機関 誓約済")])).await;
    fake.said(CONTROL, "事業所番号：9").await;
    bot.deliver("5", json!([message(CONTROL, "$5", STAFF, "承認 2")])).await;
    fake.said(CONTROL, "案件 2 を完了しました").await;
    assert_eq!(fake.keys("close"), ["case-2-close", "case-2-close-2"]);
}

#[tokio::test]
async fn a_second_room_needs_a_word() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    bot.deliver(
        "1",
        json!([message(DIRECT, "$c", CARE_MANAGER, CONSENT), message(DIRECT, "$o", CARE_MANAGER, OPENING)]),
    )
    .await;
    fake.said(CONTROL, "案件 1（").await;
    fake.refuse("open", 409, "JP_HEYA_SUBJECT_HAS_ROOM");
    bot.deliver("2", json!([message(CONTROL, "$1", STAFF, "承認 1")])).await;
    fake.said(CONTROL, "「承認 1 二つ目」").await;
    bot.deliver("3", json!([message(CONTROL, "$2", STAFF, "承認 1 二つ目")])).await;
    fake.said(DIRECT, "部屋番号は 14 です").await;
    assert_eq!(fake.keys("open"), ["case-1-open", "case-1-open-2"]);
    assert_eq!(fake.last_call("open")["confirm_second"], true);
}

#[tokio::test]
async fn from_outside_a_room_only_its_members_may_ask() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let ask = "部屋7にみどり薬局の鈴木一郎さんを追加してください";
    bot.deliver("1", json!([message(DIRECT, "$1", "@p104300:example.jp", ask)])).await;
    fake.said(DIRECT, "メンバーではない方からの依頼はお受けできません").await;
    bot.deliver("2", json!([message("!other", "$2", CARE_MANAGER, ask)])).await;
    let shown = fake.said(CONTROL, "案件 2（依頼：あおば居宅 佐藤花子（p104217）").await;
    assert!(shown.body.contains("部屋 7「山田さんの部屋」"), "{}", shown.body);
    bot.deliver(
        "3",
        json!([message(DIRECT, "$3", CARE_MANAGER, "みどり薬局の鈴木一郎さんを追加してください")]),
    )
    .await;
    fake.said(DIRECT, "市が開設した部屋ではありません").await;
}

const WITHDRAWAL: &str = "同意の撤回\n対象者氏名：山田 太郎\n生年月日：S15.5.1";

/// Anybody may say it, so it counts once the staff approve it.
#[tokio::test]
async fn a_withdrawal_is_approved_before_it_counts() {
    let fake = Fake::start().await;
    let mut bot = fake.bot().await;
    bot.deliver("1", json!([message(DIRECT, "$1", CARE_MANAGER, CONSENT)])).await;
    bot.deliver("2", json!([message("!other", "$2", OTHER, WITHDRAWAL)])).await;
    let shown = fake.said(CONTROL, "案件 1（依頼：あおば訪問看護 田中次郎").await;
    assert!(shown.body.contains("同意の撤回\n対象者：山田 太郎さん\n生年月日：1940-05-01"), "{}", shown.body);
    assert!(shown.body.contains("・あおば居宅 佐藤花子（p104217）が"), "{}", shown.body);
    // The consent still stands.
    bot.deliver("3", json!([message(DIRECT, "$3", CARE_MANAGER, OPENING)])).await;
    fake.said(CONTROL, "案件 2（").await;
    bot.deliver("4", json!([message(CONTROL, "$4", STAFF, "差し戻し 1 ご本人に確認しました")])).await;
    fake.said("!other", "差し戻しになりました").await;
    bot.deliver("5", json!([message(CONTROL, "$5", STAFF, "承認 2")])).await;
    fake.said(DIRECT, "部屋番号は 14 です").await;

    bot.deliver("6", json!([message("!other", "$6", OTHER, WITHDRAWAL)])).await;
    fake.said(CONTROL, "案件 3（").await;
    let approval = json!([message(CONTROL, "$7", STAFF, "承認 3")]);
    bot.deliver("7", approval.clone()).await;
    bot.restart().await;
    bot.deliver("7", approval).await;
    let done = fake.said(CONTROL, "案件 3 を完了しました").await;
    assert!(done.body.contains("同意の報告 1件を撤回済みにしました"), "{}", done.body);
    fake.said("!other", "完了しました（案件 3）").await;
    bot.deliver("8", json!([message(DIRECT, "$8", CARE_MANAGER, OPENING)])).await;
    fake.said(DIRECT, "同意の報告がまだありません").await;
    fake.nothing_was_said_twice();
}

/// Whoever withdraws reads the same from the receipt to the end, with a record and without.
#[tokio::test]
async fn a_withdrawal_does_not_tell_who_is_a_subject() {
    let mut heard = Vec::new();
    for known in [true, false] {
        let fake = Fake::start().await;
        let bot = fake.bot().await;
        if known {
            bot.deliver("1", json!([message(DIRECT, "$1", CARE_MANAGER, CONSENT)])).await;
            fake.said(CONTROL, "同意の報告がありました").await;
        }
        bot.deliver("2", json!([message("!other", "$2", OTHER, WITHDRAWAL)])).await;
        fake.said("!other", "同意の撤回を受け付けました（案件 1）。市が確認します。").await;
        let shown = fake.said(CONTROL, "案件 1（").await;
        assert_eq!(shown.body.contains("氏名と生年月日が同じものは見つかりません"), !known, "{}", shown.body);
        bot.deliver("3", json!([message("!other", "$3", OTHER, WITHDRAWAL)])).await;
        fake.said("!other", "同じ依頼をすでに受け付けています（案件 1）").await;
        // The same case for somebody else is another case.
        bot.deliver("4", json!([message("!other", "$4", CARE_MANAGER, WITHDRAWAL)])).await;
        fake.said("!other", "同意の撤回を受け付けました（案件 2）。市が確認します。").await;
        bot.deliver("5", json!([message(CONTROL, "$5", STAFF, "承認 1")])).await;
        let done = fake.said(CONTROL, "案件 1 を完了しました").await;
        assert_eq!(done.body.contains("同意の報告は見つかりませんでした"), !known, "{}", done.body);
        fake.said("!other", "完了しました（案件 1）").await;
        heard.push(fake.all_said("!other").into_iter().map(|said| said.body).collect::<Vec<_>>());
    }
    assert_eq!(heard[0], heard[1]);
}

/// In the control room the staff's word is enough.
#[tokio::test]
async fn the_staff_withdraw_at_once() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    bot.deliver("1", json!([message(CONTROL, "$1", STAFF, WITHDRAWAL)])).await;
    fake.said(CONTROL, "同意の報告はありません").await;
    let events =
        json!([message(DIRECT, "$2", CARE_MANAGER, CONSENT), message(CONTROL, "$3", STAFF, WITHDRAWAL)]);
    bot.deliver("2", events).await;
    fake.said(CONTROL, "同意の撤回がありました").await;
    bot.deliver("3", json!([message(DIRECT, "$4", CARE_MANAGER, OPENING)])).await;
    fake.said(DIRECT, "同意の報告がまだありません").await;
}

/// A consent that somebody else reported is answered like none; the staff read who reported which.
#[tokio::test]
async fn an_opening_does_not_tell_what_others_reported() {
    let mut heard = Vec::new();
    for known in [true, false] {
        let fake = Fake::start().await;
        let bot = fake.bot().await;
        if known {
            bot.deliver("1", json!([message(DIRECT, "$1", CARE_MANAGER, CONSENT)])).await;
            fake.said(CONTROL, "同意の報告がありました").await;
        }
        bot.deliver("2", json!([message("!other", "$2", OTHER, OPENING)])).await;
        fake.said("!other", "同意の報告がまだありません").await;
        bot.deliver("3", json!([message("!other", "$3", OTHER, CONSENT)])).await;
        fake.said("!other", "同意の報告を受け付けました").await;
        bot.deliver("4", json!([message("!other", "$4", OTHER, OPENING)])).await;
        let shown = fake.said(CONTROL, "案件 2（").await;
        fake.said("!other", "市への依頼として受け付けました").await;
        assert!(
            shown.body.contains("同意の報告：\n・あおば訪問看護 田中次郎（p104218）が20"),
            "{}",
            shown.body
        );
        assert!(
            shown.body.contains("に報告（説明：佐藤花子（ケアマネジャー）、2026-11-20）"),
            "{}",
            shown.body
        );
        assert_eq!(shown.body.contains("・あおば居宅 佐藤花子（p104217）が20"), known, "{}", shown.body);
        heard.push(fake.all_said("!other").into_iter().map(|said| said.body).collect::<Vec<_>>());
    }
    assert_eq!(heard[0], heard[1]);
}

#[tokio::test]
async fn a_password_is_issued_again_once() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    fake.lose_answers("reset", 1);
    bot.deliver("1", json!([message(CONTROL, "$1", STAFF, "パスワード再発行 みどり薬局の鈴木一郎さん")]))
        .await;
    let done = fake.said(CONTROL, "案件 1 を完了しました").await;
    assert!(done.body.contains("パスワードの再発行：みどり薬局 鈴木一郎（p104300）"), "{}", done.body);
    assert!(done.body.contains("ログイン 2、端末 1"), "{}", done.body);
    assert!(done.body.contains("sheets/0011-password.html、sheets/0011-code.html"), "{}", done.body);
    assert_eq!(fake.keys("reset"), ["case-1-reset"]);
    assert_eq!(fake.last_call("reset"), json!({"acting": STAFF, "user": "@p104300:example.jp"}));
    // A surname alone is asked about; outside the control room it is no command.
    bot.deliver("2", json!([message(DIRECT, "$2", STAFF, "パスワード再発行 p104300")])).await;
    bot.deliver("3", json!([message(CONTROL, "$3", STAFF, "reset 鈴木")])).await;
    fake.said(CONTROL, "「鈴木」はどなたでしょうか").await;
    bot.deliver("4", json!([message(CONTROL, "$4", STAFF, "指定 2 p104300")])).await;
    fake.said(CONTROL, "案件 2 を完了しました").await;
    assert_eq!(fake.keys("reset"), ["case-1-reset", "case-2-reset"]);
    bot.deliver("5", json!([message(CONTROL, "$5", STAFF, "ヘルプ")])).await;
    fake.said(CONTROL, "・パスワード再発行 利用者IDか氏名（reset）").await;
}

#[tokio::test]
async fn consent_withdrawn_before_approval_opens_nothing() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    bot.deliver(
        "1",
        json!([message(DIRECT, "$1", CARE_MANAGER, CONSENT), message(DIRECT, "$2", CARE_MANAGER, OPENING)]),
    )
    .await;
    fake.said(CONTROL, "案件 1（").await;
    let withdrawal = message(CONTROL, "$3", STAFF, "同意の撤回\n対象者氏名：山田太郎\n生年月日：1940-05-01");
    bot.deliver("2", json!([withdrawal, message(CONTROL, "$4", STAFF, "承認 1")])).await;
    fake.said(CONTROL, "同意が撤回されているため").await;
    assert_eq!(fake.rooms_opened(), 0);
    bot.deliver(
        "3",
        json!([message(CONTROL, "$5", STAFF, CONSENT), message(CONTROL, "$6", STAFF, "承認 1")]),
    )
    .await;
    fake.said(DIRECT, "部屋番号は 14 です").await;
    assert_eq!(fake.rooms_opened(), 1);
}

#[tokio::test]
async fn an_answer_that_cannot_be_written_is_told_to_the_city() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    fake.refuse("send", 403, "M_FORBIDDEN");
    bot.deliver("1", json!([message(ROOM, "$1", CARE_MANAGER, "この部屋を終了したいです")])).await;
    fake.said(CONTROL, "部屋に返事を書けませんでした（M_FORBIDDEN）").await;
    bot.deliver("2", json!([message(ROOM, "$2", CARE_MANAGER, "この部屋を終了してください")])).await;
    fake.said(ROOM, "案件 1").await;
}

#[tokio::test]
async fn the_bot_follows_invitations() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let invite = json!({"type": "m.room.member", "room_id": DIRECT, "event_id": "$i", "sender": CARE_MANAGER,
        "state_key": CITY, "content": {"membership": "invite"}});
    bot.deliver("1", json!([invite])).await;
    fake.said(DIRECT, "窓口です").await;
}

#[tokio::test]
async fn edits_notices_and_the_bot_itself_are_not_heard() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let ask = "みどり薬局の鈴木一郎さんを追加してください";
    let mut edit = message(ROOM, "$1", CARE_MANAGER, ask);
    edit["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": "$0"});
    let mut notice = message(ROOM, "$2", CARE_MANAGER, ask);
    notice["content"]["msgtype"] = "m.notice".into();
    let mut quoted =
        message(ROOM, "$3", CARE_MANAGER, &format!("> <@x:example.jp> {ask}\n\nありがとうございます"));
    quoted["content"]["m.relates_to"] = json!({"m.in_reply_to": {"event_id": "$0"}});
    bot.deliver("1", json!([edit, notice, quoted, message(ROOM, "$4", CITY, ask), {"type": 1}])).await;
    // A transaction that was taken is not looked at again, whatever is in it.
    bot.deliver("1", json!([message(ROOM, "$6", CARE_MANAGER, ask)])).await;
    bot.deliver("2", json!([message(CONTROL, "$5", STAFF, "案件")])).await;
    fake.said(CONTROL, "未完了の案件はありません").await;
}

#[tokio::test]
async fn only_the_server_may_call() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    assert_eq!(bot.call("PUT", "transactions/9", None, "{\"events\":[]}").await, 403);
    assert_eq!(bot.call("PUT", "transactions/9", Some("wrong"), "{\"events\":[]}").await, 403);
    assert_eq!(bot.call("PUT", "transactions/9", Some(fake::HS_TOKEN), "{}").await, 400);
    assert_eq!(
        bot.call("PUT", "transactions/9", Some(fake::HS_TOKEN), &" ".repeat(9 * 1024 * 1024)).await,
        413
    );
    assert_eq!(bot.call("POST", "ping", Some(fake::HS_TOKEN), "{}").await, 200);
    assert_eq!(bot.call("GET", "rooms/%23x:example.jp", Some(fake::HS_TOKEN), "").await, 404);
    assert_eq!(bot.call("GET", "users/@city:example.jp", Some(fake::HS_TOKEN), "").await, 200);
    assert_eq!(bot.call("GET", "users/@p1:example.jp", Some(fake::HS_TOKEN), "").await, 404);
}

fn reaction(about: &str, key: &str) -> serde_json::Value {
    json!({"type": "m.reaction", "room_id": CONTROL, "event_id": "$reaction", "sender": STAFF,
        "content": {"m.relates_to": {"rel_type": "m.annotation", "event_id": about, "key": key}}})
}

/// The whole way once for every call the bot makes: there it is killed while the server already acted.
#[tokio::test]
async fn killed_at_every_call_nothing_is_lost_or_doubled() {
    for step in 1..=12 {
        let fake = Fake::start().await;
        let mut bot = fake.bot().await;
        fake.hold_call(step);
        let events = json!([
            message(DIRECT, "$c", CARE_MANAGER, CONSENT),
            message(DIRECT, "$o", CARE_MANAGER, OPENING)
        ]);
        bot.deliver("1", events.clone()).await;
        let mut killed = false;
        let mut approved = false;
        loop {
            match fake
                .held_or(|said| {
                    if approved {
                        said.room == DIRECT && said.body.contains("部屋番号は 14")
                    } else {
                        said.body.contains("案件 1（")
                    }
                })
                .await
            {
                fake::Reached::Held => {
                    killed = true;
                    bot.restart().await;
                    fake.release();
                    bot.deliver("1", events.clone()).await;
                }
                fake::Reached::Said if !approved => {
                    approved = true;
                    bot.deliver("2", json!([message(CONTROL, "$a", STAFF, "承認 1")])).await;
                    // Approved before it was examined to the end is answered, not lost; then once more.
                }
                fake::Reached::Said => break,
            }
        }
        fake.said(CONTROL, "案件 1 を完了しました").await;
        assert_eq!(fake.rooms_opened(), 1, "step {step}");
        fake.nothing_was_said_twice();
        // Two about the consent, two about the case, the opening, two about its end.
        assert_eq!(killed, step <= 7, "step {step}");
        if step > 7 {
            break;
        }
    }
}

#[tokio::test]
async fn the_bot_stops_when_told() {
    let fake = Fake::start().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let bot = fake
        .bot_until(async {
            let _ = stopped.await;
        })
        .await;
    bot.deliver("1", json!([message(CONTROL, "$1", STAFF, "ヘルプ")])).await;
    fake.said(CONTROL, "使えることば").await;
    stop.send(()).unwrap();
    bot.ended().await;
}

fn scan(event_id: &str, name: &str, replies_to: Option<&str>) -> serde_json::Value {
    let mut event = message(CONTROL, event_id, STAFF, name);
    event["content"]["msgtype"] = json!("m.file");
    event["content"]["url"] = json!("mxc://example.jp/scan");
    if let Some(target) = replies_to {
        event["content"]["m.relates_to"] = json!({"m.in_reply_to": {"event_id": target}});
    }
    event
}

/// What the bot has said comes back to it, as in every transaction.
fn own(said: &fake::Said) -> serde_json::Value {
    let mut event = message(CONTROL, &said.event_id, CITY, "");
    event["content"] = said.content.clone();
    event
}

#[tokio::test]
async fn a_scanned_consent_is_recorded_once() {
    let fake = Fake::start().await;
    let mut bot = fake.bot().await;
    bot.deliver("1", json!([message(DIRECT, "$consent", CARE_MANAGER, CONSENT)])).await;
    let told = fake.said(CONTROL, "同意の報告がありました").await;
    bot.deliver("2", json!([own(&told), message(DIRECT, "$open", CARE_MANAGER, OPENING)])).await;
    let case = fake.said(CONTROL, "案件 1（").await;
    assert!(case.body.contains("同意書：添付なし"), "{}", case.body);

    // As an answer to the bot's word about the report; killed before it has answered, and the transaction comes again.
    fake.said(DIRECT, "案件 1").await;
    fake.hold("send");
    let first = json!([own(&case), scan("$scan1", "IMG_0001.pdf", Some(&told.event_id))]);
    bot.deliver("3", first.clone()).await;
    fake.said(CONTROL, "同意書を記録しました").await;
    bot.restart().await;
    bot.deliver("3", first).await;
    fake.release();
    let stored = fake.said(CONTROL, "同意書を記録しました").await;
    assert!(stored.body.contains("山田太郎さん（1940-05-01）\n同意書：添付あり\n"), "{}", stored.body);
    assert_eq!(stored.reply_to.as_deref(), Some("$scan1"));
    assert_eq!(stored.content["jp.heya.origin"], "$consent", "it goes with the subject");

    // As an answer to the case, by the report itself, and by its name.
    bot.deliver(
        "4",
        json!([
            scan("$scan2", "IMG_0002.pdf", Some(&case.event_id)),
            scan("$scan3", "IMG_0003.pdf", Some("$consent"))
        ]),
    )
    .await;
    fake.said(CONTROL, "添付あり（3件）").await;
    bot.deliver("5", json!([scan("$scan4", "同意書_1.pdf", None)])).await;
    fake.said(CONTROL, "添付あり（4件）").await;
    bot.deliver("6", json!([message(CONTROL, "$list", STAFF, "案件")])).await;
    fake.said(CONTROL, "・1 受付 部屋の開設（同意書：添付あり（4件））").await;

    // Taken back.
    let redaction = json!({"type": "m.room.redaction", "room_id": CONTROL, "event_id": "$r", "sender": STAFF,
        "content": {"redacts": "$scan4"}});
    bot.deliver("7", json!([redaction, message(CONTROL, "$show", STAFF, "案件 1")])).await;
    let shown = fake.said(CONTROL, "案件 1：受付").await;
    assert!(shown.body.contains("同意書：添付あり（3件）"), "{}", shown.body);
    fake.nothing_was_said_twice();
}

#[tokio::test]
async fn a_file_that_is_no_consent_form_is_not_recorded() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let mut outside = scan("$outside", "同意書 1.pdf", None);
    outside["room_id"] = json!(ROOM);
    let mut stranger = scan("$stranger", "同意書 1.pdf", None);
    stranger["sender"] = json!(OTHER);
    bot.deliver("1", json!([outside, stranger, scan("$photo", "IMG_0001.jpg", None)])).await;
    bot.deliver("2", json!([scan("$which", "同意書.pdf", None)])).await;
    assert_eq!(fake.said(CONTROL, "どの同意書か分かりません").await.reply_to.as_deref(), Some("$which"));
    bot.deliver("3", json!([scan("$none", "同意書 99.pdf", None)])).await;
    fake.said(CONTROL, "案件 99 はありません").await;
    // A case whose subject's consent nobody has reported.
    bot.deliver("4", json!([message(DIRECT, "$open", CARE_MANAGER, OPENING)])).await;
    fake.said(DIRECT, "同意の報告がまだありません").await;
    bot.deliver("5", json!([scan("$early", "同意書 1.pdf", None)])).await;
    fake.said(CONTROL, "案件 1 の対象者の、有効な同意の報告がありません").await;
    assert_eq!(fake.all_said(CONTROL).len(), 3, "of the others nothing is said");
}

fn posted(event_id: &str, file: &str) -> serde_json::Value {
    let mut event = scan(event_id, "電子申請_20261126.csv", None);
    event["content"]["url"] = json!(format!("mxc://example.jp/{file}"));
    event
}

const HEADINGS: &str = "お問い合わせ番号,手続き,申請者,対象者氏名,生年月日,住所,要件,説明者,説明者の職種,説明日,同意項目,メンバー,部屋番号,事業所,事業所の種類,IDの種類,誓約";

/// A file is read, shown, taken once on a word, and each application waits for approval; killed on the way, and again.
#[tokio::test]
async fn applications_become_cases_once() {
    let fake = Fake::start().await;
    let mut bot = fake.bot().await;
    let rows = "
A-1,同意の報告,p104217,山田太郎,1940-05-01,〇〇市1-2-3,,佐藤花子,ケアマネジャー,2026-11-20,①②,,,,,,
A-2,開設,p104217,山田太郎,1940-05-01,〇〇市1-2-3,①,,,,,みどり薬局の鈴木一郎さん,,,,,
A-3,追加,p104217,,,,,,,,,みどり薬局の鈴木一郎さん,7,,,,
A-4,追加,p104300,,,,,,,,,あおば訪問看護の田中次郎さん,7,,,,
A-5,終了,だれか,,,,,,,,,,7,,,,
A-6,開設,p104217,鈴木花,,〇〇市,①,,,,,,,,,,
";
    let (cp932, _, wrong) = encoding_rs::SHIFT_JIS.encode(HEADINGS);
    assert!(!wrong);
    let (cp932_rows, _, _) = encoding_rs::SHIFT_JIS.encode(rows);
    fake.upload("first", &[cp932, cp932_rows].concat());
    bot.deliver("1", json!([posted("$file", "first")])).await;
    let read = fake.said(CONTROL, "試し読みです").await;
    assert!(
        read.body.contains("新しい申請：3件\n・整理番号 A-1 同意の報告\n・整理番号 A-2 部屋の開設\n"),
        "{}",
        read.body
    );
    for aside in [
        "受け付けられない申請：3件\n・5行目 整理番号 A-4：申請者がその部屋のメンバーではありません",
        "・6行目 整理番号 A-5：申請者がどの利用者か分かりません",
        "・7行目 整理番号 A-6：次の項目がないか、読めません：生年月日",
    ] {
        assert!(read.body.contains(aside), "{aside}: {}", read.body);
    }
    for name in ["山田", "鈴木", "佐藤", "だれか"] {
        assert!(!read.body.contains(name), "it names somebody: {}", read.body);
    }
    bot.deliver("2", json!([own(&read), message(CONTROL, "$cases", STAFF, "案件")])).await;
    fake.said(CONTROL, "未完了の案件はありません").await;

    // On a word, once; nobody else's word counts.
    let mut stranger = message(CONTROL, "$stranger", OTHER, "取り込み");
    stranger["content"]["m.relates_to"] = json!({"m.in_reply_to": {"event_id": read.event_id}});
    fake.hold("send");
    let word = json!([stranger, reaction(&read.event_id, "✅")]);
    bot.deliver("3", word.clone()).await;
    fake.said(CONTROL, "電子申請を取り込みました").await;
    bot.restart().await;
    bot.deliver("3", word).await;
    fake.release();
    let taken = fake.said(CONTROL, "電子申請を取り込みました").await;
    assert!(
        taken.body.contains(
            "受け付けた申請：3件\n・整理番号 A-1 同意の報告（記録しました）\n・整理番号 A-2 部屋の開設（案件 1）\n"
        ) && taken.body.contains("受け付けられない申請：3件"),
        "{}",
        taken.body
    );
    let reported = fake.said(CONTROL, "同意の報告がありました").await;
    assert_eq!(reported.content["jp.heya.origin"], "$file#A-1");
    let case = fake.said(CONTROL, "案件 1（").await;
    assert!(
        case.body.contains("依頼：電子申請 整理番号 A-2、あおば居宅 佐藤花子（p104217）"),
        "{}",
        case.body
    );
    assert!(case.body.contains("みどり薬局 鈴木一郎（p104300）"), "{}", case.body);
    assert_eq!(case.content["jp.heya.origin"], "$file#A-2", "each goes with its own subject");
    fake.said(CONTROL, "案件 2（").await;
    assert_eq!((fake.rooms_opened(), fake.keys("members").len()), (0, 0), "nothing before approval");

    bot.deliver("4", json!([own(&case), message(CONTROL, "$a", STAFF, "承認 1 2")])).await;
    fake.said(CONTROL, "案件 2 を完了しました").await;
    assert_eq!(fake.last_call("open")["requested_by"], CARE_MANAGER, "who applied gets the mail");
    assert_eq!(fake.last_call("open")["members"], json!([CARE_MANAGER, "@p104300:example.jp"]));
    assert_eq!(fake.last_call("open")["acting"], STAFF);

    // The same file again changes nothing; what was set aside waits with the cases.
    bot.deliver("5", json!([own(&taken), reaction_as("$again", &taken.event_id)])).await;
    let again = fake.said(CONTROL, "新しい申請はありませんでした").await;
    assert!(again.body.contains("すでに受け付けている申請：3件（変更はありません）"), "{}", again.body);
    bot.deliver("6", json!([message(CONTROL, "$cases2", STAFF, "案件")])).await;
    let cases = fake.said(CONTROL, "受け付けられていない電子申請").await;
    assert!(cases.body.contains("・整理番号 A-6：次の項目が"), "{}", cases.body);

    // A mended file, in UTF-8: only what was missing is taken. One number with other content is told.
    let mended = rows
        .replace("鈴木花,,", "鈴木花,1941-01-02,")
        .replace("だれか", "p104218")
        .replace("A-3,追加", "A-3,削除")
        + "A-7,終了,p104217,,,,,,,,,,7,,,,\nA-8,同意の報告,,鈴木花,1941-01-02,〇〇市,,佐藤,看護師,2026-11-20,①②,,,,,,\n";
    fake.upload("second", format!("\u{feff}{HEADINGS}{mended}").as_bytes());
    bot.deliver("7", json!([posted("$file2", "second")])).await;
    let read =
        fake.said(CONTROL, "新しい申請：4件\n・整理番号 A-5 部屋の終了\n・整理番号 A-6 部屋の開設\n").await;
    assert!(read.body.contains("・4行目 整理番号 A-3：同じ整理番号の申請を、ちがう内容で"), "{}", read.body);
    let mut word = message(CONTROL, "$take2", STAFF, "取り込み");
    word["content"]["m.relates_to"] = json!({"m.in_reply_to": {"event_id": "$file2"}});
    bot.deliver("8", json!([word])).await;
    // The second request to close waits for the first: it names nobody, but another might.
    let taken = fake.said(CONTROL, "受け付けた申請：3件\n・整理番号 A-5 部屋の終了（案件 3）").await;
    assert!(taken.body.contains("整理番号 A-7：同じ依頼が案件 3 として出ています"), "{}", taken.body);
    let shown = fake.said(CONTROL, "案件 4（").await;
    assert!(shown.body.contains("報告（説明：佐藤（看護師）、2026-11-20）"), "{}", shown.body);
    assert_eq!(fake.rooms_opened(), 1);
    fake.nothing_was_said_twice();
}

/// A case that failed, and another for the same that came after it: approving the first says so, and the bot goes on.
#[tokio::test]
async fn a_failed_case_has_a_twin() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    bot.deliver("1", json!([message(CONTROL, "$c", STAFF, CONSENT)])).await;
    fake.refuse("open", 409, "JP_HEYA_SUBJECT_HAS_ROOM");
    bot.deliver(
        "2",
        json!([message(CONTROL, "$1", STAFF, &OPENING.replace("部屋の開設をお願いします", "開設"))]),
    )
    .await;
    fake.said(CONTROL, "案件 1 を行えませんでした").await;
    let rows = "\nT-1,開設,p104217,山田太郎,1940-05-01,〇〇市1-2-3,①,,,,,,,,,,\nT-2,開設,p104218,山田太郎,1940-05-01,〇〇市1-2-3,①,,,,,,,,,,\n";
    fake.upload("twin", format!("{HEADINGS}{rows}").as_bytes());
    bot.deliver("3", json!([posted("$file", "twin"), reaction("$file", "✅")])).await;
    let taken = fake.said(CONTROL, "電子申請を取り込みました").await;
    assert!(taken.body.contains("・3行目 整理番号 T-2：同じ依頼が案件 2 として出ています"), "{}", taken.body);
    fake.said(CONTROL, "案件 2（").await;
    bot.deliver("4", json!([message(CONTROL, "$2", STAFF, "承認 1")])).await;
    fake.said(CONTROL, "先に案件 2 を承認するか差し戻してください").await;
    bot.deliver(
        "5",
        json!([message(CONTROL, "$3", STAFF, "差し戻し 2"), message(CONTROL, "$4", STAFF, "承認 1")]),
    )
    .await;
    fake.said(CONTROL, "案件 1 を完了しました").await;
    assert_eq!(fake.rooms_opened(), 1);
}

fn reaction_as(event_id: &str, about: &str) -> serde_json::Value {
    let mut event = reaction(about, "👍");
    event["event_id"] = json!(event_id);
    event
}

/// An application for an ID of a facility that nobody has registered: two cases, and the second goes on by itself.
#[tokio::test]
async fn an_application_for_use_registers_and_issues() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let rows = "
B-1,利用申請,,高橋次郎,,,,,看護師,,,,,ひまわり訪問看護,訪問看護,個人ID,はい
B-2,利用申請,,,,,,,,,,,,ひまわり訪問看護,訪問看護,施設ID,はい
B-3,利用申請,,,,,,,,,,,,ひまわり薬局,,施設ID,はい
";
    fake.upload("use", format!("{HEADINGS}{rows}").as_bytes());
    bot.deliver("1", json!([posted("$file", "use"), reaction("$file", "✅")])).await;
    let taken = fake.said(CONTROL, "電子申請を取り込みました").await;
    assert!(
        taken.body.contains("・整理番号 B-1 利用申請（案件 1、2）\n・整理番号 B-2 利用申請（案件 1、3）"),
        "{}",
        taken.body
    );
    assert!(taken.body.contains("・4行目 整理番号 B-3：事業所の種類がありません"), "{}", taken.body);
    let waiting = fake.said(CONTROL, "案件 2（").await;
    assert!(waiting.body.contains("「ひまわり訪問看護」という事業所が見つかりません"), "{}", waiting.body);
    assert_eq!(fake.keys("facility").len(), 0);
    bot.deliver("2", json!([message(CONTROL, "$a", STAFF, "承認 1")])).await;
    fake.said(CONTROL, "案件 1 を完了しました").await;
    fake.said(CONTROL, "この内容で行うときは「承認 2」").await;
    fake.said(CONTROL, "この内容で行うときは「承認 3」").await;
    assert_eq!(fake.keys("account").len(), 0, "nothing before approval");
    bot.deliver(
        "3",
        json!([message(CONTROL, "$b", STAFF, "承認 2"), message(CONTROL, "$c", STAFF, "差し戻し 3")]),
    )
    .await;
    fake.said(CONTROL, "案件 2 を完了しました").await;
    let call = fake.last_call("account");
    assert_eq!(
        (&call["name"], &call["profession"], &call["facility"]),
        (&json!("高橋次郎"), &json!("看護師"), &json!(9))
    );
    assert_eq!(fake.keys("account").len(), 1);
}

/// Its facility is registered another way meanwhile: the application goes on all the same.
#[tokio::test]
async fn an_application_for_use_finds_its_facility() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let row = "\nB-1,利用申請,,,,,,,,,,,,ひまわり訪問看護,訪問看護,施設ID,はい\n";
    fake.upload("use", format!("{HEADINGS}{row}").as_bytes());
    bot.deliver("1", json!([posted("$file", "use"), reaction("$file", "✅")])).await;
    fake.said(CONTROL, "案件 2（").await;
    fake.register("ひまわり訪問看護");
    fake.refuse("facility", 409, "JP_HEYA_EXISTS");
    bot.deliver("2", json!([message(CONTROL, "$1", STAFF, "承認 1")])).await;
    fake.said(CONTROL, "案件 1 を行えませんでした（JP_HEYA_EXISTS）").await;
    fake.said(CONTROL, "この内容で行うときは「承認 2」").await;
    bot.deliver(
        "3",
        json!([
            message(CONTROL, "$2", STAFF, "差し戻し 1 登録済み"),
            message(CONTROL, "$3", STAFF, "承認 2")
        ]),
    )
    .await;
    fake.said(CONTROL, "案件 2 を完了しました").await;
    assert_eq!(fake.keys("account").len(), 1);
}

/// What only the registers and the bot's records say against a row uses its receipt number up no more than a fault in it.
#[tokio::test]
async fn what_could_not_be_taken_is_taken_later() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let subject = "山田太郎,1940-05-01,〇〇市1-2-3";
    let rows = format!(
        "\nW-1,追加,p104217,,,,,,,,,みどり薬局の鈴木一郎さん,99,,,,\nW-2,開設,p104217,{subject},①,,,,,,,,,,\n\
         W-3,終了,p104217,,,,,,,,,,7,,,,\nW-3,終了,p104217,,,,,,,,,,7,,,,\n"
    );
    fake.upload("early", format!("{HEADINGS}{rows}").as_bytes());
    bot.deliver("1", json!([posted("$file", "early"), reaction("$file", "✅")])).await;
    let taken = fake.said(CONTROL, "電子申請を取り込みました").await;
    for line in [
        "受け付けた申請：1件\n・整理番号 W-3 部屋の終了（案件 1）\n受け付けられない申請：3件",
        "・2行目 整理番号 W-1：その番号の部屋がありません",
        "・3行目 整理番号 W-2：対象者の同意の報告がまだありません",
        "・5行目 整理番号 W-3：同じ整理番号の行がファイルの中にもう一つあります",
    ] {
        assert!(taken.body.contains(line), "{line}: {}", taken.body);
    }
    // The consent is reported and withdrawn: a report of what was explained before does not bring it back.
    bot.deliver(
        "2",
        json!([message(CONTROL, "$c", STAFF, CONSENT), message(CONTROL, "$w", STAFF, WITHDRAWAL)]),
    )
    .await;
    fake.said(CONTROL, "同意の撤回がありました").await;
    let report = |receipt: &str, day: &str| {
        format!("{receipt},同意の報告,,{subject},,佐藤花子,看護師,{day},①②,,,,,,\n")
    };
    let opening = format!("W-2,開設,p104217,{subject},①,,,,,,,,,,\n");
    fake.upload("old", format!("{HEADINGS}\n{}", report("W-4", "2026-11-01")).as_bytes());
    bot.deliver("3", json!([posted("$file2", "old"), reaction_as("$r2", "$file2")])).await;
    fake.said(CONTROL, "・2行目 整理番号 W-4：説明日よりあとに、同意が撤回されています").await;
    let today = japanese_today();
    let new = format!("{HEADINGS}\n{opening}{}", report("W-5", &today));
    fake.upload("new", new.as_bytes());
    bot.deliver("4", json!([posted("$file3", "new"), reaction_as("$r3", "$file3")])).await;
    fake.said(
        CONTROL,
        "受け付けた申請：2件\n・整理番号 W-2 部屋の開設（案件 2）\n・整理番号 W-5 同意の報告（記録しました）",
    )
    .await;
    let shown = fake.said(CONTROL, "案件 2（").await;
    assert!(shown.body.contains("同意の撤回の記録があります"), "{}", shown.body);

    // Withdrawn between the filing and the examination, as far as the bot can tell: the case is refused, the number free.
    let gone = format!(
        "{HEADINGS}\nW-6,開設,p104217,鈴木花,1941-01-02,〇〇市,①,,,,,,,,,,\nW-7,同意の報告,,鈴木花,1941-01-02,〇〇市,,佐藤,看護師,{today},①②,,,,,,\n"
    );
    fake.upload("gone", gone.as_bytes());
    bot.deliver("5", json!([posted("$file4", "gone")])).await;
    fake.said(CONTROL, "新しい申請：2件\n・整理番号 W-6").await;
    fake.hold("send");
    bot.deliver("5b", json!([reaction_as("$r4", "$file4")])).await;
    fake.said(CONTROL, "・整理番号 W-6 部屋の開設（案件 3）").await;
    bot.deliver(
        "6",
        json!([message(CONTROL, "$w2", STAFF, "同意の撤回\n対象者氏名：鈴木花\n生年月日：1941-01-02")]),
    )
    .await;
    fake.release();
    fake.said(CONTROL, "案件 3 はお受けできませんでした").await;
    let again = format!(
        "{HEADINGS}\nW-6,開設,p104217,鈴木花,1941-01-02,〇〇市,①,,,,,,,,,,\nW-8,同意の報告,,鈴木花,1941-01-02,〇〇市,,佐藤,看護師,{today},①②,,,,,,\n"
    );
    fake.upload("again", again.as_bytes());
    bot.deliver("7", json!([posted("$file5", "again"), reaction_as("$r5", "$file5")])).await;
    fake.said(CONTROL, "・整理番号 W-6 部屋の開設（案件 4）").await;
    assert_eq!(fake.rooms_opened(), 0);
}

/// The day in Japan: what was explained today was not explained before a withdrawal of today.
#[expect(clippy::disallowed_methods, reason = "the bot's own clock tells it when a consent was withdrawn")]
fn japanese_today() -> String {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 9 * 3600;
    let date = time::OffsetDateTime::from_unix_timestamp(i64::try_from(now).unwrap()).unwrap().date();
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

#[tokio::test]
async fn a_file_of_no_applications_is_answered() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    fake.upload("other", "日付,人数\n2026-11-26,3\n".as_bytes());
    fake.upload("binary", b"\xff\xfe\x00\x00");
    fake.upload("long", &vec![b'x'; 5 * 1024 * 1024]);
    let mut outside = posted("$outside", "other");
    outside["room_id"] = json!(ROOM);
    let mut stranger = posted("$stranger", "other");
    stranger["sender"] = json!(OTHER);
    bot.deliver(
        "1",
        json!([outside, stranger, posted("$1", "other"), posted("$2", "binary"), posted("$3", "long")]),
    )
    .await;
    let answer = fake.said(CONTROL, "「整理番号」の列がありません").await;
    assert_eq!(answer.reply_to.as_deref(), Some("$1"));
    fake.said(CONTROL, "文字コードが分かりません").await;
    fake.said(CONTROL, "1 MB を超えています").await;
    bot.deliver(
        "2",
        json!([
            message(CONTROL, "$4", STAFF, "取り込み"),
            message(CONTROL, "$talk", STAFF, "取り込みは済みましたか？"),
            message(CONTROL, "$5", STAFF, "取り込み 明日")
        ]),
    )
    .await;
    fake.said(CONTROL, "どのファイルを取り込むか分かりません").await;
    fake.said(CONTROL, "次のように書いてください。\n・取り込み").await;
    // Taken back, and gone from the server.
    let redaction = json!({"type": "m.room.redaction", "room_id": CONTROL, "event_id": "$r", "sender": STAFF,
        "content": {"redacts": "$1"}});
    bot.deliver("3", json!([redaction, reaction("$1", "✅"), posted("$6", "gone")])).await;
    fake.said(CONTROL, "電子申請のファイルを読めませんでした（M_NOT_FOUND）").await;
    assert_eq!(fake.all_said(CONTROL).len(), 6);
}
