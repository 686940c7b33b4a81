//! What is said of files of e-applications (電子申請).

use super::Texts;
use crate::applications::{Procedure, ROWS_MAX, Reason, Unreadable};
use crate::receive::Outcome;
use crate::store::SetAside;

/// The most lines of one kind in an answer.
const LINES_MAX: usize = 50;

impl Texts {
    /// What is in a file, or what was taken of it.
    pub(crate) fn applications(&self, outcome: &Outcome, import: bool) -> String {
        let Outcome { taken, before, aside } = outcome;
        let mut parts = Vec::new();
        let count = taken.len();
        parts.push(match (import, count) {
            (false, _) => self.pick(
                format!("電子申請のファイルを読みました（試し読みです。まだ何も受け付けていません）。\n新しい申請：{count}件"),
                format!("The file of e-applications was read; nothing is taken yet.\nNew: {count}"),
            ),
            (true, 0) => self.pick("電子申請を取り込みました。新しい申請はありませんでした。", "Nothing new was in the file."),
            (true, _) => self.pick(
                format!("電子申請を取り込みました。\n受け付けた申請：{count}件"),
                format!("The e-applications are taken: {count}"),
            ),
        });
        let lines = taken.iter().map(|(receipt, procedure, cases)| {
            let what = self.procedure(*procedure);
            let cases: Vec<String> = cases.iter().map(i64::to_string).collect();
            let became = match (import, cases.is_empty()) {
                (false, _) => String::new(),
                (true, true) => self.pick("（記録しました）", " (recorded)"),
                (true, false) => {
                    let cases = cases.join("、");
                    self.pick(format!("（案件 {cases}）"), format!(" (case {cases})"))
                }
            };
            self.pick(format!("・整理番号 {receipt} {what}{became}"), format!("・{receipt} {what}{became}"))
        });
        parts.extend(self.some(lines.collect()));
        if *before > 0 {
            parts.push(self.pick(
                format!("すでに受け付けている申請：{before}件（変更はありません）"),
                format!("Taken before, unchanged: {before}"),
            ));
        }
        if !aside.is_empty() {
            let count = aside.len();
            parts.push(
                self.pick(format!("受け付けられない申請：{count}件"), format!("Cannot be taken: {count}")),
            );
            parts.extend(self.some(aside.iter().map(|row| self.aside(row, true)).collect()));
            if import {
                parts.push(self.pick(
                    "直したファイルを投稿すれば、残りだけが受け付けられます。",
                    "Post a mended file: only what is missing will be taken.",
                ));
            }
        }
        if !import && count > 0 {
            parts.push(self.pick(
                "受け付けるときは、この投稿に ✅ を付けるか、返信で「取り込み」と書いてください。申請は一件ずつ案件になり、承認するまで何も行いません。",
                "React with ✅ or reply \"import\" to take them. Each becomes a case that waits for approval.",
            ));
        }
        if import {
            parts.push(self.pick(
                "ファイルには個人情報があります。済んだら、ファイルの投稿を削除してください。",
                "The file holds personal data: please delete its post when all is done.",
            ));
        }
        parts.join("\n")
    }

    /// Rows that wait to be mended, below the open cases.
    pub(crate) fn applications_aside(&self, rows: &[SetAside]) -> String {
        let lines: Vec<String> = rows.iter().map(|row| self.aside(row, false)).collect();
        let title = self.pick("受け付けられていない電子申請", "E-applications that could not be taken");
        format!("{title}\n{}", lines.join("\n"))
    }

    fn aside(&self, row: &SetAside, with_line: bool) -> String {
        let SetAside { line, receipt, reason } = row;
        let receipt = receipt.as_deref().map(|receipt| self.pick(format!("整理番号 {receipt}"), receipt));
        let line = (with_line || receipt.is_none())
            .then(|| self.pick(format!("{line}行目"), format!("line {line}")));
        let which: Vec<String> = line.into_iter().chain(receipt).collect();
        format!("・{}：{reason}", which.join(" "))
    }

    fn some(&self, mut lines: Vec<String>) -> Vec<String> {
        let more = lines.len().saturating_sub(LINES_MAX);
        lines.truncate(LINES_MAX);
        if more > 0 {
            lines.push(self.pick(format!("・ほか {more}件"), format!("・and {more} more")));
        }
        lines
    }

    /// Which file is to be taken.
    pub(crate) fn import_what(&self) -> String {
        self.pick(
            "どのファイルを取り込むか分かりません。電子申請の CSV ファイルをここに投稿し、窓口の返事に「取り込み」と返信してください。",
            "Which file? Post the CSV file of e-applications here, then reply \"import\" to the answer.",
        )
    }

    /// A file that cannot be taken as a whole.
    pub(crate) fn unreadable_applications(&self, problem: &Unreadable) -> String {
        let why = match problem {
            Unreadable::TooLong => self.pick("ファイルが 1 MB を超えています。分けて投稿してください。", "It is longer than 1 MB: please split it."),
            Unreadable::TooManyRows => self.pick(
                format!("申請が {ROWS_MAX}件を超えています。分けて投稿してください。"),
                format!("It has more than {ROWS_MAX} rows: please split it."),
            ),
            Unreadable::Encoding => self.pick(
                "文字コードが分かりません。シフトJIS（CP932）か UTF-8 の CSV で保存してください。",
                "It is neither CP932 nor UTF-8.",
            ),
            Unreadable::NoReceipts => self.pick(
                "「整理番号」の列がありません。一行目に見出しが要ります。見出しの名前が違うときは、config.toml の city.application_columns に書いてください。",
                "There is no column 「整理番号」 (receipt). Headings of the city's own are named in city.application_columns of config.toml.",
            ),
            Unreadable::NoProcedure => self.pick(
                "「手続き」の列がなく、ファイルの名前からも分かりません。「開設.csv」のように、手続き（利用申請、同意の報告、同意の撤回、開設、追加、削除、終了）を一つ、ファイルの名前に入れて投稿してください。",
                "There is no column 「手続き」 (procedure), and the file's name says none: name it like open.csv.",
            ),
            Unreadable::ColumnTwice(one, other) => self.pick(
                format!("「{one}」と「{other}」の列は、同じ項目です。どちらを読むか決められません。読まない列を、config.toml の city.application_columns に \"見ない\" と書いてください。"),
                format!("「{one}」 and 「{other}」 mean the same. Name the one that is not to be read in city.application_columns of config.toml, as \"ignore\"."),
            ),
            Unreadable::NoCommas => self.pick(
                "項目がコンマで区切られていません。CSV（コンマ区切り）で保存してください。",
                "Its cells are not separated by commas.",
            ),
            Unreadable::Quotes => self.pick(
                "引用符（\"）が閉じていない項目があり、どこまでが一つの申請か分かりません。CSV で保存し直してください。",
                "A quotation mark is not closed: the rows cannot be told apart.",
            ),
            Unreadable::Missing => self.pick(
                "ファイルの中身がサーバーにありません。もう一度投稿してください。",
                "The server does not have the file. Please post it again.",
            ),
            Unreadable::Empty => self.pick("申請がありません。", "There is no application in it."),
        };
        self.pick(
            format!("この CSV ファイルは、電子申請として読めませんでした。\n{why}"),
            format!("This CSV file cannot be read as e-applications.\n{why}"),
        )
    }

    /// Why a row is set aside; names nobody.
    pub(crate) fn set_aside_because(&self, reason: &Reason) -> String {
        let (ja, en) = match reason {
            Reason::Gaps(gaps) => {
                let gaps: Vec<String> = gaps.iter().map(|gap| self.gap(*gap)).collect();
                let gaps = gaps.join("、");
                return self.pick(
                    format!("次の項目がないか、読めません：{gaps}"),
                    format!("missing or unreadable: {gaps}"),
                );
            }
            Reason::Same(case) => {
                return self.pick(
                    format!("同じ依頼が案件 {case} として出ています。その案件を決めてから、もう一度取り込んでください"),
                    format!("case {case} asks for the same: decide it first, then take the file again"),
                );
            }
            Reason::SameRow(receipt) => {
                return self.pick(
                    format!("同じ依頼が、このファイルの整理番号 {receipt} にもあります。そちらの案件を決めてから、もう一度取り込んでください"),
                    format!("receipt number {receipt} of this file asks for the same: decide its case first, then take the file again"),
                );
            }
            Reason::Differs => (
                "同じ整理番号の申請を、ちがう内容で受け付けています。内容を確かめて、必要なら言葉で入れてください",
                "taken before with other content",
            ),
            Reason::Receipt => {
                ("整理番号（英数字）がないか、読めません", "no receipt number (letters and digits)")
            }
            Reason::Twice => {
                ("同じ整理番号の行がファイルの中にもう一つあります", "the receipt number comes twice")
            }
            Reason::Procedure => (
                "手続きが分かりません（利用申請、同意の報告、同意の撤回、開設、追加、削除、終了）",
                "unknown procedure",
            ),
            Reason::Cells => ("列の数が見出しと合いません", "the number of cells differs from the headings'"),
            Reason::TooLong => ("長すぎる項目があります", "a cell is too long"),
            Reason::Applicant => {
                ("申請者（部屋のメンバーの利用者ID）がありません", "no applicant (a member's login id)")
            }
            Reason::ApplicantUnknown => (
                "申請者がどの利用者か分かりません。利用者IDを確かめてください",
                "the register does not tell who the applicant is",
            ),
            Reason::NotAMember => {
                ("申請者がその部屋のメンバーではありません", "the applicant is not a member of the room")
            }
            Reason::NoSuchRoom => ("その番号の部屋がありません", "no room of that number"),
            Reason::RoomClosed => ("その部屋はすでに終了しています", "the room is closed"),
            Reason::NoConsent => (
                "対象者の同意の報告がまだありません。報告を入れてから、もう一度取り込んでください",
                "no report of the subject's consent",
            ),
            Reason::Withdrawn => (
                "説明日よりあとに、同意が撤回されています。改めて説明した報告が要ります",
                "the consent was withdrawn after it was explained",
            ),
            Reason::RoomNumber => ("部屋番号がないか、読めません", "no room number"),
            Reason::People => ("追加・削除する人（メンバー）がありません", "nobody is named (members)"),
            Reason::Facility => ("事業所の名前がないか、長すぎます", "no facility"),
            Reason::FacilityKind => (
                "事業所の種類がありません（医療機関、訪問看護、介護、薬局、職能団体、その他）",
                "no kind of facility",
            ),
            Reason::IdKind => ("IDの種類がありません（施設ID、個人ID）", "facility ID or personal ID?"),
            Reason::PersonName => ("利用する方の氏名がありません", "no name of the person"),
            Reason::Pledge => ("誓約がありません", "no pledge"),
        };
        self.pick(ja, en)
    }

    /// Who asks for a case that came by an application.
    pub(crate) fn applied(&self, receipt: &str, who: &str) -> String {
        self.pick(format!("電子申請 整理番号 {receipt}、{who}"), format!("e-application {receipt}, {who}"))
    }

    fn procedure(&self, procedure: Procedure) -> String {
        let (ja, en) = match procedure {
            Procedure::Use => ("利用申請", "use"),
            Procedure::Consent => ("同意の報告", "consent"),
            Procedure::Withdrawal => ("同意の撤回", "withdrawal of consent"),
            Procedure::Open => ("部屋の開設", "open a room"),
            Procedure::Add => ("メンバーの追加", "add members"),
            Procedure::Remove => ("メンバーの削除", "remove members"),
            Procedure::Close => ("部屋の終了", "close a room"),
        };
        self.pick(ja, en)
    }
}
