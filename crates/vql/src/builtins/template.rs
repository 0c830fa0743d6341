//! `template()`: text with placeholders, in the notation of Go's text/template.

mod parse;

use parse::{Node, Operand, Pipeline};

use crate::args;
use crate::call::Call;
use crate::dict::Dict;
use crate::error::CallError;
use crate::member::{elements, index, member};
use crate::ops::{equal, less};
use crate::registry::Registry;
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::display;
use crate::value::Value;
use crate::verbs;

/// The longest text that a template may make.
const MAX_OUTPUT: usize = 16 << 20;

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("template", "Fills a template in the notation of Go's text/template.")
            .args(args![
                Arg::required("template", ArgType::String, "The template. It can also call Get and Scope."),
                Arg::required("expansion", ArgType::Dict, "What `.` stands for."),
                Arg::optional("html", ArgType::Bool, "Escape what is filled in for HTML."),
            ])
            .version(2),
        template,
    );
}

fn template(call: Call) -> Result<Value, CallError> {
    let failed = |text: String| CallError::Failed(text);
    let nodes = parse::parse(&call.string("template")).map_err(failed)?;
    let root = Value::from(Dict::clone(&call.dict("expansion").unwrap_or_default())).materialized(call.scope());
    let mut run = Run { scope: call.scope(), html: call.bool("html"), out: String::new(), variables: vec![(String::new(), root.clone())] };
    run.nodes(&nodes, &root).map_err(failed)?;
    Ok(run.out.into())
}

/// A template that is being filled.
struct Run<'a> {
    scope: &'a Scope,
    html: bool,
    out: String,
    /// The innermost last. The one without a name is `$`.
    variables: Vec<(String, Value)>,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        let depth = self.variables.len();
        for node in nodes {
            if self.scope.stopped() {
                return Err("the query was stopped".to_owned());
            }
            self.node(node, dot)?;
            if self.out.len() > MAX_OUTPUT {
                return Err("the text becomes too long".to_owned());
            }
        }
        self.variables.truncate(depth);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), String> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Show(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.names.is_empty() {
                    let text = shown(&value);
                    self.out.push_str(&if self.html { escaped(&text) } else { text });
                } else {
                    self.bind(pipeline, 0, value);
                }
            }
            Node::If { condition, then, otherwise } => {
                let depth = self.variables.len();
                let value = self.pipeline(condition, dot)?;
                let holds = is_true(&value);
                self.bind(condition, 0, value);
                self.nodes(if holds { then } else { otherwise }, dot)?;
                self.variables.truncate(depth);
            }
            Node::With { value, body, otherwise } => {
                let depth = self.variables.len();
                let found = self.pipeline(value, dot)?;
                self.bind(value, 0, found.clone());
                if is_true(&found) {
                    self.nodes(body, &found)?
                } else {
                    self.nodes(otherwise, dot)?
                }
                self.variables.truncate(depth);
            }
            Node::Range { items, body, otherwise } => {
                let pairs = self.pairs(items, dot)?;
                if pairs.is_empty() {
                    return self.nodes(otherwise, dot);
                }
                for (key, value) in pairs {
                    let depth = self.variables.len();
                    if items.names.len() > 1 {
                        self.bind(items, 0, key);
                        self.bind(items, 1, value.clone());
                    } else {
                        self.bind(items, 0, value.clone());
                    }
                    self.nodes(body, &value)?;
                    self.variables.truncate(depth);
                }
            }
        }
        Ok(())
    }

    fn bind(&mut self, pipeline: &Pipeline, at: usize, value: Value) {
        let Some(name) = pipeline.names.get(at) else { return };
        match self.variables.iter_mut().rev().find(|(known, _)| pipeline.assigns && known == name) {
            Some((_, held)) => *held = value,
            None => self.variables.push((name.clone(), value)),
        }
    }

    fn pairs(&self, items: &Pipeline, dot: &Value) -> Result<Vec<(Value, Value)>, String> {
        Ok(match self.pipeline(items, dot)? {
            Value::Dict(dict) => dict.iter().map(|(key, value)| (key.into(), value.clone())).collect(),
            value @ (Value::List(_) | Value::Query(_) | Value::Null) => {
                elements(&value, self.scope).into_iter().enumerate().map(|(at, value)| (at.into(), value)).collect()
            }
            other => return Err(format!("range can't iterate over {}", shown(&other))),
        })
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut last = None;
        for command in &pipeline.commands {
            let Some((first, rest)) = command.split_first() else { continue };
            let mut args = Vec::with_capacity(rest.len().saturating_add(1));
            for operand in rest {
                args.push(self.operand(operand, dot)?);
            }
            args.extend(last.take());
            last = Some(match first {
                Operand::Function(name) => self.call(name, &args)?,
                operand if args.is_empty() => self.operand(operand, dot)?,
                _ => return Err("a value that is no function is given arguments".to_owned()),
            });
        }
        Ok(last.unwrap_or_default())
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        Ok(match operand {
            Operand::Dot => dot.clone(),
            Operand::Nil => Value::Null,
            Operand::Bool(value) => Value::Bool(*value),
            Operand::Int(number) => Value::Int(*number),
            Operand::Float(number) => Value::Float(*number),
            Operand::Str(text) => text.into(),
            Operand::Function(name) => self.call(name, &[])?,
            Operand::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                found.map(|(_, value)| value.clone()).ok_or_else(|| format!("undefined variable \"${name}\""))?
            }
            Operand::Nested(pipeline) => self.pipeline(pipeline, dot)?,
            Operand::Member(object, name) => {
                let object = self.operand(object, dot)?;
                member(&object, name, self.scope).unwrap_or_default().materialized(self.scope)
            }
        })
    }

    fn call(&self, name: &str, args: &[Value]) -> Result<Value, String> {
        let arg = |at: usize| args.get(at).ok_or_else(|| format!("wrong number of args for {name}: got {}", args.len()));
        Ok(match name {
            "Get" => {
                let (mut value, path) = (arg(0)?.clone(), display(arg(1)?));
                for step in path.split('.') {
                    value = member(&value, step, self.scope).unwrap_or_default().reduced();
                }
                if value.is_null() { "".into() } else { value.materialized(self.scope) }
            }
            "Scope" => self.scope.variable(&display(arg(0)?)).unwrap_or_default().materialized(self.scope),
            "and" => args.iter().find(|value| !is_true(value)).or(args.last()).cloned().unwrap_or_default(),
            "or" => args.iter().find(|value| is_true(value)).or(args.last()).cloned().unwrap_or_default(),
            "not" => Value::Bool(!is_true(arg(0)?)),
            "eq" => {
                let first = arg(0)?;
                arg(1)?;
                Value::Bool(args.iter().skip(1).any(|other| equal(first, other)))
            }
            "ne" => Value::Bool(!equal(arg(0)?, arg(1)?)),
            "lt" => Value::Bool(less(arg(0)?, arg(1)?)),
            "le" => Value::Bool(less(arg(0)?, arg(1)?) || equal(arg(0)?, arg(1)?)),
            "gt" => Value::Bool(less(arg(1)?, arg(0)?)),
            "ge" => Value::Bool(less(arg(1)?, arg(0)?) || equal(arg(0)?, arg(1)?)),
            "len" => match arg(0)? {
                Value::Str(text) => text.len().into(),
                Value::List(items) => items.len().into(),
                Value::Dict(dict) => dict.len().into(),
                other => return Err(format!("len of {}", other.type_name())),
            },
            "index" => {
                let mut value = arg(0)?.clone();
                for place in args.iter().skip(1) {
                    value = match (&value, place) {
                        (Value::Dict(_), place) => member(&value, &display(place), self.scope).unwrap_or_default(),
                        _ => index(&value, place, self.scope),
                    };
                }
                value
            }
            "print" => args.iter().map(shown).collect::<String>().into(),
            "println" => format!("{}\n", args.iter().map(shown).collect::<Vec<_>>().join(" ")).into(),
            "printf" => {
                let Value::Str(template) = arg(0)? else { return Err("printf needs a format".to_owned()) };
                Value::Str(verbs::format(template.as_bytes(), args.get(1..).unwrap_or_default(), MAX_OUTPUT))
            }
            "html" => escaped(&args.iter().map(shown).collect::<String>()).into(),
            _ => return Err(format!("function {name:?} not defined")),
        })
    }
}

fn shown(value: &Value) -> String {
    if value.is_null() { "<no value>".to_owned() } else { display(value) }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Truth as templates know it: everything that is not empty or zero.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Int(number) => *number != 0,
        Value::UInt(number) => *number != 0,
        Value::Float(number) => *number != 0.0,
        Value::Str(text) => !text.is_empty(),
        Value::Bytes(bytes) => !bytes.is_empty(),
        Value::List(items) => !items.is_empty(),
        Value::Dict(dict) => !dict.is_empty(),
        _ => true,
    }
}
