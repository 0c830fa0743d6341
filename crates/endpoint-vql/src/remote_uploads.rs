//! Files sent to storage of others: `upload_webdav()`, `upload_azure()`; and `rsyslog()`, which sends a line.

use std::io::Read;

use bytes::Bytes;
use md5::Digest;
use talon_acl::{Network, Permit};
use talon_ids::Permission;
use talon_transport::{SyslogSender, WebBody, WebRequest};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Signature, Value, text};

use crate::accessor::{self, FileReader};
use crate::authority::permit;
use crate::forward::basic;
use crate::web::{Trust, Web, patiently};

/// Bytes that are sent at one time.
const PIECE: usize = 64 << 10;
/// The most of an answer that is read.
const MAX_ANSWER: usize = 64 << 10;

const FILE: Arg = Arg::required("file", ArgType::Path, "The file.");
const NAME: Arg = Arg::optional("name", ArgType::String, "The name to store it under; that of the file unless given.");
const ACCESSOR: Arg = Arg::optional("accessor", ArgType::String, "The accessor that reads it.");

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("upload_webdav", "Sends a file to a WebDAV server.")
            .args(
                const {
                    &[
                        FILE,
                        NAME,
                        ACCESSOR,
                        Arg::required("url", ArgType::String, "The URL of the folder there."),
                        Arg::optional("basic_auth_user", ArgType::String, "The user."),
                        Arg::optional("basic_auth_password", ArgType::String, "The password."),
                        Arg::optional("noverifycert", ArgType::Bool, "The old name of skip_verify."),
                        Arg::optional("skip_verify", ArgType::Bool, "Accept any certificate."),
                        Arg::optional("user_agent", ArgType::String, "What the client calls itself."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemRead, Permission::Network])
            .version(2),
        webdav,
    );
    registry.function(
        Signature::function("upload_azure", "Sends a file to blob storage at Azure, of up to 5000 MiB.")
            .args(const { &[FILE, NAME, ACCESSOR, Arg::required("sas_url", ArgType::String, "The URL of the container, with its signature.")] })
            .permissions(&[Permission::FilesystemRead, Permission::Network]),
        azure,
    );
    registry.function(
        Signature::function("rsyslog", "Sends a line to a syslog server, as RFC 5424 says.")
            .args(
                const {
                    &[
                        Arg::required("hostname", ArgType::String, "The server."),
                        Arg::optional("port", ArgType::UInt, "Its port; 514 unless given."),
                        Arg::optional("protocol", ArgType::String, "udp unless given, or tcp, tls."),
                        Arg::required("message", ArgType::String, "The line."),
                        Arg::optional("facility", ArgType::Int, "0 to 23; 1, the user's, unless given."),
                        Arg::optional("severity", ArgType::Int, "0 to 7; 5, a notice, unless given."),
                        Arg::optional("timestamp", ArgType::Time, "The time of the event; now unless given."),
                        Arg::optional("source_hostname", ArgType::String, "The host of the event."),
                        Arg::optional("app_name", ArgType::String, "The program of the event."),
                        Arg::optional("proc_id", ArgType::String, "The process of the event."),
                        Arg::optional("sd_id", ArgType::String, "The name of the structured data."),
                        Arg::optional("args", ArgType::Dict, "The structured data."),
                        Arg::optional("root_ca", ArgType::String, "A further authority to trust, in PEM."),
                    ]
                },
            )
            .permissions(&[Permission::Network])
            .version(3),
        syslog,
    );
}

/// Sends the file that the call names with a PUT, and gives what `upload()` gives.
fn put(
    call: &Call,
    web: &Web,
    target: impl FnOnce(&str) -> Result<url::Url, CallError>,
    headers: Vec<(String, String)>,
) -> Result<Value, CallError> {
    let scope = call.scope();
    let accessor = accessor::named(scope, &call.string("accessor"))?;
    let path = call.path("file").ok_or("Field file is required")?;
    let size = accessor.stat_target(scope, &path)?.size;
    let name = call.opt_string("name").filter(|name| !name.is_empty()).unwrap_or_else(|| path.basename().to_str().into_owned());
    let url = target(&name)?.to_string();
    let (body, digests) = stream(accessor.open(scope, &path)?, size, scope.cancel_token().clone())?;
    let mut answer = web.send(WebRequest { method: "PUT".to_owned(), url, headers, body })?;
    let said = web.content(&mut answer, MAX_ANSWER)?;
    if !(200..300).contains(&answer.status) {
        return Err(CallError::failed(format!(
            "the server answered with status {}: {}",
            answer.status,
            String::from_utf8_lossy(&said).trim()
        )));
    }
    let (md5, sha256) = digests.recv().map_err(|_| "the file could not be read to its end")?;
    Ok(Dict::new()
        .with("Path", path.to_string())
        .with("Size", size)
        .with("StoredName", name)
        .with("sha256", sha256)
        .with("md5", md5)
        .into())
}

type Digests = std::sync::mpsc::Receiver<(String, String)>;

/// Reads the file on a thread of its own; the digests come when all was read.
fn stream(mut reader: Box<dyn FileReader>, length: u64, cancel: talon_vql::CancelToken) -> Result<(WebBody, Digests), CallError> {
    let (sender, pieces) = tokio::sync::mpsc::channel(4);
    let (done, digests) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name("vql upload".to_owned()).spawn(move || {
        let (mut md5, mut sha256, mut left) = (md5::Md5::new(), talon_crypto::Sha256::new(), length);
        while left > 0 && !cancel.is_cancelled() {
            let mut buffer = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
            let piece = match reader.read(&mut buffer) {
                Ok(0) => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent")),
                Ok(got) => {
                    buffer.truncate(got);
                    Ok(Bytes::from(buffer))
                }
                Err(error) => Err(error),
            };
            if let Ok(piece) = &piece {
                left = left.saturating_sub(piece.len() as u64);
                md5.update(piece);
                sha256.update(piece);
            }
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
        if left == 0 {
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            drop(done.send((hex(&md5.finalize()), hex(&sha256.finish()))));
        }
    })?;
    Ok((WebBody::Stream { length, pieces }, digests))
}

fn parsed(argument: &str, text: &str) -> Result<url::Url, CallError> {
    url::Url::parse(text).map_err(|error| CallError::failed(format!("{argument}: {error}")))
}

/// The URL with the components of `name` below it.
fn below(mut url: url::Url, name: &str) -> Result<url::Url, CallError> {
    let components = name.split('/').filter(|part| !matches!(*part, "" | "." | ".."));
    url.path_segments_mut().map_err(|()| "the URL must be that of a web server")?.pop_if_empty().extend(components);
    Ok(url)
}

fn webdav(call: Call) -> Result<Value, CallError> {
    let permit: Permit<Network> = permit(call.scope())?;
    let trust = Trust { skip_verify: call.bool("skip_verify") || call.bool("noverifycert"), ..Trust::default() };
    let web = Web::open(&permit, call.scope(), &trust)?;
    let mut headers = Vec::new();
    if let Some(user) = call.opt_string("basic_auth_user").filter(|user| !user.is_empty()) {
        headers.push(("Authorization".to_owned(), basic(&user, &call.string("basic_auth_password"))));
    }
    if let Some(agent) = call.opt_string("user_agent").filter(|agent| !agent.is_empty()) {
        headers.push(("User-Agent".to_owned(), agent));
    }
    let url = parsed("url", &call.string("url"))?;
    put(&call, &web, |name| below(url, name), headers)
}

fn azure(call: Call) -> Result<Value, CallError> {
    let permit: Permit<Network> = permit(call.scope())?;
    let web = Web::open(&permit, call.scope(), &Trust::default())?;
    let url = parsed("sas_url", &call.string("sas_url"))?;
    put(&call, &web, |name| below(url, name), vec![("x-ms-blob-type".to_owned(), "BlockBlob".to_owned())])
}

/// A field of the head of a line: printable ASCII of limited length, `-` when empty.
fn head_field(text: &str, most: usize) -> String {
    let field: String = text.chars().filter(char::is_ascii_graphic).take(most).collect();
    if field.is_empty() { "-".to_owned() } else { field }
}

fn line(call: &Call) -> Result<String, CallError> {
    let number = |name: &str, most: i64, default: i64| match call.opt_int(name) {
        None => Ok(default),
        Some(number) if (0..=most).contains(&number) => Ok(number),
        Some(_) => Err(CallError::failed(format!("{name} must be 0 to {most}"))),
    };
    let priority = number("facility", 23, 1)?.saturating_mul(8).saturating_add(number("severity", 7, 5)?);
    let time = call.time("timestamp").filter(|time| !time.is_zero()).unwrap_or_else(|| call.scope().now());
    // RFC 5424 knows microseconds at most.
    let time = talon_vql::Time::from_unix_nanos(time.unix_nanos().div_euclid(1000).saturating_mul(1000));
    let name = |text: &str| text.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '=' | ']' | '"')).take(32).collect::<String>();
    let pairs = call.dict("args").unwrap_or_default();
    let data = if pairs.is_empty() {
        "-".to_owned()
    } else {
        let id = name(&call.string("sd_id"));
        let mut data = format!("[{}", if id.is_empty() { "vql@32473" } else { &id });
        for (key, value) in pairs.iter() {
            let value = text::display(value).replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
            data.push_str(&format!(" {}=\"{value}\"", name(key.as_str())));
        }
        data + "]"
    };
    Ok(format!(
        "<{priority}>1 {time} {} {} {} - {data} {}",
        head_field(&call.string("source_hostname"), 255),
        head_field(&call.opt_string("app_name").unwrap_or_else(|| "talon".to_owned()), 48),
        head_field(&call.string("proc_id"), 128),
        call.string("message").replace(['\r', '\n'], " ")
    ))
}

fn syslog(call: Call) -> Result<Value, CallError> {
    let permit: Permit<Network> = permit(call.scope())?;
    let line = line(&call)?;
    let host = call.string("hostname");
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
    let address = format!("{host}:{}", call.opt_uint("port").filter(|port| *port != 0).unwrap_or(514));
    let protocol = match call.string("protocol").to_ascii_lowercase().as_str() {
        known @ ("" | "udp" | "tcp" | "tls") => known.parse().map_err(CallError::failed)?,
        other => return Err(CallError::failed(format!("protocol {other:?} is not known; it can be udp, tcp or tls"))),
    };
    let failed = |error: talon_transport::TransportError| CallError::failed(error.with_causes());
    let mut sender = SyslogSender::new(&address, protocol, &call.string("root_ca")).map_err(failed)?;
    if line.len() > sender.limit() {
        return Err(CallError::failed(format!("the line is longer than {} bytes", sender.limit())));
    }
    patiently(&permit, call.scope(), "vql syslog", move || sender.send(line.as_bytes()).map_err(failed))?;
    Ok(Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, Query, json, parse_statement};

    use crate::web::tests::Answering;

    fn value(expression: &str) -> String {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let environment = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority);
        let scope = environment.clock(Arc::new(crate::SystemClock::new())).open();
        let row = Query::new(&scope, &parse_statement(&format!("SELECT {expression} AS X FROM scope()")).unwrap()).next().unwrap();
        json::encode(row.get("X").unwrap())
    }

    #[test]
    fn files_are_put() {
        let server =
            Answering::start(vec!["HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 403 No\r\nContent-Length: 4\r\n\r\nnope"]);
        let call = format!(
            "upload_webdav(file='abc', accessor='data', name='../x y', url='{}/dav/', basic_auth_user='u', basic_auth_password='p').sha256",
            server.url()
        );
        assert_eq!(value(&call), "\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"");
        assert_eq!(value(&format!("upload_azure(file='abc', accessor='data', name='b', sas_url='{}/c?sig=1')", server.url())), "null");
        let heard = server.heard();
        assert!(
            heard[0].starts_with("PUT /dav/x%20y HTTP/1.1\r\n")
                && heard[0].contains("uthorization: Basic dTpw\r\n")
                && heard[0].ends_with("\r\n\r\nabc"),
            "{heard:?}"
        );
        assert!(
            heard[1].starts_with("PUT /c/b?sig=1 HTTP/1.1\r\n") && heard[1].to_lowercase().contains("x-ms-blob-type: blockblob"),
            "{heard:?}"
        );
    }

    #[test]
    fn a_line_arrives() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let call = format!(
            "rsyslog(hostname='127.0.0.1', port={port}, message='one\ntwo', facility=4, severity=2, timestamp=1000000000, source_hostname='h', app_name='a b', sd_id='x', args=dict(k='v\"]'))"
        );
        assert_eq!(value(&call), "true");
        let mut buffer = [0; 1024];
        let got = socket.recv(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..got]), "<34>1 2001-09-09T01:46:40Z h ab - - [x k=\"v\\\"\\]\"] one two");
        assert_eq!(value("rsyslog(hostname='127.0.0.1', message='x', facility=24)"), "null");
    }
}
