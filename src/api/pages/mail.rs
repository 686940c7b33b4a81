//! Where the links in mails lead: nothing happens on GET, a button acts, once (DESIGN 18).

use std::sync::Arc;

use http::{Method, StatusCode};

use super::{Common, field, fields, page, render};
use crate::{
    accounts::addresses,
    error::Result,
    http::{
        caller::peer,
        route::{Answer, Call, Routes},
    },
    server::Server,
};

page!(VerifyPage, "landing_verify.html" { token: String });
page!(ResultPage, "landing_result.html" { ok: bool, title: &'a str, sentences: Vec<String> });

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/mail/verify", |server, call| async move {
            let token = call.query("token").unwrap_or_default();
            render(StatusCode::OK, &VerifyPage::new(Common::of(&server), token))
        })
        .at(Method::POST, "/mail/verify", verify)
}

async fn verify(server: Arc<Server>, mut call: Call) -> Result<Answer> {
    server.limiter.allow_before_login(peer(&call.parts)?.address.ip(), server.now())?;
    let fields = fields(&server, &mut call).await?;
    let ok = addresses::confirm(&server, field(&fields, "token")).await?;
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
