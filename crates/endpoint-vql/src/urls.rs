//! `url()`: URLs, taken apart and put together.

use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Signature, Value};

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("url", "Puts a URL together, or takes one apart.")
            .args(
                const {
                    &[
                        Arg::optional("scheme", ArgType::String, "Such as https."),
                        Arg::optional("host", ArgType::String, "The host, with a port if need be."),
                        Arg::optional("path", ArgType::String, "The path."),
                        Arg::optional("fragment", ArgType::String, "What follows the #."),
                        Arg::optional("query", ArgType::Any, "The parameters: a dict, whose values may be lists, or text."),
                        Arg::optional("parse", ArgType::String, "A URL to take apart."),
                    ]
                },
            )
            .version(2),
        url,
    );
}

/// The parts of a URL, decoded.
#[derive(Debug, Default, PartialEq, Eq)]
struct Url {
    scheme: String,
    opaque: String,
    user: Option<String>,
    host: String,
    path: String,
    query: String,
    fragment: String,
}

fn url(call: Call) -> Result<Value, CallError> {
    let mut url = match call.opt_string("parse") {
        Some(text) => Url::parse(&text).map_err(CallError::failed)?,
        None => Url::default(),
    };
    for (name, part) in [("scheme", &mut url.scheme), ("host", &mut url.host), ("path", &mut url.path), ("fragment", &mut url.fragment)] {
        if let Some(given) = call.opt_string(name) {
            *part = given;
        }
    }
    match call.value("query").reduced() {
        Value::Null => {}
        Value::Dict(dict) => url.query = encode_query(&dict, &call),
        other => url.query = talon_vql::to_text(other, call.scope()).to_str().into_owned(),
    }
    Ok(url.to_dict().into())
}

impl Url {
    fn parse(text: &str) -> Result<Self, String> {
        if text.chars().any(|c| c.is_ascii_control()) {
            return Err("a URL has no control characters".to_owned());
        }
        let mut url = Self::default();
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        url.fragment = decode(fragment, false)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        url.query = query.to_owned();
        let mut rest = rest;
        if let Some((scheme, tail)) = rest.split_once(':')
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        {
            url.scheme = scheme.to_ascii_lowercase();
            rest = tail;
            if !rest.starts_with('/') {
                url.opaque = rest.to_owned();
                return Ok(url);
            }
        }
        if let Some(tail) = rest.strip_prefix("//") {
            let end = tail.find('/').unwrap_or(tail.len());
            let authority = tail.get(..end).unwrap_or_default();
            rest = tail.get(end..).unwrap_or_default();
            let host = match authority.rsplit_once('@') {
                Some((user, host)) => {
                    url.user = Some(user.to_owned());
                    host
                }
                None => authority,
            };
            if host.contains(' ') {
                return Err("invalid character \" \" in host name".to_owned());
            }
            url.host = decode(host, false)?;
        }
        url.path = decode(rest, false)?;
        Ok(url)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        if !self.scheme.is_empty() {
            out.push_str(&self.scheme);
            out.push(':');
        }
        if !self.opaque.is_empty() {
            out.push_str(&self.opaque);
        } else {
            if !self.host.is_empty() || self.user.is_some() || self.scheme == "file" {
                out.push_str("//");
                if let Some(user) = &self.user {
                    out.push_str(user);
                    out.push('@');
                }
                out.push_str(&self.host);
                if !self.path.is_empty() && !self.path.starts_with('/') {
                    out.push('/');
                }
            }
            out.push_str(&encode(&self.path, b"/$&+,:;=@"));
        }
        if !self.query.is_empty() {
            out.push('?');
            out.push_str(&self.query);
        }
        if !self.fragment.is_empty() {
            out.push('#');
            out.push_str(&encode(&self.fragment, b"/$&+,:;=?@!()*"));
        }
        out
    }

    fn to_dict(&self) -> Dict {
        let user = self.user.as_ref().map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            Dict::new().with("Username", name).with("Password", if password.is_empty() { "" } else { "xxxxx" })
        });
        Dict::new()
            .with("Scheme", &self.scheme)
            .with("Opaque", &self.opaque)
            .with("User", user.map(Value::from))
            .with("Host", &self.host)
            .with("Path", &self.path)
            .with("RawQuery", &self.query)
            .with("Fragment", &self.fragment)
            .with("Query", query_values(&self.query))
            .with("String", self.text())
    }
}

/// The parameters of a query string: each name with the list of its values.
fn query_values(query: &str) -> Dict {
    let mut values: Vec<(String, Vec<Value>)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Ok(name), Ok(value)) = (decode(name, true), decode(value, true)) else { continue };
        match values.iter_mut().find(|(known, _)| *known == name) {
            Some((_, list)) => list.push(value.into()),
            None => values.push((name, vec![value.into()])),
        }
    }
    values.into_iter().map(|(name, list)| (Key::from(name), Value::list(list))).collect()
}

/// A query string with the parameters in the order of their names.
fn encode_query(dict: &Dict, call: &Call) -> String {
    let mut pairs: Vec<(String, Vec<String>)> = Vec::new();
    let text = |value: &Value| talon_vql::to_text(value.clone(), call.scope()).to_str().into_owned();
    for (name, value) in dict.iter() {
        let values = match value {
            Value::List(items) => items.iter().map(text).collect(),
            other => vec![text(other)],
        };
        pairs.push((name.as_str().to_owned(), values));
    }
    pairs.sort();
    let part = |text: &str| encode(text, b"").replace("%20", "+");
    let pairs = pairs.iter().flat_map(|(name, values)| values.iter().map(move |value| format!("{}={}", part(name), part(value))));
    pairs.collect::<Vec<_>>().join("&")
}

fn encode(text: &str, also: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') || also.contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn decode(text: &str, plus_is_space: bool) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
                    return Err(format!("invalid URL escape in {text}"));
                };
                out.push(u8::try_from((high << 4) | low).unwrap_or(0));
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;
    use talon_vql::{Environment, Query, json, parse_statement};

    fn value(expression: &str) -> String {
        let scope = Environment::new(Arc::new(crate::registry())).open();
        let statement = parse_statement(&format!("SELECT {expression} AS X FROM scope()")).unwrap();
        json::encode(Query::new(&scope, &statement).next().unwrap().get("X").unwrap())
    }

    #[test]
    fn urls_are_taken_apart() {
        expect![[r#"{"Scheme":"https","Opaque":"","User":{"Username":"me","Password":"xxxxx"},"Host":"example.com:8000","Path":"/a b","RawQuery":"q=1\u0026q=two+words\u0026x=%41","Fragment":"top","Query":{"q":["1","two words"],"x":["A"]},"String":"https://me:pw@example.com:8000/a%20b?q=1\u0026q=two+words\u0026x=%41#top"}"#]]
            .assert_eq(&value("url(parse='https://me:pw@example.com:8000/a%20b?q=1&q=two+words&x=%41#top')"));
        assert_eq!(value("url(parse='mailto:a@b').Opaque"), r#""a@b""#);
        assert_eq!(value("url(parse='/only/path').Path"), r#""/only/path""#);
        assert_eq!(value("url(parse='http://a/%zz')"), "null");
    }

    #[test]
    fn urls_are_put_together() {
        assert_eq!(
            value("url(scheme='https', host='example.com', path='a/b c', fragment='f', query=dict(b='x y', a=[1, 2])).String"),
            r#""https://example.com/a/b%20c?a=1\u0026a=2\u0026b=x+y#f""#
        );
        assert_eq!(value("url(scheme='http', host='h', query='raw=1').String"), r#""http://h?raw=1""#);
    }
}
