//! Live connections by certificate, so that revoking a certificate ends them.
//!
//! A revocation list is not enough: an open keep-alive connection would go on. Each connection registers
//! here and stops when its [`ConnectionGuard`] is cancelled.
//!
//! Order matters against a revocation in between: first [`Connections::register`], then ask whether the
//! certificate is revoked. A revoker does the reverse (first the set, then [`Connections::revoke`]), so one of
//! the two always sees the other.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// All live connections that showed a certificate. Clones are the same registry.
#[derive(Clone, Default)]
pub struct Connections {
    registry: Arc<Mutex<Registry>>,
}

#[derive(Default)]
struct Registry {
    last_id: u64,
    by_serial: HashMap<Vec<u8>, HashMap<u64, watch::Sender<bool>>>,
}

impl Connections {
    /// Enters a connection that showed the certificate with this serial number, until the guard is dropped.
    pub fn register(&self, serial: &[u8]) -> ConnectionGuard {
        let (sender, cancelled) = watch::channel(false);
        let mut registry = self.lock();
        registry.last_id += 1;
        let id = registry.last_id;
        registry.by_serial.entry(serial.to_vec()).or_default().insert(id, sender);
        ConnectionGuard { connections: self.clone(), serial: serial.to_vec(), id, cancelled }
    }

    /// Cancels every connection of this certificate; gives how many there were.
    ///
    /// Connections registered later are not touched: whoever registers asks the revoked set afterwards.
    pub fn revoke(&self, serial: &[u8]) -> usize {
        let senders = self.lock().by_serial.remove(serial).unwrap_or_default();
        cancel(senders.values())
    }

    /// Cancels every connection that showed a certificate, for example after another CA was put in place.
    pub fn revoke_all(&self) -> usize {
        let all = std::mem::take(&mut self.lock().by_serial);
        cancel(all.values().flat_map(HashMap::values))
    }

    /// How many connections of this certificate are open.
    pub fn count(&self, serial: &[u8]) -> usize {
        self.lock().by_serial.get(serial).map_or(0, HashMap::len)
    }

    /// How many connections with a certificate are open.
    pub fn len(&self) -> usize {
        self.lock().by_serial.values().map(HashMap::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lock().by_serial.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Every change under this lock is a single map operation; a panic elsewhere cannot leave it half done.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("len", &self.len()).finish()
    }
}

/// One registered connection; dropping it takes the connection out of the registry.
pub struct ConnectionGuard {
    connections: Connections,
    serial: Vec<u8>,
    id: u64,
    cancelled: watch::Receiver<bool>,
}

impl ConnectionGuard {
    /// Completes once the connection's certificate has been revoked, and never otherwise.
    ///
    /// The future owns what it needs, so it can be handed to a request of the connection.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut cancelled = self.cancelled.clone();
        async move {
            if cancelled.wait_for(|revoked| *revoked).await.is_err() {
                // The sender went with the guard: the connection is over, and nobody revoked it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the connection's certificate has been revoked.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut registry = self.connections.lock();
        if let Some(of_serial) = registry.by_serial.get_mut(&self.serial) {
            of_serial.remove(&self.id);
            if of_serial.is_empty() {
                registry.by_serial.remove(&self.serial);
            }
        }
    }
}

fn cancel<'a>(senders: impl Iterator<Item = &'a watch::Sender<bool>>) -> usize {
    let mut count = 0;
    for sender in senders {
        // Works without receivers too; the value stays for whoever asks later.
        sender.send_replace(true);
        count += 1;
    }
    count
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn revoking_cancels_every_connection_of_the_certificate_and_no_other() {
        let connections = Connections::default();
        let (first, second) = (connections.register(&[1]), connections.register(&[1]));
        let other = connections.register(&[2]);
        let waiting = tokio::spawn(first.cancelled());
        assert_eq!((connections.count(&[1]), connections.len()), (2, 3));

        assert_eq!(connections.revoke(&[1]), 2);
        waiting.await.expect("cancelled");
        second.cancelled().await;
        assert!(first.is_cancelled() && second.is_cancelled() && !other.is_cancelled());
        assert_eq!((connections.count(&[1]), connections.revoke(&[1]), connections.len()), (0, 0, 1));

        // A guard of before the revocation does not take a later connection out.
        let later = connections.register(&[1]);
        drop(first);
        assert_eq!(connections.count(&[1]), 1);
        assert!(!later.is_cancelled());
        assert_eq!(connections.revoke_all(), 2);
        assert!(later.is_cancelled() && other.is_cancelled() && connections.is_empty());
    }

    #[tokio::test]
    async fn a_connection_that_ended_by_itself_is_never_cancelled() {
        let connections = Connections::default();
        let guard = connections.register(&[7]);
        let cancelled = guard.cancelled();
        drop(guard);
        assert!(connections.is_empty());
        tokio::select! {
            biased;
            () = cancelled => panic!("nobody revoked it"),
            () = std::future::ready(()) => {}
        }
    }
}
