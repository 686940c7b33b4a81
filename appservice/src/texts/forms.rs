//! Forms to fill in, what they lack, and how commands are written.

use super::Texts;
use crate::cases::Step;
use crate::commands::{Name, Problem};
use crate::forms::Gap;

impl Texts {
    pub(crate) fn consent_form(&self) -> String {
        self.pick(
            "同意の報告\n対象者氏名：\n生年月日：\n住所：\n説明者：\n説明者の職種：\n説明日：\n①情報共有への同意：\n②市が情報を取得することへの同意：",
            "consent\nName:\nBirth date:\nAddress:\nExplained by:\nRole:\nExplained on:\n1 Sharing of information:\n2 The city obtains the information:",
        )
    }

    pub(crate) fn opening_form(&self) -> String {
        self.pick(
            "開設依頼\n対象者氏名：\n生年月日：\n住所：\n要件：\nメンバー：",
            "open\nName:\nBirth date:\nAddress:\nEligibility:\nMembers:",
        )
    }

    /// What a form lacks, and the empty form to copy.
    pub(crate) fn form_with_gaps(&self, name: Name, gaps: &[Gap]) -> String {
        let lacking: Vec<String> = gaps.iter().map(|gap| format!("・{}", self.gap(*gap))).collect();
        let lacking = lacking.join("\n");
        let (form, notes) = match name {
            Name::Consent => (
                self.consent_form(),
                self.pick(
                    "説明者はケアマネジャー、医師、看護師のいずれかです。①②は同意があれば「はい」と書いてください。",
                    "Consent is explained by a care manager, doctor or nurse. Write yes for 1 and 2.",
                ),
            ),
            _ => (
                self.opening_form(),
                self.pick(
                    "要件は ①在宅で療養中 ②在宅での療養を予定 ③市長が必要と認める方（③は「理由：」も必要）です。メンバーは氏名か利用者IDを「、」で区切って書いてください。職能団体の部屋は「種類：職能団体」と「部屋の名称：」だけを書いてください。",
                    "Eligibility: 1 at home, 2 planned, 3 approved by the mayor (needs Note:). Members: names or login ids. An association needs Kind: association and Room name: only.",
                ),
            ),
        };
        self.pick(
            format!("次の項目がそろっていません。\n{lacking}\n\n次の用紙を写して、書き込んで送ってください。{notes}\n\n{form}"),
            format!("Missing:\n{lacking}\n\nPlease copy, fill in and send. {notes}\n\n{form}"),
        )
    }

    pub(crate) fn withdrawal_with_gaps(&self) -> String {
        self.pick(
            "同意の撤回には対象者の氏名と生年月日が必要です。次の用紙を写して、書き込んで送ってください。\n\n同意の撤回\n対象者氏名：\n生年月日：",
            "A withdrawal needs name and birth date:\n\n同意の撤回\nName:\nBirth date:",
        )
    }

    pub(super) fn gap(&self, gap: Gap) -> String {
        let (ja, en) = match gap {
            Gap::Name => ("対象者氏名", "subject's name"),
            Gap::BirthDate => ("生年月日（例：昭和15年5月1日、1940-05-01）", "birth date (1940-05-01)"),
            Gap::Address => ("住所", "address"),
            Gap::ExplainedBy => ("説明者", "who explained"),
            Gap::Role => ("説明者の職種", "the explainer's role"),
            Gap::RoleNotAllowed => (
                "説明者の職種（ケアマネジャー、医師、看護師のいずれか）",
                "role: care manager, doctor or nurse",
            ),
            Gap::ExplainedOn => ("説明日（今日までの日付）", "day of explanation, not in the future"),
            Gap::SharesInformation => ("①情報共有への同意", "consent ① to the sharing of information"),
            Gap::CityObtains => ("②市が情報を取得することへの同意", "consent ② to the city obtaining it"),
            Gap::Eligibility => ("要件（①②③のいずれか）", "eligibility (1, 2 or 3)"),
            Gap::Note => ("要件③の理由", "note of the approval for eligibility 3"),
            Gap::RoomName => ("部屋の名称", "the room's name"),
        };
        self.pick(ja, en)
    }

    pub(crate) fn problem(&self, problem: &Problem) -> String {
        match problem {
            Problem::Usage(name) => {
                let usage = usage(*name);
                self.pick(format!("次のように書いてください。\n{usage}"), format!("Please write:\n{usage}"))
            }
            Problem::Pledge(name) => {
                let usage = usage(*name);
                self.pick(
                    format!("利用申請書の誓約を確認して、「誓約済」と書き添えてください。\n{usage}"),
                    format!("Check the pledge and state 誓約済 (pledged).\n{usage}"),
                )
            }
            Problem::Gaps(name, gaps) => self.form_with_gaps(*name, gaps),
        }
    }

    pub(crate) fn help(&self) -> String {
        let all = [
            Name::Cases,
            Name::Approve,
            Name::Refuse,
            Name::Assign,
            Name::Register,
            Name::Issue,
            Name::Code,
            Name::Reset,
            Name::Consent,
            Name::Open,
            Name::Add,
            Name::Remove,
            Name::Close,
            Name::Reopen,
            Name::Announce,
            Name::List,
            Name::EndAccount,
            Name::RevokeTerminal,
            Name::Life(Step::Archive),
            Name::Life(Step::Export),
            Name::Life(Step::Hold),
            Name::Life(Step::Release),
            Name::Life(Step::Purge),
            Name::Life(Step::BreakGlass),
            Name::Life(Step::EndBreakGlass),
            Name::Redact,
            Name::Import,
        ];
        let usages: Vec<&str> = all.into_iter().map(usage).collect();
        let usages = usages.join("\n")
            + "\n・メール通知 自分宛て｜ダイレクト｜すべて（mail mentions | direct | all）　ご自分に届くメールを選びます";
        self.pick(format!("使えることば\n{usages}"), format!("Commands\n{usages}"))
    }
}

/// How a command is written. The English aliases work in either language.
fn usage(name: Name) -> &'static str {
    match name {
        Name::Help => "・ヘルプ（help）",
        Name::Register => {
            "・事業所登録 事業所の名前 種類 誓約済（register）　種類：医療機関・訪問看護・介護・薬局・職能団体・その他"
        }
        Name::Issue => "・発行 事業所の名前 氏名 職種 誓約済（issue）／発行 事業所の名前 施設ID 誓約済",
        Name::Code => "・端末コード 利用者ID（code）　別の端末のためのコード",
        Name::Reset => {
            "・パスワード再発行 利用者IDか氏名（reset）　ログインと本人の端末を終了し、新しい初期パスワードと登録コードの票を二つ出します"
        }
        Name::Consent => "・同意（consent）　用紙が出ます／同意の撤回",
        Name::Open => "・開設（open）　用紙が出ます／開設 職能団体 部屋の名称",
        Name::Add => "・追加 部屋番号 氏名か利用者ID（add）",
        Name::Remove => "・削除 部屋番号 氏名か利用者ID（remove）",
        Name::Close => "・終了 部屋番号（close）",
        Name::Reopen => "・再開 部屋番号（reopen）",
        Name::Announce => "・お知らせ 宛先の事業所（全員は「全員」）、改行して本文（announce）",
        Name::Cases => "・案件（cases）　未完了の案件／案件 番号",
        Name::List => "・一覧 部屋｜終了｜保管｜事業所｜利用者 ことば｜端末 利用者ID（list）",
        Name::Life(Step::Archive) => {
            "・保管 部屋番号（archive）　終了した部屋からメンバーを外し、記録だけを残します"
        }
        Name::Life(Step::Export) => {
            "・書き出し 部屋番号（export）　記録を、読める形のファイルにします（サーバーのデータフォルダーの中）"
        }
        Name::Life(Step::Hold) => "・法的保全 部屋番号 理由（hold）　保存期間が過ぎても消去できなくします",
        Name::Life(Step::Release) => "・保全解除 部屋番号 理由（release）",
        Name::Life(Step::Purge) => {
            "・消去 部屋番号（purge）　保存期間が過ぎた部屋の記録をすべて消し、消去証明書を残します"
        }
        Name::Life(Step::BreakGlass) => {
            "・緊急閲覧 部屋番号 理由（break-glass）　書いた方が部屋を期限つきで読めます。部屋に理由が投稿されます"
        }
        Name::Life(Step::EndBreakGlass) => "・緊急閲覧終了 部屋番号（end-break-glass）",
        Name::Redact => {
            "・投稿取消 部屋番号 投稿のリンク 理由（redact）　市の指示で投稿を取り消します。終了した部屋でもできます"
        }
        Name::Import => {
            "・取り込み（import）　電子申請の CSV ファイルをここに投稿すると内容を読みます。その返事に返信すると、申請が案件になります"
        }
        Name::Approve => "・承認 案件番号（approve）　案件の投稿に ✅ を付けても同じです",
        Name::Refuse => "・差し戻し 案件番号 理由（refuse）　案件の投稿に ❌ を付けても同じです",
        Name::Assign => "・指定 案件番号 利用者ID（assign）　案件の人を決めます",
        Name::EndAccount => "・利用終了 利用者ID 理由（end）　内容が出てから承認します",
        Name::RevokeTerminal => {
            "・端末失効 端末番号 理由（revoke）　番号は「一覧 端末 利用者ID」で分かります"
        }
    }
}
