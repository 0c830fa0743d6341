//! The HTTP surface in one table: what is served, to whom, within which bounds, and how it is audited. A request without a row is 404.

use std::borrow::Cow;

/// What a row does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// The frontend's certificate.
    ServerPem,
    /// Messages from an agent.
    Control,
    /// The long poll of an agent.
    Reader,
    /// A public file.
    Public,
    /// The health check.
    Healthz,
}

/// Who may use a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Anybody who can connect.
    Anyone,
    /// The body is a sealed packet, which says who sent it.
    SealedPacket,
}

/// The bound of a row's request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyLimit {
    /// The body is not read.
    Unread,
    /// Less than twice `Frontend.resources.max_upload_size`; a longer one is answered with 200 and dropped.
    Upload,
    /// [`FrontendLimits::max_reader_body`](crate::FrontendLimits::max_reader_body); a longer one is answered with 503.
    Reader,
}

/// Where a row leaves its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditClass {
    /// It changes nothing and tells nothing that is not public.
    None,
    /// The server behind it audits what the messages inside of the packet do.
    Messages,
}

/// One row.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Route {
    /// The path below `Frontend.base_path`. One that ends in `/` stands for everything below it.
    pub path: &'static str,
    /// What it does.
    pub action: Action,
    /// Who may use it.
    pub access: Access,
    /// The bound of the request's body.
    pub body: BodyLimit,
    /// Whether stock servers also take it as a WebSocket.
    pub upgrade: bool,
    /// Where it leaves its trace.
    pub audit: AuditClass,
}

const fn packets(path: &'static str, action: Action, body: BodyLimit) -> Route {
    Route { path, action, access: Access::SealedPacket, body, upgrade: true, audit: AuditClass::Messages }
}

const fn open(path: &'static str, action: Action, upgrade: bool) -> Route {
    Route { path, action, access: Access::Anyone, body: BodyLimit::Unread, upgrade, audit: AuditClass::None }
}

/// Everything that a frontend serves.
pub const ROUTES: &[Route] = &[
    open("/server.pem", Action::ServerPem, true),
    packets("/control", Action::Control, BodyLimit::Upload),
    packets("/send_messages", Action::Control, BodyLimit::Upload),
    packets("/reader", Action::Reader, BodyLimit::Reader),
    packets("/receive_messages", Action::Reader, BodyLimit::Reader),
    open("/public/", Action::Public, false),
    open("/healthz", Action::Healthz, false),
];

/// What a request's path leads to.
#[derive(Debug)]
pub(crate) enum Target {
    /// A row, and for one that ends in `/` the rest of the path.
    Row(&'static Route, String),
    /// The path is not in its plain form; this one is.
    Redirect(String),
    /// Nothing.
    Nowhere,
}

/// Finds the row of an undecoded request path.
pub(crate) fn find(base: &str, path: &str) -> Target {
    let Some(decoded) = decode(path) else { return Target::Nowhere };
    if let Some(plain) = cleaned(&decoded) {
        return Target::Redirect(encode(&plain));
    }
    let Some(below) = decoded.strip_prefix(base) else { return Target::Nowhere };
    for route in ROUTES {
        if route.path.ends_with('/') {
            if let Some(rest) = below.strip_prefix(route.path) {
                return Target::Row(route, rest.to_owned());
            }
        } else if below == route.path {
            return Target::Row(route, String::new());
        }
    }
    Target::Nowhere
}

/// `base_path` with one slash before it and none after it.
pub(crate) fn base(path: &str) -> String {
    let trimmed = path.trim_matches('/');
    if trimmed.is_empty() { String::new() } else { format!("/{trimmed}") }
}

/// Resolves percent escapes; `None` for a broken escape or text that is not UTF-8.
fn decode(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Escapes what may not stand in a `Location`.
pub(crate) fn encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/!$&'()*+,;=:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The path without empty, `.` and `..` parts, unless it has none.
fn cleaned(path: &str) -> Option<String> {
    let rooted = path.strip_prefix('/')?;
    let last = rooted.split('/').next_back().unwrap_or_default();
    let inner_empty = rooted.split('/').rev().skip(1).any(str::is_empty);
    if !inner_empty && !rooted.split('/').any(|part| matches!(part, "." | "..")) {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in rooted.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    let slash = if last.is_empty() && !parts.is_empty() { "/" } else { "" };
    Some(format!("/{}{slash}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(base: &str, path: &str) -> String {
        match find(base, path) {
            Target::Row(route, rest) => format!("{:?} {rest}", route.action),
            Target::Redirect(to) => format!("-> {to}"),
            Target::Nowhere => "404".to_owned(),
        }
    }

    #[test]
    fn each_path_has_its_row() {
        for (path, expected) in [
            ("/server.pem", "ServerPem "),
            ("/control", "Control "),
            ("/send_messages", "Control "),
            ("/reader", "Reader "),
            ("/receive_messages", "Reader "),
            ("/healthz", "Healthz "),
            ("/public/", "Public "),
            ("/public/a/b%20c", "Public a/b c"),
            ("/public", "404"),
            ("/control/", "404"),
            ("/Control", "404"),
            ("/", "404"),
            ("*", "404"),
            ("/%zz", "404"),
            ("/%ff", "404"),
            ("/public/../../server.config.yaml", "-> /server.config.yaml"),
            ("/public/%2e%2e/%2E%2e/etc/passwd", "-> /etc/passwd"),
            ("/a//b/./c/", "-> /a/b/c/"),
            ("/..", "-> /"),
            ("//evil.example/..", "-> /"),
            ("//evil.example/", "-> /evil.example/"),
        ] {
            assert_eq!(describe("", path), expected, "{path}");
        }
    }

    #[test]
    fn a_base_path_is_a_prefix_of_all_rows() {
        let prefix = base("velo/");
        assert_eq!(describe(&prefix, "/velo/healthz"), "Healthz ");
        assert_eq!(describe(&prefix, "/healthz"), "404");
        assert_eq!(describe(&prefix, "/velox/healthz"), "404");
        assert_eq!(base("/"), "");
    }

    #[test]
    fn a_packet_row_always_bounds_its_body() {
        for route in ROUTES {
            assert_eq!(route.access == Access::SealedPacket, route.body != BodyLimit::Unread, "{}", route.path);
            assert_eq!(route.access == Access::SealedPacket, route.audit == AuditClass::Messages, "{}", route.path);
        }
    }
}
