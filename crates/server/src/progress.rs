//! How far a flow is: what is kept beside its record, and the state that users see, derived from both on every read.

use prost::Message;
use talon_proto::artifact_collector_context::State;
use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{ArtifactCollectorContext, FlowStats};

/// No news for this long makes a flow unresponsive, in microseconds (`spec/05` §4.4).
const UNRESPONSIVE_US: u64 = 300 * 1_000_000;

/// What the server keeps of a flow while it runs, beside the flow's record.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Progress {
    /// The newest statistics of the agent, query names in clear.
    #[prost(message, optional, tag = "1")]
    pub(crate) stats: Option<FlowStats>,
    /// When the request was last handed to the agent, in microseconds; 0 before that.
    #[prost(uint64, tag = "2")]
    pub(crate) delivered_at: u64,
    /// When the agent last sent anything for the flow, in microseconds.
    #[prost(uint64, tag = "3")]
    pub(crate) last_news: u64,
    /// Whether the flow has ended and its completion was announced.
    #[prost(bool, tag = "4")]
    pub(crate) complete: bool,
    /// The index, in the agent's count, of the log line that comes next.
    #[prost(uint64, tag = "5")]
    pub(crate) next_log: u64,
    /// The queued task that asks for the flow, until the agent is known to have it; 0 afterwards.
    #[prost(uint64, tag = "6")]
    pub(crate) task_id: u64,
    /// Bytes of uploads stored so far, those of replaced files included.
    #[prost(uint64, tag = "7")]
    pub(crate) uploaded: u64,
    /// Rows of results stored so far, over all queries.
    #[prost(uint64, tag = "8")]
    pub(crate) rows: u64,
}

/// What is kept of one uploaded file of a flow.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UploadState {
    /// The agent's number for the upload that wrote the file last.
    #[prost(int64, tag = "1")]
    pub(crate) number: i64,
    /// Whether that upload came to its end.
    #[prost(bool, tag = "2")]
    pub(crate) complete: bool,
    /// When its first chunk came, in microseconds.
    #[prost(uint64, tag = "3")]
    pub(crate) started: u64,
}

/// Puts the statistics into the flow's record and derives its state at `now_us`.
pub(crate) fn derive(context: &mut ArtifactCollectorContext, progress: &Progress, now_us: u64) {
    let stats = progress.stats.clone().unwrap_or_default();
    total(context, &stats, progress);
    context.query_stats = stats.query_status;
    let stored_error = context.state() == State::Error;
    let mut state = if stored_error { State::Error } else { State::Running };
    for query in &context.query_stats {
        let failed = match query.status() {
            ReturnedStatus::UnknownFlow => true,
            ReturnedStatus::GenericError => state == State::Running,
            ReturnedStatus::Ok | ReturnedStatus::Progress => false,
        };
        if failed && !stored_error {
            state = State::Error;
            if context.status.is_empty() {
                context.status.clone_from(&query.error_message);
                context.backtrace.clone_from(&query.backtrace);
            }
        }
    }
    let ended = |status| matches!(status, ReturnedStatus::Ok | ReturnedStatus::GenericError);
    if state == State::Running && progress.complete && context.query_stats.iter().all(|query| ended(query.status())) {
        state = State::Finished;
    }
    let in_flight = progress.delivered_at != 0 && !progress.complete;
    let newest = progress.last_news.max(progress.delivered_at);
    if state == State::Running && in_flight {
        context.inflight_time = newest / 1_000_000;
        state = if context.query_stats.is_empty() {
            State::Waiting
        } else if now_us.saturating_sub(newest) <= UNRESPONSIVE_US {
            State::InProgress
        } else {
            State::Unresponsive
        };
    }
    context.set_state(state);
}

/// The sums that users see. What the server counted itself wins over what the agent claims.
fn total(context: &mut ArtifactCollectorContext, stats: &FlowStats, progress: &Progress) {
    let sum = |of: fn(&talon_proto::VeloStatus) -> i64| {
        stats.query_status.iter().fold(0_u64, |sum, query| sum.saturating_add(u64::try_from(of(query)).unwrap_or(0)))
    };
    context.total_collected_rows = progress.rows;
    context.total_logs = sum(|query| query.log_rows).min(progress.next_log);
    context.total_uploaded_files = sum(|query| query.uploaded_files);
    context.total_uploaded_bytes = sum(|query| query.uploaded_bytes).min(progress.uploaded);
    context.total_expected_uploaded_bytes = sum(|query| query.expected_uploaded_bytes);
    context.execution_duration = stats.query_status.iter().map(|query| query.duration).max().unwrap_or(0).max(0);
    let started = stats.query_status.iter().map(|query| query.first_active).filter(|&at| at != 0).min();
    let active = stats.query_status.iter().map(|query| query.last_active).max().unwrap_or(0);
    context.start_time = started.unwrap_or(context.start_time);
    context.active_time = context.active_time.max(active);
    context.transactions_outstanding = stats.transactions_outstanding;
    let mut with_results: Vec<String> = stats.query_status.iter().flat_map(|query| query.names_with_response.clone()).collect();
    with_results.sort();
    with_results.dedup();
    context.artifacts_with_results = with_results;
}

/// Whether `stats` are older than those that are kept: a late or replayed packet. Statistics are cumulative and never shrink.
pub(crate) fn is_stale(kept: &FlowStats, stats: &FlowStats) -> bool {
    let newest = |stats: &FlowStats| stats.query_status.iter().map(|query| query.last_active).max().unwrap_or(0);
    newest(stats) < newest(kept)
}

#[cfg(test)]
mod tests {
    use talon_proto::VeloStatus;

    use super::*;

    const NOW: u64 = 10_000 * 1_000_000;

    fn query(status: ReturnedStatus, error: &str) -> VeloStatus {
        let mut query =
            VeloStatus { error_message: error.into(), result_rows: 2, last_active: 9, first_active: 3, ..VeloStatus::default() };
        query.set_status(status);
        query
    }

    fn state(stored: State, queries: &[(ReturnedStatus, &str)], progress: Progress) -> (State, String) {
        let query_status = queries.iter().map(|(status, error)| query(*status, error)).collect();
        let stats = Some(FlowStats { query_status, ..FlowStats::default() });
        let mut context = ArtifactCollectorContext::default();
        context.set_state(stored);
        derive(&mut context, &Progress { stats, ..progress }, NOW);
        (context.state(), context.status)
    }

    #[test]
    fn a_flow_moves_through_its_states() {
        use ReturnedStatus::{GenericError, Ok, Progress as Going, UnknownFlow};
        let queued = Progress::default();
        let delivered = |at| Progress { delivered_at: at, ..Progress::default() };
        let complete = Progress { delivered_at: NOW, complete: true, ..Progress::default() };
        let silent = NOW - 301 * 1_000_000;
        let cases = [
            (State::Unset, vec![], queued.clone(), State::Running),
            (State::Unset, vec![], delivered(NOW), State::Waiting),
            (State::Unset, vec![(Going, "")], delivered(NOW), State::InProgress),
            (State::Unset, vec![(Going, "")], delivered(silent), State::Unresponsive),
            (State::Unset, vec![(Ok, ""), (Going, "")], delivered(NOW), State::InProgress),
            (State::Unset, vec![(Ok, "")], complete.clone(), State::Finished),
            (State::Unset, vec![(Ok, ""), (GenericError, "boom")], complete.clone(), State::Error),
            (State::Unset, vec![(UnknownFlow, "Flow not known")], complete.clone(), State::Error),
            (State::Error, vec![(Ok, "")], complete, State::Error),
        ];
        for (stored, queries, progress, wanted) in cases {
            assert_eq!(state(stored, &queries, progress).0, wanted, "{queries:?}");
        }
    }

    #[test]
    fn the_first_error_is_the_status() {
        use ReturnedStatus::GenericError;
        let complete = Progress { complete: true, ..Progress::default() };
        assert_eq!(state(State::Unset, &[(GenericError, "one"), (GenericError, "two")], complete).1, "one");
    }

    #[test]
    fn totals_survive_counts_that_lie() {
        let lies = VeloStatus { result_rows: i64::MAX, log_rows: -5, duration: -1, ..VeloStatus::default() };
        let stats = FlowStats { query_status: vec![lies.clone(), lies.clone(), lies], ..FlowStats::default() };
        let mut context = ArtifactCollectorContext::default();
        derive(&mut context, &Progress { stats: Some(stats), rows: 7, ..Progress::default() }, NOW);
        assert_eq!((context.total_collected_rows, context.total_logs, context.execution_duration), (7, 0, 0));
    }
}
