//! The program's own log for `logging()`: each event that is written goes to those who read along, too.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;

use talon_endpoint_vql::{LogFeed, SystemClock};
use talon_vql::Clock as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Passes events on.
pub(crate) struct FeedLayer {
    feed: Arc<LogFeed>,
    clock: SystemClock,
}

impl FeedLayer {
    pub(crate) fn new(feed: Arc<LogFeed>) -> Self {
        Self { feed, clock: SystemClock::new() }
    }
}

impl<S: Subscriber> Layer<S> for FeedLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            _ => "DEBUG",
        };
        let target = event.metadata().target();
        let component = target.split("::").next().unwrap_or(target).trim_start_matches("talon_");
        self.feed.publish(self.clock.now(), component, level, &format!("{}{}", line.message, line.fields));
    }
}

/// The text of an event: its message, then its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a text cannot fail.
        let _written =
            if field.name() == "message" { write!(self.message, "{value:?}") } else { write!(self.fields, " {}={value:?}", field.name()) };
    }
}

#[cfg(test)]
mod tests {
    use talon_vql::{Value, json};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn events_reach_the_feed() {
        let feed = Arc::new(LogFeed::default());
        let subscriber = tracing_subscriber::registry().with(FeedLayer::new(feed.clone()));
        tracing::subscriber::with_default(subscriber, || tracing::warn!(target: "talon_server::tasks", count = 3, "too many"));
        let rows = feed.last();
        let row = rows.first().and_then(Value::as_dict).cloned().unwrap_or_default();
        let shown: talon_vql::Dict = row.iter().skip(1).map(|(name, value)| (name.clone(), value.clone())).collect();
        assert_eq!(json::encode(&shown.into()), r#"{"Component":"server","Level":"WARN","Msg":"too many count=3"}"#);
    }
}
