//! `yara()`, `yarax()`, `proc_yara()`, `yara_lint()`: files and memory searched by rules.

#[cfg(feature = "yara")]
mod engine;
mod rules;
#[cfg(feature = "yara")]
mod scan;

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Registry, Signature};

const RULES: Arg = Arg::required("rules", ArgType::String, "The rules, or words such as `wide nocase:one,two`.");
const CONTEXT: Arg = Arg::optional("context", ArgType::Int, "How many bytes before and after a hit to give.");
const NUMBER: Arg = Arg::optional("number", ArgType::Int, "Stop after this many hits in a file; 1 unless given.");
const KEY: Arg = Arg::optional("key", ArgType::String, "Not used: compiled rules are kept by their text.");
const NAMESPACE: Arg = Arg::optional("namespace", ArgType::String, "The namespace of the rules.");
const VARS: Arg = Arg::optional("vars", ArgType::Dict, "Values for variables of the rules.");

const FILES: &[Arg] = &[
    Arg::optional("rules", ArgType::String, "The rules, or words such as `wide nocase:one,two`."),
    Arg::required("files", ArgType::AnyList, "The files."),
    Arg::optional("accessor", ArgType::String, "The accessor that reads them."),
    CONTEXT,
    Arg::optional("start", ArgType::UInt, "Where to begin in each file."),
    Arg::optional("end", ArgType::UInt, "Where to end in each file."),
    NUMBER,
    Arg::optional("blocksize", ArgType::UInt, "How much of a large file is searched at once."),
    KEY,
    NAMESPACE,
    VARS,
    Arg::optional("force_buffers", ArgType::Bool, "Search in blocks even what fits into memory."),
];

const FILES_X: &[Arg] = &[
    Arg::optional("rules", ArgType::String, "The rules, or words such as `wide nocase:one,two`."),
    Arg::required("files", ArgType::AnyList, "The files."),
    Arg::optional("accessor", ArgType::String, "The accessor that reads them."),
    CONTEXT,
    Arg::optional("start", ArgType::UInt, "Where to begin in each file."),
    Arg::optional("end", ArgType::UInt, "Where to end in each file."),
    NUMBER,
    Arg::optional("blocksize", ArgType::UInt, "How much of a large file is searched at once."),
    KEY,
    NAMESPACE,
    VARS,
    Arg::optional("dll_path", ArgType::Lambda, "Not used: the engine is part of the program."),
    Arg::optional("force_buffers", ArgType::Bool, "Search in blocks even what fits into memory."),
];

const YARA: Signature =
    Signature::plugin("yara", "Searches files by YARA rules.").args(FILES).permissions(&[Permission::FilesystemRead]).version(2);

const YARAX: Signature = Signature::plugin("yarax", "Searches files by YARA rules; the same engine as yara().")
    .args(FILES_X)
    .permissions(&[Permission::FilesystemRead])
    .version(2);

const PROC_YARA: Signature = Signature::plugin("proc_yara", "Searches the memory of a process by YARA rules.")
    .args(&[RULES, Arg::required("pid", ArgType::Int, "The process."), CONTEXT, KEY, NAMESPACE, VARS, NUMBER])
    .permissions(&[Permission::MachineState])
    .version(2);

const YARA_LINT: Signature = Signature::function("yara_lint", "The rules of a text that the engine takes.")
    .args(&[Arg::required("rules", ArgType::String, "The rules."), Arg::optional("clean", ArgType::Bool, "Leave out metadata.")]);

#[cfg(feature = "yara")]
pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(YARA, scan::files);
    registry.plugin(YARAX, scan::files);
    registry.plugin(PROC_YARA, scan::process);
    registry.function(YARA_LINT, scan::lint);
}

#[cfg(not(feature = "yara"))]
pub(crate) fn register(registry: &mut Registry) {
    const REASON: &str = "this program was built without the YARA engine; build it with the feature `yara`";
    for signature in [YARA, YARAX, PROC_YARA, YARA_LINT] {
        registry.unavailable(signature.unavailable(REASON));
    }
}
