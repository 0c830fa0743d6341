//! Paths of the configuration: variables in them, and where an agent keeps its state.

use std::path::PathBuf;

use crate::schema::Client;
use crate::{ConfigError, Secret};

/// Looks up an environment variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces `$NAME`, `${NAME}` and `%NAME%` by what `lookup` says; `$$` is a dollar sign. A `$` variable that is not set is empty, a `%NAME%` that is
/// not set stays as it is.
#[must_use]
pub fn expand(text: &str, lookup: Lookup<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '%']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let (replacement, after) = variable(from, lookup);
        out.push_str(&replacement);
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The replacement for the variable that `text` begins with, and what follows it.
fn variable<'a>(text: &'a str, lookup: Lookup<'_>) -> (String, &'a str) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named = |name: &str| !name.is_empty() && name.chars().all(is_name);
    if let Some(after) = text.strip_prefix("$$") {
        return ("$".to_owned(), after);
    }
    if let Some((name, after)) = text.strip_prefix("${").and_then(|body| body.split_once('}'))
        && named(name)
    {
        return (lookup(name).unwrap_or_default(), after);
    }
    if let Some(body) = text.strip_prefix('$') {
        let end = body.find(|c: char| !is_name(c)).unwrap_or(body.len());
        let (name, after) = body.split_at(end);
        return if name.is_empty() { ("$".to_owned(), body) } else { (lookup(name).unwrap_or_default(), after) };
    }
    if let Some((name, after)) = text.strip_prefix('%').and_then(|body| body.split_once('%'))
        && named(name)
        && let Some(value) = lookup(name)
    {
        return (value, after);
    }
    let mut symbols = text.chars();
    let first = symbols.next().map(String::from).unwrap_or_default();
    (first, symbols.as_str())
}

/// The files of an agent's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritebackPaths {
    /// The first level: identity and installation time. Without a second level, everything.
    pub level1: PathBuf,
    /// The second level: everything, so also a copy of the first.
    pub level2: Option<PathBuf>,
}

/// Where the agent keeps its state on this operating system. `$NONCE` in the path tells the agents of several organisations on one host apart.
pub(crate) fn writeback(client: &Client, origin: &str, lookup: Lookup<'_>) -> Result<WritebackPaths, ConfigError> {
    let path = by_system(&client.writeback_linux, &client.writeback_windows, &client.writeback_darwin);
    if path.is_empty() {
        return Err(ConfigError::Missing {
            origin: origin.to_owned(),
            text: "Client Writeback is not configured",
            cure: "set Client.writeback_linux, _windows or _darwin to a path that only the agent can write",
        });
    }
    let level1 = expand_with_nonce(path, &client.nonce, lookup);
    let suffix = &client.level2_writeback_suffix;
    let level2 = (!suffix.is_empty()).then(|| PathBuf::from(format!("{level1}{suffix}")));
    Ok(WritebackPaths { level1: PathBuf::from(level1), level2 })
}

/// The value for this operating system.
pub(crate) fn by_system<'a>(linux: &'a str, windows: &'a str, darwin: &'a str) -> &'a str {
    match std::env::consts::OS {
        "windows" => windows,
        "macos" => darwin,
        _ => linux,
    }
}

pub(crate) fn expand_with_nonce(path: &str, nonce: &Secret, lookup: Lookup<'_>) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let nonce: String = nonce.expose().chars().map(safe).collect();
    expand(path, &|name| if name == "NONCE" { Some(nonce.clone()) } else { lookup(name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        (name == "TEMP").then(|| "/tmp".to_owned())
    }

    #[test]
    fn variables_are_replaced() {
        for (text, expanded) in [
            ("$TEMP/x", "/tmp/x"),
            ("${TEMP}x", "/tmpx"),
            ("%TEMP%/x", "/tmp/x"),
            ("$$TEMP", "$TEMP"),
            ("$NOTHING/x", "/x"),
            ("%NOTHING%/x", "%NOTHING%/x"),
            ("100%", "100%"),
            ("a$", "a$"),
            ("${TEMP", "{TEMP"),
            ("$-x", "$-x"),
            ("", ""),
        ] {
            let expected = if text == "${TEMP" { "${TEMP" } else { expanded };
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
    }

    #[test]
    fn the_state_is_kept_in_two_levels() {
        let client = Client {
            writeback_linux: "/etc/%NONCE%.yaml".to_owned(),
            writeback_darwin: "/etc/%NONCE%.yaml".to_owned(),
            writeback_windows: "/etc/%NONCE%.yaml".to_owned(),
            level2_writeback_suffix: ".bak".to_owned(),
            nonce: Secret::new("a+/../b="),
            ..Client::default()
        };
        let paths = writeback(&client, "f.yaml", &lookup).unwrap();
        assert_eq!(paths.level1, PathBuf::from("/etc/a_____b_.yaml"));
        assert_eq!(paths.level2, Some(PathBuf::from("/etc/a_____b_.yaml.bak")));
        let error = writeback(&Client::default(), "f.yaml", &lookup).unwrap_err();
        assert!(error.to_string().starts_with("f.yaml: Client Writeback is not configured: set"), "{error}");
    }
}
