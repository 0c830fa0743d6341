//! The command line: what it refuses, with which exit code, and that it says what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Case, Outcome, Stage};
use crate::deployment::Scheme;

pub(super) const CASES: &[Case] = &[
    ("a configuration with an unknown key is refused with line, column and nearest name", unknown_key),
    ("a configuration without a section or with an unreadable key is refused with exit 64", incomplete_config),
    ("secrets stay in the server configuration and files are private", secrets),
    ("a user without the permission is refused by name", missing_permission),
    ("wrong usage exits with 2", wrong_usage),
    ("stock query cases give stock's output", golden),
];

/// Stock query cases whose output is different here; `docs/vql-coverage.md` says why.
const DIFFERENT: &[&str] = &["users"];

/// Runs `program -c text` and returns exit code and stderr.
fn start_with(stage: &Stage, program: &str, text: &str) -> Result<(Option<i32>, String)> {
    let file = stage.folder().join("broken.yaml");
    fs::write(&file, text)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let output = Command::new(stage.programs.path(program)).arg("-c").arg(&file).output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn unknown_key(stage: &Stage) -> Result<Outcome> {
    let deployment = stage.deployment(Scheme::Https)?;
    let good = fs::read_to_string(deployment.file("server.config.yaml"))?;
    let line = good.lines().position(|line| line.contains("bind_address")).unwrap_or_default() + 1;
    let (code, message) = start_with(stage, "talon-frontend", &good.replacen("bind_address", "bind_adress", 1))?;
    ensure!(code == Some(64), "exit {code:?}: {message}");
    let expected = ["bind_adress", "bind_address", &line.to_string()];
    ensure!(expected.iter().all(|part| message.contains(part)), "does not name key, nearest key and line {line}: {message}");
    ensure!(message.trim_end().lines().count() == 1, "more than one line: {message}");
    Ok(Outcome::Passed)
}

fn incomplete_config(stage: &Stage) -> Result<Outcome> {
    let deployment = stage.deployment(Scheme::Https)?;
    let good = fs::read_to_string(deployment.file("server.config.yaml"))?;
    let client = fs::read_to_string(deployment.file("client.config.yaml"))?;
    let cases = [
        ("talon-frontend", client.clone(), "No API config"),
        ("talon-frontend", good.replace("BEGIN RSA PRIVATE KEY", "BEGIN NOTHING"), "key"),
        ("talon-agent", "Client: {}\n".to_owned(), "ca_certificate"),
        ("talon-agent", "- not\n- a mapping\n".to_owned(), ""),
    ];
    for (program, text, named) in cases {
        let (code, message) = start_with(stage, program, &text)?;
        ensure!(code == Some(64), "{program}: exit {code:?}: {message}");
        ensure!(message.contains(named) && message.trim_end().lines().count() == 1, "{program}: {message}");
    }
    Ok(Outcome::Passed)
}

fn secrets(stage: &Stage) -> Result<Outcome> {
    let deployment = stage.deployment(Scheme::Https)?;
    let client = fs::read_to_string(deployment.file("client.config.yaml"))?;
    for secret in ["PRIVATE KEY", "obfuscation_nonce", "Frontend", "Datastore"] {
        ensure!(!client.contains(secret), "the client configuration holds {secret}");
    }
    let mode = fs::metadata(deployment.file("api.config.yaml"))?.permissions().mode();
    ensure!(mode & 0o077 == 0, "api.config.yaml has mode {mode:o}");
    Ok(Outcome::Passed)
}

fn missing_permission(stage: &Stage) -> Result<Outcome> {
    let mut deployment = stage.deployment(Scheme::Https)?;
    deployment.api_client("reader", Some("reader"), "reader.config.yaml")?;
    deployment.api_client("nobody", None, "nobody.config.yaml")?;
    deployment.api_client("analyst", Some("analyst"), "analyst.config.yaml")?;
    deployment.start_server()?;
    let ask = |file: &str, vql: &str| deployment.talon_output(&["-a", &deployment.path(file), "query", vql]);
    let reader = ask("reader.config.yaml", "SELECT * FROM clients()")?;
    let said = String::from_utf8_lossy(&reader.stderr).into_owned();
    ensure!(reader.status.code() == Some(1) && said.contains("requires permission ANY_QUERY"), "reader: {said}");
    let nobody = ask("nobody.config.yaml", "SELECT * FROM clients()")?;
    ensure!(nobody.status.code() == Some(1) && String::from_utf8_lossy(&nobody.stderr).contains("User not found"), "nobody: {nobody:?}");
    let analyst = ask("analyst.config.yaml", "SELECT * FROM info()")?;
    let said = String::from_utf8_lossy(&analyst.stderr).into_owned();
    ensure!(said.contains("Permission denied: [MACHINE_STATE]") && analyst.stdout.is_empty(), "analyst: {analyst:?}");
    Ok(Outcome::Passed)
}

fn wrong_usage(stage: &Stage) -> Result<Outcome> {
    for (program, arguments) in
        [("talon", &["no-such-verb"][..]), ("talon-frontend", &["--no-such-flag"]), ("talon-agent", &["--no-such-flag"])]
    {
        let output = Command::new(stage.programs.path(program)).args(arguments).output()?;
        ensure!(output.status.code() == Some(2), "{program}: {:?}", output.status);
    }
    Ok(Outcome::Passed)
}

fn golden(stage: &Stage) -> Result<Outcome> {
    let Some(folder) = std::env::var_os("TALON_GOLDEN") else {
        return Ok(Outcome::Skipped("TALON_GOLDEN is not set".to_owned()));
    };
    let output = Command::new(stage.programs.path("talon")).arg("golden").arg(folder).args(["--env", "srcDir=."]).output()?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("FAIL  ")?.split(':').next()).collect();
    ensure!(shown.contains(" passed, ") && failed.iter().all(|name| DIFFERENT.contains(name)), "{shown}");
    Ok(Outcome::Passed)
}
