//! `netcat()`: what a peer on the network says.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use talon_acl::{Network, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Scope, Signature, Value};

use crate::authority::permit;
use crate::web::{self, Trust, Wire};

/// Bytes in one row unless the call says otherwise.
const CHUNK: usize = 4096;
/// The most that a call may ask for.
const MAX_CHUNK: usize = 16 << 20;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("netcat", "Connects to a peer, sends it a text, and gives what it says as rows.")
            .args(
                const {
                    &[
                        Arg::required("address", ArgType::String, "host:port, or the path of a Unix socket."),
                        Arg::optional("type", ArgType::String, "tcp unless given, or tls, udp, unix."),
                        Arg::optional("send", ArgType::String, "What is sent first."),
                        Arg::optional("sep", ArgType::String, "Cut what comes at this text."),
                        Arg::optional("chunk_size", ArgType::Int, "At most this many bytes in one row; 4096 unless given."),
                        Arg::optional("retry", ArgType::Int, "Seconds after which a lost connection is made again; never unless given."),
                    ]
                },
            )
            .permissions(&[Permission::Network]),
        netcat,
    );
}

/// A datagram socket with one peer.
struct Datagrams(UdpSocket);

impl io::Read for Datagrams {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }
}

impl io::Write for Datagrams {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.send(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn connect(permit: &Permit<Network>, scope: &Scope, kind: &str, address: &str) -> Result<Box<dyn Wire>, CallError> {
    let look = Some(web::LOOK);
    Ok(match kind {
        "" | "tcp" => Box::new(web::connect(permit, scope, address)?),
        "tls" | "ssl" => {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
            web::secure(scope, &Trust::default(), host, web::connect(permit, scope, address)?)?
        }
        "udp" => {
            let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            socket.set_read_timeout(look)?;
            Box::new(Datagrams(socket))
        }
        "unix" => {
            let stream =
                std::os::unix::net::UnixStream::connect(address).map_err(|error| CallError::failed(format!("{address}: {error}")))?;
            stream.set_read_timeout(look)?;
            stream.set_write_timeout(look)?;
            Box::new(stream)
        }
        other => return Err(CallError::failed(format!("type {other:?} is not known; it can be tcp, tls, udp or unix"))),
    })
}

struct Listening {
    permit: Permit<Network>,
    scope: Scope,
    kind: String,
    address: String,
    send: Vec<u8>,
    separator: Vec<u8>,
    chunk: usize,
    retry: Option<Duration>,
    wire: Option<Box<dyn Wire>>,
    kept: Vec<u8>,
    ended: bool,
}

fn netcat(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let permit: Permit<Network> = permit(&scope)?;
    let chunk = call.opt_int("chunk_size").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(CHUNK);
    Ok(Rows::try_of(Listening {
        permit,
        scope,
        kind: call.string("type").to_ascii_lowercase(),
        address: call.string("address"),
        send: call.bytes("send").to_vec(),
        separator: call.bytes("sep").to_vec(),
        chunk: chunk.min(MAX_CHUNK),
        retry: call.opt_int("retry").filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.unsigned_abs())),
        wire: None,
        kept: Vec::new(),
        ended: false,
    }))
}

impl Listening {
    /// Reads once; false at the end.
    fn fill(&mut self) -> Result<bool, CallError> {
        if self.wire.is_none() {
            let mut wire = connect(&self.permit, &self.scope, &self.kind, &self.address)?;
            web::write(&self.scope, wire.as_mut(), &self.send)?;
            self.wire = Some(wire);
        }
        let Some(wire) = &mut self.wire else { return Ok(false) };
        let mut buffer = vec![0; self.chunk];
        loop {
            match wire.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(got) => {
                    self.kept.extend_from_slice(buffer.get(..got).unwrap_or_default());
                    return Ok(true);
                }
                Err(error) if web::idle(&error) => {
                    if self.scope.sleep(Duration::ZERO) {
                        return Err(CallError::Silent);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is ready to be a row: up to the separator, or the most bytes that a row may have; everything when there is no separator.
    fn piece(&mut self) -> Option<Vec<u8>> {
        if self.kept.is_empty() {
            return None;
        }
        if !self.separator.is_empty() {
            if let Some(at) = self.kept.windows(self.separator.len()).position(|window| window == self.separator) {
                let piece = self.kept.drain(..at).collect();
                self.kept.drain(..self.separator.len());
                return Some(piece);
            }
            if self.kept.len() < self.chunk && !self.ended {
                return None;
            }
        }
        Some(self.kept.drain(..self.kept.len().min(self.chunk)).collect())
    }
}

impl Iterator for Listening {
    type Item = Result<Dict, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.piece() {
                return Some(Ok(Dict::new().with("Data", Value::str(piece))));
            }
            if self.ended || self.scope.stopped() {
                return None;
            }
            let lost = match self.fill() {
                Ok(true) => continue,
                Ok(false) => None,
                Err(CallError::Silent) => return None,
                Err(error) => Some(error),
            };
            self.wire = None;
            match (self.retry, lost) {
                (Some(pause), lost) => {
                    if let Some(error) = lost {
                        self.scope.log(format!("netcat: {error}; trying again"));
                    }
                    if self.scope.sleep(pause) {
                        return None;
                    }
                }
                (None, None) => self.ended = true,
                (None, Some(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{CancelToken, Environment, MemoryLog, Query, json, parse_statement};

    fn allowed() -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).clock(Arc::new(crate::SystemClock::new()))
    }

    #[test]
    fn a_peer_is_heard() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = [0; 3];
            stream.read_exact(&mut heard).unwrap();
            stream.write_all(b"one;two;end").unwrap();
            heard
        });
        let scope = allowed().open();
        let vql = format!("SELECT Data FROM netcat(address='{address}', send='hi!', sep=';')");
        let rows: Vec<String> = Query::new(&scope, &parse_statement(&vql).unwrap()).map(|row| json::encode(&row.into())).collect();
        assert_eq!(rows, [r#"{"Data":"one"}"#, r#"{"Data":"two"}"#, r#"{"Data":"end"}"#]);
        assert_eq!(&peer.join().unwrap(), b"hi!");
    }

    #[test]
    fn a_silent_peer_does_not_hold_a_cancelled_query() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancelToken::new();
        let scope = allowed().cancel(cancel.clone()).open();
        let canceller = std::thread::spawn(move || {
            let _held = listener.accept().unwrap();
            cancel.cancel("test");
        });
        assert_eq!(Query::new(&scope, &parse_statement(&format!("SELECT * FROM netcat(address='{address}')")).unwrap()).count(), 0);
        canceller.join().unwrap();
    }

    #[test]
    fn without_the_permission_nobody_is_called() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
        let vql = format!("SELECT * FROM netcat(address='{}')", listener.local_addr().unwrap());
        assert_eq!(Query::new(&scope, &parse_statement(&vql).unwrap()).count(), 0);
        assert!(log.take().contains(&"netcat: PermissionDenied: Permission denied: [NETWORK]".to_owned()));
        assert!(listener.accept().is_err());
    }
}
