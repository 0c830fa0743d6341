//! A deployment in a folder: configuration, one server, agents, and the command line against them, made as an administrator would.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::{Process, wait_for};
use crate::workspace_root;

/// The three programs, built.
#[derive(Clone)]
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds them, showing cargo's own progress.
    pub(crate) fn build() -> Result<Self> {
        Self::build_as("dev", "debug")
    }

    /// Builds them as they are shipped, for measuring.
    #[cfg(feature = "lab")]
    pub(crate) fn optimized() -> Result<Self> {
        Self::build_as("release", "release")
    }

    /// Programs that were built before.
    #[cfg(feature = "lab")]
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn build_as(profile: &str, folder: &str) -> Result<Self> {
        let packages = ["talon-frontend", "talon-agent", "talon-admin-cli"];
        let status = Command::new(env!("CARGO"))
            .current_dir(workspace_root())
            .args(["build", "--profile", profile])
            .args(packages.iter().flat_map(|package| ["--package", package]))
            .status()?;
        ensure!(status.success(), "cargo build failed");
        let metadata = cargo_metadata::MetadataCommand::new().current_dir(workspace_root()).no_deps().exec()?;
        Ok(Self { folder: metadata.target_directory.join(folder).into_std_path_buf() })
    }

    /// The path of one program.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// How agents reach the frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    Http,
    Https,
    Ws,
    Wss,
}

impl Scheme {
    /// Whether there is no TLS.
    pub(crate) fn is_plain(self) -> bool {
        matches!(self, Self::Http | Self::Ws)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }
}

/// A folder with everything of one deployment.
pub(crate) struct Deployment {
    pub(crate) programs: Programs,
    pub(crate) folder: PathBuf,
    pub(crate) frontend_url: String,
    pub(crate) api_address: String,
    server: Option<Process>,
    agents: Vec<Process>,
    /// Whether programs log what they do.
    verbose: bool,
}

impl Deployment {
    /// Generates certificates and configuration files into `folder`.
    pub(crate) fn create(programs: &Programs, folder: &Path, scheme: Scheme) -> Result<Self> {
        Self::create_with(programs, folder, scheme, &Value::Null)
    }

    /// The same with other settings: each key of `changes` replaces the one of the same section.
    pub(crate) fn create_with(programs: &Programs, folder: &Path, scheme: Scheme, changes: &Value) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let [frontend, api, gui, monitoring] = free_ports()?;
        let frontend_url = format!("{}://127.0.0.1:{frontend}/", scheme.name());
        let deployment = Self {
            programs: programs.clone(),
            folder,
            frontend_url,
            api_address: format!("127.0.0.1:{api}"),
            server: None,
            agents: Vec::new(),
            verbose: true,
        };
        let mut merge = deployment.settings(scheme, [frontend, api, gui, monitoring]);
        for (section, keys) in changes.as_object().into_iter().flatten() {
            for (key, value) in keys.as_object().into_iter().flatten() {
                merge[section.as_str()][key.as_str()] = value.clone();
            }
        }
        let config = deployment.talon(&["config", "generate", "--merge", &merge.to_string()])?;
        write_private(&deployment.file("server.config.yaml"), &config)?;
        let client = deployment.talon(&["-c", &deployment.path("server.config.yaml"), "config", "client"])?;
        write_private(&deployment.file("client.config.yaml"), &client)?;
        deployment.api_client("admin", Some("administrator"), "api.config.yaml")?;
        Ok(deployment)
    }

    fn settings(&self, scheme: Scheme, [frontend, api, gui, monitoring]: [u16; 4]) -> Value {
        json!({
            "Client": {
                "server_urls": [self.frontend_url],
                "use_self_signed_ssl": true,
                "writeback_linux": self.path("agent/writeback.yaml"),
                "local_buffer": { "filename_linux": self.path("agent/buffer.bin") },
                "max_poll": 4,
                "max_poll_std": 1,
            },
            "Frontend": { "hostname": "localhost", "bind_address": "127.0.0.1", "bind_port": frontend, "use_plain_http": scheme.is_plain() },
            "API": { "bind_address": "127.0.0.1", "bind_port": api },
            "GUI": { "bind_address": "127.0.0.1", "bind_port": gui },
            "Monitoring": { "bind_address": "127.0.0.1", "bind_port": monitoring },
            "Datastore": { "location": self.path("datastore"), "filestore_directory": self.path("datastore") },
            "Logging": { "output_directory": self.path("logs") },
        })
    }

    /// Makes an API key for `name`, and the user when a role is given.
    pub(crate) fn api_client(&self, name: &str, role: Option<&str>, file: &str) -> Result<()> {
        let server = self.path("server.config.yaml");
        let target = self.path(file);
        let mut arguments = vec!["-c", &server, "config", "api_client", "--name", name];
        if let Some(role) = role {
            arguments.extend(["--role", role]);
        }
        arguments.push(&target);
        self.talon(&arguments).map(|_| ())
    }

    /// Starts the server and waits until it listens.
    pub(crate) fn start_server(&mut self) -> Result<&str> {
        let mut command = Command::new(self.programs.path("talon-frontend"));
        command.arg("-c").arg(self.file("server.config.yaml")).args(self.verbose.then_some("-v"));
        let process = Process::start("talon-frontend", &mut command, &self.file("logs/frontend.stderr"))?;
        Ok(self.server.insert(process).ready_line())
    }

    /// The running server.
    pub(crate) fn server(&mut self) -> Result<&mut Process> {
        self.server.as_mut().context("the server was not started")
    }

    /// Starts an agent with the client configuration `config` and waits until it is ready.
    pub(crate) fn start_agent(&mut self, config: &str) -> Result<&mut Process> {
        fs::create_dir_all(self.file("agent"))?;
        let mut command = Command::new(self.programs.path("talon-agent"));
        command.arg("-c").arg(self.file(config)).args(self.verbose.then_some("-v"));
        let log = self.file(&format!("logs/agent-{}.stderr", self.agents.len()));
        let process = Process::start("talon-agent", &mut command, &log)?;
        self.agents.push(process);
        self.agents.last_mut().context("an agent was just started")
    }

    /// A started agent.
    pub(crate) fn agent(&mut self, index: usize) -> Result<&mut Process> {
        self.agents.get_mut(index).context("no such agent")
    }

    /// Lets programs log no more than they do in service: what is measured is not how fast they log.
    #[cfg(feature = "lab")]
    pub(crate) fn quiet(mut self) -> Self {
        self.verbose = false;
        self
    }

    /// The agent that was started last.
    #[cfg(feature = "lab")]
    pub(crate) fn last_agent(&mut self) -> Result<&mut Process> {
        self.agents.last_mut().context("no agent was started")
    }

    /// Stops all programs, agents first, and fails when one did not end well.
    pub(crate) fn stop(&mut self) -> Result<()> {
        for process in self.agents.iter_mut().chain(&mut self.server) {
            if process.is_running() {
                let status = process.stop()?;
                ensure!(status.success(), "{} ended with {status}:\n{}", process.name(), process.log_tail());
            }
        }
        Ok(())
    }

    /// The id of the one client that has been interrogated, once there is one.
    pub(crate) fn wait_for_client(&self) -> Result<String> {
        wait_for("an interrogated client", Duration::from_secs(60), || {
            let rows = self.query("SELECT client_id, os_info FROM clients()")?;
            let known = rows.iter().find(|row| row["os_info"]["hostname"].as_str().is_some_and(|name| !name.is_empty()));
            Ok(known.and_then(|row| row["client_id"].as_str()).map(str::to_owned))
        })
    }

    /// Schedules a collection and returns its flow id.
    pub(crate) fn collect(&self, client: &str, artifact: &str, env: &str) -> Result<String> {
        let rows =
            self.query(&format!("SELECT collect_client(client_id='{client}', artifacts='{artifact}', env={env}) AS Flow FROM scope()"))?;
        let flow = rows.first().and_then(|row| row["Flow"]["flow_id"].as_str());
        flow.map(str::to_owned).with_context(|| format!("collect_client returned no flow: {rows:?}"))
    }

    /// Waits until a flow is in `state` and returns its record.
    pub(crate) fn wait_for_flow(&self, client: &str, flow: &str, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait_for(&format!("flow {flow} in state {state}"), Duration::from_secs(60), || {
            let rows = self.query(&format!("SELECT * FROM flows(client_id='{client}', flow_id='{flow}')"))?;
            last = rows.into_iter().next().unwrap_or_default();
            Ok((last["state"] == state).then(|| last.clone()))
        });
        found.with_context(|| format!("last seen: {last}"))
    }

    /// Rows of a query over the API as the administrator.
    pub(crate) fn query(&self, vql: &str) -> Result<Vec<Value>> {
        self.query_as("api.config.yaml", vql)
    }

    /// Rows of a query with the API key in `file`.
    pub(crate) fn query_as(&self, file: &str, vql: &str) -> Result<Vec<Value>> {
        let text = self.talon(&["-a", &self.path(file), "query", vql, "--format", "jsonl"])?;
        text.lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).with_context(|| format!("not a row: {line}")))
            .collect()
    }

    /// Runs `talon` and returns what it printed for programs.
    pub(crate) fn talon(&self, arguments: &[&str]) -> Result<String> {
        let output = self.talon_output(arguments)?;
        if !output.status.success() {
            bail!("talon {} failed ({}):\n{}", shown(arguments), output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `talon`, whatever it answers.
    pub(crate) fn talon_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(self.programs.path("talon"));
        command.args(arguments).output().with_context(|| format!("running talon {}", shown(arguments)))
    }

    /// A path inside the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// The end of every log, for a case that failed.
    pub(crate) fn logs(&self) -> String {
        let processes = self.server.iter().chain(&self.agents);
        processes.map(|process| format!("---- log:\n{}\n", process.log_tail())).collect()
    }
}

fn shown(arguments: &[&str]) -> String {
    arguments.join(" ").chars().take(300).collect()
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Ports that were free a moment ago. All are held until all are found, so they differ.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    ports.try_into().map_err(|_| anyhow::anyhow!("as many ports as listeners"))
}
