//! `remap()`: accessors of one query that show files of others, as a file system shows what is mounted into it. Nothing else is seen there. What is
//! shown needs the permissions of the accessor that it comes from.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use talon_ids::Permissions;
use talon_vql::{Arg, ArgType, Call, CallError, OsPath, PathFlavour, Registry, Scope, Signature, Text, Value};

use super::data::info;
use super::{Accessor, Accessors, BUILT_IN, FileInfo, FileReader, Mode};

/// The most mounts of one query.
const MAX_MOUNTS: usize = 1000;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("remap", "Lets accessors show files of other accessors, for the rest of this query.").args(
            const {
                &[
                    Arg::required(
                        "config",
                        ArgType::String,
                        "YAML with `remappings`: of type mount, with from and on, each an accessor and a prefix.",
                    ),
                    Arg::optional("copy", ArgType::Strings, "Accessors that stay as they are, beside clear."),
                    Arg::optional("clear", ArgType::Bool, "Take all other accessors away."),
                ]
            },
        ),
        remap,
    );
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    remappings: Vec<Remapping>,
}

#[derive(Deserialize)]
struct Remapping {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    from: Place,
    #[serde(default)]
    on: Place,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Place {
    accessor: String,
    prefix: String,
    path_type: String,
}

/// What `remap()` made of the accessors of a query.
#[derive(Default)]
pub(super) struct Remapped(Mutex<State>);

#[derive(Default)]
struct State {
    accessors: Option<Arc<Accessors>>,
    mounts: BTreeMap<String, Vec<Arc<Mount>>>,
}

thread_local! {
    /// How many mounts this thread is inside of. There, accessors are what they were.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

struct Inside;

impl Inside {
    fn enter() -> Self {
        INSIDE.set(INSIDE.get().saturating_add(1));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(INSIDE.get().saturating_sub(1));
    }
}

/// The accessors of a query that remaps, outside of its mounts.
pub(super) fn of(scope: &Scope) -> Option<Arc<Accessors>> {
    if INSIDE.get() > 0 {
        return None;
    }
    scope.shared::<Remapped>().0.lock().unwrap_or_else(PoisonError::into_inner).accessors.clone()
}

fn remap(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let config: Config = serde_saphyr::from_str(&call.string("config"))
        .map_err(|error| CallError::failed(format!("config: {}", error.without_snippet())))?;
    let originals = scope.extension::<Accessors>().unwrap_or_else(|| BUILT_IN.clone());
    let original = |name: &str| {
        let name = if name.is_empty() { "auto" } else { name };
        originals.0.get(name).cloned().ok_or_else(|| CallError::failed(format!("Unknown filesystem accessor {name}")))
    };
    let remapped = scope.shared::<Remapped>();
    let mut state = remapped.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut accessors = match (call.bool("clear"), &state.accessors) {
        (true, _) => Accessors(BTreeMap::new()),
        (false, Some(current)) => Accessors::clone(current),
        (false, None) => Accessors::clone(&originals),
    };
    let mut mounts = if call.bool("clear") { BTreeMap::new() } else { state.mounts.clone() };
    for name in call.strings("copy") {
        accessors.0.insert(name.clone(), original(&name)?);
    }
    for remapping in config.remappings {
        let on = if remapping.on.accessor.is_empty() { "auto".to_owned() } else { remapping.on.accessor.clone() };
        let from = original(&remapping.from.accessor)?;
        match remapping.kind.as_str() {
            "mount" => {
                let of_one: &mut Vec<Arc<Mount>> = mounts.entry(on.clone()).or_default();
                if of_one.len() >= MAX_MOUNTS {
                    return Err("there are too many mounts".into());
                }
                of_one.push(Arc::new(Mount::new(&remapping, &on, from)?));
                accessors.add(&on, Mounts(of_one.clone()));
            }
            "shadow" => {
                accessors.0.insert(on, from);
            }
            // What it would take away must not stay.
            "permissions" => return Err("remappings of type permissions are not supported: run the query as a user who may do less".into()),
            other => call.log(format!("a remapping of type {other:?} is left out; mount and shadow are supported")),
        }
    }
    (state.accessors, state.mounts) = (Some(Arc::new(accessors)), mounts);
    Ok(Value::Bool(true))
}

/// A folder of one accessor in the place of a folder of another.
struct Mount {
    /// Where it is seen.
    on: OsPath,
    from: Arc<dyn Accessor>,
    /// What is seen.
    base: OsPath,
}

impl Mount {
    fn new(remapping: &Remapping, on: &str, from: Arc<dyn Accessor>) -> Result<Self, CallError> {
        let stated = if remapping.on.path_type.is_empty() { on } else { &remapping.on.path_type };
        let flavour = PathFlavour::from_name(stated).unwrap_or(PathFlavour::Generic);
        let name = if remapping.from.accessor.is_empty() { "auto" } else { &remapping.from.accessor };
        let base = if remapping.from.prefix.starts_with('{') || PathFlavour::from_name(name).is_none() {
            OsPath::parse(remapping.from.prefix.as_str(), from.flavour())
        } else {
            OsPath::for_accessor(remapping.from.prefix.as_str(), name)
        };
        Ok(Self { on: OsPath::parse(remapping.on.prefix.as_str(), flavour), from, base })
    }

    /// What is left of `path` below this mount.
    fn rest<'a>(&self, path: &'a OsPath) -> Option<&'a [Text]> {
        let (own, given) = (self.on.components(), path.components());
        let (head, rest) = given.split_at_checked(own.len())?;
        head.iter().zip(own).all(|(left, right)| self.same(left, right)).then_some(rest)
    }

    fn same(&self, left: &Text, right: &Text) -> bool {
        match self.on.flavour() {
            PathFlavour::Windows | PathFlavour::Ntfs | PathFlavour::Registry => left.as_bytes().eq_ignore_ascii_case(right.as_bytes()),
            _ => left == right,
        }
    }

    /// The path of the file that is seen as `path`.
    fn inner(&self, rest: &[Text]) -> Arc<OsPath> {
        if rest.is_empty() {
            return Arc::new(self.base.clone());
        }
        let components: Vec<Text> = self.base.components().iter().chain(rest).cloned().collect();
        Arc::new(self.base.with_components(components))
    }
}

/// An accessor that shows mounts, and nothing else.
struct Mounts(Vec<Arc<Mount>>);

impl Mounts {
    /// The mount that `path` lies in; of several, the deepest one, and of those the newest.
    fn find(&self, path: &OsPath) -> Option<(&Mount, Arc<OsPath>)> {
        let found = self.0.iter().filter_map(|mount| Some((mount, mount.rest(path)?)));
        let (mount, rest) = found.max_by_key(|(mount, _)| mount.on.components().len())?;
        Some((mount, mount.inner(rest)))
    }

    /// The folders directly below `path` that lead to mounts.
    fn leading(&self, path: &OsPath) -> BTreeSet<Vec<u8>> {
        let given = path.components();
        self.0
            .iter()
            .filter_map(|mount| {
                let (head, below) = mount.on.components().split_at_checked(given.len())?;
                let leads = head.iter().zip(given).all(|(left, right)| mount.same(left, right));
                below.first().filter(|_| leads).map(|name| name.as_bytes().to_vec())
            })
            .collect()
    }

    fn missing<T>(path: &OsPath) -> Result<T, CallError> {
        Err(CallError::failed(format!("{path}: nothing is mounted there")))
    }
}

fn folder(path: &Arc<OsPath>) -> FileInfo {
    FileInfo { mode: Mode(0o040_755), is_dir: true, ..info(path, 0) }
}

impl Accessor for Mounts {
    fn flavour(&self) -> PathFlavour {
        self.0.first().map(|mount| mount.on.flavour()).unwrap_or_default()
    }

    fn permissions(&self) -> Permissions {
        self.0.iter().fold(Permissions::NONE, |all, mount| all.union(mount.from.permissions()))
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let Some((mount, inner)) = self.find(path) else { return Self::missing(path) };
        let _inside = Inside::enter();
        mount.from.open(scope, &inner)
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let Some((mount, inner)) = self.find(path) else {
            return if self.leading(path).is_empty() { Self::missing(path) } else { Ok(folder(path)) };
        };
        let _inside = Inside::enter();
        Ok(FileInfo { path: path.clone(), ..mount.from.stat(scope, &inner)? })
    }

    fn stat_target(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let Some((mount, inner)) = self.find(path) else { return self.stat(scope, path) };
        let _inside = Inside::enter();
        Ok(FileInfo { path: path.clone(), ..mount.from.stat_target(scope, &inner)? })
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        let leading = self.leading(path);
        let mut entries = match self.find(path) {
            None if leading.is_empty() => return Self::missing(path),
            None => Vec::new(),
            Some((mount, inner)) => {
                let _inside = Inside::enter();
                let found = mount.from.list(scope, &inner)?;
                found.into_iter().map(|entry| FileInfo { path: Arc::new(path.join(entry.path.basename())), ..entry }).collect()
            }
        };
        entries.retain(|entry| !leading.contains(entry.path.basename().as_bytes()));
        entries.extend(leading.into_iter().map(|name| folder(&Arc::new(path.join(name)))));
        entries.sort_by(|left, right| left.path.basename().as_bytes().cmp(right.path.basename().as_bytes()));
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    fn rows(scope: &Scope, vql: &str) -> Vec<String> {
        Query::new(scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    fn allowed() -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority)
    }

    #[test]
    fn what_is_mounted_is_seen_in_its_place_and_nothing_else() {
        let real = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(real.path().join("etc")).unwrap();
        std::fs::write(real.path().join("etc/passwd"), "root of the image").unwrap();
        let log = Arc::new(MemoryLog::default());
        let scope = allowed().log(log.clone()).open();
        let config = format!(
            "remappings:\n- type: mount\n  from:\n    accessor: file\n    prefix: {}\n  on:\n    accessor: auto\n    prefix: /mnt/image\n- type: impersonation\n",
            real.path().display()
        );
        assert_eq!(rows(&scope, &format!("SELECT remap(config='''{config}''') AS X FROM scope()")), [r#"{"X":true}"#]);
        assert_eq!(
            rows(&scope, "SELECT OSPath, Size FROM glob(globs='/**', accessor='auto')"),
            [
                r#"{"OSPath":"/mnt","Size":0}"#,
                r#"{"OSPath":"/mnt/image","Size":0}"#,
                r#"{"OSPath":"/mnt/image/etc","Size":4096}"#,
                r#"{"OSPath":"/mnt/image/etc/passwd","Size":17}"#
            ]
            .map(|row| row.replace("4096", &std::fs::metadata(real.path().join("etc")).unwrap().len().to_string()))
        );
        assert_eq!(
            rows(
                &scope,
                "SELECT read_file(filename='/mnt/image/etc/passwd') AS A, read_file(filename='/etc/hostname') AS B, stat(filename='/mnt/image/etc').IsDir AS C FROM scope()"
            ),
            [r#"{"A":"root of the image","B":null,"C":true}"#]
        );
        let path = real.path().join("etc/passwd");
        assert_eq!(
            rows(&scope, &format!("SELECT read_file(filename='{}', accessor='file') AS A FROM scope()", path.display())),
            [r#"{"A":"root of the image"}"#]
        );
        assert!(log.take().iter().any(|line| line.contains("\"impersonation\" is left out")));
        let other = allowed().open();
        assert_eq!(rows(&other, "SELECT OSPath FROM stat(filename='/mnt/image')").len(), 0, "other queries see what they saw");
    }

    #[test]
    fn accessors_can_be_taken_away_and_rights_stay() {
        let scope = allowed().open();
        assert_eq!(
            rows(
                &scope,
                "SELECT remap(clear=TRUE, copy='data', config='remappings: [{type: mount, from: {accessor: file, prefix: /etc}, \"on\": {accessor: auto, prefix: /}}]') AS X FROM scope()"
            ),
            [r#"{"X":true}"#]
        );
        assert_eq!(
            rows(
                &scope,
                "SELECT read_file(filename='x', accessor='data') AS A, read_file(filename='/etc/hostname', accessor='file') AS B FROM scope()"
            ),
            [r#"{"A":"x","B":null}"#]
        );
        assert_eq!(rows(&scope, "SELECT remap(config='remappings: [{type: permissions}]') AS X FROM scope()"), [r#"{"X":null}"#]);
        let log = Arc::new(MemoryLog::default());
        let nobody = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
        rows(
            &nobody,
            "LET _ <= remap(config='remappings: [{type: mount, from: {accessor: file, prefix: /etc}, \"on\": {accessor: data, prefix: /}}]')",
        );
        assert_eq!(rows(&nobody, "SELECT read_file(filename='/hostname', accessor='data') AS A FROM scope()"), [r#"{"A":null}"#]);
        assert!(log.take().iter().any(|line| line.contains("Accessor data: PermissionDenied: Permission denied: [FILESYSTEM_READ]")));
    }

    #[test]
    fn a_mount_may_come_from_the_accessor_that_it_covers() {
        let scope = allowed().open();
        rows(
            &scope,
            "LET _ <= remap(config='remappings: [{type: mount, from: {accessor: auto, prefix: /etc}, \"on\": {accessor: auto, prefix: /}}]')",
        );
        let own = std::fs::read_to_string("/etc/passwd").unwrap();
        let read = rows(&scope, "SELECT len(list=read_file(filename='/passwd')) AS N FROM scope()");
        assert_eq!(read, [format!("{{\"N\":{}}}", own.len())]);
    }
}
