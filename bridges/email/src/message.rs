//! From a row of the outbox to an RFC 5322 message. The same row makes the same bytes at every attempt.

use lettre::{
    Address, Message,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
};
use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    Config,
    store::{Importance, Lang, Mail, MailKind, NoticeRow, Scope, Store},
    templates::{Name, Templates, Values},
};

/// What all mails have in common.
pub(crate) struct Writer {
    templates: Templates,
    from: Mailbox,
    service_name: String,
    login_url: String,
    contact: String,
}

/// A mail that can never be sent.
#[derive(Debug)]
pub(crate) enum Unsendable {
    /// The recipient's address is none.
    Address,
    /// Nothing is left to say.
    Empty,
    /// The message could not be built.
    Message,
}

/// A mail lists at most this many notices, and says how many more there are.
const ITEMS_MAX: usize = 20;

impl Writer {
    pub(crate) fn new(config: &Config, templates: Templates, from: Mailbox) -> Self {
        Self {
            templates,
            from,
            service_name: config.service_name.clone(),
            login_url: config.login_url.clone(),
            contact: config.contact.trim_end().to_owned(),
        }
    }

    /// Sender and recipient of the envelope, and the message.
    pub(crate) fn message(
        &self,
        store: &Store,
        mail: &Mail,
    ) -> Result<(Address, Address, Vec<u8>), Unsendable> {
        let to: Address = mail.address.parse().map_err(|_| Unsendable::Address)?;
        let (subject, body) = self.text(mail)?;
        let created = UNIX_EPOCH + Duration::from_millis(u64::try_from(mail.created_ms).unwrap_or(0));
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to.clone()))
            .date(created)
            .message_id(Some(store.message_id(mail, self.from.email.domain())))
            .subject(subject)
            // RFC 3834, section 5: so that no vacation notice answers. The second is the same for Microsoft's servers.
            .raw_header(header("Auto-Submitted", "auto-generated"))
            .raw_header(header("X-Auto-Response-Suppress", "All"))
            .header(ContentType::TEXT_PLAIN)
            .body(body.replace("\r\n", "\n").replace('\n', "\r\n"))
            .map_err(|_| Unsendable::Message)?;
        Ok((self.from.email.clone(), to, message.formatted()))
    }

    fn text(&self, mail: &Mail) -> Result<(String, String), Unsendable> {
        let mut values = Values::from([
            ("service", self.service_name.clone()),
            ("login_url", self.login_url.clone()),
            ("contact", self.contact.clone()),
        ]);
        let name = match &mail.kind {
            MailKind::Notices(notices) if notices.is_empty() => return Err(Unsendable::Empty),
            MailKind::Notices(notices) => {
                // Two pushers of one account may tell of the same event.
                let mut seen = BTreeSet::new();
                let notices: Vec<_> =
                    notices.iter().filter(|notice| seen.insert(notice.event_id.as_str())).collect();
                values.insert("count", notices.len().to_string());
                values.insert("rooms", rooms(mail.lang, notices.iter().map(|notice| notice.room_number)));
                values.insert("items", self.items(mail.lang, &notices));
                values.insert("mark", mark(mail.lang, &notices).to_owned());
                if notices.iter().all(|notice| notice.scope() == Scope::Opening) {
                    Name::RoomOpened
                } else if notices.iter().all(|notice| notice.scope() == Scope::Invite) {
                    Name::Invite
                } else {
                    Name::Notice
                }
            }
            MailKind::Owed { template, parameters } => {
                let name = Name::of_owed(template).ok_or(Unsendable::Message)?;
                let parameter = name.parameter().ok_or(Unsendable::Message)?;
                let value = parameters.get(parameter).ok_or(Unsendable::Message)?;
                if name == Name::RoomOpened {
                    values.insert("rooms", value.clone());
                } else {
                    values.insert(parameter, value.clone());
                }
                name
            }
        };
        Ok(self.templates.render(mail.lang, name, &values))
    }

    fn items(&self, lang: Lang, notices: &[&NoticeRow]) -> String {
        let mut items = String::new();
        for notice in notices.iter().take(ITEMS_MAX) {
            let number = notice.room_number;
            let room_name = notice.room_name.clone().unwrap_or_else(|| match (lang, number) {
                (Lang::Ja, Some(number)) => format!("部屋番号 {number} の部屋"),
                (Lang::Ja, None) => "部屋".to_owned(),
                (Lang::En, Some(number)) => format!("room {number}"),
                (Lang::En, None) => "a room".to_owned(),
            });
            let sender = notice.sender.clone().unwrap_or_else(|| match lang {
                Lang::Ja => "メンバー".to_owned(),
                Lang::En => "A member".to_owned(),
            });
            let addressed = match (lang, notice.to_all) {
                (Lang::Ja, true) => "参加者全員",
                (Lang::Ja, false) => "個別",
                (Lang::En, true) => "all members",
                (Lang::En, false) => "you",
            };
            let importance = match (lang, notice.importance()) {
                (Lang::Ja, Importance::None) => "なし",
                (Lang::Ja, Importance::Important) => "重要",
                (Lang::Ja, Importance::Urgent) => "至急",
                (Lang::En, Importance::None) => "none",
                (Lang::En, Importance::Important) => "important",
                (Lang::En, Importance::Urgent) => "urgent",
            };
            let values = Values::from([
                ("service", self.service_name.clone()),
                ("login_url", self.login_url.clone()),
                ("contact", self.contact.clone()),
                ("room_name", room_name),
                ("sender", sender),
                ("addressed", addressed.to_owned()),
                ("importance", importance.to_owned()),
                ("room_number", rooms(lang, [number].into_iter())),
            ]);
            items.push_str(&self.templates.render(lang, Name::Item, &values).1);
        }
        let more = notices.len().saturating_sub(ITEMS_MAX);
        if more > 0 {
            items.push_str(&match lang {
                Lang::Ja => format!("ほか {more} 件\n"),
                Lang::En => format!("and {more} more\n"),
            });
        }
        items
    }
}

/// What a subject says of the most important post in the mail.
fn mark(lang: Lang, notices: &[&NoticeRow]) -> &'static str {
    let any = |importance| notices.iter().any(|notice| notice.importance() == importance);
    match (lang, any(Importance::Urgent), any(Importance::Important)) {
        (Lang::Ja, true, _) => "【至急】",
        (Lang::Ja, false, true) => "【重要】",
        (Lang::En, true, _) => "[urgent] ",
        (Lang::En, false, true) => "[important] ",
        (_, false, false) => "",
    }
}

/// Room numbers, each once, in order; what has none is a direct conversation.
fn rooms(lang: Lang, numbers: impl Iterator<Item = Option<i64>>) -> String {
    let numbers: BTreeSet<_> = numbers.collect();
    let mut texts: Vec<String> = numbers.iter().flatten().map(i64::to_string).collect();
    if numbers.contains(&None) {
        texts.push(match lang {
            Lang::Ja => "番号のない部屋（個別のやりとりなど）".to_owned(),
            Lang::En => "a room without a number".to_owned(),
        });
    }
    texts.join(if lang == Lang::Ja { "、" } else { ", " })
}

fn header(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}
