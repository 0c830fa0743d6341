//! Evaluation of expressions, and the calls of built-ins and definitions.

use std::sync::Arc;

use crate::ast::{self, BinaryOp, Expr, ExprKind, LetBody, Symbol};
use crate::builtins::{Target, mock};
use crate::call::Call;
use crate::dict::{Dict, Key};
use crate::error::CallError;
use crate::format::{canonical_expr, canonical_select, canonical_statement};
use crate::lazy::Lazy;
use crate::registry::{Entry, Function, Plugin};
use crate::rows::{RowSource, Rows, StoredQuery};
use crate::scope::{Binding, Scope};
use crate::signature::{ArgType, Kind, OnError, Signature};
use crate::value::{List, Text, Value};
use crate::{arguments, member, ops, select};

/// The value of an expression. Queries stay unread.
pub(crate) fn expression(expr: &Expr, scope: &Scope) -> Value {
    if !crate::stack::has_room() {
        scope.log_once(format!("Stack Overflow: {}", canonical_expr(expr)));
        return Value::Null;
    }
    match &expr.kind {
        ExprKind::Null => Value::Null,
        ExprKind::Bool { value, .. } => Value::Bool(*value),
        ExprKind::Number(ast::Number::Int(number)) => Value::Int(*number),
        ExprKind::Number(ast::Number::Float(number)) => Value::Float(*number),
        ExprKind::String(literal) => Value::Str(Text::from(literal.value.clone())),
        ExprKind::Symbol(symbol) => evaluate_symbol(symbol, scope),
        ExprKind::Paren(inner) => expression(inner, scope),
        ExprKind::Tuple { items, .. } => list_of(items, scope),
        ExprKind::Member { object, name } => {
            let object = expression(object, scope);
            member::member(&object, &name.name, scope).unwrap_or_default()
        }
        ExprKind::Index { object, index } => {
            let (object, index) = (expression(object, scope), expression(index, scope).reduced());
            member::index(&object, &index, scope)
        }
        ExprKind::Slice { object, from, to } => {
            let object = expression(object, scope);
            let bound = |bound: &Option<Box<Expr>>| bound.as_ref().map(|bound| expression(bound, scope).reduced());
            member::slice(&object, bound(from).as_ref(), bound(to).as_ref(), scope)
        }
        ExprKind::Binary { op, left, right } => binary(*op, left, right, scope),
        ExprKind::And { first, rest } => conjunction(first, rest, scope),
        ExprKind::Or { first, rest } => disjunction(first, rest, scope),
        ExprKind::Not(inner) => Value::Bool(!ops::truth(&expression(inner, scope), scope)),
    }
}

fn list_of(items: &[Expr], scope: &Scope) -> Value {
    items.iter().map(|item| expression(item, scope).reduced()).collect::<List>().into()
}

fn binary(op: BinaryOp, left: &Expr, right: &Expr, scope: &Scope) -> Value {
    let left = expression(left, scope).reduced();
    let right = expression(right, scope).reduced();
    Value::Bool(match op {
        BinaryOp::Add => return ops::add(&left, &right, scope),
        BinaryOp::Sub => return ops::subtract(&left, &right),
        BinaryOp::Mul => return ops::multiply(&left, &right, scope),
        BinaryOp::Div => return ops::divide(&left, &right),
        BinaryOp::Eq => ops::equal(&left, &right),
        BinaryOp::Ne => !ops::equal(&left, &right),
        BinaryOp::Lt => ops::less(&left, &right),
        BinaryOp::Le => ops::less(&left, &right) || ops::equal(&left, &right),
        BinaryOp::Gt => ops::greater(&left, &right),
        BinaryOp::Ge => ops::greater(&left, &right) || ops::equal(&left, &right),
        BinaryOp::In => ops::contains(&left, &right, scope),
        BinaryOp::Match => ops::matches(&left, &right, scope),
    })
}

fn conjunction(first: &Expr, rest: &[(Arc<str>, Expr)], scope: &Scope) -> Value {
    if !ops::truth(&expression(first, scope), scope) {
        return Value::Bool(false);
    }
    let mut result = Value::Bool(true);
    for (operator, operand) in rest {
        let value = expression(operand, scope).reduced();
        if !ops::truth(&value, scope) {
            return Value::Bool(false);
        }
        result = if &**operator == "&&" { value } else { Value::Bool(true) };
    }
    result
}

fn disjunction(first: &Expr, rest: &[(Arc<str>, Expr)], scope: &Scope) -> Value {
    let mut result = expression(first, scope).reduced();
    if ops::truth(&result, scope) {
        return result;
    }
    for (operator, operand) in rest {
        result = expression(operand, scope).reduced();
        if ops::truth(&result, scope) {
            return if &**operator == "||" { result } else { Value::Bool(true) };
        }
    }
    result
}

fn evaluate_symbol(symbol: &Symbol, scope: &Scope) -> Value {
    let value = match &symbol.args {
        Some(args) => call_symbol(symbol, args, scope),
        None => reference(&symbol.path, scope),
    };
    if symbol.negated { ops::negate(&value.reduced()) } else { value }
}

fn dotted(path: &[ast::Ident]) -> String {
    path.iter().map(|part| &*part.name).collect::<Vec<_>>().join(".")
}

fn reference(path: &[ast::Ident], scope: &Scope) -> Value {
    let Some((first, rest)) = path.split_first() else { return Value::Null };
    let Some(binding) = scope.lookup(&first.name) else {
        if scope.registry().find_function(&first.name).is_some() {
            scope.log_once(format!("ERROR:Symbol {} is a function but it is not being called.", first.name));
        } else {
            log_missing(path, scope);
        }
        return Value::Null;
    };
    let mut value = resolve(binding, scope);
    for name in rest {
        match member::member(&value, &name.name, scope) {
            Some(next) => value = next,
            None => return Value::Null,
        }
    }
    value
}

fn log_missing(path: &[ast::Ident], scope: &Scope) {
    let Some(first) = path.first() else { return };
    let symbol = format!("Symbol {} not found. Current Scope is {}", first.name, scope.describe());
    scope.log_once(if path.len() > 1 { format!("ERROR:While resolving {} {symbol}", dotted(path)) } else { format!("ERROR:{symbol}") });
}

/// What a name is worth where it is used: stored expressions run now, in the user's scope; stored queries stay unread.
pub(crate) fn resolve(binding: Binding, scope: &Scope) -> Value {
    match binding {
        Binding::Value(value) => value.reduced(),
        Binding::Let(definition) => match &definition.body {
            LetBody::Expr(expr) => match scope.deeper() {
                Some(scope) => expression(expr, &scope).reduced(),
                None => overflow(&definition, scope),
            },
            LetBody::Select(_) => StoredQuery::new(Stored { definition, args: None }).into(),
        },
    }
}

fn overflow(definition: &Arc<ast::Let>, scope: &Scope) -> Value {
    let statement = ast::Statement { kind: ast::StatementKind::Let(definition.clone()), span: ast::Span::default() };
    scope.log_once(format!("Stack Overflow: {}", canonical_statement(&statement)));
    Value::Null
}

fn call_symbol(symbol: &Symbol, args: &[ast::Arg], scope: &Scope) -> Value {
    if scope.stopped() {
        return Value::Null;
    }
    let name = dotted(&symbol.path);
    let site = std::ptr::from_ref(symbol) as usize;
    let [first] = symbol.path.as_slice() else {
        if scope.lookup(symbol.path.first().map_or("", |part| &part.name)).is_none() {
            log_missing(&symbol.path, scope);
        } else {
            scope.log_once(format!("ERROR:Symbol {name} is not a function but it is being called."));
        }
        return Value::Null;
    };
    let function = scope.registry().find_function(&name);
    if !matches!(function, Some(Entry::Blocked))
        && let Some(mock) = scope.mocked(|| Target::Function(name.clone()))
    {
        return mock.call(mock::recorded(args, scope));
    }
    match function {
        Some(Entry::Active(function)) => return call_function(function.as_ref(), args, scope, site),
        Some(Entry::Blocked) => {
            scope.log_once(format!(
                "ERROR:VQL Function {name}() has been blocked in the configuration. Please update the configuration file to allow it."
            ));
            return Value::Null;
        }
        Some(Entry::Elsewhere(platforms)) => {
            scope.log_once(elsewhere("Function", &name, platforms));
            return Value::Null;
        }
        None => {}
    }
    match scope.lookup(&first.name) {
        Some(Binding::Let(definition)) => call_definition(&definition, args, scope),
        Some(Binding::Value(Value::Lambda(lambda))) => {
            let values: Vec<Value> = args.iter().map(|arg| argument(&arg.value, scope)).collect();
            lambda.call(scope, &values)
        }
        Some(Binding::Value(_)) => {
            scope.log_once(format!("ERROR:Symbol {name} is not a function but it is being called."));
            Value::Null
        }
        None => {
            log_missing(&symbol.path, scope);
            Value::Null
        }
    }
}

fn elsewhere(kind: &str, name: &str, platforms: &str) -> String {
    let here = format!("{}_{}", std::env::consts::OS, if std::env::consts::ARCH == "x86_64" { "amd64" } else { std::env::consts::ARCH });
    format!(
        "VQL {kind} {name} is not implemented for this architecture ({here}). It is only available for the following platforms [{platforms}]"
    )
}

/// The frame of a call of a definition: arguments evaluated now, missing ones by their defaults, both in the caller's scope.
fn bind(definition: &ast::Let, args: &[ast::Arg], scope: &Scope) -> Dict {
    let mut frame = Dict::new();
    for param in definition.params.iter().flatten() {
        let given = args.iter().rev().find(|arg| arg.name.name == param.name.name).map(|arg| &arg.value);
        if let Some(value) = given.or(param.default.as_ref()) {
            frame.set(&param.name.name, argument(value, scope));
        }
    }
    frame
}

fn call_definition(definition: &Arc<ast::Let>, args: &[ast::Arg], scope: &Scope) -> Value {
    let frame = bind(definition, args, scope);
    match &definition.body {
        LetBody::Select(_) => StoredQuery::new(Stored { definition: definition.clone(), args: Some(frame) }).into(),
        LetBody::Expr(expr) => match scope.child_with_new_aggregates(frame) {
            Some(scope) => expression(expr, &scope).reduced(),
            None => overflow(definition, scope),
        },
    }
}

/// The rows of `FROM name(args)` where `name` is a definition.
pub(crate) fn open_definition(definition: &Arc<ast::Let>, args: &[ast::Arg], scope: &Scope) -> Rows {
    let params: Vec<&Arc<str>> = definition.params.iter().flatten().map(|param| &param.name.name).collect();
    for arg in args.iter().filter(|arg| !params.contains(&&arg.name.name)) {
        scope.log_once(format!("ERROR:Extra unrecognized arg {} when calling {}", arg.name.name, definition.name.name));
    }
    for param in definition.params.iter().flatten().filter(|param| param.default.is_none()) {
        if !args.iter().any(|arg| arg.name.name == param.name.name) {
            scope.log_once(format!("ERROR:Missing arg {} when calling {}", param.name.name, definition.name.name));
        }
    }
    match call_definition(definition, args, scope) {
        Value::Query(query) => query.open(scope),
        other => select::rows_of(other, scope),
    }
}

/// A stored query, perhaps with the arguments of a call.
struct Stored {
    definition: Arc<ast::Let>,
    args: Option<Dict>,
}

impl RowSource for Stored {
    fn open(&self, scope: &Scope) -> Rows {
        let LetBody::Select(query) = &self.definition.body else { return Rows::none() };
        let inner = match &self.args {
            Some(args) => scope.child_with_new_aggregates(args.clone()),
            None => scope.deeper(),
        };
        match inner {
            Some(inner) => select::open(query, &inner),
            None => {
                overflow(&self.definition, scope);
                Rows::none()
            }
        }
    }

    fn depth(&self) -> u16 {
        self.args.iter().flat_map(Dict::values).map(Value::depth).max().unwrap_or(0).saturating_add(1)
    }
}

/// `{ SELECT … }` as an argument.
struct Literal(Arc<ast::Select>);

impl RowSource for Literal {
    fn open(&self, scope: &Scope) -> Rows {
        match scope.deeper() {
            Some(scope) => select::open(&self.0, &scope),
            None => {
                scope.log_once(format!("Stack Overflow: {}", canonical_select(&self.0)));
                Rows::none()
            }
        }
    }
}

/// The value of an argument, evaluated now. Queries stay unread.
pub(crate) fn argument(value: &ast::ArgValue, scope: &Scope) -> Value {
    match value {
        ast::ArgValue::Expr(expr) => expression(expr, scope).reduced(),
        ast::ArgValue::Select(query) => StoredQuery::new(Literal(query.clone())).into(),
        ast::ArgValue::Array { items, trailing_comma } => match items.as_slice() {
            [only] if !trailing_comma => expression(only, scope).reduced(),
            items => list_of(items, scope),
        },
    }
}

fn lazy_argument(value: &ast::ArgValue, scope: &Scope) -> Value {
    match value {
        ast::ArgValue::Expr(expr) => match &expr.kind {
            ExprKind::Null | ExprKind::Bool { .. } | ExprKind::Number(_) | ExprKind::String(_) => expression(expr, scope),
            _ => Lazy::new(expr.clone(), scope.clone()).into(),
        },
        other => argument(other, scope),
    }
}

/// Checks permissions and arguments and makes the call that the body sees.
fn prepare(signature: &Signature, args: &[ast::Arg], scope: &Scope, site: usize) -> Result<Call, CallError> {
    if !signature.permissions.is_empty() {
        scope.check(signature.permissions)?;
    }
    let mut call = Call {
        scope: scope.clone(),
        name: signature.name,
        kind: signature.kind,
        declared: signature.args,
        values: vec![None; signature.args.len()],
        extras: Vec::new(),
        site,
        variable: args.iter().find(|arg| &*arg.name.name == "item").and_then(|arg| plain_name(&arg.value)),
    };
    let replaced = args.iter().find(|arg| &*arg.name.name == "**").map(|arg| argument(&arg.value, scope));
    if let Some(Value::Dict(dict)) = replaced {
        let given = dict.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        return arguments::convert(signature, given, call);
    }
    let mut given: Vec<(Key, Value)> = Vec::with_capacity(args.len());
    for arg in args {
        let declared = signature.arg(&arg.name.name);
        let lazy = match declared {
            Some(declared) => declared.ty == ArgType::Lazy && signature.kind == Kind::Function,
            None => signature.lazy_extras,
        };
        if declared.is_none() && !signature.free_form {
            call.extras.push((Key::from(&arg.name.name), Value::Null));
            continue;
        }
        let value = if lazy { lazy_argument(&arg.value, scope) } else { argument(&arg.value, scope) };
        given.push((Key::from(&arg.name.name), value));
    }
    arguments::convert(signature, given, call)
}

fn plain_name(value: &ast::ArgValue) -> Option<Arc<str>> {
    let ast::ArgValue::Expr(expr) = value else { return None };
    match &expr.kind {
        ExprKind::Symbol(Symbol { negated: false, path, args: None }) => match path.as_slice() {
            [name] => Some(name.name.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn log_failure(name: &str, error: &CallError, scope: &Scope) {
    if *error != CallError::Silent {
        scope.log(format!("{name}: {error}"));
    }
}

fn call_function(function: &dyn Function, args: &[ast::Arg], scope: &Scope, site: usize) -> Value {
    scope.count_function();
    let signature = function.signature();
    match prepare(signature, args, scope, site).and_then(|call| function.call(call)) {
        Ok(value) => value.reduced(),
        Err(error) => {
            log_failure(signature.name, &error, scope);
            match signature.on_error {
                OnError::Null => Value::Null,
                OnError::False => Value::Bool(false),
            }
        }
    }
}

/// Starts a plugin. What fails is logged, and there are no rows.
pub(crate) fn open_plugin(name: &str, args: &[ast::Arg], scope: &Scope, site: usize) -> Option<Rows> {
    let plugin = scope.registry().find_plugin(name);
    if !matches!(plugin, Some(Entry::Blocked))
        && let Some(mock) = scope.mocked(|| Target::Plugin(name.to_owned()))
    {
        return Some(mock.open(mock::recorded(args, scope), scope));
    }
    let plugin = match plugin? {
        Entry::Active(plugin) => plugin.clone(),
        Entry::Blocked => {
            scope.log_once(format!(
                "ERROR:VQL Plugin {name}() has been blocked in the configuration. Please update the configuration file to allow it."
            ));
            return Some(Rows::none());
        }
        Entry::Elsewhere(platforms) => {
            scope.log_once(elsewhere("Plugin", name, platforms));
            return Some(Rows::none());
        }
    };
    scope.count_plugin();
    Some(start_plugin(plugin, args, scope, site))
}

fn start_plugin(plugin: Arc<dyn Plugin>, args: &[ast::Arg], scope: &Scope, site: usize) -> Rows {
    let signature = plugin.signature();
    let name = signature.name;
    let mut rows = match prepare(signature, args, scope, site).and_then(|call| plugin.open(call)) {
        Ok(rows) => rows,
        Err(error) => {
            log_failure(name, &error, scope);
            return Rows::none();
        }
    };
    let scope = scope.clone();
    let mut ended = false;
    Rows::from_fn(move || {
        if ended || scope.stopped() {
            return None;
        }
        match rows.next()? {
            Ok(row) => Some(Ok(row)),
            Err(error) => {
                log_failure(name, &error, &scope);
                ended = true;
                None
            }
        }
    })
}

/// All rows, as long as they fit into the budget and the query runs.
pub(crate) fn collect_rows(rows: Rows, scope: &Scope) -> Vec<Value> {
    const MANY: usize = 10_000;
    let mut held = scope.hold();
    let mut collected = Vec::new();
    for row in rows {
        let Ok(row) = row else { break };
        if scope.stopped() || !held.add(row.weight()) {
            break;
        }
        if collected.len() == MANY {
            scope.log_once(format!("WARN:During Materialize of StoredQuery: more than {MANY} rows are kept in memory"));
        }
        collected.push(row);
    }
    collected
}
