//! A session: one principal at work in one organisation. Services that act on somebody's behalf are its methods.

use talon_acl::{Administer, Authority, LabelClient};
use talon_audit::{Details, Receipt};
use talon_ids::{ClientId, OrgId, UserName};
use talon_proto::{ArtifactCollectorArgs, ClientEventTable, ClientInfo};

use crate::ServerError;
use crate::bus::Event;
use crate::clients::LabelOperation;
use crate::deployment::Server;
use crate::events::{Push, Pusher};
use crate::org::Org;
use crate::users::UserChange;

/// One principal in one organisation. The authority is a snapshot: make a new session for a new request.
#[derive(Clone, Debug)]
pub struct Session {
    server: Server,
    org: Org,
    authority: Authority,
}

impl Session {
    pub(crate) fn new(server: Server, org: Org, authority: Authority) -> Self {
        Self { server, org, authority }
    }

    /// The deployment.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The organisation.
    #[must_use]
    pub fn org(&self) -> &Org {
        &self.org
    }

    /// What the principal may do here.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The principal.
    #[must_use]
    pub fn principal(&self) -> &UserName {
        self.authority.principal()
    }

    /// The same principal in another organisation, with the authority that it has there.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] when there is no such organisation.
    pub fn in_org(&self, org: &OrgId) -> Result<Self, ServerError> {
        if org == self.org.id() { Ok(self.clone()) } else { self.server.session(self.principal(), org) }
    }

    /// Puts on record that the principal is about to do something.
    ///
    /// # Errors
    /// [`ServerError::Audit`]: it must not be done.
    pub fn record(&self, operation: &str, details: Details) -> Result<Receipt, ServerError> {
        self.org.record(self.principal().as_str(), operation, details)
    }

    /// The same principal with less authority.
    #[must_use]
    pub fn reduced_to(&self, permissions: talon_ids::Permissions) -> Self {
        Self { authority: self.authority.reduced_to(permissions), ..self.clone() }
    }
}

/// What a session does to the organisation: each decides, puts on record, and only then acts.
impl Session {
    /// Adds or removes labels of a client.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`].
    pub fn label(&self, client: &ClientId, operation: LabelOperation, labels: Vec<String>) -> Result<ClientInfo, ServerError> {
        let permit = self.authority.permit::<LabelClient>()?;
        let name = match operation {
            LabelOperation::Set => "SetClientLabel",
            LabelOperation::Remove => "RemoveClientLabel",
        };
        let receipt = self.record(name, Details::new().text("client_id", client.as_str()).list("label", &labels))?;
        self.org.label_client(&permit, receipt, client, operation, labels)?.wait()
    }

    /// Replaces the client event table. The caller must be allowed to collect every artifact in it.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::CollectDenied`], [`ServerError::Invalid`].
    pub fn set_monitoring(&self, table: ClientEventTable) -> Result<(), ServerError> {
        let groups = table.artifacts.iter().chain(table.label_events.iter().filter_map(|group| group.artifacts.as_ref()));
        let artifacts: Vec<String> = groups.flat_map(|group| group.artifacts.iter().cloned()).collect();
        // What is not known is told to those who may set the table.
        let known = artifacts.iter().filter(|name| self.org.artifacts().get(name).is_some()).cloned().collect();
        let wanted = ArtifactCollectorArgs { artifacts: known, ..ArtifactCollectorArgs::default() };
        let permit = self.org.catalog().permit_collection(&self.authority, &wanted)?;
        let details = Details::new().text("user", self.principal().as_str()).list("state", &artifacts);
        let receipt = self.record("SetClientMonitoringState", details)?;
        self.org.set_monitoring_table(&permit, receipt, table)?.wait()
    }

    /// Pushes events to a queue as the caller, who must be allowed to publish to it or administer the server.
    ///
    /// # Errors
    /// [`ServerError::Denied`], and as [`Org::push`].
    pub fn push_events(&self, push: Push) -> Result<Vec<Event>, ServerError> {
        if self.authority.is_superuser() {
            return self.org.push_and_publish(&Pusher::Server { source: self.principal() }, push);
        }
        let permit = self.authority.permit_publish(&push.queue.to_string())?;
        self.org.push_and_publish(&Pusher::User(&permit), push)
    }

    /// Pushes events from a query: as [`Session::push_events`], and administrators of the server push to any queue that users may.
    ///
    /// # Errors
    /// As [`Session::push_events`].
    pub fn send_event(&self, push: Push) -> Result<Vec<Event>, ServerError> {
        match self.authority.permit::<Administer>() {
            Ok(permit) if !self.authority.is_superuser() => self.org.push_and_publish(&Pusher::Administrator(&permit), push),
            _ => self.push_events(push),
        }
    }

    /// Changes a user in `orgs`.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`], and as [`crate::Directory::change`].
    pub fn change_user(&self, operation: &str, orgs: &[OrgId], change: UserChange) -> Result<(), ServerError> {
        let users = self.server.users();
        let right = users.right_over(self.principal(), orgs)?;
        let mut details = Details::new().text("username", change.user.as_str());
        if let Some(policy) = &change.policy {
            let acl = crate::reflect::to_json("ApiClientACL", &policy.to_proto())?;
            details = details.json("acl", serde_json::from_str(&acl).unwrap_or_default());
        }
        details = details.list("org_ids", orgs.iter().map(OrgId::as_str));
        if change.password.is_some() {
            details = details.secret("password");
        }
        let receipt = self.record(operation, details)?;
        users.change(&right, receipt, change, self.org.rng())?.wait()
    }

    /// Takes a user's policies away in `orgs`, and the user with the last of them.
    ///
    /// # Errors
    /// As [`Session::change_user`].
    pub fn delete_user(&self, orgs: &[OrgId], user: &UserName) -> Result<(), ServerError> {
        let users = self.server.users();
        let right = users.right_over(self.principal(), orgs)?;
        let details = Details::new().text("username", user.as_str()).list("org_ids", orgs.iter().map(OrgId::as_str));
        let receipt = self.record("user_delete", details)?;
        users.delete(&right, receipt, user)?.wait()
    }
}
