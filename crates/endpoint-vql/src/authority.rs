//! The bridge from a principal's authority to a query's guard, and from a call to the permits of its effects.

mod spill;

use std::sync::Arc;

use talon_acl::{Authority, Denial, Effect, Permit};
use talon_ids::Permissions;
use talon_vql::{CacheFiles, CallError, Denied, Environment, Guard, Scope};

use crate::caches::FileCaches;
use spill::DiskSpill;

/// Lets an [`Authority`] guard a query.
pub struct AuthorityGuard(pub Arc<Authority>);

impl Guard for AuthorityGuard {
    fn check(&self, permissions: Permissions) -> Result<(), Denied> {
        self.0.check(permissions).map_err(|denial| denied(&denial))
    }
}

/// The environment with `authority` as guard and as the source of permits. Caches of queries may be files then, and rows that do not fit into memory too.
#[must_use]
pub fn with_authority(environment: Environment, authority: Arc<Authority>) -> Environment {
    let caches = Arc::new(CacheFiles(Arc::new(FileCaches)));
    environment
        .guard(Arc::new(AuthorityGuard(authority.clone())))
        .extension(authority)
        .extension(caches)
        .spill(Arc::new(DiskSpill::default()))
}

/// The permit for effect `E` of the principal on whose behalf the query runs.
///
/// # Errors
/// The denial; a query without an authority may do nothing.
pub fn permit<E: Effect>(scope: &Scope) -> Result<Permit<E>, CallError> {
    let needed = Permissions::of(&[E::PERMISSION]);
    let authority = scope.extension::<Authority>().ok_or_else(|| Denied::missing(needed))?;
    Ok(authority.permit::<E>().map_err(|denial| denied(&denial))?)
}

fn denied(denial: &Denial) -> Denied {
    let text = denial.to_string();
    Denied::with_text(text.strip_prefix("PermissionDenied: ").unwrap_or(&text))
}
