//! A connection that ends itself when its peer takes too long: nothing in either direction, or an answer that leaves too slowly.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// The bounds of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Longest silence.
    pub(crate) idle: Duration,
    /// How long writing may be blocked before `min_rate` has to be reached.
    pub(crate) stall: Duration,
    /// Bytes per second.
    pub(crate) min_rate: u32,
}

/// How many requests of a connection have no answer yet. While there are any, silence is the server's own.
#[derive(Clone, Default)]
pub(crate) struct Busy(Arc<AtomicUsize>);

impl Busy {
    /// Counts one request until the value is dropped.
    pub(crate) fn request(&self) -> impl Drop + Send + use<> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Request(Arc::clone(&self.0))
    }
}

struct Request(Arc<AtomicUsize>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Watches over `inner`. The single timer is only moved when it fires too early or has become too late, so activity costs no timer operation.
pub(crate) struct Guarded<T> {
    inner: T,
    pace: Pace,
    busy: Busy,
    timer: Pin<Box<Sleep>>,
    active: Instant,
    /// When a blocked writer is given up. `None` while the peer takes what it gets.
    blocked_until: Option<Instant>,
}

impl<T> Guarded<T> {
    pub(crate) fn new(inner: T, pace: Pace, busy: Busy) -> Self {
        let active = Instant::now();
        Self { inner, pace, busy, timer: Box::pin(tokio::time::sleep_until(active + pace.idle)), active, blocked_until: None }
    }

    fn due(&self) -> Instant {
        let idle = self.active + self.pace.idle;
        self.blocked_until.map_or(idle, |until| until.min(idle))
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            let now = Instant::now();
            if self.blocked_until.is_none() && self.busy.0.load(Ordering::Relaxed) > 0 && now >= self.due() {
                self.active = now;
            }
            let due = self.due();
            if now >= due {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes too long"));
            }
            if self.timer.deadline() > due {
                self.timer.as_mut().reset(due);
            }
            match self.timer.as_mut().poll(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(()) => self.timer.as_mut().reset(due),
            }
        }
    }

    fn wrote(&mut self, outcome: Poll<io::Result<usize>>, offered: usize, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(Ok(written)) => {
                self.active = Instant::now();
                if written >= offered {
                    self.blocked_until = None;
                } else if let Some(until) = &mut self.blocked_until {
                    let earned = Duration::from_secs_f64(written as f64 / f64::from(self.pace.min_rate.max(1)));
                    *until = (*until + earned).min(self.active + self.pace.stall);
                }
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if self.blocked_until.is_none() {
                    self.blocked_until = Some(Instant::now() + self.pace.stall);
                }
                self.check(context)?;
                Poll::Pending
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_read(context, buffer) {
            Poll::Ready(outcome) => {
                this.active = Instant::now();
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                this.check(context)?;
                Poll::Pending
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write(context, buffer);
        this.wrote(outcome, buffer.len(), context)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_shutdown(context) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => {
                this.check(context)?;
                Poll::Pending
            }
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let offered = buffers.iter().map(|buffer| buffer.len()).sum();
        let outcome = Pin::new(&mut this.inner).poll_write_vectored(context, buffers);
        this.wrote(outcome, offered, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PACE: Pace = Pace { idle: Duration::from_secs(100), stall: Duration::from_secs(10), min_rate: 100 };

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_connection() {
        let (near, _far) = duplex(64);
        let start = Instant::now();
        let error = Guarded::new(near, PACE, Busy::default()).read_u8().await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 100));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_while_a_request_is_handled_does_not() {
        let (near, _far) = duplex(64);
        let busy = Busy::default();
        let request = busy.request();
        let mut guarded = Guarded::new(near, PACE, busy);
        assert!(tokio::time::timeout(Duration::from_secs(550), guarded.read_u8()).await.is_err());
        drop(request);
        let start = Instant::now();
        assert_eq!(guarded.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() <= Duration::from_secs(100), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_keeps_it() {
        let (near, mut far) = duplex(64);
        let mut guarded = Guarded::new(near, PACE, Busy::default());
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(90)).await;
            far.write_u8(1).await.unwrap();
            guarded.read_u8().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_of_one_byte_a_second_is_cut() {
        let (near, mut far) = duplex(64);
        tokio::spawn(async move {
            while far.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let start = Instant::now();
        let error = Guarded::new(near, PACE, Busy::default()).write_all(&[0; 1 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_but_steady_reader_gets_everything() {
        let (near, mut far) = duplex(64);
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 200];
            let mut total = 0;
            loop {
                match far.read(&mut buffer).await {
                    Ok(0) | Err(_) => return total,
                    Ok(count) => total += count,
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        let mut guarded = Guarded::new(near, PACE, Busy::default());
        guarded.write_all(&[0; 10_000]).await.unwrap();
        drop(guarded);
        assert_eq!(reader.await.unwrap(), 10_000);
    }
}
