//! `http_client()`: asks a web server and gives what it answers as rows.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use talon_acl::{FilesystemWrite, Network, Permit};
use talon_ids::Permission;
use talon_transport::{WebAnswer, WebBody, WebRequest};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, OsPath, Registry, Rows, Scope, Signature, Value, text};
use url::Url;

use crate::accessor;
use crate::authority::permit;
use crate::cookies::Jar;
use crate::secrets::{self, Secret};
use crate::temporary;
use crate::web::{Trust, Web};

/// Bytes of content in one row unless the query says otherwise.
const CHUNK: usize = 4 << 20;
/// The most that a query may ask for in one row.
const MAX_CHUNK: usize = 100 << 20;
/// How often an answer may send us elsewhere.
const MAX_REDIRECTS: usize = 10;
/// The largest answer that is kept in a file.
const MAX_FILE: u64 = 16 << 30;
/// Bytes of a file that are sent at one time.
const PIECE: usize = 64 << 10;
/// What the program calls itself unless the query says otherwise.
const USER_AGENT: &str = concat!("talon/", env!("CARGO_PKG_VERSION"));
/// The type of secrets.
const SECRETS: &str = "HTTP Secrets";

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("http_client", "Asks a web server; the answer comes in rows, each with a piece of its content.")
            .args(
                const {
                    &[
                        Arg::optional("url", ArgType::Strings, "The URL. Of several, the next is tried when one cannot be reached."),
                        Arg::optional("params", ArgType::Dict, "Parameters: part of the URL, or the form that a POST sends."),
                        Arg::optional("headers", ArgType::Dict, "Further headers."),
                        Arg::optional("method", ArgType::String, "GET unless given, or POST, PUT, PATCH, DELETE, HEAD …"),
                        Arg::optional("data", ArgType::String, "What is sent, instead of a form."),
                        Arg::optional("chunk_size", ArgType::Int, "At most this many bytes of content in one row; 4 MiB unless given."),
                        Arg::optional("disable_ssl_security", ArgType::Bool, "The old name of skip_verify."),
                        Arg::optional("skip_verify", ArgType::Bool, "Accept any certificate."),
                        Arg::optional(
                            "tempfile_extension",
                            ArgType::String,
                            "Keep the content in a temporary file with this extension; Content is its path.",
                        ),
                        Arg::optional("remove_last", ArgType::Bool, "Remove that file after everything else."),
                        Arg::optional("root_ca", ArgType::String, "A further authority to trust, in PEM."),
                        Arg::optional("cookie_jar", ArgType::Dict, "Cookies to send. Calls with the same dict share what servers set."),
                        Arg::optional("user_agent", ArgType::String, "What the client calls itself."),
                        Arg::optional("secret", ArgType::String, "The secret that has the URL and the credentials."),
                        Arg::optional(
                            "files",
                            ArgType::Dicts,
                            "Files to send in a form: dicts of path, accessor, file (its name) and key (the field).",
                        ),
                    ]
                },
            )
            .permissions(&[Permission::Network])
            .version(3),
        http_client,
    );
}

fn http_client(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let permit: Permit<Network> = permit(&scope)?;
    let (urls, secret) = targets(&call)?;
    let secret = secret.unwrap_or_default();
    let trust = Trust {
        skip_verify: call.bool("skip_verify") || call.bool("disable_ssl_security") || secret.flag("skip_verify"),
        root_ca: call.opt_string("root_ca").or_else(|| secret.text("root_ca").map(str::to_owned)).unwrap_or_default(),
    };
    let web = Web::open(&permit, &scope, &trust)?;
    let request = Prepared::of(&call, &secret)?;
    let mut failure = None;
    for url in urls {
        let parsed = match Url::parse(&url) {
            Ok(parsed) => parsed,
            Err(error) => {
                failure = Some((url, CallError::failed(format!("the URL cannot be parsed: {error}"))));
                continue;
            }
        };
        match request.send(&web, &scope, parsed) {
            Ok((url, answer)) => return rows(&call, web, url, answer),
            Err(CallError::Silent) => return Ok(Rows::none()),
            Err(error) => failure = Some((url, error)),
        }
    }
    // Queries tell from the status whether they got what they asked for, so that a server out of reach is a row too.
    Ok(failure.map_or_else(Rows::none, |(url, error)| {
        call.log(format!("{url}: {error}"));
        Rows::one(row(&url, Value::from(error.to_string()), 500, Dict::new()))
    }))
}

/// Where to ask, and the secret that goes with it.
fn targets(call: &Call) -> Result<(Vec<String>, Option<Secret>), CallError> {
    let scope = call.scope();
    let mut urls: Vec<String> = call.strings("url").into_iter().filter(|url| !url.is_empty()).collect();
    let named = call.opt_string("secret").filter(|name| !name.is_empty());
    let named = named.or_else(|| urls.first().and_then(|url| url.strip_prefix("secret://")).map(str::to_owned));
    let secret = match named {
        Some(name) => Some(secrets::named(scope, SECRETS, &name)?),
        None => None,
    };
    urls.retain(|url| !url.starts_with("secret://"));
    match &secret {
        None if secrets::enforced(scope) => {
            urls.drain(..).for_each(|url| call.log(format!("must use secrets is enforced, dropping url {url}")));
        }
        None => {}
        Some(secret) => {
            if let Some(url) = secret.text("url") {
                urls = vec![url.to_owned()];
            } else if let Some(pattern) = secret.text("url_regex") {
                // A secret goes only where its owner says.
                let regex = talon_vql::regex::Regex::ignoring_case(pattern.as_bytes()).map_err(CallError::failed)?;
                urls.retain(|url| regex.is_match(url.as_bytes()));
                if urls.is_empty() {
                    return Err("the secret may not be used with this URL".into());
                }
            }
        }
    }
    if urls.is_empty() {
        return Err("Field url is required".into());
    }
    Ok((urls, secret))
}

/// A request but for its URL.
struct Prepared {
    method: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Content,
    given: Arc<Dict>,
    jar: Jar,
    /// Headers that go to the first host only.
    private: Vec<&'static str>,
}

enum Content {
    Bytes(Bytes),
    /// Files in a form; they can be sent once.
    Form(std::sync::Mutex<Option<Form>>),
}

struct Form {
    length: u64,
    parts: Vec<Part>,
}

enum Part {
    Bytes(Vec<u8>),
    File(Box<dyn accessor::FileReader>, u64),
}

impl Prepared {
    fn of(call: &Call, secret: &Secret) -> Result<Self, CallError> {
        let mut params = pairs(call.dict("params").as_deref());
        params.extend(secret.entries("extra_params").map(|(name, value)| (name.to_owned(), value.to_owned())));
        let files = call.list("files");
        let data = call.text("data");
        let stated = call.opt_string("method").or_else(|| secret.text("method").map(str::to_owned)).filter(|method| !method.is_empty());
        let implied = if files.is_empty() && data.is_none() { "GET" } else { "POST" };
        let method = stated.unwrap_or_else(|| implied.to_owned()).to_ascii_uppercase();
        let mut headers = pairs(call.dict("headers").as_deref());
        headers.extend(secret.entries("extra_headers").map(|(name, value)| (name.to_owned(), value.to_owned())));
        let mut add = |name: &str, value: String| {
            if !headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
                headers.push((name.to_owned(), value));
            }
        };
        add(
            "User-Agent",
            call.opt_string("user_agent")
                .or_else(|| secret.text("user_agent").map(str::to_owned))
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| USER_AGENT.to_owned()),
        );
        add("Accept-Encoding", "gzip".to_owned());
        let mut query = Vec::new();
        let body = if !files.is_empty() {
            let boundary = format!("talon-{:016x}{:016x}", call.scope().random(), call.scope().random());
            add("Content-Type", format!("multipart/form-data; boundary={boundary}"));
            Content::Form(std::sync::Mutex::new(Some(Form::of(call.scope(), &params, &files, &boundary)?)))
        } else if let Some(data) = data {
            query = params;
            Content::Bytes(Bytes::copy_from_slice(data.as_bytes()))
        } else if matches!(method.as_str(), "POST" | "PUT" | "PATCH") {
            add("Content-Type", "application/x-www-form-urlencoded".to_owned());
            let form: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&params).finish();
            Content::Bytes(form.into())
        } else {
            query = params;
            Content::Bytes(Bytes::new())
        };
        let mut given = call.dict("cookie_jar").unwrap_or_default();
        let jar = if call.has("cookie_jar") { Jar::of(call.scope(), &given) } else { Jar::default() };
        if secret.entries("cookies").next().is_some() {
            let mut more = Dict::clone(&given);
            secret.entries("cookies").for_each(|(name, value)| more.set(name.to_owned(), value));
            given = Arc::new(more);
        }
        Ok(Self { method, query, headers, body, given, jar, private: vec!["authorization", "cookie", "proxy-authorization"] })
    }

    /// Sends the request, and on to where the answers point.
    fn send(&self, web: &Web, scope: &Scope, mut url: Url) -> Result<(Url, WebAnswer), CallError> {
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        let first = url.clone();
        let (mut method, mut with_body) = (self.method.clone(), true);
        for _ in 0..=MAX_REDIRECTS {
            let home = url.host_str() == first.host_str() && url.port_or_known_default() == first.port_or_known_default();
            let mut headers: Vec<(String, String)> = self
                .headers
                .iter()
                .filter(|(name, _)| home || !self.private.iter().any(|private| name.eq_ignore_ascii_case(private)))
                .filter(|(name, _)| with_body || !name.eq_ignore_ascii_case("content-type"))
                .cloned()
                .collect();
            let nothing = Dict::new();
            if let Some(cookies) = self.jar.header(&url, if home { &self.given } else { &nothing }) {
                headers.push(("Cookie".to_owned(), cookies));
            }
            if !url.username().is_empty() && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
                headers.push(("Authorization".to_owned(), basic(url.username(), url.password().unwrap_or_default())));
            }
            let mut target = url.clone();
            target.set_fragment(None);
            let _plain = (target.set_username(""), target.set_password(None));
            let body = if with_body { self.body.open(scope)? } else { WebBody::Bytes(Bytes::new()) };
            let answer = web.send(WebRequest { method: method.clone(), url: target.to_string(), headers, body })?;
            for (_, cookie) in answer.headers.iter().filter(|(name, _)| name == "set-cookie") {
                self.jar.receive(&url, cookie);
            }
            let next = answer.header("location").filter(|_| matches!(answer.status, 301 | 302 | 303 | 307 | 308));
            let Some(next) = next.map(|next| url.join(next)) else { return Ok((url, answer)) };
            let next = next.map_err(|error| CallError::failed(format!("the server sends us to no URL: {error}")))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err("the server sends us from https to http; this is not followed".into());
            }
            if matches!(answer.status, 301..=303) && method != "HEAD" {
                (method, with_body) = ("GET".to_owned(), false);
            }
            url = next;
        }
        Err(CallError::failed(format!("stopped after {MAX_REDIRECTS} redirects")))
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let plain = |text: &str| percent_decoded(text);
    let mut both = plain(user);
    both.push(b':');
    both.extend(plain(password));
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let form = format!("v={}", text.replace('+', "%2B"));
    url::form_urlencoded::parse(form.as_bytes()).next().map(|(_, value)| value.into_owned().into_bytes()).unwrap_or_default()
}

impl Content {
    fn open(&self, scope: &Scope) -> Result<WebBody, CallError> {
        match self {
            Self::Bytes(bytes) => Ok(WebBody::Bytes(bytes.clone())),
            Self::Form(form) => {
                let form = form.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                form.ok_or("files can be sent once only; the first URL took them")?.stream(scope)
            }
        }
    }
}

impl Form {
    fn of(scope: &Scope, params: &[(String, String)], files: &[Value], boundary: &str) -> Result<Self, CallError> {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\r', '\n'], " ");
        let mut parts = Vec::new();
        for (name, value) in params {
            parts.push(Part::Bytes(
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{}\"\r\n\r\n{value}\r\n", quoted(name)).into_bytes(),
            ));
        }
        for file in files.iter().filter_map(Value::as_dict) {
            let field = |name: &str| file.get(name).map(text::display).filter(|text| !text.is_empty());
            let named = field("accessor").unwrap_or_default();
            let path = match file.get("path") {
                Some(Value::Path(path)) => path.clone(),
                _ => Arc::new(OsPath::for_accessor(field("path").ok_or("each of files needs a path")?, &named)),
            };
            let reader = accessor::named(scope, &named)?;
            let info = reader.stat_target(scope, &path)?;
            let name = field("file").unwrap_or_else(|| text::display(&path.basename().into()));
            let key = field("key").unwrap_or_else(|| "file".to_owned());
            parts.push(Part::Bytes(
                format!(
                    "--{boundary}\r\nContent-Disposition: form-data; name=\"{}\"; filename=\"{}\"\r\nContent-Type: application/octet-stream\r\n\r\n",
                    quoted(&key),
                    quoted(&name)
                )
                .into_bytes(),
            ));
            parts.push(Part::File(reader.open(scope, &path)?, info.size));
            parts.push(Part::Bytes(b"\r\n".to_vec()));
        }
        parts.push(Part::Bytes(format!("--{boundary}--\r\n").into_bytes()));
        let length = parts
            .iter()
            .map(|part| match part {
                Part::Bytes(bytes) => bytes.len() as u64,
                Part::File(_, size) => *size,
            })
            .fold(0_u64, u64::saturating_add);
        Ok(Self { length, parts })
    }

    /// Reads the files on a thread of its own, until all is sent or nobody takes it.
    fn stream(self, scope: &Scope) -> Result<WebBody, CallError> {
        let (sender, pieces) = tokio::sync::mpsc::channel(4);
        let (length, cancel) = (self.length, scope.cancel_token().clone());
        std::thread::Builder::new().name("vql upload".to_owned()).spawn(move || {
            for part in self.parts {
                let (mut reader, size): (Box<dyn Read + Send>, u64) = match part {
                    Part::Bytes(bytes) => {
                        let size = bytes.len() as u64;
                        (Box::new(std::io::Cursor::new(bytes)), size)
                    }
                    Part::File(reader, size) => (Box::new(reader), size),
                };
                let mut left = size;
                while left > 0 && !cancel.is_cancelled() {
                    let mut buffer = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
                    let piece = match reader.read(&mut buffer) {
                        Ok(0) => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent")),
                        Ok(got) => {
                            left = left.saturating_sub(got as u64);
                            buffer.truncate(got);
                            Ok(Bytes::from(buffer))
                        }
                        Err(error) => Err(error),
                    };
                    let failed = piece.is_err();
                    if sender.blocking_send(piece).is_err() || failed {
                        return;
                    }
                }
            }
        })?;
        Ok(WebBody::Stream { length, pieces })
    }
}

/// Names and values; each element of a list is one.
fn pairs(dict: Option<&Dict>) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (name, value) in dict.into_iter().flat_map(Dict::iter) {
        match value {
            Value::List(items) => pairs.extend(items.iter().map(|item| (name.as_str().to_owned(), text::display(item)))),
            other => pairs.push((name.as_str().to_owned(), text::display(other))),
        }
    }
    pairs
}

fn row(url: &str, content: Value, status: i64, headers: Dict) -> Dict {
    Dict::new().with("Url", url).with("Content", content).with("Response", status).with("Headers", headers)
}

/// `content-type` as `Content-Type`.
fn canonical(name: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

fn headers_of(answer: &WebAnswer) -> Dict {
    let mut sorted = std::collections::BTreeMap::<String, Vec<Value>>::new();
    for (name, value) in &answer.headers {
        sorted.entry(canonical(name)).or_default().push(value.as_str().into());
    }
    sorted.into_iter().map(|(name, values)| (name, Value::list(values))).collect()
}

/// Takes the compression off an answer's content.
enum Decoder {
    Plain,
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>),
}

impl Decoder {
    fn of(answer: &WebAnswer) -> Self {
        match answer.header("content-encoding") {
            Some(encoding) if encoding.eq_ignore_ascii_case("gzip") => Self::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Vec::new()))),
            _ => Self::Plain,
        }
    }

    fn feed(&mut self, piece: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(piece.to_vec()),
            Self::Gzip(decoder) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }
}

/// The content of an answer, decoded.
struct Reading {
    web: Web,
    answer: WebAnswer,
    decoder: Decoder,
    /// What was received and not decoded: a little may become a lot.
    raw: Bytes,
}

impl Reading {
    /// More content, `None` at the end.
    fn more(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        const STEP: usize = 8 << 10;
        loop {
            if self.raw.is_empty() {
                match self.web.piece(&mut self.answer)? {
                    Some(piece) => self.raw = piece,
                    None => return Ok(None),
                }
            }
            let step = if matches!(self.decoder, Decoder::Plain) { self.raw.len() } else { STEP.min(self.raw.len()) };
            let piece = self.raw.split_to(step);
            let content = self.decoder.feed(&piece).map_err(|error| CallError::failed(format!("the answer is not gzip: {error}")))?;
            if !content.is_empty() {
                return Ok(Some(content));
            }
        }
    }
}

fn rows(call: &Call, web: Web, url: Url, answer: WebAnswer) -> Result<Rows, CallError> {
    let (url, status, headers) = (String::from(url), i64::from(answer.status), headers_of(&answer));
    let mut reading = Reading { web, decoder: Decoder::of(&answer), answer, raw: Bytes::new() };
    if let Some(extension) = call.opt_string("tempfile_extension").filter(|extension| !extension.is_empty()) {
        let permit: Permit<FilesystemWrite> = permit(call.scope())?;
        let (mut file, path) = temporary::create(&permit, call, &extension, call.bool("remove_last"))?;
        let mut size = 0_u64;
        while let Some(content) = reading.more()? {
            size = size.saturating_add(content.len() as u64);
            if size > MAX_FILE {
                return Err(CallError::failed(format!("the answer is longer than {MAX_FILE} bytes")));
            }
            file.write_all(&content)?;
        }
        file.flush()?;
        return Ok(Rows::one(row(&url, path.display().to_string().into(), status, headers)));
    }
    let chunk =
        call.opt_int("chunk_size").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(CHUNK).min(MAX_CHUNK);
    let (mut kept, mut first, mut ended) = (Vec::new(), true, false);
    Ok(Rows::from_fn(move || {
        while !ended && kept.len() < chunk {
            match reading.more() {
                Ok(Some(content)) => kept.extend(content),
                Ok(None) => ended = true,
                Err(error) => {
                    ended = true;
                    kept.clear();
                    return Some(Err(error));
                }
            }
        }
        if kept.is_empty() && !first {
            return None;
        }
        first = false;
        let rest = kept.split_off(chunk.min(kept.len()));
        let content = std::mem::replace(&mut kept, rest);
        Some(Ok(row(&url, Value::str(content), status, headers.clone()).into()))
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;
    use crate::secrets::{SecretSource, Secrets};
    use crate::web::tests::Answering;

    fn allowed() -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).clock(Arc::new(crate::SystemClock::new()))
    }

    fn rows(environment: Environment, vql: &str) -> Vec<String> {
        let scope = environment.open();
        Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Two: a\r\nX-Two: b\r\n\r\nabcdef";

    #[test]
    fn answers_come_in_rows() {
        let server = Answering::start(vec![OK]);
        let vql = format!(
            "SELECT Content, Response, Headers.`X-Two` AS H FROM http_client(url='{}/p', params=dict(q=['1', 'a&b']), headers=dict(`X-One`='1'), user_agent='me', chunk_size=4)",
            server.url()
        );
        assert_eq!(
            rows(allowed(), &vql),
            [r#"{"Content":"abcd","Response":200,"H":["a","b"]}"#, r#"{"Content":"ef","Response":200,"H":["a","b"]}"#]
        );
        let heard = server.heard().remove(0);
        assert!(heard.starts_with("GET /p?q=1&q=a%26b HTTP/1.1\r\n"), "{heard}");
        assert!(heard.to_lowercase().contains("x-one: 1\r\n") && heard.to_lowercase().contains("user-agent: me\r\n"), "{heard}");
    }

    #[test]
    fn forms_data_and_files_are_sent() {
        let server = Answering::start(vec![OK, OK, OK]);
        let ask = |args: &str| rows(allowed(), &format!("SELECT Response FROM http_client(url='{}', {args})", server.url())).len();
        assert_eq!(ask("method='POST', params=dict(a='x y', b=2)"), 1);
        assert_eq!(ask("method='PUT', data='raw', headers=dict(`Content-Type`='text/plain')"), 1);
        assert_eq!(ask("params=dict(n='v'), files=dict(path='content', accessor='data', file='f.txt', key='up')"), 1);
        let heard = server.heard();
        assert!(heard[0].starts_with("POST / ") && heard[0].ends_with("\r\n\r\na=x+y&b=2"), "{}", heard[0]);
        assert!(heard[1].starts_with("PUT / ") && heard[1].contains("text/plain") && heard[1].ends_with("\r\n\r\nraw"), "{}", heard[1]);
        assert!(heard[2].starts_with("POST / ") && heard[2].contains("name=\"up\"; filename=\"f.txt\"\r\n"), "{}", heard[2]);
        assert!(heard[2].contains("\r\n\r\ncontent\r\n--talon-") && heard[2].contains("name=\"n\"\r\n\r\nv\r\n"), "{}", heard[2]);
    }

    #[test]
    fn redirects_are_followed_and_credentials_stay_home() {
        let there = Answering::start(vec![OK]);
        let moved = format!(
            "HTTP/1.1 302 Found\r\nLocation: {}/next\r\nSet-Cookie: here=1\r\nContent-Length: 0\r\n\r\n",
            there.url().replace("127.0.0.1", "localhost")
        );
        let here = Answering::start_with(vec![moved.into_bytes()]);
        let vql = format!(
            "SELECT Url, Response FROM http_client(url='{}', method='POST', data='x', headers=dict(Authorization='secret'), cookie_jar=dict(mine='2'))",
            here.url()
        );
        let answer = rows(allowed(), &vql);
        assert!(answer.len() == 1 && answer[0].contains("/next") && answer[0].contains("200"), "{answer:?}");
        assert!(here.heard()[0].contains("mine=2"));
        let heard = there.heard().remove(0);
        assert!(
            heard.starts_with("GET /next ") && !heard.contains("secret") && !heard.contains("mine=2") && !heard.contains("here=1"),
            "{heard}"
        );
    }

    #[test]
    fn compressed_answers_are_decoded_and_kept_in_files() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(b"content").unwrap();
        let packed = packed.finish().unwrap();
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", packed.len()).into_bytes();
        answer.extend(packed);
        let server = Answering::start_with(vec![answer]);
        let vql = format!(
            "SELECT read_file(filename=Content) AS C, Content =~ 'bin$' AS E FROM http_client(url='{}', tempfile_extension='.bin')",
            server.url()
        );
        assert_eq!(rows(allowed(), &vql), [r#"{"C":"content","E":true}"#]);
    }

    #[test]
    fn the_next_url_is_tried_and_failure_is_a_row() {
        let server = Answering::start(vec![OK]);
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let vql = format!("SELECT Response FROM http_client(url=['http://{closed}/', '{}'])", server.url());
        assert_eq!(rows(allowed(), &vql), [r#"{"Response":200}"#]);
        assert_eq!(
            rows(allowed(), &format!("SELECT Response, Content =~ 'connect' AS C FROM http_client(url='http://{closed}/')")),
            [r#"{"Response":500,"C":true}"#]
        );
        server.heard();
    }

    #[test]
    fn names_lead_where_the_query_says() {
        let server = Answering::start(vec![OK]);
        let port = server.url().rsplit_once(':').unwrap().1.to_owned();
        let vql = format!(
            "SELECT Response FROM http_client(url=if(condition=cache_dns(name='Host.invalid', ip='127.0.0.1'), then='http://host.invalid:{port}/'))"
        );
        assert_eq!(rows(allowed(), &vql), [r#"{"Response":200}"#]);
        assert!(server.heard()[0].to_lowercase().contains("host: host.invalid"));
    }

    #[test]
    fn a_server_that_says_nothing_does_not_hold_a_cancelled_query() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = talon_vql::CancelToken::new();
        let environment = allowed().cancel(cancel.clone());
        let canceller = std::thread::spawn(move || {
            let _held = listener.accept().unwrap();
            cancel.cancel("test");
        });
        assert!(rows(environment, &format!("SELECT * FROM http_client(url='http://{address}/')")).is_empty());
        canceller.join().unwrap();
    }

    struct OneSecret(String);

    impl SecretSource for OneSecret {
        fn secret(&self, _: &Scope, kind: &str, name: &str) -> Result<Secret, CallError> {
            assert_eq!((kind, name), (SECRETS, "S"));
            let fields = BTreeMap::from([("url_regex".to_owned(), format!("^{}", self.0))]);
            let maps = BTreeMap::from([("extra_headers".to_owned(), BTreeMap::from([("X-Key".to_owned(), "k".to_owned())]))]);
            Ok(Secret { fields, maps })
        }

        fn enforced(&self) -> bool {
            true
        }
    }

    #[test]
    fn secrets_go_only_where_they_may() {
        let server = Answering::start(vec![OK]);
        let log = Arc::new(MemoryLog::default());
        let environment = allowed().extension(Arc::new(Secrets(Arc::new(OneSecret(server.url().to_owned()))))).log(log.clone());
        let ask = |args: &str| rows(environment.clone(), &format!("SELECT Response FROM http_client({args})")).len();
        assert_eq!(ask("url='http://elsewhere.example/', secret='S'"), 0);
        assert_eq!(ask("url='http://elsewhere.example/'"), 0);
        assert_eq!(ask(&format!("url='{}', secret='S'", server.url())), 1);
        assert!(server.heard()[0].to_lowercase().contains("x-key: k"));
        assert!(log.take().iter().any(|line| line.contains("must use secrets is enforced, dropping url http://elsewhere.example/")));
    }

    #[test]
    fn without_the_permission_nobody_is_asked() {
        let log = Arc::new(MemoryLog::default());
        let environment = Environment::new(Arc::new(crate::registry())).log(log.clone());
        assert!(rows(environment, "SELECT * FROM http_client(url='http://127.0.0.1:1/')").is_empty());
        assert!(log.take().contains(&"http_client: PermissionDenied: Permission denied: [NETWORK]".to_owned()));
    }
}
