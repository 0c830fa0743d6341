//! Views of the file system: names in any case (`file_nocase`), several folders as one (`overlay`), devices (`raw_file`).

use std::collections::BTreeMap;
use std::sync::Arc;

use talon_ids::{Permission, Permissions};
use talon_vql::{CallError, OsPath, PathFlavour, Scope, Value};

use super::disk::Disk;
use super::{Accessor, FileInfo, FileReader, named};

/// `file_nocase`: as `file`; a component that is not there is looked for in any case.
pub(super) struct NoCase;

impl NoCase {
    fn resolve(scope: &Scope, path: &Arc<OsPath>) -> Arc<OsPath> {
        let mut found = OsPath::root(PathFlavour::Linux);
        for wanted in path.components() {
            let exact = Arc::new(found.join(wanted.clone()));
            if Disk.stat(scope, &exact).is_ok() {
                found = OsPath::clone(&exact);
                continue;
            }
            let lowered = wanted.to_str().to_lowercase();
            let entries = Disk.list(scope, &Arc::new(found.clone())).unwrap_or_default();
            let same = entries.into_iter().map(|entry| entry.path.basename()).find(|name| name.to_str().to_lowercase() == lowered);
            found = found.join(same.unwrap_or_else(|| wanted.clone()));
        }
        Arc::new(found)
    }
}

impl Accessor for NoCase {
    fn permissions(&self) -> Permissions {
        Disk.permissions()
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        Disk.open(scope, &Self::resolve(scope, path))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Disk.stat(scope, &Self::resolve(scope, path))
    }

    fn stat_target(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Disk.stat_target(scope, &Self::resolve(scope, path))
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Disk.list(scope, &Self::resolve(scope, path))
    }
}

/// `raw_file`: files and devices, byte by byte.
pub(super) struct Raw;

impl Accessor for Raw {
    fn permissions(&self) -> Permissions {
        Disk.permissions()
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        Disk.open(scope, path)
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let info = Disk.stat_target(scope, path)?;
        if info.size > 0 || info.is_dir {
            return Ok(info);
        }
        // The size of a device is where it ends.
        let size = Disk.open(scope, path).and_then(|mut file| Ok(std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?));
        Ok(FileInfo { size: size.unwrap_or(0), ..info })
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Disk.list(scope, path)
    }
}

/// `overlay`: the folders that the variable `OVERLAY_ACCESSOR_DELEGATES` lists, as one. The first that has a file counts.
pub(super) struct Overlay;

/// The accessor of the layers, and a path in each of them.
type Layers = (Arc<dyn Accessor>, Vec<Arc<OsPath>>);

impl Overlay {
    /// The accessor of the layers, and `path` in each of them.
    fn layers(scope: &Scope, path: &OsPath) -> Result<Layers, CallError> {
        const MAX_LAYERS: usize = 1000;
        let bad = || CallError::failed("overlay: the variable OVERLAY_ACCESSOR_DELEGATES must be a dict with paths and accessor");
        let spec = scope.variable("OVERLAY_ACCESSOR_DELEGATES").map(|value| value.materialized(scope)).ok_or_else(bad)?;
        let spec = spec.as_dict().ok_or_else(bad)?;
        let accessor = spec.get("accessor").and_then(Value::as_str).unwrap_or_default();
        if accessor == "overlay" {
            return Err(CallError::failed("overlay: the layers cannot be an overlay"));
        }
        let paths = match spec.get("paths") {
            Some(Value::List(paths)) => paths.to_vec(),
            Some(Value::Null) | None => return Err(bad()),
            Some(one) => vec![one.clone()],
        };
        let way = named(scope, accessor)?;
        let flavour = way.flavour();
        let layer = |value: &Value| {
            let root = match value {
                Value::Path(path) => OsPath::clone(path),
                other => OsPath::parse(talon_vql::to_text(other.clone(), scope), flavour),
            };
            Arc::new(path.components().iter().fold(root, |layer, part| layer.join(part.clone())))
        };
        Ok((way, paths.iter().take(MAX_LAYERS).map(layer).collect()))
    }

    fn first<T>(scope: &Scope, path: &OsPath, get: impl Fn(&dyn Accessor, &Arc<OsPath>) -> Result<T, CallError>) -> Result<T, CallError> {
        let (accessor, layers) = Self::layers(scope, path)?;
        let mut failure = CallError::failed(format!("{path}: file does not exist"));
        for layer in &layers {
            match get(&*accessor, layer) {
                Ok(found) => return Ok(found),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

impl Accessor for Overlay {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        Self::first(scope, path, |accessor, layer| accessor.open(scope, layer))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let info = Self::first(scope, path, |accessor, layer| accessor.stat(scope, layer))?;
        Ok(FileInfo { path: path.clone(), ..info })
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        let (accessor, layers) = Self::layers(scope, path)?;
        let mut entries = BTreeMap::new();
        for layer in &layers {
            for entry in accessor.list(scope, layer).unwrap_or_default() {
                let name = entry.path.basename();
                let entry = FileInfo { path: Arc::new(path.join(name.clone())), identity: None, ..entry };
                entries.entry(name).or_insert(entry);
            }
        }
        Ok(entries.into_values().collect())
    }
}

/// Stands for accessors that this host does not have.
pub(super) struct Absent(pub(super) &'static str, pub(super) &'static str);

impl Absent {
    fn refuse<T>(&self) -> Result<T, CallError> {
        Err(CallError::failed(format!("{} accessor: {}", self.0, self.1)))
    }
}

impl Accessor for Absent {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::from_name(self.0).unwrap_or(PathFlavour::Generic)
    }

    fn permissions(&self) -> Permissions {
        match self.0 {
            "s3" | "smb" | "ssh" => Permissions::of(&[Permission::Network]),
            "vfs" => Permissions::of(&[Permission::ReadResults]),
            "winpmem" => Permissions::of(&[Permission::MachineState]),
            _ => Permissions::NONE,
        }
    }

    fn open(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        self.refuse()
    }

    fn stat(&self, _: &Scope, _: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        self.refuse()
    }

    fn list(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        self.refuse()
    }
}
