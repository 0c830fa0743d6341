//! `grok()`: fields out of a line of text, by patterns with names such as `%{IP:client}`.

mod patterns;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use talon_vql::regex::Regex;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Signature, Text, Value};

/// How deep patterns may use each other.
const MAX_NESTING: usize = 30;
/// How long a pattern may become.
const MAX_PATTERN: usize = 100_000;
/// How many compiled patterns a query keeps.
const MAX_COMPILED: usize = 100;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("grok", "Fields of a text by a pattern such as %{IP:client} %{WORD:verb}.").args(
            const {
                &[
                    Arg::required("grok", ArgType::String, "The pattern."),
                    Arg::required("data", ArgType::String, "The text."),
                    Arg::optional("patterns", ArgType::Any, "Further patterns: a dict of names and expressions."),
                    Arg::optional(
                        "all_captures",
                        ArgType::Bool,
                        "Give fields that the pattern did not name, too, by the names of their patterns.",
                    ),
                ]
            },
        ),
        grok,
    );
}

/// What the named parts of a compiled pattern become.
struct Compiled {
    regex: Regex,
    /// By the number of the group.
    fields: HashMap<usize, Field>,
}

struct Field {
    name: Key,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Int,
    Float,
}

/// The patterns that a query has compiled.
#[derive(Default)]
struct Cache(Mutex<HashMap<(Text, String, bool), Arc<Compiled>>>);

fn grok(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let pattern = call.text("grok").unwrap_or_else(|| Text::from(""));
    let mut own: Vec<(String, String)> = Vec::new();
    match call.value("patterns").reduced() {
        Value::Null => {}
        Value::Dict(dict) => {
            own.extend(
                dict.iter().map(|(name, value)| (name.as_str().to_owned(), talon_vql::to_text(value.clone(), scope).to_str().into_owned())),
            );
        }
        other => return Err(CallError::failed(format!("patterns should be a dict, not {}", other.type_name()))),
    }
    let all = call.bool("all_captures");
    let cache = scope.shared::<Cache>();
    let key = (pattern.clone(), format!("{own:?}"), all);
    let known = cache.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    let compiled = match known {
        Some(compiled) => compiled,
        None => {
            let own: HashMap<&str, &str> = own.iter().map(|(name, pattern)| (name.as_str(), pattern.as_str())).collect();
            let compiled = Arc::new(compile(&pattern.to_str(), &own, all).map_err(CallError::failed)?);
            let mut cache = cache.0.lock().unwrap_or_else(PoisonError::into_inner);
            if cache.len() >= MAX_COMPILED {
                cache.clear();
            }
            cache.insert(key, compiled.clone());
            compiled
        }
    };
    Ok(compiled.parse(&call.bytes("data")).into())
}

impl Compiled {
    /// The fields of `data`; none when the pattern is not found.
    fn parse(&self, data: &[u8]) -> Dict {
        let mut found = Dict::new();
        let Some(groups) = self.regex.groups_at(data, 0) else { return found };
        for (at, group) in groups.iter().enumerate().skip(1) {
            let text = group.and_then(|span| data.get(span.start..span.end)).unwrap_or_default();
            let Some(field) = self.fields.get(&at) else { continue };
            if text.is_empty() && found.contains_key(&field.name) {
                continue;
            }
            let written = String::from_utf8_lossy(text);
            let value = match field.kind {
                Kind::Text => None,
                Kind::Int => written.trim().parse::<i64>().ok().map(Value::from),
                Kind::Float => written.trim().parse::<f64>().ok().map(Value::from),
            };
            found.update(&field.name, value.unwrap_or_else(|| Value::str(text)));
        }
        found
    }
}

fn compile(pattern: &str, own: &HashMap<&str, &str>, all: bool) -> Result<Compiled, String> {
    let mut expansion = Expansion { own, all, out: String::new(), named: HashMap::new() };
    expansion.expand(pattern, 0)?;
    let regex = Regex::exact(expansion.out.as_bytes()).map_err(|error| error.to_string())?;
    let mut fields = HashMap::new();
    for (at, name) in regex.group_names().iter().enumerate() {
        let Some(name) = name else { continue };
        match expansion.named.remove(&**name) {
            Some((name, kind)) => fields.insert(at, Field { name: Key::from(name), kind }),
            None => fields.insert(at, Field { name: Key::from(name.clone()), kind: Kind::Text }),
        };
    }
    Ok(Compiled { regex, fields })
}

/// A pattern on its way to a regular expression.
struct Expansion<'a> {
    own: &'a HashMap<&'a str, &'a str>,
    all: bool,
    out: String,
    /// The fields by the names of their groups.
    named: HashMap<String, (String, Kind)>,
}

impl Expansion<'_> {
    fn expand(&mut self, pattern: &str, depth: usize) -> Result<(), String> {
        if depth > MAX_NESTING {
            return Err("patterns use each other without end".to_owned());
        }
        let mut rest = pattern;
        while let Some(start) = rest.find("%{") {
            self.push(rest.get(..start).unwrap_or_default())?;
            let tail = rest.get(start.saturating_add(2)..).unwrap_or_default();
            let Some(end) = tail.find('}') else {
                return self.push(rest.get(start..).unwrap_or_default());
            };
            self.reference(tail.get(..end).unwrap_or_default(), depth)?;
            rest = tail.get(end.saturating_add(1)..).unwrap_or_default();
        }
        // Oniguruma writes named groups without the P.
        self.push(rest)
    }

    /// `NAME`, `NAME:field`, `NAME:field:type`
    fn reference(&mut self, reference: &str, depth: usize) -> Result<(), String> {
        let mut parts = reference.splitn(3, ':');
        let name = parts.next().unwrap_or_default();
        let field = parts.next().filter(|field| !field.is_empty());
        let kind = match parts.next() {
            Some("int") => Kind::Int,
            Some("float") => Kind::Float,
            _ => Kind::Text,
        };
        let known = self.own.get(name).copied().or_else(|| patterns::find(name));
        let pattern = known.ok_or_else(|| format!("no pattern found for %{{{name}}}"))?;
        match field.or_else(|| self.all.then_some(name)) {
            Some(field) => {
                let group = format!("grok{}", self.named.len());
                self.push(&format!("(?P<{group}>"))?;
                self.named.insert(group, (field.to_owned(), kind));
            }
            None => self.push("(?:")?,
        }
        self.expand(pattern, depth.saturating_add(1))?;
        self.push(")")
    }

    fn push(&mut self, text: &str) -> Result<(), String> {
        self.out.push_str(text);
        if self.out.len() > MAX_PATTERN { Err(format!("the pattern becomes longer than {MAX_PATTERN} characters")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use talon_vql::json;

    use super::*;

    fn fields(pattern: &str, data: &str, own: &[(&str, &str)], all: bool) -> String {
        match compile(pattern, &own.iter().copied().collect(), all) {
            Ok(compiled) => json::encode(&compiled.parse(data.as_bytes()).into()),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn lines_of_common_logs_are_read() {
        let apache = r#"127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326 "http://www.example.com/start.html" "Mozilla/4.08 [en] (Win98; I ;Nav)""#;
        expect![[r#"{"clientip":"127.0.0.1","ident":"-","auth":"frank","timestamp":"10/Oct/2000:13:55:36 -0700","verb":"GET","request":"/apache_pb.gif","httpversion":"1.0","rawrequest":"","response":"200","bytes":"2326","referrer":"\"http://www.example.com/start.html\"","agent":"\"Mozilla/4.08 [en] (Win98; I ;Nav)\""}"#]]
            .assert_eq(&fields("%{COMBINEDAPACHELOG}", apache, &[], false));
        let ssh = "Mar 16 00:25:22 host sshd[5799]: Accepted publickey for root from 192.0.2.7 port 57890 ssh2";
        let pattern = "%{SYSLOGTIMESTAMP:Timestamp} (?:%{SYSLOGFACILITY} )?%{SYSLOGHOST:logsource} %{SYSLOGPROG}: %{DATA:event} %{DATA:method} for (invalid user )?%{DATA:user} from %{IPORHOST:ip} port %{NUMBER:port:int} ssh2";
        expect![[r#"{"Timestamp":"Mar 16 00:25:22","facility":"","priority":"","logsource":"host","program":"sshd","pid":"5799","event":"Accepted","method":"publickey","user":"root","ip":"192.0.2.7","port":57890}"#]]
            .assert_eq(&fields(pattern, ssh, &[], false));
    }

    #[test]
    fn fields_may_be_typed_own_and_unnamed() {
        assert_eq!(fields("%{NUMBER:n:int} %{NUMBER:f:float}", "17 1.5", &[], false), r#"{"n":17,"f":1.5}"#);
        assert_eq!(fields("%{ID:id}", "x AB-12", &[("ID", "[A-Z]+-%{INT}")], false), r#"{"id":"AB-12"}"#);
        assert_eq!(fields("%{WORD} %{INT:n}", "a 1", &[], true), r#"{"WORD":"a","n":"1"}"#);
        assert_eq!(fields("%{WORD:a.b} (?P<rest>.*)", "x y z", &[], false), r#"{"a.b":"x","rest":"y z"}"#);
        assert_eq!(fields("%{INT:n}", "none", &[], false), "{}");
    }

    #[test]
    fn bad_patterns_are_refused() {
        assert!(fields("%{NOSUCH:x}", "", &[], false).contains("NOSUCH"));
        assert!(fields("%{A}", "", &[("A", "%{A}")], false).contains("without end"));
        assert!(fields("%{A}", "", &[("A", "(")], false).starts_with("error: "));
        let doubling: Vec<(String, String)> = (0..25).map(|at| (format!("P{at}"), format!("%{{P{0}}}%{{P{0}}}", at + 1))).collect();
        let mut doubling: Vec<(&str, &str)> = doubling.iter().map(|(name, pattern)| (name.as_str(), pattern.as_str())).collect();
        doubling.push(("P25", "x"));
        assert!(fields("%{P0}", "", &doubling, false).contains("longer"));
    }

    #[test]
    fn every_known_pattern_compiles() {
        for (name, _) in patterns::ALL {
            let compiled = fields(&format!("%{{{name}:x}}"), "", &[], false);
            assert!(!compiled.starts_with("error"), "{name}: {compiled}");
        }
    }
}
