//! The seam to whatever evaluates queries: an [`Engine`] runs one action and hands what comes out to a [`Sink`].

use talon_endpoint_vql::Uploader;
use talon_proto::{VqlCollectorArgs, VqlRequest};
use talon_vql::{CancelToken, Dict, LogSink};

/// The statements of one artifact source, as the server compiled them.
#[derive(Clone)]
pub struct Action {
    /// The session on whose behalf they run: a flow, or `F.Monitoring`.
    pub session: String,
    /// Statements, parameters, limits.
    pub args: VqlCollectorArgs,
    /// Stops them.
    pub cancel: CancelToken,
}

/// Takes what an action produces.
pub trait Sink: LogSink + Uploader {
    /// One row of the statement with index `statement` in the action. Blocks while the server is behind. False when nobody wants rows any more.
    fn row(&self, statement: usize, request: &VqlRequest, row: &Dict) -> bool;
}

/// Evaluates actions. Called on a thread made for queries; blocks until the action ends.
pub trait Engine: Send + Sync + 'static {
    /// Runs the statements one after another in one scope.
    ///
    /// # Errors
    /// Why the action failed as a whole, for the user.
    fn run(&self, action: &Action, sink: &std::sync::Arc<dyn Sink>) -> Result<(), String>;
}
