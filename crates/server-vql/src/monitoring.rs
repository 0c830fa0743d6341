//! The client event table: `get_client_monitoring`, `set_client_monitoring`, `add_client_monitoring`, `rm_client_monitoring`.

use talon_ids::Permission;
use talon_proto::{ArtifactCollectorArgs, ArtifactParameters, ArtifactSpec, ClientEventTable, LabelEvents, VqlEnv};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Signature, Value};

use crate::access::{failed, session};
use crate::collect::variables;
use crate::message::to_dict;

const GET: Signature =
    Signature::function("get_client_monitoring", "Gives the client event table.").permissions(&[Permission::ReadResults]);

const SET: Signature = Signature::function("set_client_monitoring", "Replaces the client event table.")
    .args(&[Arg::required("value", ArgType::Any, "The table, in the form that `get_client_monitoring` gives.")])
    .permissions(&[Permission::CollectClient]);

const ADD: Signature = Signature::function("add_client_monitoring", "Adds an artifact to the client event table.")
    .args(&[
        Arg::required("artifact", ArgType::String, "The client event artifact."),
        Arg::optional("parameters", ArgType::Dict, "Its parameters."),
        Arg::optional("label", ArgType::String, "Only clients with this label run it."),
    ])
    .permissions(&[Permission::CollectClient]);

const RM: Signature = Signature::function("rm_client_monitoring", "Takes an artifact out of the client event table.")
    .args(&[
        Arg::required("artifact", ArgType::String, "The artifact."),
        Arg::optional("label", ArgType::String, "Only for clients with this label."),
    ])
    .permissions(&[Permission::CollectClient]);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(GET, get);
    registry.function(SET, set);
    registry.function(ADD, add);
    registry.function(RM, rm);
}

fn get(call: Call) -> Result<Value, CallError> {
    let table = session(call.scope())?.org().monitoring_table();
    Ok(Value::Dict(to_dict("ClientEventTable", &table)?.into()))
}

fn set(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let value = call.value("value");
    let table = value.as_dict().ok_or_else(|| CallError::failed("value must be a table"))?;
    session.set_monitoring(table_of(table)).map_err(failed)?;
    get(call)
}

fn add(call: Call) -> Result<Value, CallError> {
    change(call, |artifacts, artifact, parameters| {
        artifacts.artifacts.retain(|name| *name != artifact);
        artifacts.specs.retain(|spec| spec.artifact != artifact);
        artifacts.specs.push(ArtifactSpec { artifact: artifact.clone(), parameters: Some(parameters), ..ArtifactSpec::default() });
        artifacts.artifacts.push(artifact);
    })
}

fn rm(call: Call) -> Result<Value, CallError> {
    change(call, |artifacts, artifact, _| {
        artifacts.artifacts.retain(|name| *name != artifact);
        artifacts.specs.retain(|spec| spec.artifact != artifact);
    })
}

fn change(call: Call, change: impl FnOnce(&mut ArtifactCollectorArgs, String, ArtifactParameters)) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let parameters = ArtifactParameters { env: call.dict("parameters").map(|given| variables(&given)).unwrap_or_default() };
    let (artifact, label) = (call.string("artifact"), call.string("label"));
    let mut table = session.org().monitoring_table();
    if label.is_empty() {
        change(table.artifacts.get_or_insert_default(), artifact, parameters);
    } else {
        let at = table.label_events.iter().position(|group| group.label.eq_ignore_ascii_case(&label));
        let at = at.unwrap_or_else(|| {
            table.label_events.push(LabelEvents { label, artifacts: None });
            table.label_events.len().saturating_sub(1)
        });
        if let Some(group) = table.label_events.get_mut(at) {
            change(group.artifacts.get_or_insert_default(), artifact, parameters);
        }
    }
    session.set_monitoring(table).map_err(failed)?;
    get(call)
}

fn table_of(table: &Dict) -> ClientEventTable {
    let groups = table.get("label_events").map(items).unwrap_or_default();
    ClientEventTable {
        artifacts: table.get("artifacts").and_then(Value::as_dict).map(|args| collector_args(args)),
        label_events: groups
            .iter()
            .filter_map(Value::as_dict)
            .map(|group| LabelEvents {
                label: text(group.get("label")),
                artifacts: group.get("artifacts").and_then(Value::as_dict).map(|args| collector_args(args)),
            })
            .collect(),
        ..ClientEventTable::default()
    }
}

pub(crate) fn collector_args(args: &Dict) -> ArtifactCollectorArgs {
    let specs = args.get("specs").map(items).unwrap_or_default();
    ArtifactCollectorArgs {
        artifacts: args.get("artifacts").map(items).unwrap_or_default().iter().map(|name| text(Some(name))).collect(),
        specs: specs.iter().filter_map(Value::as_dict).map(|spec| artifact_spec(spec)).collect(),
        ..ArtifactCollectorArgs::default()
    }
}

fn artifact_spec(spec: &Dict) -> ArtifactSpec {
    let env = spec.get("parameters").and_then(Value::as_dict).and_then(|parameters| parameters.get("env")).map(items).unwrap_or_default();
    let variable = |entry: &Value| {
        let entry = entry.as_dict()?;
        Some(VqlEnv { key: text(entry.get("key")), value: text(entry.get("value")), comment: String::new() })
    };
    ArtifactSpec {
        artifact: text(spec.get("artifact")),
        parameters: Some(ArtifactParameters { env: env.iter().filter_map(variable).collect() }),
        ..ArtifactSpec::default()
    }
}

fn items(value: &Value) -> Vec<Value> {
    match value {
        Value::List(items) => items.as_slice().to_vec(),
        Value::Null => Vec::new(),
        other => vec![other.clone()],
    }
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}
