//! The artifacts that are compiled into the program.

use std::sync::{Arc, OnceLock};

use crate::Definition;

/// File and text of each definition.
const TEXTS: &[(&str, &str)] = &[
    ("Admin/Client/Remove.yaml", include_str!("../definitions/Admin/Client/Remove.yaml")),
    ("Elastic/Events/Upload.yaml", include_str!("../definitions/Elastic/Events/Upload.yaml")),
    ("Generic/Client/DiskSpace.yaml", include_str!("../definitions/Generic/Client/DiskSpace.yaml")),
    ("Generic/Client/Info.yaml", include_str!("../definitions/Generic/Client/Info.yaml")),
    ("Generic/Client/Stats.yaml", include_str!("../definitions/Generic/Client/Stats.yaml")),
    ("Generic/Utils/Crypto.yaml", include_str!("../definitions/Generic/Utils/Crypto.yaml")),
    ("Linux/Search/FileFinder.yaml", include_str!("../definitions/Linux/Search/FileFinder.yaml")),
    ("Linux/Sys/Pslist.yaml", include_str!("../definitions/Linux/Sys/Pslist.yaml")),
    ("Linux/Sys/Users.yaml", include_str!("../definitions/Linux/Sys/Users.yaml")),
    ("Server/Alerts/Notification.yaml", include_str!("../definitions/Server/Alerts/Notification.yaml")),
    ("Server/Audit/Logs.yaml", include_str!("../definitions/Server/Audit/Logs.yaml")),
    ("Server/Internal/Alerts.yaml", include_str!("../definitions/Server/Internal/Alerts.yaml")),
    ("Server/Internal/ArtifactModification.yaml", include_str!("../definitions/Server/Internal/ArtifactModification.yaml")),
    ("Server/Internal/ClientConflict.yaml", include_str!("../definitions/Server/Internal/ClientConflict.yaml")),
    ("Server/Internal/ClientDelete.yaml", include_str!("../definitions/Server/Internal/ClientDelete.yaml")),
    ("Server/Internal/ClientInfoSnapshot.yaml", include_str!("../definitions/Server/Internal/ClientInfoSnapshot.yaml")),
    ("Server/Internal/ClientPing.yaml", include_str!("../definitions/Server/Internal/ClientPing.yaml")),
    ("Server/Internal/ClientScheduled.yaml", include_str!("../definitions/Server/Internal/ClientScheduled.yaml")),
    ("Server/Internal/ClientTasks.yaml", include_str!("../definitions/Server/Internal/ClientTasks.yaml")),
    ("Server/Internal/Enrollment.yaml", include_str!("../definitions/Server/Internal/Enrollment.yaml")),
    ("Server/Internal/FrontendMetrics.yaml", include_str!("../definitions/Server/Internal/FrontendMetrics.yaml")),
    ("Server/Internal/HuntModification.yaml", include_str!("../definitions/Server/Internal/HuntModification.yaml")),
    ("Server/Internal/HuntUpdate.yaml", include_str!("../definitions/Server/Internal/HuntUpdate.yaml")),
    ("Server/Internal/Interrogation.yaml", include_str!("../definitions/Server/Internal/Interrogation.yaml")),
    ("Server/Internal/Inventory.yaml", include_str!("../definitions/Server/Internal/Inventory.yaml")),
    ("Server/Internal/Label.yaml", include_str!("../definitions/Server/Internal/Label.yaml")),
    ("Server/Internal/MasterRegistrations.yaml", include_str!("../definitions/Server/Internal/MasterRegistrations.yaml")),
    ("Server/Internal/MetadataModifications.yaml", include_str!("../definitions/Server/Internal/MetadataModifications.yaml")),
    ("Server/Internal/Notifications.yaml", include_str!("../definitions/Server/Internal/Notifications.yaml")),
    ("Server/Internal/Ping.yaml", include_str!("../definitions/Server/Internal/Ping.yaml")),
    ("Server/Internal/Pong.yaml", include_str!("../definitions/Server/Internal/Pong.yaml")),
    ("Server/Internal/TimelineAdd.yaml", include_str!("../definitions/Server/Internal/TimelineAdd.yaml")),
    ("Server/Internal/UserManager.yaml", include_str!("../definitions/Server/Internal/UserManager.yaml")),
    ("Server/Monitor/Health.yaml", include_str!("../definitions/Server/Monitor/Health.yaml")),
    ("System/Flow/Completion.yaml", include_str!("../definitions/System/Flow/Completion.yaml")),
    ("System/Hunt/Creation.yaml", include_str!("../definitions/System/Hunt/Creation.yaml")),
    ("System/Hunt/Participation.yaml", include_str!("../definitions/System/Hunt/Participation.yaml")),
    ("System/Upload/Completion.yaml", include_str!("../definitions/System/Upload/Completion.yaml")),
];

/// Queues of the server are artifacts too, so that queries can watch them: these run nothing, and keep their types.
#[must_use]
pub fn is_queue(name: &str) -> bool {
    definitions().iter().any(|definition| definition.name().as_str() == name && runs_nothing(definition))
}

fn runs_nothing(definition: &Definition) -> bool {
    definition.kind().is_event() && definition.sources().iter().all(|source| source.statements.is_empty())
}

/// The queues of the server.
pub fn queues() -> impl Iterator<Item = &'static Definition> {
    definitions().iter().map(AsRef::as_ref).filter(|definition| runs_nothing(definition))
}

/// The built-in definitions. A test keeps each of them valid; one that is not would be missing here.
pub(crate) fn definitions() -> &'static [Arc<Definition>] {
    static DEFINITIONS: OnceLock<Vec<Arc<Definition>>> = OnceLock::new();
    DEFINITIONS.get_or_init(|| TEXTS.iter().filter_map(|(_, text)| Definition::from_yaml(text).ok()).map(mark).collect())
}

fn mark(mut definition: Definition) -> Arc<Definition> {
    definition.change_proto(|artifact| {
        artifact.built_in = true;
        artifact.compiled_in = true;
    });
    Arc::new(definition)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn files(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("definitions");
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/"));
            }
        }
    }

    #[test]
    fn every_file_is_listed_valid_and_called_like_its_artifact() {
        let mut found = Vec::new();
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("definitions"), &mut found);
        found.sort();
        assert_eq!(found, TEXTS.iter().map(|(file, _)| (*file).to_owned()).collect::<Vec<_>>());
        for (file, text) in TEXTS {
            let definition = Definition::from_yaml(text).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(format!("{}.yaml", definition.name().as_str().replace('.', "/")), *file);
            assert!(!definition.proto().description.trim().is_empty(), "{file} has no description");
        }
        assert_eq!(definitions().len(), TEXTS.len());
    }

    #[test]
    fn queues_have_the_types_that_peers_expect() {
        let of = |kind| queues().filter(|queue| queue.kind() == kind).count();
        use crate::ArtifactType::{ClientEvent, Internal, ServerEvent};
        assert_eq!((of(ServerEvent), of(ClientEvent), of(Internal)), (8, 2, 18));
        assert!(is_queue("System.Flow.Completion") && is_queue("Server.Audit.Logs"));
        assert!(!is_queue("Linux.Sys.Pslist") && !is_queue("No.Such"));
    }
}
