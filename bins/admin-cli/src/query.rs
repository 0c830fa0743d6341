//! `talon query`: over the API, or on this machine as the person who runs it.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use talon_acl::{Authority, EndpointPolicy};
use talon_artifacts::{Repository, Resolver};
use talon_proto::{VqlCollectorArgs, VqlEnv, VqlRequest, VqlResponse};
use talon_vql::{CancelToken, Dict, Environment, LogSink, Query, StopReason, Value, json};

use crate::api::{Api, configured};
use crate::arguments::{Format, Globals, QueryArgs};
use crate::config::org;
use crate::output::{Output, RowWriter};

pub(crate) fn run(globals: &Globals, query: &QueryArgs) -> Result<()> {
    let env = environment(&query.env)?;
    match configured(globals)? {
        Some(connection) => remote(globals, query, env, &mut Api::connect(&connection)?),
        None if globals.org.is_some() => bail!("--org needs a server: give its API client's file with -a"),
        None => local(globals, query, env),
    }
}

/// Splits NAME=VALUE.
pub(crate) fn environment(env: &[String]) -> Result<Vec<(String, String)>> {
    let split = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(anyhow!("--env {text}: this must be NAME=VALUE")),
    };
    env.iter().map(split).collect()
}

fn remote(globals: &Globals, query: &QueryArgs, env: Vec<(String, String)>, api: &mut Api) -> Result<()> {
    let org = if globals.org.is_some() { org(globals)?.to_string() } else { String::new() };
    let request = VqlCollectorArgs {
        query: query.queries.iter().map(|vql| VqlRequest { vql: vql.clone(), ..VqlRequest::default() }).collect(),
        env: env.into_iter().map(|(key, value)| VqlEnv { key, value, ..VqlEnv::default() }).collect(),
        max_row: query.max_row,
        timeout: query.timeout,
        org_id: org,
        ..VqlCollectorArgs::default()
    };
    let mut answers = Answers::new(std::io::stdout().lock(), query.format);
    let log = StderrLog { verbose: globals.verbose };
    api.query(request, |answer| {
        if !answer.log.is_empty() {
            log.log(answer.log.trim_end());
        }
        answers.take(&answer)
    })?;
    answers.end()
}

/// Tells the statements of an answer apart: each has parts that count up.
struct Answers<W: Write> {
    writer: RowWriter<W>,
    current: Option<(String, u64, u64)>,
}

impl<W: Write> Answers<W> {
    fn new(out: W, format: Format) -> Self {
        Self { writer: RowWriter::new(out, format), current: None }
    }

    fn take(&mut self, answer: &VqlResponse) -> Result<()> {
        if answer.response.is_empty() {
            return Ok(());
        }
        let vql = answer.query.as_ref().map(|query| query.vql.clone()).unwrap_or_default();
        let same = self.current.as_ref().is_some_and(|(text, id, part)| (text, *id) == (&vql, answer.query_id) && answer.part > *part);
        if !same && self.current.is_some() {
            self.writer.end()?;
        }
        self.current = Some((vql, answer.query_id, answer.part));
        for row in rows(&answer.response)? {
            self.writer.row(&row)?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        if self.current.is_some() { self.writer.end() } else { Ok(()) }
    }
}

/// The rows of one message.
pub(crate) fn rows(response: &str) -> Result<Vec<Arc<Dict>>> {
    let row = |value: &Value| match value {
        Value::Dict(row) => Ok(row.clone()),
        _ => Err(anyhow!("the server sent a row that is no object")),
    };
    match json::decode(response.as_bytes()).context("the server sent rows that are not JSON")? {
        Value::List(list) => list.iter().map(row).collect(),
        _ => bail!("the server sent rows that are no array"),
    }
}

/// Lines of the query's log on stderr.
struct StderrLog {
    verbose: bool,
}

impl LogSink for StderrLog {
    fn log(&self, line: &str) {
        if self.verbose || !is_chatter(line) {
            eprintln!("{line}");
        }
    }
}

/// What servers say about every query.
pub(crate) fn is_chatter(line: &str) -> bool {
    ["Starting query execution", "Time ", "DEBUG:"].iter().any(|start| line.starts_with(start))
}

fn local(globals: &Globals, query: &QueryArgs, env: Vec<(String, String)>) -> Result<()> {
    let log = StderrLog { verbose: globals.verbose };
    let (texts, format, timeout) = (query.queries.clone(), query.format, query.timeout);
    let work = move || evaluate(&texts, format, timeout, env, log);
    let thread = talon_vql::spawn_query_thread("query", work).context("cannot start a thread for the query")?;
    thread.join().map_err(|_| anyhow!("the query ended by a defect in the program"))?
}

fn evaluate(texts: &[String], format: Format, timeout: u64, env: Vec<(String, String)>, log: StderrLog) -> Result<()> {
    let programs = texts.iter().map(|text| talon_vql::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let cancel = CancelToken::new();
    if timeout > 0 {
        let watched = cancel.clone();
        std::thread::spawn(move || {
            if !watched.wait(Duration::from_secs(timeout)) {
                watched.cancel(format!("Query timed out after {timeout} seconds"));
            }
        });
    }
    let authority = Arc::new(Authority::endpoint("local".parse()?, EndpointPolicy::default()));
    let environment = Environment::new(Arc::new(talon_endpoint_vql::registry()))
        .log(Arc::new(log))
        .clock(Arc::new(talon_endpoint_vql::SystemClock::default()))
        .artifacts(Arc::new(Resolver::new(Arc::new(Repository::with_built_ins()))))
        .cancel(cancel.clone());
    let environment = env.into_iter().fold(environment, |environment, (name, value)| environment.variable(name, value));
    let scope = talon_endpoint_vql::with_authority(environment, authority).open();
    let mut writer = RowWriter::new(Output::stdout(), format);
    for statement in programs.iter().flat_map(|program| &program.statements) {
        let mut query = Query::new(&scope, statement);
        for row in query.by_ref() {
            writer.row(&row)?;
        }
        if !query.is_let() {
            writer.end()?;
        }
    }
    match cancel.reason() {
        Some(StopReason::Cancelled(reason)) => bail!("{reason}"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(vql: &str, query_id: u64, part: u64, response: &str) -> VqlResponse {
        VqlResponse {
            query: Some(VqlRequest { vql: vql.to_owned(), ..VqlRequest::default() }),
            query_id,
            part,
            response: response.to_owned(),
            ..VqlResponse::default()
        }
    }

    fn written(answers: &[VqlResponse]) -> String {
        let mut out = Vec::new();
        let mut reader = Answers::new(&mut out, Format::Json);
        answers.iter().for_each(|answer| reader.take(answer).unwrap());
        reader.end().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn parts_of_one_statement_are_one_array() {
        let text = written(&[answer("a", 0, 0, "[{\"A\":1}]"), answer("a", 0, 1, "[{\"A\":2}]")]);
        assert_eq!(text, "[\n {\"A\":1},\n {\"A\":2}\n]\n");
    }

    #[test]
    fn statements_are_told_apart() {
        let text = written(&[answer("a", 0, 0, "[]"), answer("a", 1, 0, "[{\"A\":1}]"), answer("b", 0, 0, "[]"), answer("b", 0, 0, "[]")]);
        assert_eq!(text, "[]\n[\n {\"A\":1}\n]\n[]\n[]\n");
        let log = VqlResponse { log: "x".to_owned(), ..VqlResponse::default() };
        assert_eq!(written(&[log]), "");
    }

    #[test]
    fn rows_keep_their_order_and_their_numbers() {
        let rows = rows(r#"[{"z":18446744073709551615,"a":1.5}]"#).unwrap();
        let text: Vec<_> = rows.iter().map(|row| json::encode(&Value::Dict(row.clone()))).collect();
        assert_eq!(text, [r#"{"z":18446744073709551615,"a":1.5}"#]);
        assert!(super::rows("{}").is_err() && super::rows("[1]").is_err() && super::rows("x").is_err());
    }

    #[test]
    fn variables_need_a_name() {
        assert_eq!(environment(&["A=b=c".to_owned()]).unwrap(), [("A".to_owned(), "b=c".to_owned())]);
        assert!(environment(&["A".to_owned()]).is_err() && environment(&["=b".to_owned()]).is_err());
    }
}
