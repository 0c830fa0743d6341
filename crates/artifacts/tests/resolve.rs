//! Artifacts inside queries.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use talon_artifacts::{Definition, Layer, Repository, Resolver};
use talon_vql::{AllowAll, Environment, MemoryLog, Query, Registry, json, parse};

/// The rows of a text as JSON lines, and what it logged, against some artifacts.
fn run(artifacts: &[&str], text: &str) -> (String, Vec<String>) {
    let repository = Repository::empty();
    for artifact in artifacts {
        repository.set(Definition::from_yaml(artifact).unwrap_or_else(|error| panic!("{error}")), Layer::Custom).unwrap();
    }
    let log = Arc::new(MemoryLog::default());
    let scope = Environment::new(Arc::new(Registry::core()))
        .guard(Arc::new(AllowAll))
        .log(log.clone())
        .artifacts(Arc::new(Resolver::new(Arc::new(repository))))
        .variable("config", "the config")
        .variable("FromHost", "secret")
        .open();
    let mut out = Vec::new();
    for statement in &parse(text).unwrap_or_else(|error| panic!("{}", error.render())).statements {
        for row in Query::new(&scope, statement) {
            json::Encoder::default().line(&mut out, &row);
        }
    }
    let logs = log.take().into_iter().filter(|line| !line.starts_with("DEBUG:")).collect();
    (String::from_utf8(out).unwrap(), logs)
}

const TWO: &str = r"
name: Custom.Two
parameters:
- {name: N, type: int, default: 3}
- {name: Flag, type: bool, default: Y}
sources:
- name: First
  query: |
    LET Double = N * 2
    SELECT N, Flag, Double FROM scope()
- name: Second
  query: SELECT N + 1 AS M FROM scope()
";

#[test]
fn rows_carry_their_source_and_parameters_their_type() {
    let (rows, logs) = run(&[TWO], "SELECT * FROM Artifact.Custom.Two()");
    assert_eq!(
        rows,
        "{\"N\":3,\"Flag\":true,\"Double\":6,\"_Source\":\"Custom.Two/First\"}\n{\"M\":4,\"_Source\":\"Custom.Two/Second\"}\n"
    );
    assert!(logs.is_empty(), "{logs:?}");
    let (rows, _) = run(&[TWO], "SELECT * FROM Artifact.Custom.Two(N='7', Flag=FALSE, source='First')");
    assert_eq!(rows, "{\"N\":7,\"Flag\":false,\"Double\":14,\"_Source\":\"Custom.Two/First\"}\n");
    let (rows, _) = run(&[TWO], "SELECT * FROM Artifact.Custom.Two(`**`=dict(N=9, source='Second'))");
    assert_eq!(rows, "{\"M\":10,\"_Source\":\"Custom.Two/Second\"}\n");
    let unnamed = "name: Custom.One\nsources: [{query: SELECT 1 AS A FROM scope()}]";
    assert_eq!(run(&[unnamed], "SELECT * FROM Artifact.Custom.One()").0, "{\"A\":1,\"_Source\":\"Custom.One\"}\n");
}

#[test]
fn what_cannot_be_called_says_why_in_the_stock_words() {
    for (text, expected) in [
        ("SELECT * FROM Artifact.No.Such()", "Artifact No.Such not found"),
        ("SELECT * FROM Artifact.Custom.Two(source='Third')", "Source Third not found in artifact Custom.Two"),
        ("SELECT * FROM Artifact.Custom.Two(X=1)", "Unknown parameter X provided to artifact Custom.Two"),
        ("SELECT * FROM Artifact.Custom.Two(`**`=dict(Y=1))", "Unknown parameter Y provided to artifact Custom.Two"),
    ] {
        let (rows, logs) = run(&[TWO], text);
        assert_eq!((rows.as_str(), logs.len()), ("", 1), "{text} {logs:?}");
        assert!(logs[0].ends_with(expected), "{logs:?}");
    }
    let import = "name: Custom.I\nimports: [No.Such]\nsources: [{query: SELECT 1 FROM scope()}]";
    let (_, logs) = run(&[import], "SELECT * FROM Artifact.Custom.I()");
    assert!(logs[0].ends_with("Artifact Custom.I imports No.Such which is not known."), "{logs:?}");
}

#[test]
fn nothing_of_the_caller_is_seen() {
    let peeping =
        "name: Custom.Peep\nparameters: [{name: P, default: own}]\nsources: [{query: 'SELECT P, Secret, FromHost, config FROM scope()'}]";
    let (rows, logs) = run(&[peeping], "LET Secret = 'caller' LET P = 'caller' LET config = 'forged' SELECT * FROM Artifact.Custom.Peep()");
    assert_eq!(rows, "{\"P\":\"own\",\"Secret\":null,\"FromHost\":null,\"config\":\"the config\",\"_Source\":\"Custom.Peep\"}\n");
    assert!(logs.iter().any(|line| line.contains("Symbol Secret not found")), "{logs:?}");
    let leaking = "name: Custom.Leak\nsources: [{query: \"LET Inner = 1\\nSELECT Inner FROM scope()\"}]";
    let (rows, _) = run(&[leaking], "SELECT Inner FROM Artifact.Custom.Leak() SELECT Inner FROM scope()");
    assert_eq!(rows, "{\"Inner\":1}\n{\"Inner\":null}\n");
}

#[test]
fn arguments_keep_their_values() {
    let json = "name: Custom.J\nparameters: [{name: J, type: json, default: '{}'}]\nsources: [{query: SELECT J.a AS A FROM scope()}]";
    assert_eq!(run(&[json], "SELECT A FROM Artifact.Custom.J(J=dict(a=5))").0, "{\"A\":5}\n");
}

#[test]
fn preconditions_count_only_on_demand() {
    let gated = "name: Custom.G\nparameters: [{name: Go, type: bool, default: N}]\nprecondition: SELECT * FROM scope() WHERE Go\nsources: [{query: SELECT 1 AS A FROM scope()}]";
    assert_eq!(run(&[gated], "SELECT A FROM Artifact.Custom.G()").0, "{\"A\":1}\n");
    assert_eq!(run(&[gated], "SELECT A FROM Artifact.Custom.G(Go='Y', preconditions=TRUE)").0, "{\"A\":1}\n");
    let (rows, logs) = run(&[gated], "SELECT A FROM Artifact.Custom.G(preconditions=TRUE)");
    assert_eq!((rows.as_str(), logs), ("", vec!["INFO:Custom.G: Skipping query due to preconditions".to_owned()]));
    let each = "name: Custom.E\nsources:\n- {name: A, precondition: SELECT * FROM scope() WHERE FALSE, query: SELECT 1 AS V FROM scope()}\n- {name: B, query: SELECT 2 AS V FROM scope()}";
    assert_eq!(run(&[each], "SELECT V FROM Artifact.Custom.E(preconditions=TRUE)").0, "{\"V\":2}\n");
    assert_eq!(run(&[each], "SELECT V FROM Artifact.Custom.E()").0, "{\"V\":1}\n{\"V\":2}\n");
}

#[test]
fn exports_and_imports_come_first() {
    let library = "name: Custom.Lib\nexport: LET Add(x) = x + Step";
    let user = "name: Custom.User\nimports: [Custom.Lib]\nexport: LET Step = 10\nsources: [{query: SELECT Add(x=1) AS A FROM scope()}]";
    assert_eq!(run(&[library, user], "SELECT A FROM Artifact.Custom.User()"), ("{\"A\":11}\n".to_owned(), Vec::new()));
}

#[test]
fn recursion_ends() {
    let endless = "name: Custom.Loop\nsources: [{query: SELECT * FROM Artifact.Custom.Loop()}]";
    let (rows, logs) = run(&[endless], "SELECT * FROM Artifact.Custom.Loop()");
    assert_eq!(rows, "");
    let names = ["Custom.Loop"; 11].join(", ");
    assert!(logs.iter().any(|line| line.ends_with(&format!("Stack overflow: {names}"))), "{logs:?}");
    let forging = "name: Custom.Forge\nsources: [{query: \"LET `$stack` <= NULL\\nSELECT * FROM Artifact.Custom.Forge()\"}]";
    let (rows, logs) = run(&[forging], "SELECT * FROM Artifact.Custom.Forge()");
    assert_eq!((rows.as_str(), logs.len()), ("", 1), "{logs:?}");
    let shown = "name: Custom.Show\nsources: [{query: 'SELECT `$stack` AS S FROM scope()'}]";
    assert_eq!(run(&[shown], "SELECT S FROM Artifact.Custom.Show()").0, "{\"S\":null}\n");
}

#[test]
fn event_sources_run_side_by_side_and_stop_with_their_reader() {
    let events = "name: Custom.Ev\ntype: CLIENT_EVENT\nsources:\n- {name: A, query: SELECT _value AS V FROM range(end=1000000000)}\n- {name: B, query: SELECT 'b' AS V FROM scope()}";
    let (rows, _) = run(&[events], "SELECT V FROM Artifact.Custom.Ev() WHERE V = 'b' LIMIT 1");
    assert_eq!(rows, "{\"V\":\"b\"}\n");
    let (rows, _) = run(&[events], "SELECT V FROM Artifact.Custom.Ev() WHERE V = 0 LIMIT 1");
    assert_eq!(rows, "{\"V\":0}\n");
}

#[test]
fn artifacts_of_a_request_run_from_their_stripped_form() {
    let own = Repository::empty();
    own.set(Definition::from_yaml(TWO).unwrap(), Layer::Custom).unwrap();
    let stripped = own.get("Custom.Two").unwrap().stripped(vec![("Extra".to_owned(), "e".to_owned())]);
    let along = Repository::of_request(&[stripped]).unwrap();
    let scope =
        Environment::new(Arc::new(Registry::core())).guard(Arc::new(AllowAll)).artifacts(Arc::new(Resolver::new(Arc::new(along)))).open();
    let statement = talon_vql::parse_statement("SELECT M FROM Artifact.Custom.Two(source='Second', N=1)").unwrap();
    assert_eq!(Query::new(&scope, &statement).count(), 1);
}
