//! Crashes: nothing that was acknowledged is lost, nothing is stored twice.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::Scheme;
use crate::process::wait_for;

pub(super) const CASES: &[Case] = &[
    ("a server killed during a collection has every row once after its restart", server_killed),
    ("an agent killed during a collection comes back as itself and the flow is reported as lost", agent_killed),
];

const COUNTER: &str = "name: Custom.Test.Counter\\nresources:\\n  max_batch_rows: 5\\nsources:\\n- query: SELECT _value AS N, sleep(ms=50) AS S FROM range(end=200)\\n";

fn server_killed(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Https)?, |deployment| {
        deployment.start_server()?;
        deployment.start_agent("client.config.yaml")?;
        let client = deployment.wait_for_client()?;
        deployment.query(&format!("SELECT artifact_set(definition=\"{COUNTER}\") FROM scope()"))?;
        let flow = deployment.collect(&client, "Custom.Test.Counter", "dict()")?;
        let rows = format!("SELECT N FROM source(client_id='{client}', flow_id='{flow}', artifact='Custom.Test.Counter')");
        wait_for("the first rows", Duration::from_secs(30), || Ok((!deployment.query(&rows)?.is_empty()).then_some(())))?;
        deployment.server()?.kill()?;
        deployment.start_server()?;
        deployment.wait_for_flow(&client, &flow, "FINISHED")?;
        let stored: Vec<i64> = deployment.query(&rows)?.iter().filter_map(|row| row["N"].as_i64()).collect();
        let distinct: BTreeSet<_> = stored.iter().copied().collect();
        ensure!(stored.len() == 200 && distinct.len() == 200, "{} rows stored, {} distinct", stored.len(), distinct.len());
        let server = deployment.path("server.config.yaml");
        deployment.talon(&["-c", &server, "audit", "verify"])?;
        Ok(())
    })
}

fn agent_killed(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Https)?, |deployment| {
        deployment.start_server()?;
        deployment.start_agent("client.config.yaml")?;
        let client = deployment.wait_for_client()?;
        deployment.query(&format!("SELECT artifact_set(definition=\"{COUNTER}\") FROM scope()"))?;
        let flow = deployment.collect(&client, "Custom.Test.Counter", "dict()")?;
        deployment.wait_for_flow(&client, &flow, "IN_PROGRESS")?;
        deployment.agent(0)?.kill()?;
        deployment.start_agent("client.config.yaml")?;
        let second = deployment.collect(&client, "Linux.Sys.Pslist", "dict()")?;
        deployment.wait_for_flow(&client, &second, "FINISHED")?;
        let clients = deployment.query("SELECT client_id FROM clients()")?;
        ensure!(clients.len() == 1, "the agent came back as another client: {clients:?}");
        Ok(())
    })
}
