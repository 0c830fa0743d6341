//! Policies: what an administrator wrote down for one user in one organisation, and what it comes to.

use std::collections::BTreeSet;

use talon_ids::{OrgId, Permission, Permissions};
use talon_proto::ApiClientAcl;

use crate::{CustomRole, CustomRoles, Role};

/// Why a policy was refused. Nothing of a refused policy counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No role has that name.
    #[error("Invalid role {0}")]
    UnknownRole(String),
    /// No custom role can have that name.
    #[error("{0:?} is no name for a role: use small letters, digits, _ and -, and none of the fixed roles' names")]
    RoleName(String),
    /// A custom role can not consist of that.
    #[error("the role {0} needs at least one permission, and neither PUBLISH nor ORG_ADMIN can be in it")]
    RoleContent(String),
    /// The policy has fields that no policy has.
    #[error("Parsing Policy: Invalid policy fields: [{}]. Valid fields are [{}]", .0.join(" "), valid_fields().join(" "))]
    UnknownFields(Vec<String>),
    /// A field has a value of the wrong kind.
    #[error("Parsing Policy: field {field} should be {expected}")]
    WrongKind {
        /// The field.
        field: String,
        /// What it takes.
        expected: &'static str,
    },
}

/// The value of one policy field, as JSON, YAML and VQL spell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldValue {
    /// Whether the permission is granted.
    Flag(bool),
    /// Names of roles or queues.
    Names(Vec<String>),
}

/// What was granted to one user in one organisation: roles, single permissions and queues, which add up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    roles: Vec<Role>,
    custom: Vec<CustomRole>,
    granted: Permissions,
    publish_queues: BTreeSet<String>,
}

/// The permissions that a policy comes to in one organisation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EffectivePolicy {
    permissions: Permissions,
    publish_queues: BTreeSet<String>,
}

/// One line for each permission that a policy grants with a field of its own.
macro_rules! flags {
    ($($field:ident $permission:ident),* $(,)?) => {
        const FLAGS: &[(&str, Permission)] = &[$((stringify!($field), Permission::$permission)),*];

        fn flags_of(acl: &ApiClientAcl) -> Permissions {
            [$((acl.$field, Permission::$permission)),*].into_iter().filter(|(set, _)| *set).map(|(_, permission)| permission).collect()
        }

        fn acl_with(permissions: Permissions) -> ApiClientAcl {
            ApiClientAcl { $($field: permissions.contains(Permission::$permission),)* ..ApiClientAcl::default() }
        }
    };
}

flags! {
    any_query AnyQuery,
    read_results ReadResults,
    label_clients LabelClient,
    collect_client CollectClient,
    collect_basic CollectBasic,
    start_hunt StartHunt,
    collect_server CollectServer,
    artifact_writer ArtifactWriter,
    server_artifact_writer ServerArtifactWriter,
    execve Execve,
    notebook_editor NotebookEditor,
    server_admin ServerAdmin,
    org_admin OrgAdmin,
    impersonation Impersonation,
    filesystem_read FilesystemRead,
    filesystem_write FilesystemWrite,
    network Network,
    machine_state MachineState,
    prepare_results PrepareResults,
    delete_results DeleteResults,
    datastore_access DatastoreAccess,
}

/// Fields that a policy may carry and that grant nothing: one is internal to the server, one is out of use.
const IGNORED_FIELDS: &[&str] = &["super_user", "all_query"];

fn valid_fields() -> Vec<&'static str> {
    FLAGS.iter().map(|(field, _)| *field).chain(["roles", "publish_queues"]).collect()
}

impl Policy {
    /// A policy of roles alone.
    #[must_use]
    pub fn of_roles(roles: impl IntoIterator<Item = Role>) -> Self {
        Self::default().with_roles(roles)
    }

    /// A policy of roles alone, by their names.
    ///
    /// # Errors
    /// [`PolicyError::UnknownRole`] with the first name that is no role's.
    pub fn of_role_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, PolicyError> {
        names.into_iter().map(str::parse).collect::<Result<Vec<Role>, _>>().map(Self::of_roles)
    }

    /// A policy of roles alone, fixed ones or those of an organisation, by their names.
    ///
    /// # Errors
    /// [`PolicyError::UnknownRole`] with the first name that is no role's.
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a str>, custom: &CustomRoles) -> Result<Self, PolicyError> {
        names.into_iter().try_fold(Self::default(), |policy, name| match (name.parse::<Role>(), custom.get(name)) {
            (Ok(role), _) => Ok(policy.with_roles([role])),
            (Err(_), Some(role)) => Ok(policy.with_custom_role(role)),
            (Err(unknown), None) => Err(unknown),
        })
    }

    /// Adds a custom role.
    #[must_use]
    pub fn with_custom_role(mut self, role: CustomRole) -> Self {
        if !self.custom.iter().any(|held| held.name() == role.name()) {
            self.custom.push(role);
        }
        self
    }

    /// Adds roles.
    #[must_use]
    pub fn with_roles(mut self, roles: impl IntoIterator<Item = Role>) -> Self {
        for role in roles {
            if !self.roles.contains(&role) {
                self.roles.push(role);
            }
        }
        self
    }

    /// Adds single permissions. `PUBLISH` is granted by queue: see [`Policy::with_queue`].
    #[must_use]
    pub fn with_permissions(mut self, permissions: Permissions) -> Self {
        self.granted = self.granted.union(permissions.difference(Permissions::of(&[Permission::Publish])));
        self
    }

    /// Adds a queue to which the user may push events.
    #[must_use]
    pub fn with_queue(mut self, queue: impl Into<String>) -> Self {
        self.publish_queues.insert(queue.into());
        self
    }

    /// Reads a stored policy or one from a message. What the internal fields say is dropped.
    ///
    /// # Errors
    /// [`PolicyError::UnknownRole`]: a policy with one bad role grants nothing at all.
    pub fn from_proto(acl: &ApiClientAcl) -> Result<Self, PolicyError> {
        Self::from_proto_with(acl, &CustomRoles::none())
    }

    /// The same in an organisation with roles of its own.
    ///
    /// # Errors
    /// As [`Policy::from_proto`].
    pub fn from_proto_with(acl: &ApiClientAcl, custom: &CustomRoles) -> Result<Self, PolicyError> {
        let mut policy = Self::of_names(acl.roles.iter().map(String::as_str), custom)?.with_permissions(flags_of(acl));
        policy.publish_queues = acl.publish_queues.iter().cloned().collect();
        Ok(policy)
    }

    /// The form for storage and messages.
    #[must_use]
    pub fn to_proto(&self) -> ApiClientAcl {
        ApiClientAcl {
            roles: self.role_names().map(str::to_owned).collect(),
            publish_queues: self.publish_queues.iter().cloned().collect(),
            ..acl_with(self.granted)
        }
    }

    /// Reads a policy given as fields, by their `snake_case` or `lowerCamelCase` names.
    ///
    /// # Errors
    /// All unknown fields together, else the first field with a value of the wrong kind, else the first unknown role.
    pub fn from_fields(fields: impl IntoIterator<Item = (String, FieldValue)>) -> Result<Self, PolicyError> {
        Self::from_fields_with(fields, &CustomRoles::none())
    }

    /// The same in an organisation with roles of its own.
    ///
    /// # Errors
    /// As [`Policy::from_fields`].
    pub fn from_fields_with(fields: impl IntoIterator<Item = (String, FieldValue)>, custom: &CustomRoles) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        let mut unknown = Vec::new();
        let mut wrong = Vec::new();
        let mut roles = Vec::new();
        for (given, value) in fields {
            let field = snake_case(&given);
            let flag = FLAGS.iter().find(|(name, _)| *name == field).map(|(_, permission)| *permission);
            match (flag, field.as_str(), value) {
                (Some(permission), _, FieldValue::Flag(true)) => policy = policy.with_permissions(Permissions::of(&[permission])),
                (Some(_), _, FieldValue::Flag(false)) => {}
                (Some(_), _, FieldValue::Names(_)) => wrong.push((given, "true or false")),
                (None, "roles", FieldValue::Names(names)) => roles = names,
                (None, "publish_queues", FieldValue::Names(names)) => policy.publish_queues = names.into_iter().collect(),
                (None, "roles" | "publish_queues", FieldValue::Flag(_)) => wrong.push((given, "a list of names")),
                (None, name, _) if IGNORED_FIELDS.contains(&name) => {}
                (None, ..) => unknown.push(given.chars().take(80).collect()),
            }
        }
        if !unknown.is_empty() {
            return Err(PolicyError::UnknownFields(unknown));
        }
        if let Some((field, expected)) = wrong.into_iter().next() {
            return Err(PolicyError::WrongKind { field, expected });
        }
        let of_roles = Self::of_names(roles.iter().map(String::as_str), custom)?;
        Ok(of_roles.custom.into_iter().fold(policy.with_roles(of_roles.roles), Self::with_custom_role))
    }

    /// The roles, in the order in which they were granted.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// The custom roles.
    #[must_use]
    pub fn custom_roles(&self) -> &[CustomRole] {
        &self.custom
    }

    /// The names of all roles, fixed ones first.
    pub fn role_names(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(|role| role.name()).chain(self.custom.iter().map(CustomRole::name))
    }

    /// The permissions granted one by one, without those of the roles.
    #[must_use]
    pub fn granted(&self) -> Permissions {
        self.granted
    }

    /// The queues to which the user may push events.
    #[must_use]
    pub fn publish_queues(&self) -> &BTreeSet<String> {
        &self.publish_queues
    }

    /// Whether the policy grants nothing. The policy of a removed user is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The policy as it may be stored in `org`: outside the root organisation nothing administers organisations.
    #[must_use]
    pub fn for_org(mut self, org: &OrgId) -> Self {
        if !org.is_root() {
            self.roles.retain(|role| *role != Role::OrgAdmin);
            self.granted = self.granted.difference(Permissions::of(&[Permission::OrgAdmin]));
        }
        self
    }

    /// Both policies together; queues stay those of `self`.
    #[must_use]
    pub fn merged_with(self, other: &Self) -> Self {
        let merged = self.with_roles(other.roles.iter().copied()).with_permissions(other.granted);
        other.custom.iter().cloned().fold(merged, Self::with_custom_role)
    }

    /// What the policy comes to in `org`.
    #[must_use]
    pub fn effective(&self, org: &OrgId) -> EffectivePolicy {
        let of_roles = self.roles.iter().fold(Permissions::NONE, |sum, role| sum.union(role.permissions(org)));
        let of_custom = self.custom.iter().fold(Permissions::NONE, |sum, role| sum.union(role.permissions()));
        let mut permissions = of_roles.union(of_custom).union(self.granted);
        if !org.is_root() {
            permissions = permissions.difference(Permissions::of(&[Permission::OrgAdmin]));
        }
        EffectivePolicy { permissions, publish_queues: self.publish_queues.clone() }
    }
}

impl EffectivePolicy {
    /// Everything held, without `PUBLISH`, which is held per queue.
    #[must_use]
    pub fn permissions(&self) -> Permissions {
        self.permissions
    }

    pub(crate) fn add(&mut self, permissions: Permissions) {
        self.permissions = self.permissions.union(permissions);
    }

    /// Whether events may be pushed to `queue`.
    #[must_use]
    pub fn may_publish(&self, queue: &str) -> bool {
        self.publish_queues.contains(queue)
    }

    /// The form in messages to the user interface: no roles, every permission as its field.
    #[must_use]
    pub fn to_proto(&self) -> ApiClientAcl {
        ApiClientAcl { publish_queues: self.publish_queues.iter().cloned().collect(), ..acl_with(self.permissions) }
    }
}

fn snake_case(field: &str) -> String {
    let mut snake = String::with_capacity(field.len());
    for letter in field.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn org() -> OrgId {
        "O123".parse().unwrap()
    }

    #[test]
    fn every_permission_but_publish_has_a_field() {
        let fields: Permissions = FLAGS.iter().map(|(_, permission)| *permission).collect();
        let all: Permissions = Permission::ALL.iter().copied().collect();
        assert_eq!(all.difference(fields), Permissions::of(&[Permission::Publish]));
    }

    #[test]
    fn a_policy_survives_its_stored_form() {
        for (_, permission) in FLAGS {
            let policy = Policy::of_roles([Role::Api, Role::Reader]).with_permissions(Permissions::of(&[*permission])).with_queue("A.B");
            assert_eq!(Policy::from_proto(&policy.to_proto()).unwrap(), policy);
        }
    }

    #[test]
    fn one_bad_role_spoils_the_policy() {
        let acl = ApiClientAcl { roles: vec!["administrator".into(), "Reader".into()], execve: true, ..ApiClientAcl::default() };
        assert_eq!(Policy::from_proto(&acl), Err(PolicyError::UnknownRole("Reader".into())));
    }

    #[test]
    fn nobody_becomes_superuser_by_policy() {
        let acl = ApiClientAcl { super_user: true, all_query: true, ..ApiClientAcl::default() };
        assert!(Policy::from_proto(&acl).unwrap().is_empty());
        let fields = [("super_user".to_owned(), FieldValue::Flag(true))];
        assert!(Policy::from_fields(fields).unwrap().is_empty());
    }

    #[test]
    fn fields_are_read_strictly() {
        let fields =
            |pairs: &[(&str, FieldValue)]| Policy::from_fields(pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let policy = fields(&[
            ("roles", FieldValue::Names(vec!["reader".into(), "reader".into()])),
            ("collectClient", FieldValue::Flag(true)),
            ("execve", FieldValue::Flag(false)),
            ("publish_queues", FieldValue::Names(vec!["Q".into()])),
        ]);
        let wanted = Policy::of_roles([Role::Reader]).with_permissions(Permissions::of(&[Permission::CollectClient])).with_queue("Q");
        assert_eq!(policy, Ok(wanted));
        expect!["Parsing Policy: Invalid policy fields: [exec publish]. Valid fields are [any_query read_results label_clients collect_client collect_basic start_hunt collect_server artifact_writer server_artifact_writer execve notebook_editor server_admin org_admin impersonation filesystem_read filesystem_write network machine_state prepare_results delete_results datastore_access roles publish_queues]"].assert_eq(&fields(&[("exec", FieldValue::Flag(true)), ("publish", FieldValue::Flag(true))]).unwrap_err().to_string());
        expect!["Parsing Policy: field execve should be true or false"]
            .assert_eq(&fields(&[("execve", FieldValue::Names(vec![]))]).unwrap_err().to_string());
        expect!["Invalid role boss"].assert_eq(&fields(&[("roles", FieldValue::Names(vec!["boss".into()]))]).unwrap_err().to_string());
    }

    #[test]
    fn org_admin_counts_in_the_root_organisation_only() {
        let policy = Policy::of_roles([Role::OrgAdmin]).with_permissions(Permissions::of(&[Permission::OrgAdmin]));
        assert!(policy.effective(&OrgId::root()).permissions().contains(Permission::OrgAdmin));
        assert!(policy.effective(&org()).permissions().is_empty());
        assert!(policy.clone().for_org(&org()).is_empty());
        assert_eq!(policy.clone().for_org(&OrgId::root()), policy);
    }

    #[test]
    fn publishing_is_granted_by_queue_only() {
        let policy = Policy::default().with_permissions(Permissions::of(&[Permission::Publish])).with_queue("Q");
        let effective = policy.effective(&OrgId::root());
        assert!(effective.may_publish("Q") && !effective.may_publish("q"));
        assert!(!effective.permissions().contains(Permission::Publish));
    }
}
