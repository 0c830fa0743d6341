//! `cargo xtask bench vql`: whole runs of `talon query` over a million rows, net of start-up, beside the goal and a tool of the system that does the same work.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::deployment::Programs;

/// What a run took.
struct Cost {
    wall: Duration,
    /// User and system time of all threads, in steps of 10 ms.
    cpu: Duration,
    peak_kib: u64,
}

/// One line of the table.
struct Case {
    name: &'static str,
    query: String,
    /// Seconds for the whole work, on one core.
    goal: f64,
    /// A tool of the system that does the same work, or less.
    limit: Option<String>,
}

/// How much is done: everything, or a tenth for a first look.
struct Size {
    rows: u64,
    files: u64,
    bytes: u64,
}

/// Runs every case and prints the table. With `short`, a tenth of the work: compare its seconds with a tenth of the goal.
pub(super) fn run(programs: &Programs, short: bool) -> Result<()> {
    let share = if short { 10 } else { 1 };
    let size = Size { rows: 1_000_000 / share, files: 100_000 / share, bytes: (2 << 30) / share };
    let folder = tempfile::tempdir()?;
    prepare(folder.path(), &size)?;
    let program = programs.path("talon");
    let start_up = least(5, || query(&program, "SELECT 1 FROM scope() LIMIT 0"))?;
    println!("\nstart-up: {:.1} ms (goal 20 ms), {} MB at its peak\n", start_up.wall.as_secs_f64() * 1e3, start_up.peak_kib / 1024);
    println!("| query over {} rows | seconds | CPU seconds | goal | peak MB | the system's own |", size.rows);
    println!("|---|---:|---:|---:|---:|---|");
    for case in cases(folder.path(), &size) {
        let cost = least(if short { 1 } else { 3 }, || query(&program, &case.query))?;
        let wall = cost.wall.saturating_sub(start_up.wall).as_secs_f64();
        let cpu = cost.cpu.saturating_sub(start_up.cpu).as_secs_f64();
        let goal = case.goal / f64::from(u32::try_from(share)?);
        let missed = if cpu > goal { " (missed)" } else { "" };
        let limit = match &case.limit {
            Some(line) => format!("{:.2} s: `{}`", shell(line)?.as_secs_f64(), shown(line, &folder)),
            None => String::new(),
        };
        println!("| {} | {wall:.2} | {cpu:.2} | {goal:.2}{missed} | {} | {limit} |", case.name, cost.peak_kib / 1024);
    }
    Ok(())
}

fn shown(line: &str, folder: &TempDir) -> String {
    line.replace(&format!("{}/", folder.path().display()), "")
}

fn cases(folder: &Path, size: &Size) -> Vec<Case> {
    let path = |name: &str| folder.join(name).display().to_string();
    let (csv, jsonl, tree, blob) = (path("rows.csv"), path("rows.jsonl"), path("tree"), path("blob"));
    let rows = format!("range(end={})", size.rows);
    let nested = size.rows / 10;
    let last = size.rows - 1;
    let case = |name, query: String, goal, limit: Option<String>| Case { name, query, goal, limit };
    vec![
        case("filter", format!("SELECT _value FROM {rows} WHERE _value >= {last}"), 0.15, None),
        case("function call in each row", format!("SELECT _value FROM {rows} WHERE format(format='%v', args=_value) = 'x'"), 0.4, None),
        case("regular expression", format!("SELECT _value FROM {rows} WHERE _value =~ '^{last}$'"), 0.3, None),
        case(
            "ORDER BY, all rows kept",
            format!("SELECT * FROM {} ORDER BY V", ordered(&rows)),
            1.0,
            Some(format!("cut -d, -f1 {csv} | sort -n > /dev/null")),
        ),
        case(
            "GROUP BY, a tenth as many keys",
            format!(
                "SELECT K, count() AS C FROM foreach(row={{ SELECT _value - {keys} * int(int=_value / {keys}) AS K FROM {rows} }}) GROUP BY K",
                keys = nested
            ),
            0.5,
            None,
        ),
        case("CSV", format!("SELECT count() AS C FROM parse_csv(filename='{csv}') GROUP BY 1"), 0.5, Some(format!("wc -l {csv}"))),
        case("JSONL", format!("SELECT count() AS C FROM parse_jsonl(filename='{jsonl}') GROUP BY 1"), 0.8, Some(format!("wc -l {jsonl}"))),
        case(
            "writing JSONL",
            format!("SELECT _value AS id, 'some name' AS name, _value * 2 AS value FROM {rows}"),
            0.5,
            Some(format!("cat {jsonl} > {}", path("copy"))),
        ),
        case(
            "nested selects, a tenth as many",
            format!("SELECT {{ SELECT _value FROM scope() }} AS X FROM range(end={nested})"),
            0.15,
            None,
        ),
        case(
            "glob, a tenth as many files",
            format!("SELECT count() AS C FROM glob(globs='{tree}/**') GROUP BY 1"),
            0.25,
            Some(format!("find {tree} -size +1000k")),
        ),
        case("MD5, SHA1 and SHA256 of 2 GiB", format!("SELECT hash(path='{blob}') AS H FROM scope()"), 3.3, Some(format!("md5sum {blob}"))),
    ]
}

fn ordered(rows: &str) -> String {
    format!("foreach(row={{ SELECT 0 - _value AS V FROM {rows} }})")
}

/// Makes the files that the queries read.
fn prepare(folder: &Path, size: &Size) -> Result<()> {
    let mut csv = BufWriter::new(File::create(folder.join("rows.csv"))?);
    let mut jsonl = BufWriter::new(File::create(folder.join("rows.jsonl"))?);
    writeln!(csv, "id,name,value,flag")?;
    for at in 0..size.rows {
        let half = at / 2;
        writeln!(csv, "{at},name of {at},{half}.5,true")?;
        writeln!(jsonl, r#"{{"id":{at},"name":"name of {at}","value":{half}.5,"flag":true}}"#)?;
    }
    csv.flush()?;
    jsonl.flush()?;
    const IN_A_FOLDER: u64 = 1000;
    for at in 0..size.files {
        let inner = folder.join("tree").join((at / IN_A_FOLDER).to_string());
        if at % IN_A_FOLDER == 0 {
            fs::create_dir_all(&inner)?;
        }
        File::create(inner.join(format!("file{at}.txt")))?;
    }
    let mut blob = BufWriter::new(File::create(folder.join("blob"))?);
    let block: Vec<u8> = (0..1_u32 << 20).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0)).collect();
    for _ in 0..size.bytes >> 20 {
        blob.write_all(&block)?;
    }
    Ok(blob.flush()?)
}

/// The least of some runs: what the machine can do when it is not disturbed.
fn least(runs: u32, mut run: impl FnMut() -> Result<Cost>) -> Result<Cost> {
    let mut best = run()?;
    for _ in 1..runs {
        let next = run()?;
        best.wall = best.wall.min(next.wall);
        best.cpu = best.cpu.min(next.cpu);
        best.peak_kib = best.peak_kib.max(next.peak_kib);
    }
    Ok(best)
}

fn query(program: &Path, vql: &str) -> Result<Cost> {
    const LOOK: Duration = Duration::from_millis(1);
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(["query", vql])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let (mut cpu, mut peak_kib) = (Duration::ZERO, 0);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let used = looked_at(child.id()).unwrap_or((cpu, peak_kib));
        (cpu, peak_kib) = (used.0.max(cpu), used.1.max(peak_kib));
        thread::sleep(LOOK);
    };
    let wall = started.elapsed();
    ensure!(status.success(), "the query failed: {vql}");
    Ok(Cost { wall, cpu, peak_kib })
}

/// What a running process has used, as the kernel tells.
fn looked_at(process: u32) -> Option<(Duration, u64)> {
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map_while(|field| field.parse::<u32>().ok());
    let ticks = times.next()?.checked_add(times.next()?)?;
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some((TICK.checked_mul(ticks)?, peak.trim().trim_end_matches(" kB").parse().ok()?))
}

fn shell(line: &str) -> Result<Duration> {
    let started = Instant::now();
    let status = Command::new("sh").args(["-c", line]).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{line} failed");
    Ok(started.elapsed())
}
