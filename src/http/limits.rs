//! How many requests one session, and one address before login, may make.

use std::{collections::HashMap, net::IpAddr, sync::atomic::Ordering};

use crate::{
    accounts::sessions::LiveSession,
    config::Limits,
    error::{Code, Error, Result, refuse},
    rooms::live::parking::Mutex,
};

/// Login attempts, address checks and the like: one a second over time from one address, forty at once (a facility's
/// staff come to work behind one address).
const BEFORE_LOGIN_BURST: f64 = 40.0;
/// Addresses remembered.
const ADDRESSES_MAX: usize = 10_000;

/// Counts requests.
#[derive(Default)]
pub struct Limiter {
    before_login: Mutex<HashMap<IpAddr, (f64, i64)>>,
}

impl Limiter {
    /// Counts a request of a session, or refuses it.
    pub fn allow(&self, session: &LiveSession, now: i64, limits: &Limits) -> Result<()> {
        let burst = i64::from(limits.requests_burst) * 1000;
        let before = session.counted_at.swap(now, Ordering::Relaxed);
        let gained = (now - before).clamp(0, 3_600_000) * i64::from(limits.requests_per_second);
        let left =
            session.allowance.load(Ordering::Relaxed).min(burst).saturating_add(gained).min(burst) - 1000;
        if left < 0 {
            session.allowance.store(left + 1000, Ordering::Relaxed);
            return Err(too_many(1_000));
        }
        session.allowance.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Counts a request from an address that nobody has logged in on, or refuses it.
    pub fn allow_before_login(&self, address: IpAddr, now: i64) -> Result<()> {
        let mut all = self.before_login.lock();
        if all.len() >= ADDRESSES_MAX {
            all.retain(|_, (_, at)| now - *at < 60_000);
        }
        let (left, at) = all.entry(address).or_insert((BEFORE_LOGIN_BURST, now));
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a minute fit")]
        let gained = (now - *at).clamp(0, 60_000) as f64 / 1000.0;
        *left = (*left + gained).min(BEFORE_LOGIN_BURST) - 1.0;
        *at = now;
        if *left < 0.0 {
            *left = 0.0;
            return Err(too_many(2_000));
        }
        Ok(())
    }
}

fn too_many(retry_after_ms: u64) -> Error {
    refuse(Code::LimitExceeded { retry_after_ms }, "Too many requests: please wait a moment.")
}
