//! The decision itself: one pure function over a token, what it needs, where, and the rules above all policies.

use talon_ids::{OrgId, Permission, Permissions, UserName};

use crate::{EffectivePolicy, Reason};

/// What is asked of a [`Restriction`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Question<'a> {
    /// Who asks.
    pub principal: &'a UserName,
    /// The same in the form in which names are compared.
    pub folded: &'a str,
    /// The roles that the principal has in the organisation, by name.
    pub roles: &'a [Box<str>],
    /// In which organisation.
    pub org: &'a OrgId,
    /// The permissions asked for.
    pub asked: Permissions,
    /// What the action is about, when that is known to the asker.
    pub target: Option<Target<'a>>,
}

/// What an action is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target<'a> {
    /// A client, by its id.
    Client(&'a str),
    /// An artifact, by its name.
    Artifact(&'a str),
}

/// Rules above all policies, which bind even the superuser: lockdown and locks.
pub trait Restriction: Send + Sync {
    /// What lockdown denies to everybody.
    fn lockdown(&self) -> Permissions {
        Permissions::NONE
    }

    /// The reason to refuse, if a lock or another rule refuses.
    fn refuses(&self, question: &Question<'_>) -> Option<Reason>;
}

/// The rule that never refuses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unrestricted;

impl Restriction for Unrestricted {
    fn refuses(&self, _: &Question<'_>) -> Option<Reason> {
        None
    }
}

/// What an endpoint's own configuration forbids to the server. Everything else is allowed there: the endpoint belongs to the deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointPolicy {
    /// `Client.prevent_execve`: starts no processes, whatever the server asks.
    pub prevent_execve: bool,
}

impl EndpointPolicy {
    fn refuses(self, asked: Permissions) -> Option<Reason> {
        (self.prevent_execve && asked.contains(Permission::Execve))
            .then(|| Reason::Rule("Client.prevent_execve is set in the configuration of this client".to_owned()))
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Standing {
    Superuser,
    User { held: EffectivePolicy, member: bool, roles: Vec<Box<str>> },
    Endpoint(EndpointPolicy),
}

/// Who somebody is and what policies give: the part of a decision that does not change from one question to the next.
#[derive(Debug, Clone)]
pub struct Token {
    pub(crate) principal: UserName,
    folded: String,
    pub(crate) standing: Standing,
    /// Never more than this, whatever policies give.
    pub(crate) ceiling: Option<Permissions>,
}

impl Token {
    pub(crate) fn new(principal: UserName, standing: Standing) -> Self {
        let folded = principal.folded();
        Self { principal, folded, standing, ceiling: None }
    }

    /// The roles held, by name.
    #[must_use]
    pub fn roles(&self) -> &[Box<str>] {
        match &self.standing {
            Standing::User { roles, .. } => roles,
            Standing::Superuser | Standing::Endpoint(_) => &[],
        }
    }

    /// What policies give, apart from all rules above them.
    #[must_use]
    pub fn by_policy(&self) -> Permissions {
        let given = match &self.standing {
            Standing::Superuser | Standing::Endpoint(_) => Permissions::ALL,
            Standing::User { held, .. } => held.permissions(),
        };
        self.ceiling.map_or(given, |ceiling| ceiling.intersection(given))
    }
}

/// Whether the holder of `token` may use all of `need` in `org`. Allocates only to say why not.
///
/// # Errors
/// The reason, the first that applies of: lockdown, a lock, the token.
pub fn decide(
    token: &Token,
    need: Permissions,
    org: &OrgId,
    target: Option<Target<'_>>,
    lockdown: Permissions,
    locks: &dyn Restriction,
) -> Result<(), Reason> {
    if !lockdown.intersection(need).is_empty() {
        return Err(Reason::LockedDown);
    }
    let question = Question { principal: &token.principal, folded: &token.folded, roles: token.roles(), org, asked: need, target };
    if let Some(reason) = locks.refuses(&question) {
        return Err(reason);
    }
    let beyond = token.ceiling.map_or(Permissions::NONE, |ceiling| need.difference(ceiling));
    if !beyond.is_empty() {
        return Err(Reason::Missing(beyond));
    }
    match &token.standing {
        Standing::Superuser => Ok(()),
        Standing::Endpoint(policy) => policy.refuses(need).map_or(Ok(()), Err),
        Standing::User { held, .. } if held.permissions().contains_all(need) => Ok(()),
        Standing::User { held, member: true, .. } => Err(Reason::Missing(need.difference(held.permissions()))),
        Standing::User { .. } => Err(Reason::NoPolicy),
    }
}
