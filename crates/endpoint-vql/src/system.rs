//! The machine: `info()`, `sysinfo()`, `environ()`, `expand()`.

use std::path::Path;
use std::sync::Arc;

use talon_acl::{MachineState, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Scope, Signature, Time, Value};

use crate::authority::permit;
use crate::host;
use crate::process::boot_time;

/// Environment variables that may hold a configuration with secrets: queries never see them.
const HIDDEN: &[&str] = &["VELOCIRAPTOR_CONFIG", "VELOCIRAPTOR_LITERAL_CONFIG", "VELOCIRAPTOR_API_CONFIG"];

/// The prefix of Talon's own variables, which are hidden as well.
const HIDDEN_PREFIX: &str = "TALON_";

/// What a program says of itself in `info()`. The host program puts it into the environment.
#[derive(Debug, Clone)]
pub struct AgentFacts {
    /// When the program started.
    pub started: Time,
}

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("info", "What this machine is: name, operating system, versions.").permissions(&[Permission::MachineState]),
        |call| Ok(Rows::one(info(call.scope())?)),
    );
    registry.function(
        Signature::function("info", "What this machine is: name, operating system, versions.").permissions(&[Permission::MachineState]),
        |call| Ok(info(call.scope())?.into()),
    );
    registry.function(
        Signature::function("sysinfo", "Memory and processors of this machine.").permissions(&[Permission::MachineState]),
        |call| Ok(sysinfo(&permit(call.scope())?)?.into()),
    );
    registry.plugin(
        Signature::plugin("environ", "The environment variables of this program.")
            .args(const { &[Arg::optional("vars", ArgType::Strings, "Only these.")] })
            .permissions(&[Permission::MachineState]),
        |call| Ok(Rows::one(environ(&call))),
    );
    registry.function(
        Signature::function("environ", "An environment variable of this program.")
            .args(const { &[Arg::required("var", ArgType::String, "Its name.")] })
            .permissions(&[Permission::MachineState])
            .false_on_error(),
        |call| Ok(visible(&call.string("var")).into()),
    );
    registry.function(
        Signature::function("expand", "A path with its environment variables filled in.")
            .args(const { &[Arg::required("path", ArgType::String, "The path, with `$NAME`, `${NAME}` or `%NAME%`.")] })
            .permissions(&[Permission::MachineState]),
        |call| Ok(expand(&call.string("path")).into()),
    );
}

fn text(permit: &Permit<MachineState>, path: &str) -> String {
    host::state(permit, Path::new(path)).map(|content| String::from_utf8_lossy(&content).trim().to_owned()).unwrap_or_default()
}

fn info(scope: &Scope) -> Result<Dict, CallError> {
    let permit: Permit<MachineState> = permit(scope)?;
    let uname = rustix::system::uname();
    let hostname = uname.nodename().to_string_lossy().into_owned();
    let release = text(&permit, "/etc/os-release");
    let field = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let uptime = text(&permit, "/proc/uptime");
    let uptime = uptime.split('.').next().and_then(|seconds| seconds.parse::<i64>().ok()).unwrap_or_default();
    let started = scope.extension::<AgentFacts>().map(|facts| facts.started);
    let zone = local_zone(&permit);
    Ok(Dict::new()
        .with("Hostname", hostname.as_str())
        .with("Uptime", uptime)
        .with("BootTime", boot_time(&permit).unwrap_or_default())
        .with("OS", std::env::consts::OS)
        .with("Platform", field("ID"))
        .with("PlatformFamily", family(&field("ID"), &field("ID_LIKE")))
        .with("PlatformVersion", field("VERSION_ID"))
        .with("KernelVersion", uname.release().to_string_lossy().into_owned())
        .with("VirtualizationSystem", "")
        .with("VirtualizationRole", "")
        .with("CompilerVersion", concat!("rust ", env!("CARGO_PKG_RUST_VERSION")))
        .with("HostID", text(&permit, "/etc/machine-id"))
        .with("Exe", std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default())
        .with("CWD", std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default())
        .with("IsAdmin", rustix::process::geteuid().is_root())
        .with("ClientStart", started.map_or(Value::Null, Value::Time))
        .with("LocalTZ", zone)
        .with("LocalTZOffset", local_offset(scope))
        .with("Fqdn", fqdn(&hostname, &text(&permit, "/etc/hosts")))
        .with("Architecture", architecture(uname.machine().to_string_lossy().as_ref())))
}

/// The distribution family as administrators group them.
fn family(id: &str, like: &str) -> String {
    let known = ["debian", "rhel", "suse", "arch", "alpine", "fedora"];
    let all = std::iter::once(id).chain(like.split_whitespace());
    all.into_iter().find(|name| known.contains(name)).unwrap_or(id).to_owned()
}

/// Go's name of an architecture, which stock peers use.
fn architecture(machine: &str) -> String {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i586" | "i686" => "386",
        other => other,
    }
    .to_owned()
}

/// The first name with a dot that the hosts file gives to `hostname`, else the name itself.
fn fqdn(hostname: &str, hosts: &str) -> String {
    let names = hosts.lines().map(|line| line.split('#').next().unwrap_or_default()).filter_map(|line| {
        let names: Vec<&str> = line.split_whitespace().skip(1).collect();
        names.contains(&hostname).then(|| names.into_iter().find(|name| name.contains('.')))?
    });
    let qualified = names.into_iter().next().filter(|name| !name.starts_with("localhost"));
    qualified.unwrap_or(hostname).to_owned()
}

fn local_zone(permit: &Permit<MachineState>) -> String {
    let named = text(permit, "/etc/timezone");
    if named.is_empty() { "UTC".to_owned() } else { named }
}

fn local_offset(scope: &Scope) -> i64 {
    let local = talon_vql::time::zone("local");
    local.and_then(|zone| scope.now().civil(&zone)).map_or(0, |civil| i64::from(civil.offset))
}

fn sysinfo(permit: &Permit<MachineState>) -> Result<Dict, CallError> {
    let memory = text(permit, "/proc/meminfo");
    let kilobytes = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok()).unwrap_or_default()
    };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(Dict::new()
        .with("TotalMemory", kilobytes("MemTotal").saturating_mul(1024))
        .with("FreeMemory", kilobytes("MemFree").saturating_mul(1024))
        .with("AvailableMemory", kilobytes("MemAvailable").saturating_mul(1024))
        .with("CPUs", processors))
}

/// A variable that queries may see.
fn visible(name: &str) -> Option<String> {
    let hidden = HIDDEN.iter().any(|hidden| hidden.eq_ignore_ascii_case(name)) || name.to_ascii_uppercase().starts_with(HIDDEN_PREFIX);
    if hidden { None } else { std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()) }
}

fn environ(call: &Call) -> Dict {
    let wanted = call.strings("vars");
    let mut row = Dict::new().ignoring_case().with_default(Value::Null);
    let all = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    for name in all.filter(|name| wanted.is_empty() || wanted.contains(name)) {
        if let Some(value) = visible(&name) {
            row.set(name, value);
        }
    }
    row
}

/// Fills in `$NAME`, `${NAME}` and `%NAME%`; unknown names become empty, a lone mark stays.
fn expand(path: &str) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some(at) = rest.find(['$', '%']) {
        let (before, marked) = rest.split_at(at);
        out.push_str(before);
        match reference(marked) {
            Some((name, after)) => {
                out.push_str(&visible(name).unwrap_or_default());
                rest = after;
            }
            None => {
                out.push_str(marked.get(..1).unwrap_or_default());
                rest = marked.get(1..).unwrap_or_default();
            }
        }
    }
    out + rest
}

fn reference(text: &str) -> Option<(&str, &str)> {
    if let Some(braced) = text.strip_prefix("${") {
        return braced.split_once('}').filter(|(name, _)| !name.is_empty());
    }
    if let Some(percent) = text.strip_prefix('%') {
        return percent.split_once('%').filter(|(name, _)| !name.is_empty() && !name.contains(['/', '\\']));
    }
    let name = text.strip_prefix('$')?;
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
    (end > 0).then(|| name.split_at(end))
}

/// Facts for the environment of a program that started at `started`.
impl AgentFacts {
    /// The facts, ready to be put into an environment.
    #[must_use]
    pub fn new(started: Time) -> Arc<Self> {
        Arc::new(Self { started })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_come_from_the_hosts_file() {
        assert_eq!(fqdn("web1", "127.0.0.1 localhost\n10.0.0.1 web1.example.com web1 # me\n"), "web1.example.com");
        assert_eq!(fqdn("web1", "10.0.0.1 other.example.com other\n"), "web1");
    }

    #[test]
    fn families_and_architectures_have_the_names_that_peers_use() {
        assert_eq!(family("ubuntu", "debian"), "debian");
        assert_eq!(family("rocky", "rhel centos fedora"), "rhel");
        assert_eq!(architecture("x86_64"), "amd64");
    }

    #[test]
    fn configuration_in_the_environment_is_hidden() {
        assert_eq!(visible("VELOCIRAPTOR_LITERAL_CONFIG"), None);
        assert_eq!(visible("talon_config"), None);
        assert!(visible("PATH").is_some());
    }

    #[test]
    fn variables_are_filled_in() {
        let path = std::env::var("PATH").unwrap();
        assert_eq!(expand("a/$PATH/b"), format!("a/{path}/b"));
        assert_eq!(expand("${PATH}%PATH%"), format!("{path}{path}"));
        assert_eq!(expand("100% of $ and $NO_SUCH_VARIABLE_HERE."), "100% of $ and .");
    }
}
