//! Where the audit log is copied to, from the section `Logging`.

use std::path::PathBuf;
use std::time::Duration;

use crate::ServerConfig;
use crate::paths::{Lookup, expand};
use crate::schema::Logging;

/// The stock name of the component.
const COMPONENT: &str = "VelociraptorAudit";
/// Seconds after which a new file begins, and that a file is kept: the stock defaults, a week and a year.
const ROTATION: u64 = 604_800;
const MAX_AGE: u64 = 31_536_000;

/// The copies of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditCopies {
    /// The folder of the stock-format files: `Logging.output_directory`, or `logs` beside the log itself.
    pub folder: PathBuf,
    /// How long a file is written.
    pub rotation: Duration,
    /// How long a file is kept.
    pub max_age: Duration,
    /// The syslog server, if there is one.
    pub syslog: Option<SyslogTarget>,
}

/// A syslog server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyslogTarget {
    /// `host[:port]`.
    pub server: String,
    /// `udp`, `tcp` or `tls`; nothing means UDP.
    pub protocol: String,
    /// Authorities that are trusted beside the system's, in PEM.
    pub root_certs: String,
}

impl ServerConfig {
    /// Where the audit log is copied to; `lookup` knows the environment's variables. The rules of the info level count for its files, but `disabled` does not: stock servers lose their
    /// audit log by it.
    #[must_use]
    pub fn audit_copies(&self, lookup: Lookup<'_>) -> AuditCopies {
        let logging = self.configuration().stock.logging.clone().unwrap_or_default();
        let folder = if logging.output_directory.is_empty() {
            self.audit_directory().join("logs")
        } else {
            PathBuf::from(expand(&logging.output_directory, lookup))
        };
        let level = logging.info.clone().unwrap_or_default();
        let pick = |level: u64, all: u64, stock: u64| [level, all, stock].into_iter().find(|seconds| *seconds > 0).unwrap_or(stock);
        AuditCopies {
            folder,
            rotation: Duration::from_secs(pick(level.rotation_time, logging.rotation_time, ROTATION)),
            max_age: Duration::from_secs(pick(level.max_age, logging.max_age, MAX_AGE)),
            syslog: self.syslog(&logging),
        }
    }

    fn syslog(&self, logging: &Logging) -> Option<SyslogTarget> {
        let components = &logging.remote_syslog_components;
        let chosen = components.is_empty() || components.iter().any(|component| component == COMPONENT);
        (chosen && !logging.remote_syslog_server.is_empty()).then(|| SyslogTarget {
            server: logging.remote_syslog_server.clone(),
            protocol: logging.remote_syslog_protocol.clone(),
            root_certs: self.client().crypto.clone().unwrap_or_default().root_certs,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use talon_crypto::SystemRng;
    use talon_pki::UnixTime;

    use super::*;
    use crate::schema::LogRotation;
    use crate::{Configuration, generate};

    static PLAIN: LazyLock<Configuration> =
        LazyLock::new(|| generate(&[], &SystemRng, UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))).unwrap());

    fn copies(logging: Option<Logging>) -> AuditCopies {
        let mut configuration = PLAIN.clone();
        configuration.stock.logging = logging;
        let lookup = |name: &str| (name == "LOGS").then(|| "/var/log".to_owned());
        ServerConfig::new(configuration).unwrap().audit_copies(&lookup)
    }

    #[test]
    fn the_audit_log_has_files_unless_told_where_and_syslog_only_when_told() {
        let plain = copies(None);
        assert!(plain.folder.ends_with("logs"));
        assert_eq!((plain.rotation.as_secs(), plain.max_age.as_secs(), plain.syslog), (ROTATION, MAX_AGE, None));
        let set = |components: &[&str]| {
            copies(Some(Logging {
                output_directory: "$LOGS/talon".to_owned(),
                rotation_time: 60,
                info: Some(LogRotation { disabled: true, max_age: 120, ..LogRotation::default() }),
                remote_syslog_server: "log.example".to_owned(),
                remote_syslog_protocol: "tcp".to_owned(),
                remote_syslog_components: components.iter().map(|name| (*name).to_owned()).collect(),
                ..Logging::default()
            }))
        };
        let all = set(&[]);
        assert_eq!((all.folder, all.rotation.as_secs(), all.max_age.as_secs()), (PathBuf::from("/var/log/talon"), 60, 120));
        assert_eq!(all.syslog.map(|target| (target.server, target.protocol)), Some(("log.example".to_owned(), "tcp".to_owned())));
        assert_eq!(set(&["VelociraptorGUI"]).syslog, None);
        assert!(set(&["VelociraptorGUI", "VelociraptorAudit"]).syslog.is_some());
    }
}
