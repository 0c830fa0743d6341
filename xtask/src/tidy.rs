//! The rules of the house that a machine can keep: floors, file heads, sizes, forbidden words, documented dependencies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use xshell::{Shell, cmd};

use crate::workspace_root;

/// The floor of each crate; a crate may use only crates on lower floors (ARCHITECTURE.md, "Floors").
const FLOORS: &[(&str, u32)] = &[
    ("talon-ids", 0),
    ("talon-crypto", 0),
    ("talon-proto", 0),
    ("talon-pki", 1),
    ("talon-acl", 1),
    ("talon-audit", 1),
    ("talon-wire", 1),
    ("talon-vql", 1),
    ("talon-lockdown", 2),
    ("talon-config", 2),
    ("talon-store", 2),
    ("talon-artifacts", 2),
    ("talon-transport", 2),
    ("talon-endpoint-vql", 3),
    ("talon-auth", 3),
    ("talon-language-server", 3),
    ("talon-server", 4),
    ("talon-client", 4),
    ("talon-server-vql", 5),
    ("talon-api", 5),
    ("talon-gui", 5),
    ("talon-frontend", 6),
    ("talon-agent", 6),
    ("talon-admin-cli", 6),
    ("xtask", 7),
];

/// Crates that floor 0 and 1 must not depend on: no runtime, no files, no sockets.
const IMPURE: &[&str] = &["tokio", "hyper", "sled", "rustix", "tonic-transport"];

/// Crates that may name the cryptographic providers themselves.
const CRYPTO_USERS: &[(&str, &[&str])] = &[("ring", &["talon-crypto"]), ("aws-lc-rs", &["talon-crypto"])];

/// No crate below an agent may be one of these.
const SERVER_CRATES: &[&str] = &["talon-server", "talon-server-vql", "talon-api", "talon-store", "talon-gui", "talon-auth", "sled"];

/// Lines after which a file must be split; generated code is not counted.
const MAX_LINES: usize = 900;

/// File and folder names that say nothing about their content.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc", "manager"];

/// Runs every rule and reports all that is broken.
pub(crate) fn run() -> Result<()> {
    let root = workspace_root();
    let metadata = MetadataCommand::new().current_dir(&root).exec()?;
    let mut broken = Vec::new();
    floors(&metadata, &mut broken);
    purity(&metadata, &mut broken);
    agent_tree(&metadata, &mut broken);
    documented_dependencies(&metadata, &root, &mut broken)?;
    let files = tracked_files(&root)?;
    crate::conformance::check(&root, &files, &mut broken)?;
    for path in files {
        file_rules(&root, &path, &mut broken)?;
    }
    if broken.is_empty() {
        println!("tidy: nothing to mend");
        return Ok(());
    }
    bail!("tidy: {} to mend:\n  {}", broken.len(), broken.join("\n  "));
}

fn floor(name: &str) -> Option<u32> {
    FLOORS.iter().find(|(crate_name, _)| *crate_name == name).map(|(_, floor)| *floor)
}

fn floors(metadata: &Metadata, broken: &mut Vec<String>) {
    for package in metadata.workspace_packages() {
        let Some(own) = floor(&package.name) else {
            broken.push(format!("{}: not on any floor; add it to FLOORS in xtask/src/tidy.rs and to ARCHITECTURE.md", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Development {
                continue;
            }
            if floor(&dependency.name).is_some_and(|theirs| theirs >= own) {
                broken.push(format!("{} (floor {own}) uses {}, which is not on a lower floor", package.name, dependency.name));
            }
        }
    }
}

fn purity(metadata: &Metadata, broken: &mut Vec<String>) {
    for package in metadata.workspace_packages() {
        let own = floor(&package.name).unwrap_or(u32::MAX);
        for dependency in &package.dependencies {
            if dependency.kind != DependencyKind::Normal {
                continue;
            }
            if own <= 1 && IMPURE.contains(&dependency.name.as_str()) {
                broken.push(format!("{} is on floor {own} and uses {}: floors 0 and 1 have no I/O", package.name, dependency.name));
            }
            for (library, users) in CRYPTO_USERS {
                if dependency.name == *library && !users.contains(&package.name.as_str()) {
                    broken.push(format!("{} names {library}; only {} may", package.name, users.join(", ")));
                }
            }
        }
    }
}

/// Walks the normal dependencies below the agent.
fn agent_tree(metadata: &Metadata, broken: &mut Vec<String>) {
    let by_name: BTreeMap<&str, _> = metadata.packages.iter().map(|package| (package.name.as_str(), package)).collect();
    let mut queue = vec!["talon-agent"];
    let mut seen = Vec::new();
    while let Some(name) = queue.pop() {
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        if SERVER_CRATES.contains(&name) {
            broken.push(format!("talon-agent depends on {name}; the agent carries no server code"));
        }
        let Some(package) = by_name.get(name) else { continue };
        let own = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal && dependency.path.is_some());
        queue.extend(own.map(|dependency| dependency.name.as_str()));
    }
}

/// Each external crate that the workspace names has a line in `docs/DEPENDENCIES.md`.
fn documented_dependencies(metadata: &Metadata, root: &Path, broken: &mut Vec<String>) -> Result<()> {
    let page = fs::read_to_string(root.join("docs/DEPENDENCIES.md")).unwrap_or_default();
    let mut missing = BTreeMap::new();
    for package in metadata.workspace_packages() {
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_none()) {
            if !page.contains(&format!("| `{}`", dependency.name)) {
                missing.insert(dependency.name.to_string(), package.name.to_string());
            }
        }
    }
    for (dependency, user) in missing {
        broken.push(format!("docs/DEPENDENCIES.md has no line for {dependency} (used by {user})"));
    }
    Ok(())
}

fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let shell = Shell::new()?;
    shell.change_dir(root);
    let listing = cmd!(shell, "git ls-files --cached --others --exclude-standard").quiet().read()?;
    Ok(listing.lines().map(|line| root.join(line)).filter(|path| path.is_file()).collect())
}

fn file_rules(root: &Path, path: &Path, broken: &mut Vec<String>) -> Result<()> {
    let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let folders = path.parent().into_iter().flat_map(Path::iter).filter_map(|part| part.to_str());
    if EMPTY_NAMES.contains(&stem) || folders.clone().any(|folder| EMPTY_NAMES.contains(&folder)) {
        broken.push(format!("{shown}: the name says nothing about what it owns"));
    }
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    for needle in forbidden_texts() {
        if text.contains(&needle) && !shown.ends_with("tidy.rs") {
            broken.push(format!("{shown}: contains {needle:?}"));
        }
    }
    let generated = shown.starts_with("crates/proto/src/gen/");
    if path.extension().is_none_or(|extension| extension != "rs") || generated {
        return Ok(());
    }
    if !text.starts_with("//!") && !text.starts_with("#![") {
        broken.push(format!("{shown}: the first line must say, after //!, what the file owns"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        broken.push(format!("{shown}: {lines} lines; past {MAX_LINES} it holds two subjects"));
    }
    if stem == "mod" {
        broken.push(format!("{shown}: use foo.rs beside foo/, no mod.rs"));
    }
    for (at, line) in text.lines().enumerate() {
        if unfinished(line) && !shown.ends_with("tidy.rs") {
            broken.push(format!("{shown}:{}: unfinished work is an issue, not a comment or an ignored test", at + 1));
        }
    }
    Ok(())
}

/// Paths of one machine have no place in the tree.
fn forbidden_texts() -> Vec<String> {
    ["work", "farm", "root"].iter().map(|folder| format!("/{folder}/")).chain(["bash_jobs".to_owned()]).collect()
}

fn unfinished(line: &str) -> bool {
    ["TODO", "FIXME", "XXX:", "HACK", "todo!(", "unimplemented!(", "#[ignore"].iter().any(|mark| line.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_work_is_seen() {
        for line in ["// TODO: later", "#[ignore]", "    todo!()", "/* FIXME */"] {
            assert!(unfinished(line), "{line}");
        }
        assert!(!unfinished("// a method of the to-do list"));
    }

    #[test]
    fn floors_name_each_crate_once() {
        let mut names: Vec<_> = FLOORS.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FLOORS.len());
    }
}
