//! `collect_client`, `cancel_flow`.

use talon_proto::{ArtifactCollectorArgs, ArtifactCollectorResponse, ArtifactParameters, ArtifactSpec, VqlEnv};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Signature, Value, json};

use crate::access::{failed, flow, session, target};
use crate::message::to_dict;

const COLLECT_CLIENT: Signature = Signature::function("collect_client", "Schedules a collection on a client.")
    .args(&[
        Arg::required("client_id", ArgType::String, "The client."),
        Arg::required("artifacts", ArgType::Strings, "The artifacts to collect."),
        Arg::optional("env", ArgType::Dict, "Parameters of the artifacts."),
        Arg::optional("spec", ArgType::Dict, "Parameters by artifact, in place of `env`."),
        Arg::optional("timeout", ArgType::UInt, "Seconds after which the collection fails."),
        Arg::optional("ops_per_sec", ArgType::Float, "Operations a second, the old form of a CPU limit."),
        Arg::optional("cpu_limit", ArgType::Float, "Percent of a CPU."),
        Arg::optional("iops_limit", ArgType::Float, "I/O operations a second."),
        Arg::optional("max_rows", ArgType::UInt, "Rows after which the collection fails."),
        Arg::optional("max_bytes", ArgType::UInt, "Bytes of uploads after which the collection fails."),
        Arg::optional("urgent", ArgType::Bool, "Whether it goes before others."),
        Arg::optional("org_id", ArgType::String, "The organisation; the query's own when left out."),
    ])
    .version(3);

const CANCEL_FLOW: Signature = Signature::function("cancel_flow", "Cancels a collection.")
    .args(&[Arg::required("client_id", ArgType::String, "The client."), Arg::required("flow_id", ArgType::String, "The flow.")])
    .version(3);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(COLLECT_CLIENT, collect_client);
    registry.function(CANCEL_FLOW, cancel_flow);
}

fn collect_client(call: Call) -> Result<Value, CallError> {
    let mut session = session(call.scope())?.as_ref().clone();
    if let Some(org) = call.opt_string("org_id").filter(|org| !org.is_empty()) {
        session = session.in_org(&org.parse().map_err(CallError::failed)?).map_err(failed)?;
    }
    let artifacts = call.strings("artifacts");
    let (env, spec) = (call.dict("env"), call.dict("spec"));
    let mut specs = Vec::new();
    for artifact in &artifacts {
        let own = spec.as_ref().and_then(|spec| spec.get(artifact)).and_then(Value::as_dict);
        let parameters = own.or(env.as_ref()).map(|parameters| variables(parameters)).unwrap_or_default();
        specs.push(ArtifactSpec {
            artifact: artifact.clone(),
            parameters: Some(ArtifactParameters { env: parameters }),
            ..ArtifactSpec::default()
        });
    }
    #[allow(clippy::cast_possible_truncation)]
    let float = |name| call.opt_float(name).unwrap_or(0.0) as f32;
    let request = ArtifactCollectorArgs {
        client_id: call.string("client_id"),
        artifacts,
        specs,
        timeout: call.uint("timeout"),
        ops_per_second: float("ops_per_sec"),
        cpu_limit: float("cpu_limit"),
        iops_limit: float("iops_limit"),
        max_rows: call.uint("max_rows"),
        max_upload_bytes: call.uint("max_bytes"),
        urgent: call.bool("urgent"),
        ..ArtifactCollectorArgs::default()
    };
    let (flow, request) = session.collect(request).map_err(failed)?;
    let response = ArtifactCollectorResponse { flow_id: flow.to_string(), request: Some(request) };
    Ok(Value::Dict(to_dict("ArtifactCollectorResponse", &response)?.into()))
}

/// Parameters travel as text: numbers and structures as JSON has them, truth as `Y` and `N`.
pub(crate) fn variables(parameters: &Dict) -> Vec<VqlEnv> {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::Bool(flag) => if *flag { "Y" } else { "N" }.to_owned(),
        Value::Str(text) => text.to_str().into_owned(),
        other => json::encode(other),
    };
    parameters.iter().map(|(key, value)| VqlEnv { key: key.to_string(), value: text(value), comment: String::new() }).collect()
}

fn cancel_flow(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let (target, flow) = (target(&session, &call.string("client_id"))?, flow(&call.string("flow_id"))?);
    session.cancel(&target, &flow, "Cancelled by VQL query").map_err(failed)?;
    Ok(Value::Dict(Dict::new().with("flow_id", flow.as_str()).into()))
}
