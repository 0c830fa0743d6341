//! Files as records: lines, and what regular expressions find.

use std::io::Read;

use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, OsPath, Registry, Rows, Scope, Signature, Text, Value};

use crate::accessor::{self, Accessor, FileReader};
use crate::files::buffer_limit;

/// A line longer than this is cut into pieces.
pub(crate) const MAX_LINE: usize = 8 << 20;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("parse_lines", "The lines of files.").args(
            const {
                &[
                    Arg::required("filename", ArgType::Paths, "The files."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads them."),
                    Arg::optional("buffer_size", ArgType::Int, "At most this many bytes in one line; longer ones are cut into pieces."),
                ]
            },
        ),
        parse_lines,
    );
    registry.plugin(
        Signature::plugin("split_records", "The lines of files, split into columns.")
            .args(
                const {
                    &[
                        Arg::required("filenames", ArgType::Paths, "The files."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads them."),
                        Arg::optional("regex", ArgType::String, "What separates columns; each record is one unless given."),
                        Arg::optional("columns", ArgType::Strings, "The names of the columns."),
                        Arg::optional("first_row_is_headers", ArgType::Bool, "The first line names the columns."),
                        Arg::optional("count", ArgType::Int, "At most this many columns."),
                        Arg::optional("record_regex", ArgType::String, "What separates records, instead of line ends."),
                        Arg::optional("buffer_size", ArgType::Int, "At most this many bytes in one record."),
                    ]
                },
            )
            .version(2),
        split_records,
    );
    registry.plugin(
        Signature::plugin("parse_records_with_regex", "A row for each match of an expression, with its named groups.").args(
            const {
                &[
                    Arg::required("file", ArgType::Paths, "The files."),
                    Arg::required("regex", ArgType::Strings, "The expressions."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads them."),
                    Arg::optional("buffer_size", ArgType::Int, "The window in which a match must lie."),
                ]
            },
        ),
        parse_records_with_regex,
    );
}

/// Opens files one after the other; those that fail are logged and passed over.
struct Files {
    call: Call,
    scope: Scope,
    accessor: std::sync::Arc<dyn Accessor>,
    paths: std::vec::IntoIter<std::sync::Arc<OsPath>>,
}

impl Files {
    fn new(call: Call, argument: &str) -> Result<Self, CallError> {
        let scope = call.scope().clone();
        let accessor = accessor::named(&scope, &call.string("accessor"))?;
        let paths = call.paths(argument).into_iter();
        Ok(Self { call, scope, accessor, paths })
    }

    fn next(&mut self) -> Option<(std::sync::Arc<OsPath>, Box<dyn FileReader>)> {
        loop {
            let path = self.paths.next()?;
            match self.accessor.open(&self.scope, &path) {
                Ok(reader) => return Some((path, reader)),
                Err(error) => self.call.log(error.to_string()),
            }
        }
    }
}

/// Lines of a reader without their ends, none longer than the bound.
pub(crate) struct Lines {
    reader: Box<dyn FileReader>,
    buffer: Vec<u8>,
    start: usize,
    longest: usize,
    at_end: bool,
}

impl Lines {
    pub(crate) fn new(reader: Box<dyn FileReader>, longest: usize) -> Self {
        Self { reader, buffer: Vec::new(), start: 0, longest, at_end: false }
    }

    fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        self.next_with(<[u8]>::to_vec)
    }

    /// What `take` makes of the next line. `None` at the end.
    pub(crate) fn next_with<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> std::io::Result<Option<T>> {
        loop {
            let rest = self.buffer.get(self.start..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.get(..end).unwrap_or_default();
                let taken = take(line.strip_suffix(b"\r").unwrap_or(line));
                self.start = self.start.saturating_add(end).saturating_add(1);
                return Ok(Some(taken));
            }
            if self.at_end || rest.len() >= self.longest {
                let taken = (!rest.is_empty()).then(|| take(rest));
                self.buffer.clear();
                self.start = 0;
                return Ok(taken);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> std::io::Result<()> {
        const STEP: u64 = 64 << 10;
        self.buffer.drain(..self.start);
        self.start = 0;
        let before = self.buffer.len();
        self.reader.by_ref().take(STEP).read_to_end(&mut self.buffer)?;
        self.at_end = self.buffer.len() == before;
        Ok(())
    }
}

fn longest(call: &Call, default: usize) -> usize {
    call.opt_int("buffer_size").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(default).min(64 << 20)
}

fn parse_lines(call: Call) -> Result<Rows, CallError> {
    let longest = longest(&call, MAX_LINE);
    let mut files = Files::new(call, "filename")?;
    let mut open: Option<Lines> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if files.scope.stopped() {
                return None;
            }
            let Some(lines) = &mut open else {
                open = Some(Lines::new(files.next()?.1, longest));
                continue;
            };
            match lines.next() {
                Ok(Some(line)) => return Some(Ok(Dict::new().with("Line", Value::str(line)).into())),
                Ok(None) => open = None,
                Err(error) => {
                    files.call.log(error.to_string());
                    open = None;
                }
            }
        }
    }))
}

fn split_records(call: Call) -> Result<Rows, CallError> {
    let longest = longest(&call, MAX_LINE);
    let scope = call.scope().clone();
    let separator = match call.text("regex").filter(|pattern| !pattern.is_empty()) {
        None => None,
        Some(pattern) => Some(scope.regex(&pattern).ok_or(CallError::Silent)?),
    };
    let record = match call.text("record_regex").filter(|pattern| !pattern.is_empty()) {
        None => None,
        Some(pattern) => Some(scope.regex(&pattern).ok_or(CallError::Silent)?),
    };
    let named: Vec<Key> = call.strings("columns").into_iter().map(Key::from).collect();
    let headers = call.bool("first_row_is_headers");
    let count = call.opt_int("count").and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
    let mut files = Files::new(call, "filenames")?;
    let mut columns = named.clone();
    let mut open: Option<Records> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if files.scope.stopped() {
                return None;
            }
            let Some(records) = &mut open else {
                let reader = files.next()?.1;
                let made = match &record {
                    None => Ok(Records::Lines(Lines::new(reader, longest))),
                    Some(regex) => whole(reader, &files.scope).map(|content| Records::Split(regex.split(&content).into_iter())),
                };
                match made {
                    Ok(records) => open = Some(records),
                    Err(error) => files.call.log(error.to_string()),
                }
                columns.clone_from(&named);
                continue;
            };
            let line = match records.next() {
                Ok(Some(line)) => line,
                Ok(None) => {
                    open = None;
                    continue;
                }
                Err(error) => {
                    files.call.log(error.to_string());
                    open = None;
                    continue;
                }
            };
            let mut cells = separator.as_ref().map_or_else(|| vec![Text::from(line.clone())], |separator| separator.split(&line));
            if let Some(count) = count {
                cells.truncate(count);
            }
            if columns.is_empty() && headers {
                columns = cells.iter().map(|cell| Key::from(cell.to_str().into_owned())).collect();
                continue;
            }
            while columns.len() < cells.len() {
                columns.push(Key::from(format!("Column{}", columns.len())));
            }
            let row: Dict = columns
                .iter()
                .zip(cells.into_iter().map(Some).chain(std::iter::repeat(None)))
                .map(|(key, cell)| (key, Value::from(cell)))
                .collect();
            return Some(Ok(row.into()));
        }
    }))
}

/// Records of one file.
enum Records {
    Lines(Lines),
    Split(std::vec::IntoIter<Text>),
}

impl Records {
    fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        match self {
            Self::Lines(lines) => lines.next(),
            Self::Split(pieces) => Ok(pieces.next().map(|piece| piece.as_bytes().to_vec())),
        }
    }
}

fn whole(mut reader: Box<dyn FileReader>, scope: &Scope) -> Result<Vec<u8>, CallError> {
    crate::files::read_up_to(&mut *reader, buffer_limit(scope), scope)
}

fn parse_records_with_regex(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let expressions =
        call.texts("regex").iter().map(|pattern| scope.regex(pattern)).collect::<Option<Vec<_>>>().ok_or(CallError::Silent)?;
    let window = longest(&call, 64 << 10);
    let mut files = Files::new(call, "file")?;
    let mut open: Option<(Text, Window)> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if files.scope.stopped() {
                return None;
            }
            let Some((path, content)) = &mut open else {
                let (path, reader) = files.next()?;
                open = Some((path.to_text(), Window { reader, buffer: Vec::new(), size: window, at_end: false }));
                continue;
            };
            if let Err(error) = content.fill() {
                files.call.log(error.to_string());
                open = None;
                continue;
            }
            let found = expressions.iter().filter_map(|regex| Some((regex, regex.groups_at(&content.buffer, 0)?)));
            let first = found.min_by_key(|(_, groups)| groups.first().copied().flatten().map_or(usize::MAX, |span| span.start));
            let Some((regex, groups)) = first else {
                if content.at_end {
                    open = None;
                } else {
                    // A match may begin in the second half of the window: keep that half.
                    content.buffer.drain(..content.buffer.len() / 2);
                }
                continue;
            };
            let mut row = Dict::new().with("FullPath", path.clone());
            for (at, group) in groups.iter().enumerate().skip(1) {
                let name =
                    regex.group_names().get(at).cloned().flatten().map_or_else(|| Key::from(format!("g{at}")), |name| Key::from(&name));
                let text = group.and_then(|span| content.buffer.get(span.start..span.end)).unwrap_or_default();
                row.set(name, Value::str(text));
            }
            let end = groups.first().copied().flatten().map_or(0, |span| span.end.max(span.start.saturating_add(1)));
            content.buffer.drain(..end.min(content.buffer.len()));
            return Some(Ok(row.into()));
        }
    }))
}

/// The part of a file in which a match is looked for.
struct Window {
    reader: Box<dyn FileReader>,
    buffer: Vec<u8>,
    size: usize,
    at_end: bool,
}

impl Window {
    fn fill(&mut self) -> std::io::Result<()> {
        while !self.at_end && self.buffer.len() < self.size {
            let before = self.buffer.len();
            let want = self.size.saturating_sub(before);
            self.reader.by_ref().take(want as u64).read_to_end(&mut self.buffer)?;
            self.at_end = self.buffer.len() == before;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    fn rows(vql: &str) -> String {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
        let rows: Vec<String> = Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect();
        let logs: Vec<String> = log.take().into_iter().filter(|line| !line.starts_with("DEBUG")).collect();
        rows.into_iter().chain(logs).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn lines_lose_their_ends_only() {
        expect![[r#"
            {"Line":"a"}
            {"Line":""}
            {"Line":"b c"}"#]]
        .assert_eq(&rows("SELECT * FROM parse_lines(filename='a\r\n\nb c', accessor='data')"));
    }

    #[test]
    fn records_split_into_columns() {
        expect![[r#"
            {"User":"root","Id":"0"}
            {"User":"daemon","Id":"1"}"#]]
        .assert_eq(&rows("SELECT User, Id FROM split_records(filenames='root:0:x\ndaemon:1:y\n', accessor='data', regex=':', columns=['User','Id','Rest'])"));
    }

    #[test]
    fn records_are_what_an_expression_finds() {
        expect![[r#"
            {"K":"a","V":"1"}
            {"K":"b","V":"2"}"#]]
        .assert_eq(&rows("SELECT K, V FROM parse_records_with_regex(file='a=1; b=2', accessor='data', regex='(?P<K>[a-z])=(?P<V>[0-9])')"));
    }
}
