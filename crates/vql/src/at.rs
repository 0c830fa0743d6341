//! Where an expression is evaluated: in a scope, or in a row that gets a scope of its own only when something asks for it.

use std::cell::OnceCell;
use std::sync::Arc;

use crate::scope::{Binding, Frame, Scope};
use crate::select::OutputRow;
use crate::value::Value;

/// The place of an evaluation. Names are looked up here, innermost first.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    /// A scope and nothing over it.
    Scope(&'a Scope),
    /// The columns of a query: its source row is visible.
    Row(&'a Arc<OutputRow>),
    /// `WHERE` and `GROUP BY`: the columns are visible too.
    Output(&'a Arc<OutputRow>, &'a OnceCell<Scope>),
}

impl<'a> At<'a> {
    /// What `name` is bound to.
    pub(crate) fn lookup(self, name: &str) -> Option<Binding> {
        match self {
            Self::Scope(scope) => scope.lookup(name),
            Self::Row(output) => output.source_column(name).map(Binding::Value).or_else(|| output.base().lookup(name)),
            Self::Output(output, _) => match output.column(name) {
                Some(value) => Some(Binding::Value(value)),
                None => Self::Row(output).lookup(name),
            },
        }
    }

    /// Whether the innermost row is a single value. Stock engines do not complain of names that are missing there.
    pub(crate) fn is_over_scalar(self) -> bool {
        match self {
            Self::Scope(_) => false,
            Self::Row(output) | Self::Output(output, _) => output.row().is_scalar(),
        }
    }

    /// A scope of the same query, for what needs no names: logs, limits, caches.
    pub(crate) fn base(self) -> &'a Scope {
        match self {
            Self::Scope(scope) => scope,
            Self::Row(output) | Self::Output(output, _) => output.base(),
        }
    }

    /// The scope in which the same names are visible.
    pub(crate) fn scope(self) -> &'a Scope {
        match self {
            Self::Scope(scope) => scope,
            Self::Row(output) => output.scope(),
            Self::Output(output, scope) => scope.get_or_init(|| output.scope().promoted(Frame::Output(output.clone()))),
        }
    }

    /// The scope in which `value` may be read: one with all names if it holds queries that are not yet read.
    pub(crate) fn scope_for(self, value: &Value) -> &'a Scope {
        if value.is_unread() { self.scope() } else { self.base() }
    }
}
