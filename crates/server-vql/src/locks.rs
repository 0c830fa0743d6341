//! `locks`, `lock_add`, `lock_remove`: closing a user, a role, a client, an artifact, an organisation or everything while the server runs.
//!
//! They decide for themselves, apart from lockdown and locks: a lock must be possible when everything else is closed, and so must its removal.

use serde_json::json as to_json;
use talon_lockdown::{Lock, LockTarget, Removal};
use talon_server::LockRequest;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value, json};

use crate::access::{failed, session};

const LOCKS: Signature = Signature::plugin("locks", "Gives the locks that hold.");

const ADD: Signature = Signature::function("lock_add", "Sets a lock.").args(&[
    Arg::required("kind", ArgType::String, "What to lock: user, role, client, artifact, org or all."),
    Arg::optional("name", ArgType::String, "Its name or id; nothing for all."),
    Arg::required("reason", ArgType::String, "Why. Whoever is refused reads it."),
    Arg::optional("ttl", ArgType::UInt, "Seconds after which the lock ends; never when left out."),
]);

const REMOVE: Signature = Signature::function("lock_remove", "Removes a lock, or votes for it where that takes several administrators.")
    .args(&[
        Arg::required("id", ArgType::String, "The lock."),
        Arg::optional("token", ArgType::String, "The unlock token of the deployment."),
    ]);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(LOCKS, locks);
    registry.function(ADD, add);
    registry.function(REMOVE, remove);
}

fn row(lock: &Lock) -> Result<Dict, CallError> {
    json::decode_row(to_json!(lock).to_string().as_bytes()).map_err(|error| CallError::failed(error.to_string()))
}

fn locks(call: Call) -> Result<Rows, CallError> {
    let locks = session(call.scope())?.locks().map_err(failed)?;
    Ok(Rows::try_of(locks.iter().map(row).collect::<Vec<_>>()))
}

fn add(call: Call) -> Result<Value, CallError> {
    let target = LockTarget::parse(&call.string("kind"), &call.opt_string("name").unwrap_or_default()).map_err(CallError::failed)?;
    let ttl_s = call.has("ttl").then(|| call.uint("ttl")).filter(|seconds| *seconds > 0);
    let lock = session(call.scope())?.lock(LockRequest { target, reason: call.string("reason"), ttl_s }).map_err(failed)?;
    Ok(Value::Dict(row(&lock)?.into()))
}

fn remove(call: Call) -> Result<Value, CallError> {
    let token = call.opt_string("token").filter(|token| !token.is_empty());
    let outcome = session(call.scope())?.unlock(&call.string("id"), token.as_deref()).map_err(failed)?;
    let missing = if let Removal::Needs(missing) = outcome { missing } else { 0 };
    let row = Dict::new().with("removed", outcome == Removal::Removed).with("votes_missing", Value::UInt(missing as u64));
    Ok(Value::Dict(row.into()))
}
