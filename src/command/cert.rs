//! `heya cert`: terminals' certificates listed, renewed, revoked, registered, and codes for new ones.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use heya::{
    config::Config,
    error::{Error, Result},
};
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
    /// Register a certificate of the city's own CA (tls.client_ca) as a terminal: from then on it is let in.
    ///
    /// Either --facility and --label, for a new terminal, or --terminal, where a known terminal's certificate was renewed.
    Register {
        /// The certificate, PEM. Never its key.
        file: PathBuf,
        /// The number of the facility (事業所番号) that the terminal belongs to.
        #[arg(long, required_unless_present = "terminal", requires = "label")]
        facility: Option<i64>,
        /// What people call the terminal, such as 受付のパソコン. No names of patients.
        #[arg(long)]
        label: Option<String>,
        /// A person's own terminal, which the city has approved (私的端末).
        #[arg(long)]
        private: bool,
        /// The number of a known terminal, from `heya cert list`.
        #[arg(long, conflicts_with_all = ["facility", "label", "private"])]
        terminal: Option<i64>,
    },
    /// Write the revocation list of Heya's own CA (PEM), for a proxy that checks certificates before Heya.
    ///
    /// The same list is open at https://<enrolment>/crl in DER. It is good for a week: write it again every day.
    Crl {
        /// The file to write, replaced as one; none: standard output.
        file: Option<PathBuf>,
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
                    // A JSON number pays no heed to a width.
                    row["terminal"].to_string(),
                    row["facility"].to_string(),
                    row["status"].as_str().unwrap_or_default(),
                    expires,
                    row["serial"].as_str().unwrap_or_default(),
                    row["label"].as_str().unwrap_or_default(),
                );
            }
        }
        Cert::Issue { login_id } => {
            if !login_id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(Error::internal("a login id is a letter and a number, such as p100001"));
            }
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
        Cert::Register { file, facility, label, private, terminal } => {
            let certificate = read(&file)?;
            let body = json!({
                "certificate": certificate, "terminal": terminal, "facility": facility,
                "label": label.unwrap_or_default(), "private": private,
            });
            let answer = call(config, Method::POST, "terminals/register", Some(body)).await?;
            let expires = answer["expires"].as_i64().map(heya::audit::day_of).unwrap_or_default();
            println!(
                "登録しました。端末: {} 証明書番号: {} 期限: {expires}",
                answer["terminal"],
                answer["serial"].as_str().unwrap_or_default()
            );
        }
        Cert::Crl { file } => {
            let answer = call(config, Method::GET, "crl", None).await?;
            let pem = answer["pem"].as_str().unwrap_or_default();
            match file {
                Some(file) => {
                    heya::files::replace(&file, pem.as_bytes())
                        .map_err(|error| Error::internal(format!("{}: {error}", file.display())))?;
                    println!("失効リストを書きました: {} ({}件)", file.display(), answer["entries"]);
                }
                None => print!("{pem}"),
            }
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

/// A certificate's file. A key stays where it is: it is not even sent to the server.
fn read(file: &Path) -> Result<String> {
    const BYTES_MAX: u64 = 32 * 1024;
    let told = |reason: &str| Error::internal(format!("{}: {reason}", file.display()));
    let length = std::fs::metadata(file).map_err(|error| told(&error.to_string()))?.len();
    if length > BYTES_MAX {
        return Err(told("this file is too long for a certificate"));
    }
    let text = std::fs::read(file).map_err(|error| told(&error.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| told("this is not PEM"))?;
    if text.contains("PRIVATE KEY") {
        return Err(told("there is a private key in this file: give the certificate alone"));
    }
    Ok(text)
}

fn files(config: &Config, list: &serde_json::Value) {
    for file in list.as_array().into_iter().flatten().filter_map(|file| file.as_str()) {
        println!("{}", config.server.data_dir.join(file).display());
    }
}
