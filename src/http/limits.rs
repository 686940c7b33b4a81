//! How many requests one session, one address before login, and one user of an appservice may make.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::atomic::Ordering};

use ruma::{OwnedUserId, UserId};

use crate::{
    accounts::sessions::LiveSession,
    config::Limits,
    error::{Code, Error, Result, refuse},
    rooms::live::parking::Mutex,
};

/// Login attempts, address checks and the like: one a second over time from one address, forty at once (a facility's
/// staff come to work behind one address).
const BEFORE_LOGIN_BURST: f64 = 40.0;
/// Addresses, and users of appservices, remembered.
const COUNTED_MAX: usize = 10_000;

/// Counts requests.
#[derive(Default)]
pub struct Limiter {
    /// By address; of IPv6 by its network of 64 bits, which one house has whole.
    before_login: Mutex<HashMap<IpAddr, (f64, i64)>>,
    masqueraded: Mutex<HashMap<OwnedUserId, (f64, i64)>>,
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
        count(&mut self.before_login.lock(), network(address), now, 1.0, BEFORE_LOGIN_BURST, 2_000)
    }

    /// Counts a request of a user that an appservice acts as, or refuses it (registration, `rate_limited`).
    pub fn allow_masqueraded(&self, user_id: &UserId, now: i64, limits: &Limits) -> Result<()> {
        let (rate, burst) = (f64::from(limits.requests_per_second), f64::from(limits.requests_burst));
        count(&mut self.masqueraded.lock(), user_id.to_owned(), now, rate, burst, 1_000)
    }
}

/// What of an address is counted.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::from(std::net::Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// Takes one from an allowance that grows by `rate` a second up to `burst`.
fn count<K: Eq + Hash + Clone>(
    all: &mut HashMap<K, (f64, i64)>,
    key: K,
    now: i64,
    rate: f64,
    burst: f64,
    retry_after_ms: u64,
) -> Result<()> {
    if all.len() >= COUNTED_MAX && !all.contains_key(&key) {
        all.retain(|_, (_, at)| now - *at < 60_000);
        if all.len() >= COUNTED_MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| key.clone())
        {
            all.remove(&oldest);
        }
    }
    let (left, at) = all.entry(key).or_insert((burst, now));
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a minute fit")]
    let gained = (now - *at).clamp(0, 60_000) as f64 / 1000.0;
    let have = (*left + gained * rate).min(burst);
    *at = now;
    // Who is refused keeps what has grown meanwhile: asking on must not make the wait endless.
    *left = if have < 1.0 { have } else { have - 1.0 };
    if have < 1.0 { Err(too_many(retry_after_ms)) } else { Ok(()) }
}

fn too_many(retry_after_ms: u64) -> Error {
    refuse(Code::LimitExceeded { retry_after_ms }, "Too many requests: please wait a moment.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    #[test]
    fn of_ipv6_the_network_is_counted() {
        let network = |address| network(at(address));
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(network("::ffff:192.0.2.1"), network("::ffff:192.0.2.2"));
    }

    #[test]
    fn who_has_many_addresses_has_one_allowance() {
        let limiter = Limiter::default();
        for n in 0..40 {
            limiter.allow_before_login(at(&format!("2001:db8::{n:x}:{n:x}:{n:x}:{n:x}")), 0).unwrap();
        }
        limiter.allow_before_login(at("2001:db8::1"), 0).unwrap_err();
        limiter.allow_before_login(at("2001:db8:0:1::1"), 0).unwrap();
        limiter.allow_before_login(at("192.0.2.1"), 0).unwrap();
    }
}
