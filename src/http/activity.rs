//! Whether a connection is in use: requests wait for their answers, or something of an answer is taken. One that is not
//! ends, so that nobody keeps a place for nothing.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

/// How many times as long as a request may take, nothing of an answer may be taken.
const TAKING_TIMES: u32 = 10;
/// What is written meanwhile on a connection that is in use; answers to pings are far less.
const FLOW_BYTES: u64 = 64 << 10;

/// Whether a connection has requests that wait for their answers, and when something of an answer was taken.
#[derive(Default)]
pub struct Activity {
    /// Requests without an answer yet: a long poll is no idle connection.
    waiting: AtomicUsize,
    /// Answers of which not all is taken yet.
    answering: AtomicUsize,
    changes: AtomicU64,
    /// Bytes written to the other side.
    written: AtomicU64,
}

/// One request under way.
pub struct Working {
    activity: Arc<Activity>,
    answered: AtomicBool,
}

/// A body that counts as work whenever a part of it is taken: a large file on a slow line is no idle connection, one whose
/// other side takes nothing is (over HTTP/2 it could keep answers, and its place, for ever).
pub struct Whole {
    pub body: Body,
    pub working: Working,
}

impl hyper::body::Body for Whole {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.working.activity.changed();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Working {
    /// The answer begins.
    pub fn answered(&self) {
        if !self.answered.swap(true, Ordering::AcqRel) {
            self.activity.answering.fetch_add(1, Ordering::AcqRel);
            self.activity.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        self.activity.changed();
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.answered();
        self.activity.answering.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Activity {
    pub fn work(self: &Arc<Self>) -> Working {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.changed();
        Working { activity: Arc::clone(self), answered: false.into() }
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Ends when no request came or waited for its answer, and little was written, for so long; and while there are answers,
    /// after ten times as long: on a slow line the system holds what takes minutes to arrive.
    pub async fn idle_for(&self, time: Duration) {
        use Ordering::Acquire;
        let (mut before, mut written, mut times) =
            (self.changes.load(Acquire), self.written.load(Acquire), 0);
        loop {
            tokio::time::sleep(time).await;
            let (changes, bytes) = (self.changes.load(Acquire), self.written.load(Acquire));
            // An answer in one piece counts as taken once it waits to be written, and may be large.
            let flows = bytes - written >= FLOW_BYTES;
            let idle = changes == before && !flows && self.waiting.load(Acquire) == 0;
            times = if idle { times + 1 } else { 0 };
            (before, written) = (changes, bytes);
            if times >= TAKING_TIMES || times > 0 && self.answering.load(Acquire) == 0 {
                return;
            }
        }
    }
}

/// A connection whose written bytes are counted.
pub struct Counted<S> {
    pub stream: S,
    pub activity: Arc<Activity>,
}

impl<S> Counted<S> {
    fn counted(&self, written: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.activity.written.fetch_add(*bytes as u64, Ordering::AcqRel);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.counted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.counted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_is_not_waited_for() {
        let (activity, time) = (Arc::new(Activity::default()), Duration::from_millis(10));
        let ends = |within: u32| {
            let activity = Arc::clone(&activity);
            async move { tokio::time::timeout(time * within, activity.idle_for(time)).await.is_ok() }
        };
        assert!(ends(1_000).await, "no request");
        let working = activity.work();
        assert!(!ends(50).await, "a long poll");
        working.answered();
        assert!(!ends(TAKING_TIMES - 1).await, "on its way");
        assert!(ends(1_000).await, "nothing of it is taken");
        let taking = async {
            for _ in 0..20 {
                tokio::time::sleep(time * 2).await;
                activity.changed();
            }
        };
        let idle = activity.idle_for(time);
        tokio::select! { () = idle => panic!("something is taken"), () = taking => {} }
        // All of it is in the buffers, and still flows.
        let flowing = async {
            for _ in 0..100 {
                activity.written.fetch_add(FLOW_BYTES, Ordering::AcqRel);
                tokio::time::sleep(time / 2).await;
            }
        };
        let idle = activity.idle_for(time);
        tokio::select! { () = idle => panic!("something flows"), () = flowing => {} }
        drop(working);
        assert!(ends(1_000).await, "all of it was taken");
    }
}
