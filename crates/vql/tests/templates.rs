//! Templates: what is filled in where, and which templates are refused.

#![allow(clippy::panic)]

use std::sync::Arc;

use talon_vql::{Environment, MemoryLog, Query, Registry, Value, format::quote_string, parse_statement};

/// What the template makes, or what the log says of it.
fn filled(template: &str, html: bool) -> String {
    let log = Arc::new(MemoryLog::default());
    let scope = Environment::new(Arc::new(Registry::core())).log(log.clone()).variable("Outside", "far & near").open();
    let expansion = "dict(A='x', N=0, M=-1, L=('a', 'b'), D=dict(K='v', E=dict()), H='<b>')";
    let text = format!("SELECT template(template={}, expansion={expansion}, html={html}) AS X FROM scope()", quote_string(template));
    let statement = parse_statement(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    match Query::new(&scope, &statement).next().as_ref().and_then(|row| row.get("X")) {
        Some(Value::Str(text)) => text.to_str().into_owned(),
        other => format!("{other:?} {}", log.take().join("|")),
    }
}

#[test]
fn what_is_filled_in() {
    let cases = [
        ("plain", "plain"),
        ("{{ .A }}-{{.D.K}}-{{.Z}}", "x-v-<no value>"),
        ("{{ Get .D \"K\" }}|{{ Get .A \"K\" }}|{{ Scope \"Outside\" }}", "v||far & near"),
        ("a {{- .A -}} b", "axb"),
        ("a {{/* nothing */}} b", "a  b"),
        ("a {{- /* nothing */ -}} b", "ab"),
        ("{{ if .N }}yes{{ else }}no{{ end }}", "no"),
        ("{{ if .M }}yes{{ else }}no{{ end }}", "yes"),
        ("{{ if .N }}1{{ else if eq .A \"y\" \"x\" }}2{{ else }}3{{ end }}", "2"),
        ("{{ range .L }}<{{ . }}>{{ end }}", "<a><b>"),
        ("{{ range $i, $v := .L }}{{ $i }}{{ $v }}{{ $.A }} {{ end }}", "0ax 1bx "),
        ("{{ range .Z }}x{{ else }}none{{ end }}", "none"),
        ("{{ with .D }}{{ .K }}{{ end }}{{ with .N }}x{{ else }}{{ .A }}{{ end }}", "vx"),
        ("{{ $x := .A }}{{ $x }}{{ $x = 3 }}{{ $x }}", "x3"),
        ("{{ $x := 0 }}{{ range .L }}{{ $x = . }}{{ end }}{{ $x }}", "b"),
        ("{{ .A | printf \"%s-%s\" \"y\" }}", "y-x"),
        ("{{ (index .L 1) }}{{ len .L }}{{ index .D \"K\" }}", "b2v"),
        ("{{ and .A .N }}{{ or .N .A }}{{ not .A }}", "0xfalse"),
        ("{{ lt 1 2 }}{{ ge 2.5 2 }}{{ ne \"a\" \"b\" }}", "truetruetrue"),
        ("{{ html .H }}{{ .H }}", "&lt;b&gt;<b>"),
        ("{{ `raw \\n` }}{{ \"a\\n\" }}", "raw \\na\n"),
    ];
    for (template, expected) in cases {
        assert_eq!(filled(template, false), expected, "{template}");
    }
    assert_eq!(filled("<i>{{ .H }}</i>", true), "<i>&lt;b&gt;</i>");
}

#[test]
fn what_is_refused() {
    let deep = "{{ if .A }}".repeat(1000);
    let brackets = format!("{{{{ {} }}}}", "(".repeat(1000));
    let chain = format!("{{{{ {} }}}}", "else if .A ".repeat(1000));
    for template in [
        "{{",
        "{{ .A",
        "{{ }}",
        "{{ if .A }}",
        "{{ end }}",
        "{{ else }}",
        "{{ Nothing 1 }}",
        "{{ $y }}",
        "{{ .A 1 }}",
        "{{ \"a }}",
        "{{ ) }}",
        "{{ | .A }}",
        "{{ range .A }}{{ end }}",
        "{{ eq 1 }}",
        &deep,
        &brackets,
        &chain,
    ] {
        let found = filled(template, false);
        assert!(found.starts_with("Some(NULL) template: "), "{template}: {found}");
    }
}
