//! What must not be in a mail or in the log: who the subject is, what was written, and everything that opens a door.

use heya::error::{Error, Result};

use super::mail_sink::Mail;

/// The subject, as the care manager writes it.
pub const SUBJECT: &str = "見本 太郎";
/// When the subject was born, as in the forms.
pub const BIRTH_DATE: &str = "昭和15年5月1日";
/// Where the subject lives.
pub const ADDRESS: &str = "〇〇市見本町1-2-3";
/// A word of what is written in the room.
pub const CONTENT: &str = "血圧";

/// Whatever of the subject and of the room could show up, in the spellings that a program might make of it.
const PRIVATE: [&str; 11] = [
    "見本",
    "太郎",
    "みほん",
    "たろう",
    "ミホン",
    "タロウ",
    "昭和15年",
    "1940-05-01",
    "見本町",
    "血圧",
    "\\u898b\\u672c",
];

/// Refuses mails that tell more than a number.
pub fn check_mails(mails: &[Mail]) -> Result<()> {
    for (at, mail) in mails.iter().enumerate() {
        for text in [&mail.raw, &mail.subject, &mail.body] {
            check(&format!("mail {:04}.eml", at + 1), text, &[])?;
        }
    }
    Ok(())
}

/// Refuses a log with anything private, or with one of the secrets.
pub fn check_log(log: &str, secrets: &[String]) -> Result<()> {
    check("the log", log, secrets)
}

fn check(place: &str, text: &str, secrets: &[String]) -> Result<()> {
    if let Some(word) = PRIVATE.iter().find(|word| text.contains(**word)) {
        return Err(Error::internal(format!("{place} contains 「{word}」")));
    }
    // Which one is not said: this text goes to the screen.
    if secrets.iter().any(|secret| !secret.is_empty() && text.contains(secret.as_str())) {
        return Err(Error::internal(format!("{place} contains a password, code or token")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaks_are_found() {
        let mail = |body: &str| Mail {
            to: String::new(),
            raw: String::new(),
            subject: String::new(),
            body: body.to_owned(),
        };
        assert!(check_mails(&[mail("部屋番号：3")]).is_ok());
        assert!(check_mails(&[mail("部屋番号：3"), mail("見本さん")]).is_err());
        assert!(check_log("nothing", &["secret".to_owned(), String::new()]).is_ok());
        assert!(check_log("a secret", &["secret".to_owned()]).is_err());
    }
}
