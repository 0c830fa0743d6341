//! VQL: the query language, from text to rows. It touches nothing outside: files, time, randomness and permissions come from the host program.
//!
//! ```
//! use std::sync::Arc;
//! use talon_vql::{Environment, Query, Registry, json, parse};
//!
//! let program = parse("LET Least = 3 SELECT _value * 2 AS Double FROM range(end=10) WHERE _value > Least LIMIT 2")?;
//! let scope = Environment::new(Arc::new(Registry::core())).variable("config", talon_vql::Value::Null).open();
//! let mut lines = Vec::new();
//! for statement in &program.statements {
//!     for row in Query::new(&scope, statement) {
//!         json::Encoder::default().line(&mut lines, &row);
//!     }
//! }
//! assert_eq!(String::from_utf8(lines)?, "{\"Double\":8}\n{\"Double\":10}\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A host program adds built-ins of its own to a [`Registry`]: each has a [`Signature`] that declares arguments and permissions, which the
//! dispatcher enforces before the body runs. Everything else that a query may reach is in its [`Environment`].

pub mod ast;
pub mod format;
pub mod json;
pub mod member;
pub mod ops;
pub mod regex;
pub mod text;
pub mod time;
pub mod visit;

mod arguments;
mod at;
mod budget;
mod builtins;
mod call;
mod cancel;
mod dict;
mod environment;
mod error;
mod eval;
mod lambda;
mod lazy;
mod lexer;
mod parser;
mod path;
mod query;
mod registry;
mod rows;
mod scope;
mod select;
mod shape;
mod signature;
pub mod spill;
mod stack;
mod syntax_error;
mod tokens;
mod value;
pub mod verbs;

pub use arguments::{moment, parse_zone, text as to_text};
pub use budget::Budget;
pub use builtins::{ArtifactName, CacheFile, CacheFiles, CacheStorage, ProcessTracker, csv};
pub use call::Call;
pub use cancel::{CancelToken, StopReason};
pub use dict::{Dict, Key};
pub use environment::{
    AllowAll, ArtifactResolver, Clock, Counter, DenyAll, Elsewhere, Environment, Extensions, FrozenClock, Guard, Level, LogSink, MemoryLog,
    NoLog, Random,
};
pub use error::{CallError, Denied};
pub use lambda::Lambda;
pub use lazy::Lazy;
pub use parser::{MAX_TEXT, parse, parse_expression, parse_lambda, parse_statement};
pub use path::{Delegate, OsPath, PathFlavour};
pub use query::{Query, run};
pub use registry::{Function, Plugin, Registry, Restrictions};
pub use rows::{RowSource, Rows, StoredQuery, as_row};
pub use scope::{MAX_SCOPES, Scope, ScopeHandle};
pub use shape::Shape;
pub use signature::{Arg, ArgType, Kind, OnError, Signature};
pub use spill::{MemorySpill, Spill, SpillFile};
pub use stack::{QUERY_STACK, spawn as spawn_query_thread};
pub use syntax_error::{SyntaxError, nearest};
pub use time::Time;
pub use tokens::{TextToken, TokenClass, tokens};
pub use value::{List, MAX_DEPTH, Object, Opaque, Text, Value};
