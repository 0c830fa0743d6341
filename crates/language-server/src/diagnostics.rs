//! What is wrong with a document, with its places.

use gen_lsp_types as lsp;
use talon_artifacts::{Finding, Library, Repository, Severity, lint_text, lint_vql};
use talon_vql::SyntaxError;

use crate::Known;
use crate::document::{Document, Encoding, Kind, MAX_DOCUMENT, bytes};

/// The most findings that are sent for one document.
const MOST: usize = 500;
/// Who says so.
const SOURCE: &str = "vql";

/// The findings of a document.
pub(crate) fn of(document: &Document, known: &Known, repository: &Repository, encoding: Encoding) -> Vec<lsp::Diagnostic> {
    if document.is_too_long {
        let message = format!("this document is longer than {MAX_DOCUMENT} bytes and is not looked at");
        return vec![diagnostic(lsp::Range::default(), lsp::DiagnosticSeverity::Warning, None, message)];
    }
    let library = Library::new(repository).with_registry(&known.registry);
    let findings = match document.kind {
        Kind::Other => Vec::new(),
        Kind::Artifact => lint_text(&document.text, &library).findings,
        Kind::Vql if document.text.trim().is_empty() => Vec::new(),
        Kind::Vql => match lint_vql(&document.text, &library) {
            Ok(findings) => findings,
            Err(error) => return vec![of_syntax(document, &error, encoding)],
        },
    };
    findings.iter().take(MOST).map(|finding| of_finding(document, finding, encoding)).collect()
}

fn of_syntax(document: &Document, error: &SyntaxError, encoding: Encoding) -> lsp::Diagnostic {
    let message = with_hint(error.message().to_owned(), error.hint());
    let range = document.range(bytes(error.span(), 0), encoding);
    diagnostic(range, lsp::DiagnosticSeverity::Error, Some("syntax_error"), message)
}

fn of_finding(document: &Document, finding: &Finding, encoding: Encoding) -> lsp::Diagnostic {
    let first_line = document.text.split('\n').next().unwrap_or_default().len();
    let range = finding.span.map_or(0..first_line, |span| bytes(span, 0));
    let severity = match finding.rule.severity() {
        Severity::Error => lsp::DiagnosticSeverity::Error,
        Severity::Warning => lsp::DiagnosticSeverity::Warning,
        Severity::Note => lsp::DiagnosticSeverity::Information,
    };
    let message = with_hint(finding.text.clone(), finding.hint.as_deref());
    diagnostic(document.range(range, encoding), severity, Some(finding.rule.id()), message)
}

fn with_hint(message: String, hint: Option<&str>) -> String {
    hint.map_or_else(|| message.clone(), |hint| format!("{message}\n{hint}"))
}

fn diagnostic(range: lsp::Range, severity: lsp::DiagnosticSeverity, code: Option<&str>, message: String) -> lsp::Diagnostic {
    lsp::Diagnostic {
        range,
        severity: Some(severity),
        code: code.map(|code| lsp::Code::String(code.to_owned())),
        source: Some(SOURCE.to_owned()),
        message: message.into(),
        ..lsp::Diagnostic::default()
    }
}
