//! The calls in a query against what can be called.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use talon_ids::Permissions;
use talon_vql::ast::{Arg, ArgValue, ExprKind, Ident, Let, Span, Statement};
use talon_vql::visit::{self, Node};
use talon_vql::{Kind, Signature, nearest};

use super::{Finding, Library, Rule};
use crate::{Definition, Reference};

/// Arguments that calls of all artifacts may have.
const OF_ALL_ARTIFACTS: [&str; 2] = ["source", "preconditions"];
/// The argument that stands for all arguments.
const ALL_ARGUMENTS: &str = "**";

/// What the statements of a query define.
#[derive(Default)]
pub(super) struct Names {
    /// The definitions. The last of a name counts.
    lets: BTreeMap<Arc<str>, Arc<Let>>,
    /// The names of their parameters: these may hold anything.
    params: BTreeSet<Arc<str>>,
}

impl Names {
    pub(super) fn of<'a>(statements: impl Iterator<Item = &'a Statement>, library: &Library<'_>) -> Self {
        let mut names = Self::default();
        for statement in statements {
            names.add(statement, library, true);
        }
        names
    }

    fn add(&mut self, statement: &Statement, library: &Library<'_>, follow: bool) {
        visit::statement(statement, &mut |node| match node {
            Node::Let(definition) => {
                self.params.extend(definition.params.iter().flatten().map(|param| param.name.name.clone()));
                self.lets.insert(definition.name.name.clone(), Arc::new(definition.clone()));
            }
            Node::Expr(expr) => {
                if let ExprKind::Symbol(symbol) = &expr.kind
                    && let Some((artifact, _)) = imported(&symbol.path, symbol.args.as_deref())
                    && let Some(definition) = library.repository.get(&artifact).filter(|_| follow)
                {
                    // What an artifact exports may import in turn; one step is enough to know most names.
                    definition.export().iter().for_each(|statement| self.add(statement, library, false));
                }
            }
            Node::Select(_) | Node::Source(_) => {}
        });
    }
}

/// The artifact of `import(artifact='…')`, when it is written out.
fn imported(path: &[Ident], args: Option<&[Arg]>) -> Option<(String, Span)> {
    let [name] = path else { return None };
    let arg = args?.iter().find(|arg| &*arg.name.name == "artifact").filter(|_| &*name.name == "import")?;
    let ArgValue::Expr(value) = &arg.value else { return None };
    match &value.kind {
        ExprKind::String(literal) => Some((String::from_utf8_lossy(&literal.value).into_owned(), value.span)),
        _ => None,
    }
}

/// Checks the calls of one query.
pub(super) struct Checker<'a> {
    pub(super) library: &'a Library<'a>,
    /// The artifact that the query belongs to.
    pub(super) own: Option<&'a Definition>,
    pub(super) names: &'a Names,
    /// What whoever runs the query may do; `None` when that is not to be judged.
    pub(super) assumed: Option<Permissions>,
    /// What was found. Spans count in the query.
    pub(super) found: Vec<Finding>,
    /// What the built-ins need.
    pub(super) permissions: Permissions,
}

impl Checker<'_> {
    pub(super) fn statement(&mut self, statement: &Statement) {
        visit::statement(statement, &mut |node| match node {
            Node::Let(definition) => self.definition(definition),
            Node::Source(source) => self.call(Kind::Plugin, &source.path, source.args.as_deref()),
            Node::Expr(expr) => {
                if let ExprKind::Symbol(symbol) = &expr.kind {
                    self.call(Kind::Function, &symbol.path, symbol.args.as_deref());
                }
            }
            Node::Select(_) => {}
        });
    }

    fn find(&mut self, rule: Rule, subject: &str, span: Span, text: String, hint: Option<String>) {
        self.found.push(Finding { rule, subject: subject.to_owned(), context: String::new(), text, hint, span: Some(span) });
    }

    fn definition(&mut self, definition: &Let) {
        let name = &*definition.name.name;
        let Some(registry) = self.library.registry else { return };
        for kind in [Kind::Function, Kind::Plugin] {
            if registry.version(kind, name).is_some() {
                let text = format!("LET {} masks the built-in {} {name}", definition.name.text, word(kind));
                self.find(Rule::SymbolMask, name, definition.name.span, text, Some("give it another name".to_owned()));
            }
        }
    }

    fn call(&mut self, wanted: Kind, path: &[Ident], args: Option<&[Arg]>) {
        match path {
            [name] => {
                if let Some(args) = args {
                    self.call_of_name(wanted, name, args);
                }
                if let Some((artifact, span)) = imported(path, args)
                    && self.library.repository.get(&artifact).is_none()
                {
                    let hint = self.near_artifact(&artifact);
                    self.find(Rule::InvalidImport, &artifact, span, format!("Artifact {artifact} is imported, which is not known."), hint);
                }
            }
            [first, rest @ ..] if &*first.name == "Artifact" => self.call_of_artifact(first, rest, args),
            _ => {}
        }
    }

    fn call_of_name(&mut self, wanted: Kind, name: &Ident, args: &[Arg]) {
        let called = &*name.name;
        let registry = self.library.registry;
        if let Some(signature) = registry.and_then(|registry| registry.signature(wanted, called)) {
            return self.call_of_builtin(signature, name, args);
        }
        if let Some(platforms) = registry.and_then(|registry| registry.platforms(wanted, called)) {
            let text = format!("{called}() is only available on {platforms}");
            return self.find(Rule::NotAvailable, called, name.span, text, None);
        }
        if let Some(definition) = self.names.lets.get(called).cloned() {
            return self.call_of_let(&definition, name, args);
        }
        let Some(registry) = registry.filter(|registry| registry.version(wanted, called).is_none()) else { return };
        let definitions = self.names.lets.keys().map(|name| &**name);
        let near = nearest(called, registry.names(wanted).chain(definitions)).map(|near| format!("did you mean {near}()?"));
        match wanted {
            Kind::Plugin => {
                let is_function = registry.version(Kind::Function, called).is_some();
                let hint = is_function.then(|| format!("{called}() is a function: it gives a value, not rows")).or(near);
                self.find(Rule::UnknownPlugin, called, name.span, format!("Unknown plugin {called}()"), hint);
            }
            Kind::Function if registry.version(Kind::Plugin, called).is_some() => {
                let text = format!("Plugin {called}() is called as a function");
                let hint = format!("write {{ SELECT * FROM {called}(…) }}");
                self.find(Rule::CallAsFunction, called, name.span, text, Some(hint));
            }
            Kind::Function if self.names.params.contains(called) => {}
            Kind::Function => self.find(Rule::UnknownFunction, called, name.span, format!("Unknown function {called}()"), near),
        }
    }

    fn call_of_builtin(&mut self, signature: &Signature, name: &Ident, args: &[Arg]) {
        let (called, kind) = (signature.name, word(signature.kind));
        if let Some(reason) = signature.unavailable {
            return self.find(Rule::NotAvailable, called, name.span, format!("{called}() is not available: {reason}"), None);
        }
        self.permissions = self.permissions.union(signature.permissions);
        if let Some(assumed) = self.assumed {
            for missing in signature.permissions.difference(assumed).iter() {
                let text = format!("{called}() needs {missing}, which the artifact does not ask for");
                let hint = format!("add {missing} to required_permissions, or to implied_permissions when its use here is safe");
                self.find(Rule::RequiredPermissions, missing.name(), name.span, text, Some(hint));
            }
        }
        if let Some(all) = args.iter().find(|arg| &*arg.name.name == ALL_ARGUMENTS) {
            return self.only_argument(all, called, args);
        }
        if !signature.free_form {
            for arg in args.iter().filter(|arg| signature.arg(&arg.name.name).is_none()) {
                let text = format!("Invalid arg {} for VQL {kind} {called}()", arg.name.text);
                let hint = near_argument(&arg.name.name, signature.args.iter().map(|arg| arg.name));
                self.find(Rule::InvalidArg, &arg.name.name, arg.name.span, text, hint);
            }
        }
        for needed in signature.args.iter().filter(|needed| needed.required) {
            if !args.iter().any(|arg| &*arg.name.name == needed.name) {
                let text = format!("While calling VQL {kind} {called}(), required arg {} is not provided", needed.name);
                self.find(Rule::RequiredArgMissing, called, name.span, text, None);
            }
        }
    }

    fn only_argument(&mut self, all: &Arg, called: &str, args: &[Arg]) {
        if args.len() > 1 {
            let text = format!("Call of {called}() has other arguments beside **, which takes their place");
            self.find(Rule::KwargsMixedCall, called, all.name.span, text, Some("put all arguments into the dict of **".to_owned()));
        }
    }

    fn call_of_let(&mut self, definition: &Let, called: &Ident, args: &[Arg]) {
        let Some(params) = &definition.params else { return };
        let name = &definition.name.text;
        for arg in args.iter().filter(|arg| !params.iter().any(|param| param.name.name == arg.name.name)) {
            let text = format!("Invalid arg {} for VQL definition {name}", arg.name.text);
            let hint = near_argument(&arg.name.name, params.iter().map(|param| &*param.name.name));
            self.find(Rule::InvalidArg, name, arg.name.span, text, hint);
        }
        for param in params.iter().filter(|param| param.default.is_none()) {
            if !args.iter().any(|arg| arg.name.name == param.name.name) {
                let text = format!("While calling VQL definition {name}(), required arg {} is not provided", param.name.text);
                self.find(Rule::RequiredArgMissing, name, called.span, text, None);
            }
        }
    }

    fn call_of_artifact(&mut self, first: &Ident, rest: &[Ident], args: Option<&[Arg]>) {
        let name = rest.iter().map(|ident| &*ident.name).collect::<Vec<_>>().join(".");
        let span = Span { start: first.span.start, end: rest.last().map_or(first.span.end, |last| last.span.end) };
        let reference = Reference { name: name.clone(), called: args.is_some() };
        let known = self.library.repository.referred(&reference);
        let called = match (&known, self.own) {
            (Some(called), _) => called,
            (None, Some(own)) if own.name().as_str() == name => own,
            _ => {
                let hint = self.near_artifact(&name);
                let text = format!("Unknown artifact reference {name}");
                return self.find(Rule::UnknownArtifactInQuery, &name, span, text, hint);
            }
        };
        let parameters: Vec<&str> = called.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
        for arg in args.unwrap_or_default() {
            let given = &*arg.name.name;
            if given == ALL_ARGUMENTS {
                self.only_argument(arg, &format!("Artifact.{name}"), args.unwrap_or_default());
            } else if !OF_ALL_ARTIFACTS.contains(&given) && !parameters.contains(&given) {
                let text = format!("Unknown parameter {} provided to artifact {name}", arg.name.text);
                let hint = near_argument(given, parameters.iter().copied().chain(OF_ALL_ARTIFACTS));
                self.find(Rule::UnknownParameterInCall, given, arg.name.span, text, hint);
            }
        }
    }

    fn near_artifact(&self, name: &str) -> Option<String> {
        let known = self.library.repository.entries();
        nearest(name, known.keys().map(String::as_str)).map(|near| format!("did you mean {near}?"))
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Plugin => "plugin",
        Kind::Function => "function",
    }
}

/// The argument that was meant, or else all that there are.
fn near_argument<'a>(given: &str, known: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(near) = nearest(given, known.clone()) {
        return Some(format!("did you mean {near}?"));
    }
    let all: Vec<&str> = known.collect();
    Some(if all.is_empty() { "it takes no arguments".to_owned() } else { format!("it takes {}", all.join(", ")) })
}
