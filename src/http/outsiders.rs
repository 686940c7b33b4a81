//! How many connections of one network have shown no valid certificate: they must not take the places of all.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::limits::network;
use crate::rooms::live::parking::Mutex;

/// Of one network: one in so many of all, and at least so many.
const NETWORK_SHARE: usize = 10;
const OF_NETWORK_MIN: usize = 200;

/// Connections from each network: in their handshake, or without a valid certificate.
#[derive(Default)]
pub struct Outsiders(Mutex<HashMap<IpAddr, usize>>);

/// One of them.
pub struct Outsider {
    all: Arc<Outsiders>,
    network: IpAddr,
}

impl Outsiders {
    /// How many of one network there may be, of so many connections in all.
    pub fn most(connections: usize) -> usize {
        (connections / NETWORK_SHARE).max(OF_NETWORK_MIN)
    }

    /// A place for a further one, where there are fewer than `max` of its network.
    pub fn enter(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<Outsider> {
        let network = network(address);
        let mut all = self.0.lock();
        let count = all.entry(network).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Outsider { all: Arc::clone(self), network })
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(count) = all.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_network_takes_a_share_of_the_places() {
        let all = Arc::new(Outsiders::default());
        let of = |address: &str| all.enter(address.parse().unwrap(), 2);
        let first = of("2001:db8::1").unwrap();
        let second = of("2001:db8::2").unwrap();
        assert!(of("2001:db8::3").is_none());
        assert!(of("192.0.2.1").is_some());
        drop(first);
        drop(of("2001:db8::3").unwrap());
        drop(second);
        assert!(all.0.lock().is_empty(), "nothing is remembered of who has gone");
    }
}
