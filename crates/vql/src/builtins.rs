//! The built-ins that touch nothing outside the query.

mod control;

use crate::registry::Registry;

pub(crate) fn register(registry: &mut Registry) {
    control::register(registry);
}
