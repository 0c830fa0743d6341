//! The configuration files of servers, agents and API clients: read strictly, checked once, written back in the same form.
//!
//! Keys have the names and meanings of stock configurations, so that one file serves stock programs too. Talon's own settings are in a second YAML
//! document under `talon:`, which stock programs do not read. The crate keeps these promises: an unknown or repeated key never passes; a
//! [`ServerConfig`] or [`ClientConfig`] has every section, key and certificate that its program needs; a [`ClientConfig`] holds no secret of the
//! server; no error, `Debug` form or accidental serialization shows a [`Secret`].
//!
//! ```
//! use std::time::Duration;
//! use talon_config::{Configuration, MergePatch, ServerConfig, generate};
//! use talon_crypto::SystemRng;
//! use talon_pki::UnixTime;
//!
//! let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
//! let patch = MergePatch::parse("--merge", r#"{"Frontend": {"bind_port": 9000}}"#)?;
//! let text = generate(&[patch], &SystemRng, now)?.to_yaml()?;
//!
//! let server = ServerConfig::new(Configuration::from_text("server.config.yaml", &text)?)?;
//! assert_eq!(server.frontend().bind_port, 9000);
//! let client = server.client_config(None)?;
//! assert!(!client.configuration().to_yaml()?.contains("RSA PRIVATE KEY"));
//!
//! let error = Configuration::from_text("server.config.yaml", "Frontend:\n  bind_prot: 1\n").unwrap_err();
//! assert_eq!(error.to_string(), r#"server.config.yaml:2:3: unknown key "bind_prot": did you mean "bind_port"?"#);
//! # Ok::<(), talon_config::ConfigError>(())
//! ```

mod api_client;
mod audit_copies;
mod check;
mod client;
mod emit;
mod error;
mod generate;
mod load;
mod merge;
mod migrate;
mod nearest;
mod overlay;
mod paths;
mod schema;
mod secret;
mod section;
mod server;
mod text;
mod validate;

pub use api_client::{ApiAddress, ApiConnection};
pub use audit_copies::{AuditCopies, SyslogTarget};
pub use check::{Finding, Severity, check};
pub use client::{ClientConfig, VerificationMode};
pub use error::{ConfigError, Place};
pub use generate::generate;
pub use load::{API_CONFIG_VARIABLE, CONFIG_VARIABLE, Configuration, LITERAL_CONFIG_VARIABLE, Loader};
pub use merge::MergePatch;
pub use overlay::{ENVIRONMENT_PREFIX, Override};
pub use paths::{Lookup, WritebackPaths, expand};
pub use schema::*;
pub use secret::Secret;
pub use server::ServerConfig;

/// The exit code of programs whose configuration cannot be used.
pub const EXIT_UNUSABLE: u8 = 64;
