//! Evaluation of expressions, and the calls of built-ins and definitions.

use std::sync::Arc;

use crate::ast::{self, BinaryOp, Expr, ExprKind, LetBody, Symbol};
use crate::at::At;
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

/// The value of an expression in a scope. Queries stay unread.
pub(crate) fn expression(expr: &Expr, scope: &Scope) -> Value {
    if !crate::stack::has_room() {
        scope.log_once(format!("Stack Overflow: {}", canonical_expr(expr)));
        return Value::Null;
    }
    evaluate(expr, At::Scope(scope))
}

/// The value of an expression. Queries stay unread. How far this recurses by itself is bounded by the height of what the parser takes.
pub(crate) fn evaluate(expr: &Expr, at: At<'_>) -> Value {
    match &expr.kind {
        ExprKind::Null => Value::Null,
        ExprKind::Bool { value, .. } => Value::Bool(*value),
        ExprKind::Number(ast::Number::Int(number)) => Value::Int(*number),
        ExprKind::Number(ast::Number::Float(number)) => Value::Float(*number),
        ExprKind::String(literal) => Value::Str(Text::from(literal.value.clone())),
        ExprKind::Symbol(symbol) => evaluate_symbol(symbol, at),
        ExprKind::Paren(inner) => evaluate(inner, at),
        ExprKind::Tuple { items, .. } => list_of(items, at),
        ExprKind::Member { object, name } => {
            let object = evaluate(object, at);
            member::member(&object, &name.name, at.scope_for(&object)).unwrap_or_default()
        }
        ExprKind::Index { object, index } => {
            let (object, index) = (evaluate(object, at), evaluate(index, at).reduced());
            member::index(&object, &index, at.scope_for(&object))
        }
        ExprKind::Slice { object, from, to } => {
            let object = evaluate(object, at);
            let bound = |bound: &Option<Box<Expr>>| bound.as_ref().map(|bound| evaluate(bound, at).reduced());
            member::slice(&object, bound(from).as_ref(), bound(to).as_ref(), at.scope_for(&object))
        }
        ExprKind::Binary { op, left, right } => binary(*op, left, right, at),
        ExprKind::And { first, rest } => conjunction(first, rest, at),
        ExprKind::Or { first, rest } => disjunction(first, rest, at),
        ExprKind::Not(inner) => Value::Bool(!is_true(&evaluate(inner, at), at)),
    }
}

fn is_true(value: &Value, at: At<'_>) -> bool {
    ops::truth(value, at.scope_for(value))
}

fn list_of(items: &[Expr], at: At<'_>) -> Value {
    items.iter().map(|item| evaluate(item, at).reduced()).collect::<List>().into()
}

fn binary(op: BinaryOp, left: &Expr, right: &Expr, at: At<'_>) -> Value {
    let left = evaluate(left, at).reduced();
    let right = evaluate(right, at).reduced();
    let scope = || if left.is_unread() { at.scope() } else { at.scope_for(&right) };
    Value::Bool(match op {
        BinaryOp::Add => return ops::add(&left, &right, scope()),
        BinaryOp::Sub => return ops::subtract(&left, &right),
        BinaryOp::Mul => return ops::multiply(&left, &right, scope()),
        BinaryOp::Div => return ops::divide(&left, &right),
        BinaryOp::Eq => ops::equal(&left, &right),
        BinaryOp::Ne => !ops::equal(&left, &right),
        BinaryOp::Lt => ops::less(&left, &right),
        BinaryOp::Le => ops::less(&left, &right) || ops::equal(&left, &right),
        BinaryOp::Gt => ops::greater(&left, &right),
        BinaryOp::Ge => ops::greater(&left, &right) || ops::equal(&left, &right),
        BinaryOp::In => ops::contains(&left, &right, scope()),
        BinaryOp::Match => ops::matches(&left, &right, scope()),
    })
}

fn conjunction(first: &Expr, rest: &[(Arc<str>, Expr)], at: At<'_>) -> Value {
    if !is_true(&evaluate(first, at), at) {
        return Value::Bool(false);
    }
    let mut result = Value::Bool(true);
    for (operator, operand) in rest {
        let value = evaluate(operand, at).reduced();
        if !is_true(&value, at) {
            return Value::Bool(false);
        }
        result = if &**operator == "&&" { value } else { Value::Bool(true) };
    }
    result
}

fn disjunction(first: &Expr, rest: &[(Arc<str>, Expr)], at: At<'_>) -> Value {
    let mut result = evaluate(first, at).reduced();
    if is_true(&result, at) {
        return result;
    }
    for (operator, operand) in rest {
        result = evaluate(operand, at).reduced();
        if is_true(&result, at) {
            return if &**operator == "||" { result } else { Value::Bool(true) };
        }
    }
    result
}

fn evaluate_symbol(symbol: &Symbol, at: At<'_>) -> Value {
    let value = match &symbol.args {
        Some(args) => call_symbol(symbol, args, at),
        None => reference(&symbol.path, at),
    };
    if symbol.negated { ops::negate(&value.reduced()) } else { value }
}

fn dotted(path: &[ast::Ident]) -> String {
    path.iter().map(|part| &*part.name).collect::<Vec<_>>().join(".")
}

fn reference(path: &[ast::Ident], at: At<'_>) -> Value {
    let Some((first, rest)) = path.split_first() else { return Value::Null };
    let Some(binding) = at.lookup(&first.name) else {
        if at.is_over_scalar() {
            return Value::Null;
        }
        let scope = at.scope();
        if scope.registry().find_function(&first.name).is_some() {
            scope.log_once(format!("ERROR:Symbol {} is a function but it is not being called.", first.name));
        } else {
            log_missing(path, scope);
        }
        return Value::Null;
    };
    let mut value = resolve(binding, at);
    for name in rest {
        match member::member(&value, &name.name, at.scope_for(&value)) {
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
pub(crate) fn resolve(binding: Binding, at: At<'_>) -> Value {
    match binding {
        Binding::Value(value) => value.reduced(),
        Binding::Let(definition) => match &definition.body {
            LetBody::Expr(expr) => match at.scope().deeper() {
                Some(scope) => expression(expr, &scope).reduced(),
                None => overflow(&definition, at.scope()),
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

fn call_symbol(symbol: &Symbol, args: &[ast::Arg], at: At<'_>) -> Value {
    let scope = at.base();
    if scope.stopped() {
        return Value::Null;
    }
    let site = std::ptr::from_ref(symbol) as usize;
    let [first] = symbol.path.as_slice() else {
        if at.lookup(symbol.path.first().map_or("", |part| &part.name)).is_none() {
            log_missing(&symbol.path, at.scope());
        } else {
            scope.log_once(format!("ERROR:Symbol {} is not a function but it is being called.", dotted(&symbol.path)));
        }
        return Value::Null;
    };
    let name = &*first.name;
    let function = scope.registry().find_function(name);
    if !matches!(function, Some(Entry::Blocked))
        && let Some(mock) = scope.mocked(|| Target::Function(name.to_owned()))
    {
        return mock.call(mock::recorded(args, at));
    }
    match function {
        Some(Entry::Active(function)) => return call_function(function.as_ref(), args, at, site),
        Some(Entry::Blocked) => {
            scope.log_once(format!(
                "ERROR:VQL Function {name}() has been blocked in the configuration. Please update the configuration file to allow it."
            ));
            return Value::Null;
        }
        Some(Entry::Elsewhere(platforms)) => {
            scope.log_once(elsewhere("Function", name, platforms));
            return Value::Null;
        }
        None => {}
    }
    match at.lookup(name) {
        Some(Binding::Let(definition)) => call_definition(&definition, args, at),
        Some(Binding::Value(Value::Lambda(lambda))) => {
            let values: Vec<Value> = args.iter().map(|arg| argument(&arg.value, at)).collect();
            lambda.call(at.scope(), &values)
        }
        Some(Binding::Value(_)) => {
            scope.log_once(format!("ERROR:Symbol {name} is not a function but it is being called."));
            Value::Null
        }
        None => {
            log_missing(&symbol.path, at.scope());
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
fn bind(definition: &ast::Let, args: &[ast::Arg], at: At<'_>) -> Dict {
    let mut frame = Dict::new();
    for param in definition.params.iter().flatten() {
        let given = args.iter().rev().find(|arg| arg.name.name == param.name.name).map(|arg| &arg.value);
        if let Some(value) = given.or(param.default.as_ref()) {
            frame.set(&param.name.name, argument(value, at));
        }
    }
    frame
}

fn call_definition(definition: &Arc<ast::Let>, args: &[ast::Arg], at: At<'_>) -> Value {
    let frame = bind(definition, args, at);
    match &definition.body {
        LetBody::Select(_) => StoredQuery::new(Stored { definition: definition.clone(), args: Some(frame) }).into(),
        LetBody::Expr(expr) => match at.scope().child_with_new_aggregates(frame) {
            Some(scope) => expression(expr, &scope).reduced(),
            None => overflow(definition, at.scope()),
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
    match call_definition(definition, args, At::Scope(scope)) {
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
pub(crate) fn argument(value: &ast::ArgValue, at: At<'_>) -> Value {
    match value {
        ast::ArgValue::Expr(expr) => evaluate(expr, at).reduced(),
        ast::ArgValue::Select(query) => StoredQuery::new(Literal(query.clone())).into(),
        ast::ArgValue::Array { items, trailing_comma } => match items.as_slice() {
            [only] if !trailing_comma => evaluate(only, at).reduced(),
            items => list_of(items, at),
        },
    }
}

fn lazy_argument(value: &ast::ArgValue, at: At<'_>) -> Value {
    match value {
        ast::ArgValue::Expr(expr) => match &expr.kind {
            ExprKind::Null | ExprKind::Bool { .. } | ExprKind::Number(_) | ExprKind::String(_) => evaluate(expr, at),
            _ => Lazy::new(expr.clone(), at.scope().clone()).into(),
        },
        other => argument(other, at),
    }
}

/// Checks permissions and arguments and makes the call that the body sees.
fn prepare(signature: &Signature, args: &[ast::Arg], at: At<'_>, site: usize) -> Result<Call, CallError> {
    if !signature.permissions.is_empty() {
        at.base().check(signature.permissions)?;
    }
    let mut call = Call {
        scope: at.scope().clone(),
        name: signature.name,
        kind: signature.kind,
        declared: signature.args,
        values: vec![None; signature.args.len()],
        extras: Vec::new(),
        site,
        variable: None,
    };
    let mut unknown = None;
    let replaced = args.iter().find(|arg| &*arg.name.name == "**").map(|arg| argument(&arg.value, at));
    if let Some(Value::Dict(dict)) = replaced {
        for (name, value) in dict.iter() {
            match signature.args.iter().position(|arg| name == arg.name).and_then(|place| call.values.get_mut(place)) {
                Some(slot) => *slot = Some(value.clone()),
                None if signature.free_form => call.extras.push((name.clone(), value.clone())),
                None => {
                    unknown.get_or_insert_with(|| name.clone());
                }
            }
        }
        return arguments::convert(signature, call, unknown);
    }
    for arg in args {
        let name = &arg.name.name;
        if call.variable.is_none() && &**name == "item" {
            call.variable = plain_name(&arg.value);
        }
        let declared = signature.args.iter().zip(call.values.iter_mut()).find(|(declared, _)| declared.name == &**name);
        match declared {
            Some((declared, slot)) => {
                let lazy = declared.ty == ArgType::Lazy && signature.kind == Kind::Function;
                *slot = Some(if lazy { lazy_argument(&arg.value, at) } else { argument(&arg.value, at) });
            }
            None if signature.free_form => {
                let value = if signature.lazy_extras { lazy_argument(&arg.value, at) } else { argument(&arg.value, at) };
                call.extras.push((Key::from(name), value));
            }
            None => {
                unknown.get_or_insert_with(|| Key::from(name));
            }
        }
    }
    arguments::convert(signature, call, unknown)
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

fn call_function(function: &dyn Function, args: &[ast::Arg], at: At<'_>, site: usize) -> Value {
    if !crate::stack::has_room() {
        at.base().log_once(format!("Stack Overflow: {}()", function.signature().name));
        return Value::Null;
    }
    at.base().count_function();
    let signature = function.signature();
    match prepare(signature, args, at, site).and_then(|call| function.call(call)) {
        Ok(value) => value.reduced(),
        Err(error) => {
            log_failure(signature.name, &error, at.base());
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
        return Some(mock.open(mock::recorded(args, At::Scope(scope)), scope));
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
    let mut rows = match prepare(signature, args, At::Scope(scope), site).and_then(|call| plugin.open(call)) {
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
