//! An expression with the scope it was written in, evaluated at most once.

use std::sync::{Arc, OnceLock};

use crate::ast;
use crate::scope::Scope;
use crate::value::Value;

/// An expression that waits to be looked at.
#[derive(Clone)]
pub struct Lazy(Arc<Inner>);

struct Inner {
    expr: Arc<ast::Expr>,
    scope: Scope,
    value: OnceLock<Value>,
}

impl Lazy {
    pub(crate) fn new(expr: Arc<ast::Expr>, scope: Scope) -> Self {
        Self(Arc::new(Inner { expr, scope, value: OnceLock::new() }))
    }

    /// The value. The expression runs at the first call only.
    #[must_use]
    pub fn reduce(&self) -> Value {
        if let Some(value) = self.0.value.get() {
            return value.clone();
        }
        let value = crate::eval::expression(&self.0.expr, &self.0.scope);
        let _ = self.0.value.set(value.clone());
        value
    }
}
