//! `talon vql lsp`, driven over its streams by a scripted editor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// An editor with a server of its own.
struct Editor {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    next: i64,
    /// Notifications that came while waiting for something else.
    notes: Vec<Value>,
}

impl Editor {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_talon"));
        command.args(["vql", "lsp"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output, next: 1, notes: Vec::new() }
    }

    fn ready(arguments: &[&str]) -> Self {
        let mut editor = Self::start(arguments);
        let result = editor.request("initialize", json!({"capabilities": {}}));
        assert_eq!(result["capabilities"]["textDocumentSync"]["change"], 2, "{result}");
        editor.notify("initialized", json!({}));
        editor
    }

    fn raw(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().unwrap();
        input.write_all(bytes).unwrap();
        input.flush().unwrap();
    }

    fn send(&mut self, message: &Value) {
        let body = message.to_string();
        self.raw(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    }

    fn receive(&mut self) -> Value {
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the server ended");
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.output.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn notify(&mut self, method: &str, params: Value) {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": params}));
    }

    /// The whole answer to a request.
    fn answer(&mut self, method: &str, params: Value) -> Value {
        let id = self.next;
        self.next += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        loop {
            let message = self.receive();
            if message["id"] == id {
                return message;
            }
            self.notes.push(message);
        }
    }

    fn request(&mut self, method: &str, params: Value) -> Value {
        let mut answer = self.answer(method, params);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    fn open(&mut self, uri: &str, text: &str) {
        let language = if uri.ends_with(".yaml") { "yaml" } else { "vql" };
        self.notify("textDocument/didOpen", json!({"textDocument": {"uri": uri, "languageId": language, "version": 1, "text": text}}));
    }

    fn change(&mut self, uri: &str, version: i32, changes: Value) {
        self.notify("textDocument/didChange", json!({"textDocument": {"uri": uri, "version": version}, "contentChanges": changes}));
    }

    /// The findings of a version of a document.
    fn findings(&mut self, uri: &str, version: i32) -> Vec<Value> {
        let wanted = |note: &Value| {
            note["method"] == "textDocument/publishDiagnostics" && note["params"]["uri"] == uri && note["params"]["version"] == version
        };
        loop {
            if let Some(at) = self.notes.iter().position(wanted) {
                return self.notes.remove(at)["params"]["diagnostics"].as_array().unwrap().clone();
            }
            let message = self.receive();
            self.notes.push(message);
        }
    }

    fn at(uri: &str, line: u32, character: u32) -> Value {
        json!({"textDocument": {"uri": uri}, "position": {"line": line, "character": character}})
    }

    /// What is suggested, and what each suggestion inserts.
    fn suggestions(&mut self, uri: &str, line: u32, character: u32) -> Vec<(String, String)> {
        let items = self.request("textDocument/completion", Self::at(uri, line, character));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        items.as_array().unwrap().iter().map(|item| (text(&item["label"]), text(&item["insertText"]))).collect()
    }

    fn hover(&mut self, uri: &str, line: u32, character: u32) -> String {
        let hover = self.request("textDocument/hover", Self::at(uri, line, character));
        hover["contents"]["value"].as_str().unwrap_or_default().to_owned()
    }

    fn leave(mut self) {
        assert_eq!(self.request("shutdown", Value::Null), Value::Null);
        self.notify("exit", Value::Null);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn places(findings: &[Value]) -> Vec<(String, u64, u64, u64)> {
    let place = |finding: &Value| {
        let (start, end) = (&finding["range"]["start"], &finding["range"]["end"]);
        let number = |value: &Value| value.as_u64().unwrap();
        (finding["code"].as_str().unwrap().to_owned(), number(&start["line"]), number(&start["character"]), number(&end["character"]))
    };
    findings.iter().map(place).collect()
}

const VQL: &str = "file:///a.vql";
const YAML: &str = "file:///a.yaml";

#[test]
fn findings_follow_the_edits() {
    let mut editor = Editor::ready(&[]);
    editor.open(VQL, "SELECT *\nFROM glob(golbs='😀', x='y')\n");
    let findings = editor.findings(VQL, 1);
    assert_eq!(
        places(&findings),
        [("required_arg_missing".to_owned(), 1, 5, 9), ("invalid_arg".to_owned(), 1, 10, 15), ("invalid_arg".to_owned(), 1, 22, 23),]
    );
    assert!(findings[1]["message"].as_str().unwrap().ends_with("did you mean globs?"), "{findings:?}");
    let at = |line: u32, from: u32, to: u32, text: &str| json!({"range": {"start": {"line": line, "character": from}, "end": {"line": line, "character": to}}, "text": text});
    // Places count in units of 16 bits; the later edit counts in the text that the earlier one left.
    editor.change(VQL, 2, json!([at(1, 20, 27, ""), at(1, 10, 15, "globs")]));
    assert_eq!(editor.findings(VQL, 2), Vec::<Value>::new());
    editor.change(VQL, 3, json!([at(0, 7, 8, ")")]));
    assert_eq!(places(&editor.findings(VQL, 3)), [("syntax_error".to_owned(), 0, 7, 8)]);
    editor.change(VQL, 4, json!([{"text": "SELECT * FROM glob(globs='/*')"}]));
    assert_eq!(editor.findings(VQL, 4), Vec::<Value>::new());
    editor.change(VQL, 5, json!([{"text": "SELECT * FRM glob(globs='/*')"}]));
    let findings = editor.findings(VQL, 5);
    assert_eq!(places(&findings), [("syntax_error".to_owned(), 0, 13, 17)]);
    assert!(findings[0]["message"].as_str().unwrap().ends_with("did you mean FROM?"), "{findings:?}");
    editor.leave();
}

#[test]
fn queries_inside_of_artifacts_have_their_places() {
    let mut editor = Editor::ready(&[]);
    let text = "name: Custom.A\nparameters:\n- name: Root\n  description: Where to look.\nsources:\n- query: |\n    LET Found = SELECT OSPath FROM glob(globs=Root)\n    SELECT hsah(path=OSPath) FROM Found\n- name: B\n  query: SELECT * FROM infoo()\n";
    editor.open(YAML, text);
    let findings = editor.findings(YAML, 1);
    assert_eq!(places(&findings), [("unknown_function".to_owned(), 7, 11, 15), ("unknown_plugin".to_owned(), 9, 23, 28)]);
    assert!(findings[1]["message"].as_str().unwrap().contains("did you mean info()?"));
    // Suggestions know parameters and definitions of the artifact, also while its text is broken.
    editor.change(YAML, 2, json!([{"text": text.replace("FROM Found", "FROM Fo")}]));
    let names: Vec<_> = editor.suggestions(YAML, 7, 36).into_iter().map(|(label, _)| label).collect();
    assert!(names.contains(&"foreach".to_owned()) && names.contains(&"Found".to_owned()), "{names:?}");
    assert!(names.iter().all(|name| name.to_lowercase().starts_with("fo")), "{names:?}");
    assert!(editor.hover(YAML, 6, 47).contains("Where to look."));
    assert!(editor.hover(YAML, 6, 10).contains("LET Found = SELECT OSPath FROM glob(globs=Root)"));
    let symbols = editor.request("textDocument/documentSymbol", json!({"textDocument": {"uri": YAML}}));
    let names: Vec<_> = symbols.as_array().unwrap().iter().map(|symbol| symbol["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Found", "SELECT hsah(path=OSPath) FROM Fo", "SELECT * FROM infoo()"]);
    assert_eq!(symbols[0]["selectionRange"], json!({"start": {"line": 6, "character": 8}, "end": {"line": 6, "character": 13}}));
    editor.change(YAML, 3, json!([{"text": "name: Custom.A\nsources:\n- query: |\n    SELECT   1  FROM   scope()\nno_such_key: 1\n"}]));
    assert_eq!(places(&editor.findings(YAML, 3)), [("yaml_error".to_owned(), 4, 0, 14)]);
    let edits =
        editor.request("textDocument/formatting", json!({"textDocument": {"uri": YAML}, "options": {"tabSize": 2, "insertSpaces": true}}));
    assert!(edits[0]["newText"].as_str().unwrap().contains("    SELECT 1\n    FROM scope()\n"), "{edits}");
    editor.leave();
}

#[test]
fn suggestions_and_hints_come_from_the_signatures() {
    let mut editor = Editor::ready(&[]);
    editor.open(VQL, "SELECT hash(pa, ) FROM glo WHERE Artifact.Linux.Sys.P\n\n\nSELECT * FROM Artifact.Linux.Sys.Pslist(");
    let first = |found: &[(String, String)], label: &str| found.iter().find(|(known, _)| known == label).map(|(_, text)| text.clone());
    assert_eq!(editor.suggestions(VQL, 0, 14), [("path".to_owned(), "path=".to_owned())]);
    assert_eq!(editor.suggestions(VQL, 0, 26), [("glob".to_owned(), "glob(".to_owned())]);
    let artifacts = editor.suggestions(VQL, 0, 53);
    assert_eq!(first(&artifacts, "Linux.Sys.Pslist"), Some("Pslist".to_owned()), "{artifacts:?}");
    let arguments = editor.suggestions(VQL, 3, 40);
    assert!(first(&arguments, "source").is_some() && arguments.len() >= 2, "{arguments:?}");
    let functions = editor.suggestions(VQL, 0, 8);
    assert_eq!(first(&functions, "hash"), Some("hash(".to_owned()));
    let help = editor.hover(VQL, 0, 9);
    assert!(help.contains("hash(path=OSPath!"), "{help}");
    editor.change(VQL, 2, json!([{"text": "SELECT * FROM execve(argv=('a', ))"}]));
    let help = editor.hover(VQL, 0, 16);
    assert!(help.contains("Needs EXECVE"), "{help}");
    let help = editor.hover(VQL, 0, 23);
    assert!(help.contains("argv=[string]") && help.contains("Required."), "{help}");
    editor.leave();
}

#[test]
fn documents_are_formatted_when_they_can_be_read() {
    let mut editor = Editor::ready(&[]);
    let format = |editor: &mut Editor| {
        editor.request("textDocument/formatting", json!({"textDocument": {"uri": VQL}, "options": {"tabSize": 4, "insertSpaces": true}}))
    };
    editor.open(VQL, "select   a,b from   scope()");
    let edits = format(&mut editor);
    assert_eq!(edits[0]["range"], json!({"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 27}}));
    let text = edits[0]["newText"].as_str().unwrap().to_owned();
    assert!(text.starts_with("SELECT a,"), "{text}");
    editor.change(VQL, 2, json!([{"text": text}]));
    assert_eq!(format(&mut editor), json!([]), "what is formatted stays");
    editor.change(VQL, 3, json!([{"text": "SELECT FROM"}]));
    assert_eq!(format(&mut editor), json!([]));
    editor.leave();
}

#[test]
fn artifacts_of_packs_and_of_open_documents_are_known() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("One.yaml"), "name: Pack.One\nsources:\n- query: SELECT 1 FROM scope()\n").unwrap();
    let mut editor = Editor::ready(&["--definitions", folder.path().to_str().unwrap()]);
    editor.open(VQL, "SELECT * FROM chain(a={ SELECT * FROM Artifact.Pack.One() }, b={ SELECT * FROM Artifact.Open.Two() })");
    assert_eq!(places(&editor.findings(VQL, 1)), [("unknown_artifact_in_query".to_owned(), 0, 79, 96)]);
    editor.open(YAML, "name: Open.Two\nsources:\n- query: SELECT 2 FROM scope()\n");
    assert_eq!(editor.findings(YAML, 1), Vec::<Value>::new());
    assert_eq!(editor.findings(VQL, 1), Vec::<Value>::new(), "the query is looked at again");
    editor.leave();
}

#[test]
fn whatever_an_editor_sends_the_server_stays() {
    let mut editor = Editor::start(&[]);
    assert_eq!(editor.answer("textDocument/hover", json!({}))["error"]["code"], -32002);
    editor.request("initialize", json!({"capabilities": {"general": {"positionEncodings": ["utf-8", "utf-16"]}}}));
    editor.raw(b"Content-Length: 9\r\n\r\n{rubbish}");
    editor.notify("textDocument/didOpen", json!({"textDocument": 1}));
    editor.notify("textDocument/didChange", json!(["x"]));
    editor.change("file:///never-opened", 1, json!([{"text": "x"}]));
    editor.notify("no/such/thing", json!(null));
    for (method, code) in [("no/such/method", -32601), ("textDocument/hover", -32602), ("initialize", -32600)] {
        assert_eq!(editor.answer(method, json!({"position": []}))["error"]["code"], code, "{method}");
    }
    let texts = [
        "(".repeat(10_000),
        "SELECT ".repeat(20_000),
        "'".to_owned(),
        "\u{0}\u{fffd}é😀`".to_owned(),
        "SELECT 1 FROM x\n".repeat(5_000),
        "x".repeat(5 << 20),
    ];
    for (version, text) in (1..).zip(&texts) {
        if version == 1 {
            editor.open(VQL, text);
        } else {
            editor.change(VQL, version, json!([{"text": text}]));
        }
        let findings = editor.findings(VQL, version);
        assert!(findings.len() <= 500, "{}", findings.len());
        for (line, character) in [(0, 0), (0, 1), (0, u32::MAX), (u32::MAX, 0)] {
            editor.request("textDocument/completion", Editor::at(VQL, line, character));
            editor.request("textDocument/hover", Editor::at(VQL, line, character));
        }
        editor.request("textDocument/documentSymbol", json!({"textDocument": {"uri": VQL}}));
    }
    let last = editor.findings_of_too_long(VQL, texts.len() as i32);
    assert!(last.contains("longer than"), "{last}");
    editor.leave();
}

impl Editor {
    /// The message about a document that grew too long, asked for by a further edit of it.
    fn findings_of_too_long(&mut self, uri: &str, version: i32) -> String {
        self.change(
            uri,
            version + 1,
            json!([{"range": {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 0}}, "text": "y"}]),
        );
        self.findings(uri, version + 1)[0]["message"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_session_that_breaks_off_ends_the_server() {
    let mut editor = Editor::ready(&[]);
    editor.notify("exit", Value::Null);
    assert!(!editor.child.wait().unwrap().success(), "it was not asked to shut down");
    let mut editor = Editor::ready(&[]);
    drop(editor.input.take());
    assert!(editor.child.wait().unwrap().success());
    let mut editor = Editor::start(&[]);
    editor.raw(b"Content-Length: 99999999999999999999\r\n\r\n");
    assert!(!editor.child.wait().unwrap().success());
}
