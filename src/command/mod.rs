//! The subcommands beside `serve`. Those that change anything talk to the running server over its internal listener.

use heya::{
    config::Config,
    error::{Error, Result},
};

pub mod audit;
pub mod backup;
pub mod cert;
pub mod register;

/// Calls the running server's `/_heya/v1` as a local command.
pub async fn call(
    config: &Config,
    method: reqwest::Method,
    path: &str,
    body: Option<serde_json::Value>,
) -> Result<serde_json::Value> {
    let token_path = config.server.data_dir.join("keys").join("command.token");
    let token = std::fs::read_to_string(&token_path).map_err(|error| {
        Error::internal(format!("{}: {error} (run this as the user that Heya runs as)", token_path.display()))
    })?;
    let url = format!("http://{}/_heya/v1/{path}", config.server.internal_listen);
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut request = client.request(method, url).bearer_auth(token.trim());
    if let Some(mut body) = body {
        body["acting"] = "command".into();
        request = request
            .header("idempotency-key", format!("command-{}", heya::clock::random_token(16)))
            .json(&body);
    }
    let answer = request.send().await.map_err(|error| {
        if error.is_connect() {
            Error::internal("the server does not run: start it with `heya serve`")
        } else {
            error.into()
        }
    })?;
    let status = answer.status();
    let value: serde_json::Value = answer.json().await?;
    if status.is_success() {
        Ok(value)
    } else {
        Err(Error::internal(value["error"].as_str().unwrap_or("the server refused").to_owned()))
    }
}
