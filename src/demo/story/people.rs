//! Steps 1 to 4: the city's first member of staff, two facilities with their IDs, enrolment, and what a login needs.

use heya::error::{Error, Result};

use super::{
    super::{client::try_login, enrolment::between},
    Cast, Person, Stage, check, command, same,
};

/// The visiting-nurse station.
pub const STATION: &str = "ひばり訪問看護";
/// The care manager's facility.
pub const OFFICE: &str = "あおば居宅介護支援";
/// The nurse.
pub const NURSE: &str = "山川里子";
/// The care manager.
pub const MANAGER: &str = "佐藤花子";

/// Steps 1 to 3. `sheets` are those of the first start.
pub async fn gather(stage: &mut Stage<'_>, sheets: &[String]) -> Result<Cast> {
    stage.narrator.step(1);
    let mut staff = stage.enrol("市の担当者 (the city's member of staff)", sheets, "窓口のパソコン").await?;
    let control = staff.session.room_of_kind("control").await?;
    stage.tell(format!(
        "the city's first member of staff ({}) enrolled from the two sheets and is in the control room",
        staff.login_id
    ));

    stage.narrator.step(2);
    for (name, kind) in [(STATION, "訪問看護"), (OFFICE, "介護")] {
        let done = command(&mut staff, &control, &format!("事業所登録 {name} {kind} 誓約済"), "事業所番号：")
            .await?;
        check(done.text().contains(name), || format!("the bot registered something else: {}", done.text()))?;
        stage.tell(format!("the city registered {name} in the control room"));
    }
    let ids = [
        (format!("発行 {STATION} 施設ID 誓約済"), "its facility ID (施設ID)"),
        (format!("発行 {STATION} {NURSE} 看護師 誓約済"), "a personal ID (個人ID) for the nurse"),
        (
            format!("発行 {OFFICE} {MANAGER} ケアマネジャー 誓約済"),
            "a personal ID (個人ID) for the care manager",
        ),
    ];
    let mut issued = Vec::new();
    for (text, what) in &ids {
        let (login_id, sheets) = issue(&mut staff, &control, text).await?;
        stage.tell(format!("the city issued {login_id}, {what}: two sheets"));
        issued.push(sheets);
    }
    let [of_station, of_nurse, of_manager] = issued.as_slice() else {
        return Err(Error::internal("three IDs were to be issued"));
    };

    stage.narrator.step(3);
    let mut station = stage
        .enrol("訪問看護ステーション・施設ID (the visiting-nurse station)", of_station, "事務所のパソコン")
        .await?;
    let announcement = station.session.room_of_kind("announcement").await?;
    stage.tell(format!(
        "{STATION} ({}) enrolled, logged in and is in the announcement room",
        station.login_id
    ));
    let nurse = stage.enrol("看護師 (the nurse)", of_nurse, "訪問用スマートフォン1号").await?;
    stage.tell(format!("{NURSE}, nurse ({}), enrolled a phone and logged in", nurse.login_id));
    let manager = stage.enrol("ケアマネジャー (the care manager)", of_manager, "居宅のパソコン").await?;
    stage.tell(format!("{MANAGER}, care manager ({}), enrolled and logged in", manager.login_id));
    Ok(Cast { staff, station, nurse, manager, control, announcement })
}

/// The city issues an ID; its login id and sheets.
async fn issue(staff: &mut Person, control: &str, text: &str) -> Result<(String, Vec<String>)> {
    let answer = command(staff, control, text, "票：").await?;
    let login_id = between(answer.text(), "利用者ID：", "（").unwrap_or_default().to_owned();
    let sheets = sheets_of(answer.text());
    same("the number of sheets", &2, &sheets.len())?;
    Ok((login_id, sheets))
}

/// The paths of sheets in an answer of the bot.
pub fn sheets_of(answer: &str) -> Vec<String> {
    let line = answer.lines().find_map(|line| line.strip_prefix("票：")).unwrap_or_default();
    let line = line.split('（').next().unwrap_or_default();
    line.split('、').map(|path| path.trim().to_owned()).filter(|path| !path.is_empty()).collect()
}

/// Step 4: certificate and password, and neither alone.
pub async fn both_factors(stage: &mut Stage<'_>, cast: &mut Cast) -> Result<()> {
    stage.narrator.step(4);
    let manager = &cast.manager;
    let without = stage.place.terminal(None)?;
    let refused = try_login(&without, &manager.login_id, &manager.password).await?;
    let body = refused.expect("the right password without a certificate", 403)?;
    same("jp.heya.certificate", &Some("none"), &body["jp.heya.certificate"].as_str())?;
    stage.tell("the right password without a certificate: 403, certificate: none");

    let own = stage.place.terminal(Some(&manager.terminal.identity))?;
    let wrong = try_login(&own, &manager.login_id, "Wrong-password-1").await?;
    let the_one = wrong.expect("the certificate with a wrong password", 403)?;
    check(the_one["jp.heya.certificate"].is_null(), || "the refusal tells of the certificate".to_owned())?;
    stage.tell("the certificate with a wrong password: 403");

    let foreign = stage.place.terminal(Some(&cast.station.terminal.identity))?;
    let elsewhere = try_login(&foreign, &manager.login_id, &manager.password).await?;
    let body = elsewhere.expect("the right password on another facility's terminal", 403)?;
    same("the refusal on another facility's terminal", &the_one, &body)?;
    stage.tell(format!("the right password on a terminal of {STATION}: the same 403, word for word"));

    let unknown = try_login(&own, "p999999", &manager.password).await?;
    let body = unknown.expect("an ID that does not exist", 403)?;
    same("the refusal for an ID that does not exist", &the_one, &body)?;
    stage.tell("an ID that does not exist: the same 403");

    let both = try_login(&own, &manager.login_id, &manager.password)
        .await?
        .expect("certificate and password", 200)?;
    stage.secrets.extend(both["access_token"].as_str().map(str::to_owned));
    stage.tell("certificate and password together: logged in");
    Ok(())
}
