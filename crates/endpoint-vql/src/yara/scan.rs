//! The calls: which files and which memory is searched, and the rows that hits become.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use talon_vql::{Call, CallError, Dict, Key, OsPath, PathFlavour, Rows, Scope, Value, to_text};
use yara_x::Rules;

use super::engine::{Constant, Found, Hit, compile, scan};
use super::rules::{Piece, expand, name, pieces, without_meta};
use crate::accessor::{self, Accessor, FileReader};
use crate::files::read_up_to;

/// A file with no more than this is searched as a whole, so that rules see its structure.
const WHOLE: u64 = 64 << 20;
/// How much of a larger file is searched at once.
const BLOCK: u64 = 1 << 20;
/// How far blocks overlap, so that a hit at an edge is whole in one of them.
const OVERLAP: u64 = 1024;
/// How many sets of compiled rules a query keeps.
const MAX_SETS: usize = 20;
/// A text of rules with more is refused.
const MAX_TEXT: usize = 64 << 20;

/// Compiled rules by text, namespace and variables.
#[derive(Default)]
struct Sets(Mutex<HashMap<(String, String, String), Arc<Rules>>>);

fn constant(value: &Value, scope: &Scope) -> Constant {
    match value {
        Value::Bool(truth) => Constant::Bool(*truth),
        Value::Float(number) => Constant::Float(*number),
        other => match other.as_int() {
            Some(number) => Constant::Int(number),
            None => Constant::Text(to_text(other.clone(), scope).to_vec()),
        },
    }
}

fn compiled(call: &Call) -> Result<Arc<Rules>, CallError> {
    let scope = call.scope();
    let text = call.string("rules");
    if text.trim().is_empty() {
        return Err(CallError::failed("Field rules is required"));
    }
    if text.len() > MAX_TEXT {
        return Err(CallError::failed(format!("rules may have {MAX_TEXT} bytes at most")));
    }
    let mut variables: Vec<(String, Constant)> = Vec::new();
    for (key, value) in call.dict("vars").iter().flat_map(|vars| vars.iter()) {
        variables.push((key.as_str().to_owned(), constant(value, scope)));
    }
    let namespace = call.string("namespace");
    let sets = scope.shared::<Sets>();
    let key = (text.clone(), namespace.clone(), format!("{variables:?}"));
    if let Some(known) = sets.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Ok(known.clone());
    }
    let rules = Arc::new(compile(&expand(&text), &namespace, &variables).map_err(CallError::failed)?);
    let mut sets = sets.0.lock().unwrap_or_else(PoisonError::into_inner);
    if sets.len() >= MAX_SETS {
        sets.clear();
    }
    sets.insert(key, rules.clone());
    Ok(rules)
}

/// What a search looks for, and how much of it is given.
struct Search {
    rules: Arc<Rules>,
    context: usize,
    number: usize,
    block: u64,
    whole: u64,
    start: u64,
    end: u64,
}

impl Search {
    fn of(call: &Call) -> Result<Self, CallError> {
        let size = |value: i64| usize::try_from(value).unwrap_or(0);
        let given = |name: &str| call.opt_uint(name).filter(|value| *value > 0);
        Ok(Self {
            rules: compiled(call)?,
            context: size(call.int("context")).min(1 << 20),
            number: call.opt_int("number").map(size).filter(|number| *number > 0).unwrap_or(1),
            block: given("blocksize").unwrap_or(BLOCK).clamp(2 * OVERLAP, WHOLE),
            whole: if call.bool("force_buffers") { 0 } else { WHOLE },
            start: call.uint("start"),
            end: given("end").unwrap_or(u64::MAX),
        })
    }
}

/// A search of one file or of the memory of one process.
struct Run {
    search: Arc<Search>,
    reader: Box<dyn FileReader>,
    scope: Scope,
    /// What is still to be searched, the last first.
    pending: Vec<(u64, u64)>,
    /// Columns of every row.
    file: Dict,
    rows: std::vec::IntoIter<Dict>,
    given: usize,
    /// Rules without strings are given once.
    bare: Vec<String>,
}

impl Run {
    fn new(search: Arc<Search>, mut reader: Box<dyn FileReader>, scope: Scope, file: Dict) -> Self {
        let pending = match reader.ranges() {
            Some(ranges) => {
                let ranges = ranges.iter().filter(|range| !range.is_sparse && range.length > 0);
                ranges
                    .map(|range| (range.offset.max(search.start), range.offset.saturating_add(range.length).min(search.end)))
                    .rev()
                    .collect()
            }
            None => {
                let size = if reader.is_stream() { None } else { reader.seek(SeekFrom::End(0)).ok() };
                vec![(search.start, size.unwrap_or(u64::MAX).min(search.end))]
            }
        };
        Self { search, reader, scope, pending, file, rows: Vec::new().into_iter(), given: 0, bare: Vec::new() }
    }

    fn next(&mut self) -> Option<Result<Dict, CallError>> {
        loop {
            if self.scope.stopped() || self.given >= self.search.number {
                return None;
            }
            if let Some(row) = self.rows.next() {
                self.given = self.given.saturating_add(1);
                return Some(Ok(row));
            }
            let (start, end) = self.pending.pop()?;
            if start >= end {
                continue;
            }
            if let Err(error) = self.block(start, end) {
                return Some(Err(error));
            }
        }
    }

    /// Searches what lies from `start` on, and puts the rest back.
    fn block(&mut self, start: u64, end: u64) -> Result<(), CallError> {
        let length = end.saturating_sub(start);
        let whole = length <= self.search.whole && self.scope.has_room_for(length);
        let step = if whole { length } else { length.min(self.search.block) };
        let wanted = if whole || step == length { step } else { step.saturating_add(OVERLAP).min(length) };
        self.reader.seek(SeekFrom::Start(start))?;
        let data = read_up_to(&mut (&mut self.reader).take(wanted), wanted, &self.scope)?;
        if data.is_empty() {
            return Ok(());
        }
        if data.len() as u64 >= step && step < length {
            self.pending.push((start.saturating_add(step), end));
        }
        let found = scan(&self.search.rules, &data).map_err(CallError::failed)?;
        let mut rows = Vec::new();
        for rule in &found {
            if rule.hits.is_empty() && !self.bare.contains(&rule.rule) {
                self.bare.push(rule.rule.clone());
                rows.push(self.row(rule, None, &data, start));
            }
            // A hit that begins in the overlap is found again in the next block.
            for hit in rule.hits.iter().filter(|hit| (hit.start as u64) < step).take(self.search.number) {
                rows.push(self.row(rule, Some(hit), &data, start));
            }
        }
        self.rows = rows.into_iter();
        Ok(())
    }

    fn row(&self, rule: &Found, hit: Option<&Hit>, data: &[u8], base: u64) -> Dict {
        let meta: Dict = rule
            .meta
            .iter()
            .map(|(name, value)| {
                let value = match value {
                    Constant::Int(number) => Value::Int(*number),
                    Constant::Float(number) => Value::Float(*number),
                    Constant::Bool(truth) => Value::Bool(*truth),
                    Constant::Text(text) => Value::str(&text[..]),
                };
                (Key::from(name.clone()), value)
            })
            .collect();
        let hit = hit.map(|hit| {
            let from = hit.start.saturating_sub(self.search.context);
            let to = hit.end.saturating_add(self.search.context).min(data.len());
            let bytes = data.get(from..to).unwrap_or_default();
            Dict::new()
                .with("Name", &hit.name)
                .with("Offset", base.saturating_add(hit.start as u64))
                .with("HexData", hex_dump(bytes))
                .with("Data", Value::Bytes(bytes.into()))
        });
        let mut row = Dict::new()
            .with("Rule", &rule.rule)
            .with("Meta", meta)
            .with("Tags", rule.tags.clone())
            .with("String", hit.map(Value::from))
            .with("Namespace", &rule.namespace);
        for (name, value) in self.file.iter() {
            row.set(name, value);
        }
        row
    }
}

/// Lines of offset, sixteen bytes in hexadecimal and as text.
fn hex_dump(bytes: &[u8]) -> Vec<String> {
    let line = |(at, chunk): (usize, &[u8])| {
        let mut hex = String::new();
        for (place, byte) in chunk.iter().enumerate() {
            hex.push_str(if place == 8 { "  " } else { " " });
            hex.push_str(&format!("{byte:02x}"));
        }
        let text: String = chunk.iter().map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' }).collect();
        format!("{:08x} {hex:<49}  |{text}|", at.saturating_mul(16))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

/// `yara()`, `yarax()`
pub(super) fn files(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let name = call.string("accessor");
    let accessor = accessor::named(&scope, &name)?;
    let search = Arc::new(Search::of(&call)?);
    let mut files = call.list("files").into_iter();
    let mut run: Option<Run> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            match run.as_mut().and_then(Run::next) {
                Some(Ok(row)) => return Some(Ok(row.into())),
                Some(Err(error)) => call.log(error.to_string()),
                None => {}
            }
            run = None;
            let file = files.next()?;
            match open(&accessor, &name, &file, &scope) {
                Ok((reader, columns)) => run = Some(Run::new(search.clone(), reader, scope.clone(), columns)),
                Err(error) => call.log(error.to_string()),
            }
            // The next pull of the run happens at the top of the loop.
            if let Some(started) = run.as_mut() {
                match started.next() {
                    Some(Ok(row)) => return Some(Ok(row.into())),
                    Some(Err(error)) => {
                        call.log(error.to_string());
                        run = None;
                    }
                    None => run = None,
                }
            }
        }
    }))
}

fn open(accessor: &Arc<dyn Accessor>, name: &str, file: &Value, scope: &Scope) -> Result<(Box<dyn FileReader>, Dict), CallError> {
    let path = match file {
        Value::Path(path) => path.clone(),
        Value::Dict(spec) => Arc::new(
            OsPath::from_pathspec(spec, PathFlavour::from_name(name).unwrap_or_default())
                .ok_or_else(|| CallError::failed("files: a dict must be a pathspec"))?,
        ),
        other => Arc::new(OsPath::for_accessor(to_text(other.clone(), scope), name)),
    };
    let reader = accessor.open(scope, &path)?;
    let info = accessor.stat(scope, &path).ok().map(|info| info.to_row());
    Ok((reader, Dict::new().with("File", info.map(Value::from)).with("FileName", path)))
}

/// `proc_yara()`
pub(super) fn process(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let pid = call.int("pid");
    let accessor = accessor::named(&scope, "process")?;
    let mut search = Search::of(&call)?;
    search.whole = BLOCK.saturating_mul(4);
    let path = Arc::new(OsPath::parse(format!("/{pid}"), PathFlavour::Linux));
    let reader = accessor.open(&scope, &path)?;
    let mut run = Run::new(Arc::new(search), reader, scope, Dict::new().with("Pid", pid));
    Ok(Rows::from_fn(move || run.next().map(|row| row.map(Value::from))))
}

/// `yara_lint()`
pub(super) fn lint(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let text = call.string("rules");
    if text.len() > MAX_TEXT {
        return Err(CallError::failed(format!("rules may have {MAX_TEXT} bytes at most")));
    }
    let mut imports = String::new();
    let mut kept = String::new();
    let mut out = String::new();
    for piece in pieces(&text) {
        if scope.stopped() {
            break;
        }
        match piece {
            Piece::Between(between) => {
                for line in between.lines().map(str::trim).filter(|line| line.starts_with("import ")) {
                    if compile(line, "", &[]).is_ok() {
                        imports.push_str(line);
                        imports.push('\n');
                    } else {
                        call.log(format!("{line}: this module is not part of the engine"));
                    }
                }
            }
            Piece::Rule(rule) => {
                let rule = if call.bool("clean") { without_meta(rule) } else { rule.to_owned() };
                // Rules may use those before them.
                match compile(&format!("{imports}{rule}"), "", &[]).or_else(|_| compile(&format!("{imports}{kept}{rule}"), "", &[])) {
                    Ok(_) => {
                        kept.push_str(&rule);
                        kept.push('\n');
                        out.push_str(&rule);
                        out.push_str("\n\n");
                    }
                    Err(error) => {
                        let error = error.lines().next().unwrap_or_default().to_owned();
                        call.log(format!("rule {}: {error}", name(&rule)));
                    }
                }
            }
        }
    }
    let imports = if imports.is_empty() { imports } else { format!("{imports}\n") };
    Ok(format!("{imports}{out}").trim_end().into())
}

#[cfg(test)]
mod tests {
    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    fn rows(rules: &str, vql: &str) -> Vec<String> {
        let log = Arc::new(MemoryLog::default());
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let environment = crate::with_authority(Environment::new(Arc::new(crate::registry())).log(log.clone()), authority);
        let scope = environment.variable("R", rules).open();
        let rows: Vec<String> = Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect();
        rows.into_iter().chain(log.take().into_iter().filter(|line| !line.starts_with("DEBUG"))).collect()
    }

    const RULE: &str =
        "rule Hello : greeting { meta: author = \"me\" level = 3 strings: $a = \"hello\" $b = /w[a-z]+d/ condition: any of them }";

    #[test]
    fn hits_are_rows() {
        let columns = "Rule, Meta, Tags, String.Name AS Name, String.Offset AS Offset, String.Data AS Data, String.HexData AS Hex";
        assert_eq!(
            rows(RULE, &format!("SELECT {columns} FROM yara(rules=R, files='say hello world', accessor='data', number=5, context=1)")),
            [
                r#"{"Rule":"Hello","Meta":{"author":"me","level":3},"Tags":["greeting"],"Name":"$a","Offset":4,"Data":"IGhlbGxvIA==","Hex":["00000000  20 68 65 6c 6c 6f 20                              | hello |"]}"#,
                r#"{"Rule":"Hello","Meta":{"author":"me","level":3},"Tags":["greeting"],"Name":"$b","Offset":10,"Data":"IHdvcmxk","Hex":["00000000  20 77 6f 72 6c 64                                 | world|"]}"#,
            ]
        );
        assert_eq!(rows(RULE, "SELECT Rule FROM yarax(rules=R, files=['hello', 'none', 'world'], accessor='data')").len(), 2);
    }

    #[test]
    fn large_files_are_searched_in_blocks_that_overlap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let mut content = vec![b'.'; 10_000];
        for at in [100, 4094, 9000] {
            content[at..at + 5].copy_from_slice(b"hello");
        }
        std::fs::write(&path, content).unwrap();
        let vql = format!(
            "SELECT String.Offset AS O FROM yara(rules='ascii:hello', files='{}', blocksize=4096, force_buffers=TRUE, number=100)",
            path.display()
        );
        assert_eq!(rows("", &vql), [r#"{"O":100}"#, r#"{"O":4094}"#, r#"{"O":9000}"#]);
    }

    #[test]
    fn variables_are_passed_and_includes_are_not_read() {
        let rule = "rule V { condition: wanted == \"yes\" }";
        assert_eq!(
            rows(rule, "SELECT Rule, String FROM yara(rules=R, files='x', accessor='data', vars=dict(wanted='yes'))"),
            [r#"{"Rule":"V","String":null}"#]
        );
        let lines = rows("include \"/etc/passwd\"", "SELECT * FROM yara(rules=R, files='x', accessor='data')");
        assert!(lines.len() == 1 && lines[0].starts_with("yara: "), "{lines:?}");
    }

    #[test]
    fn the_memory_of_a_process_is_searched() {
        let needle = format!("needle-{}", std::process::id());
        let rule = format!("rule N {{ strings: $a = \"{needle}\" condition: $a }}");
        let found = rows(&rule, &format!("SELECT Rule, Pid FROM proc_yara(rules=R, pid={})", std::process::id()));
        assert_eq!(found, [format!("{{\"Rule\":\"N\",\"Pid\":{}}}", std::process::id())]);
    }

    #[test]
    fn rules_that_the_engine_does_not_take_are_left_out() {
        let text =
            format!("import \"nosuch\"\nimport \"hash\"\n{RULE}\nrule Bad {{ condition: nonsense }}\nrule Uses {{ condition: Hello }}");
        let lines = rows(&text, "SELECT yara_lint(rules=R, clean=TRUE) AS X FROM scope()");
        let clean = RULE.replace("meta: author = \"me\" level = 3 ", "");
        let expected = json::encode(&Value::from(format!("import \"hash\"\n\n{clean}\n\nrule Uses {{ condition: Hello }}")));
        assert_eq!(lines.first(), Some(&format!("{{\"X\":{expected}}}")));
        assert!(lines.iter().any(|line| line.starts_with("yara_lint: rule Bad")), "{lines:?}");
    }
}
