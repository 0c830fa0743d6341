//! Cookies that requests of one query keep for each other, as far as queries of an investigator need them: host, path, `Secure`, removal.

use std::sync::{Arc, Mutex, PoisonError};

use talon_vql::{Dict, Scope, Value, text};
use url::Url;

/// The most cookies of one jar.
const MAX_COOKIES: usize = 1000;
/// The most jars of one query.
const MAX_JARS: usize = 100;

/// One cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cookie {
    name: String,
    value: String,
    domain: String,
    /// Whether hosts below `domain` get it too.
    below: bool,
    path: String,
    secure: bool,
}

/// What was received, beside what the query put into the dict that is its jar.
#[derive(Debug, Clone, Default)]
pub(crate) struct Jar(Arc<Mutex<Vec<Cookie>>>);

/// The jars of a query, by the dict that stands for each.
#[derive(Default)]
struct Jars(Mutex<Vec<(Arc<Dict>, Jar)>>);

impl Jar {
    /// The jar of `dict` in this query. Its entries are cookies that go to every host: a text, or a dict with `Value`.
    pub(crate) fn of(scope: &Scope, dict: &Arc<Dict>) -> Self {
        let jars = scope.shared::<Jars>();
        let mut jars = jars.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, jar)) = jars.iter().find(|(known, _)| Arc::ptr_eq(known, dict)) {
            return jar.clone();
        }
        if jars.len() >= MAX_JARS {
            jars.remove(0);
        }
        let jar = Self::default();
        jars.push((dict.clone(), jar.clone()));
        jar
    }

    /// Takes what a server sets.
    pub(crate) fn receive(&self, url: &Url, header: &str) {
        let Some(host) = url.host_str() else { return };
        let mut parts = header.split(';').map(str::trim);
        let Some((name, value)) = parts.next().and_then(|pair| pair.split_once('=')) else { return };
        let mut cookie = Cookie {
            name: name.trim().to_owned(),
            value: value.trim().to_owned(),
            domain: host.to_ascii_lowercase(),
            below: false,
            path: default_path(url.path()),
            secure: false,
        };
        let mut gone = false;
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key.to_ascii_lowercase().as_str() {
                "domain" => {
                    let domain = value.trim_start_matches('.').to_ascii_lowercase();
                    // A host speaks for itself and for its own domain, never for a whole top level.
                    if !domain.contains('.') || !within(host, &domain) {
                        return;
                    }
                    (cookie.domain, cookie.below) = (domain, true);
                }
                "path" if value.starts_with('/') => value.clone_into(&mut cookie.path),
                "secure" => cookie.secure = true,
                "max-age" => gone = value.parse::<i64>().is_ok_and(|seconds| seconds <= 0),
                _ => {}
            }
        }
        let mut cookies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cookies.retain(|known| (&known.name, &known.domain, &known.path) != (&cookie.name, &cookie.domain, &cookie.path));
        if !gone && cookies.len() < MAX_COOKIES {
            cookies.push(cookie);
        }
    }

    /// What is sent to `url`: the value of the header, `None` when there is nothing.
    pub(crate) fn header(&self, url: &Url, given: &Dict) -> Option<String> {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let mut pairs: Vec<(String, String)> = given.iter().map(|(name, value)| (name.as_str().to_owned(), given_value(value))).collect();
        for cookie in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let meant = if cookie.below { within(&host, &cookie.domain) } else { host == cookie.domain };
            if meant && (!cookie.secure || url.scheme() == "https") && path_within(url.path(), &cookie.path) {
                pairs.retain(|(name, _)| name != &cookie.name);
                pairs.push((cookie.name.clone(), cookie.value.clone()));
            }
        }
        let line = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ");
        (!line.is_empty()).then_some(line)
    }
}

fn given_value(value: &Value) -> String {
    match value {
        Value::Dict(dict) => text::display(dict.get("Value").or_else(|| dict.get("value")).unwrap_or(&Value::Null)),
        other => text::display(other),
    }
}

fn within(host: &str, domain: &str) -> bool {
    host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

fn default_path(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/".to_owned(),
        Some((folder, _)) => folder.to_owned(),
    }
}

fn path_within(path: &str, folder: &str) -> bool {
    path == folder || path.strip_prefix(folder).is_some_and(|rest| folder.ends_with('/') || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_go_where_they_came_from() {
        let jar = Jar::default();
        let from: Url = "https://a.example.org/app/login".parse().unwrap();
        for header in
            ["sid=1; Path=/; Secure", "pref=x", "wide=2; Domain=example.org; Path=/", "evil=3; Domain=other.org", "top=4; Domain=org"]
        {
            jar.receive(&from, header);
        }
        let sent = |url: &str| jar.header(&url.parse().unwrap(), &Dict::new().with("own", "0")).unwrap();
        assert_eq!(sent("https://a.example.org/app/x"), "own=0; sid=1; pref=x; wide=2");
        assert_eq!(sent("http://a.example.org/"), "own=0; wide=2");
        assert_eq!(sent("https://b.example.org/app/x"), "own=0; wide=2");
        assert_eq!(sent("https://example.org.evil.net/"), "own=0");
        jar.receive(&from, "sid=; Path=/; Max-Age=0");
        assert_eq!(sent("https://a.example.org/"), "own=0; wide=2");
    }
}
