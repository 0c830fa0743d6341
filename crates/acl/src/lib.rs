//! Who may do what.

mod effect;

pub use effect::{
    Administer, CollectClient, CollectServer, DeleteResults, Effect, Execute, FilesystemRead, FilesystemWrite, LabelClient, MachineState,
    Network, Permit, Publish, ReadResults,
};

use talon_ids::UserName;

/// Decides for one principal.
pub struct Authority {
    principal: UserName,
}

impl Authority {
    /// Allows.
    pub fn permit<E: Effect>(&self) -> Permit<E> {
        Permit::granted_to(self.principal.clone())
    }
}
