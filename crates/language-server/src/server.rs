//! The session with an editor: its documents, and the answers to its requests.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};

use gen_lsp_types as lsp;
use lsp_server::{ErrorCode, Message, Notification, Request, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::document::{Document, Encoding, Kind};
use crate::{Known, LanguageServerError, completion, diagnostics, frame, hover, names, symbols};

/// The most documents that are open at once; further ones are not looked at.
const MAX_DOCUMENTS: usize = 500;
/// Characters after which an editor asks for suggestions.
const TRIGGERS: [&str; 4] = [".", "(", ",", " "];

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Ready,
    ShutDown,
}

pub(crate) struct Server<'a, R, W> {
    known: &'a Known,
    input: BufReader<R>,
    output: W,
    stage: Stage,
    encoding: Encoding,
    documents: BTreeMap<String, Document>,
    /// Documents whose findings are not what was published last.
    changed: Vec<String>,
}

/// Why a request was refused.
type Refusal = (ErrorCode, String);

impl<'a, R: Read, W: Write> Server<'a, R, W> {
    pub(crate) fn new(known: &'a Known, input: BufReader<R>, output: W) -> Self {
        Self { known, input, output, stage: Stage::New, encoding: Encoding::default(), documents: BTreeMap::new(), changed: Vec::new() }
    }

    pub(crate) fn run(mut self) -> Result<(), LanguageServerError> {
        loop {
            // While more edits wait to be read, findings would be those of a text that is gone.
            if self.input.buffer().is_empty() {
                self.publish()?;
            }
            let Some(message) = frame::read(&mut self.input)? else { return Ok(()) };
            match message {
                Message::Request(request) => {
                    let response = self.request(request);
                    self.send(response.into())?;
                }
                Message::Notification(note) if note.method == "exit" => {
                    return if self.stage == Stage::ShutDown { Ok(()) } else { Err(LanguageServerError::Abandoned) };
                }
                Message::Notification(note) => self.notification(note),
                Message::Response(_) => {}
            }
        }
    }

    fn send(&mut self, message: Message) -> Result<(), LanguageServerError> {
        message.write(&mut self.output)?;
        Ok(self.output.flush()?)
    }

    fn request(&mut self, request: Request) -> Response {
        let Request { id, method, params } = request;
        let outcome = match (self.stage, method.as_str()) {
            (Stage::New, "initialize") => self.initialize(params),
            (Stage::New, _) => Err((ErrorCode::ServerNotInitialized, "initialize comes first".to_owned())),
            (Stage::ShutDown, _) => Err((ErrorCode::InvalidRequest, "the session was shut down".to_owned())),
            (Stage::Ready, "initialize") => Err((ErrorCode::InvalidRequest, "the session was initialized before".to_owned())),
            (Stage::Ready, "shutdown") => {
                self.stage = Stage::ShutDown;
                Ok(Value::Null)
            }
            (Stage::Ready, "textDocument/completion") => self.completion(params),
            (Stage::Ready, "textDocument/hover") => self.hover(params),
            (Stage::Ready, "textDocument/formatting") => self.formatting(params),
            (Stage::Ready, "textDocument/documentSymbol") => self.symbols(params),
            (Stage::Ready, _) => Err((ErrorCode::MethodNotFound, format!("there is no method {method}"))),
        };
        match outcome {
            Ok(result) => Response::new_ok(id, result),
            Err((code, message)) => Response::new_err(id, code as i32, message),
        }
    }

    fn initialize(&mut self, params: Value) -> Result<Value, Refusal> {
        // Clients differ in what else they send here; only the encodings matter.
        let offered = params.pointer("/capabilities/general/positionEncodings").and_then(Value::as_array);
        if offered.is_some_and(|offered| offered.iter().any(|encoding| encoding == "utf-8")) {
            self.encoding = Encoding::Utf8;
        }
        self.stage = Stage::Ready;
        let capabilities = lsp::ServerCapabilities {
            position_encoding: Some(match self.encoding {
                Encoding::Utf8 => lsp::PositionEncodingKind::UTF8,
                Encoding::Utf16 => lsp::PositionEncodingKind::UTF16,
            }),
            text_document_sync: Some(lsp::TextDocumentSync::Options(lsp::TextDocumentSyncOptions {
                open_close: Some(true),
                change: Some(lsp::TextDocumentSyncKind::Incremental),
                ..lsp::TextDocumentSyncOptions::default()
            })),
            completion_provider: Some(lsp::CompletionOptions {
                trigger_characters: Some(TRIGGERS.map(str::to_owned).to_vec()),
                ..lsp::CompletionOptions::default()
            }),
            hover_provider: Some(true.into()),
            document_formatting_provider: Some(true.into()),
            document_symbol_provider: Some(true.into()),
            ..lsp::ServerCapabilities::default()
        };
        let server_info = lsp::ServerInfo { name: "talon".to_owned(), version: Some(env!("CARGO_PKG_VERSION").to_owned()) };
        encode(&lsp::InitializeResult { capabilities, server_info: Some(server_info) })
    }

    fn notification(&mut self, note: Notification) {
        if self.stage != Stage::Ready {
            return;
        }
        let outcome = match note.method.as_str() {
            "textDocument/didOpen" => decode(note.params).map(|params| self.open(params)),
            "textDocument/didChange" => decode(note.params).map(|params| self.change(params)),
            "textDocument/didClose" => decode(note.params).map(|params| self.close(&params)),
            _ => Ok(()),
        };
        if let Err((_, error)) = outcome {
            tracing::warn!(method = note.method, error, "a notification of the editor was passed over");
        }
    }

    fn open(&mut self, params: lsp::DidOpenTextDocumentParams) {
        let lsp::TextDocumentItem { uri, language_id, version, text } = params.text_document;
        let uri = uri.0;
        if self.documents.len() >= MAX_DOCUMENTS && !self.documents.contains_key(&uri) {
            tracing::warn!(uri, "more than {MAX_DOCUMENTS} documents are open; this one is not looked at");
            return;
        }
        let language = serde_json::to_value(language_id).ok().and_then(|id| id.as_str().map(str::to_owned)).unwrap_or_default();
        self.documents.insert(uri.clone(), Document::new(&uri, &language, version, text));
        self.mark(uri);
    }

    fn change(&mut self, params: lsp::DidChangeTextDocumentParams) {
        let identifier = params.text_document;
        let uri = identifier.text_document_identifier.uri.0;
        let encoding = self.encoding;
        let Some(document) = self.documents.get_mut(&uri) else { return };
        document.version = identifier.version;
        for change in params.content_changes {
            match change {
                lsp::TextDocumentContentChangeEvent::TextDocumentContentChangePartial(change) if !document.is_too_long => {
                    document.edit(change.range, &change.text, encoding);
                }
                lsp::TextDocumentContentChangeEvent::TextDocumentContentChangePartial(_) => {}
                lsp::TextDocumentContentChangeEvent::TextDocumentContentChangeWholeDocument(change) => {
                    document.text = change.text;
                    document.is_too_long = false;
                }
            }
        }
        document.changed();
        self.mark(uri);
    }

    fn close(&mut self, params: &lsp::DidCloseTextDocumentParams) {
        let uri = params.text_document.uri.0.clone();
        if self.documents.remove(&uri).is_some() {
            self.mark(uri);
        }
    }

    /// Findings of artifacts and queries may depend on a changed artifact, too.
    fn mark(&mut self, uri: String) {
        let is_artifact = self.documents.get(&uri).is_none_or(|document| document.kind == Kind::Artifact);
        if is_artifact {
            self.changed = self.documents.keys().cloned().collect();
        }
        if !self.changed.contains(&uri) {
            self.changed.push(uri);
        }
    }

    fn publish(&mut self) -> Result<(), LanguageServerError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let repository = names::repository(self.known, self.documents.values());
        for uri in std::mem::take(&mut self.changed) {
            let (version, diagnostics) = match self.documents.get(&uri) {
                Some(document) => (Some(document.version), diagnostics::of(document, self.known, &repository, self.encoding)),
                None => (None, Vec::new()),
            };
            let params = lsp::PublishDiagnosticsParams { uri: uri.into(), version, diagnostics };
            self.send(Notification::new("textDocument/publishDiagnostics".to_owned(), params).into())?;
        }
        Ok(())
    }

    fn document(&self, identifier: &lsp::TextDocumentIdentifier) -> Result<&Document, Refusal> {
        self.documents.get(&identifier.uri.0).ok_or_else(|| (ErrorCode::InvalidParams, "the document is not open".to_owned()))
    }

    fn completion(&self, params: Value) -> Result<Value, Refusal> {
        let params: lsp::CompletionParams = decode(params)?;
        let lsp::TextDocumentPositionParams { text_document, position } = params.text_document_position_params;
        let document = self.document(&text_document)?;
        let repository = names::repository(self.known, self.documents.values());
        encode(&completion::at(document, self.known, &repository, document.offset(position, self.encoding)))
    }

    fn hover(&self, params: Value) -> Result<Value, Refusal> {
        let params: lsp::HoverParams = decode(params)?;
        let lsp::TextDocumentPositionParams { text_document, position } = params.text_document_position_params;
        let document = self.document(&text_document)?;
        let repository = names::repository(self.known, self.documents.values());
        encode(&hover::at(document, self.known, &repository, document.offset(position, self.encoding), self.encoding))
    }

    fn formatting(&self, params: Value) -> Result<Value, Refusal> {
        let params: lsp::DocumentFormattingParams = decode(params)?;
        let document = self.document(&params.text_document)?;
        let formatted = match document.kind {
            Kind::Vql => talon_vql::format::reformat(&document.text).ok(),
            Kind::Artifact => talon_artifacts::reformat(&document.text).ok().map(|text| text + "\n"),
            Kind::Other => None,
        };
        // A text that cannot be read is left as it is: its findings say why.
        let Some(new_text) = formatted.filter(|formatted| *formatted != document.text) else { return Ok(Value::Array(Vec::new())) };
        encode(&[lsp::TextEdit { range: document.range(0..document.text.len(), self.encoding), new_text }])
    }

    fn symbols(&self, params: Value) -> Result<Value, Refusal> {
        let params: lsp::DocumentSymbolParams = decode(params)?;
        encode(&symbols::of(self.document(&params.text_document)?, self.encoding))
    }
}

fn decode<T: DeserializeOwned>(params: Value) -> Result<T, Refusal> {
    serde_json::from_value(params).map_err(|error| (ErrorCode::InvalidParams, error.to_string()))
}

fn encode(result: &impl serde::Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(result).map_err(|error| (ErrorCode::InternalError, error.to_string()))
}
