//! The services of the server: enrolment, collections, ingest, monitoring, events, users, queries.
//!
//! Everything that reads or writes the state of an organisation is a method of an [`Org`] handle; everything that acts on somebody's behalf is a method of
//! a [`Session`]. Functions that change state on somebody's behalf take a `Permit`, which only an ACL decision makes, and a `Receipt`, which exists only
//! for a durable audit record. [`Server`] implements what `transport` asks of a frontend: an agent gets its acknowledgement when its data is durable.

mod assertions;
mod bus;
mod catalog;
mod client_admin;
mod clients;
mod clock;
mod deployment;
mod endpoint;
mod enrolment;
mod error;
mod events;
mod exports;
mod favorites;
mod flows;
mod hunts;
mod ingest;
mod layout;
mod locks;
mod metadata;
mod monitoring;
mod notebooks;
mod notify;
mod org;
mod orgs;
mod outlets;
mod progress;
mod query;
pub mod reflect;
mod removal;
mod rows;
mod secrets;
mod server_flows;
mod server_monitoring;
mod session;
mod settings;
mod supervise;
mod tasks;
mod timelines;
mod tools;
mod trail;
mod transaction;
mod uploads;
mod users;

pub use assertions::Assertions;
pub use bus::{Event, Received, Subscription};
pub use catalog::ArtifactCheck;
pub use client_admin::Belonging;
pub use clients::{LabelOperation, api_client};
pub use clock::{Clock, SystemClock};
pub use deployment::{Server, ServerOptions};
pub use endpoint::public_object;
pub use error::ServerError;
pub use events::{Push, Pusher};
pub use exports::{Download, ExportOptions, TableFormat, download};
pub use flows::{Lines, Plan, cancelled_by};
pub use hunts::{Participant, fits};
pub use layout::{event_logs, event_rows, flow_file, flow_logs, flow_rows, flow_transactions, flow_uploads};
pub use locks::{LockRequest, unlock_token_fits};
pub use metadata::MetadataPermit;
pub use notebooks::{NotebookPermit, attachment, cell_table, is_shared};
pub use org::Org;
pub use outlets::{AuditFileOutlet, FileRules, Outlet, OutletError, OutletStatus, Outlets, SyslogOutlet};
pub use secrets::SecretsKey;
pub use server_flows::ServerPlan;
pub use session::Session;
pub use settings::{ClientConfigs, InitialOrg, InitialUser, Settings};
pub use supervise::Supervised;
pub use timelines::{Merged, Timed};
pub use transaction::Pending;
pub use users::{AdminRight, Directory, OptionsChange, Passwords, UserChange, check_new_password, default_options, initial_hash};
