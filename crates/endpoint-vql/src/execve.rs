//! `execve()`: runs a command and gives its output as rows.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use talon_acl::{Execute, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Scope, Signature, Value};

use crate::authority::permit;
use crate::host;

/// Bytes of output in one row unless the query says otherwise.
const LENGTH: usize = 10 << 20;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("execve", "Runs a command; its output comes in rows, the last of which has the exit code.")
            .args(
                const {
                    &[
                        Arg::required("argv", ArgType::Strings, "The program and its arguments."),
                        Arg::optional("sep", ArgType::String, "Cut the output at this text."),
                        Arg::optional("length", ArgType::Int, "At most this many bytes of output in one row."),
                        Arg::optional("env", ArgType::Dict, "Environment variables for it."),
                        Arg::optional("cwd", ArgType::String, "The folder to run it in."),
                    ]
                },
            )
            .version(2)
            .permissions(&[Permission::Execve]),
        execve,
    );
}

enum Output {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// Kills the command when the query ends before it does.
struct Running {
    child: Child,
    scope: Scope,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn execve(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let permit: Permit<Execute> = permit(&scope)?;
    let argv = call.strings("argv");
    let (program, arguments) = argv.split_first().ok_or_else(|| CallError::failed("argv must not be empty"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(folder) = call.opt_string("cwd").filter(|folder| !folder.is_empty()) {
        command.current_dir(folder);
    }
    for (name, value) in call.dict("env").iter().flat_map(|env| env.iter()) {
        command.env(name.as_str(), talon_vql::text::display(value));
    }
    let mut child = host::spawn(&permit, &mut command).map_err(|error| CallError::failed(format!("{program}: {error}")))?;
    let (sender, receiver) = sync_channel(16);
    if let Some(stdout) = child.stdout.take() {
        pump(stdout, sender.clone(), Output::Stdout)?;
    }
    if let Some(stderr) = child.stderr.take() {
        pump(stderr, sender, Output::Stderr)?;
    }
    let length = call.opt_int("length").and_then(|length| usize::try_from(length).ok()).filter(|length| *length > 0).unwrap_or(LENGTH);
    let separator = call.string("sep").into_bytes();
    let session =
        Session { running: Running { child, scope }, receiver, separator, length, stdout: Vec::new(), stderr: Vec::new(), ended: false };
    Ok(Rows::try_of(session))
}

/// Reads a pipe on a thread of its own, until it ends or nobody listens.
fn pump(mut pipe: impl Read + Send + 'static, sender: SyncSender<Output>, wrap: fn(Vec<u8>) -> Output) -> Result<(), CallError> {
    thread::Builder::new().name("execve".to_owned()).spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(got @ 1..) = pipe.read(&mut buffer) {
            let piece = buffer.get(..got).unwrap_or_default().to_vec();
            if sender.send(wrap(piece)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

struct Session {
    running: Running,
    receiver: Receiver<Output>,
    separator: Vec<u8>,
    length: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ended: bool,
}

impl Iterator for Session {
    type Item = Result<Dict, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(piece) = self.take_piece() {
                return Some(Ok(row(&piece, &std::mem::take(&mut self.stderr), None, false)));
            }
            if self.running.scope.stopped() {
                self.ended = true;
                return None;
            }
            match self.receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(Output::Stdout(piece)) => self.stdout.extend(piece),
                Ok(Output::Stderr(piece)) => {
                    self.stderr.extend(piece);
                    self.stderr.truncate(self.length);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.ended = true;
                    let status = match self.running.child.wait() {
                        Ok(status) => status,
                        Err(error) => return Some(Err(error.into())),
                    };
                    let code = status.code().map_or(-1, i64::from);
                    return Some(Ok(row(&std::mem::take(&mut self.stdout), &std::mem::take(&mut self.stderr), Some(code), true)));
                }
            }
        }
    }
}

impl Session {
    /// A piece that ends at the separator, or has the most bytes that a row may have.
    fn take_piece(&mut self) -> Option<Vec<u8>> {
        if !self.separator.is_empty()
            && let Some(at) = self.stdout.windows(self.separator.len()).position(|window| window == self.separator)
        {
            let piece: Vec<u8> = self.stdout.drain(..at).collect();
            self.stdout.drain(..self.separator.len());
            return Some(piece);
        }
        (self.stdout.len() >= self.length).then(|| self.stdout.drain(..self.length).collect())
    }
}

fn row(stdout: &[u8], stderr: &[u8], code: Option<i64>, complete: bool) -> Dict {
    Dict::new()
        .with("Stdin", "")
        .with("Stdout", Value::str(stdout))
        .with("Stderr", Value::str(stderr))
        .with("ReturnCode", code.unwrap_or(0))
        .with("Complete", complete)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{CancelToken, Environment, MemoryLog, Query, json, parse_statement};

    fn environment(policy: EndpointPolicy) -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), policy));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority)
    }

    fn rows(vql: &str) -> Vec<String> {
        let scope = environment(EndpointPolicy::default()).open();
        Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    #[test]
    fn output_and_exit_code_come_as_rows() {
        assert_eq!(
            rows("SELECT Stdout, Stderr, ReturnCode, Complete FROM execve(argv=['sh', '-c', 'echo out; echo err >&2; exit 3'])"),
            [r#"{"Stdout":"out\n","Stderr":"err\n","ReturnCode":3,"Complete":true}"#]
        );
        assert_eq!(
            rows("SELECT Stdout FROM execve(argv=['printf', 'a;b;c'], sep=';')"),
            [r#"{"Stdout":"a"}"#, r#"{"Stdout":"b"}"#, r#"{"Stdout":"c"}"#]
        );
    }

    #[test]
    fn an_endpoint_that_forbids_it_runs_nothing() {
        let log = Arc::new(MemoryLog::default());
        let scope = environment(EndpointPolicy { prevent_execve: true }).log(log.clone()).open();
        assert_eq!(Query::new(&scope, &parse_statement("SELECT * FROM execve(argv='true')").unwrap()).count(), 0);
        assert!(log.take().iter().any(|line| line.contains("execve: PermissionDenied") && line.contains("prevent_execve")));
    }

    #[test]
    fn a_cancelled_query_kills_its_command() {
        let cancel = CancelToken::new();
        let scope = environment(EndpointPolicy::default()).cancel(cancel.clone()).open();
        let mut query = Query::new(
            &scope,
            &parse_statement("SELECT Stdout FROM execve(argv=['sh', '-c', 'echo up; exec sleep 600'], sep='\n')").unwrap(),
        );
        assert!(query.next().is_some());
        cancel.cancel("test");
        assert!(query.next().is_none());
    }
}
