//! A local HTTP server that echoes requests, for cases that need somebody to talk to.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::OnceLock;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use talon_vql::CallError;

/// The port that cases expect; another one when it is taken.
const PORT: u16 = 8006;
/// The largest body that is echoed.
const MOST: usize = 1 << 20;

/// The server, started at its first use.
#[derive(Default)]
pub(super) struct Echo(OnceLock<Result<String, String>>);

impl Echo {
    /// Its address, as a URL without path.
    pub(super) fn address(&self) -> Result<String, CallError> {
        let started = self.0.get_or_init(|| start().map_err(|error| format!("cannot start a local HTTP server: {error}")));
        started.clone().map_err(CallError::Failed)
    }
}

fn start() -> io::Result<String> {
    let local = Ipv4Addr::LOCALHOST;
    let listener = std::net::TcpListener::bind((local, PORT)).or_else(|_| std::net::TcpListener::bind((local, 0)))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("httpbin".to_owned()).spawn(move || runtime.block_on(serve(listener)))?;
    Ok(format!("http://{address}"))
}

async fn serve(listener: std::net::TcpListener) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service_fn(answer));
            // The other side has gone when this fails.
            drop(connection.await);
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MOST).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let status = head.uri.path().strip_prefix("/status/").and_then(|code| code.parse().ok()).unwrap_or(StatusCode::OK);
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes).into_owned());
    let headers: Map<String, Value> = head.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
    let host = headers.get("host").and_then(Value::as_str).unwrap_or_default();
    let echo = json!({
        "method": head.method.as_str(),
        "url": format!("http://{host}{}", head.uri),
        "args": arguments(head.uri.query().unwrap_or_default()),
        "data": text(&body),
        "json": serde_json::from_slice::<Value>(&body).unwrap_or_default(),
        "headers": headers,
    });
    let mut response = Response::new(Full::new(Bytes::from(echo.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The parameters of a query string, undecoded.
fn arguments(query: &str) -> Map<String, Value> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(name, value)| (name.to_owned(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn requests_come_back() {
        let address = Echo::default().address().unwrap();
        let mut stream = std::net::TcpStream::connect(address.strip_prefix("http://").unwrap()).unwrap();
        stream.write_all(b"POST /anything?a=b&c HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 7\r\n\r\n{\"x\":1}").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["method"], "POST");
        assert_eq!(body["url"], "http://h/anything?a=b&c");
        assert_eq!(body["args"], json!({"a": "b", "c": ""}));
        assert_eq!(body["json"], json!({"x": 1}));
        assert_eq!(body["headers"]["content-length"], "7");
    }
}
