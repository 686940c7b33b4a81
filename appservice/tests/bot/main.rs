//! The bot against a server that forgets to answer: from consent to an open room, killed and restarted on the way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop where it is"
)]

mod applications;
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
async fn nobody_asks_without_end() {
    let fake = Fake::start().await;
    let bot = fake.bot().await;
    let ask = |n: u32, who: &str| {
        let body = CONSENT.replace("山田太郎", &format!("山田{n}"));
        message(DIRECT, &format!("$ask{n}"), who, &body)
    };
    for n in 1..=20 {
        let ten: Vec<_> = (1..=10).map(|one| ask(n * 10 - 10 + one, CARE_MANAGER)).collect();
        bot.deliver(&n.to_string(), json!(ten)).await;
    }
    bot.deliver("51", json!([ask(201, CARE_MANAGER)])).await;
    let told = fake.said(DIRECT, "これは受け付けていません").await;
    assert_eq!(told.mentions, [CARE_MANAGER]);
    // Talk is no request, and a withdrawal stops the sharing of somebody's information: it is always taken. Others are not
    // held up by it.
    let withdrawal = "同意の撤回\n対象者氏名：山田1\n生年月日：昭和15年5月1日";
    bot.deliver(
        "52",
        json!([
            message(DIRECT, "$talk", CARE_MANAGER, "はい"),
            message(DIRECT, "$back", CARE_MANAGER, withdrawal),
            ask(202, OTHER)
        ]),
    )
    .await;
    fake.said(CONTROL, "案件 1（").await;
    fake.said(CONTROL, "山田202").await;
    let told = fake.all_said(CONTROL);
    assert!(!told.iter().any(|said| said.body.contains("山田201")), "not taken");
    assert_eq!(told.iter().filter(|said| said.body.contains("同意の報告がありました")).count(), 201);
    let refused = |said: &fake::Said| said.body.contains("これは受け付けていません");
    assert_eq!(fake.all_said(DIRECT).iter().filter(|said| refused(said)).count(), 1);
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
