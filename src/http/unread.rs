//! What a handler leaves of a request's body, since it refused before reading, is read and dropped. On HTTP/1 a connection
//! that is closed with bytes unread is reset, and the client loses the answer: with it an `M_UNKNOWN_TOKEN`, after which it
//! would have logged in again.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

/// A body whose end is read even where nobody wants it.
pub struct Unread {
    /// The body, until its end.
    body: Option<Incoming>,
    /// Bytes that may still come.
    left: u64,
    /// Until when the rest may come.
    until: Instant,
    /// The client waits to be told to send it (`Expect: 100-continue`): where nobody asks, nothing comes.
    waits: bool,
}

impl Unread {
    /// A body of which at most so many bytes are read until then.
    pub fn new(body: Incoming, bytes_max: u64, until: Instant, waits: bool) -> Self {
        Self { body: Some(body), left: bytes_max, until, waits }
    }
}

impl Body for Unread {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.left = self.left.saturating_sub(bytes);
            }
            Some(Err(_)) | None => self.body = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        // What says that it is larger than is ever read is not begun with.
        let too_large = self.left < body.size_hint().lower().max(1);
        if self.waits || too_large || body.is_end_stream() || self.until <= Instant::now() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (mut left, until) = (self.left, self.until);
        // Beside the answer, which does not wait for it.
        runtime.spawn(tokio::time::timeout_at(until, async move {
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                match left.checked_sub(bytes) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        }));
    }
}
