//! Effects on the outside world, and the permits without which no function that has one can be called.

use std::fmt;
use std::marker::PhantomData;

use talon_ids::{OrgId, Permission, UserName};

/// A kind of effect. The set is closed: the trait is sealed.
pub trait Effect: sealed::Sealed + Send + Sync + 'static {
    /// The permission that allows it.
    const PERMISSION: Permission;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! effects {
    ($($(#[$doc:meta])* $name:ident => $permission:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name;

            impl sealed::Sealed for $name {}

            impl Effect for $name {
                const PERMISSION: Permission = Permission::$permission;
            }
        )*
    };
}

effects! {
    /// Reading files of this machine.
    FilesystemRead => FilesystemRead;
    /// Writing files of this machine.
    FilesystemWrite => FilesystemWrite;
    /// Starting processes.
    Execute => Execve;
    /// Opening network connections.
    Network => Network;
    /// Reading the state of this machine.
    MachineState => MachineState;
    /// Reading what was collected.
    ReadResults => ReadResults;
    /// Scheduling and cancelling collections on endpoints.
    CollectClient => CollectClient;
    /// Running artifacts on the server.
    CollectServer => CollectServer;
    /// Changing labels and metadata of clients.
    LabelClient => LabelClient;
    /// Changing the server, its users and its secrets.
    Administer => ServerAdmin;
    /// Deleting what was collected.
    DeleteResults => DeleteResults;
    /// Pushing events.
    Publish => Publish;
    /// Starting and changing hunts.
    StartHunt => StartHunt;
    /// Writing and calculating notebooks.
    EditNotebooks => NotebookEditor;
    /// Packing what was collected for download.
    PrepareResults => PrepareResults;
}

/// Proof that an ACL decision allowed effect `E` to a principal in an organisation. Only [`crate::Authority`] makes one.
pub struct Permit<E: Effect> {
    principal: UserName,
    org: OrgId,
    effect: PhantomData<E>,
}

impl<E: Effect> Permit<E> {
    pub(crate) fn granted_to(principal: UserName, org: OrgId) -> Self {
        Self { principal, org, effect: PhantomData }
    }

    /// Who was allowed.
    #[must_use]
    pub fn principal(&self) -> &UserName {
        &self.principal
    }

    /// In which organisation.
    #[must_use]
    pub fn org(&self) -> &OrgId {
        &self.org
    }
}

impl<E: Effect> fmt::Debug for Permit<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Permit<{}>({} in {})", E::PERMISSION, self.principal, self.org)
    }
}
