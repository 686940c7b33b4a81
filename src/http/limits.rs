//! How many requests one session, one account, one address before login, and one user of an appservice may make; and how
//! often somebody may do what costs the others much.

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
const BEFORE_LOGIN: Rate = Rate { per_second: 1.0, burst: 40.0, retry_after_ms: 2_000 };
/// All sessions of one account on one terminal together have what so many sessions have: a facility's ID is many terminals'.
const SESSIONS_OF_TERMINAL: f64 = 8.0;
/// Two-person rooms that an ID makes, also a facility's: each stays for years, with a number of the city's.
const DIRECT_ROOMS: Rate = Rate { per_second: 100.0 / 86_400.0, burst: 100.0, retry_after_ms: 864_000 };
/// Changes of name or picture: each goes through all rooms of the account.
const PROFILES: Rate = Rate { per_second: 1.0 / 60.0, burst: 30.0, retry_after_ms: 60_000 };
/// Mails that check an address, asked for on one terminal, or from one address where none is shown; and all of them.
const ADDRESS_CHECKS: Rate = Rate { per_second: 20.0 / 3_600.0, burst: 20.0, retry_after_ms: 180_000 };
const ADDRESS_CHECKS_IN_ALL: Rate =
    Rate { per_second: 3_000.0 / 3_600.0, burst: 3_000.0, retry_after_ms: 60_000 };
/// Accounts, addresses, and users of appservices, remembered of each kind.
const COUNTED_MAX: usize = 10_000;

/// How fast an allowance grows, and up to what.
#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    burst: f64,
    /// What whoever has used it up is told.
    retry_after_ms: u64,
}

impl Rate {
    /// So many times what one session may.
    fn of_sessions(limits: &Limits, times: f64) -> Self {
        let (rate, burst) = (f64::from(limits.requests_per_second), f64::from(limits.requests_burst));
        Self { per_second: rate * times, burst: burst * times, retry_after_ms: 1_000 }
    }

    /// After so many milliseconds an allowance is whole again, whatever was taken: then nothing of it needs to be known.
    #[expect(clippy::cast_possible_truncation, reason = "a number of milliseconds, cut at a week")]
    fn whole_after_ms(&self) -> i64 {
        (self.burst / self.per_second.max(f64::EPSILON) * 1000.0).min(604_800_000.0) as i64
    }
}

/// What each of many has left, and when it was last taken from.
type Left<K> = Mutex<HashMap<K, (f64, i64)>>;

/// Counts requests.
#[derive(Default)]
pub struct Limiter {
    /// By address; of IPv6 by its network of 64 bits, which one house has whole.
    before_login: Left<IpAddr>,
    masqueraded: Left<OwnedUserId>,
    accounts: Left<(OwnedUserId, Option<i64>)>,
    direct_rooms: Left<OwnedUserId>,
    profiles: Left<OwnedUserId>,
    address_checks: Left<(Option<i64>, Option<IpAddr>)>,
    address_checks_in_all: Left<()>,
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
        // Whoever logs in many times has no more for it.
        let whose = (session.user_id.clone(), session.terminal);
        count(&self.accounts, &whose, now, Rate::of_sessions(limits, SESSIONS_OF_TERMINAL))
    }

    /// Counts a request from an address that nobody has logged in on, or refuses it.
    pub fn allow_before_login(&self, address: IpAddr, now: i64) -> Result<()> {
        count(&self.before_login, &network(address), now, BEFORE_LOGIN)
    }

    /// Counts a request of a user that an appservice acts as, or refuses it (registration, `rate_limited`).
    pub fn allow_masqueraded(&self, user_id: &UserId, now: i64, limits: &Limits) -> Result<()> {
        count(&self.masqueraded, user_id, now, Rate::of_sessions(limits, 1.0))
    }

    /// Counts a two-person room that somebody makes, or refuses it.
    pub fn allow_direct_room(&self, user_id: &UserId, now: i64) -> Result<()> {
        count(&self.direct_rooms, user_id, now, DIRECT_ROOMS)
    }

    /// Counts a change of somebody's name or picture, or refuses it.
    pub fn allow_profile(&self, user_id: &UserId, now: i64) -> Result<()> {
        count(&self.profiles, user_id, now, PROFILES)
    }

    /// Counts a mail that checks an address, asked for on a terminal (many of which have one address) or from an address,
    /// or refuses it.
    pub fn allow_address_check(&self, terminal: Option<i64>, address: IpAddr, now: i64) -> Result<()> {
        let whose = (terminal, terminal.is_none().then(|| network(address)));
        count(&self.address_checks, &whose, now, ADDRESS_CHECKS)?;
        count(&self.address_checks_in_all, &(), now, ADDRESS_CHECKS_IN_ALL)
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

/// Takes one from an allowance that grows by the rate up to its burst.
fn count<K, Q>(all: &Left<K>, key: &Q, now: i64, rate: Rate) -> Result<()>
where
    K: Eq + Hash + Clone + std::borrow::Borrow<Q>,
    Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
{
    let mut all = all.lock();
    let whole = rate.whole_after_ms();
    if all.len() >= COUNTED_MAX && !all.contains_key(key) {
        all.retain(|_, (_, at)| now - *at < whole);
        if all.len() >= COUNTED_MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| key.clone())
        {
            all.remove(oldest.borrow());
        }
    }
    let (left, at) = all.get(key).copied().unwrap_or((rate.burst, now));
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a week fit")]
    let gained = (now - at).clamp(0, whole) as f64 / 1000.0;
    let have = (left + gained * rate.per_second).min(rate.burst);
    // Who is refused keeps what has grown meanwhile: asking on must not make the wait endless.
    let left = if have < 1.0 { have } else { have - 1.0 };
    match all.get_mut(key) {
        Some(entry) => *entry = (left, now),
        None => drop(all.insert(key.to_owned(), (left, now))),
    }
    if have < 1.0 { Err(too_many(rate.retry_after_ms)) } else { Ok(()) }
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

    #[test]
    fn a_slow_allowance_grows_back() {
        let (limiter, who) = (Limiter::default(), ruma::user_id!("@a:heya.test"));
        for _ in 0..100 {
            limiter.allow_direct_room(who, 0).unwrap();
        }
        limiter.allow_direct_room(who, 0).unwrap_err();
        limiter.allow_direct_room(ruma::user_id!("@b:heya.test"), 0).unwrap();
        // One after as long as the refusal says, also for who keeps asking; all of them in a day.
        limiter.allow_direct_room(who, 432_000).unwrap_err();
        limiter.allow_direct_room(who, 864_001).unwrap();
        limiter.allow_direct_room(who, 864_002).unwrap_err();
        for _ in 0..100 {
            limiter.allow_direct_room(who, 2 * 86_400_000).unwrap();
        }
        limiter.allow_direct_room(who, 2 * 86_400_000).unwrap_err();
    }
}
