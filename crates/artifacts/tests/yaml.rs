//! What is a definition and what is not.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use talon_artifacts::{ArtifactType, Definition};
use talon_proto as proto;

fn error(text: &str) -> String {
    Definition::from_yaml(text).unwrap_err().to_string()
}

#[test]
fn scalars_keep_their_text() {
    let definition = Definition::from_yaml(
        "name: Custom.A\nparameters:\n- {name: a, default: 80}\n- {name: b, default: Y}\n- {name: c, default: 010}\n- {name: d, default: 1.50}\n\
         - {name: e, default: true}\n- {name: f, default: ~}\n- {name: g, default:}\n- {name: h, default: 'x', type: INT64, choices: [1, yes]}\n",
    )
    .unwrap();
    let defaults: Vec<&str> = definition.parameters().iter().map(|parameter| parameter.default.as_str()).collect();
    assert_eq!(defaults, ["80", "Y", "010", "1.50", "true", "", "", "x"]);
    assert_eq!(definition.proto().parameters[7].choices, ["1", "yes"]);
}

#[test]
fn every_key_has_its_place() {
    let definition = Definition::from_yaml(
        r"
name: Custom.All
aliases: [Custom.Other]
description: |
  Text.
author: me
reference: [a]
references: [b]
type: Server_Event
parameters:
- name: P
  default: x
  type: artifactset
  description: d
  friendly_name: f
  choices: [a, b]
  validating_regex: .
  artifact_type: CLIENT
  sources: true
sources:
- name: S
  description: d
  precondition: SELECT * FROM info()
  query: SELECT * FROM info()
  notebook:
  - type: vql
    name: n
    template: SELECT 1 FROM scope()
    output: o
    env:
    - {key: k, value: v}
- name: Q
  queries:
  - LET X = 1
  - SELECT X FROM scope()
export: LET E = 1
imports: [Custom.Imported]
required_permissions: [execve, FILESYSTEM_READ]
implied_permissions: [NETWORK]
impersonate: admin
resources: {timeout: 1, ops_per_second: 2.5, cpu_limit: 3, iops_limit: 4, max_rows: 5, max_upload_bytes: 6, max_batch_wait: 7, max_batch_rows: 8, max_batch_rows_buffer: 9}
tools:
- {name: t, url: u, github_project: g, github_asset_regex: r, serve_locally: true, expected_hash: h, version: '1', filename: f, hash: state}
column_types:
- {name: c, type: timestamp, description: d}
reports:
- {type: HTML, name: n, template: t, timeout: 1, parameters: []}
raw: not believed
built_in: true
compiled: true
metadata: {hidden: true}
",
    )
    .unwrap();
    assert_eq!(definition.kind(), ArtifactType::ServerEvent);
    assert_eq!(definition.proto().r#type, "server_event");
    assert_eq!(definition.required_permissions().to_string(), "[EXECVE FILESYSTEM_READ]");
    assert!(!definition.proto().built_in && definition.proto().metadata.is_none());
    assert!(definition.proto().raw.starts_with("\nname: Custom.All"));
    assert_eq!(definition.sources()[1].query_name.to_string(), "Custom.All/Q");
    assert_eq!(definition.sources()[1].statements.len(), 2);
    assert_eq!(definition.proto().resources.unwrap().max_batch_rows_buffer, 9);
    assert_eq!(definition.proto().tools[0].expected_hash, "h");
    assert!(definition.proto().tools[0].hash.is_empty());
}

#[test]
fn queries_without_a_pipe_are_read() {
    let text = "name: Custom.A\r\nprecondition:\r\n  SELECT * FROM info() // a: b\r\n  WHERE OS = 'x'\r\nsources:\r\n  - Query:\r\n      LET A = 1 // x: y\r\n      SELECT A FROM scope()\r\n";
    let error = Definition::from_yaml(text).unwrap_err().to_string();
    assert_eq!(error, "6:5: unknown key \"Query\": did you mean \"query\"?");
    let text = text.replace("Query:", "query:");
    let definition = Definition::from_yaml(&text).unwrap();
    assert_eq!(definition.sources()[0].statements.len(), 2);
    assert_eq!(definition.precondition().len(), 1);

    let definition = Definition::from_yaml(
        "name: Custom.A\nsources:\n  - queries:\n    - LET X = dict(a='b: c')\n      // c: d\n    - // comment: x\n      SELECT X\n      FROM scope()\n    description: after\n",
    )
    .unwrap();
    assert_eq!(definition.sources()[0].statements.len(), 2);
    assert_eq!(definition.proto().sources[0].description, "after");

    let inside = "name: Custom.A\ndescription: |\n  text\n  query:\n    - SELECT\n    - LET\nsources:\n- query: SELECT 1 FROM scope()\n";
    assert_eq!(Definition::from_yaml(inside).unwrap().proto().description, "text\nquery:\n  - SELECT\n  - LET\n");
    let empty = "name: Custom.A\nsources:\n- query:\n  description: nothing to run\n- description: |-\n    x\n";
    assert!(Definition::from_yaml(empty).unwrap().sources()[0].statements.is_empty());
}

#[test]
fn broken_texts_say_where_and_what() {
    let many = format!("name: A\nsources:\n{}", "- description: x\n".repeat(1001));
    for (text, expected) in [
        ("nmae: A", "1:1: unknown key \"nmae\": did you mean \"name\"?"),
        ("name: A\nsources:\n- qurey: x", "3:3: unknown key \"qurey\": did you mean \"query\"?"),
        ("name: A\nzzz: 1", "2:1: unknown key \"zzz\": remove it"),
        ("name: A\nname: B", "2:1: the key \"name\" is given twice: keep one of them"),
        ("name: A\nsources: x", "2:10: this must be a list"),
        ("name: A\nresources: {timeout: soon}", "2:22: this must be a number in its range"),
        ("name: [A]", "1:7: this must be a text"),
        ("- a", "1:1: this must be a section with keys"),
        ("name: 'A", "1:7: this is not valid YAML: check indentation, quotes and colons around here"),
        ("description: x", "artifact: the key \"name\" is missing"),
        ("name: A/B", "A/B: a name is made of letters, digits, _ and dots; no part of it is empty or starts with a digit"),
        ("name: A.1", "A.1: a name is made of letters, digits, _ and dots; no part of it is empty or starts with a digit"),
        (
            "name: A\ntype: CLINT",
            "A: unknown artifact type \"CLINT\": one of CLIENT, CLIENT_EVENT, SERVER, SERVER_EVENT, NOTEBOOK, INTERNAL",
        ),
        ("name: A\nimports: [B/C]", "A: \"B/C\" in imports is not an artifact name"),
        ("name: A\nrequired_permissions: [EXEC]", "A: Invalid artifact permission: EXEC"),
        ("name: A\nparameters: [{default: x}]", "A: a parameter has no name"),
        ("name: A\nparameters: [{name: x}, {name: x}]", "A: two parameters are called \"x\""),
        (
            "name: A\nparameters: [{name: 'a`b'}]",
            "A: \"a`b\" cannot name a parameter: too long, or it has a backtick or a control character",
        ),
        ("name: A\nsources: [{name: x}, {name: x}]", "A: two sources are called \"x\""),
        ("name: A\nsources: [{name: x/y}]", "A: \"x/y\" cannot name a source: too long, or it has a slash or a control character"),
        (
            "name: A\nprecondition: SELECT 1 FROM x\nsources: [{precondition: SELECT 1 FROM x}]",
            "A: a precondition of the artifact cannot be combined with preconditions of its sources",
        ),
        (
            "name: A\nsources: [{name: S, query: LET X = 1}]",
            "A: query of source S: All Queries in a source must be LET queries, except for the final one.",
        ),
        (
            "name: A\nsources:\n- query: |\n    SELECT 1 FROM x\n    SELECT 2 FROM x\n",
            "A: query: All Queries in a source must be LET queries, except for the final one.",
        ),
        ("name: A\nsources: [{notebook: [{type: vlq}]}]", "A: unknown notebook cell type \"vlq\""),
        ("name: A\nreports: [{type: x}]", "A: unknown report type \"x\""),
        (&many, "A: more than 1000 parameters, sources, imports, aliases or tools"),
        ("name: A\nexport: |\n  LET X = 1\n  LET Y 2\n", "A: export (line 4): 2:7: unexpected token \"2\" (expected \"=\" or \"<=\")"),
        ("name: A\nprecondition: SELECT FRM", "A: precondition (line 2): 1:11: unexpected token \"<EOF>\" (expected <from>)"),
        (
            "name: A\nsources:\n- queries:\n  - LET X = 1\n- name: S\n  query:\n    SELECT *\n\n    FROM\n",
            "A: query: All Queries in a source must be LET queries, except for the final one.",
        ),
        (
            "name: A\nsources:\n- queries:\n  - SELECT 1 FROM x\n- name: S\n  query:\n    SELECT *\n\n    FROM x y\n",
            "A: query of source S (line 9): 3:8: unexpected token \"y\"",
        ),
        (
            "name: A\nsources:\n- query: >-\n    SELECT *\n    FROM\n- {}\n",
            "A: query (line 4): 1:14: unexpected token \"<EOF>\" (expected <ident>)",
        ),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn hostile_texts_are_refused_in_bounds() {
    let mut bomb = String::from("name: A\nreference: &a0 [x]\n");
    for level in 1..30 {
        let previous = level - 1;
        let aliases = vec![format!("*a{previous}"); 20].join(", ");
        bomb.push_str(&format!("k{level}: &a{level} [{aliases}]\n"));
    }
    let lists = |n: usize| format!("name: A\nraw: {}{}", "[".repeat(n), "]".repeat(n));
    let maps = |n: usize| format!("name: A\nraw: {}", (0..n).map(|depth| format!("\n{}a:", " ".repeat(depth + 1))).collect::<String>());
    let quoted_raw = bomb.replace("k1:", "raw:");
    for text in [
        bomb,
        quoted_raw,
        lists(100_000),
        maps(3_000),
        format!("name: A\nchoices: {}", "- ".repeat(100_000)),
        format!("name: {}", "A".repeat(9 << 20)),
        format!("name: A\nreference:\n{}", "- x\n".repeat(400_000)),
        format!("name: A\nprecondition: |\n  SELECT {} FROM x", "(".repeat(500_000)),
        "\u{0}".repeat(1000),
        format!("? {}", "? ".repeat(50_000)),
        format!("{}\nname: A", "--- a\n".repeat(1000)),
        format!("name: A\n{}", (0..200_000).map(|n| format!("x{n}: 1\n")).collect::<String>()),
    ] {
        let started = Instant::now();
        let error = error(&text);
        assert!(error.len() < 1000, "{} bytes of error", error.len());
        assert!(started.elapsed().as_secs() < 20, "{error}");
    }
}

#[test]
fn the_form_of_requests_is_read_too() {
    let definition = Definition::from_proto(proto::Artifact {
        name: "Custom.A".to_owned(),
        sources: vec![proto::ArtifactSource {
            queries: vec!["LET X = 1 // c".to_owned(), "SELECT X FROM scope()".to_owned()],
            ..proto::ArtifactSource::default()
        }],
        built_in: true,
        ..proto::Artifact::default()
    })
    .unwrap();
    assert_eq!(definition.sources()[0].statements.len(), 2);
    assert!(!definition.proto().built_in);
    assert_eq!(definition.kind(), ArtifactType::Client);
}

#[test]
fn one_source_can_be_taken_out() {
    let definition =
        Definition::from_yaml("name: A\nsources:\n- name: x\n  query: SELECT 1 FROM x\n- name: y\n  query: SELECT 2 FROM y\n").unwrap();
    let only = definition.with_only("y").unwrap();
    assert_eq!(only.sources().len(), 1);
    assert_eq!(only.proto().sources[0].name, "y");
    assert_eq!(only.sources()[0].query_name.to_string(), "A/y");
    assert!(definition.with_only("z").is_none() && definition.with_only("").is_none());
}
