//! `talon golden`: runs query cases in the stock format and compares their output.
//!
//! A case is `NAME.in.yaml` with queries that share one scope, and `NAME.out.yaml` with the text that is expected. It runs in a deployment that was just
//! made for it, as its administrator, and its date stands still.

mod builtins;
mod case;
mod container;
mod difference;
mod echo;
mod world;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use talon_vql::regex::Regex;

use crate::arguments::GoldenArgs;
use crate::output::print_line;
use crate::query::environment;
use case::Case;
use world::World;

pub(crate) fn run(arguments: &GoldenArgs) -> Result<()> {
    let filter =
        Regex::ignoring_case(arguments.filter.as_deref().unwrap_or_default().as_bytes()).map_err(|error| anyhow!("--filter: {error}"))?;
    let variables = environment(&arguments.env)?;
    let world = World::new()?;
    let (mut passed, mut failed) = (0_u32, 0_u32);
    for path in cases(&arguments.folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().trim_end_matches(".in.yaml").to_owned();
        if !filter.is_match(name.as_bytes()) {
            continue;
        }
        match judge(&path, &world, &variables) {
            Ok(()) => {
                passed = passed.saturating_add(1);
                print_line(&format!("ok    {name}"))?;
            }
            Err(reason) => {
                failed = failed.saturating_add(1);
                print_line(&format!("FAIL  {name}: {reason:#}"))?;
            }
        }
    }
    print_line(&format!("{passed} passed, {failed} failed"))?;
    match (passed, failed) {
        (0, 0) => bail!("there are no cases *.in.yaml in {} that match", arguments.folder.display()),
        (_, 0) => Ok(()),
        _ => bail!("{failed} cases failed"),
    }
}

fn cases(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut cases: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    cases.retain(|path| path.to_string_lossy().ends_with(".in.yaml"));
    cases.sort();
    Ok(cases)
}

/// Runs one case; an error says where its output differs.
fn judge(path: &Path, world: &World, variables: &[(String, String)]) -> Result<()> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let case = Case::parse(&read(path)?)?;
    let expected = read(&PathBuf::from(path.to_string_lossy().replace(".in.yaml", ".out.yaml")))?;
    let (actual, failure) = case.run(world, variables)?;
    let difference = difference::between(expected.trim(), actual.trim());
    match (difference, failure) {
        (None, None) => Ok(()),
        (None, Some(line)) => bail!("the log says {line:?}"),
        (Some(difference), None) => bail!("the output differs\n{difference}"),
        (Some(difference), Some(line)) => bail!("the log says {line:?}, and the output differs\n{difference}"),
    }
}
