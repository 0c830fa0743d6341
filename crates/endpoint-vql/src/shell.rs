//! Commands that a query talks with: `shell_session()` starts one, `shell_session_control()` writes to it or ends it.

use std::any::Any;
use std::collections::HashMap;
use std::io::Write;
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use talon_acl::{Execute, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Object, Registry, Rows, Scope, Signature, Value};

use crate::authority::permit;
use crate::execve::{self, Output, Running};

/// The most sessions at one time.
const MAX_SESSIONS: usize = 100;
/// Pieces of input that wait for the command.
const WAITING: usize = 64;

/// The sessions of this host, so that one query starts what another controls: an extension of the environment. Without it they belong to their query.
#[derive(Default)]
pub struct ShellSessions(Mutex<HashMap<String, Arc<Session>>>);

/// A command that runs.
struct Session {
    name: String,
    pid: u32,
    /// Gone once the input is closed.
    input: Mutex<Option<SyncSender<Vec<u8>>>>,
    /// Taken by the first who reads the output.
    output: Mutex<Option<Receiver<Output>>>,
    running: Mutex<Running>,
}

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function(
            "shell_session",
            "Starts a command that other calls write to. Its output are the rows of what this gives: `SELECT * FROM` it.",
        )
        .args(
            const {
                &[
                    Arg::required("argv", ArgType::Strings, "The program and its arguments."),
                    Arg::optional("env", ArgType::Dict, "Environment variables for it."),
                    Arg::optional("cwd", ArgType::String, "The folder to run it in."),
                    Arg::optional("secret", ArgType::String, "The secret that has the start of the command line."),
                    Arg::optional("name", ArgType::String, "The name by which it is controlled; the program's unless given."),
                ]
            },
        )
        .permissions(&[Permission::Execve])
        .version(1),
        start,
    );
    registry.function(
        Signature::function("shell_session_control", "Writes to a command that shell_session() started, or ends it.")
            .args(
                const {
                    &[
                        Arg::optional("name", ArgType::String, "Its name; may be left out while there is only one."),
                        Arg::optional("stdin", ArgType::String, "What to write to it."),
                        Arg::optional("close_stdin", ArgType::Bool, "Close its input afterwards."),
                        Arg::optional("kill", ArgType::Bool, "End it at once."),
                    ]
                },
            )
            .permissions(&[Permission::Execve])
            .version(1),
        control,
    );
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(scope: &Scope) -> Arc<ShellSessions> {
    scope.extension::<ShellSessions>().unwrap_or_else(|| scope.shared::<ShellSessions>())
}

fn start(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let permit: Permit<Execute> = permit(scope)?;
    let sessions = place(scope);
    let (mut command, program) = execve::command(&call)?;
    let name = call.opt_string("name").filter(|name| !name.is_empty()).unwrap_or(program);
    let mut known = locked(&sessions.0);
    known.retain(|_, session| !locked(&session.running).ended());
    if known.contains_key(&name) {
        return Err(CallError::failed(format!("a session called {name} runs already; end it with shell_session_control(kill=TRUE)")));
    }
    if known.len() >= MAX_SESSIONS {
        return Err("too many sessions run".into());
    }
    command.stdin(std::process::Stdio::piped());
    let (mut running, output) = Running::start(&permit, &mut command, scope)?;
    let input = running.take_stdin().map(feed).transpose()?;
    let session = Arc::new(Session {
        name: name.clone(),
        pid: running.id(),
        input: Mutex::new(input),
        output: Mutex::new(Some(output)),
        running: Mutex::new(running),
    });
    known.insert(name.clone(), session.clone());
    drop(known);
    // A command lives no longer than the query that started it.
    let (weak, mine) = (Arc::downgrade(&sessions), Arc::downgrade(&session));
    scope.on_query_close(move || {
        let (Some(sessions), Some(session)) = (weak.upgrade(), mine.upgrade()) else { return };
        locked(&session.running).kill();
        let mut known = locked(&sessions.0);
        if known.get(&name).is_some_and(|known| Arc::ptr_eq(known, &session)) {
            known.remove(&name);
        }
    });
    Ok(Value::Object(Arc::new(Handle(session))))
}

/// Writes to the command on a thread: it may be slow to read.
fn feed(mut stdin: ChildStdin) -> Result<SyncSender<Vec<u8>>, CallError> {
    let (sender, receiver) = sync_channel::<Vec<u8>>(WAITING);
    std::thread::Builder::new().name("shell input".to_owned()).spawn(move || {
        for piece in receiver {
            if stdin.write_all(&piece).and_then(|()| stdin.flush()).is_err() {
                return;
            }
        }
    })?;
    Ok(sender)
}

fn control(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let _may: Permit<Execute> = permit(scope)?;
    let sessions = place(scope);
    let session = {
        let known = locked(&sessions.0);
        match call.opt_string("name").filter(|name| !name.is_empty()) {
            Some(name) => known.get(&name).cloned().ok_or_else(|| CallError::failed(format!("no session is called {name}")))?,
            None => {
                let mut all = known.values();
                match (all.next(), all.next()) {
                    (Some(only), None) => only.clone(),
                    (None, _) => return Err("no session runs".into()),
                    _ => return Err("several sessions run; say which by name".into()),
                }
            }
        }
    };
    if let Some(text) = call.text("stdin") {
        let mut piece = text.as_bytes().to_vec();
        loop {
            let Some(input) = locked(&session.input).clone() else { return Err("the input of the session is closed".into()) };
            match input.try_send(piece) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return Err("the session does not read any more".into()),
                Err(TrySendError::Full(back)) => piece = back,
            }
            if scope.sleep(Duration::from_millis(10)) {
                return Err(CallError::Silent);
            }
        }
    }
    if call.bool("close_stdin") {
        *locked(&session.input) = None;
    }
    if call.bool("kill") {
        locked(&session.running).kill();
    }
    Ok(Value::Bool(true))
}

/// A session as a value: its rows are what the command says.
struct Handle(Arc<Session>);

impl Object for Handle {
    fn type_name(&self) -> &'static str {
        "shell_session"
    }

    fn to_value(&self) -> Value {
        Dict::new().with("Name", self.0.name.as_str()).with("Pid", i64::from(self.0.pid)).into()
    }

    fn member(&self, name: &str) -> Option<Value> {
        match name {
            "Name" => Some(self.0.name.as_str().into()),
            "Pid" => Some(i64::from(self.0.pid).into()),
            _ => None,
        }
    }

    fn rows(&self, scope: &Scope) -> Option<Rows> {
        let Some(output) = locked(&self.0.output).take() else {
            scope.log("shell_session: another query reads the output of this session already");
            return Some(Rows::none());
        };
        Some(self.0.clone().read(output, scope.clone()))
    }

    fn is_true(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Session {
    fn read(self: Arc<Self>, output: Receiver<Output>, scope: Scope) -> Rows {
        let mut ended = false;
        Rows::from_fn(move || {
            while !ended {
                if scope.sleep(Duration::ZERO) {
                    return None;
                }
                match execve::next(&output) {
                    execve::Next::Piece(Output::Stdout(piece)) => return Some(Ok(execve::row(&piece, &[], None, false).into())),
                    execve::Next::Piece(Output::Stderr(piece)) => return Some(Ok(execve::row(&[], &piece, None, false).into())),
                    execve::Next::Nothing => {}
                    execve::Next::End => {
                        ended = true;
                        let code = locked(&self.running).wait();
                        return Some(code.map(|code| execve::row(&[], &[], Some(code), true).into()).map_err(Into::into));
                    }
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    fn environment(policy: EndpointPolicy) -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), policy));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).clock(Arc::new(crate::SystemClock::new()))
    }

    fn rows(scope: &Scope, vql: &str) -> Vec<String> {
        Query::new(scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    #[test]
    fn a_session_reads_and_answers() {
        let scope = environment(EndpointPolicy::default()).open();
        rows(&scope, "LET S <= shell_session(argv=['sh'], name='one')");
        assert_eq!(
            rows(&scope, "SELECT shell_session_control(name='one', stdin='echo $((40 + 2))\n') AS Sent, S.Name AS N FROM scope()"),
            [r#"{"Sent":true,"N":"one"}"#]
        );
        assert_eq!(rows(&scope, "SELECT Stdout FROM S LIMIT 1"), [r#"{"Stdout":"42\n"}"#]);
        rows(&scope, "LET T <= shell_session(argv=['cat'], name='two')");
        assert_eq!(rows(&scope, "SELECT shell_session_control(stdin='x') AS A FROM scope()"), [r#"{"A":null}"#], "two sessions run");
        rows(&scope, "LET _ <= shell_session_control(name='two', stdin='bye', close_stdin=TRUE)");
        assert_eq!(
            rows(&scope, "SELECT Stdout, ReturnCode, Complete FROM T"),
            [r#"{"Stdout":"bye","ReturnCode":0,"Complete":false}"#, r#"{"Stdout":"","ReturnCode":0,"Complete":true}"#]
        );
    }

    #[test]
    fn a_command_ends_with_its_query() {
        let sessions = Arc::new(ShellSessions::default());
        let scope = environment(EndpointPolicy::default()).extension(sessions.clone()).open();
        rows(&scope, "LET _ <= shell_session(argv=['sleep', '600'])");
        let session = locked(&sessions.0).values().next().cloned().unwrap();
        assert!(!locked(&session.running).ended());
        drop(scope);
        assert!(locked(&session.running).ended() && locked(&sessions.0).is_empty());
    }

    #[test]
    fn an_endpoint_that_forbids_it_starts_nothing() {
        let log = Arc::new(MemoryLog::default());
        let scope = environment(EndpointPolicy { prevent_execve: true }).log(log.clone()).open();
        assert_eq!(
            rows(&scope, "SELECT shell_session(argv='sh') AS A, shell_session_control(kill=TRUE) AS B FROM scope()"),
            [r#"{"A":null,"B":null}"#]
        );
        assert_eq!(log.take().iter().filter(|line| line.contains("prevent_execve")).count(), 2);
    }
}
