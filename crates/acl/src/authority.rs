//! The one decision: may this principal do that, here?

use std::fmt;
use std::sync::Arc;

use talon_ids::{OrgId, Permission, Permissions, UserName};

use crate::decide::{Standing, decide};
use crate::{
    CollectClient, CollectDenial, CollectServer, Denial, Effect, EndpointPolicy, Permit, Policy, Publish, Question, Reason, Restriction,
    Target, Token, Unrestricted,
};

/// Decides for one principal in one organisation. It is the only maker of [`Permit`]s.
///
/// An authority is a snapshot: it decides by the policies it was made of. To act in another organisation, make another authority.
#[derive(Clone)]
pub struct Authority {
    token: Token,
    org: OrgId,
    restriction: Arc<dyn Restriction>,
}

impl Authority {
    /// The authority of a user, from the policy in `org` and the policy in the root organisation.
    /// The latter alone decides over `ORG_ADMIN`.
    #[must_use]
    pub fn user(
        principal: UserName,
        org: OrgId,
        policy: Option<&Policy>,
        root_policy: Option<&Policy>,
        restriction: Arc<dyn Restriction>,
    ) -> Self {
        let org_admin = Permissions::of(&[Permission::OrgAdmin]);
        let here = if org.is_root() { root_policy } else { policy };
        let of_root = root_policy.map(|policy| policy.effective(&OrgId::root()).permissions().intersection(org_admin));
        let mut held = here.map(|policy| policy.effective(&org)).unwrap_or_default();
        held.add(of_root.unwrap_or_default());
        let roles = here.map(|policy| policy.role_names().map(Box::from).collect()).unwrap_or_default();
        let standing = Standing::User { held, member: here.is_some(), roles };
        Self { token: Token::new(principal, standing), org, restriction }
    }

    /// The authority of the server itself: everything that `restriction` leaves.
    #[must_use]
    pub fn superuser(principal: UserName, org: OrgId, restriction: Arc<dyn Restriction>) -> Self {
        Self { token: Token::new(principal, Standing::Superuser), org, restriction }
    }

    /// The authority of the server on an endpoint: everything that the endpoint's own configuration leaves.
    #[must_use]
    pub fn endpoint(principal: UserName, policy: EndpointPolicy) -> Self {
        Self { token: Token::new(principal, Standing::Endpoint(policy)), org: OrgId::root(), restriction: Arc::new(Unrestricted) }
    }

    /// The same principal with no more than `permissions`.
    #[must_use]
    pub fn reduced_to(&self, permissions: Permissions) -> Self {
        let ceiling = self.token.ceiling.map_or(permissions, |ceiling| ceiling.intersection(permissions));
        let mut reduced = self.clone();
        reduced.token.ceiling = Some(ceiling);
        reduced
    }

    /// The same with no more than `other` was reduced to: whoever acts elsewhere, or as somebody else, takes the reduction along.
    #[must_use]
    pub fn within_ceiling_of(self, other: &Self) -> Self {
        match other.token.ceiling {
            Some(ceiling) => self.reduced_to(ceiling),
            None => self,
        }
    }

    /// Who acts.
    #[must_use]
    pub fn principal(&self) -> &UserName {
        &self.token.principal
    }

    /// What the decision is made of, apart from the rules above all policies.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Where.
    #[must_use]
    pub fn org(&self) -> &OrgId {
        &self.org
    }

    /// Whether this is the server itself, which policies do not bind.
    #[must_use]
    pub fn is_superuser(&self) -> bool {
        matches!(self.token.standing, Standing::Superuser) && self.token.ceiling.is_none()
    }

    /// Whether all of `asked` may be done.
    ///
    /// # Errors
    /// The denial, with the reason.
    pub fn check(&self, asked: Permissions) -> Result<(), Denial> {
        self.check_about(asked, None)
    }

    /// Whether all of `asked` may be done to `target`: locks on clients and artifacts count too.
    ///
    /// # Errors
    /// The denial, with the reason.
    pub fn check_about(&self, asked: Permissions, target: Option<Target<'_>>) -> Result<(), Denial> {
        let decided = decide(&self.token, asked, &self.org, target, self.restriction.lockdown(), &*self.restriction);
        decided.map_err(|reason| self.denial(asked, reason))
    }

    /// Whether policies give all of `asked`, apart from lockdown and locks. It decides over locks, which only ever take away, and over
    /// nothing else.
    #[must_use]
    pub fn holds_by_policy(&self, asked: Permissions) -> bool {
        self.token.by_policy().contains_all(asked)
    }

    /// Whether `permission` may be used.
    #[must_use]
    pub fn allows(&self, permission: Permission) -> bool {
        self.check(Permissions::of(&[permission])).is_ok()
    }

    /// Everything that may be used now, for display. `PUBLISH` appears for those who may push to every queue.
    #[must_use]
    pub fn held(&self) -> Permissions {
        Permission::ALL.iter().copied().filter(|permission| self.allows(*permission)).collect()
    }

    /// The proof that effect `E` is allowed.
    ///
    /// # Errors
    /// The denial, with the reason.
    pub fn permit<E: Effect>(&self) -> Result<Permit<E>, Denial> {
        self.check(Permissions::of(&[E::PERMISSION])).map(|()| Permit::granted_to(self.principal().clone(), self.org.clone()))
    }

    /// The proof that events may be pushed to `queue`.
    ///
    /// # Errors
    /// The denial: users push to the queues that their policy names, and to no other.
    pub fn permit_publish(&self, queue: &str) -> Result<Permit<Publish>, Denial> {
        let asked = Permissions::of(&[Permission::Publish]);
        if let (Standing::User { held, member, roles }, None) = (&self.token.standing, self.token.ceiling) {
            if self.restriction.lockdown().contains(Permission::Publish) {
                return Err(self.denial(asked, Reason::LockedDown));
            }
            let (principal, folded) = (&self.token.principal, self.token.principal.folded());
            let question = Question { principal, folded: &folded, roles, org: &self.org, asked, target: None };
            if let Some(reason) = self.restriction.refuses(&question) {
                return Err(self.denial(asked, reason));
            }
            if !held.may_publish(queue) {
                let reason = if *member { Reason::Queue(queue.chars().take(256).collect()) } else { Reason::NoPolicy };
                return Err(self.denial(asked, reason));
            }
            return Ok(Permit::granted_to(principal.clone(), self.org.clone()));
        }
        self.permit::<Publish>()
    }

    /// The proof that a collection from endpoints is allowed. Each artifact comes with its name, whether it is marked as basic, and the permissions
    /// that it asks for itself; see [`crate::check_collection`].
    ///
    /// # Errors
    /// The denial of the first artifact that may not be collected.
    pub fn permit_collection<'a>(
        &self,
        artifacts: impl IntoIterator<Item = (&'a str, bool, Permissions)>,
    ) -> Result<Permit<CollectClient>, CollectDenial> {
        self.check_collections(false, artifacts)?;
        Ok(Permit::granted_to(self.principal().clone(), self.org.clone()))
    }

    /// The proof that a collection on the server itself is allowed: as [`Authority::permit_collection`].
    ///
    /// # Errors
    /// The denial of the first artifact that may not be collected.
    pub fn permit_server_collection<'a>(
        &self,
        artifacts: impl IntoIterator<Item = (&'a str, bool, Permissions)>,
    ) -> Result<Permit<CollectServer>, CollectDenial> {
        self.check_collections(true, artifacts)?;
        Ok(Permit::granted_to(self.principal().clone(), self.org.clone()))
    }

    fn check_collections<'a>(
        &self,
        on_server: bool,
        artifacts: impl IntoIterator<Item = (&'a str, bool, Permissions)>,
    ) -> Result<(), CollectDenial> {
        let mut checked = false;
        for (artifact, basic, required) in artifacts {
            crate::check_collection(self, on_server, artifact, basic, required)?;
            checked = true;
        }
        if checked { Ok(()) } else { crate::check_collection(self, on_server, "", false, Permissions::NONE) }
    }

    /// What `policy` would give in this organisation that the principal does not hold: a grant of it raises somebody above the granter.
    #[must_use]
    pub fn exceeded_by(&self, policy: &Policy) -> Permissions {
        policy.effective(&self.org).permissions().difference(self.held())
    }

    fn denial(&self, asked: Permissions, reason: Reason) -> Denial {
        Denial { principal: self.principal().clone(), org: self.org.clone(), asked, reason }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Authority({} in {}: {})", self.principal(), self.org, self.held())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{Administer, Execute, FilesystemRead, Role};

    struct DenyExecve;

    impl Restriction for DenyExecve {
        fn refuses(&self, question: &Question<'_>) -> Option<Reason> {
            question.asked.contains(Permission::Execve).then_some(Reason::LockedDown)
        }
    }

    fn name(text: &str) -> UserName {
        text.parse().unwrap()
    }

    fn org() -> OrgId {
        "O123".parse().unwrap()
    }

    fn in_root(policy: &Policy) -> Authority {
        Authority::user(name("alice"), OrgId::root(), None, Some(policy), Arc::new(Unrestricted))
    }

    #[test]
    fn a_policy_decides_and_the_denial_names_all_that_was_asked() {
        let analyst = in_root(&Policy::of_roles([Role::Analyst]));
        assert!(analyst.allows(Permission::ReadResults));
        let denial = analyst.check(Permissions::of(&[Permission::ReadResults, Permission::FilesystemRead])).unwrap_err();
        expect!["PermissionDenied: Permission denied: [READ_RESULTS FILESYSTEM_READ]"].assert_eq(&denial.to_string());
        expect!["alice lacks [FILESYSTEM_READ] in organisation root; an administrator of it can grant that"]
            .assert_eq(&denial.cure().to_string());
        assert!(analyst.permit::<FilesystemRead>().is_err());
    }

    #[test]
    fn without_a_policy_nothing_is_allowed() {
        let stranger = Authority::user(name("eve"), org(), None, Some(&Policy::of_roles([Role::Administrator])), Arc::new(Unrestricted));
        let denial = stranger.permit::<Administer>().unwrap_err();
        expect!["PermissionDenied: [SERVER_ADMIN]"].assert_eq(&denial.to_string());
        expect!["eve is no member of organisation O123; an administrator of it can add the user"].assert_eq(&denial.cure().to_string());
    }

    #[test]
    fn org_admin_comes_from_the_root_policy_wherever_one_asks() {
        let org_admin = Policy::of_roles([Role::OrgAdmin]);
        let decide = |here: Option<&Policy>, root: Option<&Policy>| {
            Authority::user(name("alice"), org(), here, root, Arc::new(Unrestricted)).allows(Permission::OrgAdmin)
        };
        assert!(decide(None, Some(&org_admin)));
        assert!(!decide(Some(&org_admin), None));
        assert!(!decide(Some(&Policy::of_roles([Role::Administrator])), Some(&Policy::of_roles([Role::Reader]))));
    }

    #[test]
    fn a_policy_of_another_organisation_counts_for_nothing_in_root() {
        let admin = Policy::of_roles([Role::Administrator]);
        let authority = Authority::user(name("alice"), OrgId::root(), Some(&admin), None, Arc::new(Unrestricted));
        assert!(authority.held().is_empty());
    }

    #[test]
    fn restrictions_bind_everybody() {
        let restriction: Arc<dyn Restriction> = Arc::new(DenyExecve);
        let admin = Policy::of_roles([Role::Administrator]);
        for authority in [
            Authority::superuser(name("VelociraptorServer"), OrgId::root(), restriction.clone()),
            Authority::user(name("alice"), OrgId::root(), None, Some(&admin), restriction),
        ] {
            let denial = authority.permit::<Execute>().unwrap_err();
            assert_eq!(denial.to_string(), "PermissionDenied: Server locked down: [EXECVE]");
            assert_eq!(denial.for_api("User is not allowed to run."), "PERMISSION_DENIED: Server locked down: User is not allowed to run.");
            assert!(authority.permit::<FilesystemRead>().is_ok());
        }
    }

    #[test]
    fn an_endpoint_allows_all_but_what_its_own_configuration_forbids() {
        let server = name("VelociraptorServer");
        assert!(Authority::endpoint(server.clone(), EndpointPolicy::default()).permit::<Execute>().is_ok());
        let guarded = Authority::endpoint(server, EndpointPolicy { prevent_execve: true });
        assert!(guarded.permit::<FilesystemRead>().is_ok());
        expect!["PermissionDenied: Client.prevent_execve is set in the configuration of this client: [EXECVE]"]
            .assert_eq(&guarded.permit::<Execute>().unwrap_err().to_string());
    }

    #[test]
    fn publishing_is_decided_by_queue() {
        let publisher = in_root(&Policy::default().with_queue("Custom.Events"));
        assert!(publisher.permit_publish("Custom.Events").is_ok());
        let denial = publisher.permit_publish("Server.Audit.Logs").unwrap_err();
        assert_eq!(denial.to_string(), "PermissionDenied: Permission denied: PUBLISH");
        assert!(publisher.permit::<Publish>().is_err(), "no permit for every queue");
        assert!(in_root(&Policy::of_roles([Role::Administrator])).permit_publish("Custom.Events").is_err());
        let server = Authority::superuser(name("VelociraptorServer"), OrgId::root(), Arc::new(Unrestricted));
        assert!(server.permit_publish("Anything").is_ok());
    }

    #[test]
    fn a_reduction_only_reduces() {
        let reader = in_root(&Policy::of_roles([Role::Reader]));
        let reduced = reader.reduced_to(Permissions::of(&[Permission::Execve, Permission::ReadResults]));
        assert_eq!(reduced.held(), Permissions::of(&[Permission::ReadResults]));
        assert!(reduced.reduced_to(Permissions::NONE).held().is_empty());
        assert!(reduced.reduced_to(Permissions::NONE).reduced_to(Permissions::of(&[Permission::ReadResults])).held().is_empty());
        let server = Authority::superuser(name("VelociraptorServer"), OrgId::root(), Arc::new(Unrestricted));
        assert!(!server.reduced_to(Permissions::NONE).is_superuser());
        assert!(server.reduced_to(Permissions::NONE).permit_publish("Q").is_err());
    }

    #[test]
    fn a_grant_above_oneself_is_seen() {
        let org_boss = in_root(&Policy::default().with_permissions(Permissions::of(&[Permission::ServerAdmin, Permission::ReadResults])));
        assert!(org_boss.exceeded_by(&Policy::of_roles([Role::Reader])).is_empty());
        assert!(org_boss.exceeded_by(&Policy::of_roles([Role::Administrator])).contains(Permission::Execve));
    }
}
