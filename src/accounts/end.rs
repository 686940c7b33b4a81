//! One action ends a person's access everywhere: sessions, certificates of terminals that only they use, memberships,
//! pushers, codes (C17, H14).

use std::sync::Arc;

use ruma::{OwnedRoomId, UserId};

use super::{
    register::{city_staff, is_city_staff},
    sessions, terminals,
};
use crate::{
    audit,
    error::{Code, Result, not_found, refuse},
    push::Pushers,
    rooms::{batch::Batch, control_room, member},
    server::Server,
    store,
};

/// What was ended.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Ended {
    /// Sessions.
    pub sessions: usize,
    /// Terminals whose certificates were revoked.
    pub terminals: usize,
    /// Rooms left.
    pub rooms: usize,
}

/// The parts of the server that a unit needs for this.
#[derive(Clone)]
pub struct Parts {
    sessions: Arc<sessions::Sessions>,
    terminals: Arc<terminals::Terminals>,
    pushers: Arc<Pushers>,
}

impl Parts {
    /// Of a server.
    pub fn of(server: &Server) -> Self {
        Self {
            sessions: Arc::clone(&server.sessions),
            terminals: Arc::clone(&server.terminals),
            pushers: Arc::clone(&server.pushers),
        }
    }
}

/// Forced reset (C12, H14): ends sessions and the certificates of terminals that only this account uses, and replaces the
/// password by an initial one that only enrolment takes; returns what was ended and the two new sheets.
pub async fn reset(
    batch: &mut Batch,
    parts: &Parts,
    user_id: &UserId,
    acting: &str,
    prepared: super::register::Prepared,
) -> Result<(Ended, Vec<String>)> {
    let found = store::accounts::account(batch.reading(), user_id.as_str())
        .await?
        .filter(|account| account.status != "ended" && account.facility.is_some())
        .ok_or_else(|| not_found("There is no such account."))?;
    let mut ended = Ended::default();
    own_terminals(batch, parts, user_id, "password reset", acting, &mut ended).await?;
    ended.sessions += sessions::end_all(batch, &parts.sessions, user_id, None).await?;
    spend_codes(batch, user_id).await?;
    let name = found.display_name.unwrap_or_default();
    let sheets = super::register::hand_over_again(batch, user_id, &name, prepared).await?;
    let at = batch.now;
    batch.audit(audit::Entry {
        at,
        actor: acting.to_owned(),
        action: "password.reset".to_owned(),
        target: user_id.to_string(),
        result: "ok".to_owned(),
        ..audit::Entry::default()
    });
    Ok((ended, sheets))
}

/// Revokes the terminals that only this account uses.
async fn own_terminals(
    batch: &mut Batch,
    parts: &Parts,
    user_id: &UserId,
    reason: &str,
    acting: &str,
    ended: &mut Ended,
) -> Result<()> {
    for terminal in store::terminals::terminals_of(batch.reading(), user_id.as_str()).await? {
        let certificates = store::terminals::certificates_of(batch.reading(), terminal.id).await?;
        if terminals::is_the_facilitys(&terminal) {
            continue;
        }
        let live = certificates.iter().any(|certificate| certificate.revoked_at.is_none());
        if live
            && !store::terminals::terminal_is_shared(batch.reading(), terminal.id, user_id.as_str()).await?
        {
            ended.sessions +=
                terminals::revoke(batch, &parts.terminals, &parts.sessions, terminal.id, reason, acting)
                    .await?;
            ended.terminals += 1;
        }
    }
    Ok(())
}

async fn spend_codes(batch: &mut Batch, user_id: &UserId) -> Result<()> {
    let now = batch.now;
    store::run!(
        batch.sql().await?,
        "UPDATE enrolment_codes SET spent_at = $2 WHERE user_id = $1 AND spent_at IS NULL",
        user_id.as_str(),
        now
    )?;
    Ok(())
}

/// Refuses the end of the last of the city's staff who can act, in the control room and at all: nobody would be left to
/// give another an ID.
async fn check_last_of_staff(batch: &mut Batch, user_id: &UserId) -> Result<()> {
    if !is_city_staff(batch.reading(), user_id.as_str()).await?
        || !control_room::can_act(batch, user_id).await?
    {
        return Ok(());
    }
    let mut others = false;
    for other in city_staff(batch.reading()).await?.iter().filter(|other| *other != user_id) {
        others |= control_room::can_act(batch, other).await?;
    }
    let control = store::meta::value(batch.reading(), "control_room").await?;
    let emptied = match control.and_then(|id| OwnedRoomId::try_from(id).ok()) {
        Some(control) => control_room::is_emptied(batch, &control, &[user_id.to_owned()]).await?,
        None => false,
    };
    if others && !emptied {
        return Ok(());
    }
    Err(refuse(
        Code::Staff,
        "This is the last of the city's staff who can act: let another enrol, and add them to the control room, first (市の職員がいなくなります。先に別の職員の登録を済ませ、管理室に追加してください).",
    ))
}

/// Ends an account.
pub async fn account(
    batch: &mut Batch,
    parts: &Parts,
    user_id: &UserId,
    reason: &str,
    acting: &str,
) -> Result<Ended> {
    let now = batch.now;
    let found = store::accounts::account(batch.reading(), user_id.as_str())
        .await?
        .filter(|account| account.kind != "appservice")
        .ok_or_else(|| not_found("There is no such account."))?;
    let mut ended = Ended::default();
    if found.status == "ended" {
        return Ok(ended);
    }
    check_last_of_staff(batch, user_id).await?;
    own_terminals(batch, parts, user_id, reason, acting, &mut ended).await?;
    ended.sessions += sessions::end_all(batch, &parts.sessions, user_id, None).await?;
    crate::keys::forget_user(batch, &parts.sessions, user_id).await?;
    let rooms: Vec<_> = batch
        .live
        .user(user_id)
        .rooms
        .read()
        .iter()
        .filter(|(_, m)| matches!(m.membership.as_str(), "join" | "invite" | "knock"))
        .map(|(room_id, _)| room_id.clone())
        .collect();
    for room_id in rooms {
        member::leave(batch, &room_id, user_id, None).await?;
        ended.rooms += 1;
    }
    let conn = batch.sql().await?;
    store::push::delete_all(conn, user_id.as_str()).await?;
    // Their next ID may have the same address.
    store::addresses::remove_addresses(conn, user_id.as_str()).await?;
    store::personal::delete_profile_fields(conn, user_id.as_str()).await?;
    store::accounts::set_status(conn, user_id.as_str(), "ended", now).await?;
    spend_codes(batch, user_id).await?;
    let (pushers, user) = (parts.pushers.clone(), user_id.to_owned());
    batch.after_commit(move || pushers.forget(&user));
    batch.audit(audit::Entry {
        at: now,
        actor: acting.to_owned(),
        action: "account.end".to_owned(),
        target: user_id.to_string(),
        result: "ok".to_owned(),
        detail: reason.to_owned(),
        ..audit::Entry::default()
    });
    Ok(ended)
}
