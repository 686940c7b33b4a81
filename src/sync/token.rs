//! Tokens: opaque to clients, versioned, with the database's epoch (DESIGN 8). A token of another epoch (a restored
//! database) is foreign: sync starts afresh, paging is refused.

use crate::error::{Code, Result, refuse};

/// No position or order comes near it: one more or less is never too much.
const ORDER_MAX: i64 = 1 << 62;

/// A place in the stream, for `/sync`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncToken {
    /// Position in the one sequence.
    pub position: i64,
    /// The volatile counter (typing).
    pub volatile: u64,
    /// Somebody typed in one of the user's rooms: who hears it from one run of the server must hear the end of it from
    /// the next.
    pub typed: bool,
}

impl SyncToken {
    /// As clients see it.
    pub fn to_text(self, epoch: &str) -> String {
        format!("h1_{epoch}_{}_{}{}", self.position, self.volatile, if self.typed { "_t" } else { "" })
    }

    /// Reads a token; none where it belongs to another epoch.
    pub fn parse(text: &str, epoch: &str) -> Result<Option<Self>> {
        let bad = || refuse(Code::InvalidParam, "This token is not one of this server's.");
        let parts: Vec<&str> = text.split('_').collect();
        match parts.as_slice() {
            ["h1", of, position, volatile, typed @ ..] if matches!(typed, [] | ["t"]) => {
                let position = position.parse::<i64>().map_err(|_| bad())?;
                let volatile = volatile.parse().map_err(|_| bad())?;
                if !(0..ORDER_MAX).contains(&position) {
                    return Err(bad());
                }
                Ok((*of == epoch).then_some(Self { position, volatile, typed: !typed.is_empty() }))
            }
            _ => Err(bad()),
        }
    }
}

/// A place in a room, between two events: events with an order greater than it come after.
pub fn room_token(order: i64, epoch: &str) -> String {
    format!("r1_{epoch}_{order}")
}

/// Reads a place in a room; a sync token will do as well.
pub fn parse_room_token(text: &str, epoch: &str) -> Result<i64> {
    let bad = || {
        refuse(Code::InvalidParam, "This token is not one of this server's, or it is from before a restore.")
    };
    let parts: Vec<&str> = text.split('_').collect();
    match parts.as_slice() {
        ["r1", of, order] if *of == epoch => {
            order.parse().ok().filter(|order| (-ORDER_MAX..ORDER_MAX).contains(order)).ok_or_else(bad)
        }
        ["h1", ..] => Ok(SyncToken::parse(text, epoch)?.ok_or_else(bad)?.position),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        let token = SyncToken { position: 77, volatile: 3, typed: false };
        let typed = SyncToken { typed: true, ..token };
        assert_eq!(SyncToken::parse(&typed.to_text("abc"), "abc").unwrap(), Some(typed));
        assert!(SyncToken::parse("h1_abc_5_0_x", "abc").is_err());
        assert_eq!(SyncToken::parse(&token.to_text("abc"), "abc").unwrap(), Some(token));
        assert_eq!(SyncToken::parse(&token.to_text("abc"), "new").unwrap(), None);
        assert!(SyncToken::parse("s123", "abc").is_err());
        assert!(SyncToken::parse("h1_abc_-5_0", "abc").is_err());
        assert_eq!(parse_room_token(&room_token(-4, "abc"), "abc").unwrap(), -4);
        assert_eq!(parse_room_token(&token.to_text("abc"), "abc").unwrap(), 77);
        assert!(parse_room_token(&room_token(4, "abc"), "new").is_err());
        assert!(parse_room_token(&room_token(i64::MAX, "abc"), "abc").is_err());
    }
}
