//! Steps 5 to 8: a subject's room is asked for, approved, opened, written in, and gets one more member; the city posts
//! a notice.

use std::{collections::BTreeSet, time::Instant};

use heya::error::{Error, Result};
use reqwest::{Method, header};
use serde_json::{Value, json};

use super::{
    super::{
        client::{Seen, Session, answer, event_id, part},
        enrolment::{between, post},
        leaks::{ADDRESS, BIRTH_DATE, CONTENT, SUBJECT},
    },
    Cast, Person, Stage, check,
    people::{MANAGER, NURSE, STATION},
    same,
};

/// Where the care manager gets mail.
const MAILBOX: &str = "care-manager@example.jp";

/// The subject's room.
pub struct Room {
    /// Its id.
    pub id: String,
    /// Its number (部屋番号).
    pub number: i64,
    /// What the care manager wrote in it.
    pub written: String,
    /// The photo's `mxc://` address without its beginning: server and media id.
    pub photo: String,
}

/// Step 5: from consent to an open room.
pub async fn open(stage: &mut Stage<'_>, cast: &mut Cast) -> Result<Room> {
    stage.narrator.step(5);
    notify_by_mail(stage, &mut cast.manager).await?;
    let city = stage.city_user();
    let manager = &mut cast.manager.session;
    // As Element does it.
    let asked = json!({"invite": [city], "is_direct": true, "preset": "trusted_private_chat"});
    let made = manager
        .call(Method::POST, "v3/createRoom", Some(asked))
        .await?
        .expect("a direct room with @city", 200)?;
    let direct = made["room_id"].as_str().unwrap_or_default().to_owned();
    manager.heard(&direct, 0, "窓口です").await?;
    stage.tell(format!("{MANAGER} opened a direct room with @city; the bot joined and said what it can do"));

    let empty = tell_city(manager, &direct, "同意の報告", "そろっていません").await?;
    check(empty.text().contains("②市が情報を取得することへの同意"), || {
        "the bot sent no consent form".to_owned()
    })?;
    let consent = format!(
        "同意の報告\n対象者氏名：{SUBJECT}\n生年月日：{BIRTH_DATE}\n住所：{ADDRESS}\n説明者：{MANAGER}\n\
         説明者の職種：ケアマネジャー\n説明日：{}\n①情報共有への同意：はい\n②市が情報を取得することへの同意：はい",
        heya::audit::day_of(heya::clock::Clock::default().now_ms())
    );
    let in_control = cast.staff.session.mark();
    tell_city(manager, &direct, &consent, "同意の報告を受け付けました").await?;
    cast.staff.session.heard(&cast.control, in_control, "同意の報告がありました").await?;
    stage.tell(format!("{MANAGER} filled in the consent form; the bot stored it and told the control room"));

    tell_city(manager, &direct, "部屋の開設をお願いします", "要件：").await?;
    let request = format!(
        "開設依頼\n対象者氏名：{SUBJECT}\n生年月日：{BIRTH_DATE}\n住所：{ADDRESS}\n要件：①\nメンバー：{STATION}、{}",
        cast.staff.login_id
    );
    let in_control = cast.staff.session.mark();
    tell_city(manager, &direct, &request, "市への依頼として受け付けました").await?;
    let case = cast.case(in_control, "部屋の開設").await?;
    check(!case.text.contains("承認の前に確認が必要"), || {
        format!("the bot did not find all members: {}", case.text)
    })?;
    stage.tell(format!("{MANAGER} asked for the room; the bot filed case {}", case.number));

    let (in_direct, mails) = (cast.manager.session.mark(), stage.mails.mark());
    cast.command(&format!("承認 {}", case.number), &format!("案件 {} を完了しました", case.number)).await?;
    let told = cast.manager.session.heard(&direct, in_direct, "部屋番号は ").await?;
    let number = between(told.text(), "部屋番号は ", " です").and_then(|text| text.trim().parse().ok());
    let number: i64 = number.ok_or_else(|| Error::internal("the bot told no room number"))?;
    stage.tell(format!("the city approved case {}; the bot opened room {number}", case.number));

    let find = |seen: &Seen| {
        let content = &seen.event["content"];
        (seen.event["type"] == "jp.heya.room" && content["room_number"] == number).then(|| seen.room.clone())
    };
    let id = cast.manager.session.until("the room in the sync", in_direct, find).await?;
    check_room(stage, cast, &id, number).await?;
    cast.manager.session.heard(&id, in_direct, "この部屋を開設しました").await?;
    let mail = stage.mails.expect(MAILBOX, mails, "部屋の開設", &format!("部屋番号：{number}")).await?;
    stage.tell(format!("the mail 「{}」 arrived, with the room's number only", mail.subject));
    Ok(Room { id, number, written: String::new(), photo: String::new() })
}

/// Somebody writes to the city in a direct room and reads the bot's answer.
async fn tell_city(session: &mut Session, room: &str, text: &str, reply: &str) -> Result<Seen> {
    let mark = session.mark();
    session.say(room, text).await?;
    session.heard(room, mark, reply).await
}

/// The room has exactly the members and powers that it must have.
async fn check_room(stage: &mut Stage<'_>, cast: &mut Cast, id: &str, number: i64) -> Result<()> {
    let path = format!("v3/rooms/{}/state", part(id));
    let state = cast.manager.session.call(Method::GET, &path, None).await?.expect("the room's state", 200)?;
    let of = |kind: &str| {
        state.as_array().into_iter().flatten().filter(move |e| e["type"] == kind).collect::<Vec<_>>()
    };
    let one = |kind: &str| of(kind).first().map(|event| event["content"].clone()).unwrap_or_default();
    let member = |event: &&Value| {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (word(&event["state_key"]), word(&event["content"]["membership"]))
    };
    let got: BTreeSet<_> = of("m.room.member").iter().map(member).collect();
    let city = stage.city_user();
    let staff = cast.staff.session.user_id.clone();
    let people = [&city, &staff, &cast.station.session.user_id, &cast.manager.session.user_id];
    let expected: BTreeSet<_> = people.into_iter().map(|id| (id.clone(), "join".to_owned())).collect();
    same("the members", &expected, &got)?;

    let create = of("m.room.create");
    same("the creator", &Some(city.as_str()), &create.first().and_then(|event| event["sender"].as_str()))?;
    same("further creators", &Value::Null, &one("m.room.create")["additional_creators"])?;
    let powers = one("m.room.power_levels");
    same("the people with power", &json!({staff.as_str(): 50}), &powers["users"])?;
    for (name, level) in [
        ("users_default", 0),
        ("events_default", 0),
        ("state_default", 50),
        ("invite", 50),
        ("kick", 50),
        ("ban", 50),
        ("redact", 50),
    ] {
        same(name, &json!(level), &powers[name])?;
    }
    for kind in ["m.room.power_levels", "m.room.join_rules", "m.room.history_visibility", "jp.heya.room"] {
        same(&format!("the power for {kind}"), &json!(100), &powers["events"][kind])?;
    }
    same("the join rule", &json!("invite"), &one("m.room.join_rules")["join_rule"])?;
    same("guests", &json!("forbidden"), &one("m.room.guest_access")["guest_access"])?;
    same("encryption events", &0, &of("m.room.encryption").len())?;
    let expected = json!({"kind": "subject", "room_number": number, "status": "open"});
    let mut note = one("jp.heya.room");
    // An opaque reference, another in every city.
    let subject = note.as_object_mut().and_then(|note| note.remove("subject")).unwrap_or_default();
    same("the length of the subject's reference", &Some(16), &subject.as_str().map(str::len))?;
    same("the city's note on the room", &expected, &note)?;
    stage.tell(format!(
        "room {number} has exactly its {} members; the city made it, its staff has power 50, others 0",
        people.len()
    ));
    Ok(())
}

/// Adds an address and a pusher by the calls of a standard client.
async fn notify_by_mail(stage: &mut Stage<'_>, person: &mut Person) -> Result<()> {
    let (mark, session) = (stage.mails.mark(), &person.session);
    let client_secret = heya::clock::random_token(24);
    let asked = json!({"client_secret": client_secret, "email": MAILBOX, "send_attempt": 1});
    let path = "v3/account/3pid/email/requestToken";
    let body = session
        .call(Method::POST, path, Some(asked))
        .await?
        .expect("asking for the check of an address", 200)?;
    let mail = stage.mails.expect(MAILBOX, mark, "メールアドレスの確認", "/mail/verify?token=").await?;
    let link = mail.body.lines().find(|line| line.starts_with(&stage.place.enrol)).unwrap_or_default().trim();
    let path = link.strip_prefix(&stage.place.enrol).unwrap_or_default();
    let browser = stage.place.browser()?;
    let page = answer(browser.request(Method::GET, path)).await?;
    page.expect("the page behind the mail's link", 200)?;
    let text = page.text();
    let token = between(&text, "name=\"token\" value=\"", "\"").unwrap_or_default();
    stage.secrets.push(token.to_owned());

    let add = json!({"client_secret": client_secret, "sid": body["sid"]});
    let path = "v3/account/3pid/add";
    let asked = session.call(Method::POST, path, Some(add.clone())).await?;
    let asked = asked.expect("adding the address without the password", 401)?;
    let mut with_password = add;
    with_password["auth"] = json!({
        "type": "m.login.password", "session": asked["session"], "password": person.password,
        "identifier": {"type": "m.id.user", "user": person.login_id},
    });
    let early = session.call(Method::POST, path, Some(with_password.clone())).await?;
    early.expect("adding the address before the button was pressed", 400)?;

    post(&browser, "/mail/verify", &[("token", token)], None).await?.expect("the button on the page", 200)?;
    post(&browser, "/mail/verify", &[("token", token)], None)
        .await?
        .expect("the button a second time", 403)?;
    let asked = session.call(Method::POST, path, Some(without_auth(&with_password))).await?;
    with_password["auth"]["session"] = asked.expect("adding the address", 401)?["session"].clone();
    session
        .call(Method::POST, path, Some(with_password))
        .await?
        .expect("adding the address with the password", 200)?;
    let pusher = json!({
        "kind": "email", "app_id": "m.email", "pushkey": MAILBOX, "app_display_name": "Email Notifications",
        "device_display_name": MAILBOX, "lang": "ja", "data": {}, "append": false,
    });
    session.call(Method::POST, "v3/pushers/set", Some(pusher)).await?.expect("the e-mail pusher", 200)?;
    stage.tell(format!(
        "{MANAGER} added an e-mail address: link in a mail, button, password; mail notification is on"
    ));
    Ok(())
}

fn without_auth(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.remove("auth");
    }
    body
}

/// Step 6: messages, a photo, a mention.
pub async fn write(stage: &mut Stage<'_>, cast: &mut Cast, room: &Room) -> Result<Room> {
    stage.narrator.step(6);
    let id = room.id.as_str();
    let mut written = String::new();
    for (person, text) in [
        (&mut cast.manager, format!("見本さんの担当の{MANAGER}です。よろしくお願いします。")),
        (&mut cast.station, format!("{STATION}です。今日の{CONTENT}は 128/76 でした。")),
        (&mut cast.staff, "市の担当です。見本さんの件、承知しました。".to_owned()),
    ] {
        let event = person.session.say(id, &text).await?;
        if written.is_empty() {
            written = event;
        }
    }
    cast.manager.session.heard(id, 0, "承知しました").await?;
    stage.tell(format!("{MANAGER}, {STATION} and the city wrote in room {}", room.number));

    let picture = picture()?;
    let upload =
        cast.station.session.http.request(Method::POST, "/_matrix/media/v3/upload?filename=photo.png");
    let upload = upload.bearer_auth(cast.station.session.token()).header(header::CONTENT_TYPE, "image/png");
    let uploaded = answer(upload.body(picture.clone())).await?.expect("uploading a photo", 200)?;
    let uri = uploaded["content_uri"].as_str().unwrap_or_default().to_owned();
    let photo = uri.strip_prefix("mxc://").unwrap_or_default().to_owned();
    let content = json!({
        "msgtype": "m.image", "body": "photo.png", "url": uri, "m.mentions": {},
        "info": {"mimetype": "image/png", "size": picture.len(), "w": SIDE, "h": SIDE},
    });
    cast.station.session.send(id, "m.room.message", content).await?.expect("sending the photo", 200)?;
    cast.manager
        .session
        .until("the photo", 0, |seen| (seen.event["content"]["url"] == uri.as_str()).then_some(()))
        .await?;
    let path = format!("v1/media/download/{photo}");
    let got = cast.manager.session.call(Method::GET, &path, None).await?;
    got.expect("a member downloads the photo", 200)?;
    check(got.body == picture, || "the photo came back changed".to_owned())?;
    let small = format!("v1/media/thumbnail/{photo}?width=96&height=96&method=scale");
    cast.manager.session.call(Method::GET, &small, None).await?.expect("a member's thumbnail", 200)?;
    let nurse = &cast.nurse.session;
    nurse
        .call(Method::GET, &path, None)
        .await?
        .expect("somebody who is no member downloads the photo", 404)?;
    let history = format!("v3/rooms/{}/messages?dir=b", part(id));
    nurse.call(Method::GET, &history, None).await?.expect("somebody who is no member reads the room", 403)?;
    stage.tell(format!(
        "{STATION} sent a photo ({} KB); {MANAGER} has it unchanged; {NURSE}, no member, got 404 and no history",
        picture.len() / 1024
    ));

    let (mark, begun) = (stage.mails.mark(), Instant::now());
    let mention = json!({
        "msgtype": "m.text", "body": format!("{MANAGER}さん、見本さんの{CONTENT}が高めです。ご確認ください。"),
        "m.mentions": {"user_ids": [cast.manager.session.user_id]},
    });
    event_id(cast.station.session.send(id, "m.room.message", mention).await?.expect("a mention", 200)?)?;
    let mail = stage.mails.expect(MAILBOX, mark, "着信", &format!("部屋番号：{}", room.number)).await?;
    for name in [MANAGER, NURSE, STATION] {
        check(!mail.raw.contains(name) && !mail.body.contains(name), || format!("the mail names {name}"))?;
    }
    stage.narrator.tell_in(
        &format!("{MANAGER} was mentioned; the mail 「{}」 arrived and names nobody", mail.subject),
        begun.elapsed(),
    );
    Ok(Room { id: id.to_owned(), number: room.number, written, photo })
}

/// The sides of the photo.
const SIDE: u32 = 640;

/// A picture that does not shrink to nothing.
fn picture() -> Result<Vec<u8>> {
    let pixel = |x: u32, y: u32| {
        let byte = |n: u32| u8::try_from(n % 256).unwrap_or_default();
        image::Rgb([byte(x * y / 7), byte(x ^ y), byte(x + 2 * y)])
    };
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(SIDE, SIDE, pixel)
        .write_to(&mut png, image::ImageFormat::Png)
        .map_err(|error| Error::internal(format!("the photo: {error}")))?;
    Ok(png.into_inner())
}

/// Step 7: a request in the room, approved by a reaction.
pub async fn add_the_nurse(stage: &mut Stage<'_>, cast: &mut Cast, room: &Room) -> Result<()> {
    stage.narrator.step(7);
    let (in_control, in_room) = (cast.staff.session.mark(), cast.manager.session.mark());
    let text = format!("{STATION}の{NURSE}さんを追加してください");
    cast.manager.session.say(&room.id, &text).await?;
    cast.manager.session.heard(&room.id, in_room, "市への依頼として受け付けました").await?;
    let case = cast.case(in_control, "メンバーの追加").await?;
    check(case.text.contains(&cast.nurse.login_id), || {
        format!("the bot found somebody else: {}", case.text)
    })?;
    stage.tell(format!("{MANAGER} wrote 「{text}」; the bot filed case {}", case.number));

    let mark = cast.nurse.session.mark();
    let control = cast.control.clone();
    cast.staff.session.react(&control, &case.message, "✅").await?.expect("the city's ✅", 200)?;
    let id = room.id.as_str();
    let in_it = |seen: &Seen| (seen.room == id && seen.event["type"] == "jp.heya.room").then_some(());
    cast.nurse.session.until("the room in the nurse's sync", mark, in_it).await?;
    cast.manager.session.heard(id, in_room, "完了しました").await?;
    cast.nurse.session.say(id, "看護師の山川です。よろしくお願いします。").await?;
    let path = format!("v1/media/download/{}", room.photo);
    cast.nurse
        .session
        .call(Method::GET, &path, None)
        .await?
        .expect("the new member downloads the photo", 200)?;
    stage.tell(format!("the city approved with ✅; {NURSE} is in the room, writes, and sees the photo"));
    Ok(())
}

/// Step 8: a notice to all facilities.
pub async fn announce(stage: &mut Stage<'_>, cast: &mut Cast) -> Result<()> {
    stage.narrator.step(8);
    let notice = "研修会を来月開きます。くわしくは後日お知らせします。";
    let mark = cast.station.session.mark();
    cast.command(&format!("お知らせ 全員\n{notice}"), "届いた事業所：").await?;
    let (announcement, city) = (cast.announcement.clone(), stage.city_user());
    let seen = cast.station.session.heard(&announcement, mark, notice).await?;
    same("who posted the notice", &Some(city.as_str()), &seen.event["sender"].as_str())?;
    let content = json!({"msgtype": "m.text", "body": "参加します"});
    let answered = cast.station.session.send(&announcement, "m.room.message", content).await?;
    answered.expect("a facility writes in the announcement room", 403)?;
    cast.station.session.react(&announcement, &seen.id(), "👍").await?.expect("a facility's 👍", 200)?;
    stage.tell(format!("the city posted a notice; {STATION} has it, may react, and may not write there"));
    Ok(())
}
