//! The language server: what editors of queries and artifacts want to know, over the language server protocol on a pair of streams.
//!
//! It owns the open documents, whose text arrives as edits, and nothing else: built-ins and artifacts are handed in, files are not read. Texts, messages and
//! the number of documents are bounded; what a client sends is never trusted to make sense.

mod completion;
mod context;
mod diagnostics;
mod document;
mod error;
mod frame;
mod hover;
mod names;
mod server;
mod symbols;

use std::io::{BufReader, Read, Write};
use std::sync::Arc;

use talon_artifacts::Repository;
use talon_vql::Registry;

pub use error::LanguageServerError;

/// What queries may refer to.
pub struct Known {
    /// The artifacts.
    pub repository: Arc<Repository>,
    /// The built-ins.
    pub registry: Registry,
}

/// Serves one editor until it says goodbye or the input ends.
///
/// # Errors
/// The streams fail, the client does not speak the protocol, or it leaves without the request to shut down.
pub fn serve(known: &Known, input: impl Read, output: impl Write) -> Result<(), LanguageServerError> {
    server::Server::new(known, BufReader::new(input), output).run()
}
