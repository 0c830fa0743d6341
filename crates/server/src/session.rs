//! A session: one principal at work in one organisation. Services that act on somebody's behalf are its methods.

use talon_acl::{Administer, Authority, LabelClient};
use talon_audit::{Details, Receipt};
use talon_ids::{ClientId, OrgId, Permission, Permissions, UserName};
use talon_proto::{ArtifactCollectorArgs, ClientEventTable, ClientInfo};

use crate::ServerError;
use crate::bus::Event;
use crate::clients::LabelOperation;
use crate::deployment::Server;
use crate::events::{Push, Pusher};
use crate::org::Org;

/// One principal in one organisation. The authority is a snapshot: make a new session for a new request.
#[derive(Clone, Debug)]
pub struct Session {
    server: Server,
    org: Org,
    authority: Authority,
    originator: Option<UserName>,
    locks_only: bool,
}

impl Session {
    pub(crate) fn new(server: Server, org: Org, authority: Authority) -> Self {
        Self { server, org, authority, originator: None, locks_only: false }
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

    /// Who began this, when it is not the principal: somebody who runs a query as another user.
    #[must_use]
    pub fn originator(&self) -> Option<&UserName> {
        self.originator.as_ref()
    }

    /// The same principal in another organisation, with the authority that it has there.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] when there is no such organisation.
    pub fn in_org(&self, org: &OrgId) -> Result<Self, ServerError> {
        if org == self.org.id() {
            return Ok(self.clone());
        }
        let there = self.server.session(self.principal(), org)?;
        let authority = there.authority.within_ceiling_of(&self.authority);
        Ok(Self { authority, originator: self.originator.clone(), locks_only: self.locks_only, ..there })
    }

    /// The session of a query that is to run in another organisation, as another user, or both. Who may is decided anew in that organisation:
    /// strangers to it do not enter, and being somebody else takes `IMPERSONATION` there, of whoever runs the query now.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] for an organisation or a user that is not there, [`ServerError::Forbidden`].
    pub fn elsewhere(&self, org: Option<&OrgId>, runas: Option<&UserName>) -> Result<Self, ServerError> {
        let org = org.unwrap_or(self.org.id());
        let there = self.in_org(org)?;
        let Some(user) = runas.filter(|user| user.folded() != self.principal().folded()) else {
            if org != self.org.id() && there.authority.held().is_empty() {
                return Err(ServerError::Forbidden(format!(
                    "User {} ({}) query in {org}: PermissionDenied",
                    self.principal(),
                    self.org.id()
                )));
            }
            return Ok(there);
        };
        let denied = || {
            let (principal, here) = (self.principal(), self.org.id());
            ServerError::Forbidden(format!("User {principal} ({here}) impersonation to {user} ({org}): PermissionDenied"))
        };
        let details = Details::new().text("user", user.as_str()).text("org", org.as_str());
        let allowed = there.authority.check(Permissions::of(&[Permission::Impersonation])).is_ok();
        // The superuser is nobody whom a policy binds, so nobody but itself becomes it.
        if !allowed || user.folded() == self.server.users().superuser().folded() {
            there.org.record_denial(self.principal().as_str(), "impersonate", details)?;
            return Err(denied());
        }
        let users = self.server.users();
        let known = users.user(user)?.ok_or_else(|| ServerError::not_found("User", user))?;
        drop(there.record("impersonate", details)?);
        let other = self.server.session(&known.name.parse()?, org)?;
        let authority = other.authority.within_ceiling_of(&self.authority);
        let originator = self.originator.clone().or_else(|| Some(self.principal().clone()));
        Ok(Self { authority, originator, locks_only: self.locks_only, ..other })
    }

    /// Puts on record that the principal is about to do something.
    ///
    /// # Errors
    /// [`ServerError::Audit`]: it must not be done.
    pub fn record(&self, operation: &str, details: Details) -> Result<Receipt, ServerError> {
        let details = match &self.originator {
            Some(originator) => details.text("originating_principal", originator.as_str()),
            None => details,
        };
        self.org.record(self.principal().as_str(), operation, details)
    }

    /// The same principal with no authority at all, and so with nothing but what decides for itself: the functions about locks.
    #[must_use]
    pub fn reduced_to_locks(&self) -> Self {
        Self { locks_only: true, ..self.reduced_to(Permissions::NONE) }
    }

    /// Whether this session is there for the removal of locks only.
    pub(crate) fn is_for_locks_only(&self) -> bool {
        self.locks_only
    }

    /// The same principal with less authority.
    #[must_use]
    pub fn reduced_to(&self, permissions: Permissions) -> Self {
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

    /// Lets a client that waits look for work, or all of them.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn notify(&self, client: Option<&ClientId>) -> Result<(), ServerError> {
        let permit = self.authority.permit::<talon_acl::CollectClient>()?;
        self.org.own(&permit)?;
        let details = Details::new().text("client_id", client.map_or("all", ClientId::as_str));
        drop(self.record("NotifyClients", details)?);
        let readers = &self.org.state().readers;
        client.map_or_else(|| readers.wake_all(), |client| readers.wake(client));
        Ok(())
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
}
