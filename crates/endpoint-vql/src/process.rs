//! Processes: `pslist()`, `getpid()`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use talon_acl::{Execute, MachineState, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Time, Value};

use crate::authority::permit;
use crate::host;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("pslist", "The processes of this machine.")
            .args(const { &[Arg::optional("pid", ArgType::Int, "Only this process.")] })
            .permissions(&[Permission::MachineState]),
        pslist,
    );
    registry.function(
        Signature::function("pskill", "Ends a process of this machine at once.")
            .args(const { &[Arg::required("pid", ArgType::Int, "The process.")] })
            .permissions(&[Permission::Execve]),
        pskill,
    );
    registry.function(Signature::function("getpid", "The process id of this program.").permissions(&[Permission::MachineState]), |_| {
        Ok(i64::from(std::process::id()).into())
    });
}

fn pskill(call: Call) -> Result<Value, CallError> {
    let permit: Permit<Execute> = permit(call.scope())?;
    let pid = i32::try_from(call.int("pid")).ok().filter(|pid| *pid > 1);
    let pid = pid.filter(|pid| u32::try_from(*pid) != Ok(std::process::id()));
    let pid = pid.ok_or("pid must be that of a process other than the first one and this program")?;
    host::kill(&permit, pid).map_err(|error| CallError::failed(format!("{pid}: {error}")))?;
    Ok(true.into())
}

fn pslist(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let permit: Permit<MachineState> = permit(&scope)?;
    let mut pids = match call.opt_int("pid") {
        Some(pid) => vec![pid],
        None => host::state_names(&permit, "/proc".as_ref())?.iter().filter_map(|name| name.parse().ok()).collect(),
    };
    pids.sort_unstable();
    let machine = Machine::read(&permit)?;
    let mut pids = pids.into_iter();
    Ok(Rows::from_fn(move || {
        loop {
            let pid = pids.next()?;
            if scope.stopped() {
                return None;
            }
            // A process may end between the listing and this look at it.
            if let Some(row) = process(&permit, &machine, pid) {
                return Some(Ok(row.into()));
            }
        }
    }))
}

/// What is the same for all processes.
struct Machine {
    users: BTreeMap<u32, String>,
    boot_time: i64,
    ticks_per_second: u64,
    page_size: u64,
}

impl Machine {
    fn read(permit: &Permit<MachineState>) -> Result<Self, CallError> {
        let passwd = host::state(permit, "/etc/passwd".as_ref()).unwrap_or_default();
        let users = String::from_utf8_lossy(&passwd).lines().filter_map(user).collect();
        Ok(Self {
            users,
            boot_time: boot_time(permit)?,
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
            page_size: rustix::param::page_size() as u64,
        })
    }
}

fn user(line: &str) -> Option<(u32, String)> {
    let mut fields = line.split(':');
    let (name, id) = (fields.next()?, fields.nth(1)?);
    Some((id.parse().ok()?, name.to_owned()))
}

/// When the machine started, in unix seconds.
pub(crate) fn boot_time(permit: &Permit<MachineState>) -> Result<i64, CallError> {
    let stat = host::state(permit, "/proc/stat".as_ref())?;
    let text = String::from_utf8_lossy(&stat);
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).ok_or_else(|| CallError::failed("/proc/stat has no btime"))
}

fn process(permit: &Permit<MachineState>, machine: &Machine, pid: i64) -> Option<Dict> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let stat = Stat::parse(&String::from_utf8_lossy(&host::state(permit, &folder.join("stat")).ok()?))?;
    let status = host::state(permit, &folder.join("status")).unwrap_or_default();
    let command = host::state(permit, &folder.join("cmdline")).unwrap_or_default();
    let link = |name: &str| {
        let target = host::state_link(permit, &folder.join(name)).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        target.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(target)
    };
    let seconds = |ticks: u64| ticks as f64 / machine.ticks_per_second as f64;
    let started = machine.boot_time.saturating_add(i64::try_from(stat.start_ticks / machine.ticks_per_second).ok()?);
    let mut row = Dict::new().ignoring_case();
    row.set("Pid", pid);
    row.set("Name", stat.name);
    row.set("Ppid", stat.parent);
    row.set("CommandLine", command_line(&command));
    row.set("CreateTime", Time::from_unix(started).to_string());
    row.set("Times", Dict::new().with("user", seconds(stat.user_ticks)).with("system", seconds(stat.system_ticks)));
    row.set("Exe", link("exe"));
    row.set("Cwd", link("cwd"));
    row.set("Username", owner(&String::from_utf8_lossy(&status), machine));
    row.set("MemoryInfo", Dict::new().with("rss", stat.resident_pages.saturating_mul(machine.page_size)).with("vms", stat.virtual_bytes));
    Some(row)
}

/// Arguments with spaces between them.
fn command_line(raw: &[u8]) -> String {
    let raw = raw.strip_suffix(b"\0").unwrap_or(raw);
    String::from_utf8_lossy(raw).replace('\0', " ")
}

/// The name of the real user, or its number.
fn owner(status: &str, machine: &Machine) -> Value {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let id = line.and_then(|ids| ids.split_whitespace().next()).and_then(|id| id.parse::<u32>().ok());
    id.map_or(Value::Null, |id| machine.users.get(&id).cloned().unwrap_or_else(|| id.to_string()).into())
}

/// The fields of `/proc/PID/stat` that are shown.
#[derive(Debug, PartialEq)]
struct Stat {
    name: String,
    parent: i64,
    user_ticks: u64,
    system_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// The name stands in parentheses and may contain any character, so the last parenthesis ends it.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        Some(Self {
            name,
            parent: fields.get(1)?.parse().ok()?,
            user_ticks: number(11)?,
            system_ticks: number(12)?,
            start_ticks: number(19)?,
            virtual_bytes: number(20)?,
            resident_pages: number(21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, parse_statement};

    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = Stat::parse("7 (a) b (c)) S 1 7 7 0 -1 0 0 0 0 0 30 40 0 0 20 0 1 0 555 1048576 12 0").unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.user_ticks, stat.start_ticks, stat.resident_pages), ("a) b (c)", 1, 30, 555, 12));
    }

    #[test]
    fn this_process_is_among_them() {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).open();
        let row = Query::new(&scope, &parse_statement("SELECT * FROM pslist(pid=getpid())").unwrap()).next().unwrap();
        assert_eq!(row.get("Pid").and_then(Value::as_int), Some(i64::from(std::process::id())));
        assert!(row.get("Exe").and_then(Value::as_str).is_some_and(|exe| exe.contains("talon_endpoint_vql")));
        let lower = Query::new(&scope, &parse_statement("SELECT pid AS P FROM pslist(pid=getpid())").unwrap()).next().unwrap();
        assert_eq!(lower.get("P").and_then(Value::as_int), row.get("Pid").and_then(Value::as_int), "columns are found in any case");
        let columns: Vec<&str> = row.keys().map(|key| key.as_str()).collect();
        assert_eq!(columns, ["Pid", "Name", "Ppid", "CommandLine", "CreateTime", "Times", "Exe", "Cwd", "Username", "MemoryInfo"]);
    }

    #[test]
    fn processes_are_ended_where_that_is_allowed() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let end = |policy: EndpointPolicy, pid: i64| {
            let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), policy));
            let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).open();
            let row = Query::new(&scope, &parse_statement(&format!("SELECT pskill(pid={pid}) AS X FROM scope()")).unwrap()).next().unwrap();
            row.get("X").cloned().unwrap()
        };
        let pid = i64::from(child.id());
        assert!(end(EndpointPolicy { prevent_execve: true }, pid).is_null() && child.try_wait().unwrap().is_none());
        for refused in [i64::from(std::process::id()), 1, 0, -1, i64::MAX] {
            assert!(end(EndpointPolicy::default(), refused).is_null(), "{refused}");
        }
        assert!(matches!(end(EndpointPolicy::default(), pid), Value::Bool(true)));
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn without_the_permission_no_process_is_seen() {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
        assert_eq!(Query::new(&scope, &parse_statement("SELECT * FROM pslist()").unwrap()).count(), 0);
        assert!(log.take().contains(&"pslist: PermissionDenied: Permission denied: [MACHINE_STATE]".to_owned()));
    }
}
