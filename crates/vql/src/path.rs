//! Paths: components with the rules of the file system they belong to, and perhaps the container file they lie in.

use std::fmt;

use crate::dict::Dict;
use crate::value::{Text, Value};

/// How paths are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PathFlavour {
    /// `/a/b`
    #[default]
    Linux,
    /// `/` and `\` both separate; quotes protect them.
    Generic,
    /// Drives, devices and UNC hosts first, then as generic.
    Windows,
    /// As Windows; drives are devices.
    Ntfs,
    /// Hives first; no leading separator.
    Registry,
    /// `fs:/a/b`: the server's file store.
    FileStore,
}

impl PathFlavour {
    /// The flavour that `pathspec(path_type=…)` and relatives call `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "" | "auto" | "linux" | "file" | "file_nocase" | "raw_file" | "process" | "unix" | "posix" => Self::Linux,
            "generic" | "data" => Self::Generic,
            "windows" => Self::Windows,
            "ntfs" => Self::Ntfs,
            "registry" | "reg" => Self::Registry,
            "fs" | "fs_sparse" => Self::FileStore,
            _ => return None,
        })
    }

    fn folds_case(self) -> bool {
        matches!(self, Self::Windows | Self::Ntfs | Self::Registry)
    }
}

/// The file that a path lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    /// The accessor that opens it.
    pub accessor: String,
    /// Its path, as that accessor reads it.
    pub path: String,
}

/// A path.
#[derive(Debug, Clone, Default)]
pub struct OsPath {
    flavour: PathFlavour,
    components: Vec<Text>,
    delegate: Option<Box<Delegate>>,
    /// For accessors whose path is a text of its own: what was given.
    literal: Option<Text>,
}

/// How deep container files may nest in one path.
const MAX_DELEGATES: usize = 20;

impl OsPath {
    /// The root.
    #[must_use]
    pub fn root(flavour: PathFlavour) -> Self {
        Self { flavour, ..Self::default() }
    }

    /// The path of `components`, taken as they are.
    #[must_use]
    pub fn from_components<T: Into<Text>>(flavour: PathFlavour, components: impl IntoIterator<Item = T>) -> Self {
        Self { flavour, components: components.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// A path that is a text of its own: content of the `data` accessor, a variable's name.
    #[must_use]
    pub fn literal(text: impl Into<Text>) -> Self {
        let text = text.into();
        Self { flavour: PathFlavour::Generic, components: vec![text.clone()], delegate: None, literal: Some(text) }
    }

    /// Reads a path as the accessor called `accessor` does.
    #[must_use]
    pub fn for_accessor(text: impl Into<Text>, accessor: &str) -> Self {
        match accessor {
            "data" | "scope" => Self::literal(text),
            name => Self::parse(text, PathFlavour::from_name(name).unwrap_or(PathFlavour::Generic)),
        }
    }

    /// Reads a path, or a pathspec if it begins with `{`.
    #[must_use]
    pub fn parse(text: impl Into<Text>, flavour: PathFlavour) -> Self {
        let text = text.into();
        if text.first() == Some(&b'{')
            && let Some(path) = Self::parse_pathspec(&text, flavour)
        {
            return path;
        }
        Self::parse_plain(&text, flavour)
    }

    fn parse_plain(text: &[u8], flavour: PathFlavour) -> Self {
        let components = match flavour {
            PathFlavour::Linux => split(text, b"/"),
            PathFlavour::Generic => split_quoted(text),
            PathFlavour::FileStore => {
                let text = text.strip_prefix(b"fs:").or_else(|| text.strip_prefix(b"ds:")).unwrap_or(text);
                split_quoted(text)
            }
            PathFlavour::Windows | PathFlavour::Ntfs => split_windows(text, flavour == PathFlavour::Ntfs),
            PathFlavour::Registry => split_registry(text),
        };
        Self { flavour, components, ..Self::default() }
    }

    fn parse_pathspec(text: &[u8], flavour: PathFlavour) -> Option<Self> {
        let value = crate::json::decode(text).ok()?;
        Self::from_pathspec(value.as_dict()?, flavour)
    }

    /// The path that a pathspec dict describes. `None` when it is none.
    #[must_use]
    pub fn from_pathspec(spec: &Dict, flavour: PathFlavour) -> Option<Self> {
        Self::pathspec_at(spec, flavour, 0)
    }

    fn pathspec_at(spec: &Dict, flavour: PathFlavour, depth: usize) -> Option<Self> {
        if depth > MAX_DELEGATES || spec.is_empty() {
            return None;
        }
        if spec.keys().any(|key| !matches!(key.as_str(), "DelegateAccessor" | "DelegatePath" | "Delegate" | "Path")) {
            return None;
        }
        let text = |key: &str| match spec.get(key) {
            Some(Value::Str(text)) => Some(text.clone()),
            Some(Value::Path(path)) => Some(path.to_text()),
            _ => None,
        };
        let mut path = text("Path").map_or_else(|| Self::root(flavour), |text| Self::parse_plain(&text, flavour));
        let delegate = match spec.get("Delegate") {
            Some(Value::Dict(inner)) => Some(Self::pathspec_at(inner, flavour, depth.saturating_add(1))?.to_string()),
            _ => text("DelegatePath").map(|text| text.to_str().into_owned()),
        };
        let accessor = text("DelegateAccessor").map(|text| text.to_str().into_owned());
        if accessor.is_some() || delegate.is_some() {
            path.delegate = Some(Box::new(Delegate { accessor: accessor.unwrap_or_default(), path: delegate.unwrap_or_default() }));
        }
        Some(path)
    }

    /// The same path inside another container file.
    #[must_use]
    pub fn with_delegate(mut self, delegate: Option<Delegate>) -> Self {
        self.delegate = delegate.map(Box::new);
        self
    }

    /// The flavour.
    #[must_use]
    pub fn flavour(&self) -> PathFlavour {
        self.flavour
    }

    /// The components.
    #[must_use]
    pub fn components(&self) -> &[Text] {
        &self.components
    }

    /// The container file, if there is one.
    #[must_use]
    pub fn delegate(&self) -> Option<&Delegate> {
        self.delegate.as_deref()
    }

    /// What was given, for a path that is a text of its own.
    #[must_use]
    pub fn as_literal(&self) -> Option<&Text> {
        self.literal.as_ref()
    }

    /// The last component; empty for a root.
    #[must_use]
    pub fn basename(&self) -> Text {
        self.components.last().cloned().unwrap_or_else(|| Text::from(""))
    }

    /// The path without its last component.
    #[must_use]
    pub fn dirname(&self) -> Self {
        let keep = self.components.len().saturating_sub(1);
        self.with_components(self.components.iter().take(keep).cloned().collect())
    }

    /// The same kind of path with other components.
    #[must_use]
    pub fn with_components(&self, components: Vec<Text>) -> Self {
        Self { flavour: self.flavour, components, delegate: self.delegate.clone(), literal: None }
    }

    /// The path one component deeper.
    #[must_use]
    pub fn join(&self, component: impl Into<Text>) -> Self {
        let mut components = self.components.clone();
        components.push(component.into());
        self.with_components(components)
    }

    /// The path with the components of `text`, read in this flavour, appended.
    #[must_use]
    pub fn append(&self, text: &[u8]) -> Self {
        let tail = Self::parse_plain(text, if self.flavour == PathFlavour::Linux { PathFlavour::Linux } else { PathFlavour::Generic });
        let mut components = self.components.clone();
        components.extend(tail.components);
        self.with_components(components)
    }

    /// Whether there is neither a component nor a container.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.components.is_empty() && self.delegate.is_none()
    }

    /// Whether the components are those of `other`, by the rules of the flavour.
    #[must_use]
    pub fn same_components(&self, other: &Self) -> bool {
        self.components.len() == other.components.len()
            && self
                .components
                .iter()
                .zip(&other.components)
                .all(|(left, right)| if self.flavour.folds_case() { left.eq_ignore_ascii_case(right) } else { left == right })
    }

    pub(crate) fn weight(&self) -> u64 {
        let own: u64 = self.components.iter().map(|component| component.len() as u64).sum();
        own.saturating_add(self.delegate.as_ref().map_or(0, |delegate| delegate.path.len() as u64)).saturating_add(64)
    }

    /// The components as text, without the container.
    #[must_use]
    pub fn plain(&self) -> Text {
        if let Some(literal) = &self.literal {
            return literal.clone();
        }
        let mut out = Vec::new();
        let quoted = |component: &Text| quote(component, self.flavour);
        match self.flavour {
            PathFlavour::Linux => {
                if self.components.is_empty() {
                    out.push(b'/');
                }
                for component in &self.components {
                    out.push(b'/');
                    out.extend_from_slice(component);
                }
            }
            PathFlavour::Generic | PathFlavour::FileStore => {
                if self.flavour == PathFlavour::FileStore {
                    out.extend_from_slice(b"fs:");
                }
                if self.components.is_empty() && self.flavour == PathFlavour::FileStore {
                    out.push(b'/');
                }
                for (at, component) in self.components.iter().enumerate() {
                    let drive = at == 0 && is_drive(component);
                    if !drive {
                        out.push(b'/');
                    }
                    out.extend_from_slice(&quoted(component));
                }
            }
            PathFlavour::Windows | PathFlavour::Ntfs | PathFlavour::Registry => {
                for (at, component) in self.components.iter().enumerate() {
                    if at == 0 {
                        out.extend_from_slice(component);
                    } else {
                        out.push(b'\\');
                        out.extend_from_slice(&quoted(component));
                    }
                }
            }
        }
        out.into()
    }

    /// The form that results show: plain, or the pathspec as JSON when there is a container.
    #[must_use]
    pub fn to_text(&self) -> Text {
        match &self.delegate {
            None => self.plain(),
            Some(_) => crate::json::encode(&Value::from(self.pathspec())).into(),
        }
    }

    /// The pathspec as a dict.
    #[must_use]
    pub fn pathspec(&self) -> Dict {
        let mut spec = Dict::new();
        if let Some(delegate) = &self.delegate {
            spec.set("DelegateAccessor", delegate.accessor.as_str());
            let nested = delegate.path.starts_with('{').then(|| crate::json::decode(delegate.path.as_bytes()).ok()).flatten();
            match nested {
                Some(nested @ Value::Dict(_)) => spec.set("Delegate", nested),
                _ => spec.set("DelegatePath", delegate.path.as_str()),
            }
        }
        spec.set("Path", self.plain());
        spec
    }
}

impl fmt::Display for OsPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.to_text().to_str())
    }
}

fn is_dots(component: &[u8]) -> bool {
    matches!(component, b"." | b"..")
}

fn split(text: &[u8], separators: &[u8]) -> Vec<Text> {
    text.split(|byte| separators.contains(byte)).filter(|part| !part.is_empty() && !is_dots(part)).map(Text::from).collect()
}

/// Splits at `/` and `\`; a component that begins with `"` runs to its closing quote, `""` inside being a quote.
fn split_quoted(text: &[u8]) -> Vec<Text> {
    let mut components = Vec::new();
    let mut current = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    let mut flush = |current: &mut Vec<u8>, quoted: bool| {
        let part = std::mem::take(current);
        if !part.is_empty() && (quoted || !is_dots(&part)) {
            components.push(Text::from(part));
        }
    };
    while let Some(byte) = bytes.next() {
        match byte {
            b'/' | b'\\' => flush(&mut current, false),
            b'"' if current.is_empty() => {
                while let Some(inner) = bytes.next() {
                    if inner != b'"' {
                        current.push(inner);
                    } else if bytes.peek() == Some(&b'"') {
                        bytes.next();
                        current.push(b'"');
                    } else {
                        break;
                    }
                }
                flush(&mut current, true);
            }
            other => current.push(other),
        }
    }
    flush(&mut current, false);
    components
}

fn is_drive(component: &[u8]) -> bool {
    matches!(component, [letter, b':'] if letter.is_ascii_alphabetic())
}

fn split_windows(text: &[u8], ntfs: bool) -> Vec<Text> {
    let starts = |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()));
    let head_and_rest = |count: usize| {
        let rest = text.get(count..).unwrap_or_default();
        let end = rest.iter().position(|byte| matches!(byte, b'\\' | b'/')).unwrap_or(rest.len());
        let head = text.get(..count.saturating_add(end)).unwrap_or(text);
        let mut components = vec![Text::from(head)];
        components.extend(split_quoted(rest.get(end..).unwrap_or_default()));
        components
    };
    let device = [r"\\?\GLOBALROOT\Device\", r"\\.\", r"\\?\"].into_iter().find(|prefix| starts(prefix));
    let mut components = match device {
        Some(prefix) => head_and_rest(prefix.len()),
        None if text.starts_with(b"\\\\") => head_and_rest(2),
        None => split_quoted(text),
    };
    if ntfs
        && let Some(first) = components.first_mut()
        && is_drive(first)
    {
        *first = Text::from([b"\\\\.\\", &first[..]].concat());
    }
    components
}

fn split_registry(text: &[u8]) -> Vec<Text> {
    let mut components = split_quoted(text);
    if let Some(first) = components.first_mut() {
        let hive = match first.to_str().to_ascii_uppercase().as_str() {
            "HKCR" => Some("HKEY_CLASSES_ROOT"),
            "HKCU" => Some("HKEY_CURRENT_USER"),
            "HKLM" => Some("HKEY_LOCAL_MACHINE"),
            "HKU" => Some("HKEY_USERS"),
            "HKCC" => Some("HKEY_CURRENT_CONFIG"),
            _ => None,
        };
        if let Some(hive) = hive {
            *first = hive.into();
        }
    }
    components
}

fn quote(component: &Text, flavour: PathFlavour) -> Vec<u8> {
    let special = |byte: &u8| match flavour {
        PathFlavour::Linux => false,
        _ => matches!(byte, b'/' | b'\\' | b'"'),
    };
    if !component.iter().any(special) {
        return component.to_vec();
    }
    let mut out = vec![b'"'];
    for byte in component.iter() {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flavour_reads_and_writes() {
        use PathFlavour::*;
        for (flavour, text, components, printed) in [
            (Linux, "/etc//./passwd", "etc|passwd", "/etc/passwd"),
            (Linux, "../../etc/..", "etc", "/etc"),
            (Linux, "", "", "/"),
            (Linux, "/a\\b", "a\\b", "/a\\b"),
            (Generic, "/a\\b/\"c/d\"", "a|b|c/d", "/a/b/\"c/d\""),
            (Generic, "C:\\Windows", "C:|Windows", "C:/Windows"),
            (Windows, "C:\\Windows\\System32", "C:|Windows|System32", "C:\\Windows\\System32"),
            (Windows, "\\\\server\\share\\x", "\\\\server|share|x", "\\\\server\\share\\x"),
            (Ntfs, "C:\\$MFT", "\\\\.\\C:|$MFT", "\\\\.\\C:\\$MFT"),
            (Registry, "HKLM\\Software\\\"a/b\"", "HKEY_LOCAL_MACHINE|Software|a/b", "HKEY_LOCAL_MACHINE\\Software\\\"a/b\""),
            (FileStore, "fs:/clients/C.1", "clients|C.1", "fs:/clients/C.1"),
        ] {
            let path = OsPath::parse(text, flavour);
            let joined = path.components().iter().map(|part| part.to_str().into_owned()).collect::<Vec<_>>().join("|");
            assert_eq!(joined, components, "{text}");
            assert_eq!(path.to_string(), printed, "{text}");
            assert!(OsPath::parse(printed, flavour).same_components(&path), "{text}");
        }
    }

    #[test]
    fn pathspecs_nest() {
        let text =
            r#"{"DelegateAccessor":"zip","Delegate":{"DelegateAccessor":"file","DelegatePath":"/a.zip","Path":"/b.zip"},"Path":"/c"}"#;
        let path = OsPath::parse(text, PathFlavour::Linux);
        assert_eq!(path.basename().to_str(), "c");
        assert_eq!(path.delegate().map(|delegate| delegate.accessor.as_str()), Some("zip"));
        assert_eq!(path.to_string(), text);
        assert_eq!(OsPath::parse("{not json", PathFlavour::Linux).to_string(), "/{not json");
    }
}
