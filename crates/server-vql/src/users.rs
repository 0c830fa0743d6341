//! `gui_users`, `user`, `user_create`, `user_grant`, `user_delete`, `user_lock`, `passwd`, `user_options`, `whoami`.

use std::sync::Arc;

use talon_acl::{FieldValue, Policy};
use talon_ids::{OrgId, Permission, UserName};
use talon_proto::{ApiClientAcl, GuiLink, VelociraptorUser};
use talon_server::{OptionsChange, Session, UserChange};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::access::{failed, session};
use crate::message::to_dict;

const USER: Arg = Arg::required("user", ArgType::String, "The user.");
const ORGS: Arg = Arg::optional("orgs", ArgType::Strings, "The organisations; the query's own when left out.");

const GUI_USERS: Signature = Signature::plugin("gui_users", "Gives a row for each user and organisation that the caller may see.")
    .args(&[Arg::optional("all_orgs", ArgType::Bool, "All organisations instead of the query's own.")]);

const ONE: Signature = Signature::function("user", "Gives one user of the query's organisation.")
    .args(&[USER, Arg::optional("org", ArgType::String, "Accepted and without effect.")]);

const CREATE: Signature = Signature::function("user_create", "Makes a user, or gives an existing one other roles.")
    .args(&[
        USER,
        Arg::required("roles", ArgType::Strings, "The roles."),
        Arg::optional("password", ArgType::String, "The password."),
        Arg::optional("sub", ArgType::String, "The subject that the identity provider knows the user by; `-` clears it."),
        ORGS,
    ])
    .version(3);

const GRANT: Signature = Signature::function("user_grant", "Replaces the policy of a user.")
    .args(&[
        USER,
        Arg::optional("roles", ArgType::Strings, "The roles."),
        ORGS,
        Arg::optional("policy", ArgType::Dict, "Single permissions by their field names."),
    ])
    .version(2);

const DELETE: Signature = Signature::function("user_delete", "Takes a user out of organisations.")
    .args(&[USER, ORGS, Arg::optional("really_do_it", ArgType::Bool, "Without it nothing happens.")])
    .version(2);

const LOCK: Signature = Signature::function("user_lock", "Locks a user out, or lets the user in again; the policies stay.")
    .args(&[USER, Arg::optional("locked", ArgType::Bool, "Whether the user is locked out; yes when left out.")]);

const PASSWD: Signature = Signature::function("passwd", "Sets a password.").args(&[
    Arg::optional("user", ArgType::String, "The user; the caller when left out."),
    Arg::required("password", ArgType::String, "The password."),
]);

const OPTIONS: Signature = Signature::function("user_options", "Changes what a user set for the web pages, and gives it.").args(&[
    USER,
    Arg::optional("theme", ArgType::String, "The theme."),
    Arg::optional("timezone", ArgType::String, "The timezone."),
    Arg::optional("lang", ArgType::String, "The language."),
    Arg::optional("org", ArgType::String, "The organisation to begin in."),
    Arg::optional(
        "links",
        ArgType::Any,
        "Links, as dicts with `text`, `url`, `type`, `new_tab`, `encode`, `parameter`, `method`, `disabled`.",
    ),
    Arg::optional("default_password", ArgType::String, "The password of exports; `-` clears it."),
]);

const WHOAMI: Signature = Signature::function("whoami", "Gives the name of the caller.");

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(GUI_USERS, gui_users);
    registry.function(ONE, user);
    registry.function(CREATE, create);
    registry.function(GRANT, grant);
    registry.function(DELETE, delete);
    registry.function(LOCK, user_lock);
    registry.function(PASSWD, passwd);
    registry.function(OPTIONS, options);
    registry.function(WHOAMI, whoami);
}

/// Whether a policy has a field set.
type IsSet = fn(&ApiClientAcl) -> bool;

/// The fields of a policy in the order in which peers show them.
const SHOWN: &[(&str, IsSet)] = &[
    ("any_query", |acl| acl.any_query),
    ("read_results", |acl| acl.read_results),
    ("label_clients", |acl| acl.label_clients),
    ("collect_client", |acl| acl.collect_client),
    ("collect_basic", |acl| acl.collect_basic),
    ("start_hunt", |acl| acl.start_hunt),
    ("collect_server", |acl| acl.collect_server),
    ("artifact_writer", |acl| acl.artifact_writer),
    ("server_artifact_writer", |acl| acl.server_artifact_writer),
    ("execve", |acl| acl.execve),
    ("notebook_editor", |acl| acl.notebook_editor),
    ("org_admin", |acl| acl.org_admin),
    ("impersonation", |acl| acl.impersonation),
    ("server_admin", |acl| acl.server_admin),
    ("filesystem_read", |acl| acl.filesystem_read),
    ("filesystem_write", |acl| acl.filesystem_write),
    ("network", |acl| acl.network),
    ("machine_state", |acl| acl.machine_state),
    ("prepare_results", |acl| acl.prepare_results),
    ("delete_results", |acl| acl.delete_results),
    ("datastore_access", |acl| acl.datastore_access),
];

/// What a policy grants, without what it does not.
fn policy_row(acl: &ApiClientAcl) -> Dict {
    let mut row: Dict = SHOWN.iter().filter(|(_, granted)| granted(acl)).map(|(field, _)| (*field, true)).collect();
    for (field, names) in [("publish_queues", &acl.publish_queues), ("roles", &acl.roles)] {
        if !names.is_empty() {
            row.update(field, Value::list(names.iter().map(|name| Value::str(name.as_str()))));
        }
    }
    row
}

fn row(session: &Session, org: &OrgId, user: &VelociraptorUser, policy: &Policy) -> Result<Dict, CallError> {
    let org = session.server().org(org).map_err(failed)?;
    let stats = user.stats.as_ref().map(|stats| to_dict("UserStats", stats)).transpose()?;
    Ok(Dict::new()
        .with("name", user.name.as_str())
        .with("org_id", org.id().as_str())
        .with("org_name", org.name())
        .with("picture", user.picture.as_str())
        .with("email", user.verified_email)
        .with("stats", stats.map_or(Value::Null, |stats| Value::Dict(stats.into())))
        .with("roles", Value::list(policy.role_names().map(Value::str)))
        .with("_policy", policy_row(&policy.to_proto()))
        .with("effective_policy", policy_row(&policy.effective(org.id()).to_proto())))
}

/// Whether the caller may see the users of `org`.
fn sees(session: &Session, org: &OrgId) -> Result<bool, CallError> {
    session.server().users().sees_users_of(session.principal(), org).map_err(failed)
}

fn gui_users(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let users = session.server().users();
    let orgs = if call.bool("all_orgs") { users.orgs().map_err(failed)? } else { vec![session.org().id().clone()] };
    let mut rows = Vec::new();
    for user in users.users().map_err(failed)? {
        for org in &orgs {
            let Ok(name) = user.name.parse::<UserName>() else { continue };
            let policy = users.usable_policy(org, &name).map_err(failed)?;
            if let Some(policy) = policy
                && sees(&session, org)?
            {
                rows.push(row(&session, org, &user, &policy)?);
            }
        }
    }
    Ok(Rows::of(rows))
}

fn user(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let name = user_name(&call)?;
    let org = session.org().id();
    if name.folded() != session.principal().folded() && !sees(&session, org)? {
        call.scope().check(talon_ids::Permissions::of(&[Permission::ReadResults]))?;
    }
    let users = session.server().users();
    let policy = users.usable_policy(org, &name).map_err(failed)?;
    if policy.is_none() && !org.is_root() {
        // Who belongs to other organisations only is no business of this one.
        return Err(CallError::failed("PermissionDenied"));
    }
    let policy = policy.unwrap_or_default();
    let found = users.user(&name).map_err(failed)?.ok_or_else(|| CallError::failed(format!("User not found: {name}")))?;
    Ok(Value::Dict(row(&session, org, &found, &policy)?.into()))
}

fn create(call: Call) -> Result<Value, CallError> {
    let mut change = UserChange::of(user_name(&call)?);
    change.create = true;
    let session = session(call.scope())?;
    let policy = session.server().users().policy_of(&call.strings("roles"), &orgs(&session, &call)?);
    change.policy = Some(policy.map_err(failed)?);
    change.password = call.opt_string("password").filter(|password| !password.is_empty()).map(Into::into);
    change.subject = call.opt_string("sub").filter(|sub| !sub.is_empty()).map(|sub| if sub == "-" { String::new() } else { sub });
    apply(&call, "user_create", change)
}

fn grant(call: Call) -> Result<Value, CallError> {
    let (roles, policy) = (call.strings("roles"), call.dict("policy"));
    if roles.is_empty() && policy.is_none() {
        return Err(CallError::failed("You must provide either roles or a policy object"));
    }
    let session = session(call.scope())?;
    let orgs = orgs(&session, &call)?;
    let users = session.server().users();
    let custom = orgs.first().map_or_else(|| Ok(Default::default()), |org| users.roles(org)).map_err(failed)?;
    let granted = users.policy_of(&roles, &orgs).map_err(failed)?;
    let single = match policy {
        Some(policy) => Policy::from_fields_with(policy.iter().map(|(field, value)| (field.to_string(), field_value(value))), &custom),
        None => Ok(Policy::default()),
    };
    let single = single.map_err(CallError::failed)?;
    let mut change = UserChange::of(user_name(&call)?);
    let queues = single.publish_queues().iter().cloned().collect::<Vec<_>>();
    let merged = granted.merged_with(&single);
    change.policy = Some(queues.into_iter().fold(merged, Policy::with_queue));
    apply(&call, "user_grant", change)
}

fn field_value(value: &Value) -> FieldValue {
    match value {
        Value::List(names) => FieldValue::Names(names.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        Value::Bool(flag) => FieldValue::Flag(*flag),
        Value::Null => FieldValue::Flag(false),
        other => match other.as_str() {
            Some(name) => FieldValue::Names(vec![name.to_owned()]),
            None => FieldValue::Flag(other.as_float().is_some_and(|number| number > 0.0)),
        },
    }
}

fn delete(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let name = user_name(&call)?;
    if call.bool("really_do_it") {
        session.delete_user(&orgs(&session, &call)?, &name).map_err(failed)?;
    }
    Ok(Value::str(name.as_str()))
}

fn apply(call: &Call, operation: &str, change: UserChange) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let name = change.user.clone();
    session.change_user(operation, &orgs(&session, call)?, change).map_err(failed)?;
    Ok(Value::str(name.as_str()))
}

fn orgs(session: &Arc<Session>, call: &Call) -> Result<Vec<OrgId>, CallError> {
    let named = call.strings("orgs");
    if named.is_empty() {
        return Ok(vec![session.org().id().clone()]);
    }
    named.iter().map(|org| org.parse().map_err(CallError::failed)).collect()
}

fn user_name(call: &Call) -> Result<UserName, CallError> {
    let name = call.string("user");
    name.parse().map_err(|_| CallError::failed(format!("Unacceptable username {name}")))
}

fn user_lock(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let locked = !call.has("locked") || call.bool("locked");
    let mut change = UserChange::of(user_name(&call)?);
    change.locked = Some(locked);
    session.change_user("user_lock", &[], change).map_err(failed)?;
    Ok(Value::Bool(locked))
}

fn passwd(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let user = match call.opt_string("user").filter(|user| !user.is_empty()) {
        Some(_) => user_name(&call)?,
        None => session.principal().clone(),
    };
    session.set_password(&user, call.string("password").into()).map_err(failed)?;
    Ok(Value::str(user.as_str()))
}

fn options(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let user = user_name(&call)?;
    let text = |name: &str| call.opt_string(name).unwrap_or_default();
    let change = OptionsChange {
        theme: text("theme"),
        timezone: text("timezone"),
        lang: text("lang"),
        org: text("org"),
        default_password: text("default_password"),
        links: links(&call)?,
        ..OptionsChange::default()
    };
    let options = if change == OptionsChange::default() { session.options(&user) } else { session.set_options(&user, change) };
    Ok(Value::Dict(options_row(&options.map_err(failed)?).into()))
}

fn links(call: &Call) -> Result<Vec<GuiLink>, CallError> {
    let given = call.value("links");
    let items = match &given {
        Value::List(items) => items.as_slice().to_vec(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    let link = |item: &Value| {
        let fields = item.as_dict().ok_or_else(|| CallError::failed("a link is a dict with text and url"))?;
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let flag = |name: &str| matches!(fields.get(name), Some(Value::Bool(true)));
        Ok(GuiLink {
            text: text("text"),
            url: text("url"),
            icon_url: text("icon_url"),
            r#type: text("type"),
            new_tab: flag("new_tab"),
            encode: text("encode"),
            parameter: text("parameter"),
            method: text("method"),
            disabled: flag("disabled"),
        })
    };
    items.iter().map(link).collect()
}

/// Options as peers show them: what is not set is not there.
fn options_row(options: &OptionsChange) -> Dict {
    let mut row = Dict::new();
    let mut set = |name: &'static str, text: &str| {
        if !text.is_empty() {
            row.update(name, text);
        }
    };
    set("theme", &options.theme);
    set("timezone", &options.timezone);
    set("lang", &options.lang);
    set("org", &options.org);
    set("default_password", &options.default_password);
    set("options", &options.options);
    if let Some(custom) = options.customizations.as_ref().filter(|custom| custom.hunt_expiry_hours != 0) {
        row.update("customizations", Dict::new().with("hunt_expiry_hours", Value::Int(custom.hunt_expiry_hours)));
    }
    row.update("links", Value::list(options.links.iter().map(|link| Value::Dict(link_row(link).into()))));
    row
}

fn link_row(link: &GuiLink) -> Dict {
    let mut row = Dict::new();
    for (name, text) in [("text", &link.text), ("url", &link.url), ("icon_url", &link.icon_url), ("type", &link.r#type)] {
        if !text.is_empty() {
            row.update(name, text.as_str());
        }
    }
    if link.new_tab {
        row.update("new_tab", true);
    }
    for (name, text) in [("encode", &link.encode), ("parameter", &link.parameter), ("method", &link.method)] {
        if !text.is_empty() {
            row.update(name, text.as_str());
        }
    }
    row
}

fn whoami(call: Call) -> Result<Value, CallError> {
    Ok(Value::str(session(call.scope())?.principal().as_str()))
}
