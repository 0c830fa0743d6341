//! The copies of the audit log: files in the stock format, and a real rsyslog over each of its protocols.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::{Deployment, Scheme, free_ports};
use crate::process::wait_for;

pub(super) const CASES: &[Case] = &[
    ("audit records reach rsyslog over TCP, and what it missed comes after its restart", |stage| forwarded(stage, "tcp")),
    ("audit records reach rsyslog over TLS, and what it missed comes after its restart", |stage| forwarded(stage, "tls")),
    ("audit records reach rsyslog over UDP", |stage| forwarded(stage, "udp")),
];

const LIMIT: Duration = Duration::from_secs(60);

/// A running rsyslog, ended with this value.
struct Rsyslog(Child);

impl Rsyslog {
    fn start(configuration: &Path) -> Result<Self> {
        let pid = configuration.with_extension("pid");
        let mut command = Command::new("rsyslogd");
        command.args(["-n", "-f"]).arg(configuration).arg("-i").arg(pid).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("starting rsyslogd")?))
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn forwarded(stage: &Stage, protocol: &str) -> Result<Outcome> {
    if Command::new("rsyslogd").arg("-v").output().is_err() {
        return Ok(Outcome::Skipped("rsyslogd is not installed".to_owned()));
    }
    let folder = stage.folder().to_owned();
    let [port] = free_ports()?;
    let (received, configuration) = (folder.join("received.jsonl"), folder.join("rsyslog.conf"));
    let mut changes = json!({ "Logging": {
        "output_directory": folder.join("logs"),
        "remote_syslog_server": format!("localhost:{port}"),
        "remote_syslog_protocol": protocol,
    }});
    let input = match protocol {
        "udp" => format!("module(load=\"imudp\")\ninput(type=\"imudp\" address=\"127.0.0.1\" port=\"{port}\")\n"),
        "tcp" => format!("module(load=\"imtcp\")\ninput(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n"),
        _ => {
            let Some(authority) = certificates(&folder)? else {
                return Ok(Outcome::Skipped("there is no openssl to make certificates with".to_owned()));
            };
            changes["Client"] = json!({ "Crypto": { "root_certs": authority } });
            let file = |name: &str| folder.join(name).display().to_string();
            format!(
                "global(defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile=\"{}\" defaultNetstreamDriverCertFile=\"{}\" \
                 defaultNetstreamDriverKeyFile=\"{}\")\nmodule(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" \
                 streamDriver.authMode=\"anon\")\ninput(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n",
                file("ca.pem"),
                file("leaf.pem"),
                file("leaf.key"),
            )
        }
    };
    let rules = format!(
        "global(maxMessageSize=\"64k\")\n{input}template(name=\"message\" type=\"string\" string=\"%msg%\\n\")\n\
         if $app-name == 'VelociraptorAudit' then action(type=\"omfile\" file=\"{}\" template=\"message\")\n",
        received.display(),
    );
    fs::write(&configuration, rules)?;
    let deployment = Deployment::create_with(&stage.programs, &folder.join("deployment"), Scheme::Https, &changes)?;
    with_logs(deployment, |deployment| {
        let mut receiver = Rsyslog::start(&configuration)?;
        if protocol == "udp" {
            // Nobody knows of a datagram that came before the receiver.
            std::thread::sleep(Duration::from_secs(1));
        }
        deployment.start_server()?;
        create_user(deployment, "first")?;
        wait_for("the first records", LIMIT, || Ok(has_user(&received, "first").then_some(())))?;
        if protocol != "udp" {
            drop(receiver);
            for user in ["second", "third"] {
                create_user(deployment, user)?;
            }
            receiver = Rsyslog::start(&configuration)?;
        }
        create_user(deployment, "last")?;
        wait_for("the last record", LIMIT, || Ok(has_user(&received, "last").then_some(())))?;
        let server = deployment.path("server.config.yaml");
        let tail = deployment.talon(&["-c", &server, "audit", "tail", "-n", "0", "--format", "jsonl"])?;
        let numbers = |text: &str| -> BTreeSet<u64> {
            text.lines().filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok()?["index"].as_u64()).collect()
        };
        let last = numbers(&fs::read_to_string(&received)?).last().copied().context("nothing was received")?;
        let missing = || -> Result<Vec<u64>> {
            let have = numbers(&fs::read_to_string(&received)?);
            Ok(numbers(&tail).into_iter().filter(|number| *number <= last && !have.contains(number)).collect())
        };
        wait_for("every record", LIMIT, || Ok(missing()?.is_empty().then_some(())))?;
        let files = fs::read_to_string(folder.join("logs/VelociraptorAudit_info.log"))?;
        ensure!(numbers(&tail).is_subset(&numbers(&files)), "the files lack records");
        let status = deployment.talon(&["-c", &server, "audit", "status"])?;
        ensure!(status.contains("records sent"), "status: {status}");
        drop(receiver);
        Ok(())
    })
}

fn create_user(deployment: &Deployment, name: &str) -> Result<()> {
    deployment.query(&format!("SELECT user_create(user='{name}', roles='reader') FROM scope()")).map(drop)
}

fn has_user(received: &Path, name: &str) -> bool {
    fs::read_to_string(received).is_ok_and(|text| text.contains("\"user_create\"") && text.contains(&format!("\"{name}\"")))
}

/// An authority and a certificate of localhost; the authority in PEM.
fn certificates(folder: &Path) -> Result<Option<String>> {
    if Command::new("openssl").arg("version").output().is_err() {
        return Ok(None);
    }
    fs::write(folder.join("leaf.ext"), "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n")?;
    for arguments in [
        "req -x509 -newkey rsa:2048 -nodes -subj /CN=logs -days 2 -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout leaf.key -out leaf.csr",
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem",
    ] {
        let made = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output()?;
        ensure!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(Some(fs::read_to_string(folder.join("ca.pem"))?))
}
