//! Time and chance, so that tests can hold them still.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// The clock of one server. Cheap to clone; a clone moves with its original.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds to show instead of the system's time; 0 = the system's time.
    held_ms: Arc<AtomicI64>,
}

impl Clock {
    /// Milliseconds since 1970.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now_ms(&self) -> i64 {
        match self.held_ms.load(Ordering::Relaxed) {
            0 => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            held => held,
        }
    }

    /// Holds the clock at a time (tests).
    pub fn hold(&self, ms: i64) {
        self.held_ms.store(ms, Ordering::Relaxed);
    }
}

/// `n` characters of an alphabet without look-alikes (no 0/O, 1/I/L), for what people type from a sheet.
pub fn readable_code(n: usize) -> String {
    random_text(n, b"ABCDEFGHJKMNPQRSTUVWXYZ23456789")
}

/// `n` random letters and digits: 5.95 bits each.
pub fn random_token(n: usize) -> String {
    random_text(n, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
}

fn random_text(n: usize, alphabet: &[u8]) -> String {
    use rand::RngExt as _;
    let mut rng = rand::rng();
    (0..n).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect()
}
