//! Functions written as text: `x=>expr`, `x,y=>expr`.

use crate::ast;
use crate::dict::Dict;
use crate::scope::Scope;
use crate::value::Value;

/// A compiled lambda.
#[derive(Debug, Clone)]
pub struct Lambda(ast::Lambda);

impl Lambda {
    pub(crate) fn new(lambda: ast::Lambda) -> Self {
        Self(lambda)
    }

    /// The value of the body with `args` bound to the parameters in order. The wrong number of arguments logs and gives NULL.
    #[must_use]
    pub fn call(&self, scope: &Scope, args: &[Value]) -> Value {
        if args.len() != self.0.params.len() {
            scope.log_once("ERROR:Incorrect number of parameters in Lambda call");
            return Value::Null;
        }
        let frame: Dict = self.0.params.iter().zip(args).map(|(param, value)| (&param.name, value)).collect();
        match scope.child_with_new_aggregates(frame) {
            Some(scope) => crate::eval::expression(&self.0.body, &scope).reduced(),
            None => Value::Null,
        }
    }
}
