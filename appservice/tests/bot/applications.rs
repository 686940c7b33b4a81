//! E-applications: a file is read, taken on a word, and each row is a case that waits for approval.

use serde_json::json;

use crate::fake::{CARE_MANAGER, CONTROL, Fake, OTHER, ROOM, STAFF, message};
use crate::{CONSENT, OPENING, WITHDRAWAL, own, reaction, scan};

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
        fake.said(CONTROL, "新しい申請：3件\n・整理番号 A-5 部屋の終了\n・整理番号 A-6 部屋の開設\n").await;
    // What two rows ask for alike is told before anything is taken, and nothing was.
    assert!(
        read.body.contains("整理番号 A-7：同じ依頼が、このファイルの整理番号 A-5 にもあります"),
        "{}",
        read.body
    );
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
