//! Every sentence a person reads: Japanese first, English by setting. What rooms read is here, what the
//! control room reads in `city` and `applications`, forms and usages in `forms`.

mod applications;
mod city;
mod forms;

pub(crate) use city::room_line;

use crate::Config;
use crate::cases::{Action, Case, Person, Step};

/// The language of everything the bot writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// Japanese, polite and plain.
    #[default]
    Japanese,
    /// English.
    English,
}

impl Language {
    /// The language of a code as configs write it: `ja` or `en`.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        match code {
            "ja" => Some(Self::Japanese),
            "en" => Some(Self::English),
            _ => None,
        }
    }
}

/// The texts of one city.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    language: Language,
    city: String,
    contact: String,
}

impl Texts {
    pub(crate) fn new(config: &Config) -> Self {
        Self { language: config.language, city: config.city_name.clone(), contact: config.contact.clone() }
    }

    fn pick(&self, ja: impl Into<String>, en: impl Into<String>) -> String {
        match self.language {
            Language::Japanese => ja.into(),
            Language::English => en.into(),
        }
    }

    /// After following an invitation.
    pub(crate) fn welcome(&self) -> String {
        let (city, contact) = (&self.city, &self.contact);
        self.pick(
            format!(
                "{city}の窓口です。ここでは次のことを受け付けます。\n・「同意の報告」と書くと、報告の用紙をお出しします。\n・「部屋の開設をお願いします」と書くと、開設依頼の用紙をお出しします。\n・「メール通知」と書くと、受け取るメールを選べます。\n\
                 メンバーの追加・削除と部屋の終了は、その部屋の中に「〇〇訪問看護の△△さんを追加してください」のように書いてください。\nお問い合わせ：{contact}"
            ),
            format!(
                "This is the desk of {city}. Write 同意の報告 for the consent form or 部屋の開設をお願いします for the form to open a room. \
                 Members are added and removed, and rooms closed, by a request written in the room.\nContact: {contact}"
            ),
        )
    }

    /// The receipt for whoever asked.
    pub(crate) fn receipt(&self, case: &Case) -> String {
        let number = case.number;
        if let Action::Withdrawal { .. } = case.action {
            // One and the same sentence, whether or not there is a record of that subject.
            return self.pick(
                format!("同意の撤回を受け付けました（案件 {number}）。市が確認します。"),
                format!("The withdrawal of consent is received (case {number}). The city will check it."),
            );
        }
        let what = self.summary(&case.action);
        self.pick(
            format!("市への依頼として受け付けました（案件 {number}）。\n{what}\n市が確認して、結果をここでお知らせします。"),
            format!("Received as a request to the city (case {number}).\n{what}\nThe city will check it and answer here."),
        )
    }

    pub(crate) fn duplicate(&self, number: i64) -> String {
        self.pick(
            format!("同じ依頼をすでに受け付けています（案件 {number}）。市の確認をお待ちください。"),
            format!("The same request is already open (case {number}). Please wait for the city."),
        )
    }

    pub(crate) fn asked_too_often(&self) -> String {
        let contact = &self.contact;
        self.pick(
            format!("この24時間のご依頼と同意の報告が多いため、これは受け付けていません。明日もう一度書くか、市の窓口（{contact}）にご連絡ください。"),
            format!("You have asked for a lot within a day, so this was not taken. Write again tomorrow, or contact the city ({contact})."),
        )
    }

    pub(crate) fn ask_if_request(&self, actions: &[Action]) -> String {
        let what: Vec<String> = actions.iter().map(|action| self.summary(action)).collect();
        let what = what.join("\n");
        self.pick(
            format!("市への依頼でしょうか。\n{what}\n依頼でしたら「はい」、そうでなければ「いいえ」と書いてください（24時間以内）。"),
            format!("Is this a request to the city?\n{what}\nPlease answer はい (yes) or いいえ (no) within 24 hours."),
        )
    }

    pub(crate) fn ask_who(&self, adding: bool) -> String {
        let verb = if adding { "追加" } else { "削除" };
        self.pick(
            format!("市への依頼でしたら、どなたを{verb}するかを「〇〇訪問看護の△△さんを{verb}してください」のように書いてください。"),
            "If this is a request to the city, please say who: 〇〇訪問看護の△△さんを追加してください.",
        )
    }

    pub(crate) fn not_filed(&self) -> String {
        self.pick("承知しました。依頼としては受け付けません。", "Understood. Nothing was filed.")
    }

    pub(crate) fn impossible(&self, number: i64, reason: &str) -> String {
        self.pick(
            format!("案件 {number} はお受けできませんでした。\n{reason}"),
            format!("Case {number} could not be taken.\n{reason}"),
        )
    }

    pub(crate) fn refused_to_requester(&self, number: i64, reason: &str) -> String {
        let contact = &self.contact;
        let reason = if reason.is_empty() {
            self.pick(
                format!("くわしくは市にお問い合わせください（{contact}）。"),
                format!("Please ask the city ({contact})."),
            )
        } else {
            self.pick(format!("理由：{reason}"), format!("Reason: {reason}"))
        };
        self.pick(
            format!("ご依頼（案件 {number}）は差し戻しになりました。\n{reason}"),
            format!("Your request (case {number}) was sent back.\n{reason}"),
        )
    }

    pub(crate) fn done_to_requester(&self, case: &Case, room_number: Option<i64>) -> String {
        let number = case.number;
        if let (Action::OpenSubject { .. } | Action::OpenAssociation { .. }, Some(room)) =
            (&case.action, room_number)
        {
            return self.pick(
                format!("部屋を開設しました（案件 {number}）。\n部屋番号は {room} です。部屋の一覧に表示されます。"),
                format!("The room is open (case {number}). Its room number is {room}."),
            );
        }
        let what = self.summary(&case.action);
        self.pick(
            format!("完了しました（案件 {number}）。\n{what}"),
            format!("Done (case {number}).\n{what}"),
        )
    }

    /// Posted in the room when members changed without a request in the room.
    pub(crate) fn members_changed(&self, adding: bool, people: &[Person]) -> String {
        // Login ids are for the city; in the room names are enough.
        let names: Vec<String> =
            people.iter().map(|p| p.text().split('（').next().unwrap_or("").to_owned()).collect();
        let names = names.join("、");
        let city = &self.city;
        match adding {
            true => self.pick(
                format!("{city}が次の方を部屋に追加しました：{names}"),
                format!("{city} added to this room: {names}"),
            ),
            false => self.pick(
                format!("{city}が次の方を部屋から削除しました：{names}"),
                format!("{city} removed from this room: {names}"),
            ),
        }
    }

    pub(crate) fn opening_notice(&self) -> String {
        let (city, contact) = (&self.city, &self.contact);
        self.pick(
            format!(
                "{city}がこの部屋を開設しました。招待された方だけが読み書きできます。\nメンバーの追加・削除や部屋の終了は、この部屋に書いて市に依頼してください。\nお問い合わせ：{contact}"
            ),
            format!("{city} opened this room. Only invited people read and write here. Ask for changes by writing here.\nContact: {contact}"),
        )
    }

    pub(crate) fn closing_notice(&self) -> String {
        let (city, contact) = (&self.city, &self.contact);
        self.pick(
            format!("{city}がこの部屋を終了しました。これからは書き込めません。\nお問い合わせ：{contact}"),
            format!("{city} closed this room. Nobody can write any more.\nContact: {contact}"),
        )
    }

    pub(crate) fn reopening_notice(&self) -> String {
        let city = &self.city;
        self.pick(format!("{city}がこの部屋を再開しました。"), format!("{city} reopened this room."))
    }

    /// What mails somebody gets, and how that is changed.
    pub(crate) fn mail_scope(&self, answer: &serde_json::Value) -> String {
        let chosen = match answer["scope"].as_str() {
            Some("all") => self.pick("すべての投稿", "all posts"),
            Some("direct") => {
                self.pick("自分宛ての投稿とダイレクトメッセージ", "posts to me and direct messages")
            }
            _ => self.pick("自分宛ての投稿だけ", "posts to me only"),
        };
        let none = if answer["pushers"].as_i64().unwrap_or_default() > 0 {
            String::new()
        } else {
            self.pick(
                "\nまだメール通知が使われていません。アプリの設定でメールアドレスを登録し、メール通知を入れてください。",
                "\nMail is not switched on yet: add your address in the app's settings and switch e-mail notifications on.",
            )
        };
        self.pick(
            format!("メール通知：{chosen}{none}\n変えるときは「メール通知 自分宛て」「メール通知 ダイレクト」「メール通知 すべて」のどれかを書いてください。招待と部屋の開設は、いつもお知らせします。"),
            format!("Mail: {chosen}{none}\nTo change it write \"mail mentions\", \"mail direct\" or \"mail all\". Invitations and openings are always told."),
        )
    }

    /// Posted in a room that a member of city staff looks into without being its member.
    pub(crate) fn break_glass_notice(&self, who: &str, reason: &str) -> String {
        let (city, contact) = (&self.city, &self.contact);
        self.pick(
            format!("{city}の{who}が、この部屋の緊急閲覧を始めました。期限がくると自動で終わります。\n理由：{reason}\nお問い合わせ：{contact}"),
            format!("{who} of {city} reads this room by emergency access, for a limited time.\nReason: {reason}\nContact: {contact}"),
        )
    }

    pub(crate) fn no_such_room(&self, number: Option<i64>) -> String {
        match number {
            Some(number) => self.pick(
                format!("部屋番号 {number} の部屋はありません。"),
                format!("There is no room {number}."),
            ),
            None => self.pick(
                "ここは市が開設した部屋ではありません。変更する部屋の中に書くか、部屋番号を書いてください。",
                "This is not a room of the city. Please write in the room itself, or name its room number.",
            ),
        }
    }

    pub(crate) fn not_a_member(&self) -> String {
        self.pick(
            "その部屋のメンバーではない方からの依頼はお受けできません。",
            "Only members of that room can ask for this.",
        )
    }

    pub(crate) fn room_is_closed(&self) -> String {
        self.pick("その部屋はすでに終了しています。", "That room is closed.")
    }

    /// Outside the control room it speaks of the requester's own report only, whatever others reported.
    pub(crate) fn consent_missing(&self, by_staff: bool) -> String {
        let form = self.consent_form();
        if !by_staff {
            return self.pick(
                format!("開設を依頼する方からの、対象者の同意の報告がまだありません（氏名と生年月日が同じものが必要です）。先に同意の報告をしてください。\n\n{form}"),
                format!("You have not reported the subject's consent (same name and birth date). Please report it first.\n\n{form}"),
            );
        }
        self.pick(
            format!("対象者の同意の報告がまだありません（氏名と生年月日が同じものが必要です）。先に同意の報告をしてください。\n\n{form}"),
            format!("The subject's consent has not been reported (same name and birth date). Please report it first.\n\n{form}"),
        )
    }

    pub(crate) fn consent_stored(&self) -> String {
        self.pick(
            "同意の報告を受け付けました。続けて「部屋の開設をお願いします」と書くと、開設を依頼できます。",
            "The report of consent is stored. You may now ask for the room with 部屋の開設をお願いします.",
        )
    }

    pub(crate) fn consent_withdrawn(&self, count: u64) -> String {
        if count == 0 {
            return self.pick(
                "氏名と生年月日が同じ同意の報告はありません。",
                "There is no consent with that name and birth date.",
            );
        }
        self.pick(
            "同意の撤回を受け付け、市に知らせました。",
            "The withdrawal is stored and the city is told.",
        )
    }

    /// A room, by number and name.
    pub(crate) fn place(&self, place: &crate::cases::Place) -> String {
        match (place.number, &place.name) {
            (Some(number), Some(name)) => {
                self.pick(format!("部屋 {number}「{name}」"), format!("room {number} ({name})"))
            }
            (Some(number), None) => self.pick(format!("部屋 {number}"), format!("room {number}")),
            (None, _) => self.pick("この部屋", "this room"),
        }
    }

    /// What an action would do, in the words of a request.
    pub(crate) fn summary(&self, action: &Action) -> String {
        let place = |place: &crate::cases::Place| self.place(place);
        let names = |people: &[Person]| {
            let names: Vec<String> = people.iter().map(|person| format!("・{}", person.text())).collect();
            if names.is_empty() { self.pick("・（なし）", "・(nobody)") } else { names.join("\n") }
        };
        match action {
            Action::Add { place: at, people } => {
                let (at, names) = (place(at), names(people));
                self.pick(format!("メンバーの追加：{at}\n{names}"), format!("Add to {at}:\n{names}"))
            }
            Action::Remove { place: at, people } => {
                let (at, names) = (place(at), names(people));
                self.pick(format!("メンバーの削除：{at}\n{names}"), format!("Remove from {at}:\n{names}"))
            }
            Action::Close { place: at } => {
                let at = place(at);
                self.pick(format!("部屋の終了：{at}"), format!("Close {at}"))
            }
            Action::Reopen { place: at } => {
                let at = place(at);
                self.pick(format!("部屋の再開：{at}"), format!("Reopen {at}"))
            }
            Action::OpenSubject { subject, people, confirm_second } => {
                let names = names(people);
                let second = if *confirm_second {
                    self.pick("（二つ目の部屋）", " (second room)")
                } else {
                    String::new()
                };
                let eligibility = self.eligibility(&subject.eligibility);
                let note =
                    subject.approval_note.as_deref().map(|note| format!("（{note}）")).unwrap_or_default();
                let (name, born, address) = (&subject.name, &subject.birth_date, &subject.address);
                self.pick(
                    format!("部屋の開設{second}\n対象者：{name}さん\n生年月日：{born}\n住所：{address}\n要件：{eligibility}{note}\nメンバー：\n{names}"),
                    format!("Open a room{second}\nSubject: {name}\nBirth date: {born}\nAddress: {address}\nEligibility: {eligibility}{note}\nMembers:\n{names}"),
                )
            }
            Action::OpenAssociation { name, people } => {
                let names = names(people);
                self.pick(
                    format!("職能団体の部屋の開設\n部屋の名称：{name}\nメンバー：\n{names}"),
                    format!("Open the room of an association\nName: {name}\nMembers:\n{names}"),
                )
            }
            Action::RegisterFacility { name, .. } => {
                self.pick(format!("事業所登録：{name}"), format!("Register facility {name}"))
            }
            Action::IssueFacilityId { facility } => {
                let facility = &facility.said;
                self.pick(format!("施設IDの発行：{facility}"), format!("Issue the facility ID of {facility}"))
            }
            Action::IssuePersonalId { facility, name, profession } => {
                let facility = &facility.said;
                let profession = profession.as_deref().map(|word| format!("（{word}）")).unwrap_or_default();
                self.pick(
                    format!("個人IDの発行：{facility} {name}{profession}"),
                    format!("Issue a personal ID: {facility} {name}{profession}"),
                )
            }
            Action::IssueCode { person } => {
                let who = person.text();
                self.pick(format!("端末コードの発行：{who}"), format!("Issue a code for a terminal: {who}"))
            }
            Action::ResetAccount { person } => {
                let who = person.text();
                self.pick(
                    format!("パスワードの再発行：{who}"),
                    format!("Issue a new initial password: {who}"),
                )
            }
            Action::EndAccount { person, .. } => {
                let who = person.text();
                self.pick(
                    format!("利用の終了（元に戻せません）：{who}"),
                    format!("End the account, for good, of {who}"),
                )
            }
            Action::RevokeTerminal { terminal, .. } => {
                self.pick(format!("端末 {terminal} の失効"), format!("Revoke terminal {terminal}"))
            }
            Action::Announce { facilities, .. } => {
                let to = match facilities {
                    None => self.pick("全事業所", "all facilities"),
                    Some(named) => {
                        named.iter().map(|facility| facility.said.as_str()).collect::<Vec<_>>().join("、")
                    }
                };
                self.pick(format!("お知らせ（宛先：{to}）"), format!("Announcement to {to}"))
            }
            Action::Life { step, place: at, reason } => {
                let at = place(at);
                let (ja, en) = match step {
                    Step::Archive => ("部屋の保管", "Archive"),
                    Step::Export => ("部屋の書き出し", "Export"),
                    Step::Hold => ("法的保全", "Legal hold on"),
                    Step::Release => ("法的保全の解除", "Lift the legal hold on"),
                    Step::Purge => ("部屋の消去（元に戻せません）", "Purge for good"),
                    Step::BreakGlass => ("緊急閲覧", "Emergency access to"),
                    Step::EndBreakGlass => ("緊急閲覧の終了", "End the emergency access to"),
                };
                let why = if reason.is_empty() {
                    String::new()
                } else {
                    format!("\n{}{reason}", self.pick("理由：", "Reason: "))
                };
                self.pick(format!("{ja}：{at}{why}"), format!("{en} {at}{why}"))
            }
            Action::Redact { place: at, reason, .. } => {
                let at = place(at);
                let why = if reason.is_empty() {
                    String::new()
                } else {
                    format!("\n{}{reason}", self.pick("理由：", "Reason: "))
                };
                self.pick(format!("投稿の取消：{at}{why}"), format!("Redact a post in {at}{why}"))
            }
            Action::Withdrawal { name, birth_date } => self.pick(
                format!("同意の撤回\n対象者：{name}さん\n生年月日：{birth_date}"),
                format!("Withdrawal of consent\nSubject: {name}\nBirth date: {birth_date}"),
            ),
        }
    }

    fn eligibility(&self, code: &str) -> String {
        match code {
            "home" => self.pick("① 在宅で療養中", "1 at home now"),
            "planned" => self.pick("② 在宅での療養を予定", "2 planned"),
            _ => self.pick("③ 市長が必要と認める方", "3 approved by the mayor"),
        }
    }
}
