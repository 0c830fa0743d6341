//! `talon user …` and `talon acl …`: who there is, and what they may do.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use talon_acl::{FieldValue, Policy, Role};
use talon_audit::Details;
use talon_config::ServerConfig;
use talon_crypto::{SystemRng, Zeroizing};
use talon_ids::{OrgId, UserName};
use talon_proto::ApiClientAcl;
use talon_server::UserChange;
use talon_vql::format::quote_string;
use talon_vql::{Dict, json};

use crate::arguments::{AclVerb, Globals, UserVerb};
use crate::config::{load_server, org};
use crate::deployment::{Access, Running, Stopped, open};
use crate::output::print_line;

pub(crate) fn user(globals: &Globals, verb: UserVerb) -> Result<()> {
    let server = load_server(globals)?;
    match verb {
        UserVerb::Add { user, password, role } => {
            let password = password.map_or_else(read_password, |password| Ok(Zeroizing::new(password)))?;
            let change = Change { password: Some(password), ..Change::roles(&user.parse()?, &role)? };
            change.apply(&server, &org(globals)?)
        }
        UserVerb::Delete { user } => delete(&server, &user.parse()?, &org(globals)?),
        UserVerb::Lock { user, off } => set_locked(&server, &user.parse()?, !off),
        UserVerb::Show { user, with_hashes } => show(&server, &user.parse()?, with_hashes),
    }
}

pub(crate) fn acl(globals: &Globals, verb: AclVerb) -> Result<()> {
    let (server, org) = (load_server(globals)?, org(globals)?);
    match verb {
        AclVerb::Grant { user, policy, role, merge } => {
            let policy = parse_policy(&policy)?.with_roles(roles(&role)?);
            let change = Change { user: user.parse()?, create: false, merge, policy, password: None };
            change.apply(&server, &org)
        }
        AclVerb::Why { user, permission } => crate::rights::why(globals, &user, &permission),
        AclVerb::Escalations { fail_on_new } => crate::rights::show_escalations(globals, fail_on_new.as_deref()),
        AclVerb::Test { file } => crate::rights::test(globals, &file),
        AclVerb::Show { user, effective } => show_policy(&server, &org, &user.parse()?, effective),
    }
}

/// Makes `user` if there is none, and gives it exactly these roles.
pub(crate) fn set_roles(server: &ServerConfig, user: &UserName, names: &[String], org: &OrgId) -> Result<()> {
    Change::roles(user, names)?.apply(server, org)
}

/// The secret that agents of an organisation carry.
pub(crate) fn nonce_of(server: &ServerConfig, org: &OrgId) -> Result<String> {
    let unknown = || format!("there is no organisation {org}");
    match open(server)? {
        Access::Stopped(stopped) => stopped.nonce_of(org)?.with_context(unknown),
        Access::Running(mut running) => {
            let rows = running.query(org, "SELECT org().nonce AS Nonce FROM scope()".to_owned(), &[])?;
            rows.first().and_then(|row| text(row, "Nonce")).with_context(unknown)
        }
    }
}

/// What is to become of a user.
struct Change {
    user: UserName,
    create: bool,
    merge: bool,
    policy: Policy,
    password: Option<Zeroizing<String>>,
}

impl Change {
    fn roles(user: &UserName, names: &[String]) -> Result<Self> {
        let policy = Policy::of_roles(roles(names)?);
        Ok(Self { user: user.clone(), create: true, merge: false, policy, password: None })
    }

    fn apply(self, server: &ServerConfig, org: &OrgId) -> Result<()> {
        match open(server)? {
            Access::Stopped(stopped) => self.apply_to_store(&stopped, org),
            Access::Running(mut running) => self.apply_to_server(&mut running, org),
        }
    }

    fn apply_to_store(self, stopped: &Stopped, org: &OrgId) -> Result<()> {
        let directory = &stopped.directory;
        if !self.create {
            directory.user(&self.user)?.with_context(|| format!("User not found: {}: make it with 'user add'", self.user))?;
        }
        let before = directory.policy(org, &self.user)?;
        let policy = match before {
            Some(before) if self.merge => before.merged_with(&self.policy),
            _ => self.policy,
        };
        let right = directory.right_over(directory.superuser(), std::slice::from_ref(org))?;
        let mut details = Details::new().text("username", self.user.as_str()).json("acl", policy_json(&policy)?);
        if self.password.is_some() {
            details = details.secret("password");
        }
        let operation = if self.create { "user_create" } else { "user_grant" };
        let receipt = stopped.record(org, operation, details)?;
        let change = UserChange { create: self.create, policy: Some(policy), password: self.password, ..UserChange::of(self.user) };
        Ok(directory.change(&right, receipt, change, &SystemRng)?.wait()?)
    }

    fn apply_to_server(self, running: &mut Running, org: &OrgId) -> Result<()> {
        let mut variables = vec![("TheUser", self.user.as_str())];
        let policy;
        let call = if self.create {
            let roles: Vec<_> = self.policy.roles().iter().map(|role| quote_string(role.name())).collect();
            let roles = roles.join(", ");
            match &self.password {
                None => format!("user_create(user=TheUser, roles=[{roles}])"),
                Some(password) => {
                    variables.push(("ThePassword", password));
                    format!("user_create(user=TheUser, roles=[{roles}], password=ThePassword)")
                }
            }
        } else {
            let wanted = match self.merge {
                false => self.policy.clone(),
                true => policies(running, org, &self.user)?.0.merged_with(&self.policy),
            };
            policy = policy_json(&wanted)?.to_string();
            variables.push(("ThePolicy", &policy));
            "user_grant(user=TheUser, policy=parse_json(data=ThePolicy))".to_owned()
        };
        let rows = running.query(org, format!("SELECT {call} AS Done FROM scope()"), &variables)?;
        done(&rows).with_context(|| running.log())
    }
}

fn delete(server: &ServerConfig, user: &UserName, org: &OrgId) -> Result<()> {
    match open(server)? {
        Access::Stopped(stopped) => {
            let directory = &stopped.directory;
            directory.user(user)?.with_context(|| format!("User not found: {user}"))?;
            let right = directory.right_over(directory.superuser(), std::slice::from_ref(org))?;
            let details = Details::new().text("username", user.as_str()).text("org_ids", org.as_str());
            let receipt = stopped.record(org, "user_delete", details)?;
            Ok(directory.delete(&right, receipt, user)?.wait()?)
        }
        Access::Running(mut running) => {
            let call = "SELECT user_delete(user=TheUser, really_do_it=TRUE) AS Done FROM scope()".to_owned();
            done(&running.query(org, call, &[("TheUser", user.as_str())])?).with_context(|| running.log())
        }
    }
}

fn set_locked(server: &ServerConfig, user: &UserName, locked: bool) -> Result<()> {
    match open(server)? {
        Access::Stopped(stopped) => {
            let directory = &stopped.directory;
            let right = directory.right_over(directory.superuser(), &[])?;
            let change = UserChange { locked: Some(locked), ..UserChange::of(user.clone()) };
            directory.check_change(&right, &change)?;
            let details = Details::new().text("username", user.as_str()).json("locked", locked.into());
            let receipt = stopped.record(&OrgId::root(), "user_lock", details)?;
            Ok(directory.change(&right, receipt, change, &SystemRng)?.wait()?)
        }
        Access::Running(mut running) => {
            let call = format!("SELECT user_lock(user=TheUser, locked={}) AS Done FROM scope()", if locked { "TRUE" } else { "FALSE" });
            done(&running.query(&OrgId::root(), call, &[("TheUser", user.as_str())])?).with_context(|| running.log())
        }
    }
}

/// Fails unless the query says that it did something.
fn done(rows: &[Arc<Dict>]) -> Result<()> {
    match rows.first().and_then(|row| row.get("Done")) {
        None | Some(talon_vql::Value::Null) => bail!("the server did not change the user"),
        Some(_) => Ok(()),
    }
}

/// A user's policy and what it gives, as a running server has them.
fn policies(running: &mut Running, org: &OrgId, user: &UserName) -> Result<(Policy, Value)> {
    let row = record(running, org, user)?;
    let part = |name: &str| row.get(name).map(json::encode).and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let policy = part("_policy").and_then(|value| fields(&value)).unwrap_or_default();
    Ok((Policy::from_fields(policy)?, part("effective_policy").unwrap_or_default()))
}

fn record(running: &mut Running, org: &OrgId, user: &UserName) -> Result<Arc<Dict>> {
    let vql = "SELECT user(user=TheUser) AS User FROM scope()".to_owned();
    let rows = running.query(org, vql, &[("TheUser", user.as_str())])?;
    match rows.first().and_then(|row| row.get("User")) {
        Some(talon_vql::Value::Dict(found)) => Ok(found.clone()),
        _ => bail!("User not found: {user}"),
    }
}

fn show(server: &ServerConfig, user: &UserName, with_hashes: bool) -> Result<()> {
    match open(server)? {
        Access::Running(_) if with_hashes => bail!("hashes are shown only when the server does not run"),
        Access::Running(mut running) => {
            let row = record(&mut running, &OrgId::root(), user)?;
            print_line(&json::encode_pretty(&talon_vql::Value::Dict(row)))
        }
        Access::Stopped(stopped) => {
            let record = stopped.directory.user(user)?.with_context(|| format!("User not found: {user}"))?;
            let orgs: Vec<_> = stopped.directory.orgs_of(user)?.iter().map(OrgId::to_string).collect();
            let shown = serde_json::json!({ "name": record.name, "locked": record.locked, "orgs": orgs });
            print_line(&serde_json::to_string_pretty(&shown)?)?;
            if with_hashes {
                print_line(&String::from_utf8_lossy(&record.password_hash))?;
                print_line(&data_encoding::HEXLOWER.encode(&record.password_salt))?;
            }
            Ok(())
        }
    }
}

fn show_policy(server: &ServerConfig, org: &OrgId, user: &UserName, effective: bool) -> Result<()> {
    if user.as_str() == server.server_name() {
        return print_line("{\"super_user\":true}");
    }
    let shown = match open(server)? {
        Access::Running(mut running) => {
            let (policy, given) = policies(&mut running, org, user)?;
            if effective { given } else { policy_json(&policy)? }
        }
        Access::Stopped(stopped) => {
            stopped.directory.user(user)?.with_context(|| format!("User not found: {user}"))?;
            let policy = stopped.directory.policy(org, user)?.unwrap_or_default();
            if effective { acl_json(&policy.effective(org).to_proto())? } else { policy_json(&policy)? }
        }
    };
    print_line(&shown.to_string())
}

fn roles(names: &[String]) -> Result<Vec<Role>> {
    let parse = |name: &String| {
        let all = || Role::ALL.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
        name.parse::<Role>().map_err(|_| anyhow::anyhow!("Unable to set role ACL: Invalid role {name}: the roles are {}", all()))
    };
    names.iter().filter(|name| !name.is_empty()).map(parse).collect()
}

fn parse_policy(text: &str) -> Result<Policy> {
    let value: Value = serde_json::from_str(text).context("the policy is not JSON: write it as {\"collect_client\": true}")?;
    let fields =
        fields(&value).context("a policy has names of permissions with true or false, \"roles\" and \"publish_queues\" with lists")?;
    Ok(Policy::from_fields(fields)?)
}

/// The fields of a policy in JSON.
pub(crate) fn fields(value: &Value) -> Option<Vec<(String, FieldValue)>> {
    let field = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Bool(flag) => FieldValue::Flag(*flag),
            Value::Array(items) => FieldValue::Names(items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>()?),
            _ => return None,
        };
        Some((name.clone(), value))
    };
    value.as_object()?.iter().map(field).collect()
}

/// A policy as stock programs write it.
fn policy_json(policy: &Policy) -> Result<Value> {
    acl_json(&policy.to_proto())
}

/// Only what is granted: a field that is not there grants nothing.
fn acl_json(acl: &ApiClientAcl) -> Result<Value> {
    let mut fields: Map<String, Value> = serde_json::from_str(&talon_server::reflect::to_json("ApiClientACL", acl)?)?;
    fields.retain(|_, value| value.as_bool().unwrap_or_else(|| value.as_array().is_some_and(|names| !names.is_empty())));
    Ok(Value::Object(fields))
}

fn text(row: &Dict, column: &str) -> Option<String> {
    let value = json::encode(row.get(column)?);
    serde_json::from_str(&value).ok()
}

fn read_password() -> Result<Zeroizing<String>> {
    eprintln!("Password, then Enter (it is shown; pipe it in to avoid that):");
    let mut line = Zeroizing::new(String::new());
    std::io::stdin().read_line(&mut line).context("cannot read the password from stdin")?;
    let password = Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned());
    if password.is_empty() {
        bail!("no password: give one after the user's name, or on stdin");
    }
    Ok(password)
}
