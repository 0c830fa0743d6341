//! The services of the server: enrolment, collections, ingest, monitoring, events, users, queries.
//!
//! Everything that reads or writes the state of an organisation is a method of an [`Org`] handle; everything that acts on somebody's behalf is a method of
//! a [`Session`]. Functions that change state on somebody's behalf take a `Permit`, which only an ACL decision makes, and a `Receipt`, which exists only
//! for a durable audit record. [`Server`] implements what `transport` asks of a frontend: an agent gets its acknowledgement when its data is durable.

mod bus;
mod catalog;
mod clients;
mod clock;
mod deployment;
mod endpoint;
mod enrolment;
mod error;
mod events;
mod flows;
mod ingest;
mod layout;
mod monitoring;
mod notify;
mod org;
mod outlets;
mod progress;
mod query;
pub mod reflect;
mod rows;
mod session;
mod settings;
mod tasks;
mod trail;
mod transaction;
mod users;

pub use bus::{Event, Received, Subscription};
pub use clients::{LabelOperation, api_client};
pub use clock::{Clock, SystemClock};
pub use deployment::{Server, ServerOptions};
pub use endpoint::public_object;
pub use error::ServerError;
pub use events::{Push, Pusher};
pub use flows::{Lines, Plan, cancelled_by};
pub use layout::{event_logs, event_rows, flow_file, flow_logs, flow_rows, flow_uploads};
pub use org::Org;
pub use outlets::{AuditFileOutlet, FileRules, Outlet, OutletError, OutletStatus, Outlets, SyslogOutlet};
pub use session::Session;
pub use settings::{InitialOrg, InitialUser, Settings};
pub use transaction::Pending;
pub use users::{AdminRight, Directory, UserChange, password_fits};
