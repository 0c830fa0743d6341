//! VQL: the language.

pub mod ast;
pub mod format;
mod lexer;
mod parser;
mod syntax_error;

pub use parser::{MAX_TEXT, parse, parse_expression, parse_lambda, parse_statement};
pub use syntax_error::{SyntaxError, nearest};
