//! The audit log sent to a syslog server.
//!
//! Syslog has no receipts: what was written to a connection that then breaks may never have arrived. A record counts as sent when its
//! connection still stood some seconds later; when it breaks before, everything since is sent again. So a record may come twice, with the same
//! number, and none is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use talon_audit::{Entry, syslog_message};
use talon_transport::SyslogSender;

use super::{Outlet, OutletError, OutletStatus};

/// How long a connection has to stand after a message before the message counts as arrived.
const SETTLING: Duration = Duration::from_secs(2);

/// Sends the audit log to a syslog server, and remembers in a file how far it came.
pub struct SyslogOutlet {
    sender: SyslogSender,
    host: String,
    memory: PathBuf,
    settling: Duration,
    /// The first record that may not have arrived.
    confirmed: u64,
    /// The first record that was not sent over the present connection.
    next: u64,
    /// When the last one was sent, as long as it is not confirmed.
    sent_at: Option<Instant>,
    shortened: u64,
}

impl SyslogOutlet {
    /// An outlet over `sender` that calls this server `host` and keeps its place in `folder`.
    ///
    /// # Errors
    /// When the place cannot be read.
    pub fn open(sender: SyslogSender, host: &str, folder: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(folder)?;
        let memory = folder.join("syslog.json");
        let confirmed = match fs::read(&memory) {
            Ok(text) => serde_json::from_slice::<OutletStatus>(&text).map_or(0, |status| status.next),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let host = host.to_owned();
        Ok(Self { sender, host, memory, settling: SETTLING, confirmed, next: confirmed, sent_at: None, shortened: 0 })
    }

    fn remember(&self) -> Result<(), OutletError> {
        let failed = |error: std::io::Error| OutletError(format!("writing {}: {error}", self.memory.display()));
        let status = OutletStatus { next: self.confirmed, shortened: self.shortened, ..OutletStatus::default() };
        let text = serde_json::to_vec(&status).map_err(|error| OutletError::new(&error))?;
        let new = self.memory.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &self.memory)).map_err(failed)
    }

    /// What was sent and not confirmed has to be sent again.
    fn step_back(&mut self) {
        self.next = self.confirmed;
        self.sent_at = None;
    }
}

impl Outlet for SyslogOutlet {
    fn name(&self) -> &str {
        "syslog"
    }

    fn position(&self) -> u64 {
        self.next
    }

    fn deliver(&mut self, entries: &[Entry]) -> Result<(), OutletError> {
        if self.sent_at.is_some() && !self.sender.is_alive() {
            self.step_back();
            return Err(OutletError(format!("{} closed the connection", self.sender.address())));
        }
        for entry in entries {
            let (message, shortened) = syslog_message(entry, &self.host, self.sender.limit());
            if let Err(error) = self.sender.send(&message) {
                self.step_back();
                return Err(OutletError::new(&error));
            }
            self.next = entry.index.saturating_add(1);
            self.shortened = self.shortened.saturating_add(u64::from(shortened));
        }
        self.sent_at = Some(Instant::now());
        Ok(())
    }

    fn tend(&mut self) -> Result<(), OutletError> {
        let Some(sent_at) = self.sent_at else { return Ok(()) };
        if !self.sender.is_alive() {
            self.step_back();
            return Err(OutletError(format!("{} closed the connection", self.sender.address())));
        }
        if sent_at.elapsed() < self.settling {
            return Ok(());
        }
        self.confirmed = self.next;
        self.sent_at = None;
        self.remember()
    }

    fn shortened(&self) -> u64 {
        self.shortened
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use talon_audit::{Details, Log, MemoryStorage, Phase, Record, SigningKey};
    use talon_crypto::SystemRng;
    use talon_transport::SyslogProtocol;

    use super::super::Outlets;
    use super::*;

    fn log() -> Arc<Log> {
        let key = SigningKey::generate("test/audit", &SystemRng).unwrap();
        Arc::new(Log::open(Arc::new(MemoryStorage::default()), key, Arc::new(SystemRng)).unwrap())
    }

    fn append(log: &Log, n: u64) {
        let mut record = Record::new(1_700_000_000_000_000_000, "root".parse().unwrap(), "alice", "user_create", Phase::Intended);
        record.details = Details::new().number("n", n);
        let _ = log.append(&record).unwrap();
    }

    fn outlet(listener: &TcpListener, folder: &Path) -> SyslogOutlet {
        let address = listener.local_addr().unwrap().to_string();
        let sender = SyslogSender::new(&address, SyslogProtocol::Tcp, "").unwrap();
        let mut outlet = SyslogOutlet::open(sender, "frontend.example", folder).unwrap();
        outlet.settling = Duration::from_millis(50);
        outlet
    }

    /// The number in the next message.
    fn number(reader: &mut BufReader<TcpStream>) -> u64 {
        let mut length = Vec::new();
        reader.read_until(b' ', &mut length).unwrap();
        let length: usize = std::str::from_utf8(&length).unwrap().trim().parse().unwrap();
        let mut message = vec![0; length];
        reader.read_exact(&mut message).unwrap();
        let text = String::from_utf8(message).unwrap();
        assert!(text.starts_with("<110>1 2023-11-14T22:13:20.000000Z frontend.example VelociraptorAudit - user_create - {"), "{text}");
        serde_json::from_str::<serde_json::Value>(&text[text.find('{').unwrap()..]).unwrap()["index"].as_u64().unwrap()
    }

    #[test]
    fn a_server_that_goes_away_gets_all_it_missed_and_nobody_waits_for_it() {
        let (log, folder) = (log(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let outlets = Outlets::start(&log, vec![Box::new(outlet(&listener, folder.path()))]).unwrap();
        append(&log, 0);
        append(&log, 1);
        let mut peer = BufReader::new(listener.accept().unwrap().0);
        assert_eq!([number(&mut peer), number(&mut peer)], [0, 1]);
        while !folder.path().join("syslog.json").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(peer);
        for n in 2..700 {
            append(&log, n);
        }
        let mut peer = BufReader::new(listener.accept().unwrap().0);
        assert_eq!((2..700).map(|_| number(&mut peer)).collect::<Vec<_>>(), (2..700).collect::<Vec<_>>());
        while outlets.status().get("syslog").is_none_or(|status| status.next < 700) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(outlets.status()["syslog"].error, None);
        assert!(outlets.status()["syslog"].failures >= 1);
    }

    #[test]
    fn after_a_restart_it_goes_on_where_it_was_confirmed() {
        let (log, folder) = (log(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for n in 0..3 {
            append(&log, n);
        }
        let mut first = outlet(&listener, folder.path());
        first.deliver(&log.entries(0, 2).unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(60));
        first.tend().unwrap();
        first.deliver(&log.entries(2, 1).unwrap()).unwrap();
        drop(first);
        assert_eq!(outlet(&listener, folder.path()).position(), 2, "the third was not confirmed and comes again");
    }
}
