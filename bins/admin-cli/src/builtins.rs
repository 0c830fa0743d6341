//! The built-ins that this program knows, and the reference that is made of them.

use std::collections::BTreeMap;

use serde::Serialize;
use talon_ids::{Permission, Permissions};
use talon_vql::{Arg, Kind, Registry, Signature};

/// Everything that queries on a server may call. What agents do not have is among it.
pub(crate) fn complete() -> Registry {
    let mut registry = talon_endpoint_vql::registry();
    registry.merge(talon_server_vql::registry());
    registry
}

pub(crate) fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Plugin => "Plugin",
        Kind::Function => "Function",
    }
}

/// One built-in in the reference.
#[derive(Serialize)]
pub(crate) struct Reference<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    description: &'a str,
    args: Vec<Argument<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    free_form_args: bool,
    #[serde(skip_serializing_if = "is_zero")]
    version: i64,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    platforms: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, String>,
}

#[derive(Serialize)]
struct Argument<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl<'a> Reference<'a> {
    fn of(signature: &'a Signature) -> Self {
        let permissions: Vec<_> = signature.permissions.iter().map(Permission::name).collect();
        let mut metadata = BTreeMap::new();
        if !permissions.is_empty() {
            metadata.insert("permissions", permissions.join(","));
        }
        let argument = |arg: &'a Arg| Argument { name: arg.name, kind: arg.ty.name(), required: arg.required, description: arg.doc };
        Self {
            name: signature.name,
            kind: word(signature.kind),
            description: signature.doc,
            args: signature.args.iter().map(argument).collect(),
            free_form_args: signature.free_form && signature.unavailable.is_none(),
            version: signature.version,
            platforms: Vec::new(),
            unavailable: signature.unavailable,
            metadata,
        }
    }

    fn elsewhere(name: &'a str, kind: Kind, platforms: &'a str) -> Self {
        Self {
            name,
            kind: word(kind),
            description: "",
            args: Vec::new(),
            free_form_args: false,
            version: -1,
            platforms: platforms.split(',').collect(),
            unavailable: Some("it exists on other platforms only"),
            metadata: BTreeMap::new(),
        }
    }
}

/// The built-ins of a registry, by name.
pub(crate) fn references(registry: &Registry) -> Vec<Reference<'_>> {
    let mut all: Vec<_> = registry.signatures().map(Reference::of).collect();
    for kind in [Kind::Plugin, Kind::Function] {
        let elsewhere = registry.names(kind).filter_map(|name| Some((name, registry.platforms(kind, name)?)));
        all.extend(elsewhere.map(|(name, platforms)| Reference::elsewhere(name, kind, platforms)));
    }
    all.sort_by(|left, right| (left.name, left.kind).cmp(&(right.name, right.kind)));
    all
}

/// The reference as a page.
pub(crate) fn page(registry: &Registry) -> String {
    let all = references(registry);
    let mut out = String::from(
        "# Reference of plugins, functions and accessors\n\n\
         Made from the signatures that the programs enforce, by `talon vql export --format markdown`. Arguments in bold are required. A plugin gives \
         rows and stands after `FROM`; a function gives a value. Permissions are those of the user on whose behalf a query runs on the server; an \
         endpoint allows what its own configuration does not forbid. The number after *version* is what `version()` gives.\n",
    );
    for (title, kind) in [("Plugins", "Plugin"), ("Functions", "Function")] {
        out.push_str(&format!("\n## {title}\n"));
        for reference in all.iter().filter(|reference| reference.kind == kind && reference.unavailable.is_none()) {
            section(&mut out, reference);
        }
    }
    out.push_str("\n## Accessors\n\n| Accessor | Permissions |\n|---|---|\n");
    for (name, permissions) in accessors() {
        out.push_str(&format!("| `{name}` | {} |\n", listed(permissions)));
    }
    out.push_str("\n## Not here\n\nThese names are known, so that queries which mention them in a branch run. A call logs the reason and gives nothing.\n\n");
    out.push_str("| Name | Kind | Reason |\n|---|---|---|\n");
    for reference in &all {
        let Some(reason) = reference.unavailable else { continue };
        let platforms = reference.platforms.join(", ");
        let reason = if platforms.is_empty() { reason.to_owned() } else { format!("only on {platforms}") };
        out.push_str(&format!("| `{}` | {} | {} |\n", reference.name, reference.kind.to_lowercase(), cell(&reason)));
    }
    out
}

fn section(out: &mut String, reference: &Reference<'_>) {
    out.push_str(&format!("\n### {}()\n\n{}", reference.name, reference.description));
    if let Some(permissions) = reference.metadata.get("permissions") {
        out.push_str(&format!(" Needs {}.", permissions.replace(',', ", ")));
    }
    if reference.version != 0 {
        out.push_str(&format!(" *version* {}.", reference.version));
    }
    out.push('\n');
    if !reference.args.is_empty() {
        out.push_str("\n| Argument | Type | |\n|---|---|---|\n");
        for arg in &reference.args {
            let name = if arg.required { format!("**{}**", arg.name) } else { arg.name.to_owned() };
            out.push_str(&format!("| {name} | {} | {} |\n", arg.kind, cell(arg.description)));
        }
    }
    if reference.free_form_args {
        out.push_str("\nTakes any further argument.\n");
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn listed(permissions: Permissions) -> String {
    let names: Vec<_> = permissions.iter().map(Permission::name).collect();
    if names.is_empty() { "those of what it reads".to_owned() } else { names.join(", ") }
}

/// The accessors of a server's queries, with what they need.
fn accessors() -> Vec<(String, Permissions)> {
    let accessors = talon_server_vql::accessors();
    accessors.names().map(|name| (name.to_owned(), accessors.permissions(name))).collect()
}

#[cfg(test)]
mod tests;
