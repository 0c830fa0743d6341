//! Tests of the reference, which is checked in: the pages under `docs/` are fresh. `UPDATE=1` writes them again.

use std::path::PathBuf;

use talon_artifacts::{Library, Repository, Severity, lint};

use super::*;

fn document(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// Compares a page with what is made now.
fn assert_fresh(name: &str, now: &str) {
    let path = document(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    let then = std::fs::read_to_string(&path).unwrap();
    let differs = then.lines().zip(now.lines()).find(|(then, now)| then != now);
    assert!(then == now, "docs/{name} is not fresh (UPDATE=1 writes it again); the first difference: {differs:?}");
}

#[test]
fn the_reference_page_is_fresh() {
    assert_fresh("vql-reference.md", &page(&complete()));
}

/// What became of a name that stock programs have.
fn state(registry: &Registry, kind: &str, name: &str) -> String {
    let kind = match kind {
        "accessor" => {
            let known = talon_server_vql::accessors().names().any(|accessor| accessor == name);
            return if known { "implemented".to_owned() } else { "not here: queries that name it are told so".to_owned() };
        }
        // How artifacts are called: the language itself knows it.
        "plugin" if name == "Artifact" => return "implemented".to_owned(),
        "plugin" => Kind::Plugin,
        _ => Kind::Function,
    };
    match (registry.signature(kind, name), registry.platforms(kind, name)) {
        (Some(Signature { unavailable: Some(reason), .. }), _) => format!("not available: {reason}"),
        (Some(_), _) => "implemented".to_owned(),
        (None, Some(platforms)) => format!("only on {}", platforms.replace(',', ", ")),
        (None, None) => "unknown".to_owned(),
    }
}

#[test]
fn the_coverage_page_is_fresh_and_no_name_is_unknown() {
    let registry = complete();
    let page = std::fs::read_to_string(document("vql-coverage.md")).unwrap();
    let mut names = 0;
    let mut unknown = Vec::new();
    let fresh: String = page
        .lines()
        .map(|line| match line.split('|').map(str::trim).collect::<Vec<_>>().as_slice() {
            ["", kind @ ("plugin" | "function" | "accessor"), name, tier, _, ""] => {
                names += 1;
                let state = state(&registry, kind, name.trim_matches('`'));
                if state == "unknown" {
                    unknown.push((*name).to_owned());
                }
                format!("| {kind} | {name} | {tier} | {} |\n", cell(&state))
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert_fresh("vql-coverage.md", &fresh);
    assert!(names > 400, "the page lists {names} names only");
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn the_built_in_artifacts_call_only_what_there_is() {
    let (repository, registry) = (Repository::with_built_ins(), complete());
    let library = Library::new(&repository).with_registry(&registry);
    for (name, entry) in repository.entries() {
        let findings = lint(&entry.definition, &library).findings;
        let errors: Vec<_> = findings.iter().filter(|finding| finding.rule.severity() != Severity::Note).map(ToString::to_string).collect();
        assert_eq!(errors, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn every_signature_is_described() {
    let registry = complete();
    for signature in registry.signatures() {
        assert!(signature.doc.ends_with('.'), "{} has no sentence", signature.name);
        let mut names: Vec<_> = signature.args.iter().map(|arg| arg.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), signature.args.len(), "{} has an argument twice", signature.name);
    }
}
