//! `talon golden`: runs query cases in the stock format against a server in memory and compares their output.
//!
//! A case is `NAME.in.yaml` with queries that share one scope, and `NAME.out.yaml` with the text that is expected. The scope is that of an
//! administrator of a deployment that was just made; its date stands still.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use talon_acl::Unrestricted;
use talon_artifacts::Resolver;
use talon_audit::{Log, MemoryStorage, SigningKey};
use talon_crypto::{RsaPrivateKey, SystemRng};
use talon_ids::OrgId;
use talon_server::{Clock, Server, ServerOptions, Session, Settings};
use talon_store::Memory;
use talon_vql::regex::Regex;
use talon_vql::{Arg, ArgType, CancelToken, Dict, LogSink, Query, Registry, Rows, Scope, Signature, Time, Value, json};
use talon_wire::Limits;

use crate::arguments::GoldenArgs;
use crate::output::print_line;
use crate::query::environment;

/// Nanoseconds since 1970 at which cases take place.
const MOMENT: i128 = 1_590_938_885_000_000_010;
/// How long one case may take.
const CASE_LIMIT: Duration = Duration::from_secs(30);
/// Rows in one part of the output.
const PART: usize = 1000;
/// Lines of the log that fail a case.
const FAILURES: &str = r"Symbol .+ not found|Field .+ Expecting a .+ arg type, not|Artifact .+ not found|Order by column .+ not present in row|PANIC runtime error:|Extra unrecognized arg";

pub(crate) fn run(arguments: &GoldenArgs) -> Result<()> {
    let filter =
        Regex::ignoring_case(arguments.filter.as_deref().unwrap_or_default().as_bytes()).map_err(|error| anyhow!("--filter: {error}"))?;
    let variables = environment(&arguments.env)?;
    let mut failed = 0_u32;
    let mut passed = 0_u32;
    for path in cases(&arguments.folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().trim_end_matches(".in.yaml").to_owned();
        if !filter.is_match(name.as_bytes()) {
            continue;
        }
        match judge(&path, &variables) {
            Ok(()) => {
                passed = passed.saturating_add(1);
                print_line(&format!("ok    {name}"))?;
            }
            Err(reason) => {
                failed = failed.saturating_add(1);
                print_line(&format!("FAIL  {name}: {reason:#}"))?;
            }
        }
    }
    print_line(&format!("{passed} passed, {failed} failed"))?;
    match (passed, failed) {
        (0, 0) => bail!("there are no cases *.in.yaml in {} that match", arguments.folder.display()),
        (_, 0) => Ok(()),
        _ => bail!("{failed} cases failed"),
    }
}

fn cases(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut cases: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    cases.retain(|path| path.to_string_lossy().ends_with(".in.yaml"));
    cases.sort();
    Ok(cases)
}

/// Runs one case; an error says where its output differs.
fn judge(path: &Path, variables: &[(String, String)]) -> Result<()> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let case = Case::parse(&read(path)?)?;
    let expected = read(&PathBuf::from(path.to_string_lossy().replace(".in.yaml", ".out.yaml")))?;
    let actual = case.run(variables)?;
    let (mut ours, mut theirs) = (actual.trim().lines(), expected.trim().lines());
    let mut query = String::new();
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => return Ok(()),
            (Some(ours), Some(theirs)) if ours == theirs => {
                if ours.starts_with("Query: ") {
                    query = ours.to_owned();
                }
            }
            (ours, theirs) => {
                let shown = |line: Option<&str>| line.map_or_else(|| "nothing".to_owned(), |line| format!("{line:?}"));
                bail!("after {query:?}: expected {}, got {}", shown(theirs), shown(ours));
            }
        }
    }
}

/// A case file.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct Case {
    parameters: BTreeMap<String, String>,
    queries: Vec<String>,
    transforms: Vec<Transform>,
    /// The comment lines above each query.
    #[serde(skip)]
    comments: Vec<Vec<String>>,
}

/// A replacement in the output.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct Transform {
    scope: String,
    search: String,
    regexp: String,
    replace: String,
}

impl Case {
    fn parse(text: &str) -> Result<Self> {
        let mut case: Self = serde_saphyr::from_str(text).map_err(|error| anyhow!("not a case: {}", error.without_snippet()))?;
        case.comments = comments(text);
        if case.comments.len() != case.queries.len() {
            bail!("not a case: the list of queries is not one item on each line");
        }
        Ok(case)
    }

    fn run(self, variables: &[(String, String)]) -> Result<String> {
        let variables = variables.to_vec();
        let cancel = CancelToken::new();
        let watched = cancel.clone();
        let worker = talon_vql::spawn_query_thread("golden", move || self.evaluate(&variables, cancel)).context("cannot start a thread")?;
        std::thread::spawn(move || {
            if !watched.wait(CASE_LIMIT) {
                watched.cancel("the case took too long");
            }
        });
        worker.join().map_err(|_| anyhow!("the case ended by a defect in the program"))?
    }

    fn evaluate(&self, variables: &[(String, String)], cancel: CancelToken) -> Result<String> {
        let folder = std::env::temp_dir().join(format!("talon-golden-{}", std::process::id()));
        let log = Arc::new(CaseLog::new()?);
        let session = session()?;
        let scope = self.scope(&session, variables, &log, cancel, &folder.to_string_lossy());
        let mut out = String::new();
        for (text, comments) in self.queries.iter().zip(&self.comments) {
            comments.iter().for_each(|comment| out.push_str(&format!("{comment}\n")));
            out.push_str(&format!("Query: {text}\n"));
            let statement = talon_vql::parse_statement(text).map_err(|error| anyhow!("{error} in {text:?}"))?;
            log.log(&format!("Running query {text}"));
            let mut query = Query::new(&scope, &statement);
            let mut part = 0_usize;
            loop {
                let rows: Vec<Value> = query.by_ref().take(PART).map(Value::Dict).collect();
                if rows.is_empty() && part > 0 {
                    break;
                }
                let last = rows.len() < PART;
                out.push_str(&format!("Output: {}\n\n", self.transformed(&json::encode_pretty(&Value::list(rows)), &scope)?));
                part = part.saturating_add(1);
                if last {
                    break;
                }
            }
        }
        drop(std::fs::remove_file(folder));
        match log.failure() {
            Some(line) => bail!("the log says {line:?}"),
            None => Ok(out),
        }
    }

    fn scope(&self, session: &Session, variables: &[(String, String)], log: &Arc<CaseLog>, cancel: CancelToken, output: &str) -> Scope {
        let authority = Arc::new(session.authority().clone());
        let mut environment = talon_endpoint_vql::with_authority(session.environment(), authority)
            .log(log.clone())
            .clock(Arc::new(CaseClock(Instant::now())))
            .random(Arc::new(talon_vql::Counter::default()))
            .artifacts(Arc::new(Resolver::new(session.org().artifacts().clone())))
            .cancel(cancel)
            .extension(log.clone())
            .variable("_SessionId", "F.Golden")
            .variable("GoldenOutput", output.to_owned());
        let given = variables.iter().map(|(name, value)| (name, value));
        for (name, value) in given.chain(&self.parameters) {
            environment = environment.variable(name.clone(), value.clone());
        }
        environment.open()
    }

    fn transformed(&self, text: &str, scope: &Scope) -> Result<String> {
        let mut text = text.to_owned();
        for transform in &self.transforms {
            if !transform.scope.is_empty() {
                let value = scope.variable(&transform.scope).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
                if !value.is_empty() {
                    text = text.replace(&value, &transform.replace);
                }
            } else if !transform.regexp.is_empty() {
                let regex = Regex::exact(transform.regexp.as_bytes()).map_err(|error| anyhow!("Transforms: {error}"))?;
                let hay = text.clone().into_bytes();
                let replaced = regex.replace_all(&hay, |groups, out| regex.expand(transform.replace.as_bytes(), &hay, groups, out));
                text = String::from_utf8_lossy(&replaced).into_owned();
            } else if !transform.search.is_empty() {
                text = text.replace(&transform.search, &transform.replace);
            }
        }
        Ok(text)
    }
}

/// The comments directly above the items of the list of queries. YAML readers drop them; the expected output has them.
fn comments(text: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| line.trim_end() != "Queries:").skip(1).peekable();
    let (mut all, mut pending) = (Vec::new(), Vec::new());
    let mut indent = None;
    for line in lines.by_ref() {
        let content = line.trim_start();
        let depth = line.len().saturating_sub(content.len());
        let starts_item = content == "-" || content.starts_with("- ");
        if starts_item && indent.is_none_or(|indent| indent == depth) {
            indent = Some(depth);
            all.push(std::mem::take(&mut pending));
        } else if content.starts_with('#') && indent.is_none_or(|indent| depth <= indent) {
            pending.push(content.to_owned());
        } else if content.is_empty() || indent.is_none_or(|indent| depth > indent) {
            pending.clear();
        } else {
            break;
        }
    }
    all
}

/// A deployment in memory, and its administrator.
fn session() -> Result<Session> {
    let storage = Arc::new(MemoryStorage::default());
    let audit = Log::open(storage, SigningKey::generate("golden", &SystemRng)?)?;
    let mut registry = talon_endpoint_vql::registry();
    registry.merge(talon_server_vql::registry());
    add_built_ins(&mut registry);
    let superuser = "VelociraptorServer";
    let server = Server::open(ServerOptions {
        settings: Settings::new(superuser.parse()?, "golden"),
        certificate_pem: String::new(),
        certificate_name: superuser.to_owned(),
        key: RsaPrivateKey::generate()?,
        engine: Arc::new(Memory::new()),
        audit: Arc::new(audit),
        restriction: Arc::new(Unrestricted),
        clock: Arc::new(StandingClock(AtomicU64::new(u64::try_from(MOMENT)?))),
        rng: Arc::new(SystemRng),
        registry: Arc::new(registry),
        extensions: talon_vql::Extensions::default(),
        limits: Limits::default(),
    })?;
    Ok(server.own_session(&OrgId::root())?)
}

/// What queries of cases may call beside everything else.
fn add_built_ins(registry: &mut Registry) {
    const READ_LOGS: Signature = Signature::plugin("test_read_logs", "Takes the lines out of the case's log.");
    const MOCK_TIME: Signature = Signature::function("mock_time", "Accepted; the time of a case stands still.").args(&[Arg::required(
        "now",
        ArgType::Any,
        "The time.",
    )]);
    registry.plugin(READ_LOGS, |call| {
        let lines = call.scope().extension::<CaseLog>().map(|log| log.take()).unwrap_or_default();
        Ok(Rows::of(lines.into_iter().map(|line| Dict::new().with("Log", format!("Velociraptor: {line}\n")))))
    });
    registry.function(MOCK_TIME, |call| Ok(call.value("now")));
}

/// The log of a case.
struct CaseLog {
    fatal: Regex,
    state: Mutex<(Vec<String>, Option<String>)>,
}

impl CaseLog {
    fn new() -> Result<Self> {
        let fatal = Regex::ignoring_case(FAILURES.as_bytes()).map_err(|error| anyhow!("{error}"))?;
        Ok(Self { fatal, state: Mutex::default() })
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// The first line that fails the case.
    fn failure(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

impl LogSink for CaseLog {
    fn log(&self, line: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.fatal.is_match(line.as_bytes()) {
            state.1.get_or_insert_with(|| line.to_owned());
        }
        state.0.push(line.to_owned());
    }
}

/// The clock of a case: its date stands still, but waiting waits and timeouts pass.
struct CaseClock(Instant);

impl talon_vql::Clock for CaseClock {
    fn now(&self) -> Time {
        Time::from_unix_nanos(MOMENT)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock of the services that never moves.
#[derive(Debug)]
struct StandingClock(AtomicU64);

impl Clock for StandingClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_belong_to_the_item_below() {
        let text = "Parameters:\n  A: b\nQueries:\n# one\n- SELECT 1\n  # deeper\n\n# lost\n\n# two\n# three\n- |\n  # inside\n  SELECT 2\nTransforms:\n- Search: x\n";
        assert_eq!(comments(text), [vec!["# one".to_owned()], vec!["# two".to_owned(), "# three".to_owned()]]);
    }

    #[test]
    fn a_case_prints_queries_and_rows() {
        let case = Case::parse(
            "Parameters:\n  P: x\nQueries:\n# c\n- LET A = P\n- SELECT A FROM scope()\nTransforms:\n- Search: x\n  Replace: y\n",
        )
        .unwrap();
        assert_eq!(
            case.run(&[]).unwrap(),
            "# c\nQuery: LET A = P\nOutput: []\n\nQuery: SELECT A FROM scope()\nOutput: [\n {\n  \"A\": \"y\"\n }\n]\n\n"
        );
    }

    #[test]
    fn a_symbol_that_is_not_there_fails_the_case() {
        let case = Case::parse("Queries:\n- SELECT Nothing FROM scope()\n").unwrap();
        assert!(case.run(&[]).unwrap_err().to_string().contains("Symbol Nothing not found"));
    }
}
