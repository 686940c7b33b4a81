//! Where the links in mails lead: nothing happens on GET, a button acts, once (DESIGN 18).

use std::sync::Arc;

use http::{Method, StatusCode};

use super::{Common, field, fields, page, render};
use crate::{
    accounts::addresses::{self, Purpose},
    error::Result,
    http::{
        caller::peer,
        route::{Answer, Call, Routes},
    },
    server::Server,
};

page!(VerifyPage, "landing_verify.html" { token: String });
page!(ResetPage, "landing_reset.html" { token: String });
page!(ResultPage, "landing_result.html" { ok: bool, title: &'a str, sentences: Vec<String> });

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/mail/verify", |server, call| async move {
            let token = call.query("token").unwrap_or_default();
            render(StatusCode::OK, &VerifyPage::new(Common::of(&server), token))
        })
        .at(Method::POST, "/mail/verify", verify)
        .at(Method::GET, "/mail/reset", |server, call| async move {
            let token = call.query("token").unwrap_or_default();
            render(StatusCode::OK, &ResetPage::new(Common::of(&server), token))
        })
        .at(Method::POST, "/mail/reset", reset)
}

async fn verify(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    server.limiter.allow_before_login(peer(&call.parts)?.address.ip(), server.now())?;
    let fields = fields(&server, &mut call).await?;
    let ok = addresses::confirm(&server, field(&fields, "token"), Purpose::Add).await?;
    let (status, title, sentences) = if ok {
        (
            StatusCode::OK,
            "メールアドレスを確認しました",
            vec!["もとの画面に戻り、「続ける」を押してください。".to_owned()],
        )
    } else {
        (
            StatusCode::FORBIDDEN,
            "このリンクは使えません",
            vec![
                "リンクはすでに使われたか、期限が切れています。".to_owned(),
                "設定画面から、もう一度メールアドレスを登録してください。".to_owned(),
            ],
        )
    };
    render(status, &ResultPage::new(Common::of(&server), ok, title, sentences))
}

/// The person behind the mailbox says that it was them. The password itself is set where the terminal's certificate is shown.
async fn reset(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    server.limiter.allow_before_login(peer(&call.parts)?.address.ip(), server.now())?;
    let fields = fields(&server, &mut call).await?;
    let ok = addresses::confirm(&server, field(&fields, "token"), Purpose::Reset).await?;
    let (status, title, sentences) = if ok {
        (
            StatusCode::OK,
            "ご本人の確認が終わりました",
            vec![
                "ログイン画面に戻り、新しいパスワードの設定を続けてください。".to_owned(),
                "新しいパスワードは、電子証明書の入った、事業所の端末でだけ設定できます。".to_owned(),
            ],
        )
    } else {
        (
            StatusCode::FORBIDDEN,
            "このリンクは使えません",
            vec![
                "リンクはすでに使われたか、期限（1時間）が切れています。".to_owned(),
                "ログイン画面から、もう一度パスワードの再設定を始めてください。".to_owned(),
            ],
        )
    };
    render(status, &ResultPage::new(Common::of(&server), ok, title, sentences))
}
