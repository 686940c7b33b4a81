//! What `GET /_heya/v1/control` says: who the bot is, where the control room is, who is city staff.
//!
//! The last answer is kept in the database, so that a restarted bot takes transactions at once.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::outbox::backoff;
use crate::server::Server;
use crate::store::Store;

/// How old the answer may become.
const FRESH: Duration = Duration::from_secs(60);

/// The answer of `GET /control`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub city_user: String,
    pub control_room: String,
    pub announcement_room: String,
    pub staff: Vec<String>,
}

impl Facts {
    pub(crate) fn is_staff(&self, user: &str) -> bool {
        self.staff.iter().any(|member| member == user)
    }
}

/// The newest facts known.
#[derive(Debug)]
pub(crate) struct Control {
    facts: RwLock<Option<Arc<Facts>>>,
}

impl Control {
    /// Starts with what was stored, if anything.
    pub(crate) async fn load(store: &Store) -> Result<Self, Error> {
        let stored = store.setting("control").await?;
        // An unreadable row of an older version is fetched anew, not an error.
        let facts = stored.and_then(|json| serde_json::from_str::<Facts>(&json).ok()).map(Arc::new);
        Ok(Self { facts: RwLock::new(facts) })
    }

    /// The facts, once they are known.
    pub(crate) fn facts(&self) -> Option<Arc<Facts>> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches the facts every minute, and with back-off where that fails; never ends.
    pub(crate) async fn keep_fresh(&self, server: &Server, store: &Store) {
        let mut failures: u32 = 0;
        loop {
            match self.refresh(server, store).await {
                Ok(()) => {
                    failures = 0;
                    tokio::time::sleep(FRESH).await;
                }
                Err(reason) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(reason, failures, "the server does not say where the control room is");
                    tokio::time::sleep(backoff(failures)).await;
                }
            }
        }
    }

    async fn refresh(&self, server: &Server, store: &Store) -> Result<(), &'static str> {
        let answer = server.get(&["_heya", "v1", "control"], &[]).await.map_err(|_| "no answer")?;
        let facts: Facts = serde_json::from_value(answer).map_err(|_| "unexpected answer")?;
        if self.facts().as_deref() == Some(&facts) {
            return Ok(());
        }
        let json = serde_json::to_string(&facts).map_err(|_| "unexpected answer")?;
        store.set_setting("control", &json).await.map_err(|_| "database")?;
        *self.facts.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(facts));
        Ok(())
    }
}
