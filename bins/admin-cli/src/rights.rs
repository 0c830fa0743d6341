//! `talon acl why / escalations / test` and `talon lock …`: who can do what, and what is closed for now.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use talon_acl::{Authority, CustomRole, CustomRoles, Holder, Inventory, Policy, escalations, violations};
use talon_config::ServerConfig;
use talon_crypto::{Rng as _, SystemRng, sha256};
use talon_ids::{OrgId, Permission, Permissions};
use talon_server::Assertions;
use talon_vql::{Dict, json as vql_json};

use crate::api::{Api, configured};
use crate::arguments::{Globals, LockVerb};
use crate::config::{load_server, org};
use crate::deployment::{Access, Running, open, restriction};
use crate::output::print_line;
use crate::users::fields;

/// Explains a decision.
pub(crate) fn why(globals: &Globals, user: &str, permission: &str) -> Result<()> {
    let (server, org) = (load_server(globals)?, org(globals)?);
    let permission: Permission = permission.parse().with_context(|| format!("{permission:?} is no permission"))?;
    let inventory = inventory(&server)?;
    let policy_in = |org: &OrgId| {
        let found = inventory.holders.iter().find(|holder| holder.org == *org && holder.name.to_lowercase() == user.to_lowercase());
        found.map(|holder| holder.policy.clone())
    };
    let (here, root) = (policy_in(&org), policy_in(&OrgId::root()));
    let authority = if user == server.server_name() {
        Authority::superuser(user.parse()?, org.clone(), restriction(&server)?)
    } else {
        Authority::user(user.parse()?, org.clone(), here.as_ref(), root.as_ref(), restriction(&server)?)
    };
    let Err(denial) = authority.check(Permissions::of(&[permission])) else {
        print_line(&format!("permitted: {user} has {permission} in {org}"))?;
        for role in here.iter().flat_map(Policy::roles).filter(|role| role.permissions(&org).contains(permission)) {
            print_line(&format!("  by the role {role}"))?;
        }
        for role in here.iter().flat_map(Policy::custom_roles).filter(|role| role.permissions().contains(permission)) {
            print_line(&format!("  by the role {} of the organisation", role.name()))?;
        }
        if here.as_ref().is_some_and(|policy| policy.granted().contains(permission)) {
            print_line("  by a grant of its own")?;
        }
        return Ok(());
    };
    print_line(&format!("denied by {}: {denial}", denial.rule()))?;
    print_line(&format!("  {}", denial.cure()))
}

/// Prints who reaches what; with a baseline, fails on what is not in it.
pub(crate) fn show_escalations(globals: &Globals, baseline: Option<&Path>) -> Result<()> {
    let found = escalations(&inventory(&load_server(globals)?)?);
    let rows: Vec<Value> = found
        .iter()
        .map(|found| json!({ "subject": found.subject.to_string(), "org": found.org.as_str(), "goal": found.goal.name(), "path": found.path }))
        .collect();
    let key = |row: &Value| ["subject", "org", "goal"].map(|name| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned());
    let Some(file) = baseline else { return print_line(&serde_json::to_string_pretty(&rows)?) };
    let text = std::fs::read_to_string(file).with_context(|| format!("--fail-on-new: cannot read {}", file.display()))?;
    let known: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("{} is no output of 'acl escalations'", file.display()))?;
    let known: Vec<_> = known.iter().map(key).collect();
    let new: Vec<&Value> = rows.iter().filter(|row| !known.contains(&key(row))).collect();
    print_line(&serde_json::to_string_pretty(&new)?)?;
    if new.is_empty() { Ok(()) } else { bail!("{} escalations are not in {}", new.len(), file.display()) }
}

/// Checks assertions about policies.
pub(crate) fn test(globals: &Globals, file: &Path) -> Result<()> {
    let assertions = Assertions::load(file)?;
    let broken = violations(assertions.list(), &inventory(&load_server(globals)?)?);
    for violation in &broken {
        print_line(&format!("{}: {}", violation.assertion, violation.text))?;
    }
    match broken.len() {
        0 => print_line(&format!("{} assertions hold", assertions.list().len())),
        count => bail!("{count} violations"),
    }
}

/// Users with their policies and the roles of organisations, from the running server or the store.
fn inventory(server: &ServerConfig) -> Result<Inventory> {
    let mut running = match open(server)? {
        Access::Stopped(stopped) => return Ok(stopped.directory.inventory()?),
        Access::Running(running) => running,
    };
    let mut inventory = Inventory::default();
    let orgs = running.query(&OrgId::root(), "SELECT OrgId FROM orgs()".into(), &[])?;
    for row in orgs {
        let org: OrgId = text(&row, "OrgId").parse()?;
        let custom = custom_roles(&mut running, &org)?;
        for row in running.query(&org, "SELECT name, _policy FROM gui_users()".into(), &[])? {
            let policy = row.get("_policy").map(vql_json::encode).unwrap_or_default();
            let policy = fields(&serde_json::from_str(&policy)?).unwrap_or_default();
            let policy = Policy::from_fields_with(policy, &custom)?;
            inventory.holders.push(Holder { name: text(&row, "name"), org: org.clone(), policy });
        }
        if !custom.is_empty() {
            inventory.roles.insert(org, custom);
        }
    }
    Ok(inventory)
}

fn custom_roles(running: &mut Running, org: &OrgId) -> Result<CustomRoles> {
    let rows = running.query(org, "SELECT name, permissions FROM roles() WHERE custom".into(), &[])?;
    let role = |row: &Arc<Dict>| {
        let held: BTreeMap<String, Value> = serde_json::from_str(&vql_json::encode(&talon_vql::Value::Dict(row.clone())))?;
        let names: Vec<String> = serde_json::from_value(held.get("permissions").cloned().unwrap_or_default())?;
        let permissions = names.iter().map(|name| name.parse::<Permission>()).collect::<Result<Permissions, _>>()?;
        Ok(CustomRole::new(&text(row, "name"), permissions)?)
    };
    rows.iter().map(role).collect()
}

fn text(row: &Dict, column: &str) -> String {
    row.get(column).and_then(talon_vql::Value::as_str).unwrap_or_default().to_owned()
}

pub(crate) fn lock(globals: &Globals, verb: &LockVerb) -> Result<()> {
    if matches!(verb, LockVerb::Token) {
        return token();
    }
    // Administrators vote under their own names; without one of their files, whoever runs the server does it.
    let mut running = match configured(globals)? {
        Some(connection) => Running::over(Api::connect(&connection)?),
        None => match open(&load_server(globals)?)? {
            Access::Running(running) => *running,
            Access::Stopped(_) => bail!("the server does not run: locks are set and removed while it does"),
        },
    };
    let here = OrgId::root();
    let rows = match verb {
        LockVerb::Token => return Ok(()),
        LockVerb::List => running.query(&here, "SELECT * FROM locks()".into(), &[])?,
        LockVerb::Add { user, role, client, artifact, all, ttl, reason } => {
            let named = [("user", user), ("role", role), ("client", client), ("artifact", artifact), ("org", &globals.org)];
            let mut given = named.iter().filter_map(|(kind, name)| name.as_ref().map(|name| (*kind, name.as_str())));
            let target = match (given.next(), *all, given.next()) {
                (Some(target), false, None) => target,
                (None, true, None) => ("all", ""),
                _ => bail!("lock exactly one of --user, --role, --client, --artifact, --org, --all"),
            };
            let ttl = ttl.map_or_else(|| "0".to_owned(), |ttl| ttl.to_string());
            let call = "SELECT lock_add(kind=TheKind, name=TheName, reason=TheReason, ttl=int(int=TheTtl)) AS Lock FROM scope()";
            let variables = [("TheKind", target.0), ("TheName", target.1), ("TheReason", reason), ("TheTtl", &ttl)];
            running.query(&here, call.into(), &variables)?
        }
        LockVerb::Remove { id, token_file } => {
            let token = match token_file {
                Some(file) => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
                None => String::new(),
            };
            let call = "SELECT lock_remove(id=TheId, token=TheToken) AS Lock FROM scope()";
            running.query(&here, call.into(), &[("TheId", id.as_str()), ("TheToken", token.trim())])?
        }
    };
    let refused = |row: &&Arc<Dict>| matches!(row.get("Lock"), Some(talon_vql::Value::Null));
    if rows.iter().find(refused).is_some() {
        bail!("{}", running.log());
    }
    rows.iter().try_for_each(|row| print_line(&vql_json::encode(row.get("Lock").unwrap_or(&talon_vql::Value::Dict(row.clone())))))
}

/// A new unlock token on stdout, and on stderr what the configuration has to know of it.
fn token() -> Result<()> {
    let mut random = [0; 32];
    SystemRng.fill(&mut random);
    let token = data_encoding::HEXLOWER.encode(&random);
    eprintln!("Keep the token offline. In the second document of the server's configuration, under talon: server:");
    eprintln!("  unlock_token_sha256: {}", data_encoding::HEXLOWER.encode(&sha256(token.as_bytes())));
    print_line(&token)
}
