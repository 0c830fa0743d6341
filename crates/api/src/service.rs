//! The gate that every call passes: the caller is found, the method's row is decided, the refusal is recorded.

use std::sync::Arc;

use talon_acl::{Denial, Reason};
use talon_audit::Details;
use talon_ids::{OrgId, Permission, Permissions, UserName};
use talon_lockdown::PrefixRules;
use talon_server::{Server, ServerError, Session};
use talon_vql::Environment;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::identity::{Caller, Peer, caller};
use crate::methods::Method;
use crate::status;

/// How many queries run at one time; more wait.
const MAX_QUERIES: usize = 256;

/// What the API is made of.
#[derive(Clone)]
pub struct ApiOptions {
    /// The deployment.
    pub server: Server,
    /// The name in the gateway's certificate, if there is a gateway. It is believed about its users.
    pub gateway: Option<String>,
    /// Which stored files may be read by path.
    pub stored_files: PrefixRules,
    /// Makes the environment of a query that runs on a session's behalf.
    pub environment: Arc<dyn Fn(&Session) -> Environment + Send + Sync>,
}

/// The methods of the API over one deployment.
#[derive(Clone)]
pub struct ApiService {
    pub(crate) options: Arc<ApiOptions>,
    pub(crate) queries: Arc<Semaphore>,
    /// Cancelled when the listener drains: streams end.
    pub(crate) closing: CancellationToken,
}

impl ApiService {
    /// The API of a deployment. Requests must carry a [`Peer`] among their extensions: [`crate::ApiListener`] puts it there.
    #[must_use]
    pub fn new(options: ApiOptions) -> Self {
        Self { options: Arc::new(options), queries: Arc::new(Semaphore::new(MAX_QUERIES)), closing: CancellationToken::new() }
    }

    /// A method that answers once. Everything that may block happens on a thread for that.
    pub(crate) async fn unary<Q, A>(
        &self,
        method: Method,
        request: Request<Q>,
        decide: fn(&mut Call, &Q) -> Result<(), Status>,
        handle: fn(Call, Q) -> Result<A, Status>,
    ) -> Result<tonic::Response<A>, Status>
    where
        Q: Send + 'static,
        A: Send + 'static,
    {
        let (pending, request) = self.pending(method, request)?;
        blocking(move || {
            let mut call = pending.admit()?;
            decide(&mut call, &request)?;
            handle(call, request).map(tonic::Response::new)
        })
        .await
    }

    /// Splits what decides about a request off it.
    pub(crate) fn pending<Q>(&self, method: Method, request: Request<Q>) -> Result<(Pending, Q), Status> {
        let peer = request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::unauthenticated("no verified connection"))?;
        let name = peer.name().ok_or_else(|| Status::unknown("Must set a username"))?;
        let caller = caller(name, self.options.gateway.as_deref(), request.metadata());
        Ok((Pending { service: self.clone(), method, caller, peer }, request.into_inner()))
    }
}

impl std::fmt::Debug for ApiService {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ApiService")
    }
}

/// Runs work that may block on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Status::internal("the call ended in a defect of the program")))
}

/// A call whose caller has not been looked up.
pub(crate) struct Pending {
    service: ApiService,
    method: Method,
    caller: Caller,
    peer: Peer,
}

impl Pending {
    /// Looks the caller up. Nothing has been decided after this but that there is such a user.
    pub(crate) fn admit(self) -> Result<Call, Status> {
        let server = &self.service.options.server;
        let unknown = || self.method.unknown_user(&format!("User not found: {}", self.caller.name));
        let name: UserName = self.caller.name.parse().map_err(|_| unknown())?;
        let superuser = name == *server.users().superuser();
        let known =
            if superuser { !self.caller.by_gateway } else { server.users().user(&name).map_err(|error| status::of(&error))?.is_some() };
        if !known {
            return Err(unknown());
        }
        let session = server.session(&name, &self.caller.org).map_err(|error| status::of(&error))?;
        Ok(Call { service: self.service, method: self.method, session, peer: self.peer })
    }
}

/// A call of a known user.
pub(crate) struct Call {
    pub(crate) service: ApiService,
    pub(crate) method: Method,
    pub(crate) session: Session,
    peer: Peer,
}

impl Call {
    /// Goes on in the organisation that the request names; an empty name is the root organisation.
    pub(crate) fn enter(&mut self, org: &str) -> Result<(), Status> {
        let org: OrgId = org.parse().map_err(|_| Status::unknown("Org not found"))?;
        self.session = self.session.in_org(&org).map_err(|error| status::of(&error))?;
        Ok(())
    }

    /// Decides by the method's row.
    pub(crate) fn by_row(&self) -> Result<(), Status> {
        let row = self.method.row();
        row.check(self.session.authority()).map_err(|denial| self.refused(&denial, &row.refusal(&denial)))
    }

    /// Decides a permission that the row leaves to the request.
    pub(crate) fn need(&self, permission: Permission) -> Result<(), Status> {
        let checked = self.session.authority().check(Permissions::of(&[permission]));
        checked.map_err(|denial| self.refused(&denial, &self.method.row().refusal(&denial)))
    }

    /// Records a refusal and gives the status for it. That it cannot be recorded changes nothing: the action is not done anyway.
    pub(crate) fn refused(&self, denial: &Denial, text: &str) -> Status {
        self.record_refusal(text, &denial.asked.to_string());
        tracing::debug!(method = self.method.row().name, principal = %denial.principal, cure = %denial.cure(), "refused");
        Status::permission_denied(text)
    }

    /// As [`Call::refused`], where a caller without any policy is told that there is none.
    pub(crate) fn refused_by_token(&self, denial: &Denial, text: &str) -> Status {
        let status = self.refused(denial, text);
        if matches!(denial.reason, Reason::NoPolicy) { Status::not_found("NotFoundError") } else { status }
    }

    /// Records that a service refused, and gives the status for that.
    pub(crate) fn failed(&self, error: &ServerError) -> Status {
        if error.is_denied() {
            self.record_refusal(&error.to_string(), "");
        }
        status::of(error)
    }

    fn record_refusal(&self, text: &str, asked: &str) {
        let mut details = Details::new().text("method", self.method.row().name).text("refusal", text).text("asked", asked);
        if let Some(remote) = self.peer.remote() {
            details = details.text("remote", &remote.to_string());
        }
        let recorded = self.session.org().record_denial(self.session.principal().as_str(), "api_denied", details);
        if let Err(error) = recorded {
            tracing::error!(%error, "a refusal could not be recorded");
        }
    }
}
