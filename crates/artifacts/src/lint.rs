//! What an author should know before users find out: references to nothing, calls that cannot work.

use std::collections::BTreeMap;
use std::fmt;

use talon_vql::ast::{Arg, ExprKind, Ident, Let, Statement};
use talon_vql::visit::{self, Node};

use crate::{ArtifactError, Definition, ParameterType, Repository, references};

/// The rules, by the names under which reports and suppressions know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The text is not an artifact.
    YamlError,
    /// A query is not VQL.
    ArtifactVqlError,
    /// A query calls an artifact that there is not.
    UnknownArtifactInQuery,
    /// A query passes a parameter that the artifact does not have.
    UnknownParameterInCall,
    /// An artifact is imported that there is not.
    InvalidImport,
    /// A definition of the same artifact is called with an argument that it does not have.
    InvalidArg,
    /// A definition of the same artifact is called without an argument that it needs.
    RequiredArgMissing,
    /// A type of parameter that nobody knows: it stays a string.
    UnknownParameterType,
}

impl Rule {
    /// The name.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::YamlError => "yaml_error",
            Self::ArtifactVqlError => "artifact_vql_error",
            Self::UnknownArtifactInQuery => "unknown_artifact_in_query",
            Self::UnknownParameterInCall => "unknown_parameter_in_call",
            Self::InvalidImport => "invalid_import",
            Self::InvalidArg => "invalid_arg",
            Self::RequiredArgMissing => "required_arg_missing",
            Self::UnknownParameterType => "unknown_parameter_type",
        }
    }

    /// True when the artifact works nevertheless.
    #[must_use]
    pub fn is_warning(self) -> bool {
        matches!(self, Self::UnknownParameterType)
    }
}

/// One thing found. `Display` is `<rule>:<text>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Which rule is broken.
    pub rule: Rule,
    /// How.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.rule.id(), self.text)
    }
}

/// Checks the YAML form of an artifact against the artifacts of a repository.
#[must_use]
pub fn lint_text(text: &str, repository: &Repository) -> Vec<Finding> {
    match Definition::from_yaml(text) {
        Ok(definition) => lint(&definition, repository),
        Err(error @ ArtifactError::Vql { .. }) => vec![Finding { rule: Rule::ArtifactVqlError, text: error.to_string() }],
        Err(error) => vec![Finding { rule: Rule::YamlError, text: error.to_string() }],
    }
}

/// Checks a definition against the artifacts of a repository.
#[must_use]
pub fn lint(definition: &Definition, repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for import in definition.imports() {
        if repository.get(import.as_str()).is_none() && import != definition.name() {
            let error = ArtifactError::UnknownImport { artifact: definition.name().to_string(), import: import.to_string() };
            findings.push(Finding { rule: Rule::InvalidImport, text: error.to_string() });
        }
    }
    for parameter in &definition.proto().parameters {
        if !ParameterType::is_known(&parameter.r#type) {
            let text = format!("{}: parameter {} has the unknown type {}", definition.name(), parameter.name, parameter.r#type);
            findings.push(Finding { rule: Rule::UnknownParameterType, text });
        }
    }
    let imported: Vec<_> = definition.imports().iter().filter_map(|import| repository.get(import.as_str())).collect();
    let exports: Vec<&Statement> = definition.export().iter().chain(imported.iter().flat_map(|import| import.export())).collect();
    let mut check = |part: String, statements: &[Statement]| {
        let checker = Checker { definition, repository, part, lets: lets(exports.iter().copied().chain(statements)) };
        checker.run(statements, &mut findings);
    };
    check("export".to_owned(), definition.export());
    check("precondition".to_owned(), definition.precondition());
    for source in definition.sources() {
        check("precondition".to_owned(), &source.precondition);
        check("query".to_owned(), &source.statements);
    }
    findings.sort();
    findings.dedup();
    findings
}

/// The definitions with parameters, by name. The last of a name counts.
fn lets<'a>(statements: impl Iterator<Item = &'a Statement>) -> BTreeMap<&'a str, &'a Let> {
    let mut found = BTreeMap::new();
    for statement in statements {
        visit::statement(statement, &mut |node| {
            if let Node::Let(definition) = node
                && definition.params.is_some()
            {
                found.insert(&*definition.name.name, definition);
            }
        });
    }
    found
}

struct Checker<'a> {
    definition: &'a Definition,
    repository: &'a Repository,
    part: String,
    lets: BTreeMap<&'a str, &'a Let>,
}

impl Checker<'_> {
    fn run(&self, statements: &[Statement], findings: &mut Vec<Finding>) {
        let name = self.definition.name();
        for reference in references(statements) {
            let own = reference.name == name.as_str();
            if !own && self.repository.referred(&reference).is_none() {
                let text = format!("{name}: {}: Unknown artifact reference {}", self.part, reference.name);
                findings.push(Finding { rule: Rule::UnknownArtifactInQuery, text });
            }
        }
        for statement in statements {
            visit::statement(statement, &mut |node| match node {
                Node::Source(source) => self.call(&source.path, source.args.as_deref(), findings),
                Node::Expr(expr) => {
                    if let ExprKind::Symbol(symbol) = &expr.kind {
                        self.call(&symbol.path, symbol.args.as_deref(), findings);
                    }
                }
                Node::Let(_) | Node::Select(_) => {}
            });
        }
    }

    fn call(&self, path: &[Ident], args: Option<&[Arg]>, findings: &mut Vec<Finding>) {
        let Some(args) = args else { return };
        match path {
            [name] => {
                if let Some(definition) = self.lets.get(&*name.name) {
                    self.call_of_let(definition, args, findings);
                }
            }
            [first, rest @ ..] if &*first.name == "Artifact" => {
                let name = rest.iter().map(|ident| &*ident.name).collect::<Vec<_>>().join(".");
                self.call_of_artifact(&name, args, findings);
            }
            _ => {}
        }
    }

    fn call_of_let(&self, definition: &Let, args: &[Arg], findings: &mut Vec<Finding>) {
        let params = definition.params.as_deref().unwrap_or_default();
        let name = &definition.name.text;
        let mut found = |rule: Rule, text: String| {
            let text = format!("{}:{text}", rule.id());
            findings.push(Finding { rule: Rule::ArtifactVqlError, text: format!("{}: {}: {text}", self.definition.name(), self.part) });
        };
        for arg in args.iter().filter(|arg| !params.iter().any(|param| param.name.name == arg.name.name)) {
            found(Rule::InvalidArg, format!("Invalid arg {} for VQL definition {name}", arg.name.text));
        }
        for param in params.iter().filter(|param| param.default.is_none()) {
            if !args.iter().any(|arg| arg.name.name == param.name.name) {
                let text = format!("While calling VQL definition {name}(), required arg {} is not provided", param.name.text);
                found(Rule::RequiredArgMissing, text);
            }
        }
    }

    fn call_of_artifact(&self, name: &str, args: &[Arg], findings: &mut Vec<Finding>) {
        const ALWAYS: [&str; 3] = ["source", "preconditions", "**"];
        let called = self.repository.get(name);
        let called = match called.as_deref() {
            Some(called) => called,
            None if name == self.definition.name().as_str() => self.definition,
            None => return,
        };
        for arg in args {
            let known = |parameter: &crate::Parameter| parameter.name == *arg.name.name;
            if !ALWAYS.contains(&&*arg.name.name) && !called.parameters().iter().any(known) {
                let text =
                    format!("{}: {}: Unknown parameter {} provided to artifact {name}", self.definition.name(), self.part, arg.name.text);
                findings.push(Finding { rule: Rule::UnknownParameterInCall, text });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        lint_text(text, &Repository::with_built_ins()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn calls_are_checked_against_definitions() {
        let artifact = |name: &str, query: &str| format!("name: {name}\nsources:\n- query: |\n    LET Foo(X, Y=1) = X+Y\n    {query}\n");
        assert_eq!(
            found(&artifact("NotCallingRequiredArg", "SELECT Foo() FROM scope()")),
            [
                "artifact_vql_error:NotCallingRequiredArg: query: required_arg_missing:While calling VQL definition Foo(), required arg X is not provided"
            ]
        );
        assert_eq!(
            found(&artifact("CallingBadArg", "SELECT Foo(Z=1) FROM scope()")),
            [
                "artifact_vql_error:CallingBadArg: query: invalid_arg:Invalid arg Z for VQL definition Foo",
                "artifact_vql_error:CallingBadArg: query: required_arg_missing:While calling VQL definition Foo(), required arg X is not provided",
            ]
        );
        assert!(found(&artifact("Fine", "SELECT Foo(X=1), Foo(X=1, Y=5) FROM scope()")).is_empty());
    }

    #[test]
    fn references_and_imports_are_looked_up() {
        let text = "name: Custom.A\nimports: [No.Such]\nparameters: [{name: P, type: strnig}]\nsources:\n- query: |\n    \
                    SELECT * FROM chain(a={ SELECT * FROM Artifact.Missing.One() }, b={ SELECT * FROM Artifact.Linux.Sys.Pslist(Regex='x', source='') },\n    \
                    c={ SELECT * FROM Artifact.Custom.A(P=1) })\n";
        assert_eq!(
            found(text),
            [
                "unknown_artifact_in_query:Custom.A: query: Unknown artifact reference Missing.One",
                "unknown_parameter_in_call:Custom.A: query: Unknown parameter Regex provided to artifact Linux.Sys.Pslist",
                "invalid_import:Artifact Custom.A imports No.Such which is not known.",
                "unknown_parameter_type:Custom.A: parameter P has the unknown type strnig",
            ]
        );
    }

    #[test]
    fn broken_texts_say_where() {
        assert_eq!(
            found("name: Custom.A\nsources:\n- query: |\n    SELECT *\n    FRM info()\n"),
            ["artifact_vql_error:Custom.A: query (line 5): 2:5: unexpected token \"info\" (expected <from>)"]
        );
        assert_eq!(found("nmae: Custom.A\n"), ["yaml_error:1:1: unknown key \"nmae\": did you mean \"name\"?"]);
    }

    #[test]
    fn the_built_in_artifacts_are_clean() {
        let repository = Repository::with_built_ins();
        for entry in repository.entries().values() {
            assert_eq!(lint(&entry.definition, &repository), []);
        }
    }
}
