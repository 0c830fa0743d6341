//! Talon's own settings: the second document of a file, which stock programs do not read.

use crate::section::section;

section! {
    /// What is under `talon:` in the second document.
    TalonSettings {
        /// What only servers read. It never gets into an agent's file.
        server: Option<TalonServer>,
        /// What agents read.
        agent: Option<TalonAgent>,
    }
}

section! {
    /// Settings of the server.
    TalonServer {
        /// The audit log.
        audit: Option<TalonAudit>,
        /// Whether X25519 and its post-quantum hybrid are not offered, as stock listeners do not.
        nist_curves_only: bool,
        /// Whether `security.lockdown_denied_permissions` replaces what lockdown denies instead of adding to it.
        lockdown_replace: bool,
        /// Whether the server starts in lockdown although its own account can write the configuration file, and so end the lockdown.
        lockdown_allow_writable_config: bool,
        /// Administrators who together remove a lock on everything; 2 when not set.
        lock_quorum: u64,
        /// SHA-256 in hex of the token that removes any lock; `talon lock token` makes one.
        unlock_token_sha256: String,
        /// A file of assertions that every change of a policy must keep.
        policy_assertions: String,
    }
}

section! {
    /// The audit log.
    TalonAudit {
        /// Where its keys and its folder `audit` are; `Datastore.location` when not set. Another disk is a good place.
        directory: String,
        /// The log's name in its checkpoints; `Frontend.hostname` when not set.
        origin: String,
    }
}

section! {
    /// Settings of the agent.
    TalonAgent {
        /// Permissions that no query has on this host, whoever sent it.
        denied_permissions: Vec<String>,
    }
}
