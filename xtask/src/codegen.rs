//! Turns `proto/*.proto` into the checked-in sources of `crates/proto`, without a protoc on the machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use prost::Message as _;

use crate::workspace_root;

/// Generates into a temporary folder and then copies, or compares when `check` is set.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = workspace_root();
    let target = root.join("crates/proto/src/gen");
    let scratch = tempfile::tempdir()?;
    generate(&root.join("proto"), scratch.path())?;
    let mut stale = Vec::new();
    for entry in fs::read_dir(scratch.path())? {
        let entry = entry?;
        let fresh = fs::read(entry.path())?;
        let kept = target.join(entry.file_name());
        if fs::read(&kept).ok().as_ref() == Some(&fresh) {
            continue;
        }
        if check {
            stale.push(kept.display().to_string());
        } else {
            fs::create_dir_all(&target)?;
            fs::write(&kept, fresh)?;
        }
    }
    if !stale.is_empty() {
        bail!("generated files are stale: {}; run `cargo xtask codegen`", stale.join(", "));
    }
    Ok(())
}

fn generate(proto: &Path, out: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(proto)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();
    let descriptors = protox::compile(&files, [proto]).context("compiling proto/")?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]).btree_map(["."]).format(true).out_dir(out);
    config.disable_comments(["."]);
    tonic_prost_build::configure().out_dir(out).compile_fds_with_config(descriptors, config).context("generating Rust types")?;
    Ok(())
}
