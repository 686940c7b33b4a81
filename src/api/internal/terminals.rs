//! Terminals: listed, and ended when they are lost.

use std::sync::Arc;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{accounts::user, city, once};
use crate::{
    accounts::terminals::{self, Place},
    error::{Error, Result, forbidden, invalid},
    http::route::{Answer, Call, Routes},
    rooms::committer::Hint,
    server::Server,
    store::{self, terminals::Terminal},
    tls,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::GET, "/_heya/v1/accounts/{user_id}/terminals", |server, call| async move {
            city(&server, &call)?;
            let user_id = user(&call)?;
            let list = store::terminals::terminals_of(&mut server.db.read().await?, user_id.as_str()).await?;
            answer(&server, list).await
        })
        .at(Method::GET, "/_heya/v1/terminals", |server, call| async move {
            city(&server, &call)?;
            let list = store::terminals::terminals(&mut server.db.read().await?).await?;
            answer(&server, list).await
        })
        .at(Method::POST, "/_heya/v1/terminals/{terminal}/revoke", |server, call| async move {
            let terminal = number(&call)?;
            let parts = (Arc::clone(&server.terminals), Arc::clone(&server.sessions));
            once(
                server,
                call,
                |_: &Reason| Hint::default(),
                move |batch, body, acting| {
                    Box::pin(async move {
                        let sessions =
                            terminals::revoke(batch, &parts.0, &parts.1, terminal, &body.reason, &acting)
                                .await?;
                        Ok(json!({"sessions": sessions}))
                    })
                },
            )
            .await
        })
        .at(Method::POST, "/_heya/v1/terminals/{terminal}/renew", renew)
        .at(Method::POST, "/_heya/v1/terminals/register", register)
        .at(Method::GET, "/_heya/v1/crl", |server, call| async move {
            city(&server, &call)?;
            let list = terminals::own_list(&server).await?;
            Ok(json!({"pem": tls::crl_pem(&list.der), "entries": list.entries}).into())
        })
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    reason: String,
}

fn number(call: &Call) -> Result<i64> {
    call.arg(0).parse().map_err(|_| invalid("The path has no number of a terminal."))
}

async fn answer(server: &Server, list: Vec<Terminal>) -> Result<Answer> {
    let mut conn = server.db.read().await?;
    let now = server.now();
    let mut rows: Vec<Value> = Vec::new();
    for terminal in list {
        let newest = store::terminals::certificates_of(&mut conn, terminal.id).await?.pop();
        let status = match &newest {
            Some(certificate)
                if certificate.revoked_at.is_some() || server.terminals.is_listed(&certificate.serial) =>
            {
                "revoked"
            }
            Some(certificate) if certificate.not_after < now => "expired",
            Some(_) => "valid",
            None => "none",
        };
        rows.push(json!({
            "terminal": terminal.id, "label": terminal.label, "facility": terminal.facility,
            "ownership": terminal.ownership, "enrolled_by": terminal.enrolled_by,
            "serial": newest.as_ref().map(|c| c.serial.clone()), "status": status,
            "expires": newest.as_ref().map(|c| c.not_after), "last_seen": terminal.last_seen,
        }));
    }
    Ok(json!({"terminals": rows}).into())
}

/// Refuses what needs a CA of Heya's own.
pub(super) fn issues(server: &Server) -> Result<()> {
    if server.ca.has_key() {
        return Ok(());
    }
    Err(forbidden(
        "The certificates are issued by the city's own CA (tls.client_ca): have it issue one, then register it with \
         `heya cert register` (電子証明書は市の認証局が発行します。発行されたものを登録してください).",
    ))
}

#[derive(Deserialize)]
struct Register {
    certificate: String,
    #[serde(default)]
    terminal: Option<i64>,
    #[serde(default)]
    facility: Option<i64>,
    #[serde(default)]
    label: String,
    #[serde(default)]
    private: bool,
}

/// Registers a certificate of the city's own CA: as a new terminal of a facility, or as a known terminal's next one.
async fn register(server: Arc<Server>, call: Call) -> Result<Answer> {
    city(&server, &call)?;
    if server.ca.has_key() {
        return Err(forbidden(
            "Heya issues the certificates of this city itself, at enrolment: only those of another CA (tls.client_ca) \
             are registered (この市の電子証明書は端末の登録で発行されます).",
        ));
    }
    let (ca, registry) = (Arc::clone(&server.ca), Arc::clone(&server.terminals));
    once(
        server,
        call,
        |_: &Register| Hint::default(),
        move |batch, body, acting| {
            Box::pin(async move {
                let shown = ca
                    .inspect(body.certificate.as_bytes(), terminals::at(batch.now))
                    .map_err(|error| invalid(format!("{error}.")))?;
                let place = match (body.terminal, body.facility) {
                    (Some(terminal), None) => Place::Known(terminal),
                    (None, Some(facility)) => {
                        Place::New { facility, label: body.label, private: body.private }
                    }
                    _ => return Err(invalid("Either terminal or facility is needed, and not both.")),
                };
                let terminal = terminals::register(batch, &registry, &shown, place, &acting).await?;
                Ok(json!({
                    "terminal": terminal, "serial": tls::hex(&shown.serial),
                    "expires": shown.not_after.unix_timestamp() * 1000,
                }))
            })
        },
    )
    .await
}

/// A new certificate with a new key for a terminal, as files in the data folder for the command that asked
/// (`heya cert renew`); the old certificate goes on until it expires or is revoked.
async fn renew(server: Arc<Server>, call: Call) -> Result<Answer> {
    city(&server, &call)?;
    issues(&server)?;
    let terminal = number(&call)?;
    let (ca, registry) = (Arc::clone(&server.ca), Arc::clone(&server.terminals));
    let (server_name, days) = (server.name.to_string(), server.config.tls.client_days);
    let folder = server.data().join("sheets");
    once(server, call, |_: &Reason| Hint::default(), move |batch, _, acting| {
        Box::pin(async move {
            let now = batch.now;
            let found = store::terminals::terminal(batch.reading(), terminal)
                .await?
                .ok_or_else(|| crate::error::not_found("No such terminal."))?;
            // What was lost does not come back by a renewal.
            let newest = store::terminals::certificates_of(batch.reading(), terminal).await?.pop();
            if newest.is_some_and(|newest| newest.revoked_at.is_some()) {
                return Err(forbidden(
                    "This terminal was revoked: issue a code for a new one with `heya cert issue` \
                     (この端末は失効しています。heya cert issue で新しい端末として登録してください).",
                ));
            }
            let issued = ca
                .issue(
                    &tls::TerminalSubject {
                        common_name: format!("Heya terminal {terminal}"),
                        terminal,
                        facility: found.facility,
                        server_name,
                    },
                    terminals::at(now),
                    time::Duration::days(i64::from(days)),
                )
                .map_err(|error| Error::internal(error.to_string()))?;
            let password = crate::clock::readable_code(12);
            let p12 = tls::pkcs12(&issued, tls::BundleEncoding::Modern, &password)
                .map_err(|error| Error::internal(error.to_string()))?;
            let serial = tls::hex(&issued.serial);
            let name = format!("terminal-{terminal}-{}", &serial[..8]);
            crate::files::write_private(&folder.join(format!("{name}.p12")), &p12)?;
            crate::files::write_private(&folder.join(format!("{name}.password")), password.as_bytes())?;
            terminals::renew(batch, &registry, terminals::row(&issued, terminal)).await?;
            batch.audit(crate::audit::Entry {
                at: now,
                actor: acting,
                action: "certificate.renew".to_owned(),
                certificate: Some(serial.clone()),
                target: format!("terminal {terminal}"),
                result: "ok".to_owned(),
                ..crate::audit::Entry::default()
            });
            Ok(json!({"serial": serial, "files": [format!("sheets/{name}.p12"), format!("sheets/{name}.password")]}))
        })
    })
    .await
}
