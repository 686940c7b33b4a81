//! What files are read to, and what rows and files that cannot be taken are told.

use std::collections::BTreeMap;

use time::macros::date;

use super::*;

const TODAY: Date = date!(2026 - 11 - 26);

const FILE: &str = "整理番号,手続き,申請者,対象者氏名,生年月日,住所,要件,説明者,説明者の職種,説明日,①情報共有への同意,②市が情報を取得することへの同意,メンバー,部屋番号,事業所,事業所の種類,IDの種類,誓約\r\n\
    R8-0001,同意の報告,p104217,山田　太郎,昭和15年5月1日,〇〇市1-2-3,,佐藤花子,ケアマネジャー,2026/11/20,はい,はい,,,,,,\r\n\
    R8-0002,部屋の開設,p104217,山田太郎,S15.5.1,〇〇市1-2-3,①,,,,,,\"みどり薬局の鈴木一郎さん\n田中次郎\",,,,,\r\n\
    R8-0003,追加,佐藤花子,,,,,,,,,,鈴木一郎さん,７,,,,\r\n\
    R8-0004,終了,p104217,,,,,,,,,,,7,,,,\r\n\
    R8-0005,利用申請,,高橋 次郎,,,,,看護師,,,,,,あおば訪問看護,訪問看護,個人ID,はい\r\n";

fn list(text: &str) -> List {
    read(text.as_bytes(), "x.csv", &Headings::default(), TODAY).unwrap()
}

/// The reasons of a file with one row of these columns.
fn reason(columns: &str, row: &str) -> Reason {
    let list = list(&format!("整理番号,手続き,{columns}\n1,{row}\n"));
    assert_eq!(list.applications, [], "{row}");
    list.aside[0].reason.clone()
}

#[test]
fn every_procedure_is_read() {
    let list = list(FILE);
    assert_eq!(list.aside, []);
    let [consent, opening, adding, closing, using] = list.applications.as_slice() else { panic!("{list:?}") };
    let Wanted::Consent(reported) = &consent.wanted else { panic!("{consent:?}") };
    assert_eq!((reported.name.as_str(), reported.birth_date.as_str()), ("山田 太郎", "1940-05-01"));
    let Wanted::Case(Action::OpenSubject { subject, people, .. }) = &opening.wanted else {
        panic!("{opening:?}")
    };
    assert_eq!((subject.key(), people.len()), (reported.key(), 3), "the applicant is in the room");
    assert_eq!(people[0].said, "p104217");
    let Wanted::Case(Action::Add { place, people }) = &adding.wanted else { panic!("{adding:?}") };
    assert_eq!((place.number, people[0].said.as_str()), (Some(7), "鈴木一郎"));
    assert!(matches!(&closing.wanted, Wanted::Case(Action::Close { place }) if place.number == Some(7)));
    let Wanted::Issue { issue: Action::IssuePersonalId { name, profession, .. }, facility, kind } =
        &using.wanted
    else {
        panic!("{using:?}")
    };
    assert_eq!((name.as_str(), profession.as_deref()), ("高橋次郎", Some("看護師")));
    assert_eq!((facility.as_str(), *kind), ("あおば訪問看護", Some("visiting_nurse")));
    // A cell with a line break: the line is where the row begins.
    assert_eq!((opening.line, adding.line, adding.receipt.as_str()), (3, 5, "R8-0003"));
}

#[test]
fn both_encodings_are_read() {
    let (cp932, _, wrong) = encoding_rs::SHIFT_JIS.encode(FILE);
    assert!(!wrong);
    let plain = read(FILE.as_bytes(), "x.csv", &Headings::default(), TODAY);
    assert_eq!(read(&cp932, "x.csv", &Headings::default(), TODAY), plain);
    let marked = [b"\xef\xbb\xbf".as_slice(), FILE.as_bytes()].concat();
    assert_eq!(read(&marked, "x.csv", &Headings::default(), TODAY), plain);
    // Characters of CP932 that Shift_JIS itself does not have.
    let (bytes, _, wrong) = encoding_rs::SHIFT_JIS.encode("整理番号,手続き,部屋の名称\n1,開設,①髙﨑会\n");
    assert!(!wrong);
    let list = read(&bytes, "x.csv", &Headings::default(), TODAY).unwrap();
    assert!(
        matches!(&list.applications[0].wanted, Wanted::Case(Action::OpenAssociation { name, .. }) if name == "1髙﨑会")
    );
    assert_eq!(read(b"\xff\xfe\x00\x00,", "x.csv", &Headings::default(), TODAY), Err(Unreadable::Encoding));
}

#[test]
fn a_city_has_words_of_its_own() {
    let of = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(theirs, ours)| ((*theirs).to_owned(), (*ours).to_owned()))
            .collect::<BTreeMap<_, _>>()
    };
    let columns = of(&[
        ("お問い合わせ番号", "整理番号"),
        ("ご用件", "手続き"),
        ("部屋　番号（数字）", "部屋番号"),
        ("ご担当", "申請者"),
    ]);
    let headings = Headings::new(&columns, &of(&[("多職種連携：部屋を閉じる", "終了")])).unwrap();
    let text =
        "お問い合わせ番号,ご用件,部屋番号(数字),ご担当,備考\n12,多職種連携:部屋を閉じる,7,p104217,急ぎ\n";
    let list = read(text.as_bytes(), "x.csv", &headings, TODAY).unwrap();
    assert_eq!(list.applications[0].procedure, Procedure::Close);
    // A word of the city's own goes before ours, and a column may be left out.
    let text =
        "整理番号,手続き,氏名,対象者氏名,申請者,ご担当,部屋番号\n12,終了,申請した人,,だれか,p104217,7\n";
    let columns = of(&[("氏名", "見ない"), ("ご担当", "申請者")]);
    let list = read(text.as_bytes(), "x.csv", &Headings::new(&columns, &of(&[])).unwrap(), TODAY).unwrap();
    assert_eq!(list.applications[0].applicant.as_ref().map(|person| person.said.as_str()), Some("p104217"));
    assert!(list.subjects.is_empty());
    for (columns, procedures) in [(of(&[("a", "部屋の色")]), of(&[])), (of(&[]), of(&[("a", "開店")]))]
    {
        assert!(matches!(Headings::new(&columns, &procedures), Err(crate::Error::Heading(_))));
    }
}

#[test]
fn a_file_that_is_none_says_why() {
    let unreadable = |text: &str| read(text.as_bytes(), "x.csv", &Headings::default(), TODAY).unwrap_err();
    assert_eq!(unreadable(""), Unreadable::Empty);
    assert_eq!(unreadable("整理番号,手続き\n"), Unreadable::Empty);
    assert_eq!(unreadable("整理番号,手続き\n,\n ,\n"), Unreadable::Empty);
    assert_eq!(unreadable("番号,手続き\n1,開設\n"), Unreadable::NoReceipts);
    assert_eq!(unreadable("整理番号,用件\n1,開設\n"), Unreadable::NoProcedure);
    assert_eq!(
        unreadable("整理番号,受付番号,手続き\n1,2,開設\n"),
        Unreadable::ColumnTwice("整理番号".to_owned(), "受付番号".to_owned())
    );
    assert_eq!(unreadable("整理番号\t手続き\n1\t終了\n"), Unreadable::NoCommas);
    assert_eq!(unreadable("整理番号,手続き\n\"1,終了\n2,終了\n"), Unreadable::Quotes);
    let of = unreadable("整理番号,手続き,氏名,対象者氏名\n1,開設,申請者,対象者\n");
    assert_eq!(of, Unreadable::ColumnTwice("氏名".to_owned(), "対象者氏名".to_owned()));
    let many = "整理番号,手続き\n".to_owned() + &"1,終了\n".repeat(ROWS_MAX + 1);
    assert_eq!(unreadable(&many), Unreadable::TooManyRows);
    assert_eq!(unreadable(&"x".repeat(FILE_BYTES_MAX + 1)), Unreadable::TooLong);
}

#[test]
fn a_row_that_cannot_be_taken_says_why() {
    assert_eq!(reason("部屋番号", "開店,7"), Reason::Procedure);
    assert_eq!(reason("部屋番号", "終了,7,8"), Reason::Cells);
    assert_eq!(reason("部屋番号", "終了"), Reason::Cells);
    assert_eq!(reason("部屋番号", "終了,7"), Reason::Applicant);
    assert_eq!(reason("部屋番号,申請者", "終了,山田さんの部屋,p104217"), Reason::RoomNumber);
    assert_eq!(reason("部屋番号,申請者,メンバー", "追加,7,p104217,"), Reason::People);
    assert_eq!(reason("対象者氏名,住所,要件", "開設,山田太郎,〇〇市,①"), Reason::Gaps(vec![Gap::BirthDate]));
    assert_eq!(reason("種類", "開設,職能団体"), Reason::Gaps(vec![Gap::RoomName]));
    assert_eq!(reason("対象者氏名", "同意の撤回,山田太郎"), Reason::Gaps(vec![Gap::BirthDate]));
    assert_eq!(reason("事業所,誓約", "利用申請,,はい"), Reason::Facility);
    assert_eq!(reason("事業所,誓約", "利用申請,あおば,いいえ"), Reason::Pledge);
    assert_eq!(reason("事業所,誓約,事業所の種類", "利用申請,あおば,はい,商店"), Reason::FacilityKind);
    assert_eq!(reason("事業所,誓約", "利用申請,あおば,はい"), Reason::IdKind);
    assert_eq!(reason("事業所,誓約,IDの種類", "利用申請,あおば,はい,個人ID"), Reason::PersonName);
    assert_eq!(reason("備考", &format!("終了,{}", "あ".repeat(CELL_BYTES_MAX))), Reason::TooLong);
    for receipt in ["", "1#2", "1 2", "山田太郎", "Yamada", &"1".repeat(RECEIPT_BYTES_MAX + 1)] {
        let list = list(&format!("整理番号,手続き,申請者,部屋番号\n{receipt},終了,p1,7\n"));
        assert_eq!((list.aside[0].receipt.as_deref(), &list.aside[0].reason), (None, &Reason::Receipt));
    }
    // The others of its file are taken.
    let list = list(
        "整理番号,手続き,申請者,部屋番号\n1,終了,p104217,7\n1,終了,p104217,8\n2,終了,p104217,0\n3,終了,p104217,9\n",
    );
    assert_eq!(list.applications.iter().map(|a| a.receipt.as_str()).collect::<Vec<_>>(), ["1", "3"]);
    assert_eq!(
        list.aside.iter().map(|a| (a.line, a.reason.clone())).collect::<Vec<_>>(),
        [(3, Reason::Twice), (4, Reason::RoomNumber)]
    );
}

/// A refusal must never be read as a consent or a pledge.
#[test]
fn no_is_no() {
    for items in [
        "①②に同意しません",
        "①同意します②同意しません",
        "①には同意しますが、②には同意いたしかねます",
        "①②には同意できかねます",
        "①②同意せず",
    ] {
        let row = format!("同意の報告,山田太郎,1940-05-01,〇〇市,佐藤,看護師,2026-11-01,{items}");
        let reason = reason("対象者氏名,生年月日,住所,説明者,説明者の職種,説明日,同意項目", &row);
        assert!(
            matches!(&reason, Reason::Gaps(gaps) if gaps.contains(&Gap::CityObtains)),
            "{items}: {reason:?}"
        );
    }
    for no in ["同意しません", "同意できません", "同意しかねます", "同意しない", "拒否", "不同意"]
    {
        let row = format!("同意の報告,山田太郎,1940-05-01,〇〇市,佐藤,看護師,2026-11-01,{no},はい");
        let columns = "対象者氏名,生年月日,住所,説明者,説明者の職種,説明日,①情報共有への同意,②市が情報を取得することへの同意";
        assert_eq!(reason(columns, &row), Reason::Gaps(vec![Gap::SharesInformation]), "{no}");
    }
    for no in ["同意しません", "誓約に同意いたしかねます", "未", ""] {
        assert_eq!(
            reason("事業所,IDの種類,誓約", &format!("利用申請,あおば,施設ID,{no}")),
            Reason::Pledge,
            "{no}"
        );
    }
    for yes in ["誓約します", "はい", "確認しました", "必ず守ることを誓約する"] {
        let list = list(&format!("整理番号,手続き,事業所,IDの種類,誓約\n1,利用申請,あおば,施設ID,{yes}\n"));
        assert_eq!(list.applications.len(), 1, "{yes}");
    }
    assert_eq!(reason("事業所,IDの種類,誓約", "利用申請,あおば,施設ID・個人ID,はい"), Reason::IdKind);
}

/// Whom a file names is known whatever becomes of its rows.
#[test]
fn subjects_are_known() {
    let list =
        list("整理番号,手続き,対象者氏名,生年月日\n1,開店,山田 太郎,昭和15年5月1日\n,,鈴木花,\n2,終了,,\n");
    assert_eq!(list.subjects.into_iter().collect::<Vec<_>>(), ["山田太郎|1940-05-01", "鈴木花|"]);
}

/// Services give a file for each procedure; then its name says which.
#[test]
fn a_files_name_says_the_procedure() {
    let of = |name: &str| {
        let text = "整理番号,申請者,部屋番号,メンバー\n1,p104217,7,鈴木一郎さん\n";
        let procedures = BTreeMap::from([("連携の部屋をやめたい".to_owned(), "終了".to_owned())]);
        let headings = Headings::new(&BTreeMap::new(), &procedures).unwrap();
        read(text.as_bytes(), name, &headings, TODAY).map(|list| list.applications[0].procedure)
    };
    assert_eq!(of("利用者の追加_20261126.csv"), Ok(Procedure::Add));
    assert_eq!(of("メンバー削除.csv"), Ok(Procedure::Remove));
    assert_eq!(of("連携の部屋をやめたい(1).csv"), Ok(Procedure::Close));
    assert_eq!(of("追加と削除.csv"), Err(Unreadable::NoProcedure));
    assert_eq!(of("download.csv"), Err(Unreadable::NoProcedure));
}
