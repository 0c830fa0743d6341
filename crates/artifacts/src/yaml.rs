//! The text form: a tolerant pass over the lines, then strict decoding.

use serde::{Deserialize, Deserializer};
use serde_saphyr::{Error as YamlError, Spanned};
use talon_proto as proto;

use crate::ArtifactError;

/// The longest text of an artifact, in bytes.
pub const MAX_TEXT: usize = 8 << 20;

/// A decoded text.
pub(crate) struct Decoded {
    pub(crate) artifact: proto::Artifact,
    pub(crate) lines: Lines,
}

/// Where the queries of a text start, by line from 1.
#[derive(Default)]
pub(crate) struct Lines {
    pub(crate) precondition: Option<u64>,
    pub(crate) export: Option<u64>,
    /// Beside the sources: precondition, query.
    pub(crate) sources: Vec<(Option<u64>, Option<u64>)>,
}

/// Decodes one artifact strictly: unknown keys are errors, scalars keep their text.
pub(crate) fn decode(text: &str) -> Result<Decoded, ArtifactError> {
    if text.len() > MAX_TEXT {
        return Err(ArtifactError::Yaml { line: 1, column: 1, problem: format!("the artifact is larger than {MAX_TEXT} bytes") });
    }
    let relaxed = relax(text);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 24,
            max_nodes: 100_000,
            max_events: 300_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_documents: 1,
            max_total_scalar_bytes: 2 * MAX_TEXT,
        },
    };
    let document: Document =
        serde_saphyr::from_str_with_options(&relaxed.text, options).map_err(|error| refusal(&relaxed, error.without_snippet()))?;
    Ok(document.into_decoded(text, &relaxed))
}

/// A text whose un-piped queries were made literal blocks.
struct Relaxed {
    text: String,
    /// Lines of `text` that the original does not have, from 1.
    inserted: Vec<u64>,
}

impl Relaxed {
    /// The line of the original text.
    fn original(&self, line: u64) -> u64 {
        line.saturating_sub(self.inserted.iter().filter(|inserted| **inserted <= line).count() as u64).max(1)
    }
}

/// Makes literal blocks of queries that lack the mark: `query:` alone on its line, list items that start like VQL.
fn relax(text: &str) -> Relaxed {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let mut out = String::with_capacity(text.len() + 64);
    let mut inserted = Vec::new();
    let mut number = 0_u64;
    // Inside a block scalar whose key stands at this column; nothing in there is touched.
    let mut block: Option<usize> = None;
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        number += 1;
        let blank = line.trim().is_empty();
        if let Some(column) = block {
            if blank || indent(line) > column {
                out.push_str(line);
                continue;
            }
            block = None;
        }
        let (dashes, content) = split_dashes(line);
        let key = indent(line) + dashes;
        let body = lines.get(index + 1..).unwrap_or_default().iter().find(|next| !next.trim().is_empty());
        if is_query_key(content) && body.is_some_and(|next| indent(next) > key) {
            out.push_str(line.trim_end());
            out.push_str(" |");
            block = Some(key);
        } else if dashes > 0 && starts_like_vql(content) {
            let column = last_dash(line, dashes);
            out.push_str(line.get(..column + 1).unwrap_or(line));
            out.push_str(" |\n");
            out.extend(std::iter::repeat_n(' ', column + 1));
            out.push_str(content);
            number += 1;
            inserted.push(number);
            block = Some(column);
        } else {
            if opens_block(content) {
                block = Some(if content.starts_with(['|', '>']) { indent(line) } else { key });
            }
            out.push_str(line);
        }
    }
    Relaxed { text: out, inserted }
}

/// The column of the last of the dashes that, blanks included, are `width` wide.
fn last_dash(line: &str, width: usize) -> usize {
    let start = indent(line);
    let dashes = line.get(start..start + width).unwrap_or_default();
    start + dashes.rfind('-').unwrap_or(0)
}

pub(crate) fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// The width of the dashes of list items before the content, blanks included, and the content.
pub(crate) fn split_dashes(line: &str) -> (usize, &str) {
    let trimmed = line.trim_start_matches(' ');
    let mut rest = trimmed;
    while let Some(after) = rest.strip_prefix("- ") {
        rest = after.trim_start_matches(' ');
    }
    (trimmed.len() - rest.len(), rest)
}

fn is_query_key(content: &str) -> bool {
    let content = content.trim_end();
    ["precondition:", "query:"].iter().any(|key| content.eq_ignore_ascii_case(key))
}

fn starts_like_vql(content: &str) -> bool {
    content.starts_with("//")
        || ["SELECT", "LET"]
            .iter()
            .any(|word| content.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t'])))
}

/// True for `key: |`, `key: >-`, `|` and so on, perhaps with a comment behind.
pub(crate) fn opens_block(content: &str) -> bool {
    let content = content.split(" #").next().unwrap_or_default().trim_end();
    let mark = content.rsplit(' ').next().unwrap_or_default();
    let after_key = content.strip_suffix(mark).is_some_and(|key| key.is_empty() || key.trim_end().ends_with(':'));
    let mut chars = mark.chars();
    after_key && matches!(chars.next(), Some('|' | '>')) && chars.all(|c| matches!(c, '+' | '-' | '1'..='9'))
}

/// The error in our words: values of the text are not quoted.
fn refusal(relaxed: &Relaxed, error: &YamlError) -> ArtifactError {
    let location = error.location();
    let line = location.map_or(1, |location| relaxed.original(location.line()));
    let column = location.map_or(1, |location| location.column());
    let problem = match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let key: String = field.chars().take(80).collect();
            let nearest = talon_vql::nearest(&key, expected.iter().copied());
            return ArtifactError::UnknownKey { line, column, key, nearest };
        }
        YamlError::DuplicateMappingKey { key, .. } => {
            let key: String = key.as_deref().unwrap_or_default().chars().take(80).collect();
            format!("the key \"{key}\" is given twice: keep one of them")
        }
        YamlError::SerdeMissingField { field, .. } => format!("the key \"{field}\" is missing"),
        YamlError::InvalidScalar { ty, .. } => match *ty {
            "boolean" | "bool" => "this must be true or false".to_owned(),
            _ => "this must be a number in its range".to_owned(),
        },
        YamlError::SerdeInvalidType { expected, .. } | YamlError::SerdeInvalidValue { expected, .. } => format!("this must be {expected}"),
        YamlError::Unexpected { expected, .. } => format!(
            "this must be a {}",
            match *expected {
                "mapping start" => "section with keys",
                "sequence start" => "list",
                "string scalar" => "text",
                other => other,
            }
        ),
        YamlError::Budget { .. } | YamlError::AliasReplayLimitExceeded { .. } => {
            "the artifact is nested too deeply or too large".to_owned()
        }
        _ => "this is not valid YAML: check indentation, quotes and colons around here".to_owned(),
    };
    ArtifactError::Yaml { line, column, problem }
}

/// A text that may be left empty.
#[derive(Default)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Option::<String>::deserialize(deserializer)?.unwrap_or_default()))
    }
}

type Texts = Option<Vec<Text>>;
type Query = Option<Spanned<String>>;

fn strings(texts: Texts) -> Vec<String> {
    texts.unwrap_or_default().into_iter().map(|text| text.0).collect()
}

fn query(query: Query) -> String {
    query.map(|query| query.value).unwrap_or_default()
}

macro_rules! sections {
    ($($name:ident { $($field:ident : $kind:ty),* $(,)? })*) => {
        $(
            #[derive(Default, Deserialize)]
            #[serde(deny_unknown_fields, default)]
            struct $name { $($field: $kind),* }
        )*
    };
}

sections! {
    Document {
        name: Text,
        aliases: Texts,
        description: Text,
        author: Text,
        reference: Texts,
        references: Texts,
        r#type: Text,
        precondition: Query,
        parameters: Option<Vec<Parameter>>,
        sources: Option<Vec<Source>>,
        export: Query,
        imports: Texts,
        required_permissions: Texts,
        implied_permissions: Texts,
        impersonate: Text,
        resources: Option<Resources>,
        tools: Option<Vec<Tool>>,
        column_types: Option<Vec<Column>>,
        reports: Option<Vec<Report>>,
        // Internal state that exports of artifacts may carry. It is not believed.
        raw: Option<serde::de::IgnoredAny>,
        compiled: Option<serde::de::IgnoredAny>,
        built_in: Option<serde::de::IgnoredAny>,
        compiled_in: Option<serde::de::IgnoredAny>,
        is_alias: Option<serde::de::IgnoredAny>,
        is_inherited: Option<serde::de::IgnoredAny>,
        metadata: Option<serde::de::IgnoredAny>,
    }
    Parameter {
        name: Text,
        default: Text,
        r#type: Text,
        description: Text,
        friendly_name: Text,
        choices: Texts,
        validating_regex: Text,
        artifact_type: Text,
        sources: Option<bool>,
    }
    Source {
        name: Text,
        description: Text,
        precondition: Query,
        query: Query,
        queries: Texts,
        notebook: Option<Vec<Cell>>,
    }
    Cell {
        r#type: Text,
        name: Text,
        template: Text,
        output: Text,
        env: Option<Vec<Env>>,
    }
    Env {
        key: Text,
        value: Text,
    }
    Resources {
        timeout: Option<u64>,
        ops_per_second: Option<f32>,
        cpu_limit: Option<f32>,
        iops_limit: Option<f32>,
        max_rows: Option<u64>,
        max_upload_bytes: Option<u64>,
        max_batch_wait: Option<u64>,
        max_batch_rows: Option<u64>,
        max_batch_rows_buffer: Option<u64>,
    }
    Tool {
        name: Text,
        url: Text,
        github_project: Text,
        github_asset_regex: Text,
        serve_locally: Option<bool>,
        expected_hash: Text,
        version: Text,
        filename: Text,
        // State, as above.
        filestore_path: Option<serde::de::IgnoredAny>,
        hash: Option<serde::de::IgnoredAny>,
        admin_override: Option<serde::de::IgnoredAny>,
        serve_url: Option<serde::de::IgnoredAny>,
        serve_urls: Option<serde::de::IgnoredAny>,
        serve_path: Option<serde::de::IgnoredAny>,
        materialize: Option<serde::de::IgnoredAny>,
        artifact: Option<serde::de::IgnoredAny>,
        versions: Option<serde::de::IgnoredAny>,
        invalid_hash: Option<serde::de::IgnoredAny>,
    }
    Column {
        name: Text,
        r#type: Text,
        description: Text,
    }
    Report {
        r#type: Text,
        name: Text,
        template: Text,
        timeout: Option<u64>,
        parameters: Option<Vec<Parameter>>,
    }
}

impl Document {
    fn into_decoded(self, raw: &str, relaxed: &Relaxed) -> Decoded {
        // A literal block starts on the line after its mark; other scalars where they stand.
        let line_of = |query: &Query| {
            let query = query.as_ref()?;
            let line = query.referenced.line();
            let text = relaxed.text.split('\n').nth(usize::try_from(line).ok()?.checked_sub(1)?).unwrap_or_default();
            Some(relaxed.original(if opens_block(split_dashes(text).1) { line.saturating_add(1) } else { line }))
        };
        let mut lines = Lines { precondition: line_of(&self.precondition), export: line_of(&self.export), sources: Vec::new() };
        let mut sources = Vec::new();
        for source in self.sources.unwrap_or_default() {
            lines.sources.push((line_of(&source.precondition), line_of(&source.query)));
            sources.push(source.into_proto());
        }
        let artifact = proto::Artifact {
            name: self.name.0,
            description: self.description.0,
            parameters: self.parameters.unwrap_or_default().into_iter().map(Parameter::into_proto).collect(),
            sources,
            reference: strings(self.reference),
            references: strings(self.references),
            raw: raw.to_owned(),
            precondition: query(self.precondition),
            r#type: self.r#type.0,
            reports: self.reports.unwrap_or_default().into_iter().map(Report::into_proto).collect(),
            author: self.author.0,
            required_permissions: strings(self.required_permissions),
            implied_permissions: strings(self.implied_permissions),
            impersonate: self.impersonate.0,
            tools: self.tools.unwrap_or_default().into_iter().map(Tool::into_proto).collect(),
            column_types: self.column_types.unwrap_or_default().into_iter().map(Column::into_proto).collect(),
            imports: strings(self.imports),
            export: query(self.export),
            resources: self.resources.map(Resources::into_proto),
            aliases: strings(self.aliases),
            ..proto::Artifact::default()
        };
        Decoded { artifact, lines }
    }
}

impl Parameter {
    fn into_proto(self) -> proto::ArtifactParameter {
        proto::ArtifactParameter {
            name: self.name.0,
            default: self.default.0,
            description: self.description.0,
            r#type: self.r#type.0,
            friendly_name: self.friendly_name.0,
            choices: strings(self.choices),
            validating_regex: self.validating_regex.0,
            artifact_type: self.artifact_type.0,
            sources: self.sources.unwrap_or_default(),
        }
    }
}

impl Source {
    fn into_proto(self) -> proto::ArtifactSource {
        proto::ArtifactSource {
            precondition: query(self.precondition),
            queries: strings(self.queries),
            name: self.name.0,
            description: self.description.0,
            notebook: self.notebook.unwrap_or_default().into_iter().map(Cell::into_proto).collect(),
            query: query(self.query),
        }
    }
}

impl Cell {
    fn into_proto(self) -> proto::NotebookSourceCell {
        let env = |env: Env| proto::ArtifactEnv { key: env.key.0, value: env.value.0 };
        proto::NotebookSourceCell {
            template: self.template.0,
            r#type: self.r#type.0,
            env: self.env.unwrap_or_default().into_iter().map(env).collect(),
            name: self.name.0,
            output: self.output.0,
        }
    }
}

impl Resources {
    fn into_proto(self) -> proto::Resources {
        proto::Resources {
            timeout: self.timeout.unwrap_or_default(),
            max_rows: self.max_rows.unwrap_or_default(),
            max_upload_bytes: self.max_upload_bytes.unwrap_or_default(),
            ops_per_second: self.ops_per_second.unwrap_or_default(),
            cpu_limit: self.cpu_limit.unwrap_or_default(),
            iops_limit: self.iops_limit.unwrap_or_default(),
            max_batch_wait: self.max_batch_wait.unwrap_or_default(),
            max_batch_rows: self.max_batch_rows.unwrap_or_default(),
            max_batch_rows_buffer: self.max_batch_rows_buffer.unwrap_or_default(),
        }
    }
}

impl Tool {
    fn into_proto(self) -> proto::Tool {
        proto::Tool {
            name: self.name.0,
            url: self.url.0,
            serve_locally: self.serve_locally.unwrap_or_default(),
            filename: self.filename.0,
            github_project: self.github_project.0,
            github_asset_regex: self.github_asset_regex.0,
            expected_hash: self.expected_hash.0,
            version: self.version.0,
            ..proto::Tool::default()
        }
    }
}

impl Column {
    fn into_proto(self) -> proto::ColumnType {
        proto::ColumnType { name: self.name.0, r#type: self.r#type.0, description: self.description.0 }
    }
}

impl Report {
    fn into_proto(self) -> proto::Report {
        proto::Report {
            r#type: self.r#type.0,
            template: self.template.0,
            parameters: self.parameters.unwrap_or_default().into_iter().map(Parameter::into_proto).collect(),
            timeout: self.timeout.unwrap_or_default(),
            name: self.name.0,
        }
    }
}
