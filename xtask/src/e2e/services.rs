//! The server's own services: hunts, collections and events on the server itself, notebooks, and what is forwarded to other systems.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::Scheme;
use crate::process::wait_for;

pub(super) const CASES: &[Case] = &[
    ("a hunt collects from an agent once and survives a restart of the server", hunt),
    ("an artifact runs on the server and a notebook shows what it found", on_the_server),
    ("audit records are forwarded to a chat and to Elasticsearch", forwarding),
];

const LIMIT: Duration = Duration::from_secs(60);

fn text<'a>(row: &'a Value, name: &str) -> Result<&'a str> {
    row[name].as_str().with_context(|| format!("no {name} in {row}"))
}

fn hunt(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Https)?, |deployment| {
        deployment.start_server()?;
        deployment.start_agent("client.config.yaml")?;
        let client = deployment.wait_for_client()?;
        let made = deployment.query("SELECT hunt(description='d', artifacts='Linux.Sys.Pslist').HuntId AS H FROM scope()")?;
        let hunt = text(made.first().context("no hunt")?, "H")?.to_owned();
        let finished = |deployment: &crate::deployment::Deployment| {
            let found = deployment.query(&format!("SELECT stats FROM hunts(hunt_id='{hunt}')"))?;
            let stats = found.first().context("the hunt is gone")?["stats"].clone();
            Ok((stats["total_finished_clients"] == 1).then_some(stats))
        };
        let stats = wait_for("the hunt to finish on the agent", LIMIT, || finished(deployment))?;
        ensure!(stats["total_clients_scheduled"] == 1 && stats["total_collected_rows"].as_u64() > Some(1), "totals: {stats}");
        let rows = deployment.query(&format!("SELECT Name, ClientId FROM hunt_results(hunt_id='{hunt}', artifact='Linux.Sys.Pslist')"))?;
        ensure!(rows.iter().any(|row| row["Name"] == "talon-agent" && row["ClientId"] == client.as_str()), "results: {rows:?}");
        deployment.server()?.kill()?;
        deployment.start_server()?;
        let stats = wait_for("the hunt after the restart", LIMIT, || finished(deployment))?;
        ensure!(stats["total_clients_scheduled"] == 1, "the agent was taken on again: {stats}");
        let archive = deployment.query(&format!("SELECT create_hunt_download(hunt_id='{hunt}') AS P FROM scope()"))?;
        ensure!(text(archive.first().context("no archive")?, "P")?.ends_with(".zip"), "archive: {archive:?}");
        Ok(())
    })
}

fn on_the_server(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Http)?, |deployment| {
        deployment.start_server()?;
        let flow = deployment.collect("server", "Generic.Client.Info", "dict()")?;
        deployment.wait_for_flow("server", &flow, "FINISHED")?;
        let table = "artifact='Generic.Client.Info/BasicInformation'";
        let rows = deployment.query(&format!("SELECT * FROM source(client_id='server', flow_id='{flow}', {table})"))?;
        ensure!(rows.len() == 1 && rows[0]["OS"] == "linux", "rows: {rows:?}");
        let made = deployment.query("SELECT notebook_create(name='n').notebook_id AS N FROM scope()")?;
        let notebook = text(made.first().context("no notebook")?, "N")?.to_owned();
        let input = format!("SELECT OS FROM source(client_id='server', flow_id='{flow}', {table})").replace('\'', "\\'");
        let cell = format!("notebook_update_cell(notebook_id='{notebook}', input='{input}')");
        let shown = deployment.query(&format!("SELECT {cell}.latest_cell_id AS C FROM scope()"))?;
        let cell = text(shown.first().context("no cell")?, "C")?.to_owned();
        let rows = deployment.query(&format!("SELECT * FROM source(notebook_id='{notebook}', notebook_cell_id='{cell}')"))?;
        ensure!(rows.len() == 1 && rows[0]["OS"] == "linux", "the cell shows {rows:?}");
        Ok(())
    })
}

fn forwarding(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Http)?, |deployment| {
        deployment.start_server()?;
        deployment.start_agent("client.config.yaml")?;
        let client = deployment.wait_for_client()?;
        let (chat, chats) = receiver("{}")?;
        let (elastic, bulks) = receiver(r#"{"took":1,"errors":false,"items":[]}"#)?;
        let condition = "x=>x.operation =~ \"ClientLabel\"";
        deployment.query(&format!(
            "SELECT add_server_monitoring(artifact='Server.Alerts.Notification', \
             parameters=dict(WebhookURL='{chat}/hook', Condition='{condition}')) FROM scope()"
        ))?;
        deployment.query(&format!(
            "SELECT add_server_monitoring(artifact='Elastic.Events.Upload', \
             parameters=dict(Addresses='{elastic}', BatchSeconds='1')) FROM scope()"
        ))?;
        // Watchers see what happens after they have begun: the action is repeated until they have.
        let mut number = 0;
        let line = wait_for("a line in the chat", LIMIT, || {
            number += 1;
            deployment.query(&format!("SELECT label(client_id='{client}', labels='l{number}') FROM scope()"))?;
            Ok(chats.recv_timeout(Duration::from_secs(1)).ok())
        })?;
        let line: Value = serde_json::from_str(&line).with_context(|| format!("the chat got {line}"))?;
        ensure!(text(&line, "text")?.contains("SetClientLabel by admin in root"), "the chat got {line}");
        let bulk = wait_for("records in Elasticsearch", LIMIT, || {
            Ok(bulks.recv_timeout(Duration::from_secs(1)).ok().filter(|bulk| bulk.contains("SetClientLabel")))
        })?;
        ensure!(bulk.contains("talon_server_audit_logs") && bulk.contains(&client), "Elasticsearch got {bulk}");
        let rows = wait_for("the table of what was sent", LIMIT, || {
            let rows = deployment.query("SELECT * FROM source(client_id='server', artifact='Server.Alerts.Notification')")?;
            Ok((!rows.is_empty()).then_some(rows))
        })?;
        ensure!(rows[0]["Response"] == 200, "rows: {rows:?}");
        Ok(())
    })
}

/// An HTTP server that takes anything and hands the bodies on.
fn receiver(answer: &'static str) -> Result<(String, Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", listener.local_addr()?);
    let (sender, bodies) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || serve(stream, &sender, answer));
        }
    });
    Ok((address, bodies))
}

/// Serves the requests of one connection, until it ends or is none.
fn serve(stream: TcpStream, bodies: &Sender<String>, answer: &str) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if !body.is_empty() {
            bodies.send(String::from_utf8_lossy(&body).into_owned()).ok()?;
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Elastic-Product: Elasticsearch\r\n";
        write!(writer, "{head}Content-Length: {}\r\n\r\n{answer}", answer.len()).ok()?;
    }
}
