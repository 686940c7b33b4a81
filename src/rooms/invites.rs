//! Whose invitations somebody takes (client-server API, "Invite permission", MSC4380; by user and server: MSC4155). The
//! city's always arrive: who is added to a room by it is told by nobody else.

use ruma::UserId;
use serde::Deserialize;
use wildmatch::WildMatch;

use crate::{
    error::{Code, Result, refuse},
    store::{self, Conn},
};

/// Account data that blocks every invitation, by its name and the one before it was specified.
const BLOCK_ALL: [&str; 2] = ["m.invite_permission_config", "org.matrix.msc4380.invite_permission_config"];
/// Account data that names users and servers.
const BY_SENDER: &str = "org.matrix.msc4155.invite_permission_config";
/// Patterns of one list that count, and the longest, in bytes.
const PATTERNS_MAX: usize = 500;
const PATTERN_BYTES_MAX: usize = 255;

/// What becomes of an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It arrives.
    Taken,
    /// Its sender is told nothing, its receiver neither.
    Ignored,
    /// Its sender is refused.
    Blocked,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BlockAll {
    default_action: Option<serde_json::Value>,
}

/// MSC4155. A missing list is empty, and what is no list of strings is no setting.
#[derive(Default, Deserialize)]
#[serde(default)]
struct BySender {
    enabled: Option<bool>,
    allowed_users: Vec<String>,
    ignored_users: Vec<String>,
    blocked_users: Vec<String>,
    allowed_servers: Vec<String>,
    ignored_servers: Vec<String>,
    blocked_servers: Vec<String>,
}

impl BySender {
    fn verdict(&self, sender: &UserId) -> Verdict {
        if self.enabled == Some(false) {
            return Verdict::Taken;
        }
        let named = |list: &[String], what: &str| {
            list.iter()
                .take(PATTERNS_MAX)
                .any(|pattern| pattern.len() <= PATTERN_BYTES_MAX && WildMatch::new(pattern).matches(what))
        };
        let server = sender.server_name().host();
        for (list, what, verdict) in [
            (&self.allowed_users, sender.as_str(), Verdict::Taken),
            (&self.ignored_users, sender.as_str(), Verdict::Ignored),
            (&self.blocked_users, sender.as_str(), Verdict::Blocked),
            (&self.allowed_servers, server, Verdict::Taken),
            (&self.ignored_servers, server, Verdict::Ignored),
            (&self.blocked_servers, server, Verdict::Blocked),
        ] {
            if named(list, what) {
                return verdict;
            }
        }
        Verdict::Taken
    }
}

/// What becomes of an invitation by `sender` to `target`.
pub async fn verdict(conn: &mut Conn, sender: &UserId, target: &UserId) -> Result<Verdict> {
    if sender.localpart() == "city" && sender.server_name() == target.server_name() {
        return Ok(Verdict::Taken);
    }
    for kind in BLOCK_ALL {
        let stored = store::personal::account_data(conn, target.as_str(), "", kind).await?;
        let blocks = stored
            .and_then(|content| serde_json::from_str::<BlockAll>(&content).ok())
            .is_some_and(|content| content.default_action.is_some_and(|action| action == "block"));
        if blocks {
            return Ok(Verdict::Blocked);
        }
    }
    let stored = store::personal::account_data(conn, target.as_str(), "", BY_SENDER).await?;
    Ok(stored
        .and_then(|content| serde_json::from_str::<BySender>(&content).ok())
        .map_or(Verdict::Taken, |content| content.verdict(sender)))
}

/// Refuses an invitation that its target has blocked.
pub async fn check(conn: &mut Conn, sender: &UserId, target: &UserId) -> Result<()> {
    match verdict(conn, sender, target).await? {
        Verdict::Blocked => Err(refuse(Code::InviteBlocked, "This person takes no invitations.")),
        Verdict::Taken | Verdict::Ignored => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn verdict_of(content: &str, sender: &UserId) -> Verdict {
        serde_json::from_str::<BySender>(content).unwrap().verdict(sender)
    }

    #[test]
    fn the_first_list_that_names_the_sender_decides() {
        let a = user_id!("@a:example.jp");
        let content = r#"{"allowed_users":["@a:*"],"blocked_users":["*"]}"#;
        assert_eq!(verdict_of(content, a), Verdict::Taken);
        assert_eq!(verdict_of(content, user_id!("@b:example.jp")), Verdict::Blocked);
        assert_eq!(verdict_of(r#"{"ignored_users":["@?:example.jp"]}"#, a), Verdict::Ignored);
        assert_eq!(verdict_of(r#"{"blocked_servers":["*.jp"]}"#, a), Verdict::Blocked);
        assert_eq!(verdict_of(r#"{"enabled":false,"blocked_users":["*"]}"#, a), Verdict::Taken);
        assert_eq!(verdict_of("{}", a), Verdict::Taken);
    }
}
