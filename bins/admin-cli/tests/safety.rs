//! No way around a refusal: every built-in × every way of calling it × denied, locked down, not on the allow list. A refused plugin gives no rows and the
//! line that stock servers log, a refused function gives NULL, the query goes on, and nothing with an effect is evaluated for the call.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use talon_acl::{Authority, Policy, Unrestricted};
use talon_artifacts::{Definition, Layer, Repository, Resolver};
use talon_endpoint_vql::{UploadRequest, Uploaded, Uploader, Uploads};
use talon_ids::OrgId;
use talon_lockdown::Lockdown;
use talon_vql::Kind::{self, Function as F, Plugin as P};
use talon_vql::{
    Arg, ArgType, CallError, Dict, Environment, MemoryLog, OnError, Query, Registry, Restrictions, Scope, Signature, Value, json, parse,
};

/// Counts how often an argument of a refused call was evaluated.
#[derive(Default)]
struct Canary(AtomicUsize);

/// The built-ins that queries on a server may call, and one that leaves a trace.
fn complete() -> Registry {
    let mut registry = talon_endpoint_vql::registry();
    registry.merge(talon_server_vql::registry());
    registry.function(Signature::function("canary", "Leaves a trace."), |call| {
        call.scope().extension::<Canary>().unwrap().0.fetch_add(1, Ordering::SeqCst);
        Ok("sang".into())
    });
    registry
}

fn user(policy: &Policy) -> Authority {
    Authority::user("mallory".parse().unwrap(), OrgId::root(), None, Some(policy), Arc::new(Unrestricted))
}

fn superuser_in_lockdown() -> Authority {
    Authority::superuser("VelociraptorServer".parse().unwrap(), OrgId::root(), Arc::new(Lockdown::default()))
}

/// Calls of a built-in, with an argument that leaves a trace in each place where one may stand.
fn calls(signature: &Signature) -> Vec<String> {
    let name = signature.name;
    let mut args: Vec<String> = signature.args.iter().map(|arg| format!("`{}`=canary()", arg.name)).collect();
    if signature.free_form {
        args.push("more=canary()".to_owned());
    }
    vec![format!("{name}({})", args.join(", ")), format!("{name}(`**`=dict(x=canary()))")]
}

/// A way of calling: its name, the built-ins that it needs itself, and its text. There, `{plain}` is a query of the call alone, and `{truth}` a value
/// that is true when the call gives something.
type Way = (&'static str, &'static [(Kind, &'static str)], &'static str);

const WAYS: &[Way] = &[
    ("plain", &[], "{plain}"),
    ("query()", &[(P, "query")], "SELECT * FROM query(query={ {plain} })"),
    ("query() of a text", &[(P, "query")], "SELECT * FROM query(query='''{plain}''')"),
    ("a stored query", &[], "LET Stored = {plain} SELECT * FROM Stored"),
    ("a definition with parameters", &[], "LET Stored(x) = {plain} SELECT * FROM Stored(x=1)"),
    ("another artifact", &[], "SELECT * FROM Artifact.Test.Safety()"),
    ("if()", &[(P, "if")], "SELECT * FROM if(condition=TRUE, then={ {plain} })"),
    ("foreach()", &[(P, "foreach")], "SELECT * FROM foreach(row=(1, ), query={ {plain} })"),
    (
        "a lambda",
        &[(F, "filter"), (F, "if"), (P, "range")],
        "SELECT * FROM range(end=1) WHERE filter(list=(1, ), condition='''x=>if(condition={truth}, then=TRUE)''')",
    ),
    (
        "an accessor",
        &[(F, "read_file"), (F, "if"), (P, "range")],
        "LET Text = if(condition={truth}, then='ran', else='refused') SELECT * FROM range(end=1) WHERE read_file(filename='Text', accessor='scope') = 'ran'",
    ),
];

/// Takes no files: nobody gets that far.
struct Refuser;

impl Uploader for Refuser {
    fn upload(&self, _: &Scope, request: UploadRequest) -> Result<Uploaded, CallError> {
        panic!("{} was read for somebody who may not", request.filename)
    }
}

/// What one query came to.
struct Outcome {
    rows: Vec<Arc<Dict>>,
    logs: Vec<String>,
    traces: usize,
}

/// Runs a text whose artifact `Test.Safety` has the query `artifact`, and a further query after it.
fn run(registry: &Arc<Registry>, authority: &Arc<Authority>, artifact: &str, text: &str) -> Outcome {
    let (log, canary) = (Arc::new(MemoryLog::default()), Arc::new(Canary::default()));
    let repository = Repository::empty();
    let yaml = format!("name: Test.Safety\nsources:\n- query: |\n    {artifact}\n");
    repository.set(Definition::from_yaml(&yaml).unwrap(), Layer::Custom).unwrap();
    let environment = Environment::new(registry.clone()).artifacts(Arc::new(Resolver::new(Arc::new(repository))));
    let environment = environment.log(log.clone()).extension(canary.clone()).extension(Arc::new(Uploads(Arc::new(Refuser))));
    let scope = talon_endpoint_vql::with_authority(environment, authority.clone()).open();
    let rows_of = |text: &str| -> Vec<Arc<Dict>> {
        let program = parse(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        program.statements.iter().flat_map(|statement| Query::new(&scope, statement).collect::<Vec<_>>()).collect()
    };
    let rows = rows_of(text);
    let after = rows_of("LET Rows = (1, ) SELECT 1 + 1 AS Two FROM Rows");
    assert_eq!(json::encode(after[0].get("Two").unwrap()), "2", "the query does not go on: {text}");
    Outcome { rows, logs: log.take(), traces: canary.0.load(Ordering::SeqCst) }
}

/// Checks one built-in in every way of calling it; `line` must be in the log. Gives the number of ways.
fn check(registry: &Arc<Registry>, authority: &Arc<Authority>, signature: &Signature, line: &str) -> usize {
    let mut checked = 0;
    for call in calls(signature) {
        let (plain, truth) = match signature.kind {
            Kind::Plugin => (format!("SELECT * FROM {call}"), format!("{{ SELECT * FROM {call} }}")),
            Kind::Function => (format!("SELECT {call} AS V FROM range(end=1)"), call.clone()),
        };
        for (way, needs, text) in WAYS {
            if needs.contains(&(signature.kind, signature.name)) {
                continue;
            }
            let text = text.replace("{plain}", &plain).replace("{truth}", &truth);
            let outcome = run(registry, authority, &plain, &text);
            let what = format!("{call} through {way}: {} rows, {:?}", outcome.rows.len(), outcome.logs);
            assert!(outcome.logs.iter().any(|logged| logged == line), "{line:?} is not logged: {what}");
            assert_eq!(outcome.traces, 0, "an argument was evaluated: {what}");
            for row in &outcome.rows {
                let refused = match (row.get("V"), signature.on_error) {
                    (Some(value), OnError::Null) => value.is_null(),
                    (Some(value), OnError::False) => matches!(value, Value::Bool(false)),
                    (None, _) => false,
                };
                assert!(signature.kind == Kind::Function && refused, "there is a value: {what}");
            }
            checked += 1;
        }
    }
    checked
}

#[test]
fn who_lacks_a_permission_gets_nothing_in_any_way() {
    let (registry, nobody) = (Arc::new(complete()), Arc::new(user(&Policy::default())));
    let guarded: Vec<_> = registry.signatures().filter(|signature| !signature.permissions.is_empty()).collect();
    assert!(guarded.len() > 60, "only {} built-ins need a permission", guarded.len());
    for signature in guarded {
        let line = format!("{}: PermissionDenied: Permission denied: {}", signature.name, signature.permissions);
        assert!(check(&registry, &nobody, signature, &line) >= 14);
    }
}

#[test]
fn lockdown_binds_the_superuser_in_any_way() {
    let (registry, superuser) = (Arc::new(complete()), Arc::new(superuser_in_lockdown()));
    let locked = Lockdown::default().denied();
    let bound: Vec<_> = registry.signatures().filter(|signature| !signature.permissions.intersection(locked).is_empty()).collect();
    assert!(bound.len() > 40, "lockdown binds only {} built-ins", bound.len());
    for signature in bound {
        let line = format!("{}: PermissionDenied: Server locked down: {}", signature.name, signature.permissions);
        assert!(check(&registry, &superuser, signature, &line) >= 14);
    }
}

#[test]
fn what_is_not_on_the_allow_list_is_blocked_in_any_way() {
    let complete = complete();
    let superuser = Arc::new(Authority::superuser("VelociraptorServer".parse().unwrap(), OrgId::root(), Arc::new(Unrestricted)));
    for signature in complete.signatures().filter(|signature| signature.name != "canary") {
        let others = |kind| -> Vec<String> {
            let names = complete.names(kind).filter(|name| (signature.kind, signature.name) != (kind, name));
            names.map(str::to_owned).collect()
        };
        let mut registry = complete.clone();
        registry.restrict(&Restrictions { allowed_plugins: others(P), allowed_functions: others(F), ..Restrictions::default() });
        let (name, word) = (signature.name, if signature.kind == P { "Plugin" } else { "Function" });
        let line =
            format!("ERROR:VQL {word} {name}() has been blocked in the configuration. Please update the configuration file to allow it.");
        // A blocked function gives NULL, also where a failed call gives FALSE.
        let blocked = Signature { on_error: OnError::Null, ..*signature };
        assert!(check(&Arc::new(registry), &superuser, &blocked, &line) >= 12);
    }
}

/// Built-ins that take the name of an accessor and reach nothing with it: they work on the text of paths.
const TEXT_ONLY: &[&str] = &["basename", "dirname", "path_join", "path_split", "pathspec", "relpath"];

/// A value that suits an argument.
fn suitable(arg: &Arg) -> &'static str {
    match arg.ty {
        ArgType::Int | ArgType::UInt | ArgType::Float | ArgType::Time => "1",
        ArgType::Bool => "TRUE",
        ArgType::Dict => "dict(a=1)",
        ArgType::Dicts => "(dict(a=1), )",
        ArgType::Query => "{ SELECT * FROM range(end=1) }",
        ArgType::Lambda => "'x=>x'",
        _ => "'/etc/hostname'",
    }
}

#[test]
fn no_accessor_reads_for_who_may_not() {
    const PATHS: [&str; 6] = ["file", "filename", "filenames", "path", "files", "globs"];
    let (registry, nobody) = (Arc::new(complete()), Arc::new(user(&Policy::default())));
    let mut checked = 0;
    for signature in registry.signatures().filter(|signature| signature.arg("accessor").is_some() && signature.unavailable.is_none()) {
        if TEXT_ONLY.contains(&signature.name) {
            continue;
        }
        let given = signature.args.iter().filter(|arg| arg.required || PATHS.contains(&arg.name));
        let mut args: Vec<_> = given.map(|arg| format!("`{}`={}", arg.name, suitable(arg))).collect();
        args.push("accessor='file'".to_owned());
        let call = format!("{}({})", signature.name, args.join(", "));
        let text = match signature.kind {
            Kind::Plugin => format!("SELECT * FROM {call}"),
            Kind::Function => format!("SELECT {call} AS V FROM range(end=1)"),
        };
        let outcome = run(&registry, &nobody, "SELECT 1 FROM range(end=1)", &text);
        let refused = outcome.logs.iter().any(|line| line.contains("PermissionDenied"));
        assert!(refused, "{text} was not refused: {:?}", outcome.logs);
        checked += 1;
    }
    assert!(checked >= 8, "only {checked} built-ins take an accessor");
}
