//! Which proxy stands before a server, as `proxy_config` and the environment have it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::HeaderValue;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use crate::{ProxySettings, TransportError};

/// Longest head of a proxy's answer.
pub(crate) const MAX_HEAD: usize = 16 << 10;

/// A proxy that is spoken to over plain HTTP.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The value of `Proxy-Authorization`.
    pub(crate) credentials: Option<HeaderValue>,
}

/// All rules, parsed.
pub(crate) struct Proxies {
    rules: Vec<(Regex, Option<Proxy>)>,
    http: Option<Proxy>,
    https: Option<Proxy>,
}

impl Proxies {
    /// `environment` looks up a variable.
    pub(crate) fn new(settings: &ProxySettings, environment: impl Fn(&str) -> Option<String>) -> Result<Self, TransportError> {
        let rules = settings.by_url.iter().map(|(pattern, url)| rule(pattern, url)).collect::<Result<_, _>>()?;
        let variable = |upper: &str, lower: &str| {
            if settings.ignore_environment {
                None
            } else {
                environment(upper).or_else(|| environment(lower)).filter(|value| !value.is_empty())
            }
        };
        let stated = |setting: &Option<String>| setting.clone().filter(|value| !value.is_empty());
        let http = variable("HTTP_PROXY", "http_proxy").or_else(|| stated(&settings.http));
        let https = variable("HTTPS_PROXY", "https_proxy").or_else(|| stated(&settings.https));
        let parsed = |own: &Option<String>, other: &Option<String>| own.as_deref().or(other.as_deref()).map(parse).transpose();
        Ok(Self { rules, http: parsed(&http, &https)?, https: parsed(&https, &http)? })
    }

    /// The proxy for a URL.
    pub(crate) fn select(&self, uri: &Uri) -> Option<&Proxy> {
        let text = uri.to_string();
        if let Some((_, proxy)) = self.rules.iter().find(|(pattern, _)| pattern.is_match(&text)) {
            return proxy.as_ref();
        }
        match uri.scheme_str() {
            Some("https") => self.https.as_ref(),
            Some("http") => self.http.as_ref(),
            _ => None,
        }
    }
}

fn rule(pattern: &str, url: &str) -> Result<(Regex, Option<Proxy>), TransportError> {
    let regex = Regex::builder()
        .syntax(syntax::Config::new().case_insensitive(true))
        .build(pattern)
        .map_err(|_| TransportError::Configuration(format!("proxy_config.proxy_url_regexp: {pattern:?} is not a regular expression")))?;
    let proxy = if url.is_empty() { None } else { Some(parse(url)?) };
    Ok((regex, proxy))
}

fn parse(url: &str) -> Result<Proxy, TransportError> {
    let refuse =
        |why: &str| TransportError::Configuration(format!("a proxy's URL {why}: only http://[user:password@]host:port is supported"));
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri = with_scheme.parse().map_err(|_| refuse("cannot be parsed"))?;
    if uri.scheme_str() != Some("http") {
        return Err(refuse("has another scheme"));
    }
    let authority = uri.authority().ok_or_else(|| refuse("has no host"))?;
    let credentials = match authority.as_str().rsplit_once('@') {
        None => None,
        Some((user, _)) => {
            let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(unescaped(user)))).map_err(|_| refuse("is odd"))?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    Ok(Proxy { host: authority.host().to_owned(), port: authority.port_u16().unwrap_or(80), credentials })
}

/// Resolves percent escapes; what is not an escape stays.
fn unescaped(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%'
            && let [high, low, tail @ ..] = after
            && let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16))
        {
            out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
            rest = tail;
        } else {
            out.push(first);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(settings: &ProxySettings, environment: &[(&str, &str)], url: &str) -> String {
        let lookup = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let proxies = Proxies::new(settings, lookup).unwrap();
        proxies.select(&url.parse().unwrap()).map_or_else(|| "direct".to_owned(), |proxy| format!("{}:{}", proxy.host, proxy.port))
    }

    #[test]
    fn the_rules_of_precedence() {
        let both = ProxySettings { http: Some("http://h:1".into()), https: Some("http://s:2".into()), ..ProxySettings::default() };
        let one = ProxySettings { https: Some("s:2".into()), ..ProxySettings::default() };
        let rules = ProxySettings {
            by_url: vec![("^https://inner\\.".into(), String::new()), ("\\.EXAMPLE".into(), "http://r:3".into())],
            ..both.clone()
        };
        let deaf = ProxySettings { ignore_environment: true, ..both.clone() };
        let environment = [("HTTPS_PROXY", "http://e:9")];
        for (settings, environment, url, expected) in [
            (&ProxySettings::default(), &[][..], "https://a/", "direct"),
            (&both, &[][..], "http://a/", "h:1"),
            (&both, &[][..], "https://a/", "s:2"),
            (&one, &[][..], "http://a/", "s:2"),
            (&both, &environment[..], "https://a/", "e:9"),
            (&both, &environment[..], "http://a/", "h:1"),
            (&ProxySettings::default(), &environment[..], "http://a/", "e:9"),
            (&deaf, &environment[..], "https://a/", "s:2"),
            (&rules, &environment[..], "https://inner.example/", "direct"),
            (&rules, &environment[..], "https://a.example/", "r:3"),
            (&rules, &environment[..], "https://a.org/", "e:9"),
        ] {
            assert_eq!(select(settings, environment, url), expected, "{url} {settings:?}");
        }
    }

    #[test]
    fn credentials_are_unescaped_and_other_schemes_refused() {
        let proxy = parse("http://u:p%40ss@proxy:3128").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy", 3128));
        assert_eq!(proxy.credentials.unwrap(), format!("Basic {}", STANDARD.encode("u:p@ss")));
        for wrong in ["https://p:1", "socks5://p:1", "http://"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
