//! Syntax tree to text: the canonical one-line form, which names columns and crosses the wire, and the pretty form.

mod pretty;

use std::fmt::Write as _;

use crate::ast::{
    Arg, ArgValue, BinaryOp, Column, ColumnKind, Expr, ExprKind, Ident, Let, LetBody, Number, Param, Select, Source, Statement,
    StatementKind, Symbol,
};
use crate::lexer::is_keyword;

pub use pretty::{pretty, reformat};

/// A statement on one line, comments dropped.
pub fn canonical_statement(statement: &Statement) -> String {
    one_line(|writer| writer.statement(statement))
}

/// A query on one line.
pub fn canonical_select(select: &Select) -> String {
    one_line(|writer| writer.select(select))
}

/// An expression on one line.
pub fn canonical_expr(expr: &Expr) -> String {
    one_line(|writer| writer.expr(expr))
}

/// A column without its alias.
pub(crate) fn canonical_column(kind: &ColumnKind) -> String {
    one_line(|writer| writer.column_kind(kind))
}

/// A name as it must be written in VQL: in backticks unless it is a plain word.
pub fn quote_name(name: &str) -> String {
    let mut bytes = name.bytes();
    let plain = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !is_keyword(name);
    if plain { name.to_owned() } else { format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\x60")) }
}

/// Any text as a string literal.
pub fn quote_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn one_line(write: impl FnOnce(&mut Line)) -> String {
    let mut line = Line { out: String::new(), wire: true, limit: usize::MAX };
    write(&mut line);
    line.out.truncate(line.out.trim_end().len());
    line.out
}

/// Writes everything on one line.
struct Line {
    out: String,
    /// The exact spacing of the canonical form: two spaces before `AND`, one after `LIMIT n` and `DESC`.
    wire: bool,
    /// Give up when the text is longer than this.
    limit: usize,
}

impl Line {
    fn full(&self) -> bool {
        self.out.len() > self.limit
    }

    fn text(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn separated<T>(&mut self, items: &[T], separator: &str, mut each: impl FnMut(&mut Self, &T)) {
        for (index, item) in items.iter().enumerate() {
            if self.full() {
                return;
            }
            if index > 0 {
                self.text(separator);
            }
            each(self, item);
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match &statement.kind {
            StatementKind::Let(definition) => {
                self.let_head(definition);
                self.text(" ");
                match &definition.body {
                    LetBody::Select(select) => self.select(select),
                    LetBody::Expr(expr) => self.expr(expr),
                }
            }
            StatementKind::Select(select) => self.select(select),
        }
    }

    /// `LET F(a, b=2) =`
    fn let_head(&mut self, definition: &Let) {
        self.text("LET ");
        self.text(&definition.name.text);
        if let Some(params) = &definition.params {
            self.text("(");
            self.separated(params, ", ", Self::param);
            self.text(")");
        }
        self.text(if definition.materialized { " <=" } else { " =" });
    }

    fn param(&mut self, param: &Param) {
        self.text(&param.name.text);
        if let Some(default) = &param.default {
            self.text("=");
            self.arg_value(default);
        }
    }

    fn select(&mut self, select: &Select) {
        self.text(if select.explain { "EXPLAIN SELECT " } else { "SELECT " });
        self.separated(&select.columns, ", ", Self::column);
        self.text(if select.columns.is_empty() { "FROM " } else { " FROM " });
        self.source(&select.from);
        if let Some(filter) = &select.filter {
            self.text(" WHERE ");
            self.bare_list(filter);
        }
        if let Some(group_by) = &select.group_by {
            self.text(" GROUP BY ");
            self.bare_list(group_by);
        }
        if let Some(order_by) = &select.order_by {
            self.text(" ORDER BY ");
            self.text(&order_by.column.text);
            if order_by.descending {
                self.text(if self.wire { " DESC " } else { " DESC" });
            }
        }
        if let Some(limit) = &select.limit {
            self.text(" LIMIT ");
            self.number(*limit);
            self.text(if self.wire { " " } else { "" });
        }
    }

    fn column(&mut self, column: &Column) {
        self.column_kind(&column.kind);
        if let Some(alias) = &column.alias {
            self.text(" AS ");
            self.text(&alias.text);
        }
    }

    fn column_kind(&mut self, kind: &ColumnKind) {
        match kind {
            ColumnKind::Star => self.text("*"),
            ColumnKind::Select(select) => self.braced(select),
            ColumnKind::Expr(expr) => self.expr(expr),
        }
    }

    fn braced(&mut self, select: &Select) {
        self.text("{ ");
        self.select(select);
        self.text(" }");
    }

    fn source(&mut self, source: &Source) {
        self.path(&source.path);
        self.args(source.args.as_deref());
    }

    fn path(&mut self, path: &[Ident]) {
        self.separated(path, ".", |writer, ident| writer.text(&ident.text));
    }

    fn args(&mut self, args: Option<&[Arg]>) {
        let Some(args) = args else { return };
        self.text("(");
        self.separated(args, ", ", |writer, arg| {
            writer.text(&arg.name.text);
            writer.text("=");
            writer.arg_value(&arg.value);
        });
        self.text(")");
    }

    fn arg_value(&mut self, value: &ArgValue) {
        match value {
            ArgValue::Expr(expr) => self.expr(expr),
            ArgValue::Select(select) => self.braced(select),
            ArgValue::Array { items, trailing_comma } => {
                self.text("[");
                self.items(items, *trailing_comma);
                self.text("]");
            }
        }
    }

    fn items(&mut self, items: &[Expr], trailing_comma: bool) {
        self.separated(items, ", ", Self::expr);
        if trailing_comma {
            self.text(", ");
        }
    }

    /// After `WHERE` and `GROUP BY`, where a list has no parentheses.
    fn bare_list(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Tuple { items, trailing_comma } => {
                self.separated(items, ", ", Self::expr);
                if *trailing_comma {
                    self.text(",");
                }
            }
            ExprKind::Paren(inner) if matches!(inner.kind, ExprKind::Tuple { .. }) => self.expr(inner),
            _ => self.expr(expr),
        }
    }

    fn expr(&mut self, expr: &Expr) {
        if self.full() {
            return;
        }
        match &expr.kind {
            ExprKind::Null => self.text("NULL"),
            ExprKind::Bool { text, .. } => self.text(text),
            ExprKind::Number(number) => self.number(*number),
            ExprKind::String(literal) => self.text(&literal.text),
            ExprKind::Symbol(symbol) => self.symbol(symbol),
            ExprKind::Tuple { items, trailing_comma } => {
                self.text("(");
                self.items(items, *trailing_comma);
                self.text(")");
            }
            ExprKind::Paren(inner) => {
                self.text("(");
                self.expr(inner);
                self.text(")");
            }
            ExprKind::Member { object, name } => {
                self.expr(object);
                self.text(".");
                self.text(&name.text);
            }
            ExprKind::Index { object, index } => {
                self.expr(object);
                self.text("[");
                self.expr(index);
                self.text("]");
            }
            ExprKind::Slice { object, from, to } => {
                self.expr(object);
                self.bounds(from.as_deref(), to.as_deref());
            }
            ExprKind::Binary { op, left, right } => {
                self.expr(left);
                self.text(" ");
                self.text(symbol_of(*op));
                self.text(" ");
                self.expr(right);
            }
            ExprKind::And { first, rest } => {
                self.expr(first);
                let before = if self.wire { "  " } else { " " };
                for (operator, operand) in rest {
                    self.text(before);
                    self.text(operator);
                    self.text(" ");
                    self.expr(operand);
                }
            }
            ExprKind::Or { first, rest } => {
                self.expr(first);
                for (operator, operand) in rest {
                    self.text(" ");
                    self.text(operator);
                    self.text(" ");
                    self.expr(operand);
                }
            }
            ExprKind::Not(operand) => {
                self.text("NOT ");
                self.expr(operand);
            }
        }
    }

    /// `[i:j]`
    fn bounds(&mut self, from: Option<&Expr>, to: Option<&Expr>) {
        self.text("[");
        if let Some(from) = from {
            self.expr(from);
        }
        self.text(":");
        if let Some(to) = to {
            self.expr(to);
        }
        self.text("]");
    }

    fn symbol(&mut self, symbol: &Symbol) {
        if symbol.negated {
            self.text("-");
        }
        self.path(&symbol.path);
        self.args(symbol.args.as_deref());
    }

    fn number(&mut self, number: Number) {
        // Writing to a string cannot fail.
        let _ = match number {
            Number::Int(value) => write!(self.out, "{value}"),
            // Beyond these the fixed notation is no longer readable, and a short text could grow a hundredfold.
            Number::Float(value) if value != 0.0 && !(1e-9..1e21).contains(&value.abs()) => write!(self.out, "{value:e}"),
            Number::Float(value) if value.fract() == 0.0 => write!(self.out, "{value:.1}"),
            Number::Float(value) => write!(self.out, "{value}"),
        };
    }
}

/// An operator as it is written.
pub(crate) fn symbol_of(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Eq => "=",
        BinaryOp::Ne => "!=",
        BinaryOp::Lt => "<",
        BinaryOp::Le => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => ">=",
        BinaryOp::In => "IN",
        BinaryOp::Match => "=~",
    }
}
