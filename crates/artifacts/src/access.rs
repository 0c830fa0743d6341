//! Who may launch an artifact: a pure decision.

use talon_ids::Permission;

use crate::{ArtifactError, Definition};

/// Decides whether `user` may collect an artifact.
///
/// `on_server` says that the pseudo-client `server` is meant; `basic` that the organisation marked the artifact as basic; `has` is the user's policy.
///
/// # Errors
/// The permission that is missing: for launching at all, or the first that the artifact itself demands.
pub fn check_access(
    definition: &Definition,
    user: &str,
    on_server: bool,
    basic: bool,
    has: impl Fn(Permission) -> bool,
) -> Result<(), ArtifactError> {
    if basic && has(Permission::CollectBasic) {
        return Ok(());
    }
    let launch = if on_server { Permission::CollectServer } else { Permission::CollectClient };
    if !has(launch) {
        return Err(ArtifactError::LaunchDenied { user: user.to_owned(), permission: launch });
    }
    match definition.required_permissions().iter().find(|permission| !has(*permission)) {
        None => Ok(()),
        Some(permission) => Err(ArtifactError::RequiredPermission { artifact: definition.name().to_string(), permission }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_decided_as_written() {
        use Permission::{CollectBasic, CollectClient, CollectServer, Execve};
        let plain = Definition::from_yaml("name: Custom.A").unwrap();
        let demanding = Definition::from_yaml("name: Custom.B\nrequired_permissions: [EXECVE]").unwrap();
        let cases: [(&Definition, bool, bool, &[Permission], &str); 10] = [
            (&plain, false, false, &[CollectClient], ""),
            (&plain, false, false, &[CollectServer], "User u is not allowed to launch flows COLLECT_CLIENT."),
            (&plain, true, false, &[CollectClient], "User u is not allowed to launch flows COLLECT_SERVER."),
            (&plain, true, false, &[CollectServer], ""),
            (&plain, false, false, &[CollectBasic], "User u is not allowed to launch flows COLLECT_CLIENT."),
            (&plain, false, true, &[CollectBasic], ""),
            (&plain, false, true, &[], "User u is not allowed to launch flows COLLECT_CLIENT."),
            (&demanding, false, false, &[CollectClient], "While collecting artifact (Custom.B) permission denied EXECVE"),
            (&demanding, false, false, &[CollectClient, Execve], ""),
            (&demanding, false, true, &[CollectBasic], ""),
        ];
        for (definition, on_server, basic, held, expected) in cases {
            let result = check_access(definition, "u", on_server, basic, |permission| held.contains(&permission));
            assert_eq!(result.err().map(|error| error.to_string()).unwrap_or_default(), expected, "{held:?} {on_server} {basic}");
        }
    }
}
