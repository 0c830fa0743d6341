//! `secrets`, `secret_add`, `secret_modify`. What a secret holds never becomes a value of a query.

use talon_ids::Permission;
use talon_proto::{ModifySecretRequest, Secret};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value, json};

use crate::access::{failed, session};
use crate::message::to_dict;

const NAME: Arg = Arg::required("name", ArgType::String, "The secret.");
const TYPE: Arg = Arg::required("type", ArgType::String, "Its type, such as `HTTP Secrets`.");

const SECRETS: Signature =
    Signature::plugin("secrets", "Gives the types of secrets, each with the secrets that there are and their users.")
        .permissions(&[Permission::ServerAdmin]);

const ADD: Signature = Signature::function("secret_add", "Writes a secret. Nobody may use it until users are added to it.")
    .args(&[NAME, TYPE, Arg::required("secret", ArgType::Dict, "Its fields; fields that are maps as YAML or as a dict.")])
    .permissions(&[Permission::ServerAdmin])
    .version(2);

const MODIFY: Signature = Signature::function("secret_modify", "Changes who may use a secret, or deletes it.")
    .args(&[
        NAME,
        TYPE,
        Arg::optional("delete", ArgType::Bool, "Deletes it."),
        Arg::optional("add_users", ArgType::Strings, "Users who may use it from now on."),
        Arg::optional("remove_users", ArgType::Strings, "Users who may use it no more."),
        Arg::optional("visible_to_all_orgs", ArgType::Bool, "Shares it with all organisations; ends that when left out."),
        Arg::optional("add_orgs", ArgType::Strings, "Organisations to share it with."),
        Arg::optional("remove_orgs", ArgType::Strings, "Organisations to share it with no more."),
    ])
    .permissions(&[Permission::ServerAdmin])
    .version(2);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(SECRETS, secrets);
    registry.function(ADD, add);
    registry.function(MODIFY, modify);
}

fn secrets(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let definitions = session.secret_definitions().map_err(failed)?;
    Ok(Rows::try_of(definitions.into_iter().map(move |definition| {
        let mut held = Vec::new();
        for name in &definition.secret_names {
            let secret = session.secret(&definition.type_name, name).map_err(failed)?;
            let users = Value::list(secret.users.iter().map(|user| Value::str(user.as_str())));
            held.push(Value::Dict(Dict::new().with("name", secret.name.as_str()).with("users", users).into()));
        }
        let mut row = to_dict("SecretDefinition", &definition)?;
        row.update("secrets", Value::list(held));
        Ok::<_, CallError>(row)
    })))
}

fn add(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let given = call.dict("secret").unwrap_or_default();
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::Str(text) => text.to_str().into_owned(),
        // JSON is YAML too.
        other => json::encode(other),
    };
    let secret = Secret {
        name: call.string("name"),
        type_name: call.string("type"),
        secret: given.iter().map(|(key, value)| (key.to_string(), text(value))).collect(),
        ..Secret::default()
    };
    session.add_secret(&secret).map_err(failed)?;
    Ok(Value::str(secret.name))
}

fn modify(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let change = ModifySecretRequest {
        type_name: call.string("type"),
        name: call.string("name"),
        delete: call.bool("delete"),
        add_users: call.strings("add_users"),
        remove_users: call.strings("remove_users"),
        add_orgs: call.strings("add_orgs"),
        remove_orgs: call.strings("remove_orgs"),
        visible_to_all_orgs: call.bool("visible_to_all_orgs"),
    };
    session.modify_secret(&change).map_err(failed)?;
    Ok(Value::str(change.name))
}
