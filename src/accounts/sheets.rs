//! Handover sheets (票): printable pages that only their owner reads. Password and code are on two sheets, which
//! travel separately (DESIGN 3).

use askama::Template;

use crate::{
    error::{Error, Result},
    rooms::batch::Batch,
    server::Server,
    store,
};

#[derive(Template)]
#[template(path = "sheet_password.html")]
struct PasswordSheet<'a> {
    service: &'a str,
    city: &'a str,
    contact: &'a str,
    sheet_number: &'a str,
    display_name: &'a str,
    login_id: &'a str,
    initial_password: &'a str,
    enrol_url: &'a str,
    issued_on: &'a str,
}

#[derive(Template)]
#[template(path = "sheet_code.html")]
struct CodeSheet<'a> {
    service: &'a str,
    city: &'a str,
    contact: &'a str,
    sheet_number: &'a str,
    display_name: &'a str,
    code: &'a str,
    code_expires: &'a str,
    enrol_url: &'a str,
    issued_on: &'a str,
    further_terminal: bool,
}

/// What the sheets of a server say, the same for all.
#[derive(Clone)]
pub struct Letterhead {
    service: String,
    city: String,
    contact: String,
    enrol_url: String,
    folder: std::path::PathBuf,
}

impl Letterhead {
    /// From the config.
    pub fn of(server: &Server) -> Self {
        Self {
            service: server.config.city.service.clone(),
            city: server.config.city.name.clone(),
            contact: server.config.city.contact.clone(),
            enrol_url: format!("{}/enrol", server.config.enrol_url()),
            folder: server.data().join("sheets"),
        }
    }
}

/// What a sheet hands over.
pub enum Secret<'a> {
    /// The initial password.
    Password(&'a str),
    /// The one-time code, until when it is good (ms), and whether it is for a further terminal.
    Code(&'a str, i64, bool),
}

/// Writes a sheet into the data folder and returns its path there. Called in the unit that makes the secret: a sheet
/// whose unit fails opens nothing.
pub async fn write(
    batch: &mut Batch,
    letterhead: &Letterhead,
    display_name: &str,
    login_id: &str,
    secret: Secret<'_>,
) -> Result<String> {
    let number = store::meta::next_number(batch.sql().await?, "sheet", 1).await?;
    let sheet_number = format!("{number:04}");
    let issued_on = crate::audit::written_date(batch.now);
    let (name, page) = match secret {
        Secret::Password(initial_password) => (
            format!("{sheet_number}-password.html"),
            PasswordSheet {
                service: &letterhead.service,
                city: &letterhead.city,
                contact: &letterhead.contact,
                sheet_number: &sheet_number,
                display_name,
                login_id,
                initial_password,
                enrol_url: &letterhead.enrol_url,
                issued_on: &issued_on,
            }
            .render(),
        ),
        Secret::Code(code, expires_at, further_terminal) => (
            format!("{sheet_number}-code.html"),
            CodeSheet {
                service: &letterhead.service,
                city: &letterhead.city,
                contact: &letterhead.contact,
                sheet_number: &sheet_number,
                display_name,
                code,
                code_expires: &crate::audit::written_date(expires_at),
                enrol_url: &letterhead.enrol_url,
                issued_on: &issued_on,
                further_terminal,
            }
            .render(),
        ),
    };
    let page = page.map_err(|error| Error::internal(error.to_string()))?;
    crate::files::write_private(&letterhead.folder.join(&name), page.as_bytes())?;
    Ok(format!("sheets/{name}"))
}
