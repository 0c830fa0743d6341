//! `link_to`: where something is shown to people.

use talon_vql::{Arg, ArgType, Call, CallError, Registry, Signature, Value};

use crate::access::session;

const LINK_TO: Signature = Signature::function("link_to", "Gives a link to a page about something, in Markdown.")
    .args(&[
        Arg::optional(
            "type",
            ArgType::String,
            "`client`, `collection`, `hunt`, `artifact`, `event` or `notebook`; what is given decides when left out.",
        ),
        Arg::optional("client_id", ArgType::String, "The client."),
        Arg::optional("flow_id", ArgType::String, "The flow."),
        Arg::optional("upload", ArgType::Dict, "Accepted and without effect."),
        Arg::optional("tab", ArgType::String, "The part of the page."),
        Arg::optional("text", ArgType::String, "What the link says; the id when left out."),
        Arg::optional("hunt_id", ArgType::String, "The hunt."),
        Arg::optional("notebook_id", ArgType::String, "The notebook."),
        Arg::optional("artifact", ArgType::String, "The artifact."),
        Arg::optional("parameters", ArgType::Dict, "Accepted and without effect."),
        Arg::optional("raw", ArgType::Bool, "Gives the address alone."),
        Arg::optional("org", ArgType::String, "The organisation; the query's own when left out."),
    ])
    .version(3);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(LINK_TO, link_to);
}

fn link_to(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let [client, flow, hunt, notebook, artifact] =
        ["client_id", "flow_id", "hunt_id", "notebook_id", "artifact"].map(|name| call.string(name));
    let kind = match call.string("type") {
        kind if !kind.is_empty() => kind,
        _ if !flow.is_empty() => "collection".into(),
        _ if !hunt.is_empty() => "hunt".into(),
        _ if !notebook.is_empty() => "notebook".into(),
        _ if !artifact.is_empty() => "artifact".into(),
        _ => "client".into(),
    };
    let (parts, name) = match kind.as_str() {
        "client" => (vec!["host", &client], &client),
        "collection" => (vec!["collected", &client, &flow], &flow),
        "hunt" => (vec!["hunts", &hunt], &hunt),
        "notebook" => (vec!["notebooks", &notebook], &notebook),
        "artifact" => (vec!["artifacts", &artifact], &artifact),
        "event" => (vec!["events", &client, &artifact], &artifact),
        other => return Err(CallError::failed(format!("there is no page for {other}"))),
    };
    if name.is_empty() {
        return Err(CallError::failed(format!("the id of the {kind} is missing")));
    }
    let tab = call.string("tab");
    let path: Vec<String> = parts.into_iter().chain((!tab.is_empty()).then_some(tab.as_str())).map(escaped).collect();
    let org = call.string("org");
    let org = if org.is_empty() { session.org().id().to_string() } else { org };
    let base = session.server().settings().public_url.trim_end_matches('/');
    let url = format!("{base}?org_id={}#/{}", escaped(&org), path.join("/"));
    if call.bool("raw") {
        return Ok(Value::str(url));
    }
    let text = call.string("text");
    let text = if text.is_empty() { name.as_str() } else { text.as_str() };
    Ok(Value::str(format!("[{}]({url})", text.replace(['[', ']'], "_"))))
}

/// A part of an address that cannot become more than one part.
fn escaped(part: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    part.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
