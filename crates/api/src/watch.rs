//! `WatchEvent`: events of a queue as they happen.

use std::time::Duration;

use talon_proto::{EventRequest, EventResponse};
use talon_server::Received;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::decide;
use crate::methods::Method;
use crate::service::{ApiService, blocking};

/// Events on their way to a watcher.
pub(crate) type Events = ReceiverStream<Result<EventResponse, Status>>;

/// The queue that says which queues the master listens to.
const REGISTRATIONS: &str = "Server.Internal.MasterRegistrations";

/// The queues of the server itself: it listens to all of them.
fn registrations() -> Vec<u8> {
    let own = |queue: &talon_artifacts::Definition| {
        queue.kind() == talon_artifacts::ArtifactType::Internal || queue.name().as_str().starts_with("Server.Internal.")
    };
    let queues: Vec<&str> = talon_artifacts::queues().filter(|queue| own(queue)).map(|queue| queue.name().as_str()).collect();
    let mut line = serde_json::json!({ "Events": queues }).to_string();
    line.push('\n');
    line.into_bytes()
}

/// A watcher that does not take an event within this time is let go.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn run(service: &ApiService, request: Request<EventRequest>) -> Result<Response<Events>, Status> {
    let (pending, request) = service.pending(Method::WatchEvent, request)?;
    let revoked = CancellationToken::new();
    let ended = revoked.clone();
    let (queue, subscription, supervised) = blocking(move || {
        let mut call = pending.admit()?;
        decide::watch_event(&mut call, &request)?;
        let subscription = call.session.org().watch(&request.queue);
        Ok((request.queue, subscription, call.session.supervise(move |_| ended.cancel())))
    })
    .await?;
    let (events, stream) = mpsc::channel(16);
    if queue == REGISTRATIONS {
        // Whoever watches this queue begins with the list as it is.
        let first = EventResponse { jsonl: registrations().into(), ..EventResponse::default() };
        let _ = events.try_send(Ok(first));
    }
    if queue.is_empty() {
        return Ok(Response::new(ReceiverStream::new(stream)));
    }
    let closing = service.closing.clone();
    tokio::spawn(async move {
        let _supervised = supervised;
        loop {
            let received = tokio::select! {
                received = subscription.next() => received,
                () = events.closed() => return,
                () = revoked.cancelled() => {
                    let _ = events.try_send(Err(Status::permission_denied("the right to watch was taken away")));
                    return;
                }
                () = closing.cancelled() => {
                    let _ = events.try_send(Err(Status::unavailable("the server is closing")));
                    return;
                }
            };
            match received {
                Received::Event(event) => {
                    let response = EventResponse { jsonl: event.row.as_bytes().to_vec().into(), ..EventResponse::default() };
                    if events.send_timeout(Ok(response), PATIENCE).await.is_err() {
                        tracing::info!(queue, "a watcher went away or was too slow");
                        return;
                    }
                }
                Received::Lost(count) => tracing::warn!(queue, count, "a watcher is too slow: events were lost"),
            }
        }
    });
    Ok(Response::new(ReceiverStream::new(stream)))
}
