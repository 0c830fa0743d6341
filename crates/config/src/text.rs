//! Reading text: which part of a file is whose document, and the strict decoding of one document.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::Error as YamlError;

use crate::nearest::nearest;
use crate::{Config, ConfigError, Place, TalonSettings};

/// Longer texts are refused: a configuration has a few kilobytes.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The second document of a file.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TalonDocument {
    talon: Option<TalonSettings>,
}

/// Reads both documents of a file.
pub(crate) fn read(origin: &str, text: &str) -> Result<(Config, TalonSettings), ConfigError> {
    if text.len() > MAX_BYTES {
        return Err(ConfigError::Syntax { place: Place::whole(origin), problem: format!("the file is larger than {MAX_BYTES} bytes") });
    }
    let (first, rest) = split(text);
    let config = decode(origin, first, 0)?;
    let Some(rest) = rest else {
        return Ok((config, TalonSettings::default()));
    };
    let (second, third) = split(rest.text);
    if let Some(third) = third {
        let line = rest.skipped_lines.saturating_add(third.skipped_lines).saturating_add(1);
        let place = Place { origin: origin.to_owned(), line: line as u64, column: 1 };
        return Err(ConfigError::Syntax { place, problem: "a third document: only two are read, remove it".to_owned() });
    }
    let document: TalonDocument = decode(origin, second, rest.skipped_lines)?;
    Ok((config, document.talon.unwrap_or_default()))
}

/// Decodes one document strictly. `skipped_lines` stand before it in the file.
pub(crate) fn decode<T: DeserializeOwned>(origin: &str, text: &str, skipped_lines: usize) -> Result<T, ConfigError> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| refusal(origin, skipped_lines, error.without_snippet()))
}

/// What follows the first document.
struct Rest<'a> {
    text: &'a str,
    skipped_lines: usize,
}

/// Cuts a text after its first document, as stock readers do: at the first line that starts with `---` after content, or with `...`.
fn split(text: &str) -> (&str, Option<Rest<'_>>) {
    let mut started = false;
    let mut offset = 0_usize;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_start_matches('\u{feff}').trim_end();
        let marker = |mark: &str| bare.strip_prefix(mark).is_some_and(|after| after.is_empty() || after.starts_with([' ', '\t']));
        let end = offset.saturating_add(line.len());
        let cut = if marker("...") {
            Some((end, number.saturating_add(1)))
        } else if marker("---") && started {
            Some((offset, number))
        } else {
            None
        };
        if let Some((from, skipped_lines)) = cut {
            let (first, _) = text.split_at_checked(offset).unwrap_or((text, ""));
            let (_, rest) = text.split_at_checked(from).unwrap_or((text, ""));
            let blank = rest.lines().all(|line| is_blank(line) || line.trim_end() == "---");
            return (first, (!blank).then_some(Rest { text: rest, skipped_lines }));
        }
        started = started || !(is_blank(bare) || bare.starts_with('%'));
        offset = end;
    }
    (text, None)
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// The error in our words. Messages of the library can quote the text, which may hold secrets; they are not passed on.
fn refusal(origin: &str, skipped_lines: usize, error: &YamlError) -> ConfigError {
    let location = error.location();
    let line = location.map_or(0, |location| location.line().saturating_add(skipped_lines as u64));
    let place = Place { origin: origin.to_owned(), line, column: location.map_or(0, |location| location.column()) };
    let problem = match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let nearest = nearest(field, expected).map(str::to_owned);
            return ConfigError::UnknownKey { place, key: field.clone(), nearest };
        }
        YamlError::DuplicateMappingKey { key, .. } => {
            return ConfigError::DuplicateKey { place, key: key.clone().unwrap_or_default() };
        }
        YamlError::InvalidScalar { ty, .. } => match *ty {
            "boolean" | "bool" => "this must be true or false".to_owned(),
            _ => "this must be a whole number in its range, without quotes".to_owned(),
        },
        YamlError::SerdeInvalidType { expected, .. } | YamlError::SerdeInvalidValue { expected, .. } => format!("this must be {expected}"),
        YamlError::Unexpected { expected, .. } => format!("this must be a {}", plain(expected)),
        YamlError::Eof { .. } => "the text ends too early: is the file complete?".to_owned(),
        YamlError::NullIntoString { .. } => "a text is missing here".to_owned(),
        _ => "this is not valid YAML: check indentation, quotes and colons around here".to_owned(),
    };
    ConfigError::Syntax { place, problem }
}

fn plain(expected: &str) -> &str {
    match expected {
        "mapping start" => "section with keys",
        "sequence start" => "list",
        "string scalar" => "text",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        read("f.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn errors_say_where_what_and_what_to_do() {
        for (text, line) in [
            ("Frontend:\n  bind_prot: 1\n", r#"f.yaml:2:3: unknown key "bind_prot": did you mean "bind_port"?"#),
            ("frontend: {}\n", r#"f.yaml:1:1: unknown key "frontend": did you mean "Frontend"?"#),
            ("colour: red\n", r#"f.yaml:1:1: unknown key "colour": remove it"#),
            ("lockdown: true\nlockdown: false\n", r#"f.yaml:2:1: the key "lockdown" is given twice: keep one of them"#),
            ("Client:\n  max_poll: often\n", "f.yaml:2:13: this must be a whole number in its range, without quotes"),
            ("Client:\n  max_poll: -1\n", "f.yaml:2:13: this must be a whole number in its range, without quotes"),
            ("lockdown: 1\n", "f.yaml:1:11: this must be true or false"),
            ("Client: text\n", "f.yaml:1:9: this must be a section with keys"),
            ("Client:\n  labels: a\n", "f.yaml:2:11: this must be a list"),
            ("- a\n", "f.yaml:1:1: this must be a section with keys"),
            ("lockdown: true\n---\ntalon:\n  agnet: {}\n", r#"f.yaml:4:3: unknown key "agnet": did you mean "agent"?"#),
            ("lockdown: true\n...\n\nsecrets: 1\n", r#"f.yaml:4:1: unknown key "secrets": remove it"#),
            ("---\nlockdown: true\n---\ntalon: {}\n---\nx: 1\n", "f.yaml:5:1: a third document: only two are read, remove it"),
        ] {
            assert_eq!(problem(text), line);
        }
    }

    #[test]
    fn errors_never_quote_values() {
        for text in
            ["CA:\n  private_key: [hunter2]\n", "CA:\n  private_key: {hunter2: 1}\n", "CA:\n  private_key: \"hunter2\n", "CA: hunter2\n"]
        {
            let error = read("f.yaml", text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn what_stock_readers_take_is_taken() {
        let text = "\u{feff}---\r\nlockdown: yes\r\nverbose: Off\r\nserver_type: 010\r\norg_id: Y\r\nClient:\r\n  max_poll: 010\r\n  nonce:\r\n  ca_certificate: |\r\n    a\r\n    b\r\n  labels: [1, yes, x]\r\nGUI:\r\nMail: {}\r\n";
        let (config, _) = read("f.yaml", text).unwrap();
        let client = config.client.unwrap();
        assert!(config.lockdown && !config.verbose && config.gui.is_none());
        assert_eq!((config.server_type.as_str(), config.org_id.as_str(), client.max_poll), ("010", "Y", 8));
        assert_eq!((client.ca_certificate.as_str(), client.labels), ("a\nb\n", vec!["1".into(), "yes".into(), "x".into()]));
        assert!(client.nonce.is_empty());
        assert!(read("f.json", r#"{"Client": {"max_poll": 5}}"#).is_ok());
        assert!(read("f.yaml", "").is_ok());
    }

    #[test]
    fn only_the_second_document_is_ours() {
        let (config, talon) = read("f.yaml", "lockdown: true\n--- # ours\ntalon:\n  agent:\n    denied_permissions: [EXECVE]\n").unwrap();
        assert!(config.lockdown);
        assert_eq!(talon.agent.unwrap().denied_permissions, ["EXECVE"]);
        for empty in ["lockdown: true\n---\n", "lockdown: true\n...\n", "lockdown: true\n---\n# nothing\n", "lockdown: true\n...\n---\n"] {
            assert_eq!(read("f.yaml", empty).unwrap().1, TalonSettings::default(), "{empty:?}");
        }
        // A marker inside of a text is no marker when it is indented.
        let (config, _) = read("f.yaml", "server_type: |\n  ---\n  x\nlockdown: true\n").unwrap();
        assert_eq!((config.server_type.as_str(), config.lockdown), ("---\nx\n", true));
    }
}
