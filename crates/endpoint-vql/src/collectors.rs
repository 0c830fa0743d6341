//! Systems that take events over HTTP: `elastic_upload()`, `splunk_upload()`, `logscale_upload()`.

use bytes::Bytes;
use talon_acl::{Network, Permit};
use talon_ids::Permission;
use talon_transport::WebRequest;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value, json, moment, text};

use crate::authority::permit;
use crate::forward::{self, Batching, Receiving, basic, post};
use crate::secrets::{self, Secret};
use crate::web::{Trust, Web};

const QUERY: Arg = Arg::required("query", ArgType::Query, "Where rows come from.");
const THREADS: Arg = Arg::optional("threads", ArgType::Int, "Not used: one connection keeps rows in order.");
const CHUNK: Arg = Arg::optional("chunk_size", ArgType::Int, "Rows in one request; 1000 unless given.");
const WAIT: Arg = Arg::optional("wait_time", ArgType::Int, "Seconds that a row waits for others; 2 unless given.");
const SKIP: Arg = Arg::optional("skip_verify", ArgType::Bool, "Accept any certificate.");
const ROOT: Arg = Arg::optional("root_ca", ArgType::String, "A further authority to trust, in PEM.");

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("elastic_upload", "Sends rows to Elasticsearch, in bulk.")
            .args(
                const {
                    &[
                        QUERY,
                        THREADS,
                        Arg::optional("index", ArgType::String, "The index; the column _index comes before it."),
                        Arg::optional("type", ArgType::String, "The type of document, for servers that still have types."),
                        CHUNK,
                        Arg::optional("addresses", ArgType::Strings, "URLs of the servers; the next is tried when one cannot be reached."),
                        Arg::optional("username", ArgType::String, "The user."),
                        Arg::optional("password", ArgType::String, "The password."),
                        Arg::optional("cloud_id", ArgType::String, "The id of a deployment at Elastic, instead of addresses."),
                        Arg::optional("api_key", ArgType::String, "An API key, instead of a user."),
                        WAIT,
                        Arg::optional("pipeline", ArgType::String, "The ingest pipeline."),
                        Arg::optional("disable_ssl_security", ArgType::Bool, "The old name of skip_verify."),
                        SKIP,
                        ROOT,
                        Arg::optional("max_memory_buffer", ArgType::UInt, "Not used: at most 10 MiB wait to be sent."),
                        Arg::optional("action", ArgType::String, "index unless given, or create for data streams."),
                        Arg::optional("secret", ArgType::String, "The secret that has the addresses and the credentials."),
                    ]
                },
            )
            .permissions(&[Permission::Network])
            .version(2),
        elastic,
    );
    registry.plugin(
        Signature::plugin("splunk_upload", "Sends rows to an HTTP event collector of Splunk.")
            .args(
                const {
                    &[
                        QUERY,
                        THREADS,
                        Arg::optional("url", ArgType::String, "The URL of the collector."),
                        Arg::optional("token", ArgType::String, "The token of the collector."),
                        Arg::optional("index", ArgType::String, "The index."),
                        Arg::optional("source", ArgType::String, "The source."),
                        Arg::optional("sourcetype", ArgType::String, "The source type; vql unless given."),
                        CHUNK,
                        SKIP,
                        ROOT,
                        WAIT,
                        Arg::optional("hostname", ArgType::String, "The host of all events; this program's unless given."),
                        Arg::optional("timestamp_field", ArgType::String, "The column with the time of an event."),
                        Arg::optional("hostname_field", ArgType::String, "The column with the host of an event."),
                        Arg::optional("secret", ArgType::String, "The secret that has the URL and the token."),
                        Arg::optional("max_retries", ArgType::Int, "How often a request is sent again; 4 unless given."),
                        Arg::optional("retry_wait", ArgType::Int, "Not used: pauses grow from half a second."),
                        Arg::optional("idle_conn_timeout", ArgType::Int, "Not used."),
                    ]
                },
            )
            .permissions(&[Permission::Network])
            .version(2),
        splunk,
    );
    registry.plugin(
        Signature::plugin("logscale_upload", "Sends rows to LogScale as structured events.")
            .args(
                const {
                    &[
                        QUERY,
                        Arg::required("apibaseurl", ArgType::String, "The base URL of the ingest API, such as https://cloud.example/api."),
                        Arg::required("ingest_token", ArgType::String, "The ingest token."),
                        THREADS,
                        Arg::optional("http_timeout", ArgType::Int, "Not used: a silent server is given up after a minute."),
                        Arg::optional("max_retries", ArgType::Int, "How often a request is sent again; 4 unless given."),
                        ROOT,
                        SKIP,
                        Arg::optional("batching_timeout_ms", ArgType::Int, "Milliseconds that a row waits for others; 2000 unless given."),
                        Arg::optional("event_batch_size", ArgType::Int, "Rows in one request; 1000 unless given."),
                        Arg::optional("tag_fields", ArgType::Strings, "Columns that are tags: NAME, or NAME=TAG for another name."),
                        Arg::optional("stats_interval", ArgType::Int, "Not used."),
                        Arg::optional("debug", ArgType::Bool, "Not used."),
                    ]
                },
            )
            .permissions(&[Permission::Network]),
        logscale,
    );
}

/// An argument, or else a field of the secret.
fn given(call: &Call, secret: &Secret, name: &str) -> String {
    call.opt_string(name).filter(|value| !value.is_empty()).or_else(|| secret.text(name).map(str::to_owned)).unwrap_or_default()
}

fn open(call: &Call, secret: &Secret) -> Result<Web, CallError> {
    let permit: Permit<Network> = permit(call.scope())?;
    let skip_verify = call.bool("skip_verify") || call.bool("disable_ssl_security") || secret.flag("skip_verify");
    Web::open(&permit, call.scope(), &Trust { skip_verify, root_ca: given(call, secret, "root_ca") })
}

fn no_column(row: &Dict, dropped: &[&str]) -> Dict {
    row.iter().filter(|(name, _)| !dropped.contains(&name.as_str())).map(|(name, value)| (name.clone(), value.clone())).collect()
}

struct Elastic {
    urls: Vec<String>,
    authorization: Option<String>,
    index: String,
    kind: String,
    action: String,
}

fn elastic(call: Call) -> Result<Rows, CallError> {
    let secret = secrets::of_call(&call, "Elastic Creds")?.unwrap_or_default();
    let mut addresses = call.strings("addresses");
    if addresses.is_empty() {
        let lines = secret.text("addresses").unwrap_or_default().lines().map(str::trim);
        addresses.extend(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
    }
    let cloud = given(&call, &secret, "cloud_id");
    if !cloud.is_empty() {
        addresses = vec![cloud_address(&cloud)?];
    }
    if addresses.is_empty() {
        return Err("addresses or cloud_id must say where Elasticsearch is".into());
    }
    let pipeline = given(&call, &secret, "pipeline");
    let urls = addresses.iter().map(|address| bulk_url(address, &pipeline)).collect::<Result<Vec<_>, _>>()?;
    let (key, user, password) = (given(&call, &secret, "api_key"), given(&call, &secret, "username"), given(&call, &secret, "password"));
    let authorization = match (key.is_empty(), user.is_empty()) {
        (false, _) => Some(format!("ApiKey {key}")),
        (true, false) => Some(basic(&user, &password)),
        (true, true) => None,
    };
    let action = given(&call, &secret, "action");
    let action = if action.is_empty() { "index".to_owned() } else { action };
    if !matches!(action.as_str(), "index" | "create") {
        return Err("action can be index or create".into());
    }
    let elastic =
        Elastic { urls, authorization, index: given(&call, &secret, "index").to_lowercase(), kind: given(&call, &secret, "type"), action };
    forward::rows(&call, open(&call, &secret)?, Batching::of(&call), elastic)
}

fn bulk_url(address: &str, pipeline: &str) -> Result<String, CallError> {
    let mut url = url::Url::parse(address).map_err(|error| CallError::failed(format!("addresses: {error}")))?;
    url.path_segments_mut().map_err(|()| "addresses must be URLs of web servers")?.pop_if_empty().push("_bulk");
    if !pipeline.is_empty() {
        url.query_pairs_mut().append_pair("pipeline", pipeline);
    }
    Ok(url.into())
}

/// `name:base64(host$id$…)`: where a deployment at Elastic is.
fn cloud_address(id: &str) -> Result<String, CallError> {
    use base64::Engine as _;
    let wrong = || CallError::from("cloud_id is not the id of a deployment");
    let (_, code) = id.rsplit_once(':').ok_or_else(wrong)?;
    let text =
        base64::engine::general_purpose::STANDARD.decode(code).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
    let mut parts = text.split('$');
    let (host, deployment) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if host.is_empty() || deployment.is_empty() {
        return Err(wrong());
    }
    let (host, port) = host.split_once(':').unwrap_or((host, "443"));
    Ok(format!("https://{deployment}.{host}:{port}/"))
}

impl Receiving for Elastic {
    fn append(&mut self, row: &Dict, body: &mut Vec<u8>) -> Result<(), CallError> {
        let own = |name: &str| row.get(name).map(text::display).filter(|text| !text.is_empty());
        let index = own("_index").map_or_else(|| self.index.clone(), |index| index.to_lowercase());
        if index.is_empty() {
            return Err("a row has no column _index, and the argument index is not given".into());
        }
        let mut target = Dict::new().with("_index", index);
        if !self.kind.is_empty() {
            target.set("_type", self.kind.as_str());
        }
        if let Some(id) = own("_id") {
            target.set("_id", id);
        }
        let encoder = json::Encoder::default();
        encoder.line(body, &Dict::new().with(self.action.clone(), target));
        encoder.line(body, &no_column(row, &["_index", "_id"]));
        Ok(())
    }

    fn request(&self, body: Bytes, attempt: u32) -> WebRequest {
        let at = usize::try_from(attempt).unwrap_or(0).checked_rem(self.urls.len()).unwrap_or(0);
        let url = self.urls.get(at).cloned().unwrap_or_default();
        post(url, "application/x-ndjson", self.authorization.as_deref(), body)
    }
}

struct Splunk {
    url: String,
    token: String,
    /// What is the same for all events.
    same: Dict,
    time_column: Option<String>,
    host_column: Option<String>,
    scope: talon_vql::Scope,
}

fn splunk(call: Call) -> Result<Rows, CallError> {
    let secret = secrets::of_call(&call, "Splunk Creds")?.unwrap_or_default();
    let url = given(&call, &secret, "url");
    let mut url = url::Url::parse(&url).map_err(|error| CallError::failed(format!("url: {error}")))?;
    if url.path().trim_end_matches('/').is_empty() {
        url.set_path("/services/collector/event");
    }
    let mut same = Dict::new();
    for (key, name, default) in
        [("index", "index", ""), ("source", "source", ""), ("sourcetype", "sourcetype", "vql"), ("host", "hostname", "")]
    {
        let value = given(&call, &secret, name);
        let value = if value.is_empty() { default.to_owned() } else { value };
        if !value.is_empty() {
            same.set(key, value);
        }
    }
    let column = |name: &str| Some(given(&call, &secret, name)).filter(|name| !name.is_empty());
    let splunk = Splunk {
        url: url.into(),
        token: given(&call, &secret, "token"),
        same,
        time_column: column("timestamp_field"),
        host_column: column("hostname_field"),
        scope: call.scope().clone(),
    };
    forward::rows(&call, open(&call, &secret)?, Batching::of(&call), splunk)
}

impl Receiving for Splunk {
    fn append(&mut self, row: &Dict, body: &mut Vec<u8>) -> Result<(), CallError> {
        let mut event = self.same.clone();
        if let Some(host) = self.host_column.as_ref().and_then(|name| row.get(name)).filter(|host| !host.is_null()) {
            event.update("host", text::display(host));
        }
        let time = self.time_column.as_ref().and_then(|name| row.get(name)).and_then(|value| moment(value, &self.scope));
        let nanos = time.unwrap_or_else(|| self.scope.now()).unix_nanos();
        event.set("time", nanos as f64 / 1e9);
        event.set("event", row.clone());
        json::Encoder::default().line(body, &event);
        Ok(())
    }

    fn request(&self, body: Bytes, _: u32) -> WebRequest {
        post(self.url.clone(), "application/json", Some(&format!("Splunk {}", self.token)), body)
    }
}

struct LogScale {
    url: String,
    token: String,
    /// Columns and the names of their tags.
    tags: Vec<(String, String)>,
    scope: talon_vql::Scope,
}

fn logscale(call: Call) -> Result<Rows, CallError> {
    let base = call.string("apibaseurl");
    let url = format!("{}/v1/ingest/humio-structured", base.trim_end_matches('/'));
    let tags = call.strings("tag_fields").into_iter().map(|tag| match tag.split_once('=') {
        Some((column, name)) => (column.to_owned(), name.to_owned()),
        None => (tag.clone(), tag),
    });
    let mut batching = Batching::of(&call);
    if let Some(rows) = call.opt_int("event_batch_size").and_then(|rows| usize::try_from(rows).ok()).filter(|rows| *rows > 0) {
        batching.chunk = rows;
    }
    if let Some(millis) = call.opt_int("batching_timeout_ms").filter(|millis| *millis > 0) {
        batching.wait = std::time::Duration::from_millis(millis.unsigned_abs());
    }
    let logscale = LogScale { url, token: call.string("ingest_token"), tags: tags.collect(), scope: call.scope().clone() };
    forward::rows(&call, open(&call, &Secret::default())?, batching, logscale)
}

impl Receiving for LogScale {
    fn append(&mut self, row: &Dict, body: &mut Vec<u8>) -> Result<(), CallError> {
        let tagged = |(column, tag): &(String, String)| Some((tag.clone(), Value::from(text::display(row.get(column)?))));
        let tags: Dict = self.tags.iter().filter_map(tagged).collect();
        let time = ["timestamp", "Timestamp", "_ts"].iter().find_map(|name| moment(row.get(name)?, &self.scope));
        let time = time.filter(|time| !time.is_zero()).unwrap_or_else(|| self.scope.now());
        let event = Dict::new().with("timestamp", time.to_string()).with("attributes", row.clone());
        body.extend_from_slice(if body.is_empty() { b"[" } else { b"," });
        body.extend_from_slice(json::encode(&Dict::new().with("tags", tags).with("events", Value::list([event])).into()).as_bytes());
        Ok(())
    }

    fn request(&self, body: Bytes, _: u32) -> WebRequest {
        post(self.url.clone(), "application/json", Some(&format!("Bearer {}", self.token)), body)
    }

    fn finish(&self, mut body: Vec<u8>) -> Vec<u8> {
        body.push(b']');
        body
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, parse_statement};

    use super::*;
    use crate::web::tests::Answering;

    fn rows(environment: Environment, vql: &str) -> Vec<String> {
        let scope = environment.open();
        Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    fn allowed() -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).clock(Arc::new(crate::SystemClock::new()))
    }

    const BUSY: &str = "HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"errors\":false}";

    #[test]
    fn elastic_gets_bulks_in_order_and_again_when_it_was_busy() {
        let server = Answering::start(vec![BUSY, OK, OK]);
        let vql = format!(
            "SELECT StatusCode, Response.errors AS E, Rows FROM elastic_upload(query={{ SELECT _value AS A, if(condition=_value = 2, then='Own', else='') AS _index FROM range(end=3) }}, index='Events', addresses='{}', chunk_size=2, api_key='k', pipeline='p')",
            server.url()
        );
        assert_eq!(rows(allowed(), &vql), [r#"{"StatusCode":200,"E":false,"Rows":2}"#, r#"{"StatusCode":200,"E":false,"Rows":1}"#]);
        let heard = server.heard();
        assert_eq!(heard[0], heard[1]);
        assert!(
            heard[1].starts_with("POST /_bulk?pipeline=p HTTP/1.1\r\n") && heard[1].contains("uthorization: ApiKey k\r\n"),
            "{}",
            heard[1]
        );
        let body = "{\"index\":{\"_index\":\"events\"}}\n{\"A\":0}\n{\"index\":{\"_index\":\"events\"}}\n{\"A\":1}\n";
        assert!(heard[1].ends_with(&format!("\r\n\r\n{body}")), "{}", heard[1]);
        assert!(heard[2].ends_with("\r\n\r\n{\"index\":{\"_index\":\"own\"}}\n{\"A\":2}\n"), "{}", heard[2]);
    }

    #[test]
    fn splunk_and_logscale_get_their_forms() {
        let server = Answering::start(vec![OK, OK]);
        let query = "query={ SELECT 1000000000 AS T, 'h1' AS H, 'x' AS A FROM scope() }";
        let splunk = format!(
            "SELECT Rows FROM splunk_upload({query}, url='{}', token='t', index='i', timestamp_field='T', hostname_field='H')",
            server.url()
        );
        assert_eq!(rows(allowed(), &splunk), [r#"{"Rows":1}"#]);
        let logscale =
            format!("SELECT Rows FROM logscale_upload({query}, apibaseurl='{}/api/', ingest_token='t', tag_fields='H=host')", server.url());
        assert_eq!(rows(allowed(), &logscale), [r#"{"Rows":1}"#]);
        let heard = server.heard();
        assert!(heard[0].starts_with("POST /services/collector/event ") && heard[0].contains("Splunk t\r\n"), "{}", heard[0]);
        assert!(heard[0].ends_with("{\"index\":\"i\",\"sourcetype\":\"vql\",\"host\":\"h1\",\"time\":1000000000,\"event\":{\"T\":1000000000,\"H\":\"h1\",\"A\":\"x\"}}\n"), "{}", heard[0]);
        assert!(heard[1].starts_with("POST /api/v1/ingest/humio-structured ") && heard[1].contains("Bearer t\r\n"), "{}", heard[1]);
        assert!(
            heard[1].contains("[{\"tags\":{\"host\":\"h1\"},\"events\":[{\"timestamp\":") && heard[1].ends_with("}]}]"),
            "{}",
            heard[1]
        );
    }

    #[test]
    fn the_id_of_a_cloud_names_its_address() {
        use base64::Engine as _;
        let code = base64::engine::general_purpose::STANDARD.encode("eu.example.org:9243$abc$def");
        assert_eq!(cloud_address(&format!("name:{code}")).unwrap(), "https://abc.eu.example.org:9243/");
        assert!(cloud_address("name").is_err() && cloud_address("name:!").is_err());
    }

    #[test]
    fn without_the_permission_nothing_leaves() {
        let log = Arc::new(MemoryLog::default());
        for call in [
            "elastic_upload(query={ SELECT 1 FROM scope() }, addresses='http://127.0.0.1:1')",
            "splunk_upload(query={ SELECT 1 FROM scope() }, url='http://127.0.0.1:1')",
            "logscale_upload(query={ SELECT 1 FROM scope() }, apibaseurl='http://127.0.0.1:1', ingest_token='t')",
        ] {
            assert!(rows(Environment::new(Arc::new(crate::registry())).log(log.clone()), &format!("SELECT * FROM {call}")).is_empty());
        }
        assert_eq!(log.take().iter().filter(|line| line.contains("Permission denied: [NETWORK]")).count(), 3);
    }
}
