//! The answers of a query as a stream of parts: which rows go into which part, and the log lines between them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use talon_proto::{VqlRequest, VqlResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::Stream;
use tonic::Status;

/// Rows in a part when the request does not say.
const DEFAULT_ROWS: u64 = 1_000;

/// How long rows are held back when the request does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// A part is sent when it has this many bytes, however many rows that are.
const MAX_PART: usize = 16 << 20;

/// How the rows of a query are cut into parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cutting {
    rows: usize,
    wait: Duration,
    timeout: Option<Duration>,
}

impl Cutting {
    /// What the request asks for, in rows and seconds; 0 is the default, or no limit for the timeout.
    pub(crate) fn new(max_row: u64, max_wait: u64, timeout: u64) -> Self {
        Self {
            rows: usize::try_from(if max_row == 0 { DEFAULT_ROWS } else { max_row }).unwrap_or(usize::MAX),
            wait: if max_wait == 0 { DEFAULT_WAIT } else { Duration::from_secs(max_wait.min(86_400)) },
            timeout: (timeout > 0).then(|| Duration::from_secs(timeout.min(31_536_000))),
        }
    }
}

/// What a running query says.
pub(crate) enum Item {
    /// A log line, without newline.
    Log(String),
    /// The next statement starts to give rows.
    Begin {
        /// The request that it is part of.
        request: Arc<VqlRequest>,
        /// Its number in that request.
        statement: u64,
    },
    /// A row: a JSON object, and its keys.
    Row {
        /// The object.
        json: String,
        /// The keys.
        columns: Arc<Vec<String>>,
    },
    /// The statement has ended.
    End,
}

/// The answers of a query. When they are dropped, the query is stopped.
pub struct Answers {
    responses: mpsc::Receiver<Result<VqlResponse, Status>>,
    stop: Option<Box<dyn FnOnce() + Send>>,
}

impl Answers {
    pub(crate) fn new(responses: mpsc::Receiver<Result<VqlResponse, Status>>, stop: impl FnOnce() + Send + 'static) -> Self {
        Self { responses, stop: Some(Box::new(stop)) }
    }
}

impl Stream for Answers {
    type Item = Result<VqlResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.responses.poll_recv(context)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop();
        }
    }
}

/// The statement whose rows are being collected.
struct Open {
    request: Arc<VqlRequest>,
    statement: u64,
    part: u64,
    json: String,
    rows: usize,
    columns: Arc<Vec<String>>,
    due: Option<Instant>,
}

/// Nobody listens any more.
struct Gone;

/// Cuts what a query says into responses.
pub(crate) struct Pump {
    cutting: Cutting,
    started: Instant,
    out: mpsc::Sender<Result<VqlResponse, Status>>,
    open: Option<Open>,
}

impl Pump {
    pub(crate) fn new(cutting: Cutting, out: mpsc::Sender<Result<VqlResponse, Status>>) -> Self {
        Self { cutting, started: Instant::now(), out, open: None }
    }

    /// Pumps until the query ends, its time is up, or nobody listens any more. `on_timeout` stops the query.
    pub(crate) async fn run(mut self, mut items: mpsc::Receiver<Item>, on_timeout: impl FnOnce(Duration) + Send) {
        let deadline = self.cutting.timeout.and_then(|timeout| self.started.checked_add(timeout));
        let mut on_timeout = Some(on_timeout);
        let pumped = async {
            self.log("Starting query execution.").await?;
            loop {
                let due = self.open.as_ref().and_then(|open| open.due);
                tokio::select! {
                    biased;
                    () = self.out.closed() => return Err(Gone),
                    () = at(deadline) => {
                        while let Ok(item) = items.try_recv() {
                            self.take(item).await?;
                        }
                        let elapsed = self.started.elapsed();
                        if let Some(stop) = on_timeout.take() {
                            stop(elapsed);
                        }
                        self.log(&format!("collect: <red>Timeout Error:</> Collection timed out after {}", go_duration(elapsed))).await?;
                        return self.close(false).await;
                    }
                    item = items.recv() => match item {
                        Some(item) => self.take(item).await?,
                        None => return self.close(true).await,
                    },
                    () = at(due) => self.send(true).await?,
                }
            }
        };
        let _: Result<(), Gone> = pumped.await;
    }

    async fn take(&mut self, item: Item) -> Result<(), Gone> {
        match item {
            Item::Log(line) => self.log(&line).await,
            Item::Begin { request, statement } => {
                self.close(true).await?;
                self.open = Some(Open { request, statement, part: 0, json: String::new(), rows: 0, columns: Arc::default(), due: None });
                Ok(())
            }
            Item::Row { json, columns } => self.row(&json, columns).await,
            Item::End => self.close(true).await,
        }
    }

    async fn row(&mut self, json: &str, columns: Arc<Vec<String>>) -> Result<(), Gone> {
        let full = self.open.as_ref().is_some_and(|open| open.rows >= self.cutting.rows || open.json.len() >= MAX_PART);
        if full {
            self.send(true).await?;
        }
        let wait = self.cutting.wait;
        if let Some(open) = &mut self.open {
            if open.rows == 0 {
                open.columns = columns;
                open.due = Instant::now().checked_add(wait);
            } else {
                open.json.push(',');
            }
            open.json.push_str(json);
            open.rows = open.rows.saturating_add(1);
        }
        Ok(())
    }

    /// Ends the statement, always with a part of its own, be it empty.
    async fn close(&mut self, announced: bool) -> Result<(), Gone> {
        if self.open.is_some() {
            self.send(announced).await?;
            self.open = None;
        }
        Ok(())
    }

    /// Sends what has been collected as one part.
    async fn send(&mut self, announced: bool) -> Result<(), Gone> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let rows = std::mem::take(&mut open.rows);
        let response = VqlResponse {
            response: format!("[{}]", std::mem::take(&mut open.json)),
            columns: Arc::unwrap_or_clone(std::mem::take(&mut open.columns)),
            query: Some((*open.request).clone()),
            query_id: open.statement,
            part: open.part,
            timestamp: now_us(),
            ..VqlResponse::default()
        };
        open.due = None;
        open.part = open.part.saturating_add(1);
        if announced {
            let (name, part) = (open.request.name.clone(), response.part);
            let size = humanize(response.response.len());
            let seconds = self.started.elapsed().as_secs();
            self.log(&format!("Time {seconds}: {name}: Sending response part {part} {size} ({rows} rows).")).await?;
        }
        self.out.send(Ok(response)).await.map_err(|_| Gone)
    }

    async fn log(&self, line: &str) -> Result<(), Gone> {
        let response = VqlResponse { log: format!("{line}\n"), timestamp: now_us(), ..VqlResponse::default() };
        self.out.send(Ok(response)).await.map_err(|_| Gone)
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Bytes for people, in powers of 1000 with two digits.
fn humanize(bytes: usize) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1_000.0 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    let rounded = (value * 10.0 + 0.5).floor() / 10.0;
    let name = UNITS.get(unit).unwrap_or(&"B");
    if unit > 0 && rounded < 10.0 { format!("{rounded:.1} {name}") } else { format!("{rounded:.0} {name}") }
}

/// A duration as Go prints it.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let fraction = format!("{:09}", duration.subsec_nanos());
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let rest = format!("{}{point}{fraction}s", seconds % 60);
    match (hours, minutes) {
        (0, 0) => rest,
        (0, _) => format!("{minutes}m{rest}"),
        _ => format!("{hours}h{minutes}m{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(name: &str) -> Item {
        Item::Begin { request: Arc::new(VqlRequest { name: name.into(), vql: "V".into() }), statement: 0 }
    }

    fn row(n: usize) -> Item {
        Item::Row { json: format!("{{\"A\":{n}}}"), columns: Arc::new(vec!["A".to_owned()]) }
    }

    /// Runs a script of pauses and items, and shows what comes out.
    async fn shown(cutting: Cutting, script: Vec<(u64, Item)>) -> Vec<String> {
        let (items_in, items) = mpsc::channel(1);
        let (out, mut responses) = mpsc::channel(1);
        tokio::spawn(async move {
            for (pause, item) in script {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if items_in.send(item).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(Pump::new(cutting, out).run(items, |_| {}));
        let mut shown = Vec::new();
        while let Some(response) = responses.recv().await {
            let response = response.unwrap();
            let line = if response.log.is_empty() {
                format!("{} {} {:?}", response.part, response.response, response.columns)
            } else {
                response.log.trim_end().to_owned()
            };
            shown.push(line);
        }
        shown
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_sent_when_it_is_full_and_another_row_comes() {
        for (rows, parts) in [(0, 1), (4, 1), (5, 1), (6, 2), (11, 3)] {
            let script = std::iter::once(begin("q")).chain((0..rows).map(row)).chain([Item::End]).map(|item| (0, item)).collect();
            let sent = shown(Cutting::new(5, 0, 0), script).await;
            assert_eq!(sent.iter().filter(|line| !line.starts_with("Time") && !line.starts_with("Starting")).count(), parts, "{sent:#?}");
        }
        let script = [begin("q"), row(0), row(1), row(2), Item::End].into_iter().map(|item| (0, item)).collect();
        assert_eq!(
            shown(Cutting::new(2, 0, 0), script).await,
            [
                "Starting query execution.",
                "Time 0: q: Sending response part 0 17 B (2 rows).",
                r#"0 [{"A":0},{"A":1}] ["A"]"#,
                "Time 0: q: Sending response part 1 9 B (1 rows).",
                r#"1 [{"A":2}] ["A"]"#,
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_unset_part_size_is_a_thousand_rows() {
        let script = std::iter::once(begin("")).chain((0..2_500).map(row)).chain([Item::End]).map(|item| (0, item)).collect();
        let sent = shown(Cutting::new(0, 0, 0), script).await;
        let announced: Vec<_> = sent.iter().filter(|line| line.starts_with("Time")).collect();
        assert_eq!(
            announced,
            [
                "Time 0: : Sending response part 0 9.9 kB (1000 rows).",
                "Time 0: : Sending response part 1 11 kB (1000 rows).",
                "Time 0: : Sending response part 2 5.5 kB (500 rows).",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slow_rows_are_not_held_back_longer_than_asked() {
        let script = vec![(0, begin("")), (900, row(0)), (1_200, row(1)), (200, row(2)), (100, Item::End)];
        assert_eq!(
            shown(Cutting::new(100, 1, 0), script).await,
            [
                "Starting query execution.",
                "Time 1: : Sending response part 0 9 B (1 rows).",
                r#"0 [{"A":0}] ["A"]"#,
                "Time 2: : Sending response part 1 17 B (2 rows).",
                r#"1 [{"A":1},{"A":2}] ["A"]"#,
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn when_time_is_up_the_rows_so_far_are_sent() {
        let script = vec![(0, begin("")), (0, row(0)), (60_000, row(1))];
        assert_eq!(
            shown(Cutting::new(100, 0, 2), script).await,
            ["Starting query execution.", "collect: <red>Timeout Error:</> Collection timed out after 2s", r#"0 [{"A":0}] ["A"]"#]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_cut_when_it_gets_too_large() {
        let big = || Item::Row { json: "x".repeat(MAX_PART), columns: Arc::default() };
        let script = [begin(""), big(), big(), Item::End].into_iter().map(|item| (0, item)).collect();
        let sent = shown(Cutting::new(100, 0, 0), script).await;
        assert_eq!(sent.iter().filter(|line| line.starts_with("Time 0: : Sending response part 1 17 MB (1 rows).")).count(), 1);
    }

    #[test]
    fn sizes_and_durations_are_written_as_stock_servers_do() {
        for (bytes, text) in
            [(2, "2 B"), (999, "999 B"), (9_891, "9.9 kB"), (11_001, "11 kB"), (1_500_028, "1.5 MB"), (5_500_100, "5.5 MB")]
        {
            assert_eq!(humanize(bytes), text);
        }
        for (millis, text) in [(2_000, "2s"), (2_000_500, "33m20.5s"), (90_000, "1m30s"), (7_200_001, "2h0m0.001s")] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}
