//! `logging()`: what the program that runs the query writes to its log, as it writes it.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use talon_ids::Permission;

use super::tracker::listen;
use crate::args;
use crate::call::Call;
use crate::dict::Dict;
use crate::error::CallError;
use crate::registry::Registry;
use crate::rows::Rows;
use crate::signature::{Arg, ArgType, Signature};
use crate::time::Time;
use crate::value::Value;

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

pub(super) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("logging", "The log of this program, line by line as it is written.")
            .args(args![
                Arg::optional("component", ArgType::Strings, "Only what these parts of the program write."),
                Arg::optional("prelog", ArgType::Bool, "The last lines so far come first."),
            ])
            .permissions(&[Permission::ServerAdmin])
            .version(2),
        logging,
    );
}

fn logging(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AllowAll, Environment, MemoryLog, Query, json};

    #[test]
    fn lines_come_as_they_are_written_to_those_who_may_read_them() {
        let feed = Arc::new(LogFeed::default());
        feed.publish(Time::EPOCH, "GUI", "INFO", "before");
        let log = Arc::new(MemoryLog::default());
        let environment = Environment::new(Arc::new(Registry::core())).extension(feed.clone()).log(log.clone());
        let statement = crate::parse_statement("SELECT Level, Msg FROM logging(component='gui', prelog=TRUE) LIMIT 2").unwrap();
        let scope = environment.clone().guard(Arc::new(AllowAll)).open();
        let mut query = Query::new(&scope, &statement);
        assert_eq!(query.next().map(|row| json::encode(&row.into())).unwrap(), r#"{"Level":"INFO","Msg":"before"}"#);
        feed.publish(Time::EPOCH, "Client", "INFO", "other");
        feed.publish(Time::EPOCH, "GUI", "ERROR", "after");
        assert_eq!(query.next().map(|row| json::encode(&row.into())).unwrap(), r#"{"Level":"ERROR","Msg":"after"}"#);
        assert_eq!(Query::new(&environment.open(), &statement).count(), 0);
        assert!(log.take().iter().any(|line| line.contains("Permission denied: [SERVER_ADMIN]")));
    }
}
