//! What else this machine and this program are: `filesystems()`, `efivariables()`, `profile()` and its kin.

use std::path::{Path, PathBuf};

use talon_acl::{Authority, MachineState, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::authority::permit;
use crate::feed::LogFeed;
use crate::host;

/// Where the kernel shows the variables of the firmware.
const EFI: &str = "/sys/firmware/efi/efivars";

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("filesystems", "The mounted file systems of this machine.").permissions(&[Permission::MachineState]),
        filesystems,
    );
    registry.plugin(
        Signature::plugin("efivariables", "The variables of this machine's firmware.")
            .args(
                const {
                    &[
                        Arg::optional("namespace", ArgType::String, "Only those of this namespace, a GUID."),
                        Arg::optional("name", ArgType::String, "Only the one of this name."),
                        Arg::optional("value", ArgType::Bool, "Read the values too."),
                    ]
                },
            )
            .permissions(&[Permission::MachineState]),
        efi_variables,
    );
    registry.plugin(
        Signature::plugin("profile", "What this program uses and does: rows of a Type and its Line.")
            .args(
                const {
                    &[
                        Arg::optional("allocs", ArgType::Bool, "Memory."),
                        Arg::optional("block", ArgType::Bool, "Not recorded by this program."),
                        Arg::optional("goroutine", ArgType::Bool, "Threads."),
                        Arg::optional("heap", ArgType::Bool, "Memory."),
                        Arg::optional("mutex", ArgType::Bool, "Not recorded by this program."),
                        Arg::optional("profile", ArgType::Bool, "Not recorded by this program."),
                        Arg::optional("trace", ArgType::Bool, "Not recorded by this program."),
                        Arg::optional("debug", ArgType::Int, "Not used."),
                        Arg::optional("logs", ArgType::Bool, "The last lines of the log, for those who may read it."),
                        Arg::optional("queries", ArgType::Bool, "Not recorded by this program."),
                        Arg::optional("metrics", ArgType::Bool, "Memory, processor time, threads and open files."),
                        Arg::optional("duration", ArgType::Int, "Not used."),
                        Arg::optional("type", ArgType::String, "One of the above by its name, as a pattern."),
                    ]
                },
            )
            .permissions(&[Permission::MachineState])
            .version(2),
        profile,
    );
    registry.plugin(
        Signature::plugin("profile_goroutines", "The threads of this program.")
            .args(const { &[Arg::optional("verbose", ArgType::Bool, "What each waits for as well.")] })
            .permissions(&[Permission::MachineState]),
        |call| {
            let permit: Permit<MachineState> = permit(call.scope())?;
            Ok(Rows::of(threads(&permit, call.bool("verbose"))?))
        },
    );
    registry.plugin(Signature::plugin("profile_memory", "The memory of this program.").permissions(&[Permission::MachineState]), |call| {
        let permit: Permit<MachineState> = permit(call.scope())?;
        Ok(Rows::one(memory(&permit)?))
    });
}

fn read(permit: &Permit<MachineState>, path: impl AsRef<Path>) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&host::state(permit, path.as_ref())?).into_owned())
}

fn filesystems(call: Call) -> Result<Rows, CallError> {
    let permit: Permit<MachineState> = permit(call.scope())?;
    let mounts = read(&permit, "/proc/self/mounts")?;
    let rows: Vec<Dict> = mounts.lines().filter_map(mount).map(|mount| with_space(&permit, mount)).collect();
    Ok(Rows::of(rows))
}

/// A line of the table of mounts. Spaces and the like are written as octal escapes.
fn mount(line: &str) -> Option<Dict> {
    let mut fields = line.split(' ').map(unescaped);
    let (device, place, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let options: Vec<String> = options.split(',').map(str::to_owned).collect();
    Some(Dict::new().with("Device", device).with("Mountpoint", place).with("Fstype", kind).with("Opts", options))
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        match (code, after.get(3..)) {
            (Some(code), Some(tail)) => {
                out.push(char::from(code));
                rest = tail;
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

fn with_space(permit: &Permit<MachineState>, mut mount: Dict) -> Dict {
    let place = mount.get("Mountpoint").and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = mount.get("Fstype").and_then(Value::as_str).unwrap_or_default().to_owned();
    // A server that is away would hold the query up for as long as it is.
    let remote = ["nfs", "cifs", "smb", "9p", "fuse", "ceph", "afs", "autofs"].iter().any(|remote| kind.starts_with(remote));
    let space = if remote { None } else { host::space(permit, Path::new(&place)).ok() };
    let (total, free) = space.unwrap_or_default();
    mount.set("Total", total);
    mount.set("Free", free);
    mount.set("Used", total.saturating_sub(free));
    mount
}

fn efi_variables(call: Call) -> Result<Rows, CallError> {
    const GUID: usize = 36;
    let permit: Permit<MachineState> = permit(call.scope())?;
    let names = match host::state_names(&permit, Path::new(EFI)) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err("this machine has no EFI firmware, or the kernel does not show it".into());
        }
        Err(error) => return Err(error.into()),
    };
    let (namespace, name, values) = (call.string("namespace"), call.string("name"), call.bool("value"));
    let mut rows = Vec::new();
    for file in names {
        let split = file.len().checked_sub(GUID).and_then(|at| Some((file.get(..at)?.strip_suffix('-')?, file.get(at..)?)));
        let Some((own_name, own_namespace)) = split else { continue };
        let wanted = (namespace.is_empty() || namespace.trim_matches(['{', '}']).eq_ignore_ascii_case(own_namespace))
            && (name.is_empty() || name == own_name);
        if !wanted {
            continue;
        }
        // The first four bytes are the attributes.
        let value = if values {
            host::state(&permit, &Path::new(EFI).join(&file)).ok().and_then(|all| all.get(4..).map(<[u8]>::to_vec))
        } else {
            None
        };
        rows.push(
            Dict::new()
                .with("Namespace", own_namespace)
                .with("Name", own_name)
                .with("Value", value.map_or(Value::Null, |value| Value::Bytes(value.into()))),
        );
    }
    Ok(Rows::of(rows))
}

/// The numbers of `/proc/self/status` that stand in kilobytes, in bytes, and the plain ones.
fn status(permit: &Permit<MachineState>) -> std::io::Result<Dict> {
    const SHOWN: &[(&str, &str)] = &[
        ("VmPeak", "VirtualPeak"),
        ("VmSize", "Virtual"),
        ("VmHWM", "ResidentPeak"),
        ("VmRSS", "Resident"),
        ("RssAnon", "Anonymous"),
        ("RssFile", "FileBacked"),
        ("VmSwap", "Swapped"),
    ];
    let text = read(permit, "/proc/self/status")?;
    let kilobytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    Ok(SHOWN.iter().filter_map(|(key, name)| Some((*name, kilobytes(key)?.saturating_mul(1024)))).collect())
}

fn memory(permit: &Permit<MachineState>) -> std::io::Result<Dict> {
    status(permit)
}

fn threads(permit: &Permit<MachineState>, verbose: bool) -> std::io::Result<Vec<Dict>> {
    let folder = PathBuf::from("/proc/self/task");
    let mut ids: Vec<u64> = host::state_names(permit, &folder)?.iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    let thread = |id: u64| {
        let own = folder.join(id.to_string());
        let stat = read(permit, own.join("stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let state = tail.split_whitespace().next().unwrap_or_default().to_owned();
        let mut row = Dict::new().with("Id", id).with("Name", name).with("State", state);
        if verbose {
            row.set("Waiting", read(permit, own.join("wchan")).unwrap_or_default());
        }
        Some(row)
    };
    Ok(ids.into_iter().filter_map(thread).collect())
}

fn metrics(permit: &Permit<MachineState>) -> std::io::Result<Dict> {
    let mut row = status(permit)?;
    let stat = read(permit, "/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, tail)| tail.split_whitespace().collect()).unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
    let seconds = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0) as f64 / ticks;
    row.set("UserSeconds", seconds(11));
    row.set("SystemSeconds", seconds(12));
    row.set("Threads", threads(permit, false)?.len() as u64);
    row.set("OpenFiles", host::state_names(permit, Path::new("/proc/self/fd"))?.len() as u64);
    Ok(row)
}

fn profile(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope();
    let permit: Permit<MachineState> = permit(scope)?;
    let pattern = match call.opt_string("type").filter(|pattern| !pattern.is_empty()) {
        Some(pattern) => Some(talon_vql::regex::Regex::ignoring_case(pattern.as_bytes()).map_err(CallError::failed)?),
        None => None,
    };
    let wanted = |names: &[&str]| {
        names.iter().any(|name| call.bool(name) || pattern.as_ref().is_some_and(|pattern| pattern.is_match(name.as_bytes())))
    };
    let mut rows = Vec::new();
    let mut add = |kind: &str, line: Dict| rows.push(Dict::new().with("Type", kind).with("Line", line));
    if wanted(&["allocs", "heap"]) {
        add("memory", memory(&permit)?);
    }
    if wanted(&["goroutine"]) {
        threads(&permit, call.int("debug") > 0)?.into_iter().for_each(|thread| add("thread", thread));
    }
    if wanted(&["metrics"]) {
        add("metrics", metrics(&permit)?);
    }
    if wanted(&["logs"]) {
        scope.check(talon_ids::Permissions::of(&[Permission::ServerAdmin]))?;
        if !scope.extension::<Authority>().is_some_and(|authority| authority.org().is_root()) {
            return Err("the log of this program is for the root organisation only".into());
        }
        let lines = scope.extension::<LogFeed>().map(|feed| feed.last()).unwrap_or_default();
        lines.iter().filter_map(Value::as_dict).for_each(|line| add("logs", Dict::clone(line)));
    }
    for name in ["block", "mutex", "profile", "trace", "queries"] {
        if call.bool(name) {
            call.log(format!("{name} is not recorded by this program"));
        }
    }
    Ok(Rows::of(rows))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::EndpointPolicy;
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    fn rows(vql: &str) -> Vec<String> {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).open();
        Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    #[test]
    fn mounts_are_read() {
        let row = mount("/dev/sda1 /mnt/a\\040b ext4 rw,noatime 0 0").unwrap();
        assert_eq!(json::encode(&row.into()), r#"{"Device":"/dev/sda1","Mountpoint":"/mnt/a b","Fstype":"ext4","Opts":["rw","noatime"]}"#);
        assert_eq!((unescaped("a\\b"), unescaped("\\04"), unescaped("\\134")), ("a\\b".to_owned(), "\\04".to_owned(), "\\".to_owned()));
        assert_eq!(rows("SELECT Mountpoint FROM filesystems() WHERE Mountpoint = '/' AND Total > 0 LIMIT 1"), [r#"{"Mountpoint":"/"}"#]);
    }

    #[test]
    fn the_program_shows_what_it_uses() {
        assert_eq!(
            rows("SELECT Type FROM profile(metrics=TRUE) WHERE Line.Resident > 100000 AND Line.Threads > 0 AND Line.OpenFiles > 0"),
            [r#"{"Type":"metrics"}"#]
        );
        assert_eq!(rows("SELECT Type FROM profile(type='^heap$')"), [r#"{"Type":"memory"}"#]);
        assert!(!rows("SELECT * FROM profile_goroutines(verbose=TRUE)").is_empty());
        assert_eq!(rows("SELECT Resident > 100000 AS Some FROM profile_memory()"), [r#"{"Some":true}"#]);
    }

    #[test]
    fn without_the_permission_nothing_is_shown() {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
        let plugins = ["filesystems", "efivariables", "profile", "profile_goroutines", "profile_memory", "netstat", "connections"];
        for plugin in plugins {
            assert_eq!(Query::new(&scope, &parse_statement(&format!("SELECT * FROM {plugin}()")).unwrap()).count(), 0);
        }
        assert_eq!(log.take().iter().filter(|line| line.contains("Permission denied: [MACHINE_STATE]")).count(), plugins.len());
    }
}
