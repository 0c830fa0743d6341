//! The engine: rules compiled, bytes searched.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use yara_x::{Compiler, MetaValue, Rules, ScanError, Scanner};

/// A search of one block takes no longer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A value for a variable, and of metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Constant {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(Vec<u8>),
}

/// A rule that matched.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) rule: String,
    pub(super) namespace: String,
    pub(super) tags: Vec<String>,
    pub(super) meta: Vec<(String, Constant)>,
    pub(super) hits: Vec<Hit>,
}

/// Where a string of a rule was found.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) name: String,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Compiles rules. They cannot include files.
pub(super) fn compile(text: &str, namespace: &str, variables: &[(String, Constant)]) -> Result<Rules, String> {
    let compiled = catch_unwind(AssertUnwindSafe(|| {
        let mut compiler = Compiler::new();
        compiler.relaxed_re_syntax(true).enable_includes(false);
        for (name, value) in variables {
            let defined = match value {
                Constant::Int(number) => compiler.define_global(name, *number),
                Constant::Float(number) => compiler.define_global(name, *number),
                Constant::Bool(truth) => compiler.define_global(name, *truth),
                Constant::Text(text) => compiler.define_global(name, &text[..]),
            };
            defined.map_err(|error| error.to_string())?;
        }
        if !namespace.is_empty() {
            compiler.new_namespace(namespace);
        }
        compiler.add_source(text).map_err(|error| error.to_string())?;
        Ok(compiler.build())
    }));
    compiled.unwrap_or_else(|_| Err("the engine cannot compile these rules".to_owned()))
}

/// Searches `data`.
pub(super) fn scan(rules: &Rules, data: &[u8]) -> Result<Vec<Found>, String> {
    let scanned = catch_unwind(AssertUnwindSafe(|| {
        let mut scanner = Scanner::new(rules);
        scanner.set_timeout(TIMEOUT);
        let results = match scanner.scan(data) {
            Ok(results) => results,
            Err(ScanError::Timeout) => return Err(format!("the search took longer than {} s", TIMEOUT.as_secs())),
            Err(error) => return Err(error.to_string()),
        };
        Ok(results
            .matching_rules()
            .map(|rule| Found {
                rule: rule.identifier().to_owned(),
                namespace: rule.namespace().to_owned(),
                tags: rule.tags().map(|tag| tag.identifier().to_owned()).collect(),
                meta: rule.metadata().map(|(name, value)| (name.to_owned(), constant(&value))).collect(),
                hits: rule
                    .patterns()
                    .flat_map(|pattern| {
                        let name = pattern.identifier();
                        pattern.matches().map(move |hit| Hit { name: name.to_owned(), start: hit.range().start, end: hit.range().end })
                    })
                    .collect(),
            })
            .collect())
    }));
    scanned.unwrap_or_else(|_| Err("the engine cannot search these bytes".to_owned()))
}

fn constant(value: &MetaValue<'_>) -> Constant {
    match value {
        MetaValue::Integer(number) => Constant::Int(*number),
        MetaValue::Float(number) => Constant::Float(*number),
        MetaValue::Bool(truth) => Constant::Bool(*truth),
        MetaValue::String(text) => Constant::Text(text.as_bytes().to_vec()),
        MetaValue::Bytes(bytes) => Constant::Text(bytes.to_vec()),
    }
}
