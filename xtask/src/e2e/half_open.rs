//! A flood of connections that never finish a request: little memory, and everybody else is served.

use std::fs;
use std::io::Write;
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::Scheme;

pub(super) const CASES: &[Case] = &[("ten thousand half-open connections cost little memory and hold nobody up", half_open)];

const CONNECTIONS: u64 = 10_000;
/// Memory that one of them may cost, in bytes.
const EACH: u64 = 32 << 10;

fn half_open(stage: &Stage) -> Result<Outcome> {
    if fs::read_to_string("/proc/self/limits")?.lines().any(|line| line.starts_with("Max open files") && too_few(line)) {
        return Ok(Outcome::Skipped("fewer than 12,000 files may be open".to_owned()));
    }
    with_logs(stage.deployment(Scheme::Http)?, |deployment| {
        deployment.start_server()?;
        let address = deployment.frontend_url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let process = deployment.server()?.id();
        let before = resident(process)?;
        let mut held = Vec::new();
        for at in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(&address).with_context(|| format!("connection {at}"))?;
            stream.write_all(b"POST /control HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n")?;
            held.push(stream);
        }
        deployment.start_agent("client.config.yaml")?;
        let client = deployment.wait_for_client()?;
        let grown = resident(process)?.saturating_sub(before);
        ensure!(grown < CONNECTIONS * EACH, "{CONNECTIONS} connections cost {grown} bytes");
        let flow = deployment.collect(&client, "Linux.Sys.Pslist", "dict()")?;
        deployment.wait_for_flow(&client, &flow, "FINISHED")?;
        drop(held);
        Ok(())
    })
}

fn too_few(limits: &str) -> bool {
    limits.split_whitespace().nth(3).and_then(|soft| soft.parse::<u64>().ok()).is_some_and(|soft| soft < 12_000)
}

/// Bytes of memory that a process holds.
fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has a resident size")?;
    let kib: u64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kib << 10)
}
