//! One logical change, one transaction: queues work with the engine and hands back its typed result once it is durable.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::thread::{self, Thread};

use talon_store::{Engine, StoreError, Ticket, Txn};

use crate::ServerError;

/// A change that was queued. Resolves when it is durable, or was refused.
///
/// Await it in async code; [`Pending::wait`] for it on a thread of its own, as queries do.
#[must_use = "a change counts only once it is known to be durable"]
pub struct Pending<T> {
    ticket: Ticket,
    slot: Slot<T>,
    effect: Option<Effect<T>>,
}

/// What is to happen once a change is durable: waking readers, publishing events.
type Effect<T> = Box<dyn FnOnce(&T) + Send>;

type Slot<T> = Arc<Mutex<Option<Result<T, ServerError>>>>;

impl<T: Send + 'static> Pending<T> {
    pub(crate) fn submit(engine: &dyn Engine, work: impl FnOnce(&mut dyn Txn) -> Result<T, ServerError> + Send + 'static) -> Self {
        let slot: Slot<T> = Arc::new(Mutex::new(None));
        let filled = slot.clone();
        let ticket = engine.submit(Box::new(move |txn| {
            let outcome = work(txn);
            let verdict = match &outcome {
                Ok(_) => Ok(()),
                Err(ServerError::Store(error)) => Err(error.clone()),
                Err(refusal) => Err(StoreError::Refused(refusal.to_string())),
            };
            *filled.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            verdict
        }));
        Self { ticket, slot, effect: None }
    }

    /// Does something once the change is durable: when whoever holds this waits for it.
    pub(crate) fn then(mut self, effect: impl FnOnce(&T) + Send + 'static) -> Self {
        self.effect = Some(Box::new(effect));
        self
    }

    /// Blocks this thread until the change is durable. In async code it holds up the thread's other tasks: await instead.
    ///
    /// # Errors
    /// Why the change was refused, or how storage failed.
    pub fn wait(self) -> Result<T, ServerError> {
        let mut pending = pin!(tokio::task::unconstrained(self));
        let waker = Waker::from(Arc::new(Parked(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match pending.as_mut().poll(&mut context) {
                Poll::Ready(outcome) => return outcome,
                Poll::Pending => thread::park(),
            }
        }
    }
}

/// Wakes a thread that waits for a change.
struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, ServerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let durable = ready!(Pin::new(&mut self.ticket).poll(context));
        let effect = self.effect.take();
        Poll::Ready(outcome(durable, &self.slot, effect))
    }
}

impl<T> std::fmt::Debug for Pending<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pending").finish_non_exhaustive()
    }
}

fn outcome<T>(durable: Result<(), StoreError>, slot: &Slot<T>, effect: Option<Effect<T>>) -> Result<T, ServerError> {
    let done = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (durable, done) {
        (Ok(()), Some(done)) => {
            if let (Ok(done), Some(effect)) = (&done, effect) {
                effect(done);
            }
            done
        }
        (Err(_), Some(Err(refusal))) => Err(refusal),
        (Err(error), _) => Err(ServerError::Store(error)),
        (Ok(()), None) => Err(ServerError::Store(StoreError::Closed)),
    }
}
