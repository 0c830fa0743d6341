//! The URL of a frontend as it stands in `Client.server_urls`: parsed once.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

use crate::TransportError;

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    Https,
    /// WebSocket without TLS.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Scheme {
    /// Whether there is TLS.
    #[must_use]
    pub fn tls(self) -> bool {
        matches!(self, Self::Https | Self::Wss)
    }

    /// Whether packets go over a WebSocket.
    #[must_use]
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

/// A frontend's URL: one of the four schemes, a host, a port and a path that ends in `/`.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: Scheme,
    host: String,
    port: u16,
    path: String,
}

impl ServerUrl {
    /// The scheme.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host, without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port; 80 or 443 when the text named none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, the form that `Client.fallback_addresses` uses as its key.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The HTTP URL of something below this one. WebSocket schemes become their HTTP twins, which every frontend serves on the same port.
    #[must_use]
    pub fn join(&self, name: &str) -> Uri {
        let scheme = if self.scheme.tls() { "https" } else { "http" };
        let default = if self.scheme.tls() { 443 } else { 80 };
        let authority = if self.port == default { self.host.clone() } else { self.authority() };
        Uri::builder().scheme(scheme).authority(authority).path_and_query(format!("{}{name}", self.path)).build().unwrap_or_default()
    }
}

impl FromStr for ServerUrl {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        let refuse = |why: &str| TransportError::Configuration(format!("Configuration Client.server_urls: {text:?} {why}"));
        if !text.ends_with('/') {
            return Err(TransportError::Configuration("Configuration Client.server_urls must end with /".to_owned()));
        }
        let uri: Uri = text.parse().map_err(|_| refuse("is not a URL"))?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some("ws") => Scheme::Ws,
            Some("wss") => Scheme::Wss,
            _ => return Err(refuse("must start with https://, http://, wss:// or ws://")),
        };
        let authority = uri.authority().ok_or_else(|| refuse("has no host"))?;
        if authority.as_str().contains('@') || uri.query().is_some() || authority.host().is_empty() {
            return Err(refuse("may hold a host, a port and a path only"));
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if scheme.tls() => 443,
            None => 80,
        };
        Ok(Self { scheme, host: authority.host().to_owned(), port, path: uri.path().to_owned() })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
        };
        write!(out, "{scheme}://{}:{}{}", self.host, self.port, self.path)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_refuses() {
        for (text, expected) in [
            ("https://localhost:8000/", Some("https://localhost:8000/server.pem")),
            ("https://a.example/x/", Some("https://a.example/x/server.pem")),
            ("wss://a.example:444/", Some("https://a.example:444/server.pem")),
            ("ws://[::1]:80/", Some("http://[::1]/server.pem")),
            ("https://a.example", None),
            ("ftp://a.example/", None),
            ("https:///", None),
            ("https://u:p@a.example/", None),
            ("https://a.example/?x=/", None),
            ("/", None),
        ] {
            let joined = text.parse::<ServerUrl>().ok().map(|url| url.join("server.pem").to_string());
            assert_eq!(joined.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn an_ipv6_host_loses_its_brackets() {
        let url: ServerUrl = "http://[::1]:8000/".parse().unwrap();
        assert_eq!((url.host(), url.authority().as_str()), ("::1", "[::1]:8000"));
    }
}
