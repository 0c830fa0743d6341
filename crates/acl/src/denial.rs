//! Refusals: what the asker is told, and what would cure it.

use std::fmt;

use talon_ids::{OrgId, Permissions, UserName};

/// Why an action was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The policy does not hold these of the asked permissions.
    Missing(Permissions),
    /// The user has no policy in the organisation.
    NoPolicy,
    /// The user may not push events to that queue.
    Queue(String),
    /// The server is locked down.
    LockedDown,
    /// A lock that administrators set while the server runs, named by its id and reason.
    Locked(String),
    /// Another rule refuses, named by its text, for example a setting of the endpoint's own configuration.
    Rule(String),
}

/// A refused action. Its text is the one that peers match on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
#[non_exhaustive]
pub struct Denial {
    /// Who asked.
    pub principal: UserName,
    /// In which organisation.
    pub org: OrgId,
    /// All permissions asked for, held or not.
    pub asked: Permissions,
    /// Why it was refused.
    pub reason: Reason,
}

impl Denial {
    fn text(&self) -> String {
        match &self.reason {
            Reason::Missing(_) => format!("PermissionDenied: Permission denied: {}", self.asked),
            Reason::NoPolicy => format!("PermissionDenied: {}", self.asked),
            Reason::Queue(_) => "PermissionDenied: Permission denied: PUBLISH".to_owned(),
            Reason::LockedDown => format!("PermissionDenied: Server locked down: {}", self.asked),
            Reason::Locked(lock) => format!("PermissionDenied: Locked by {lock}: {}", self.asked),
            Reason::Rule(rule) => format!("PermissionDenied: {rule}: {}", self.asked),
        }
    }

    /// What of the asked permissions the principal lacks; nothing when a rule above all policies refused.
    #[must_use]
    pub fn missing(&self) -> Permissions {
        match self.reason {
            Reason::Missing(missing) => missing,
            Reason::NoPolicy | Reason::Queue(_) => self.asked,
            Reason::LockedDown | Reason::Locked(_) | Reason::Rule(_) => Permissions::NONE,
        }
    }

    /// The rule that refused, in a word.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self.reason {
            Reason::Missing(_) | Reason::Queue(_) => "policy",
            Reason::NoPolicy => "membership",
            Reason::LockedDown => "lockdown",
            Reason::Locked(_) => "lock",
            Reason::Rule(_) => "configuration",
        }
    }

    /// What an API method says, given its own sentence such as `User is not allowed to view clients.`
    #[must_use]
    pub fn for_api(&self, sentence: &str) -> String {
        match self.reason {
            Reason::LockedDown => format!("PERMISSION_DENIED: Server locked down: {sentence}"),
            _ => sentence.to_owned(),
        }
    }

    /// Who can change that, and how: for an operator who is entitled to know, never for an unauthenticated peer.
    #[must_use]
    pub fn cure(&self) -> Cure<'_> {
        Cure(self)
    }
}

/// Displays what would make a refused action possible.
#[derive(Debug)]
pub struct Cure<'a>(&'a Denial);

impl fmt::Display for Cure<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Denial { principal, org, asked, reason } = self.0;
        match reason {
            Reason::Missing(missing) => {
                write!(out, "{principal} lacks {missing} in organisation {org}; an administrator of it can grant that")
            }
            Reason::NoPolicy => write!(out, "{principal} is no member of organisation {org}; an administrator of it can add the user"),
            Reason::Queue(queue) => {
                write!(
                    out,
                    "{queue} is not among the publish_queues of {principal} in organisation {org}; an administrator of it can add it"
                )
            }
            Reason::LockedDown => {
                write!(out, "lockdown denies some of {asked} to everybody until `lockdown` is removed from the server's configuration file")
            }
            Reason::Locked(lock) => {
                write!(out, "locked by {lock}; an administrator of the server can remove the lock with 'talon lock remove'")
            }
            Reason::Rule(rule) => write!(out, "denied by {rule}"),
        }
    }
}
