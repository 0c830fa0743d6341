//! `cargo xtask bench`: measures the programs as they are shipped, and prints each number beside its goal and the limit of this machine, measured in the same run.

mod agent;
mod cores;
mod fleet;
mod frontend;
mod keys;
mod machine;
mod table;
mod vql;
mod wire;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::deployment::Programs;
use table::Table;

/// What to measure.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    /// Opening of packets.
    Wire,
    /// A running server: enrolments, packets, waiting readers, its memory when nobody is there.
    Frontend,
    /// A running agent: idle, and while it collects a million rows.
    Agent,
    /// Queries over a million rows, as whole runs of `talon query`, in a table of their own.
    Vql,
    /// The sizes of the programs.
    Sizes,
}

/// Which areas, and how thoroughly.
#[derive(Args, Debug, Clone)]
pub(crate) struct Arguments {
    /// One area; all of them without it.
    area: Option<Area>,
    /// Fewer repetitions and agents: shows that it runs, says little about how fast.
    #[arg(long)]
    short: bool,
    /// A folder with the programs to measure, instead of building them.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Agents that wait, and that enrol. The goals are for 3000.
    #[arg(long)]
    agents: Option<usize>,
}

/// Runs the benches and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |area| arguments.area.is_none_or(|only| only == area);
    let programs = arguments.programs.as_deref().map_or_else(Programs::optimized, |folder| Ok(Programs::in_folder(folder)))?;
    if wanted(Area::Vql) {
        vql::run(&programs, arguments.short)?;
    }
    if arguments.area == Some(Area::Vql) {
        return Ok(());
    }
    let limits = machine::Limits::measure(arguments.short)?;
    let mut table = Table::default();
    limits.list(&mut table);
    if wanted(Area::Wire) {
        wire::measure(&limits, arguments.short, &mut table)?;
    }
    if wanted(Area::Frontend) {
        let scale = frontend::Scale::new(arguments.short, arguments.agents);
        frontend::measure(&programs, &limits, &scale, &mut table)?;
    }
    if wanted(Area::Agent) {
        agent::measure(&programs, arguments.short, &mut table)?;
    }
    if wanted(Area::Sizes) {
        sizes(&programs, &mut table)?;
    }
    println!("\n{table}");
    Ok(())
}

fn sizes(programs: &Programs, table: &mut Table) -> Result<()> {
    for (name, most) in [("talon-agent", Some(12.0)), ("talon-frontend", Some(30.0)), ("talon", None)] {
        let bytes = table::number(std::fs::metadata(programs.path(name))?.len());
        let row = table.add(format!("size of {name}"), bytes / 1e6, "MB");
        if let Some(most) = most {
            row.at_most(most);
        }
    }
    Ok(())
}
