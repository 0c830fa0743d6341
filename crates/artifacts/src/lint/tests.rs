//! Tests of the linter.

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Rows, Signature, Value};

use super::*;

fn registry() -> Registry {
    let mut registry = Registry::core();
    let glob = Signature::plugin("glob", "Finds files.").args(talon_vql::args![
        Arg::required("globs", ArgType::Strings, "What to look for."),
        Arg::optional("accessor", ArgType::String, "How to read paths."),
    ]);
    let execve = Signature::plugin("execve", "Runs a program.").permissions(&[Permission::Execve]);
    registry.plugin(glob.permissions(&[Permission::FilesystemRead]), |_| Ok(Rows::none()));
    registry.plugin(execve, |_| Ok(Rows::none()));
    registry.function(Signature::function("hash", "Hashes a file."), |_| Ok(Value::Null));
    registry.unavailable(Signature::plugin("sigma", "Applies rules.").unavailable("there is no engine for it"));
    registry.elsewhere(talon_vql::Kind::Plugin, "wmi", "windows");
    registry
}

fn found_in(text: &str, registry: Option<&Registry>) -> Vec<String> {
    let repository = Repository::with_built_ins();
    let library = Library { repository: &repository, registry };
    lint_text(text, &library).findings.iter().map(ToString::to_string).collect()
}

fn found(text: &str) -> Vec<String> {
    found_in(text, None)
}

/// Rule, bytes at fault and hint of what is found in a query.
fn found_in_vql(text: &str) -> Vec<(&'static str, String, String)> {
    let (repository, registry) = (Repository::with_built_ins(), registry());
    let findings = lint_vql(text, &Library::new(&repository).with_registry(&registry)).unwrap();
    let shown = |finding: Finding| {
        let span = finding.span.unwrap();
        let bytes = text[span.start as usize..span.end as usize].to_owned();
        (finding.rule.id(), bytes, finding.hint.unwrap_or_default())
    };
    findings.into_iter().map(shown).collect()
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
            "artifact_vql_error:CallingBadArg: query: required_arg_missing:While calling VQL definition Foo(), required arg X is not provided",
            "artifact_vql_error:CallingBadArg: query: invalid_arg:Invalid arg Z for VQL definition Foo",
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
            "invalid_import:Artifact Custom.A imports No.Such which is not known.",
            "unknown_parameter_type:Custom.A: parameter P has the unknown type strnig",
            "unknown_artifact_in_query:Custom.A: query: Unknown artifact reference Missing.One",
            "unknown_parameter_in_call:Custom.A: query: Unknown parameter Regex provided to artifact Linux.Sys.Pslist",
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
fn findings_show_line_caret_and_hint() {
    let (repository, registry) = (Repository::with_built_ins(), registry());
    let library = Library::new(&repository).with_registry(&registry);
    let render = |text: &str| lint_text(text, &library).findings.iter().map(|finding| finding.render(text)).collect::<Vec<_>>().join("\n");
    let artifact = "name: Custom.A\nsources:\n- query: |\n    SELECT OSPath\n    FROM glob(golbs='/*')\n";
    assert_eq!(
        render(artifact),
        "5:10: artifact_vql_error:Custom.A: query: required_arg_missing:While calling VQL plugin glob(), required arg globs is not provided
  |
5 |     FROM glob(golbs='/*')
  |          ^^^^
5:15: artifact_vql_error:Custom.A: query: invalid_arg:Invalid arg golbs for VQL plugin glob()
  |
5 |     FROM glob(golbs='/*')
  |               ^^^^^
hint: did you mean globs?"
    );
    assert_eq!(
        render("name: Custom.A\nsources:\n- query: SELECT * FRM info()\n"),
        "3:23: artifact_vql_error:Custom.A: query (line 3): 1:14: unexpected token \"info\" (expected <from>)
  |
3 | - query: SELECT * FRM info()
  |                       ^^^^
hint: did you mean FROM?"
    );
    assert!(render("name: Custom.A\nnmae: x\n").starts_with("2:1: yaml_error:"));
}

#[test]
fn every_rule_about_calls() {
    let one = |rule, bytes: &str, hint: &str| vec![(rule, bytes.to_owned(), hint.to_owned())];
    for (text, expected) in [
        ("SELECT * FROM glub(globs='/')", one("unknown_plugin", "glub", "did you mean glob()?")),
        ("SELECT * FROM hash()", one("unknown_plugin", "hash", "hash() is a function: it gives a value, not rows")),
        ("LET Foo(x) = SELECT * FROM info SELECT * FROM Fooo(x=1)", one("unknown_plugin", "Fooo", "did you mean Foo()?")),
        ("SELECT glob(globs='/') FROM scope()", one("call_as_function", "glob", "write { SELECT * FROM glob(…) }")),
        ("SELECT hsah() FROM scope()", one("unknown_function", "hsah", "did you mean hash()?")),
        ("SELECT hash(pth='x') FROM scope()", one("invalid_arg", "pth", "it takes no arguments")),
        ("SELECT * FROM glob(globs='/', acessor='x')", one("invalid_arg", "acessor", "did you mean accessor?")),
        ("SELECT * FROM glob(globs='/', zzzzzz='x')", one("invalid_arg", "zzzzzz", "it takes globs, accessor")),
        (
            "SELECT * FROM glob(`**`=dict(globs='/'), accessor='file')",
            one("kwargs_mixed_call", "`**`", "put all arguments into the dict of **"),
        ),
        ("SELECT * FROM glob()", one("required_arg_missing", "glob", "")),
        (
            "SELECT * FROM Artifact.Linux.Sys.Pslst()",
            one("unknown_artifact_in_query", "Artifact.Linux.Sys.Pslst", "did you mean Linux.Sys.Pslist?"),
        ),
        ("SELECT import(artifact='No.Such') FROM scope()", one("invalid_import", "'No.Such'", "")),
        ("LET hash = 1 SELECT hash FROM scope()", one("symbol_mask_warn", "hash", "give it another name")),
        ("SELECT * FROM sigma(rules='x', y=1)", one("not_available", "sigma", "")),
        ("SELECT * FROM wmi(query='x')", one("not_available", "wmi", "")),
        (
            "-- linter: no_rule:x\nSELECT 1 FROM scope()",
            one("invalid_suppression", "-- linter: no_rule:x", "a suppression is written linter: RULE:REGEX"),
        ),
    ] {
        assert_eq!(found_in_vql(text), expected, "{text}");
    }
}

#[test]
fn what_works_is_not_reported() {
    for text in [
        "SELECT * FROM glob(`**`=dict(globs='/'))",
        "LET F(f) = f(x=1) SELECT F(f='x=>x') FROM scope()",
        "LET X = SELECT * FROM info SELECT * FROM X()",
        "SELECT dict(anything=1), if(condition=1, then=2) FROM Rows WHERE Foo.Bar = 1",
        "SELECT * FROM Artifact.Linux.Sys.Pslist(preconditions=TRUE)",
        "SELECT * FROM glub() -- linter: unknown_plugin:^glub$",
        "/* linter: invalid_arg:\n linter: required_arg_missing */ SELECT * FROM glob(x=1)",
    ] {
        assert_eq!(found_in_vql(text), [], "{text}");
    }
    assert!(!found_in_vql("SELECT * FROM glub() -- linter: unknown_plugin:^other$").is_empty());
}

#[test]
fn permissions_that_clients_are_not_taken_to_have_must_be_asked_for() {
    let artifact = |keys: &str| {
        format!(
            "name: Custom.A\n{keys}sources:\n- query: SELECT * FROM chain(a={{ SELECT * FROM execve() }}, b={{ SELECT * FROM glob(globs='/') }})\n"
        )
    };
    let warning = "required_permissions:Custom.A: query: execve() needs EXECVE, which the artifact does not ask for";
    let registry = registry();
    assert_eq!(found_in(&artifact(""), Some(&registry)), [warning]);
    for keys in ["required_permissions: [EXECVE]\n", "implied_permissions: [EXECVE]\n", "type: SERVER\n"] {
        assert_eq!(found_in(&artifact(keys), Some(&registry)), Vec::<String>::new(), "{keys}");
    }
    let repository = Repository::with_built_ins();
    let report = lint_text(&artifact(""), &Library::new(&repository).with_registry(&registry));
    assert_eq!(report.permissions.to_string(), "[EXECVE FILESYSTEM_READ]");
}

#[test]
fn the_built_in_artifacts_are_clean() {
    let repository = Repository::with_built_ins();
    for entry in repository.entries().values() {
        assert_eq!(lint(&entry.definition, &Library::new(&repository)).findings, []);
    }
}
