//! Sending syslog messages over UDP (RFC 5426), TCP (RFC 6587, counted octets) and TLS (RFC 5425). Blocking: for a thread of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::ServerName;

use crate::TransportError;
use crate::settings::certificates;
use crate::tls::provider;

/// The port when the address has none, for every protocol, as stock servers have it.
const PORT: u16 = 514;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a peer may take nothing.
const WRITE: Duration = Duration::from_secs(30);
/// The longest message over UDP: what a receiver is asked to take at most by default, and still one datagram.
const UDP_LIMIT: usize = 8192;
/// The longest message over a connection.
const STREAM_LIMIT: usize = 64 << 10;

/// How messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyslogProtocol {
    /// One message a datagram; nobody knows whether it arrived.
    Udp,
    /// A connection.
    Tcp,
    /// A connection whose other end proves its name.
    Tls,
}

impl std::str::FromStr for SyslogProtocol {
    type Err = TransportError;

    /// The values of `Logging.remote_syslog_protocol`; nothing means UDP.
    fn from_str(text: &str) -> Result<Self, TransportError> {
        match text.to_ascii_lowercase().as_str() {
            "" | "udp" => Ok(Self::Udp),
            "tcp" => Ok(Self::Tcp),
            "tls" => Ok(Self::Tls),
            _ => Err(TransportError::Configuration(format!("Logging.remote_syslog_protocol is {text:?}; it can be udp, tcp or tls"))),
        }
    }
}

/// A sender to one syslog server, connected or not.
pub struct SyslogSender {
    address: String,
    host: String,
    protocol: SyslogProtocol,
    tls: Option<Arc<ClientConfig>>,
    connection: Option<Connection>,
}

enum Connection {
    Datagrams(UdpSocket),
    Stream(TcpStream),
    Secure(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl SyslogSender {
    /// A sender to `server`, which is `host` or `host:port`. For TLS the server's certificate has to be for the host and of an authority of
    /// the system or of `root_certs` (PEM).
    ///
    /// # Errors
    /// [`TransportError::Configuration`].
    pub fn new(server: &str, protocol: SyslogProtocol, root_certs: &str) -> Result<Self, TransportError> {
        let (host, address) = match server.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.starts_with('[') => {
                port.parse::<u16>()
                    .map_err(|_| TransportError::Configuration(format!("Logging.remote_syslog_server: {port:?} is no port")))?;
                (host, server.to_owned())
            }
            Some(_) => (server, format!("[{server}]:{PORT}")),
            None => (server, format!("{server}:{PORT}")),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(TransportError::Configuration("Logging.remote_syslog_server names no host".to_owned()));
        }
        let tls = if protocol == SyslogProtocol::Tls { Some(Arc::new(client_config(root_certs)?)) } else { None };
        Ok(Self { address, host, protocol, tls, connection: None })
    }

    /// Where messages go: `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The longest message that can be sent, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        if self.protocol == SyslogProtocol::Udp { UDP_LIMIT } else { STREAM_LIMIT }
    }

    /// Sends a message, after connecting if need be. After an error the connection is gone, and nobody knows which of the last messages
    /// arrived.
    ///
    /// # Errors
    /// [`TransportError::Connect`], [`TransportError::Tls`].
    pub fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let framed = || [format!("{} ", message.len()).as_bytes(), message].concat();
        let sent = match &mut connection {
            Connection::Datagrams(socket) => socket.send(message).map(drop),
            Connection::Stream(stream) => stream.write_all(&framed()),
            Connection::Secure(stream) => stream.write_all(&framed()).and_then(|()| stream.flush()),
        };
        sent.map_err(|error| self.lost(error))?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Whether the peer still holds its end of the connection, as far as can be known without asking it.
    pub fn is_alive(&mut self) -> bool {
        let alive = match &mut self.connection {
            None => false,
            Some(Connection::Datagrams(socket)) => !matches!(socket.take_error(), Ok(Some(_)) | Err(_)),
            Some(Connection::Stream(stream)) => holds(stream),
            Some(Connection::Secure(stream)) => holds_secure(stream),
        };
        if !alive {
            self.connection = None;
        }
        alive
    }

    fn connect(&self) -> Result<Connection, TransportError> {
        let addresses: Vec<SocketAddr> = self.address.to_socket_addrs().map_err(|error| self.lost(error))?.collect();
        if self.protocol == SyslogProtocol::Udp {
            let target = addresses.first().ok_or_else(|| self.lost(io::ErrorKind::NotFound.into()))?;
            let local: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
            let socket = UdpSocket::bind(local).and_then(|socket| socket.connect(target).map(|()| socket));
            return socket.map(Connection::Datagrams).map_err(|error| self.lost(error));
        }
        let mut failure: io::Error = io::ErrorKind::NotFound.into();
        for address in &addresses {
            match TcpStream::connect_timeout(address, CONNECT) {
                Ok(stream) => return self.secure(stream),
                Err(error) => failure = error,
            }
        }
        Err(self.lost(failure))
    }

    fn secure(&self, stream: TcpStream) -> Result<Connection, TransportError> {
        let prepared = stream.set_write_timeout(Some(WRITE)).and_then(|()| stream.set_read_timeout(Some(CONNECT)));
        prepared.and_then(|()| stream.set_nodelay(true)).map_err(|error| self.lost(error))?;
        let Some(config) = &self.tls else { return Ok(Connection::Stream(stream)) };
        let refused = |error: io::Error| TransportError::Tls {
            with: self.host.clone(),
            cure: " (the certificate of the syslog server must be for this host, and its authority known to the system or in Logging's root certificates)",
            source: Arc::new(error),
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| refused(io::Error::other(error)))?;
        let connection = ClientConnection::new(Arc::clone(config), name).map_err(|error| refused(io::Error::other(error)))?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(refused)?;
        }
        Ok(Connection::Secure(Box::new(stream)))
    }

    fn lost(&self, error: io::Error) -> TransportError {
        TransportError::Connect { to: self.address.clone(), source: Arc::new(error) }
    }
}

impl std::fmt::Debug for SyslogSender {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "SyslogSender({:?} to {})", self.protocol, self.address)
    }
}

fn client_config(root_certs: &str) -> Result<ClientConfig, TransportError> {
    let refuse = |error: &dyn std::fmt::Display| TransportError::Configuration(format!("TLS to Logging.remote_syslog_server: {error}"));
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if !root_certs.trim().is_empty() {
        for certificate in certificates(root_certs.as_bytes(), "Client.Crypto.root_certs")? {
            roots.add(certificate).map_err(|error| refuse(&error))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]).map_err(|error| refuse(&error))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A syslog server says nothing: if there is something to read, it is the end.
fn holds(stream: &mut TcpStream) -> bool {
    without_waiting(stream, |stream| {
        let mut said = [0; 256];
        matches!(stream.read(&mut said), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    })
}

/// Over TLS there may be tickets and key updates to read.
fn holds_secure(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> bool {
    let connection = &mut stream.conn;
    without_waiting(&mut stream.sock, |socket| {
        loop {
            match connection.read_tls(socket) {
                Ok(0) => return false,
                Ok(_) if connection.process_new_packets().is_ok_and(|state| !state.peer_has_closed()) => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
                Ok(_) => return false,
            }
        }
    })
}

fn without_waiting(stream: &mut TcpStream, look: impl FnOnce(&mut TcpStream) -> bool) -> bool {
    stream.set_nonblocking(true).is_ok() && look(stream) && stream.set_nonblocking(false).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_have_the_port_of_syslog_unless_they_name_one() {
        let address = |server: &str| SyslogSender::new(server, SyslogProtocol::Udp, "").map(|sender| (sender.host, sender.address));
        assert_eq!(address("log.example").unwrap(), ("log.example".to_owned(), "log.example:514".to_owned()));
        assert_eq!(address("log.example:6514").unwrap(), ("log.example".to_owned(), "log.example:6514".to_owned()));
        assert_eq!(address("[2001:db8::1]:99").unwrap(), ("2001:db8::1".to_owned(), "[2001:db8::1]:99".to_owned()));
        assert_eq!(address("2001:db8::1").unwrap(), ("2001:db8::1".to_owned(), "[2001:db8::1]:514".to_owned()));
        for bad in ["", ":514", "log.example:port"] {
            assert!(matches!(address(bad), Err(TransportError::Configuration(_))), "{bad}");
        }
        assert!("dtls".parse::<SyslogProtocol>().is_err());
        assert_eq!("TLS".parse::<SyslogProtocol>().unwrap(), SyslogProtocol::Tls);
    }

    #[test]
    fn messages_are_counted_and_the_end_of_the_peer_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = SyslogSender::new(&listener.local_addr().unwrap().to_string(), SyslogProtocol::Tcp, "").unwrap();
        sender.send(b"<110>1 - one").unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        sender.send(b"two\n").unwrap();
        assert!(sender.is_alive());
        let mut got = [0; 21];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"12 <110>1 - one4 two\n");
        drop(peer);
        let ended = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            !sender.is_alive()
        });
        assert!(ended);
        drop(listener);
        assert!(matches!(sender.send(b"three"), Err(TransportError::Connect { .. })));
    }

    #[test]
    fn datagrams_carry_the_message_alone() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sender = SyslogSender::new(&receiver.local_addr().unwrap().to_string(), SyslogProtocol::Udp, "").unwrap();
        sender.send(b"<110>1 - one").unwrap();
        let mut got = [0; 64];
        let length = receiver.recv(&mut got).unwrap();
        assert_eq!(&got[..length], b"<110>1 - one");
    }
}
