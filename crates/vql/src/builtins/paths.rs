//! Paths as values.

use crate::args;
use crate::call::Call;
use crate::error::CallError;
use crate::path::{Delegate, OsPath, PathFlavour};
use crate::registry::Registry;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::{display, plain};
use crate::value::{Text, Value};

pub(super) fn register(registry: &mut Registry) {
    const TYPE: Arg = Arg::optional("path_type", ArgType::String, "linux, windows, ntfs, registry or generic.");
    const SEP: Arg = Arg::optional("sep", ArgType::String, "What separates components.");
    const PATH: Arg = Arg::required("path", ArgType::Any, "The path.");
    registry.function(
        Signature::function("pathspec", "Makes a path, perhaps inside a container file.")
            .args(args![
                Arg::optional("DelegateAccessor", ArgType::String, "The accessor of the container."),
                Arg::optional("DelegatePath", ArgType::String, "The path of the container."),
                Arg::optional("Delegate", ArgType::Lazy, "The container as a pathspec."),
                Arg::optional("Path", ArgType::Any, "The path in it: text, or components."),
                Arg::optional("parse", ArgType::String, "A path to read instead."),
                TYPE,
                Arg::optional("accessor", ArgType::String, "Read paths as this accessor does."),
            ])
            .version(2),
        pathspec,
    );
    registry.function(
        Signature::function("path_join", "Puts components together.").args(args![
            Arg::required("components", ArgType::AnyList, "The components."),
            SEP,
            TYPE,
        ]),
        |call| {
            let items = call.list("components");
            let mut components = Vec::new();
            for item in &items {
                match item {
                    Value::Path(path) => components.extend(path.components().iter().cloned()),
                    other => components.extend(OsPath::parse(plain(other), flavour(&call)).components().iter().cloned()),
                }
            }
            Ok(Value::from(shown(&call, OsPath::from_components(flavour(&call), components))))
        },
    );
    registry.function(Signature::function("path_split", "Gives the components of a path.").args(args![PATH, TYPE]), |call| {
        Ok(Value::list(path(&call).components().iter().cloned()))
    });
    registry.function(Signature::function("basename", "Gives the last component.").args(args![PATH, SEP, TYPE]), |call| {
        Ok(Value::Str(path(&call).basename()))
    });
    registry.function(Signature::function("dirname", "Gives the path without its last component.").args(args![PATH, SEP, TYPE]), |call| {
        let parent = path(&call).dirname();
        Ok(if matches!(call.value("path"), Value::Path(_)) { Value::from(parent) } else { Value::from(shown(&call, parent)) })
    });
    registry.function(
        Signature::function("relpath", "Gives a path relative to another.").args(args![
            Arg::required("path", ArgType::String, "The path."),
            Arg::required("base", ArgType::String, "What it is relative to."),
            SEP,
        ]),
        |call| {
            let (path, base) = (call.string("path"), call.string("base"));
            let (path, base) = (OsPath::parse(path, PathFlavour::Linux), OsPath::parse(base, PathFlavour::Linux));
            let common = path.components().iter().zip(base.components()).take_while(|(left, right)| left == right).count();
            let up = base.components().len().saturating_sub(common);
            let parts: Vec<String> = std::iter::repeat_n("..".to_owned(), up)
                .chain(path.components().iter().skip(common).map(|part| part.to_str().into_owned()))
                .collect();
            let sep = call.opt_string("sep").filter(|sep| !sep.is_empty()).unwrap_or_else(|| "/".to_owned());
            Ok(Value::from(if parts.is_empty() { ".".to_owned() } else { parts.join(&sep) }))
        },
    );
}

fn flavour(call: &Call) -> PathFlavour {
    let by_name = PathFlavour::from_name(&call.string("path_type")).unwrap_or(PathFlavour::Generic);
    match call.opt_string("sep").as_deref() {
        Some("\\") => PathFlavour::Windows,
        _ => by_name,
    }
}

fn path(call: &Call) -> OsPath {
    match call.value("path") {
        Value::Path(path) => OsPath::clone(&path),
        Value::List(items) => OsPath::from_components(flavour(call), items.iter().map(plain)),
        other => OsPath::parse(plain(&other), flavour(call)),
    }
}

/// The text of a path, with the separator that the call asks for.
fn shown(call: &Call, path: OsPath) -> Text {
    match call.opt_string("sep").filter(|sep| !sep.is_empty() && sep != "/" && sep != "\\") {
        Some(sep) => {
            let parts: Vec<String> = path.components().iter().map(|part| part.to_str().into_owned()).collect();
            Text::from(parts.join(&sep))
        }
        None => path.to_text(),
    }
}

fn pathspec(call: Call) -> Result<Value, CallError> {
    let accessor = call.string("accessor");
    let flavour = match call.opt_string("path_type") {
        Some(name) => PathFlavour::from_name(&name).ok_or_else(|| CallError::Argument(format!("Unknown path type {name}")))?,
        None => PathFlavour::from_name(&accessor).unwrap_or(PathFlavour::Generic),
    };
    if let Some(text) = call.text("parse") {
        return Ok(Value::from(OsPath::parse(text, flavour)));
    }
    let path = match call.value("Path") {
        Value::Null => OsPath::root(flavour),
        Value::Path(path) => OsPath::clone(&path),
        Value::List(items) => OsPath::from_components(flavour, items.iter().map(plain)),
        other => OsPath::parse(plain(&other), flavour),
    };
    let inner = match call.lazy("Delegate") {
        Value::Path(path) => Some(path.to_string()),
        Value::Dict(spec) => OsPath::from_pathspec(&spec, PathFlavour::Generic).map(|path| path.to_string()),
        Value::Null => call.opt_string("DelegatePath"),
        other => Some(display(&other)),
    };
    let container = call.opt_string("DelegateAccessor");
    if container.is_none() && inner.is_none() {
        return Ok(Value::from(path));
    }
    let delegate = Delegate { accessor: container.unwrap_or_default(), path: inner.unwrap_or_default() };
    Ok(Value::from(path.with_delegate(Some(delegate))))
}
