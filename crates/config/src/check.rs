//! The doctor: what works today and will not tomorrow, what is ignored, what is open to the world.

use talon_pki::{Certificate, Purpose, UnixTime};

use crate::schema::{Config, Frontend};
use crate::{ClientConfig, Configuration, ServerConfig};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Note,
    /// It will hurt, or is open to more than it should.
    Warning,
    /// It does not work.
    Error,
}

impl Severity {
    /// The word in front of a finding.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One finding: how bad it is, and a line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The key that it is about, and what to do.
    pub text: String,
}

/// Certificates that end sooner than this are reported.
const SOON: u64 = 60 * 86_400;

/// Everything that is worth knowing about a configuration at `now`, the worst first.
#[must_use]
pub fn check(configuration: &Configuration, now: UnixTime) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    let is_server = configuration.stock.frontend.is_some();
    deprecated(&configuration.stock, &mut findings);
    if is_server {
        match ServerConfig::new(configuration.clone()) {
            Ok(server) => check_server(&server, now, &mut findings),
            Err(error) => findings.error(error.to_string()),
        }
    } else {
        match ClientConfig::new(configuration.clone()) {
            Ok(client) => check_client(&client, now, &mut findings),
            Err(error) => findings.error(error.to_string()),
        }
    }
    findings.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn push(&mut self, severity: Severity, text: impl Into<String>) {
        self.0.push(Finding { severity, text: text.into() });
    }

    fn error(&mut self, text: impl Into<String>) {
        self.push(Severity::Error, text);
    }

    fn warning(&mut self, text: impl Into<String>) {
        self.push(Severity::Warning, text);
    }

    fn note(&mut self, text: impl Into<String>) {
        self.push(Severity::Note, text);
    }
}

/// Keys that are read for the sake of old files and mean nothing any more, or are better kept elsewhere.
fn deprecated(config: &Config, findings: &mut Findings) {
    let frontend = config.frontend.clone().unwrap_or_default();
    let client = config.client.clone().unwrap_or_default();
    let defaults = config.defaults.clone().unwrap_or_default();
    let gui = config.gui.clone().unwrap_or_default();
    let resources = frontend.resources.clone().unwrap_or_default();
    let old_limits = Frontend {
        concurrency: frontend.concurrency,
        max_upload_size: frontend.max_upload_size,
        expected_clients: frontend.expected_clients,
        per_client_upload_rate: frontend.per_client_upload_rate,
        global_upload_rate: frontend.global_upload_rate,
        client_event_max_wait: frontend.client_event_max_wait,
        ..Frontend::default()
    };
    let old_lists = [
        &defaults.allowed_plugins,
        &defaults.allowed_functions,
        &defaults.allowed_accessors,
        &defaults.denied_plugins,
        &defaults.denied_functions,
        &defaults.denied_accessors,
        &defaults.lockdown_denied_permissions,
    ];
    let moved = [
        (old_limits != Frontend::default(), "limits directly in Frontend are deprecated: move them to Frontend.resources"),
        (old_lists.iter().any(|list| !list.is_empty()), "restrictions in defaults are deprecated: move them to security"),
        (defaults.certificate_validity_days != 0, "defaults.certificate_validity_days is deprecated: move it to security"),
    ];
    let ignored = [
        (!config.mail.is_null(), "Mail"),
        (!config.writeback.is_null(), "Writeback"),
        (!config.analysis_target.is_null(), "analysis_target"),
        (!gui.artifact_search_filter.is_empty(), "GUI.artifact_search_filter"),
        (!frontend.dns_name.is_empty(), "Frontend.dns_name"),
        (frontend.do_not_redirect, "Frontend.do_not_redirect"),
        (resources.target_heap_size != 0, "Frontend.resources.target_heap_size"),
        (resources.client_event_max_wait != 0, "Frontend.resources.client_event_max_wait"),
        (defaults.max_vfs_directory_size != 0, "defaults.max_vfs_directory_size"),
        (client.disable_compression, "Client.disable_compression"),
        (!client.insecure_network_trace_file.is_empty(), "Client.insecure_network_trace_file"),
    ];
    moved.into_iter().filter(|(found, _)| *found).for_each(|(_, text)| findings.note(text));
    for (_, key) in ignored.into_iter().filter(|(found, _)| *found) {
        findings.note(format!("{key} has no effect: remove it"));
    }
}

fn check_server(server: &ServerConfig, now: UnixTime, findings: &mut Findings) {
    certificate("Frontend.certificate", server.frontend_identity().certificate(), now, findings);
    certificate("GUI.gw_certificate", server.gateway_identity().certificate(), now, findings);
    authorities(server.trust().certificates(), now, findings);
    for (key, identity, name) in [
        ("Frontend.certificate", server.frontend_identity(), server.server_name()),
        ("GUI.gw_certificate", server.gateway_identity(), server.api().pinned_gw_name.as_str()),
    ] {
        let signed = server.trust().verify(identity.certificate().der(), Purpose::Server, now);
        if let Err(talon_pki::PkiError::Untrusted { .. } | talon_pki::PkiError::WrongPurpose { .. }) = signed {
            findings.error(format!("{key} is not signed by Client.ca_certificate: agents and API clients will refuse it"));
        }
        let found = identity.certificate().subject_name();
        if found != name {
            findings.error(format!("{key} is named {found:?} and {name:?} is expected: issue it anew, or change the pinned name"));
        }
    }
    listeners(server, findings);
    if server.authority().is_ok() {
        findings.note("CA.private_key is in this file: keep a copy elsewhere and take it out of the server's, which runs without it");
    }
    let authenticator = server.gui().authenticator.clone().unwrap_or_default();
    if server.gui().initial_users.is_empty() && authenticator.kind.eq_ignore_ascii_case("basic") {
        findings.note("GUI.initial_users is empty: make users with 'talon -c … user add'");
    }
    if server.client().crypto.as_ref().is_some_and(|crypto| crypto.allow_weak_tls_server) {
        findings.warning("Client.Crypto.allow_weak_tls_server lets TLS 1.2 in");
    }
}

fn listeners(server: &ServerConfig, findings: &mut Findings) {
    let stock = &server.configuration().stock;
    let (frontend, api, gui) = (server.frontend(), server.api(), server.gui());
    let mut ports = vec![("Frontend", frontend.bind_port), ("GUI", gui.bind_port)];
    if api.bind_scheme != "unix" {
        ports.push(("API", api.bind_port));
    }
    if let Some(monitoring) = &stock.monitoring {
        ports.push(("Monitoring", monitoring.bind_port));
    }
    let mut rest = ports.as_slice();
    while let Some(((first, port), others)) = rest.split_first() {
        for (second, _) in others.iter().filter(|(_, other)| other == port && *port != 0) {
            if (*first, *second) == ("Frontend", "GUI") {
                findings.note(format!("Frontend and GUI share port {port}: the GUI is then reachable at Frontend.bind_address"));
            } else {
                findings.error(format!("{first}.bind_port and {second}.bind_port are both {port}: change one of them"));
            }
        }
        rest = others;
    }
    let local = |address: &str| matches!(address, "127.0.0.1" | "::1" | "localhost");
    if let Some(monitoring) = &stock.monitoring
        && !local(&monitoring.bind_address)
    {
        findings.warning("Monitoring has neither TLS nor a login and listens on all networks: bind it to 127.0.0.1");
    }
    if !local(&gui.bind_address) && gui.allowed_cidr.is_empty() {
        findings.warning("the GUI is reachable from all networks: set GUI.allowed_cidr, or bind it to 127.0.0.1");
    }
    if frontend.use_plain_http {
        findings.warning("Frontend.use_plain_http: a proxy in front must do TLS");
        if frontend.require_client_certificates {
            findings.error("Frontend.require_client_certificates does nothing under use_plain_http: the proxy must ask for them");
        }
    }
}

fn check_client(client: &ClientConfig, now: UnixTime, findings: &mut Findings) {
    authorities(client.trust().certificates(), now, findings);
    let plain = client.client().server_urls.iter().find(|url| url.starts_with("http://") || url.starts_with("ws://"));
    if let Some(url) = plain {
        findings.warning(format!("{url} has no TLS: messages are encrypted, but everybody on the way sees that this is an agent"));
    }
    if client.writeback(&|name| std::env::var(name).ok()).is_err() {
        findings.error("there is no Client.writeback path for this operating system");
    }
}

fn authorities(certificates: &[talon_pki::CertificateDer<'static>], now: UnixTime, findings: &mut Findings) {
    for der in certificates {
        match Certificate::from_der(der.clone()) {
            Ok(authority) => certificate("Client.ca_certificate", &authority, now, findings),
            Err(error) => findings.error(format!("Client.ca_certificate: {error}")),
        }
    }
}

/// Reports a certificate that is over, not yet valid, or over soon.
fn certificate(key: &str, certificate: &Certificate, now: UnixTime, findings: &mut Findings) {
    if certificate.check_time(now).is_err() {
        let expired = certificate.not_after() < now;
        let problem = if expired { "has expired: issue it anew" } else { "is not valid yet: is the clock right?" };
        findings.error(format!("{key} {problem}"));
        return;
    }
    let left = certificate.not_after().as_secs().saturating_sub(now.as_secs());
    let days = left / 86_400;
    if left < SOON {
        findings.warning(format!("{key} expires in {days} days: issue it anew"));
    } else {
        findings.note(format!("{key} is valid for {days} more days"));
    }
}
