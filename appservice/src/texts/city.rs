//! What the control room reads.

use serde_json::Value;

use super::Texts;
use crate::cases::{Action, Case, Person, State, Step};
use crate::clock::japanese_time;
use crate::execute::CONSENT_WITHDRAWN;
use crate::forms::Consent;
use crate::lookup::{AccountRow, FacilityRow, RoomRow, RoomStatus, TerminalRow};
use crate::outbox::Task;
use crate::store::{Report, Reported};

impl Texts {
    /// A case as the city sees it: what approval would do, or what must be settled first.
    pub(crate) fn case_to_decide(
        &self,
        case: &Case,
        who: &str,
        consent: Option<&str>,
        problems: &[String],
    ) -> String {
        let number = case.number;
        let mut what = self.summary(&case.action);
        if let Some(consent) = consent {
            what.push('\n');
            what.push_str(consent);
        }
        let next = if problems.is_empty() {
            self.pick(
                format!("この内容で行うときは「承認 {number}」か ✅、行わないときは「差し戻し {number} 理由」か ❌ でお答えください。"),
                format!("Answer \"approve {number}\" or ✅, or \"refuse {number} reason\" or ❌."),
            )
        } else {
            let problems = problems.join("\n");
            self.pick(
                format!("承認の前に確認が必要です。\n{problems}\n人を決めるときは「指定 {number} 利用者ID」、行わないときは「差し戻し {number} 理由」と書いてください。"),
                format!("To be settled before approval:\n{problems}\nWrite \"assign {number} login-id\" or \"refuse {number} reason\"."),
            )
        };
        self.pick(
            format!("案件 {number}（依頼：{who}）\n{what}\n\n{next}"),
            format!("Case {number} (asked by {who})\n{what}\n\n{next}"),
        )
    }

    /// One report of consent, with the reporter as the city knows them.
    pub(crate) fn report_of_consent(&self, report: &Report, who: &str) -> String {
        let at = stamp(report.reported_at);
        let Report { explained_by, role, explained_on, .. } = report;
        self.pick(
            format!("・{who}が{at}に報告（説明：{explained_by}（{role}）、{explained_on}）"),
            format!("・reported by {who} at {at} (explained by {explained_by} ({role}) on {explained_on})"),
        )
    }

    /// What the staff judge by: approving confirms it.
    pub(crate) fn reports_of_consent(&self, lines: &[String]) -> String {
        if lines.is_empty() {
            return self.pick(
                "同意の報告：氏名と生年月日が同じものは見つかりません。",
                "Reports of consent: none with that name and birth date.",
            );
        }
        let lines = lines.join("\n");
        self.pick(format!("同意の報告：\n{lines}"), format!("Reports of consent:\n{lines}"))
    }

    /// A consent that was withdrawn before.
    pub(crate) fn was_withdrawn(&self, at: i64) -> String {
        let at = stamp(at);
        self.pick(format!("同意の撤回の記録があります（{at}）"), format!("A consent was withdrawn at {at}"))
    }

    pub(crate) fn which_person(&self, person: &Person, rows: &[AccountRow]) -> String {
        let said = person.text();
        let candidates: Vec<String> = rows
            .iter()
            .take(20)
            .map(|row| format!("　{}{}", row.label(), self.account_status(row)))
            .collect();
        let candidates = candidates.join("\n");
        self.pick(
            format!("「{said}」はどなたでしょうか。\n{candidates}"),
            format!("Who is \"{said}\"?\n{candidates}"),
        )
    }

    pub(crate) fn nobody_of_that_name(&self, person: &Person) -> String {
        let said = person.text();
        self.pick(
            format!("「{said}」という利用者が見つかりません。"),
            format!("There is no account called \"{said}\"."),
        )
    }

    pub(crate) fn not_in_that_room(&self, row: &AccountRow) -> String {
        let who = row.label();
        self.pick(
            format!("{who}はその部屋のメンバーではありません。"),
            format!("{who} is not a member of that room."),
        )
    }

    pub(crate) fn not_enrolled(&self, row: &AccountRow) -> String {
        let who = row.label();
        self.pick(
            format!("{who}は利用の登録がまだ終わっていないため、部屋に入れません。"),
            format!("{who} has not enrolled yet and cannot be in a room."),
        )
    }

    /// An announcement to everybody whose first line is names of facilities.
    pub(crate) fn is_it_for_them(&self, first: &str) -> String {
        self.pick(
            format!("全員へのお知らせですが、本文の1行目が事業所の名前（{first}）です。その事業所だけに送るときは、「お知らせ {first}」と同じ行に書いて、次の行から本文を書いてください。全員に送るときは、本文の1行目を変えて書き直してください。"),
            format!("This is to everybody, and its first line names facilities ({first}). To send it to them alone write \"announce {first}\" in one line and the text below; to send it to everybody begin the text with something else."),
        )
    }

    pub(crate) fn which_facility(&self, said: &str, rows: &[FacilityRow]) -> String {
        if rows.is_empty() {
            return self.pick(
                format!("「{said}」という事業所が見つかりません。「一覧 事業所」で確かめてください。"),
                format!("There is no facility called \"{said}\". See \"list facilities\"."),
            );
        }
        let names: Vec<&str> = rows.iter().take(20).map(|row| row.name.as_str()).collect();
        let names = names.join("、");
        self.pick(
            format!("「{said}」はどの事業所でしょうか：{names}"),
            format!("Which facility is \"{said}\": {names}"),
        )
    }

    pub(crate) fn done_to_city(&self, case: &Case, answer: &Value) -> String {
        let number = case.number;
        let what = self.summary(&case.action);
        let word = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let count = |name: &str| answer.get(name).and_then(Value::as_i64).unwrap_or_default();
        let sheets = || {
            let sheets = answer.get("sheets").and_then(Value::as_array);
            let sheets: Vec<&str> = sheets.into_iter().flatten().filter_map(Value::as_str).collect();
            sheets.join("、")
        };
        let result = match &case.action {
            Action::OpenSubject { .. } | Action::OpenAssociation { .. } => {
                let room = count("room_number");
                self.pick(format!("部屋番号：{room}"), format!("Room number: {room}"))
            }
            Action::RegisterFacility { .. } => {
                let facility = count("facility");
                self.pick(format!("事業所番号：{facility}"), format!("Facility number: {facility}"))
            }
            Action::IssueFacilityId { .. } | Action::IssuePersonalId { .. } => {
                let (login_id, name, sheets) = (word("login_id"), word("display_name"), sheets());
                self.pick(
                    format!("利用者ID：{login_id}（{name}）\n票：{sheets}（サーバーのデータフォルダーにあります。二つの票は別々にお渡しください）"),
                    format!("Login id: {login_id} ({name})\nSheets in the data folder, to be handed over separately: {sheets}"),
                )
            }
            Action::IssueCode { .. } => {
                let sheets = sheets();
                self.pick(format!("票：{sheets}"), format!("Sheet: {sheets}"))
            }
            Action::ResetAccount { .. } => {
                let (sessions, terminals, sheets) = (count("sessions"), count("terminals"), sheets());
                self.pick(
                    format!("終了したもの：ログイン {sessions}、端末 {terminals}\n票：{sheets}（サーバーのデータフォルダーにあります。二つの票は別々にお渡しください）"),
                    format!("Ended: {sessions} sessions, {terminals} terminals\nSheets in the data folder, to be handed over separately: {sheets}"),
                )
            }
            Action::EndAccount { .. } => {
                let (sessions, terminals, rooms) = (count("sessions"), count("terminals"), count("rooms"));
                self.pick(
                    format!("終了したもの：ログイン {sessions}、端末 {terminals}、部屋 {rooms}"),
                    format!("Ended: {sessions} sessions, {terminals} terminals, {rooms} rooms"),
                )
            }
            Action::RevokeTerminal { .. } => {
                let sessions = count("sessions");
                self.pick(format!("終了したログイン：{sessions}"), format!("Ended sessions: {sessions}"))
            }
            Action::Announce { .. } => {
                let facilities = count("facilities");
                self.pick(format!("届いた事業所：{facilities}"), format!("Facilities reached: {facilities}"))
            }
            Action::Add { .. } | Action::Remove { .. } => {
                let unchanged = answer.get("unchanged").and_then(Value::as_array).map_or(0, Vec::len);
                if unchanged == 0 {
                    String::new()
                } else {
                    self.pick(format!("変更のなかった人：{unchanged}名"), format!("Unchanged: {unchanged}"))
                }
            }
            Action::Life { step, .. } => self.life_done(*step, answer),
            // A withdrawal is told by `withdrawn_to_city`.
            Action::Close { .. }
            | Action::Reopen { .. }
            | Action::Redact { .. }
            | Action::Withdrawal { .. } => String::new(),
        };
        let text = self.pick(
            format!("案件 {number} を完了しました。\n{what}\n{result}"),
            format!("Case {number} is done.\n{what}\n{result}"),
        );
        text.trim_end().to_owned()
    }

    fn life_done(&self, step: Step, answer: &Value) -> String {
        let count = |name: &str| answer.get(name).and_then(Value::as_i64).unwrap_or_default();
        let word = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
        match step {
            Step::Archive => {
                let removed = count("removed");
                self.pick(format!("外したメンバー：{removed}名"), format!("Members removed: {removed}"))
            }
            Step::Export => {
                let (events, media, folder) = (count("events"), count("media"), word("folder"));
                self.pick(
                    format!("記録 {events}件、ファイル {media}件：{folder}/index.html（サーバーのデータフォルダーにあります。個人情報ですので、取り扱いに注意してください）"),
                    format!("{events} events, {media} files: {folder}/index.html in the data folder. It is personal data: handle it with care."),
                )
            }
            Step::Purge => {
                let (events, media, file) = (count("events"), count("media"), word("certificate"));
                self.pick(
                    format!("消去した記録 {events}件、ファイル {media}件\n消去証明書：{file}（サーバーのデータフォルダーにあります）"),
                    format!("Purged: {events} events, {media} files\nCertificate: {file} in the data folder"),
                )
            }
            Step::BreakGlass => {
                let until = stamp(count("until"));
                self.pick(
                    format!("期限：{until}。早く終えるときは「緊急閲覧終了 部屋番号」と書いてください。"),
                    format!("Until {until}. \"end-break-glass number\" ends it earlier."),
                )
            }
            Step::Hold | Step::Release | Step::EndBreakGlass => String::new(),
        }
    }

    /// An approved withdrawal, with what came of it; only the control room is told whether there was a record.
    pub(crate) fn withdrawn_to_city(&self, case: &Case, marked: u64) -> String {
        let number = case.number;
        let what = self.summary(&case.action);
        let result = if marked == 0 {
            self.pick(
                "氏名と生年月日が同じ同意の報告は見つかりませんでした。記録は変えていません。",
                "No consent with that name and birth date was found; no record was changed.",
            )
        } else {
            self.pick(
                format!("同意の報告 {marked}件を撤回済みにしました。部屋があるときは、終了するかどうかを決めてください（「終了 部屋番号」）。"),
                format!("Reports marked as withdrawn: {marked}. Decide whether the subject's room is to be closed (\"close number\")."),
            )
        };
        self.pick(
            format!("案件 {number} を完了しました。\n{what}\n{result}"),
            format!("Case {number} is done.\n{what}\n{result}"),
        )
    }

    pub(crate) fn failed_to_city(&self, case: &Case, errcode: &str, room_number: Option<i64>) -> String {
        let number = case.number;
        let advice = match errcode {
            "JP_HEYA_SUBJECT_HAS_ROOM" => {
                let room = room_number.map(|room| room.to_string()).unwrap_or_default();
                self.pick(
                    format!("この対象者の部屋がすでに開いています（部屋番号 {room}）。二つ目の部屋を開くときは「承認 {number} 二つ目」、開かないときは「差し戻し {number} 理由」と書いてください。"),
                    format!("The subject has an open room ({room}). \"approve {number} second\" opens another; or \"refuse {number} reason\"."),
                )
            }
            CONSENT_WITHDRAWN => self.pick(
                format!("対象者の同意が撤回されているため、部屋を開いていません。同意の報告が改めてあれば「承認 {number}」、なければ「差し戻し {number} 理由」と書いてください。"),
                format!("The subject's consent was withdrawn; no room was opened. After a new report of consent \"approve {number}\"; or \"refuse {number} reason\"."),
            ),
            "JP_HEYA_EXISTS" => self.pick(
                format!("同じ名前の事業所か、その事業所の施設IDがすでにあります。「一覧 事業所」で確かめて「差し戻し {number} 登録済み」と書いてください。"),
                format!("It exists already. See \"list facilities\", then \"refuse {number} exists\"."),
            ),
            "JP_HEYA_ROOM_STATE" => self.pick(
                format!("部屋の今の状態ではできません。部屋は、終了 → 保管 → 消去 の順に進みます。「一覧 終了」「一覧 保管」で確かめて「差し戻し {number} 理由」と書いてください。"),
                format!("The room's state does not allow it: close, then archive, then purge. See \"list closed\" and \"list archived\"; then \"refuse {number} reason\"."),
            ),
            "JP_HEYA_HELD" => self.pick(
                format!("法的保全中の部屋は消去できません。必要がなくなったときは「保全解除 部屋番号 理由」のあと「承認 {number}」、消さないときは「差し戻し {number} 理由」と書いてください。"),
                format!("A legal hold stands on the room. \"release number reason\", then \"approve {number}\"; or \"refuse {number} reason\"."),
            ),
            "JP_HEYA_RETAINED" => self.pick(
                format!("保存期間が過ぎていないため、消去できません。「一覧 保管」で期限を確かめて「差し戻し {number} 理由」と書いてください。"),
                format!("The room's retention has not run out. See \"list archived\"; then \"refuse {number} reason\"."),
            ),
            "JP_HEYA_STAFF" => self.pick(
                format!("管理室に入れるのは市の職員だけです。また、最後の一人の職員は、利用を終了することも、管理室から外すこともできません。先に別の職員の登録を済ませ、「追加 1 利用者ID」で管理室に入れて「承認 {number}」でもう一度行うか、「差し戻し {number} 理由」と書いてください。"),
                format!("Only city staff are in the control room, and the last of them stays. Let another enrol and \"add 1 login-id\" first, then \"approve {number}\"; or \"refuse {number} reason\"."),
            ),
            "M_FORBIDDEN" => self.pick(
                format!("サーバーが許可しませんでした。承認した方が市の職員として登録されているか、部屋が終了していないかを確かめて、「承認 {number}」でもう一度行うか「差し戻し {number} 理由」と書いてください。"),
                format!("The server does not allow it. Check that whoever approved is city staff and that the room is open; then \"approve {number}\" or \"refuse {number} reason\"."),
            ),
            "M_NOT_FOUND" => self.pick(
                format!("部屋・利用者・端末のいずれかが見つかりません。番号を確かめて、「承認 {number}」でもう一度行うか「差し戻し {number} 理由」と書いてください。"),
                format!("A room, account or terminal was not found. \"approve {number}\" tries again; or \"refuse {number} reason\"."),
            ),
            _ => self.pick(
                format!("内容を確かめて、「承認 {number}」でもう一度行うか「差し戻し {number} 理由」と書いてください。"),
                format!("Check it; then \"approve {number}\" tries again, or \"refuse {number} reason\"."),
            ),
        };
        self.pick(
            format!("案件 {number} を行えませんでした（{errcode}）。\n{advice}"),
            format!("Case {number} failed ({errcode}).\n{advice}"),
        )
    }

    /// A task that the server refused for good.
    pub(crate) fn undeliverable(&self, task: &Task, errcode: &str) -> String {
        match task {
            Task::Say(_) | Task::Join { .. } => self.pick(
                format!("部屋に返事を書けませんでした（{errcode}）。部屋が終了しているか、市の窓口が部屋にいない可能性があります。必要なときは依頼した方に電話などでお知らせください。"),
                format!("An answer could not be written in its room ({errcode}): it may be closed. Please tell whoever asked in another way."),
            ),
            Task::Examine { case } | Task::Execute { case } => self.pick(
                format!("案件 {case} を進められませんでした（{errcode}）。「案件 {case}」で内容を確かめてください。"),
                format!("Case {case} could not go on ({errcode}). See \"case {case}\"."),
            ),
            Task::MailScope { .. } => self.pick(
                format!("メール通知の設定を変えられませんでした（{errcode}）。"),
                format!("The choice of mails could not be changed ({errcode})."),
            ),
            Task::Applications { .. } => self.pick(
                format!("電子申請のファイルを読めませんでした（{errcode}）。投稿が削除されていないかを確かめて、もう一度投稿してください。"),
                format!("The file of e-applications could not be read ({errcode}). If it was deleted, please post it again."),
            ),
            Task::Look { .. } => self.pick(
                format!("一覧を取り出せませんでした（{errcode}）。もう一度お試しください。"),
                format!("The list could not be read ({errcode}). Please try again."),
            ),
        }
    }

    pub(crate) fn no_such_case(&self, number: i64) -> String {
        self.pick(format!("案件 {number} はありません。"), format!("There is no case {number}."))
    }

    pub(crate) fn which_case(&self) -> String {
        self.pick(
            "案件の番号を書くか、案件の投稿に返信して書いてください。",
            "Please give the case's number, or reply to its message.",
        )
    }

    /// A second decision, or one that comes too early.
    pub(crate) fn cannot_decide(&self, case: &Case) -> String {
        let number = case.number;
        let state = self.state(case.state);
        if case.state == State::Filed {
            return self.pick(
                format!(
                    "案件 {number} は確認の途中です。「案件 {number}」で足りないものを確かめてください。"
                ),
                format!("Case {number} is not ready to be approved. See \"case {number}\"."),
            );
        }
        let by = case.decided_by.as_deref().unwrap_or("");
        self.pick(
            format!("案件 {number} はすでに「{state}」です（{by}）。"),
            format!("Case {number} is already {state} ({by})."),
        )
    }

    /// A case that is open stands in the way of another that asks for the same.
    pub(crate) fn twin_is_open(&self, number: i64, twin: i64) -> String {
        self.pick(
            format!("案件 {number} と同じ依頼が、案件 {twin} として出ています。先に案件 {twin} を承認するか差し戻してください。"),
            format!("Case {twin} asks for the same as case {number} and is open: decide it first."),
        )
    }

    /// An event that could not be taken.
    pub(crate) fn not_understood(&self) -> String {
        self.pick(
            "この投稿は処理できませんでした。システムの担当者に知らせてください。",
            "This message could not be handled. Please tell whoever runs the system.",
        )
    }

    pub(crate) fn refused_to_city(&self, number: i64) -> String {
        self.pick(format!("案件 {number} を差し戻しました。"), format!("Case {number} is sent back."))
    }

    pub(crate) fn nobody_to_assign(&self, number: i64) -> String {
        self.pick(
            format!("案件 {number} の人は今は変えられません。"),
            format!("The people of case {number} cannot be changed now."),
        )
    }

    pub(crate) fn open_cases(&self, cases: &[(Case, Option<i64>)]) -> String {
        if cases.is_empty() {
            return self.pick("未完了の案件はありません。", "No case is open.");
        }
        let lines: Vec<String> = cases
            .iter()
            .map(|(case, scans)| {
                let what = self.summary(&case.action);
                let first = what.lines().next().unwrap_or_default().to_owned();
                let scans = scans.map(|count| format!("（{}）", self.scans(count))).unwrap_or_default();
                format!("・{} {} {first}{scans}", case.number, self.state(case.state))
            })
            .collect();
        lines.join("\n")
    }

    pub(crate) fn case_in_full(&self, case: &Case, scans: Option<i64>) -> String {
        let (number, state) = (case.number, self.state(case.state));
        let who = match case.receipt() {
            Some(receipt) => self.applied(receipt, &case.requester),
            None => case.requester.clone(),
        };
        let filed = stamp(case.filed_at);
        let mut what = self.summary(&case.action);
        if let Some(count) = scans {
            what.push('\n');
            what.push_str(&self.scans(count));
        }
        let decided = match (&case.decided_by, case.decided_at) {
            (Some(by), Some(at)) => {
                let at = stamp(at);
                self.pick(format!("\n決めた人：{by}（{at}）"), format!("\nDecided by {by} ({at})"))
            }
            _ => String::new(),
        };
        let reason = case.reason.as_deref().filter(|reason| !reason.is_empty());
        let reason = reason
            .map(|reason| self.pick(format!("\n理由：{reason}"), format!("\nReason: {reason}")))
            .unwrap_or_default();
        self.pick(
            format!("案件 {number}：{state}\n依頼：{who}（{filed}）\n{what}{decided}{reason}"),
            format!("Case {number}: {state}\nAsked by {who} ({filed})\n{what}{decided}{reason}"),
        )
    }

    /// Whether the consent form's scan is there.
    pub(crate) fn scans(&self, count: i64) -> String {
        match count {
            0 => self.pick("同意書：添付なし", "Consent form: no scan"),
            1 => self.pick("同意書：添付あり", "Consent form: scan attached"),
            _ => self.pick(
                format!("同意書：添付あり（{count}件）"),
                format!("Consent form: {count} scans attached"),
            ),
        }
    }

    pub(crate) fn scan_stored(&self, consent: &Reported, count: i64) -> String {
        let Reported { name, birth_date, .. } = consent;
        let scans = self.scans(count);
        self.pick(
            format!("同意書を記録しました。\n対象者：{name}さん（{birth_date}）\n{scans}\nまちがえたときは、付けた投稿を削除してください。"),
            format!("The consent form is recorded.\nSubject: {name} ({birth_date})\n{scans}\nIf it is the wrong one, delete the post."),
        )
    }

    pub(crate) fn scan_without_consent(&self, number: i64) -> String {
        self.pick(
            format!("案件 {number} の対象者の、有効な同意の報告がありません。先に同意の報告を入れてから、もう一度付けてください。"),
            format!("Case {number} has no report of consent that stands. Report it first, then attach the scan again."),
        )
    }

    pub(crate) fn scan_of_what(&self) -> String {
        self.pick(
            "どの同意書か分かりません。開設の案件か同意の報告の投稿に返信して付けるか、ファイルの名前か説明に「同意書 案件番号」と書いてください。",
            "Which consent is it? Attach the file as a reply to the case or to the report of consent, or name it \"consent form\" and the case's number (同意書 12).",
        )
    }

    pub(crate) fn too_many_scans(&self) -> String {
        self.pick(
            "この同意の報告には、これ以上付けられません。要らない投稿を削除してください。",
            "This report of consent takes no more scans: delete those that are not needed.",
        )
    }

    pub(crate) fn consent_to_city(&self, consent: &Consent, sender: &str) -> String {
        let Consent { name, birth_date, explained_by, role, explained_on, .. } = consent;
        self.pick(
            format!("同意の報告がありました（報告：{sender}）。\n対象者：{name}さん（{birth_date}）\n説明：{explained_by}（{role}）、{explained_on}\n①情報共有 ②市が情報を取得すること：同意あり"),
            format!("Consent reported by {sender}.\nSubject: {name} ({birth_date})\nExplained by {explained_by} ({role}) on {explained_on}\nItems 1 and 2: yes"),
        )
    }

    pub(crate) fn withdrawal_to_city(&self, name: &str, birth_date: &str, sender: &str) -> String {
        self.pick(
            format!("同意の撤回がありました（連絡：{sender}）。\n対象者：{name}さん（{birth_date}）\n部屋があるときは、終了するかどうかを決めてください（「終了 部屋番号」）。"),
            format!("Consent withdrawn (told by {sender}).\nSubject: {name} ({birth_date})\nDecide whether the subject's room is to be closed (\"close number\")."),
        )
    }

    pub(crate) fn rooms(&self, rooms: &[RoomRow], status: RoomStatus) -> String {
        let title = match status {
            RoomStatus::Open => self.pick("開いている部屋", "Open rooms"),
            RoomStatus::Closed => self.pick("終了した部屋", "Closed rooms"),
            RoomStatus::Archived => self.pick("保管した部屋", "Archived rooms"),
        };
        let lines = rooms.iter().map(|room| {
            let mut line = room_line(room.room_number, &room.name);
            if let (RoomStatus::Archived, Some(at)) = (status, room.purge_from) {
                let day = stamp(at);
                let day = day.split(' ').next().unwrap_or_default();
                line +=
                    &self.pick(format!("（保存期間：{day}まで）"), format!(" (may be purged from {day})"));
            }
            if room.held {
                line += &self.pick("【法的保全中】", " [legal hold]");
            }
            line
        });
        self.listed(title, lines.collect())
    }

    pub(crate) fn facilities(&self, rows: &[FacilityRow]) -> String {
        let lines = rows.iter().map(|row| {
            let ended = if row.active { String::new() } else { self.pick("（終了）", " (ended)") };
            let kind = &row.kind;
            let count = row.accounts;
            self.pick(
                format!("・{} {}（利用者 {count}名）{ended}", row.facility, row.name),
                format!("・{} {} ({kind}, {count} accounts){ended}", row.facility, row.name),
            )
        });
        self.listed(self.pick("事業所", "Facilities"), lines.collect())
    }

    pub(crate) fn accounts(&self, rows: &[AccountRow]) -> String {
        let lines = rows.iter().map(|row| format!("・{}{}", row.label(), self.account_status(row)));
        self.listed(self.pick("利用者", "Accounts"), lines.collect())
    }

    pub(crate) fn terminals(&self, row: &AccountRow, terminals: &[TerminalRow]) -> String {
        let lines = terminals.iter().map(|terminal| {
            let status = match terminal.status.as_str() {
                "valid" => self.pick("有効", "valid"),
                "expired" => self.pick("期限切れ", "expired"),
                _ => self.pick("失効", "revoked"),
            };
            let seen = terminal.last_seen.map(stamp).unwrap_or_else(|| "-".to_owned());
            self.pick(
                format!("・端末 {} {}：{status}（最後の利用 {seen}）", terminal.terminal, terminal.label),
                format!("・terminal {} {}: {status} (last seen {seen})", terminal.terminal, terminal.label),
            )
        });
        self.listed(row.label(), lines.collect())
    }

    fn listed(&self, title: String, lines: Vec<String>) -> String {
        if lines.is_empty() {
            return self.pick(format!("{title}：ありません。"), format!("{title}: none."));
        }
        format!("{title}（{}）\n{}", lines.len(), lines.join("\n"))
    }

    fn account_status(&self, row: &AccountRow) -> String {
        match row.status.as_str() {
            "issued" => self.pick("（登録前）", " (not enrolled)"),
            "ended" => self.pick("（利用終了）", " (ended)"),
            _ => String::new(),
        }
    }

    pub(crate) fn state(&self, state: State) -> String {
        let (ja, en) = match state {
            State::Filed => ("受付", "filed"),
            State::Approved => ("承認", "approved"),
            State::Executing => ("実行中", "executing"),
            State::Done => ("完了", "done"),
            State::Refused => ("差し戻し", "refused"),
            State::Failed => ("失敗", "failed"),
        };
        self.pick(ja, en)
    }
}

/// A room in a list.
pub(crate) fn room_line(number: i64, name: &str) -> String {
    format!("・{number}　{name}")
}

/// A moment as staff read it, on the Japanese clock.
fn stamp(ms: i64) -> String {
    let at = japanese_time(ms);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute()
    )
}
