//! A definition: checked once, its queries parsed once, never changed.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use talon_ids::{ArtifactName, Permission, Permissions, QueryName};
use talon_proto as proto;
use talon_vql::ast::{Statement, StatementKind};
use talon_vql::format::canonical_statement;

use crate::ArtifactError;
use crate::parameter::Parameter;
use crate::yaml::{self, Lines};

/// The most parameters, sources, imports or tools of one artifact.
const MAX_PARTS: usize = 1000;

/// Where an artifact runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArtifactType {
    /// Collected from clients.
    Client,
    /// Runs on clients all the time.
    ClientEvent,
    /// Collected from the server.
    Server,
    /// Runs on the server all the time.
    ServerEvent,
    /// A template of a notebook.
    Notebook,
    /// A queue in memory.
    Internal,
}

impl ArtifactType {
    /// Every type.
    pub const ALL: [Self; 6] = [Self::Client, Self::ClientEvent, Self::Server, Self::ServerEvent, Self::Notebook, Self::Internal];

    /// The name, in the normal form.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::ClientEvent => "client_event",
            Self::Server => "server",
            Self::ServerEvent => "server_event",
            Self::Notebook => "notebook",
            Self::Internal => "internal",
        }
    }

    /// True when its sources run side by side and never end.
    #[must_use]
    pub fn is_event(self) -> bool {
        matches!(self, Self::ClientEvent | Self::ServerEvent | Self::Internal)
    }
}

impl FromStr for ArtifactType {
    type Err = String;

    /// Any case; empty is a client artifact.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::Client);
        }
        let known = Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
        known.ok_or_else(|| {
            let names = Self::ALL.map(|kind| kind.name().to_uppercase()).join(", ");
            format!("unknown artifact type \"{}\": one of {names}", text.chars().take(40).collect::<String>())
        })
    }
}

impl fmt::Display for ArtifactType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// One source of an artifact.
#[derive(Debug, Clone)]
pub struct Source {
    /// The name of its result table.
    pub query_name: QueryName,
    /// The statements of its precondition; empty when it has none.
    pub precondition: Vec<Statement>,
    /// The text of its precondition.
    pub precondition_text: String,
    /// All are `LET` but the last; empty when there is nothing to run.
    pub statements: Vec<Statement>,
}

/// A checked artifact.
#[derive(Debug, Clone)]
pub struct Definition {
    name: ArtifactName,
    kind: ArtifactType,
    parameters: Vec<Parameter>,
    conversions: Vec<Statement>,
    sources: Vec<Source>,
    precondition: Vec<Statement>,
    export: Vec<Statement>,
    imports: Vec<ArtifactName>,
    aliases: Vec<ArtifactName>,
    required_permissions: Permissions,
    implied_permissions: Permissions,
    artifact: Arc<proto::Artifact>,
}

impl Definition {
    /// Reads the YAML form.
    ///
    /// # Errors
    /// The text is not YAML, has unknown keys, breaks a rule, or a query is not VQL.
    pub fn from_yaml(text: &str) -> Result<Self, ArtifactError> {
        let decoded = yaml::decode(text)?;
        Self::checked(decoded.artifact, Some(&decoded.lines))
    }

    /// Reads the form that requests carry: `queries` of one statement each instead of `query`.
    ///
    /// # Errors
    /// A rule is broken or a query is not VQL.
    pub fn from_proto(mut artifact: proto::Artifact) -> Result<Self, ArtifactError> {
        artifact.compiled = false;
        artifact.built_in = false;
        artifact.compiled_in = false;
        artifact.is_alias = false;
        artifact.is_inherited = false;
        artifact.metadata = None;
        Self::checked(artifact, None)
    }

    fn checked(mut artifact: proto::Artifact, lines: Option<&Lines>) -> Result<Self, ArtifactError> {
        let shown: String = artifact.name.chars().take(100).collect();
        let invalid = |problem: String| ArtifactError::invalid(&shown, problem);
        if artifact.name.is_empty() {
            return Err(ArtifactError::invalid("artifact", "the key \"name\" is missing"));
        }
        let name: ArtifactName = artifact.name.parse().map_err(|_| {
            invalid("a name is made of letters, digits, _ and dots; no part of it is empty or starts with a digit".to_owned())
        })?;
        let kind: ArtifactType = artifact.r#type.parse().map_err(invalid)?;
        artifact.r#type = kind.name().to_owned();
        let counts =
            [artifact.parameters.len(), artifact.sources.len(), artifact.imports.len(), artifact.tools.len(), artifact.aliases.len()];
        if counts.into_iter().any(|count| count > MAX_PARTS) {
            return Err(invalid(format!("more than {MAX_PARTS} parameters, sources, imports, aliases or tools")));
        }
        let names = |names: &[String], what: &str| {
            let parse =
                |text: &String| text.parse().map_err(|_| invalid(format!("\"{}\" in {what} is not an artifact name", text.escape_debug())));
            names.iter().map(parse).collect::<Result<Vec<ArtifactName>, _>>()
        };
        let parser = Parser { artifact: &shown };
        let parameters = check_parameters(&artifact.parameters).map_err(invalid)?;
        let sources = parser.sources(&name, &mut artifact.sources, lines)?;
        let uploaded = lines.is_some();
        if uploaded && !artifact.precondition.trim().is_empty() && sources.iter().any(|source| !source.precondition.is_empty()) {
            return Err(invalid("a precondition of the artifact cannot be combined with preconditions of its sources".to_owned()));
        }
        check_cells(&artifact).map_err(invalid)?;
        let conversions: String = parameters.iter().flat_map(Parameter::conversion).map(|statement| statement + "\n").collect();
        Ok(Self {
            conversions: parser.parse(&conversions, "parameters", None)?,
            parameters,
            sources,
            precondition: parser.parse(&artifact.precondition, "precondition", lines.and_then(|lines| lines.precondition))?,
            export: parser.parse(&artifact.export, "export", lines.and_then(|lines| lines.export))?,
            imports: names(&artifact.imports, "imports")?,
            aliases: names(&artifact.aliases, "aliases")?,
            required_permissions: permissions(&artifact.required_permissions).map_err(invalid)?,
            implied_permissions: permissions(&artifact.implied_permissions).map_err(invalid)?,
            name,
            kind,
            artifact: Arc::new(artifact),
        })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &ArtifactName {
        &self.name
    }

    /// The type.
    #[must_use]
    pub fn kind(&self) -> ArtifactType {
        self.kind
    }

    /// The parameters in order.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The statements that turn the texts of the parameters into values.
    #[must_use]
    pub fn conversions(&self) -> &[Statement] {
        &self.conversions
    }

    /// Which sources share a scope: all of them, or each has its own where they run side by side or under preconditions of their own.
    #[must_use]
    pub fn groups(&self) -> Vec<Range<usize>> {
        let count = self.sources.len();
        if self.is_serial() {
            if count == 0 { Vec::new() } else { std::iter::once(0..count).collect() }
        } else {
            (0..count).map(|at| at..at + 1).collect()
        }
    }

    fn is_serial(&self) -> bool {
        let own_preconditions = self.sources.iter().any(|source| !source.precondition.is_empty());
        !self.kind.is_event() && (!self.precondition.is_empty() || !own_preconditions)
    }

    /// The precondition of a group: that of its source, else that of the artifact.
    #[must_use]
    pub fn gate<'a>(&'a self, group: &'a [Source]) -> &'a [Statement] {
        match group {
            [source] if !self.is_serial() && !source.precondition.is_empty() => &source.precondition,
            _ => &self.precondition,
        }
    }

    /// The sources in order.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The statements of the precondition of the whole artifact; empty when it has none.
    #[must_use]
    pub fn precondition(&self) -> &[Statement] {
        &self.precondition
    }

    /// The statements put in front of its sources and those of importing artifacts.
    #[must_use]
    pub fn export(&self) -> &[Statement] {
        &self.export
    }

    /// The artifacts whose exports are put in front of its sources.
    #[must_use]
    pub fn imports(&self) -> &[ArtifactName] {
        &self.imports
    }

    /// Its further names.
    #[must_use]
    pub fn aliases(&self) -> &[ArtifactName] {
        &self.aliases
    }

    /// What a user must hold to launch it.
    #[must_use]
    pub fn required_permissions(&self) -> Permissions {
        self.required_permissions
    }

    /// What the author vouches to use safely.
    #[must_use]
    pub fn implied_permissions(&self) -> Permissions {
        self.implied_permissions
    }

    /// Everything, as the API shows it: description, author, references, tools, resources, raw text …
    #[must_use]
    pub fn proto(&self) -> &proto::Artifact {
        &self.artifact
    }

    /// A copy that holds only the named source.
    #[must_use]
    pub fn with_only(&self, source: &str) -> Option<Self> {
        let at = self.sources.iter().position(|candidate| candidate.query_name.source.as_deref() == Some(source))?;
        let mut artifact = proto::Artifact::clone(&self.artifact);
        artifact.sources = artifact.sources.into_iter().skip(at).take(1).collect();
        let sources = self.sources.iter().skip(at).take(1).cloned().collect();
        Some(Self { sources, artifact: Arc::new(artifact), ..self.clone() })
    }

    /// A full copy under one of its aliases.
    pub(crate) fn as_alias(&self, alias: &ArtifactName) -> Self {
        let mut artifact = proto::Artifact::clone(&self.artifact);
        artifact.name = alias.to_string();
        artifact.is_alias = true;
        let rename = |source: &Source| Source {
            query_name: QueryName { artifact: alias.clone(), source: source.query_name.source.clone() },
            ..source.clone()
        };
        let sources = self.sources.iter().map(rename).collect();
        Self { name: alias.clone(), sources, artifact: Arc::new(artifact), ..self.clone() }
    }

    pub(crate) fn change_proto(&mut self, change: impl FnOnce(&mut proto::Artifact)) {
        change(Arc::make_mut(&mut self.artifact));
    }

    /// What an agent needs to run it as a dependency, and nothing else. `extra` parameters are appended.
    #[must_use]
    pub fn stripped(&self, extra: Vec<(String, String)>) -> proto::Artifact {
        let statements = |statements: &[Statement]| statements.iter().map(canonical_statement).collect::<Vec<_>>();
        let parameter = |name: String, default: String, r#type: String| proto::ArtifactParameter {
            name,
            default,
            r#type,
            ..proto::ArtifactParameter::default()
        };
        let own = self.artifact.parameters.iter().map(|own| parameter(own.name.clone(), own.default.clone(), own.r#type.clone()));
        let source = |source: &Source| proto::ArtifactSource {
            name: source.query_name.source.clone().unwrap_or_default(),
            precondition: statements(&source.precondition).join("\n"),
            queries: statements(&source.statements),
            ..proto::ArtifactSource::default()
        };
        proto::Artifact {
            name: self.artifact.name.clone(),
            r#type: self.kind.name().to_owned(),
            precondition: statements(&self.precondition).join("\n"),
            export: statements(&self.export).join("\n"),
            imports: self.artifact.imports.clone(),
            parameters: own.chain(extra.into_iter().map(|(name, default)| parameter(name, default, String::new()))).collect(),
            sources: self.sources.iter().map(source).collect(),
            ..proto::Artifact::default()
        }
    }
}

/// Parses the queries of one artifact.
struct Parser<'a> {
    artifact: &'a str,
}

impl Parser<'_> {
    fn parse(&self, text: &str, part: &str, line: Option<u64>) -> Result<Vec<Statement>, ArtifactError> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        match talon_vql::parse(text) {
            Ok(program) => Ok(program.statements),
            Err(error) => Err(ArtifactError::Vql {
                artifact: self.artifact.to_owned(),
                part: part.to_owned(),
                line: line.map(|line| line.saturating_add(u64::from(error.line())).saturating_sub(1)),
                error,
            }),
        }
    }

    fn sources(
        &self,
        name: &ArtifactName,
        sources: &mut [proto::ArtifactSource],
        lines: Option<&Lines>,
    ) -> Result<Vec<Source>, ArtifactError> {
        let mut seen = BTreeSet::new();
        let mut checked = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter_mut().enumerate() {
            let invalid = |problem: String| ArtifactError::invalid(self.artifact, problem);
            let shown: String = source.name.escape_debug().take(100).collect();
            let query_name = match source.name.as_str() {
                "" => QueryName::from(name.clone()),
                source => format!("{name}/{source}").parse().map_err(|_| {
                    invalid(format!("\"{shown}\" cannot name a source: too long, or it has a slash or a control character"))
                })?,
            };
            if !source.name.is_empty() && !seen.insert(source.name.clone()) {
                return Err(invalid(format!("two sources are called \"{shown}\"")));
            }
            if source.query.trim().is_empty() && !source.queries.is_empty() {
                source.query = std::mem::take(&mut source.queries).join("\n");
            }
            let part = |what: &str| if shown.is_empty() { what.to_owned() } else { format!("{what} of source {shown}") };
            let (precondition_line, query_line) = lines.and_then(|lines| lines.sources.get(index)).copied().unwrap_or_default();
            let statements = self.parse(&source.query, &part("query"), query_line)?;
            check_order(&statements).map_err(|problem| invalid(format!("{}: {problem}", part("query"))))?;
            checked.push(Source {
                query_name,
                precondition: self.parse(&source.precondition, &part("precondition"), precondition_line)?,
                precondition_text: source.precondition.clone(),
                statements,
            });
        }
        Ok(checked)
    }
}

/// A source is definitions and one query at the end.
fn check_order(statements: &[Statement]) -> Result<(), String> {
    let Some((last, before)) = statements.split_last() else { return Ok(()) };
    let is_let = |statement: &Statement| matches!(statement.kind, StatementKind::Let(_));
    if is_let(last) || !before.iter().all(is_let) {
        return Err("All Queries in a source must be LET queries, except for the final one.".to_owned());
    }
    Ok(())
}

fn check_parameters(parameters: &[proto::ArtifactParameter]) -> Result<Vec<Parameter>, String> {
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        let shown = parameter.name.escape_debug().take(100).collect::<String>();
        if parameter.name.is_empty() {
            return Err("a parameter has no name".to_owned());
        }
        if parameter.name.len() > 256 || parameter.name.chars().any(|c| c.is_control() || c == '`') {
            return Err(format!("\"{shown}\" cannot name a parameter: too long, or it has a backtick or a control character"));
        }
        if !seen.insert(parameter.name.as_str()) {
            return Err(format!("two parameters are called \"{shown}\""));
        }
        checked.push(Parameter::new(parameter));
    }
    Ok(checked)
}

fn check_cells(artifact: &proto::Artifact) -> Result<(), String> {
    const CELLS: [&str; 7] = ["", "vql", "md", "markdown", "vql_suggestion", "notebook", "none"];
    const REPORTS: [&str; 8] = ["", "monitoring_daily", "server_event", "client", "internal", "hunt", "templates", "html"];
    let shown = |text: &str| text.escape_debug().take(40).collect::<String>();
    for cell in artifact.sources.iter().flat_map(|source| &source.notebook) {
        if !CELLS.iter().any(|kind| kind.eq_ignore_ascii_case(&cell.r#type)) {
            return Err(format!("unknown notebook cell type \"{}\"", shown(&cell.r#type)));
        }
    }
    for report in &artifact.reports {
        if !REPORTS.iter().any(|kind| kind.eq_ignore_ascii_case(&report.r#type)) {
            return Err(format!("unknown report type \"{}\"", shown(&report.r#type)));
        }
    }
    Ok(())
}

fn permissions(names: &[String]) -> Result<Permissions, String> {
    let parse = |name: &String| {
        let permission: Result<Permission, _> = name.trim().to_ascii_uppercase().parse();
        permission.map_err(|_| format!("Invalid artifact permission: {}", name.escape_debug().take(40).collect::<String>()))
    };
    let permissions = names.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    Ok(Permissions::of(&permissions))
}
