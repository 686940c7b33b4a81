//! `heya cert`: terminals' certificates listed, renewed, revoked, and codes for new ones.

use clap::Subcommand;
use heya::{config::Config, error::Result};
use reqwest::Method;
use serde_json::json;

use super::call;

/// `heya cert …`
#[derive(Subcommand)]
pub enum Cert {
    /// List terminals with their newest certificate.
    List,
    /// Make a one-time code with its sheet, for a further terminal of an ID (端末コード).
    ///
    /// The person enrols with the ID, the current password and this code, and gets the certificate there.
    Issue {
        /// The login id, such as p100001.
        login_id: String,
    },
    /// Issue a new certificate for a terminal, as a .p12 file in the data folder; the old one goes on until it expires.
    Renew {
        /// The number of the terminal, from `heya cert list`.
        terminal: i64,
    },
    /// Revoke a terminal: its certificates, sessions and connections end at once.
    Revoke {
        /// The number of the terminal, from `heya cert list`.
        terminal: i64,
        /// Why: for the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// Runs it.
pub async fn run(config: &Config, cert: Cert) -> Result<()> {
    match cert {
        Cert::List => {
            let answer = call(config, Method::GET, "terminals", None).await?;
            println!(
                "{:<9}{:<10}{:<10}{:<12}{:<34}端末の名前",
                "端末", "事業所", "状態", "期限", "証明書番号"
            );
            for row in answer["terminals"].as_array().into_iter().flatten() {
                let expires = row["expires"].as_i64().map(heya::audit::day_of).unwrap_or_default();
                println!(
                    "{:<11}{:<13}{:<12}{:<14}{:<34}{}",
                    row["terminal"],
                    row["facility"],
                    row["status"].as_str().unwrap_or_default(),
                    expires,
                    row["serial"].as_str().unwrap_or_default(),
                    row["label"].as_str().unwrap_or_default(),
                );
            }
        }
        Cert::Issue { login_id } => {
            let server_name = call(config, Method::GET, "control", None).await?;
            let server_name = server_name["server_name"].as_str().unwrap_or_default().to_owned();
            let path = format!("accounts/@{login_id}:{server_name}/codes");
            let answer = call(config, Method::POST, &path, Some(json!({}))).await?;
            files(config, &answer["sheets"]);
        }
        Cert::Renew { terminal } => {
            let answer =
                call(config, Method::POST, &format!("terminals/{terminal}/renew"), Some(json!({}))).await?;
            files(config, &answer["files"]);
        }
        Cert::Revoke { terminal, reason } => {
            let body = json!({"reason": reason});
            let answer =
                call(config, Method::POST, &format!("terminals/{terminal}/revoke"), Some(body)).await?;
            println!("失効しました。終了したセッション: {}", answer["sessions"]);
        }
    }
    Ok(())
}

fn files(config: &Config, list: &serde_json::Value) {
    for file in list.as_array().into_iter().flatten().filter_map(|file| file.as_str()) {
        println!("{}", config.server.data_dir.join(file).display());
    }
}
