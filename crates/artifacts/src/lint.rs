//! What an author should know before users find out: references to nothing, calls that cannot work, permissions that were forgotten.

mod calls;
mod place;
mod suppression;

use std::fmt;

use talon_ids::Permissions;
use talon_proto as proto;
use talon_vql::ast::{Span, Statement};
use talon_vql::{Registry, SyntaxError};

use crate::yaml::{self, Lines};
use crate::{ArtifactError, Definition, ParameterType, Repository};
use calls::{Checker, Names};
use suppression::Suppressions;

/// The rules, by the names under which reports and suppressions know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The text is not an artifact.
    YamlError,
    /// A query is not VQL.
    ArtifactVqlError,
    /// An artifact is imported that there is not.
    InvalidImport,
    /// A query calls an artifact that there is not.
    UnknownArtifactInQuery,
    /// A query passes a parameter that the artifact does not have.
    UnknownParameterInCall,
    /// Rows are wanted from something that does not give any.
    UnknownPlugin,
    /// A plugin stands where a function belongs.
    CallAsFunction,
    /// A call has `**` beside other arguments.
    KwargsMixedCall,
    /// A built-in or a definition is called with an argument that it does not have.
    InvalidArg,
    /// A built-in or a definition is called without an argument that it needs.
    RequiredArgMissing,
    /// Something is called that nobody defines.
    UnknownFunction,
    /// A built-in needs a permission that the artifact does not ask for.
    RequiredPermissions,
    /// A definition has the name of a built-in.
    SymbolMask,
    /// A comment that should silence the linter does not.
    InvalidSuppression,
    /// A type of parameter that nobody knows: it stays a string.
    UnknownParameterType,
    /// A built-in is called that this program does not have.
    NotAvailable,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It will not work.
    Error,
    /// It works, perhaps not as its author thinks.
    Warning,
    /// It works elsewhere.
    Note,
}

impl Severity {
    /// The word in front of the finding.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 16] = [
        Self::YamlError,
        Self::ArtifactVqlError,
        Self::InvalidImport,
        Self::UnknownArtifactInQuery,
        Self::UnknownParameterInCall,
        Self::UnknownPlugin,
        Self::CallAsFunction,
        Self::KwargsMixedCall,
        Self::InvalidArg,
        Self::RequiredArgMissing,
        Self::UnknownFunction,
        Self::RequiredPermissions,
        Self::SymbolMask,
        Self::InvalidSuppression,
        Self::UnknownParameterType,
        Self::NotAvailable,
    ];

    /// The name.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::YamlError => "yaml_error",
            Self::ArtifactVqlError => "artifact_vql_error",
            Self::InvalidImport => "invalid_import",
            Self::UnknownArtifactInQuery => "unknown_artifact_in_query",
            Self::UnknownParameterInCall => "unknown_parameter_in_call",
            Self::UnknownPlugin => "unknown_plugin",
            Self::CallAsFunction => "call_as_function",
            Self::KwargsMixedCall => "kwargs_mixed_call",
            Self::InvalidArg => "invalid_arg",
            Self::RequiredArgMissing => "required_arg_missing",
            Self::UnknownFunction => "unknown_function",
            Self::RequiredPermissions => "required_permissions",
            Self::SymbolMask => "symbol_mask_warn",
            Self::InvalidSuppression => "invalid_suppression",
            Self::UnknownParameterType => "unknown_parameter_type",
            Self::NotAvailable => "not_available",
        }
    }

    /// How bad it is to break it.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::NotAvailable => Severity::Note,
            Self::UnknownFunction
            | Self::RequiredPermissions
            | Self::SymbolMask
            | Self::InvalidSuppression
            | Self::UnknownParameterType => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// The rules about single calls are reported as errors of the query that makes the call.
    fn is_of_call(self) -> bool {
        matches!(self, Self::UnknownPlugin | Self::CallAsFunction | Self::KwargsMixedCall | Self::InvalidArg | Self::RequiredArgMissing)
    }
}

/// One thing found. `Display` is one line, in the form that stock programs have; [`Finding::render`] shows the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which rule is broken.
    pub rule: Rule,
    /// By what: the name of a built-in, an argument, an artifact, a permission. Suppressions look at it.
    pub subject: String,
    /// Artifact and part of it: `Custom.A: query`. Empty for a query that belongs to no artifact.
    pub context: String,
    /// How.
    pub text: String,
    /// What the author may have meant.
    pub hint: Option<String>,
    /// The bytes at fault in the text that was checked, where they are known.
    pub span: Option<Span>,
}

impl Finding {
    /// The finding with line and column, the line at fault, a caret beneath, and the hint. `text` is what was checked.
    #[must_use]
    pub fn render(&self, text: &str) -> String {
        match self.span {
            Some(span) => SyntaxError::new(text, span, self.to_string()).with_hint(self.hint.clone()).render(),
            None => self.hint.as_ref().map_or_else(|| self.to_string(), |hint| format!("{self}\nhint: {hint}")),
        }
    }

    fn of_artifact(rule: Rule, artifact: &str, text: String) -> Self {
        Self { rule, subject: artifact.to_owned(), context: String::new(), text, hint: None, span: None }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, context, text, .. } = self;
        match (context.as_str(), rule.is_of_call()) {
            ("", _) => write!(out, "{}:{text}", rule.id()),
            (context, true) => write!(out, "{}:{context}: {}:{text}", Rule::ArtifactVqlError.id(), rule.id()),
            (context, false) => write!(out, "{}:{context}: {text}", rule.id()),
        }
    }
}

/// What queries may refer to: artifacts, and built-ins if they are known.
#[derive(Clone, Copy)]
pub struct Library<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) registry: Option<&'a Registry>,
}

impl<'a> Library<'a> {
    /// Artifacts; calls of built-ins are not looked at.
    #[must_use]
    pub fn new(repository: &'a Repository) -> Self {
        Self { repository, registry: None }
    }

    /// With built-ins.
    #[must_use]
    pub fn with_registry(self, registry: &'a Registry) -> Self {
        Self { registry: Some(registry), ..self }
    }
}

/// Everything that is to be said about an artifact.
#[derive(Debug, Default)]
pub struct Report {
    /// What was found, in the order of the text.
    pub findings: Vec<Finding>,
    /// The permissions that the built-ins in its queries need.
    pub permissions: Permissions,
    /// The suppressions in its comments, as written.
    pub suppressions: Vec<String>,
}

/// Checks the YAML form of an artifact. Spans count in `text`.
#[must_use]
pub fn lint_text(text: &str, library: &Library<'_>) -> Report {
    let failed = |finding| Report { findings: vec![finding], ..Report::default() };
    match Definition::from_yaml(text) {
        Ok(definition) => {
            let lines = yaml::decode(text).map(|decoded| decoded.lines).unwrap_or_default();
            lint_parts(&definition, library, Some((text, &lines)))
        }
        Err(error @ ArtifactError::Vql { .. }) => {
            let mut finding = Finding::of_artifact(Rule::ArtifactVqlError, "", error.to_string());
            if let ArtifactError::Vql { artifact, error, .. } = &error {
                finding.subject.clone_from(artifact);
                finding.hint = error.hint().map(str::to_owned);
                finding.span = broken_query(text);
            }
            failed(finding)
        }
        Err(error) => {
            let span = match &error {
                ArtifactError::Yaml { line, column, .. } | ArtifactError::UnknownKey { line, column, .. } => {
                    place::at_line_and_column(text, *line, *column)
                }
                _ => None,
            };
            failed(Finding { span, ..Finding::of_artifact(Rule::YamlError, "", error.to_string()) })
        }
    }
}

/// Where the first query of an artifact that is not VQL goes wrong.
fn broken_query(text: &str) -> Option<Span> {
    let decoded = yaml::decode(text).ok()?;
    parts(&decoded.artifact, &decoded.lines).into_iter().find_map(|part| {
        let error = talon_vql::parse(part.text).err().filter(|_| !part.text.trim().is_empty())?;
        place::in_yaml(text, part.line?, part.text, error.span())
    })
}

/// Checks a definition. Spans are left out: what they counted in is not known here.
#[must_use]
pub fn lint(definition: &Definition, library: &Library<'_>) -> Report {
    lint_parts(definition, library, None)
}

/// Checks a query that belongs to no artifact. Spans count in `text`.
///
/// # Errors
/// It is not VQL.
pub fn lint_vql(text: &str, library: &Library<'_>) -> Result<Vec<Finding>, SyntaxError> {
    let program = talon_vql::parse(text)?;
    let mut suppressions = Suppressions::default();
    let mut findings = Vec::new();
    suppressions.read(&program.comments, "", &mut findings, &Some);
    let names = Names::of(program.statements.iter(), library);
    let mut checker = Checker { library, own: None, names: &names, assumed: None, found: Vec::new(), permissions: Permissions::NONE };
    program.statements.iter().for_each(|statement| checker.statement(statement));
    findings.extend(checker.found);
    suppressions.apply(&mut findings);
    in_order(&mut findings);
    Ok(findings)
}

/// One query text of an artifact.
struct Part<'a> {
    name: &'static str,
    text: &'a str,
    /// Where it starts in the YAML text.
    line: Option<u64>,
}

fn parts<'a>(artifact: &'a proto::Artifact, lines: &Lines) -> Vec<Part<'a>> {
    let mut parts = vec![
        Part { name: "export", text: &artifact.export, line: lines.export },
        Part { name: "precondition", text: &artifact.precondition, line: lines.precondition },
    ];
    for (index, source) in artifact.sources.iter().enumerate() {
        let (precondition, query) = lines.sources.get(index).copied().unwrap_or_default();
        parts.push(Part { name: "precondition", text: &source.precondition, line: precondition });
        parts.push(Part { name: "query", text: &source.query, line: query });
    }
    parts
}

fn lint_parts(definition: &Definition, library: &Library<'_>, yaml: Option<(&str, &Lines)>) -> Report {
    let name = definition.name().as_str();
    let mut findings = Vec::new();
    for import in definition.imports() {
        if library.repository.get(import.as_str()).is_none() && import != definition.name() {
            let error = ArtifactError::UnknownImport { artifact: name.to_owned(), import: import.to_string() };
            let finding = Finding::of_artifact(Rule::InvalidImport, import.as_str(), error.to_string());
            let known = library.repository.entries();
            let hint = talon_vql::nearest(import.as_str(), known.keys().map(String::as_str)).map(|near| format!("did you mean {near}?"));
            findings.push(Finding { hint, ..finding });
        }
    }
    for parameter in &definition.proto().parameters {
        if !ParameterType::is_known(&parameter.r#type) {
            let text = format!("{name}: parameter {} has the unknown type {}", parameter.name, parameter.r#type);
            findings.push(Finding::of_artifact(Rule::UnknownParameterType, &parameter.name, text));
        }
    }
    let imported: Vec<_> = definition.imports().iter().filter_map(|import| library.repository.get(import.as_str())).collect();
    let imported: Vec<&Statement> = imported.iter().flat_map(|import| import.export()).collect();
    let no_lines = Lines::default();
    let parts = parts(definition.proto(), yaml.map_or(&no_lines, |(_, lines)| lines));
    let programs: Vec<_> = parts.iter().map(|part| talon_vql::parse(part.text).unwrap_or_default()).collect();
    let exports: Vec<&Statement> = programs.first().into_iter().flat_map(|program| &program.statements).chain(imported).collect();
    let (mut permissions, mut suppressions) = (Permissions::NONE, Suppressions::default());
    for (part, program) in parts.iter().zip(&programs) {
        let context = format!("{name}: {}", part.name);
        let in_yaml = |span| yaml.and_then(|(text, _)| place::in_yaml(text, part.line?, part.text, span));
        suppressions.read(&program.comments, &context, &mut findings, &in_yaml);
        let names = Names::of(exports.iter().copied().chain(&program.statements), library);
        let mut checker =
            Checker { library, own: Some(definition), names: &names, assumed: assumed(definition), found: Vec::new(), permissions };
        program.statements.iter().for_each(|statement| checker.statement(statement));
        permissions = checker.permissions;
        let found = checker.found.into_iter();
        findings.extend(found.map(|finding| Finding { context: context.clone(), span: finding.span.and_then(in_yaml), ..finding }));
    }
    suppressions.apply(&mut findings);
    in_order(&mut findings);
    Report { findings, permissions, suppressions: suppressions.into_texts() }
}

/// The permissions that whoever launches an artifact on clients is taken to have. On the server, queries run with those of their caller.
fn assumed(definition: &Definition) -> Option<Permissions> {
    use crate::ArtifactType::{Client, ClientEvent};
    use talon_ids::Permission::{CollectServer, FilesystemRead, MachineState};
    let usual = Permissions::of(&[FilesystemRead, MachineState, CollectServer]);
    let stated = definition.required_permissions().union(definition.implied_permissions());
    matches!(definition.kind(), Client | ClientEvent).then(|| usual.union(stated))
}

fn in_order(findings: &mut Vec<Finding>) {
    let key = |finding: &Finding| (finding.span.map_or(0, |span| span.start), finding.rule, finding.text.clone());
    findings.sort_by_key(key);
    findings.dedup();
}

#[cfg(test)]
mod tests;
