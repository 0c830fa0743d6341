//! `logging()`: what the program that runs the query writes to its log, as it writes it.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use talon_acl::Authority;
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Scope, Signature, Time, Value};

/// How many lines are kept for those who come later.
const KEPT: usize = 1000;
/// Lines that wait for a slow reader; what comes on top is dropped.
const WAITING: usize = 10_000;
/// The most readers.
const MAX_READERS: usize = 100;
/// The longest line.
const MAX_LINE: usize = 64 << 10;

/// The log of the program, for queries that may read it: an extension of the environment.
#[derive(Default)]
pub struct LogFeed(Mutex<Feed>);

#[derive(Default)]
struct Feed {
    last: VecDeque<Value>,
    readers: Vec<SyncSender<Value>>,
}

impl LogFeed {
    /// Passes a line on. `component` is the part of the program, `level` its rank.
    pub fn publish(&self, at: Time, component: &str, level: &str, message: &str) {
        let message: String = if message.len() > MAX_LINE { message.chars().take(MAX_LINE / 4).collect() } else { message.to_owned() };
        let row: Value = Dict::new().with("Timestamp", at).with("Component", component).with("Level", level).with("Msg", message).into();
        let mut feed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        feed.readers.retain(|reader| !matches!(reader.try_send(row.clone()), Err(TrySendError::Disconnected(_))));
        if feed.last.len() >= KEPT {
            feed.last.pop_front();
        }
        feed.last.push_back(row);
    }

    /// The last lines, oldest first.
    #[must_use]
    pub fn last(&self) -> Vec<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last.iter().cloned().collect()
    }
}

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("logging", "The log of this program, line by line as it is written.")
            .args(
                const {
                    &[
                        Arg::optional("component", ArgType::Strings, "Only what these parts of the program write."),
                        Arg::optional("prelog", ArgType::Bool, "The last lines so far come first."),
                    ]
                },
            )
            .permissions(&[Permission::ServerAdmin])
            .version(2),
        logging,
    );
}

fn logging(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let org_is_root = scope.extension::<Authority>().is_some_and(|authority| authority.org().is_root());
    if !org_is_root {
        return Err("the log of this program is for the root organisation only".into());
    }
    let feed: Arc<LogFeed> = scope.extension().ok_or("the log of this program cannot be read by queries")?;
    let (sender, receiver) = sync_channel(WAITING);
    let before = {
        let mut feed = feed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if feed.readers.len() >= MAX_READERS {
            return Err("too many queries read the log".into());
        }
        feed.readers.push(sender);
        if call.bool("prelog") { feed.last.iter().cloned().collect() } else { Vec::new() }
    };
    let components = call.strings("component");
    let wanted = move |row: &Value| {
        let component = row.as_dict().and_then(|row| row.get("Component")).and_then(Value::as_str).unwrap_or_default();
        components.is_empty() || components.iter().any(|wanted| wanted.eq_ignore_ascii_case(component))
    };
    let all = before.into_iter().map(Ok).chain(listen(receiver, scope));
    Ok(Rows::try_of(all.filter(move |row| row.as_ref().map_or(true, &wanted))))
}

/// What arrives, until nobody sends any more or the query must stop.
fn listen(receiver: Receiver<Value>, scope: Scope) -> impl Iterator<Item = Result<Value, CallError>> {
    const LOOK: Duration = Duration::from_millis(100);
    std::iter::from_fn(move || {
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(row) => return Some(Ok(row)),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if scope.sleep(Duration::ZERO) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use talon_acl::EndpointPolicy;
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    #[test]
    fn lines_come_as_they_are_written_to_those_who_may_read_them() {
        let feed = Arc::new(LogFeed::default());
        feed.publish(Time::EPOCH, "GUI", "INFO", "before");
        let log = Arc::new(MemoryLog::default());
        let environment = Environment::new(Arc::new(crate::registry())).extension(feed.clone()).log(log.clone());
        let statement = parse_statement("SELECT Level, Msg FROM logging(component='gui', prelog=TRUE) LIMIT 2").unwrap();
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(environment.clone(), authority).open();
        let mut query = Query::new(&scope, &statement);
        assert_eq!(query.next().map(|row| json::encode(&row.into())).unwrap(), r#"{"Level":"INFO","Msg":"before"}"#);
        feed.publish(Time::EPOCH, "Client", "INFO", "other");
        feed.publish(Time::EPOCH, "GUI", "ERROR", "after");
        assert_eq!(query.next().map(|row| json::encode(&row.into())).unwrap(), r#"{"Level":"ERROR","Msg":"after"}"#);
        assert_eq!(Query::new(&environment.open(), &statement).count(), 0);
        assert!(log.take().iter().any(|line| line.contains("Permission denied: [SERVER_ADMIN]")));
    }
}
