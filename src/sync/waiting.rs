//! How long a sync waits: until its time is over, the session ends or the server stops.

use std::{pin::Pin, sync::Arc, time::Duration};

use ruma::OwnedUserId;
use tokio::{
    sync::{futures::Notified, watch},
    time::Instant,
};

use crate::{
    accounts::moderation,
    error::{Code, Result, refuse},
    http::caller::Requester,
    server::Server,
};

/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A sync that waits.
pub struct Waiting {
    server: Arc<Server>,
    user_id: OwnedUserId,
    deadline: Instant,
    stopping: watch::Receiver<bool>,
    ended: Option<watch::Receiver<bool>>,
    stopped: bool,
}

impl Waiting {
    /// Begins to count.
    pub fn new(server: &Arc<Server>, who: &Requester, timeout: Duration) -> Self {
        Self {
            server: Arc::clone(server),
            user_id: who.user_id.clone(),
            deadline: Instant::now() + timeout.min(WAIT_MAX),
            stopping: server.stopping.subscribe(),
            ended: who.session.as_ref().map(|session| session.ended.subscribe()),
            stopped: false,
        }
    }

    /// Whether it is time to answer, with or without news.
    pub fn over(&self) -> bool {
        self.stopped || Instant::now() >= self.deadline
    }

    /// Waits for a wake-up or the end; an error where the session has ended or the account is locked.
    pub async fn wait(&mut self, wake: &mut Pin<&mut Notified<'_>>) -> Result<()> {
        tokio::select! {
            () = wake.as_mut() => {}
            () = tokio::time::sleep_until(self.deadline) => {}
            () = crate::server::stopped(&mut self.stopping) => self.stopped = true,
            () = session_ended(&mut self.ended) => {
                return Err(refuse(Code::UnknownToken { soft_logout: false }, "This session has ended: please log in."));
            }
        }
        if self.server.moderation.of(&self.user_id).locked {
            return Err(moderation::locked());
        }
        Ok(())
    }
}

async fn session_ended(ended: &mut Option<watch::Receiver<bool>>) {
    match ended {
        Some(ended) => {
            // The sender goes with the session: either way it is over.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        None => std::future::pending().await,
    }
}
