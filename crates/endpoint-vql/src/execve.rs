//! `execve()`: runs a command and gives its output as rows.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use talon_acl::{Execute, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, CancelToken, Dict, Registry, Rows, Scope, Signature, Value};

use crate::authority::permit;
use crate::host;
use crate::secrets;

/// Bytes of output in one row unless the query says otherwise.
const LENGTH: usize = 10 << 20;
/// The most that a query may ask for in one row.
const MAX_LENGTH: usize = 100 << 20;

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
                        Arg::optional("secret", ArgType::String, "The secret that has the start of the command line."),
                    ]
                },
            )
            .version(2)
            .permissions(&[Permission::Execve]),
        execve,
    );
}

/// A piece of what a command says.
pub(crate) enum Output {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// Kills the command when it is dropped before the command ends.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    /// Starts a command whose output comes through a channel.
    pub(crate) fn start(permit: &Permit<Execute>, command: &mut Command, scope: &Scope) -> Result<(Self, Receiver<Output>), CallError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = host::spawn(permit, command).map_err(|error| CallError::failed(format!("{program}: {error}")))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let running = Self(child);
        let (sender, receiver) = sync_channel(16);
        let cancel = scope.cancel_token().clone();
        if let Some(stdout) = stdout {
            pump(stdout, sender.clone(), Output::Stdout, cancel.clone())?;
        }
        if let Some(stderr) = stderr {
            pump(stderr, sender, Output::Stderr, cancel)?;
        }
        Ok((running, receiver))
    }

    pub(crate) fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.0.stdin.take()
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Ends the command at once.
    pub(crate) fn kill(&mut self) {
        if self.ended() {
            return;
        }
        // The command leads a group of its own, in which its children are.
        let group = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        let _already_gone = group.map(|group| rustix::process::kill_process_group(group, rustix::process::Signal::KILL));
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }

    /// Whether the command has ended.
    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// The exit code of a command that has closed its output; -1 when a signal ended it.
    pub(crate) fn wait(&mut self) -> std::io::Result<i64> {
        Ok(self.0.wait()?.code().map_or(-1, i64::from))
    }
}

/// The command that a call describes, with its output caught, and the name of its program.
pub(crate) fn command(call: &Call) -> Result<(Command, String), CallError> {
    let secret = secrets::of_call(call, "Execve Secrets")?.unwrap_or_default();
    let mut argv: Vec<String> = secret.text("prefix_commandline").map(words).unwrap_or_default();
    argv.extend(call.strings("argv"));
    let (program, arguments) = argv.split_first().ok_or_else(|| CallError::failed("argv must not be empty"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let folder = call.opt_string("cwd").filter(|folder| !folder.is_empty()).or_else(|| secret.text("cwd").map(str::to_owned));
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    for (name, value) in call.dict("env").iter().flat_map(|env| env.iter()) {
        command.env(name.as_str(), talon_vql::text::display(value));
    }
    for (name, value) in secret.entries("env") {
        command.env(name, value);
    }
    Ok((command, program.clone()))
}

/// The words of a command line; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for letter in line.chars() {
        match quote {
            Some(open) if letter == open => quote = None,
            Some(_) => word.push(letter),
            None if letter == '"' || letter == '\'' => (quote, begun) = (Some(letter), true),
            None if letter.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            None => {
                word.push(letter);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

fn execve(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let permit: Permit<Execute> = permit(&scope)?;
    let (mut command, _) = command(&call)?;
    let (running, receiver) = Running::start(&permit, &mut command, &scope)?;
    let length = call.opt_int("length").and_then(|length| usize::try_from(length).ok()).filter(|length| *length > 0).unwrap_or(LENGTH);
    let separator = call.string("sep").into_bytes();
    let session = Session {
        running,
        scope,
        receiver,
        separator,
        length: length.min(MAX_LENGTH),
        stdout: Vec::new(),
        stderr: Vec::new(),
        ended: false,
    };
    Ok(Rows::try_of(session))
}

/// Reads a pipe on a thread of its own, until it ends or nobody listens.
fn pump(
    mut pipe: impl Read + Send + 'static,
    sender: SyncSender<Output>,
    wrap: fn(Vec<u8>) -> Output,
    cancel: CancelToken,
) -> Result<(), CallError> {
    thread::Builder::new().name("execve".to_owned()).spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(got @ 1..) = pipe.read(&mut buffer) {
            let piece = buffer.get(..got).unwrap_or_default().to_vec();
            if cancel.is_cancelled() || sender.send(wrap(piece)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// What a command says next.
pub(crate) enum Next {
    Piece(Output),
    /// Not yet anything.
    Nothing,
    /// It has closed its output.
    End,
}

/// Waits a little for what a command says.
pub(crate) fn next(receiver: &Receiver<Output>) -> Next {
    match receiver.recv_timeout(Duration::from_millis(100)) {
        Ok(piece) => Next::Piece(piece),
        Err(RecvTimeoutError::Timeout) => Next::Nothing,
        Err(RecvTimeoutError::Disconnected) => Next::End,
    }
}

struct Session {
    running: Running,
    scope: Scope,
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
            if self.scope.stopped() {
                self.ended = true;
                return None;
            }
            match next(&self.receiver) {
                Next::Piece(Output::Stdout(piece)) => self.stdout.extend(piece),
                Next::Piece(Output::Stderr(piece)) => {
                    self.stderr.extend(piece);
                    self.stderr.truncate(self.length);
                }
                Next::Nothing => {}
                Next::End => {
                    self.ended = true;
                    let code = match self.running.wait() {
                        Ok(code) => code,
                        Err(error) => return Some(Err(error.into())),
                    };
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

/// A row of output.
pub(crate) fn row(stdout: &[u8], stderr: &[u8], code: Option<i64>, complete: bool) -> Dict {
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
    fn a_command_line_is_split_into_words() {
        assert_eq!(super::words("sudo -u 'a b' \"\" x\\"), ["sudo", "-u", "a b", "", "x\\"]);
        assert!(super::words("  ").is_empty());
    }

    #[test]
    fn folder_environment_and_length_are_as_asked() {
        assert_eq!(
            rows("SELECT Stdout FROM execve(argv=['sh', '-c', 'echo $A; pwd'], env=dict(A='b'), cwd='/')"),
            [r#"{"Stdout":"b\n/\n"}"#]
        );
        assert_eq!(
            rows("SELECT Stdout FROM execve(argv=['printf', 'abcdefgh'], length=3)"),
            [r#"{"Stdout":"abc"}"#, r#"{"Stdout":"def"}"#, r#"{"Stdout":"gh"}"#]
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
