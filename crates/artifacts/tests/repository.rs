//! Layers, aliases, inheritance.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use talon_artifacts::{ArtifactError, Definition, Layer, Repository};

fn definition(text: &str) -> Definition {
    Definition::from_yaml(text).unwrap()
}

#[test]
fn built_in_artifacts_cannot_be_overridden_or_removed() {
    let repository = Repository::with_built_ins();
    let mine = || definition("name: Generic.Client.Info\nsources: [{query: SELECT 1 FROM scope()}]");
    let error = repository.set(mine(), Layer::Custom).unwrap_err();
    assert_eq!(error.to_string(), "Unable to override built in artifact Generic.Client.Info");
    assert_eq!(repository.remove("Generic.Client.Info"), Err(ArtifactError::BuiltIn("Generic.Client.Info".to_owned())));
    repository.set(mine(), Layer::Configured).unwrap();
    assert_eq!(repository.get("Generic.Client.Info").unwrap().sources().len(), 1);
    assert!(repository.set(mine(), Layer::Custom).is_err());
    assert!(repository.get("Generic.Client.Info").unwrap().proto().built_in);
}

#[test]
fn custom_artifacts_come_and_go() {
    let repository = Repository::empty();
    repository.set(definition("name: Custom.A\ndescription: one"), Layer::Custom).unwrap();
    repository.set(definition("name: Custom.A\ndescription: two"), Layer::Custom).unwrap();
    assert_eq!(repository.get("Custom.A").unwrap().proto().description, "two");
    repository.remove("Custom.A").unwrap();
    assert!(repository.get("Custom.A").is_none());
    assert_eq!(repository.remove("Custom.A"), Err(ArtifactError::Unknown("Custom.A".to_owned())));
}

#[test]
fn aliases_are_copies_that_follow_their_artifact() {
    let repository = Repository::empty();
    repository.set(definition("name: Custom.A\naliases: [Custom.B]\nsources: [{query: SELECT 1 FROM x}]"), Layer::Custom).unwrap();
    let alias = repository.get("Custom.B").unwrap();
    assert!(alias.proto().is_alias && alias.name().as_str() == "Custom.B");
    assert_eq!(alias.sources()[0].query_name.to_string(), "Custom.B");
    let taken = repository.set(definition("name: Custom.C\naliases: [Custom.B]"), Layer::Custom).unwrap_err();
    assert_eq!(taken.to_string(), "Custom.C: alias Custom.B is taken by another artifact");
    assert!(repository.set(definition("name: Custom.B"), Layer::Custom).is_err());
    assert!(repository.set(definition("name: Custom.D\naliases: [Custom.D]"), Layer::Custom).is_err());
    assert!(repository.remove("Custom.B").is_err());
    repository.set(definition("name: Custom.A\naliases: [Custom.E]"), Layer::Custom).unwrap();
    assert!(repository.get("Custom.B").is_none() && repository.get("Custom.E").is_some());
    repository.remove("Custom.A").unwrap();
    assert!(repository.entries().is_empty());
}

#[test]
fn organisations_inherit_from_root() {
    let root = Arc::new(Repository::with_built_ins());
    let child = Repository::inheriting(Arc::clone(&root));
    root.set(definition("name: Custom.Root"), Layer::Custom).unwrap();
    child.set(definition("name: Custom.Child"), Layer::Custom).unwrap();
    assert!(child.entry("Custom.Root").unwrap().inherited);
    assert!(!child.entry("Custom.Child").unwrap().inherited);
    assert!(root.get("Custom.Child").is_none());
    let error = child.set(definition("name: Linux.Sys.Pslist"), Layer::Custom).unwrap_err();
    assert_eq!(error, ArtifactError::BuiltIn("Linux.Sys.Pslist".to_owned()));
    assert_eq!(child.remove("Custom.Root"), Err(ArtifactError::Unknown("Custom.Root".to_owned())));
    child.set(definition("name: Custom.Root\ndescription: mine"), Layer::Custom).unwrap();
    assert_eq!(child.get("Custom.Root").unwrap().proto().description, "mine");
    assert_eq!(root.get("Custom.Root").unwrap().proto().description, "");
    assert_eq!(child.entries().len(), root.entries().len() + 1);
}

#[test]
fn queues_keep_their_types() {
    let repository = Repository::with_built_ins();
    let wrong = repository.set(definition("name: System.Flow.Completion\ntype: SERVER_EVENT"), Layer::Configured).unwrap_err();
    assert_eq!(wrong.to_string(), "System.Flow.Completion: this is a queue of the server and must keep its type");
    repository.set(definition("name: System.Flow.Completion\ntype: CLIENT_EVENT"), Layer::Configured).unwrap();
}

#[test]
fn sources_have_addresses() {
    let repository = Repository::with_built_ins();
    assert_eq!(repository.get("Generic.Client.Info/BasicInformation").unwrap().sources().len(), 1);
    for name in ["Generic.Client.Info/Nothing", "Generic.Client.Info/", "No.Such/x", "No.Such", "generic.client.info", ""] {
        assert!(repository.get(name).is_none(), "{name}");
    }
}
