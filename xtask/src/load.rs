//! Agents that only send: they enrol, take the request that a server has for them, and seal rows for it; over plain HTTP they also post them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use talon_crypto::{RsaPrivateKey, SystemRng};
use talon_pki::{Certificate, TrustBundle, UnixTime, create_csr, verify_server_pem};
use talon_proto::{Certificate as CertificateMessage, FlowStats, VeloMessage, VeloStatus, VqlRequest, VqlResponse};
use talon_wire::{AgentCodec, AgentSession, Blobs, Limits, MessageList, Reply, UnixMicros};

use crate::deployment::Deployment;
use crate::process::wait_for;

/// An answer may take this long: a packet is processed for up to a minute.
const ANSWER_WITHIN: Duration = Duration::from_secs(70);

/// What agents must know of a server.
pub(crate) struct Server {
    /// Host and port.
    pub(crate) address: String,
    nonce: String,
    /// The deployment's authority.
    pub(crate) authority_pem: String,
    /// The subject name of the frontend's certificate.
    pub(crate) name: String,
    key: talon_crypto::RsaPublicKey,
}

impl Server {
    /// Reads the configuration files of a deployment.
    pub(crate) fn of(deployment: &Deployment) -> Result<Self> {
        let config = std::fs::read_to_string(deployment.file("client.config.yaml"))?;
        let nonce = config.lines().find_map(|line| line.trim().strip_prefix("nonce:")).context("the client configuration has no nonce")?;
        let (_, address) = deployment.frontend_url.split_once("://").context("the frontend's URL has no scheme")?;
        let authority_pem = block(&config, "CERTIFICATE").context("the client configuration has no certificate")?;
        let server = std::fs::read_to_string(deployment.file("server.config.yaml"))?;
        let (_, frontend) = server.split_once("\nFrontend:").context("the server configuration has no frontend")?;
        let certificate = block(frontend, "CERTIFICATE").context("the frontend has no certificate")?;
        let name = Certificate::from_pem(certificate.as_bytes())?.subject_name().to_owned();
        let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH)?);
        let verified = verify_server_pem(certificate.as_bytes(), &TrustBundle::from_pem(authority_pem.as_bytes())?, &name, now)?;
        let nonce = nonce.trim().trim_matches('"').to_owned();
        Ok(Self { address: address.trim_end_matches('/').to_owned(), nonce, authority_pem, name, key: verified.public_key()? })
    }
}

/// The first PEM block with this label, without the indentation that YAML gave it.
fn block(text: &str, label: &str) -> Option<String> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let (_, rest) = text.split_once(&begin)?;
    let (body, _) = rest.split_once(&end)?;
    let body: Vec<&str> = body.split_whitespace().collect();
    Some(format!("{begin}\n{}\n{end}\n", body.join("\n")))
}

/// A request that the server has for an agent.
#[derive(Clone)]
pub(crate) struct Collection {
    pub(crate) flow: String,
    /// The name of its first query that gives rows, as the server sent it.
    pub(crate) query: String,
}

/// An answer of the frontend: its status and whole body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// One agent and its connection.
pub(crate) struct Agent {
    address: String,
    codec: AgentCodec,
    session: AgentSession,
    connection: Option<BufReader<TcpStream>>,
}

impl Agent {
    /// An agent with a new key, which the server does not know yet.
    pub(crate) fn new(server: &Server) -> Result<Self> {
        Self::with_key(server, RsaPrivateKey::generate()?)
    }

    /// An agent with this key.
    pub(crate) fn with_key(server: &Server, key: RsaPrivateKey) -> Result<Self> {
        let codec = AgentCodec::new(key, &server.nonce, Limits::default(), SystemRng);
        let session = codec.session(&server.name, &server.key)?;
        Ok(Self { address: server.address.clone(), codec, session, connection: None })
    }

    /// Sends a certificate request and waits for the collection that the server makes of every new agent.
    pub(crate) fn enrol(&mut self) -> Result<Collection> {
        let request = self.certificate_request()?;
        let answer = self.post("control", &request)?;
        ensure!(matches!(answer.status, 200 | 406), "the enrolment was answered with {}", answer.status);
        wait_for("the first collection", Duration::from_secs(30), || self.poll())
    }

    /// The packet with which an agent enrols.
    pub(crate) fn certificate_request(&self) -> Result<Bytes> {
        let pem = create_csr(self.codec.key())?.into_bytes().into();
        let csr = Some(CertificateMessage { pem, ..CertificateMessage::default() });
        self.seal(&[VeloMessage { session_id: "E:Enrol".into(), urgent: true, csr, ..VeloMessage::default() }])
    }

    fn poll(&mut self) -> Result<Option<Collection>> {
        let request = self.seal(&[])?;
        let answer = self.post("reader", &request)?;
        ensure!(answer.status == 200, "/reader answered {}", answer.status);
        self.first_collection(answer.body.into())
    }

    /// The first collection in an answer to a poll.
    pub(crate) fn first_collection(&self, body: Bytes) -> Result<Option<Collection>> {
        let Reply::Verified(reply) = self.session.open(body)? else { return Ok(None) };
        for message in reply.messages() {
            let message = message?;
            let requests = message.flow_request.iter().flat_map(|request| &request.vql_client_actions).flat_map(|action| &action.query);
            if let Some(query) = requests.map(|query| &query.name).find(|name| !name.is_empty()) {
                return Ok(Some(Collection { flow: message.session_id, query: query.clone() }));
            }
        }
        Ok(None)
    }

    /// A packet with rows `first..first + count` of a collection.
    pub(crate) fn rows(&self, collection: &Collection, first: u64, count: u64) -> Result<Bytes> {
        let jsonl_response: String = (first..first + count).map(row).collect();
        let response = VqlResponse {
            query: Some(VqlRequest { name: collection.query.clone(), ..VqlRequest::default() }),
            jsonl_response,
            total_rows: count,
            query_start_row: first,
            ..VqlResponse::default()
        };
        self.seal(&[VeloMessage { session_id: collection.flow.clone(), vql_response: Some(response), ..VeloMessage::default() }])
    }

    /// The same with the rows as a zlib stream, as agents send more than a few of them.
    pub(crate) fn compressed_rows(&self, collection: &Collection, first: u64, count: u64) -> Result<Bytes> {
        let plain: String = (first..first + count).map(row).collect();
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(plain.as_bytes())?;
        let response = VqlResponse {
            query: Some(VqlRequest { name: collection.query.clone(), ..VqlRequest::default() }),
            compressed_json_response: encoder.finish()?.into(),
            uncompressed_size: u64::try_from(plain.len())?,
            total_rows: count,
            query_start_row: first,
            ..VqlResponse::default()
        };
        self.seal(&[VeloMessage { session_id: collection.flow.clone(), vql_response: Some(response), ..VeloMessage::default() }])
    }

    /// A packet that says that the collection is done.
    pub(crate) fn completion(&self, collection: &Collection) -> Result<Bytes> {
        let stats = FlowStats { flow_complete: true, query_status: vec![VeloStatus::default()], ..FlowStats::default() };
        self.seal(&[VeloMessage { session_id: collection.flow.clone(), flow_stats: Some(stats), ..VeloMessage::default() }])
    }

    /// A packet of these messages.
    pub(crate) fn seal(&self, messages: &[VeloMessage]) -> Result<Bytes> {
        let mut list = MessageList::default();
        messages.iter().for_each(|message| list.push(message));
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        Ok(self.session.seal(UnixMicros(u64::try_from(now)?), &Blobs::compressed([list])?)?)
    }

    /// Posts a packet and waits for the whole answer; an answer that is cut off is an error.
    pub(crate) fn post(&mut self, handler: &str, packet: &[u8]) -> Result<Answer> {
        exchange(&mut self.connection, &self.address, &format!("POST /{handler}"), packet)
    }

    /// Whether an answer says that everything in the packet is durable.
    pub(crate) fn is_receipt(&self, answer: &Answer) -> Result<bool> {
        Ok(answer.status == 200 && matches!(self.session.open(answer.body.clone().into())?, Reply::Verified(_)))
    }
}

/// The row that an agent sends under a number: about 100 bytes, as rows of a process list are.
pub(crate) fn row(number: u64) -> String {
    format!("{{\"Number\":{number},\"Name\":\"worker-{}\",\"CommandLine\":\"/usr/lib/worker --number {number} --quiet\"}}\n", number % 97)
}

fn exchange(connection: &mut Option<BufReader<TcpStream>>, address: &str, line: &str, body: &[u8]) -> Result<Answer> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            BufReader::new(stream)
        }
    };
    let head = format!("{line} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/binary\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.get_mut().write_all(&[head.as_bytes(), body].concat())?;
    let (answer, reusable) = read_answer(&mut stream)?;
    if reusable {
        *connection = Some(stream);
    }
    Ok(answer)
}

fn read_answer(stream: &mut impl BufRead) -> Result<(Answer, bool)> {
    let status_line = read_line(stream)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("no status: {status_line:?}"))?;
    let (mut length, mut chunked, mut reusable) = (None, false, true);
    loop {
        let line = read_line(stream)?.to_ascii_lowercase();
        match line.split_once(": ") {
            Some(("content-length", value)) => length = Some(value.parse()?),
            Some(("transfer-encoding", "chunked")) => chunked = true,
            Some(("connection", "close")) => reusable = false,
            Some(_) => {}
            None => break,
        }
    }
    let body = if chunked { read_chunks(stream)? } else { read_exactly(stream, length.context("an answer without a length")?)? };
    Ok((Answer { status, body }, reusable))
}

fn read_chunks(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let length = u64::from_str_radix(read_line(stream)?.trim(), 16)?;
        body.extend(read_exactly(stream, length)?);
        ensure!(read_line(stream)?.is_empty(), "a chunk has another length than it says");
        if length == 0 {
            return Ok(body);
        }
    }
}

fn read_exactly(stream: &mut impl BufRead, length: u64) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    stream.take(length).read_to_end(&mut data)?;
    ensure!(u64::try_from(data.len())? == length, "the answer is cut off");
    Ok(data)
}

fn read_line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    stream.take(16 << 10).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => bail!("the answer is cut off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_refused() {
        let text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let (answer, reusable) = read_answer(&mut &text[..]).unwrap();
        assert_eq!((answer.status, answer.body.as_slice(), reusable), (200, &b"abcde"[..], true));
        for cut in 0..text.len() {
            assert!(read_answer(&mut &text[..cut]).is_err(), "cut at {cut}");
        }
        let text = b"HTTP/1.1 406 Not Acceptable\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
        let (answer, reusable) = read_answer(&mut &text[..]).unwrap();
        assert_eq!((answer.status, answer.body.as_slice(), reusable), (406, &b"no"[..], false));
    }

    #[test]
    fn pem_blocks_lose_their_indentation() {
        let yaml = "  ca_certificate: |\n    -----BEGIN CERTIFICATE-----\n    AAAA\n    BBBB\n    -----END CERTIFICATE-----\n";
        assert_eq!(block(yaml, "CERTIFICATE").unwrap(), "-----BEGIN CERTIFICATE-----\nAAAA\nBBBB\n-----END CERTIFICATE-----\n");
    }
}
