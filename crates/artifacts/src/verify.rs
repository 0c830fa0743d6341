//! What `verify()` tells about the text of an artifact: the findings of the linter, and the definitions that its queries make.

use talon_vql::ast::{Let, Statement};
use talon_vql::visit::{self, Node};
use talon_vql::{Dict, Value};

use crate::lint::{Library, Severity, lint_text};
use crate::{Definition, Finding};

/// The report. What there is none of is NULL.
pub(crate) fn verify(text: &str, library: &Library<'_>) -> Dict {
    let report = lint_text(text, library);
    let listed = |severity| {
        let mut texts: Vec<String> =
            report.findings.iter().filter(|finding| finding.rule.severity() == severity).map(Finding::to_string).collect();
        texts.sort();
        texts.dedup();
        or_null(texts)
    };
    let (errors, warnings) = (listed(Severity::Error), listed(Severity::Warning));
    let permissions: Vec<&str> = report.permissions.iter().map(|permission| permission.name()).collect();
    let definitions = Definition::from_yaml(text).map(|definition| definitions(&definition)).unwrap_or_default();
    Dict::new()
        .with("Artifact", text)
        .with("Permissions", or_null(permissions))
        .with("Errors", errors)
        .with("Warnings", warnings)
        .with("Definitions", definitions)
        .with("Suppressions", or_null(report.suppressions))
}

fn or_null<T: Into<Value>>(items: Vec<T>) -> Value {
    if items.is_empty() { Value::Null } else { Value::list(items) }
}

/// The definitions of the artifact by name. The last of a name counts.
fn definitions(definition: &Definition) -> Dict {
    let mut found = Dict::new();
    let sources = definition.sources().iter().flat_map(|source| source.precondition.iter().chain(&source.statements));
    let statements: Vec<&Statement> = definition.export().iter().chain(definition.precondition()).chain(sources).collect();
    for statement in statements {
        visit::statement(statement, &mut |node| {
            if let Node::Let(definition) = node {
                found.update(&definition.name.name, described(definition));
            }
        });
    }
    found
}

fn described(definition: &Let) -> Dict {
    let params = definition.params.as_deref().unwrap_or_default();
    let names = |with_default: bool| {
        let names: Vec<String> =
            params.iter().filter(|param| !with_default || param.default.is_some()).map(|param| param.name.name.to_string()).collect();
        if names.is_empty() { Value::Null } else { names.into() }
    };
    Dict::new().with("Type", "definition").with("Name", &*definition.name.name).with("Args", names(false)).with("Defaults", names(true))
}

#[cfg(test)]
mod tests {
    use talon_vql::json;

    use super::*;
    use crate::Repository;

    fn report(text: &str) -> String {
        let mut report = verify(text, &Library::new(&Repository::with_built_ins()));
        report.remove("Artifact");
        json::encode(&report.into())
    }

    #[test]
    fn the_report_has_findings_and_definitions() {
        let artifact = |query: &str| {
            format!("name: Custom.A\nsources:\n- query: |\n    LET F(X, Y=1) = X + Y\n    LET Q = SELECT 1 FROM scope()\n    {query}\n")
        };
        let definitions = r#""Definitions":{"F":{"Type":"definition","Name":"F","Args":["X","Y"],"Defaults":["Y"]},"Q":{"Type":"definition","Name":"Q","Args":null,"Defaults":null}},"Suppressions":null}"#;
        assert_eq!(
            report(&artifact("SELECT F(X=1) FROM scope()")),
            format!(r#"{{"Permissions":null,"Errors":null,"Warnings":null,{definitions}"#)
        );
        assert_eq!(
            report(&artifact("SELECT F() FROM scope()")),
            format!(
                r#"{{"Permissions":null,"Errors":["artifact_vql_error:Custom.A: query: required_arg_missing:While calling VQL definition F(), required arg X is not provided"],"Warnings":null,{definitions}"#
            )
        );
    }

    #[test]
    fn a_text_that_is_no_artifact_has_an_error_and_no_definitions() {
        assert_eq!(
            report("nmae: X\n"),
            r#"{"Permissions":null,"Errors":["yaml_error:1:1: unknown key \"nmae\": did you mean \"name\"?"],"Warnings":null,"Definitions":{},"Suppressions":null}"#
        );
    }
}
