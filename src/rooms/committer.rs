//! The one way to write (DESIGN 7). A unit of work is queued; one task drains the queue into one transaction,
//! unit by unit, on the state that its predecessors in the batch left; a refused unit leaves nothing behind.
//! One sync to disk, then memory is brought up to date, waiters are woken, and only then is anyone answered.

use std::{pin::Pin, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use super::{batch::Batch, effects::Effects, live::Live, pdu::Signer};
use crate::{
    audit::Chain,
    clock::Clock,
    config::Policy,
    error::{Error, Result},
    store::{self, Conn, Db, script::Script},
};

/// Units taken into one transaction at most.
const BATCH_UNITS_MAX: usize = 256;
/// Units waiting at most; beyond it callers wait for room in the queue.
const QUEUE_MAX: usize = 4_096;

/// A future that borrows the batch.
pub type UnitFuture<'b, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'b>>;

type Answer = Box<dyn FnOnce(Option<Error>) + Send>;
type Work = Box<
    dyn for<'b> FnOnce(&'b mut Batch) -> Pin<Box<dyn Future<Output = (bool, Answer)> + Send + 'b>> + Send,
>;

/// What a unit is about, so that a batch can read ahead for all of its units at once.
#[derive(Clone, Debug, Default)]
pub struct Hint {
    /// Rooms it will write to.
    pub rooms: Vec<ruma::OwnedRoomId>,
    /// The client transaction it belongs to.
    pub txn: Option<TxnKey>,
}

/// A client transaction: the same key again answers the same event (client-server API, "Transaction identifiers").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TxnKey {
    /// The user.
    pub user_id: ruma::OwnedUserId,
    /// The device.
    pub device_id: String,
    /// Endpoint, room and type.
    pub scope: String,
    /// The id that the client chose.
    pub txn_id: String,
}

struct Job {
    hint: Hint,
    work: Work,
}

/// The queue's end that everybody holds.
#[derive(Clone)]
pub struct Committer {
    queue: mpsc::Sender<Job>,
}

/// What the committing task works with.
pub struct Context {
    /// The database.
    pub db: Arc<Db>,
    /// Memory.
    pub live: Arc<Live>,
    /// Server name and key.
    pub signer: Arc<Signer>,
    /// The city's policies.
    pub policy: Arc<Policy>,
    /// Time.
    pub clock: Clock,
    /// The audit log's newest hash.
    pub chain: Chain,
}

impl Committer {
    /// Starts the committing task. It ends when every handle is gone and the queue is drained.
    pub async fn start(context: Context) -> Result<(Self, tokio::task::JoinHandle<()>)> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let conn = context.db.writer().await?;
        let task = tokio::spawn(commit_all(context, conn, jobs));
        Ok((Self { queue }, task))
    }

    /// Runs a unit and answers when it is durable. The unit is not interrupted when the caller goes away.
    pub async fn submit<T, F>(&self, hint: Hint, unit: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'b> FnOnce(&'b mut Batch) -> UnitFuture<'b, T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel::<Result<T>>();
        let work: Work = Box::new(move |batch| {
            Box::pin(async move {
                let result = unit(batch).await;
                let done = result.is_ok();
                let deliver: Answer = Box::new(move |failure| {
                    // The caller may have gone away; the unit stands all the same.
                    let _ = answer.send(match failure {
                        Some(error) if done => Err(error),
                        _ => result,
                    });
                });
                (done, deliver)
            })
        });
        self.queue
            .send(Job { hint, work })
            .await
            .map_err(|_| Error::internal("the committer has stopped"))?;
        answered.await.map_err(|_| Error::internal("the committer has stopped"))?
    }

    /// Jobs waiting.
    pub fn waiting(&self) -> usize {
        QUEUE_MAX - self.queue.capacity()
    }
}

async fn commit_all(mut context: Context, mut conn: Conn, mut jobs: mpsc::Receiver<Job>) {
    let mut taken = Vec::with_capacity(BATCH_UNITS_MAX);
    loop {
        taken.clear();
        if jobs.recv_many(&mut taken, BATCH_UNITS_MAX).await == 0 {
            return;
        }
        conn = commit_batch(&mut context, conn, &mut taken).await;
    }
}

/// One transaction. Gives the connection back, or a new one where the old one failed.
async fn commit_batch(context: &mut Context, conn: Conn, jobs: &mut Vec<Job>) -> Conn {
    let hints: Vec<Hint> = jobs.iter().map(|job| job.hint.clone()).collect();
    let batch_id = crate::clock::random_token(16);
    let mut answers: Vec<Answer> = Vec::with_capacity(jobs.len());
    let outcome = guarded(run_units(context, conn, jobs, &hints, &batch_id, &mut answers)).await;
    let outcome = match outcome {
        Ok((script, effects, conn)) => {
            commit(context, conn, script, &batch_id).await.map(|conn| (effects, conn))
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok((effects, conn)) => {
            // Half-merged memory would be worse than a restart, which reads everything again.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| effects.publish(context))).is_err() {
                tracing::error!("bringing memory up to date failed after a commit: stopping at once");
                std::process::abort();
            }
            for answer in answers {
                answer(None);
            }
            conn
        }
        Err(error) => {
            tracing::error!(%error, "a batch was not committed");
            let text = error.to_string();
            for answer in answers {
                answer(Some(Error::internal(text.clone())));
            }
            // Jobs whose turn had not come are dropped: their callers see an internal error, nothing is written.
            jobs.clear();
            context.chain.reload(&context.db).await;
            reconnect(context).await
        }
    }
}

/// A panic in a unit is that batch's internal error and not the end of all writing. The connection is dropped with the
/// future, which ends its transaction.
async fn guarded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = Box::pin(work);
    std::future::poll_fn(move |context| {
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work.as_mut().poll(context)));
        match polled {
            Ok(poll) => poll,
            Err(_) => std::task::Poll::Ready(Err(Error::internal("a unit panicked"))),
        }
    })
    .await
}

/// Runs the units in a transaction that is left open for `commit`. Where this fails the connection is dropped,
/// which ends the transaction.
async fn run_units(
    context: &Context,
    conn: Conn,
    jobs: &mut Vec<Job>,
    hints: &[Hint],
    batch_id: &str,
    answers: &mut Vec<Answer>,
) -> Result<(Script, Effects, Conn)> {
    let mut batch = Batch::open(context, conn, hints).await?;
    for job in jobs.drain(..) {
        let mark = batch.mark();
        let (done, answer) = (job.work)(&mut batch).await;
        answers.push(answer);
        if done {
            batch.keep(mark).await?;
        } else {
            batch.undo(mark).await?;
        }
    }
    let (script, effects) = batch.flush(batch_id).await?;
    Ok((script, effects, batch.into_connection()))
}

/// Writes and commits; where the outcome is unknown (the connection broke), the batch id in the database tells. It is asked
/// on a new connection to write with: on PostgreSQL that is to be had only when the old session is over (its lock), and
/// until then the COMMIT may still happen.
async fn commit(context: &Context, mut conn: Conn, script: Script, batch_id: &str) -> Result<Conn> {
    let Err(error) = script.run(&mut conn).await else { return Ok(conn) };
    drop(conn);
    tracing::warn!(%error, "a commit failed; asking the database whether it happened");
    loop {
        let mut fresh = reconnect(context).await;
        match store::meta::batch(&mut fresh).await {
            Ok(stored) if stored == batch_id => return Ok(fresh),
            Ok(_) => return Err(error),
            Err(error) => tracing::error!(%error, "the database does not tell whether a commit happened"),
        }
        drop(fresh);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

/// A new connection to write with, however long the database is away: nothing can be written meanwhile, and
/// callers see that.
async fn reconnect(context: &Context) -> Conn {
    let mut wait_ms = 50;
    loop {
        match context.db.writer().await {
            Ok(conn) => return conn,
            Err(error) => tracing::error!(%error, "cannot connect to the database to write"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(wait_ms)).await;
        wait_ms = (wait_ms * 2).min(5_000);
    }
}
