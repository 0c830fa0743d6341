//! The way from a query's thread to web servers and other peers on the network: each takes the permit, sees cancellation, and trusts as the host program says.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use talon_acl::{Network, Permit};
use talon_transport::{ProxySettings, TransportError, WebAnswer, WebClient, WebRequest, WebTrust};
use talon_vql::{Arg, ArgType, CallError, Registry, Scope, Signature};

/// How long a peer may be silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a thread that waits looks whether its query must stop.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// The most names that a query gives addresses to.
const MAX_NAMES: usize = 10_000;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("cache_dns", "Gives a host name an address, which this query uses in place of asking for it.").args(
            const { &[Arg::required("name", ArgType::String, "The host name."), Arg::required("ip", ArgType::String, "Its address.")] },
        ),
        |call| {
            let address: IpAddr = call.string("ip").trim().parse().map_err(|_| "ip must be an IP address")?;
            let names = call.scope().shared::<Names>();
            let mut names = names.0.lock().unwrap_or_else(PoisonError::into_inner);
            if names.len() >= MAX_NAMES {
                return Err("too many names have addresses".into());
            }
            names.insert(call.string("name").trim_end_matches('.').to_ascii_lowercase(), address);
            Ok(true.into())
        },
    );
}

/// Addresses of hosts that a query does not look up.
#[derive(Default)]
struct Names(Mutex<BTreeMap<String, IpAddr>>);

/// What the configuration of the host program says about connections of queries, as an extension of the environment.
#[derive(Debug, Clone, Default)]
pub struct NetworkSettings {
    /// Proxies for web servers.
    pub proxy: ProxySettings,
    /// `Client.Crypto.root_certs` in PEM: authorities beside those of the system.
    pub root_certs: String,
}

/// Whose certificates a call accepts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Trust {
    /// Anybody's.
    pub(crate) skip_verify: bool,
    /// Those of this authority too, in PEM.
    pub(crate) root_ca: String,
}

/// What was parsed once in this query.
#[derive(Default)]
struct Parsed(Mutex<HashMap<Trust, WebTrust>>);

impl Trust {
    fn parse(&self, scope: &Scope) -> Result<WebTrust, CallError> {
        const KEPT: usize = 16;
        let parsed = scope.shared::<Parsed>();
        let mut parsed = parsed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = parsed.get(self) {
            return Ok(known.clone());
        }
        let settings = scope.extension::<NetworkSettings>().unwrap_or_default();
        let trust =
            if self.skip_verify { WebTrust::anybody() } else { WebTrust::public(&format!("{}\n{}", settings.root_certs, self.root_ca)) };
        let trust = trust.map_err(|error| failed(&error))?;
        if parsed.len() >= KEPT {
            parsed.clear();
        }
        parsed.insert(self.clone(), trust.clone());
        Ok(trust)
    }
}

fn failed(error: &TransportError) -> CallError {
    CallError::failed(error.with_causes())
}

/// A web client on the thread of a query.
pub(crate) struct Web {
    runtime: tokio::runtime::Runtime,
    client: WebClient,
    scope: Scope,
}

impl Web {
    /// A client; nothing is connected yet.
    pub(crate) fn open(_: &Permit<Network>, scope: &Scope, trust: &Trust) -> Result<Self, CallError> {
        let settings = scope.extension::<NetworkSettings>().unwrap_or_default();
        let trust = trust.parse(scope)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let names = scope.shared::<Names>().0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let client = WebClient::new(&trust, &settings.proxy, &names, PATIENCE).map_err(|error| failed(&error))?;
        Ok(Self { runtime, client, scope: scope.clone() })
    }

    /// Waits, unless the query must stop.
    fn wait<T>(&self, work: impl Future<Output = Result<T, TransportError>>) -> Result<T, CallError> {
        let stopped = async {
            while !self.scope.sleep(Duration::ZERO) {
                tokio::time::sleep(LOOK).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done.map_err(|error| failed(&error)),
                () = stopped => Err(CallError::Silent),
            }
        })
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) fn send(&self, request: WebRequest) -> Result<WebAnswer, CallError> {
        self.wait(self.client.send(request))
    }

    /// The next piece of an answer.
    pub(crate) fn piece(&self, answer: &mut WebAnswer) -> Result<Option<Bytes>, CallError> {
        self.wait(answer.piece())
    }

    /// The whole answer, as far as `limit` bytes go.
    pub(crate) fn content(&self, answer: &mut WebAnswer, limit: usize) -> Result<Vec<u8>, CallError> {
        let mut content = Vec::new();
        while let Some(piece) = self.piece(answer)? {
            let room = limit.saturating_sub(content.len());
            content.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
            if room <= piece.len() {
                break;
            }
        }
        Ok(content)
    }
}

/// A connection that carries bytes both ways.
pub(crate) trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

/// Connects to `host:port` over TCP. Reads and writes take [`LOOK`] at most, and fail with `WouldBlock` or `TimedOut` when nothing came.
pub(crate) fn connect(_: &Permit<Network>, scope: &Scope, address: &str) -> Result<TcpStream, CallError> {
    const DIAL: Duration = Duration::from_secs(1);
    const TRIES: u32 = 10;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let known = address.rsplit_once(':').and_then(|(host, port)| {
        let names = scope.shared::<Names>();
        let names = names.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(SocketAddr::new(*names.get(&host.to_ascii_lowercase())?, port.parse().ok()?).to_string())
    });
    for target in known.as_deref().unwrap_or(address).to_socket_addrs().map_err(|error| CallError::failed(format!("{address}: {error}")))? {
        for _ in 0..TRIES {
            if scope.stopped() {
                return Err(CallError::Silent);
            }
            match TcpStream::connect_timeout(&target, DIAL) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(LOOK))?;
                    stream.set_write_timeout(Some(LOOK))?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => last = error,
                Err(error) => {
                    last = error;
                    break;
                }
            }
        }
    }
    Err(CallError::failed(format!("{address}: {last}")))
}

/// TLS over a connection to `host`.
pub(crate) fn secure(scope: &Scope, trust: &Trust, host: &str, stream: TcpStream) -> Result<Box<dyn Wire>, CallError> {
    let trust = trust.parse(scope)?;
    Ok(Box::new(trust.over(host, stream).map_err(|error| failed(&error))?))
}

/// Does what blocks on a thread of its own; the query does not wait for it longer than it may run. What blocks must have a limit of its own.
pub(crate) fn patiently<T: Send + 'static>(
    _: &Permit<Network>,
    scope: &Scope,
    name: &str,
    work: impl FnOnce() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || drop(sender.send(work())))?;
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(outcome) => return outcome,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) if scope.sleep(Duration::ZERO) => return Err(CallError::Silent),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Err("the work ended without a result".into()),
        }
    }
}

/// Whether a read gave nothing yet.
pub(crate) fn idle(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Writes everything, as long as the query may go on.
pub(crate) fn write(scope: &Scope, wire: &mut dyn Wire, mut content: &[u8]) -> Result<(), CallError> {
    while !content.is_empty() {
        if scope.stopped() {
            return Err(CallError::Silent);
        }
        match wire.write(content) {
            Ok(0) => return Err("the connection is closed".into()),
            Ok(sent) => content = content.get(sent..).unwrap_or_default(),
            Err(error) if idle(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    loop {
        match wire.flush() {
            Ok(()) => return Ok(()),
            Err(error) if idle(&error) && !scope.stopped() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    /// A web server that gives prepared answers, one for each request, and remembers what it heard.
    pub(crate) struct Answering {
        url: String,
        thread: JoinHandle<Vec<String>>,
    }

    impl Answering {
        pub(crate) fn start(answers: Vec<&'static str>) -> Self {
            Self::start_with(answers.into_iter().map(|answer| answer.as_bytes().to_vec()).collect())
        }

        pub(crate) fn start_with(answers: Vec<Vec<u8>>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let thread = std::thread::spawn(move || answers.into_iter().map(|answer| answer_one(&listener, &answer)).collect());
            Self { url, thread }
        }

        pub(crate) fn url(&self) -> &str {
            &self.url
        }

        /// What was heard, once all answers were given.
        pub(crate) fn heard(self) -> Vec<String> {
            self.thread.join().unwrap()
        }
    }

    /// One connection for each request: whoever answers says so.
    fn answer_one(listener: &TcpListener, answer: &[u8]) -> String {
        let (stream, _) = listener.accept().unwrap();
        let mut out = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        let mut heard = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            heard.push_str(&line);
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        heard.push_str(&String::from_utf8_lossy(&body));
        let text = String::from_utf8_lossy(answer).into_owned();
        let at = text.find("\r\n").unwrap() + 2;
        out.write_all(&answer[..at]).unwrap();
        out.write_all(b"Connection: close\r\n").unwrap();
        out.write_all(&answer[at..]).unwrap();
        heard
    }
}
