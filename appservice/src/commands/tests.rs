//! Commands as staff type them.

use time::macros::date;

use super::*;

#[test]
fn files_that_are_consent_forms() {
    for (words, said) in [
        ("同意書 12", Some(Some(12))),
        ("同意書_12.pdf", Some(Some(12))),
        ("同意書（案件１２）.jpg\nIMG_0001.jpg", Some(Some(12))),
        ("案件12の同意書.pdf", Some(Some(12))),
        ("Consent form 7.pdf", Some(Some(7))),
        ("同意書.pdf", Some(None)),
        ("同意書_20261120.pdf", Some(None)),
        ("IMG_0012.jpg", None),
        ("案件 12.pdf", None),
        ("", None),
    ] {
        assert_eq!(consent_scan(words), said, "{words}");
    }
}

fn read(text: &str) -> Option<Result<Command, Problem>> {
    parse(text, date!(2026 - 11 - 23))
}

fn act(text: &str) -> Action {
    match read(text) {
        Some(Ok(Command::Act(action))) => action,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn talk_is_no_command() {
    for text in [
        "おはようございます",
        "追加の資料を送ります",
        "終了しました",
        "承認お願いします",
        "一覧を見てください",
        "open the door",
        "",
    ] {
        let parsed = read(text);
        assert!(matches!(parsed, None | Some(Err(_))), "{text}: {parsed:?}");
    }
    assert_eq!(read("追加の資料を送ります"), None);
}

#[test]
fn rooms_and_people() {
    let expected = act("追加 14 佐藤花子さん、p104300");
    for text in [
        "追加　１４　「佐藤花子」さん、ｐ104300",
        "add 部屋14 佐藤花子さん、p104300",
        "追加: 部屋番号 14 佐藤花子さん、P104300",
    ] {
        assert_eq!(act(text), expected, "{text}");
    }
    let Action::Remove { place, people } = act("削除 14 あおば訪問看護の佐藤さん") else {
        panic!()
    };
    assert_eq!((place.number, people[0].facility.as_deref()), (Some(14), Some("あおば訪問看護")));
    assert!(matches!(act("終了 14"), Action::Close { .. }));
    assert!(matches!(act("再開 #14"), Action::Reopen { .. }));
    assert_eq!(read("追加 佐藤さん"), Some(Err(Problem::Usage(Name::Add))));
}

#[test]
fn facilities_and_accounts() {
    let expected = Action::RegisterFacility {
        name: "あおば訪問看護".into(),
        facility_kind: "visiting_nurse".into(),
    };
    assert_eq!(act("事業所登録 「あおば訪問看護」 訪問看護 誓約済"), expected);
    assert_eq!(read("事業所登録 あおば訪問看護 訪問看護"), Some(Err(Problem::Pledge(Name::Register))));
    assert_eq!(read("事業所登録 誓約済"), Some(Err(Problem::Usage(Name::Register))));
    let Action::IssuePersonalId { name, profession, .. } = act("発行 あおば訪問看護 佐藤 花子 看護師 誓約済")
    else {
        panic!()
    };
    assert_eq!((name.as_str(), profession.as_deref()), ("佐藤花子", Some("看護師")));
    assert!(matches!(act("発行 あおば訪問看護 施設ID 誓約済"), Action::IssueFacilityId { .. }));
    assert!(matches!(act("端末コード p104217"), Action::IssueCode { .. }));
    for text in ["パスワード再発行 p104217", "ﾊﾟｽﾜｰﾄﾞ再発行　Ｐ104217", "reset p104217"]
    {
        assert!(
            matches!(act(text), Action::ResetAccount { person } if person.said.eq_ignore_ascii_case("p104217")),
            "{text}"
        );
    }
    let Action::ResetAccount { person } = act("パスワード再発行 みどり薬局の鈴木一郎さん")
    else {
        panic!()
    };
    assert_eq!((person.said.as_str(), person.facility.as_deref()), ("鈴木一郎", Some("みどり薬局")));
    assert_eq!(read("パスワード再発行"), Some(Err(Problem::Usage(Name::Reset))));
    assert!(matches!(act("端末失効 5 紛失"), Action::RevokeTerminal { terminal: 5, .. }));
    assert!(matches!(act("利用終了 p104217 退職のため"), Action::EndAccount { .. }));
}

#[test]
fn decisions() {
    let approve =
        |cases: &[i64], second_room| Some(Ok(Command::Approve { cases: cases.to_vec(), second_room }));
    assert_eq!(read("承認 12"), approve(&[12], false));
    assert_eq!(read("承認１２"), approve(&[12], false));
    assert_eq!(read("承認 12 13"), approve(&[12, 13], false));
    assert_eq!(read("承認 12 二つ目"), approve(&[12], true));
    assert_eq!(read("承認"), approve(&[], false));
    assert_eq!(
        read("差し戻し 12 書類が足りません"),
        Some(Ok(Command::Refuse { case: Some(12), reason: "書類が足りません".into() }))
    );
    assert!(
        matches!(read("指定 12 p104217 p104300"), Some(Ok(Command::Assign { case: 12, people })) if people.len() == 2)
    );
    assert_eq!(read("案件"), Some(Ok(Command::OpenCases)));
    assert_eq!(read("案件 12"), Some(Ok(Command::ShowCase(12))));
}

#[test]
fn announcements() {
    assert!(matches!(act("お知らせ\n明日は停電です"), Action::Announce { facilities: None, .. }));
    assert!(matches!(act("お知らせ 全員 明日は停電です"), Action::Announce { facilities: None, .. }));
    assert!(matches!(act("お知らせ あおば訪問看護、みどり薬局\n明日は停電です"),
        Action::Announce { facilities: Some(named), .. } if named.len() == 2));
    assert_eq!(read("お知らせ 明日は停電です"), Some(Err(Problem::Usage(Name::Announce))));
}

#[test]
fn forms() {
    assert!(matches!(read("同意"), Some(Err(Problem::Gaps(Name::Consent, _)))));
    assert!(matches!(read("開設"), Some(Err(Problem::Gaps(Name::Open, _)))));
    assert!(matches!(act("開設 職能団体 〇〇市薬剤師会"), Action::OpenAssociation { .. }));
    assert!(matches!(
        read("同意の撤回\n氏名：山田太郎\n生年月日：1940/5/1"),
        Some(Ok(Command::WithdrawConsent { .. }))
    ));
}

#[test]
fn a_rooms_life_after_closing() {
    let life = |text: &str| match act(text) {
        Action::Life { step, place, reason } => (step, place.number, reason),
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(life("保管 14"), (Step::Archive, Some(14), String::new()));
    assert_eq!(life("書き出し　部屋 １４"), (Step::Export, Some(14), String::new()));
    assert_eq!(life("消去 14"), (Step::Purge, Some(14), String::new()));
    assert_eq!(
        life("法的保全 14 訴訟のため\n担当：法務課"),
        (Step::Hold, Some(14), "訴訟のため\n担当：法務課".replace('：', ":"))
    );
    assert_eq!(life("保全解除 14"), (Step::Release, Some(14), String::new()));
    assert_eq!(life("緊急閲覧 14 救急搬送の確認"), (Step::BreakGlass, Some(14), "救急搬送の確認".to_owned()));
    assert_eq!(life("緊急閲覧終了 14").0, Step::EndBreakGlass);
    let id = format!("${}", "a".repeat(43));
    let Action::Redact { place, event_id, reason } =
        act(&format!("投稿取消 14 https://matrix.to/#/!room/{id}?via=example.jp 別の方の写真"))
    else {
        panic!()
    };
    assert_eq!((place.number, event_id, reason.as_str()), (Some(14), id, "別の方の写真"));
}

/// Staff also talk to each other in the control room, about rooms and their numbers.
#[test]
fn talk_about_a_room_changes_nothing() {
    for text in [
        "保管 14 はもう済みましたか？",
        "保管 箱は 14 個届きました",
        "終了 14 はいつの予定ですか？",
        "終了 した部屋は 14 です",
        "再開 14 できますか",
        "消去 してよいのは 14 だけです",
        "緊急閲覧 14",
        "緊急閲覧 14 は誰がしましたか？",
        "法的保全 14",
        "書き出し 14 と 15",
        "端末失効 5 でよろしいですか",
        "投稿取消 14 別の方の写真",
    ] {
        assert!(matches!(read(text), Some(Err(Problem::Usage(_)))), "{text}: {:?}", read(text));
    }
}

#[test]
fn everybody_chooses_their_mails() {
    assert_eq!(mail_scope("メール通知"), Some(None));
    assert_eq!(mail_scope("メール通知　すべて"), Some(Some("all")));
    assert_eq!(mail_scope("メール通知 自分宛て"), Some(Some("highlight")));
    assert_eq!(mail_scope("mail direct"), Some(Some("direct")));
    for text in ["メール通知が来ません", "メールを送りました", "mailbox", "すべて"] {
        assert_eq!(mail_scope(text), None, "{text}");
    }
}
