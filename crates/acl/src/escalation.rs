//! Escalation: who can reach administrator, or code on endpoints or on the server, by which shortest path. Pure: over facts that others collect.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use talon_ids::{OrgId, Permission, Permissions};

use crate::{CustomRoles, Policy, Role};

/// What should not be reached by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Goal {
    /// Everything that an administrator of the organisation may do.
    Administrator,
    /// Code of one's choice on endpoints.
    EndpointCode,
    /// Code of one's choice on the server machine.
    ServerCode,
}

impl Goal {
    /// Every goal.
    pub const ALL: &'static [Self] = &[Self::Administrator, Self::EndpointCode, Self::ServerCode];

    /// The name in reports and assertions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::EndpointCode => "endpoint_code",
            Self::ServerCode => "server_code",
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Somebody with a policy in one organisation.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The user.
    pub name: String,
    /// The organisation.
    pub org: OrgId,
    /// What was granted.
    pub policy: Policy,
}

/// What matters of one artifact. Everything about its queries is about those that it depends on too.
#[derive(Debug, Clone, Default)]
pub struct ArtifactFacts {
    /// The name.
    pub name: String,
    /// The organisation that it belongs to; built-in artifacts belong to the root.
    pub org: OrgId,
    /// Whether it runs on the server.
    pub on_server: bool,
    /// Whether users wrote it.
    pub custom: bool,
    /// Whether `COLLECT_BASIC` is enough for it.
    pub basic: bool,
    /// What whoever collects it must hold.
    pub required: Permissions,
    /// The permissions that its queries use where they run.
    pub uses: Permissions,
    /// Whether whoever collects it chooses parameters.
    pub parameters: bool,
    /// The user whom it runs as in place of the one who collects it.
    pub impersonates: Option<String>,
    /// Whether it is in a table of event queries, which run without anybody collecting them.
    pub monitored: bool,
}

/// Who and what there is.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Users with their policies.
    pub holders: Vec<Holder>,
    /// The roles that organisations made.
    pub roles: BTreeMap<OrgId, CustomRoles>,
    /// Artifacts.
    pub artifacts: Vec<ArtifactFacts>,
}

/// Whom a path begins with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A user.
    User(String),
    /// Whoever holds this role.
    Role(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(out, "user {name}"),
            Self::Role(name) => write!(out, "role {name}"),
        }
    }
}

/// A goal that somebody reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Escalation {
    /// Who.
    pub subject: Subject,
    /// Where.
    pub org: OrgId,
    /// What is reached.
    pub goal: Goal,
    /// How, step by step.
    pub path: Vec<String>,
}

/// What somebody has or came by, as bits: permissions first, then these.
type Held = u64;

const RUNS_QUERIES: Held = 1 << 32;
const ANY_USER: Held = 1 << 33;
const SUPERUSER: Held = 1 << 34;
const ADMINISTRATOR: Held = 1 << 35;
const ENDPOINT_CODE: Held = 1 << 36;
const SERVER_CODE: Held = 1 << 37;

const fn bits(permissions: &[Permission]) -> Held {
    let mut bits = 0;
    let mut rest = permissions;
    while let Some((first, tail)) = rest.split_first() {
        bits |= 1 << *first as u32;
        rest = tail;
    }
    bits
}

fn of(permissions: Permissions) -> Held {
    permissions.iter().fold(0, |sum, permission| sum | bits(&[permission]))
}

/// One step: all of `needs` come to `gives`.
#[derive(Debug, Clone)]
struct Step {
    needs: Held,
    gives: Held,
    how: String,
}

use Permission as P;

/// Steps that are there in every deployment.
const ALWAYS: &[(Held, Held, &str)] = &[
    (bits(&[P::AnyQuery]), RUNS_QUERIES, "ANY_QUERY runs queries through the API"),
    (bits(&[P::NotebookEditor]), RUNS_QUERIES, "NOTEBOOK_EDITOR runs queries in notebooks"),
    (
        bits(&[P::ServerArtifactWriter, P::CollectServer]),
        RUNS_QUERIES,
        "SERVER_ARTIFACT_WRITER and COLLECT_SERVER run queries as a server artifact",
    ),
    (bits(&[P::OrgAdmin]), ADMINISTRATOR, "ORG_ADMIN grants any policy in any organisation"),
    (bits(&[P::DatastoreAccess]), ADMINISTRATOR, "DATASTORE_ACCESS writes users and policies in the raw datastore"),
    (bits(&[P::Impersonation]) | RUNS_QUERIES, ANY_USER, "IMPERSONATION runs queries as anybody in the organisation"),
    (ANY_USER, ADMINISTRATOR, "an administrator is among those users"),
    (bits(&[P::Execve]) | RUNS_QUERIES, SERVER_CODE, "EXECVE runs commands on the server"),
    (bits(&[P::FilesystemWrite]) | RUNS_QUERIES, SERVER_CODE, "FILESYSTEM_WRITE writes the server's files"),
    (bits(&[P::FilesystemRead]) | RUNS_QUERIES, SUPERUSER, "FILESYSTEM_READ reads the server's configuration with its keys"),
    (SERVER_CODE, SUPERUSER, "the server's process holds the keys of the superuser"),
    (SUPERUSER, ADMINISTRATOR, "the superuser is bound by no policy"),
    (SUPERUSER, SERVER_CODE, "the superuser runs commands on the server"),
    (ADMINISTRATOR, SERVER_CODE, "an administrator runs commands on the server"),
    (ADMINISTRATOR, ENDPOINT_CODE, "an administrator collects any artifact"),
    (bits(&[P::ArtifactWriter, P::CollectClient]), ENDPOINT_CODE, "ARTIFACT_WRITER and COLLECT_CLIENT collect an artifact of one's own"),
    (
        bits(&[P::ArtifactWriter, P::StartHunt, P::CollectClient]),
        ENDPOINT_CODE,
        "ARTIFACT_WRITER and START_HUNT hunt with an artifact of one's own",
    ),
    (bits(&[P::ArtifactWriter]), ENDPOINT_CODE, "ARTIFACT_WRITER changes artifacts and tools that others collect"),
    (
        bits(&[P::ArtifactWriter]),
        ANY_USER,
        "ARTIFACT_WRITER puts notebook templates into artifacts, which run as whoever opens the notebook",
    ),
    (bits(&[P::ServerArtifactWriter]), ANY_USER, "SERVER_ARTIFACT_WRITER changes artifacts that others run, as them"),
];

/// Everything that anybody reaches, users first, then roles. Whoever is an administrator already is in it with an empty path.
#[must_use]
pub fn escalations(inventory: &Inventory) -> Vec<Escalation> {
    let mut maps: BTreeMap<OrgId, Map> = BTreeMap::new();
    let mut found = Vec::new();
    let mut add = |subject: Subject, org: &OrgId, permissions: Permissions| {
        let map = maps.entry(org.clone()).or_insert_with(|| Map::new(inventory, org));
        for (goal, path) in map.reach(permissions) {
            found.push(Escalation { subject: subject.clone(), org: org.clone(), goal: *goal, path: path.clone() });
        }
    };
    for holder in &inventory.holders {
        add(Subject::User(holder.name.clone()), &holder.org, holder.policy.effective(&holder.org).permissions());
    }
    for role in Role::ALL {
        add(Subject::Role(role.name().to_owned()), &OrgId::root(), role.permissions(&OrgId::root()));
    }
    for (org, roles) in &inventory.roles {
        for role in roles.iter() {
            add(Subject::Role(role.name().to_owned()), org, role.permissions());
        }
    }
    found
}

/// The steps of one organisation, and what sets of permissions come to there. Many users share a set.
struct Map {
    steps: Vec<Step>,
    administrator: Held,
    known: HashMap<Permissions, Vec<(Goal, Vec<String>)>>,
}

impl Map {
    fn new(inventory: &Inventory, org: &OrgId) -> Self {
        let mut steps: Vec<Step> =
            ALWAYS.iter().map(|(needs, gives, how)| Step { needs: *needs, gives: *gives, how: (*how).to_owned() }).collect();
        // Organisations inherit the artifacts of the root.
        for artifact in inventory.artifacts.iter().filter(|artifact| artifact.org == *org || artifact.org.is_root()) {
            steps.extend(steps_of(artifact));
        }
        let mut best: HashMap<(Held, Held), usize> = HashMap::new();
        let mut unique: Vec<Step> = Vec::new();
        for step in steps {
            best.entry((step.needs, step.gives)).or_insert_with(|| {
                unique.push(step);
                unique.len()
            });
        }
        Self { steps: unique, administrator: of(Role::Administrator.permissions(&"Ox".parse().unwrap_or_default())), known: HashMap::new() }
    }

    fn reach(&mut self, permissions: Permissions) -> &[(Goal, Vec<String>)] {
        let (steps, administrator) = (&self.steps, self.administrator);
        self.known.entry(permissions).or_insert_with(|| walk(steps, of(permissions), administrator))
    }
}

/// What one artifact makes possible.
fn steps_of(artifact: &ArtifactFacts) -> Vec<Step> {
    let collect = if artifact.on_server { P::CollectServer } else { P::CollectClient };
    let name = &artifact.name;
    let mut ways = vec![(bits(&[collect]) | of(artifact.required), format!("{collect} collects {name}"))];
    if artifact.basic {
        ways.push((bits(&[P::CollectBasic]), format!("COLLECT_BASIC collects {name}, which is marked as basic")));
    }
    let mut steps = Vec::new();
    for (needs, how) in &ways {
        if !artifact.on_server && artifact.parameters && artifact.uses.contains(P::Execve) {
            let how = format!("{how}, which runs commands that its parameters choose");
            steps.push(Step { needs: *needs, gives: ENDPOINT_CODE, how });
        }
        if let Some(user) = artifact.impersonates.as_ref().filter(|_| artifact.on_server) {
            steps.push(Step { needs: *needs, gives: ANY_USER, how: format!("{how}, which runs as {user}") });
        }
    }
    if artifact.monitored && artifact.custom {
        let (writer, gives, table) =
            if artifact.on_server { (P::ServerArtifactWriter, SUPERUSER, "server") } else { (P::ArtifactWriter, ENDPOINT_CODE, "client") };
        steps.push(Step { needs: bits(&[writer]), gives, how: format!("{writer} rewrites {name}, which is in the {table} event table") });
    }
    steps
}

/// The goals that are reached from `start`, each by a shortest path: breadth first, one wave of steps after the other.
fn walk(steps: &[Step], start: Held, administrator: Held) -> Vec<(Goal, Vec<String>)> {
    let mut held = start;
    // By which step each thing that is not a permission was come by.
    let mut by: HashMap<Held, usize> = HashMap::new();
    if start & administrator == administrator {
        held |= ADMINISTRATOR;
    }
    loop {
        let mut wave = 0;
        for (number, step) in steps.iter().enumerate() {
            if held & step.needs == step.needs && (held | wave) & step.gives == 0 {
                wave |= step.gives;
                by.insert(step.gives, number);
            }
        }
        if wave == 0 {
            break;
        }
        held |= wave;
    }
    let goals = [(Goal::Administrator, ADMINISTRATOR), (Goal::EndpointCode, ENDPOINT_CODE), (Goal::ServerCode, SERVER_CODE)];
    let reached = goals.into_iter().filter(|(_, bit)| held & bit != 0);
    reached.map(|(goal, bit)| (goal, path(steps, &by, bit))).collect()
}

/// The steps that led to `bit`, first things first.
fn path(steps: &[Step], by: &HashMap<Held, usize>, bit: Held) -> Vec<String> {
    let mut wanted = vec![bit];
    let mut used: Vec<usize> = Vec::new();
    while let Some(next) = wanted.pop() {
        let Some(step) = by.get(&next).and_then(|number| steps.get(*number).map(|step| (*number, step))) else { continue };
        if used.contains(&step.0) {
            continue;
        }
        used.push(step.0);
        wanted.extend(
            [RUNS_QUERIES, ANY_USER, SUPERUSER, ADMINISTRATOR, ENDPOINT_CODE, SERVER_CODE].iter().filter(|bit| step.1.needs & **bit != 0),
        );
    }
    used.iter().rev().filter_map(|number| steps.get(*number).map(|step| step.how.clone())).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::CustomRole;

    fn holding(permissions: &[Permission]) -> Inventory {
        let policy = Policy::default().with_permissions(Permissions::of(permissions));
        Inventory { holders: vec![Holder { name: "eve".into(), org: OrgId::root(), policy }], ..Inventory::default() }
    }

    /// What eve reaches, as lines.
    fn reached(inventory: &Inventory) -> Vec<String> {
        let of_eve = |found: &Escalation| found.subject == Subject::User("eve".into());
        escalations(inventory)
            .iter()
            .filter(|found| of_eve(found))
            .map(|found| format!("{}: {}", found.goal, found.path.join("; ")))
            .collect()
    }

    fn goals(inventory: &Inventory) -> Vec<Goal> {
        let of_eve = |found: &Escalation| found.subject == Subject::User("eve".into());
        escalations(inventory).into_iter().filter(of_eve).map(|found| found.goal).collect()
    }

    fn artifact(name: &str) -> ArtifactFacts {
        ArtifactFacts { name: name.into(), ..ArtifactFacts::default() }
    }

    #[test]
    fn roles_that_are_administrators_in_all_but_name() {
        let by_role: Vec<String> = escalations(&Inventory::default())
            .iter()
            .filter(|found| found.goal == Goal::Administrator)
            .map(|found| format!("{} by {} steps", found.subject, found.path.len()))
            .collect();
        expect![[r#"
            [
                "role org_admin by 1 steps",
                "role administrator by 0 steps",
                "role artifact_writer by 2 steps",
            ]
        "#]]
        .assert_debug_eq(&by_role);
    }

    #[test]
    fn e1_the_administrator_of_an_organisation_does_not_take_over_accounts() {
        assert!(goals(&holding(&[P::ServerAdmin, P::ReadResults])).is_empty());
    }

    #[test]
    fn e4_collecting_on_the_server_is_not_being_the_server() {
        let mut inventory = holding(&[P::CollectServer]);
        inventory.artifacts.push(ArtifactFacts { on_server: true, parameters: true, uses: Permissions::ALL, ..artifact("Server.Any") });
        assert!(goals(&inventory).is_empty());
    }

    #[test]
    fn e5_an_artifact_that_impersonates_lends_its_user() {
        let mut inventory = holding(&[P::CollectServer]);
        inventory.artifacts.push(ArtifactFacts { on_server: true, impersonates: Some("admin".into()), ..artifact("Server.AsAdmin") });
        expect!["administrator: COLLECT_SERVER collects Server.AsAdmin, which runs as admin; an administrator is among those users"]
            .assert_eq(reached(&inventory).first().unwrap());
        inventory.artifacts.first_mut().unwrap().required = Permissions::of(&[P::Impersonation]);
        assert!(goals(&inventory).is_empty(), "required_permissions of the artifact count");
    }

    #[test]
    fn e6_writing_and_collecting_client_artifacts_is_root_on_endpoints() {
        let found = reached(&holding(&[P::ArtifactWriter, P::CollectClient]));
        assert!(
            found.iter().any(|line| line == "endpoint_code: ARTIFACT_WRITER and COLLECT_CLIENT collect an artifact of one's own"),
            "{found:?}"
        );
    }

    #[test]
    fn e7_writing_alone_reaches_endpoints_through_others() {
        let found = reached(&holding(&[P::ArtifactWriter]));
        assert!(
            found.iter().any(|line| line == "endpoint_code: ARTIFACT_WRITER changes artifacts and tools that others collect"),
            "{found:?}"
        );
    }

    #[test]
    fn e8_an_organisation_administrator_is_everything() {
        expect!["administrator: ORG_ADMIN grants any policy in any organisation"]
            .assert_eq(reached(&holding(&[P::OrgAdmin])).first().unwrap());
    }

    #[test]
    fn e9_nobody_grants_themselves_what_they_lack() {
        assert!(goals(&holding(&[P::ServerAdmin])).is_empty());
        expect!["administrator: DATASTORE_ACCESS writes users and policies in the raw datastore"]
            .assert_eq(reached(&holding(&[P::DatastoreAccess])).first().unwrap());
    }

    #[test]
    fn impersonation_takes_a_way_to_run_queries() {
        assert!(goals(&holding(&[P::Impersonation])).is_empty());
        expect!["administrator: ANY_QUERY runs queries through the API; IMPERSONATION runs queries as anybody in the organisation; an administrator is among those users"]
            .assert_eq(reached(&holding(&[P::Impersonation, P::AnyQuery])).first().unwrap());
    }

    #[test]
    fn files_and_commands_of_the_server_are_the_server() {
        for permission in [P::FilesystemRead, P::FilesystemWrite, P::Execve] {
            assert!(goals(&holding(&[permission])).is_empty(), "{permission}");
            assert_eq!(goals(&holding(&[permission, P::NotebookEditor])).len(), 3, "{permission}");
        }
    }

    #[test]
    fn e10_e12_e13_querying_and_notebooks_alone_reach_nothing() {
        assert!(goals(&holding(&[P::AnyQuery, P::ReadResults, P::NotebookEditor, P::PrepareResults])).is_empty());
    }

    #[test]
    fn e17_labels_reach_nothing_of_ones_choice() {
        let mut inventory = holding(&[P::LabelClient]);
        inventory.artifacts.push(ArtifactFacts { monitored: true, uses: Permissions::of(&[P::Execve]), ..artifact("Windows.Events.X") });
        assert!(goals(&inventory).is_empty());
    }

    #[test]
    fn e18_basic_artifacts_give_what_their_parameters_allow() {
        let mut inventory = holding(&[P::CollectBasic]);
        let required = Permissions::of(&[P::Execve]);
        let shell = ArtifactFacts { required, uses: required, parameters: true, ..artifact("Linux.Shell") };
        inventory.artifacts.push(shell);
        assert!(goals(&inventory).is_empty());
        inventory.artifacts.first_mut().unwrap().basic = true;
        expect![
            "endpoint_code: COLLECT_BASIC collects Linux.Shell, which is marked as basic, which runs commands that its parameters choose"
        ]
        .assert_eq(reached(&inventory).first().unwrap());
    }

    #[test]
    fn a_wrapper_without_requirements_lends_what_it_wraps() {
        let mut inventory = holding(&[P::CollectClient]);
        let uses = Permissions::of(&[P::Execve]);
        inventory.artifacts.push(ArtifactFacts { uses, parameters: true, ..artifact("Custom.Wrapper") });
        assert_eq!(goals(&inventory), [Goal::EndpointCode]);
        inventory.artifacts.first_mut().unwrap().parameters = false;
        assert!(goals(&inventory).is_empty(), "a fixed command is what its author chose");
    }

    #[test]
    fn an_artifact_in_an_event_table_is_its_writers() {
        let mut inventory = holding(&[P::ServerArtifactWriter]);
        inventory.artifacts.push(ArtifactFacts { on_server: true, custom: true, monitored: true, ..artifact("Custom.Server.Events") });
        let found = reached(&inventory);
        assert!(
            found.iter().any(|line| line.starts_with("server_code: SERVER_ARTIFACT_WRITER rewrites Custom.Server.Events")),
            "{found:?}"
        );
    }

    #[test]
    fn organisations_have_the_artifacts_of_the_root_and_their_own() {
        let org: OrgId = "OA".parse().unwrap();
        let policy = Policy::default().with_permissions(Permissions::of(&[P::CollectServer]));
        let mut inventory = Inventory { holders: vec![Holder { name: "eve".into(), org: org.clone(), policy }], ..Inventory::default() };
        inventory.artifacts.push(ArtifactFacts {
            org: "OB".parse().unwrap(),
            on_server: true,
            impersonates: Some("a".into()),
            ..artifact("X")
        });
        assert!(goals(&inventory).is_empty());
        inventory.artifacts.first_mut().unwrap().org = org;
        assert_eq!(goals(&inventory).first(), Some(&Goal::Administrator));
    }

    #[test]
    fn custom_roles_are_subjects_too() {
        let role = CustomRole::new("ops", Permissions::of(&[P::Execve, P::AnyQuery])).unwrap();
        let inventory = Inventory { roles: [(OrgId::root(), [role].into_iter().collect())].into(), ..Inventory::default() };
        let found = escalations(&inventory);
        assert!(found.iter().any(|found| found.subject == Subject::Role("ops".into()) && found.goal == Goal::ServerCode));
    }
}
