//! The pretty form: one clause and one column a line, 80 columns, comments kept on lines of their own before what they precede.
//!
//! Formatting twice gives the same text. For that, a node breaks because of comments only when it will print them inside itself.

use super::Line;
use crate::ast::{
    Arg, ArgValue, Column, ColumnKind, Comment, Expr, ExprKind, LetBody, Program, Select, Source, Span, Statement, StatementKind,
};
use crate::syntax_error::SyntaxError;

/// The widest line that is not broken where it can be.
const WIDTH: usize = 80;

/// Parses a text and prints it prettily.
///
/// # Errors
/// When the text is not VQL.
pub fn reformat(text: &str) -> Result<String, SyntaxError> {
    crate::parser::parse(text).map(|program| pretty(&program, text))
}

/// Prints a program prettily, ending in a newline. `source` is the text that it was parsed from.
pub fn pretty(program: &Program, source: &str) -> String {
    let mut printer = Printer { out: String::new(), source, comments: &program.comments, next: 0, indent: 0 };
    let mut last_end = 0;
    for statement in &program.statements {
        printer.top_comments(head_of(statement), &mut last_end);
        printer.gap(statement.span.start, last_end);
        printer.statement(statement);
        printer.out.push('\n');
        last_end = last_end.max(statement.span.end);
    }
    printer.top_comments(u32::MAX, &mut last_end);
    printer.out
}

/// Comments before this place are printed before the statement.
fn head_of(statement: &Statement) -> u32 {
    match &statement.kind {
        StatementKind::Select(select) => head_of_select(select),
        StatementKind::Let(definition) => match &definition.body {
            LetBody::Select(select) => head_of_select(select),
            LetBody::Expr(expr) => expr.span.start,
        },
    }
}

fn head_of_select(select: &Select) -> u32 {
    select.columns.first().and_then(start_of_column).unwrap_or(select.from.span.start)
}

fn start_of_column(column: &Column) -> Option<u32> {
    match &column.kind {
        ColumnKind::Star => None,
        ColumnKind::Select(select) => Some(select.span.start),
        ColumnKind::Expr(expr) => Some(expr.span.start),
    }
}

struct Printer<'a> {
    out: String,
    source: &'a str,
    comments: &'a [Comment],
    /// The first comment that is not printed yet.
    next: usize,
    indent: usize,
}

impl Printer<'_> {
    /// Prints the comments before `upto` between statements.
    fn top_comments(&mut self, upto: u32, last_end: &mut u32) {
        while let Some(comment) = self.comments.get(self.next).filter(|comment| comment.span.start < upto) {
            self.gap(comment.span.start, *last_end);
            self.out.push_str(&comment.text);
            self.out.push('\n');
            *last_end = (*last_end).max(comment.span.end);
            self.next += 1;
        }
    }

    /// Keeps one blank line where the source had some.
    fn gap(&mut self, start: u32, last_end: u32) {
        let between = self.source.get(last_end as usize..start as usize).unwrap_or_default();
        if !self.out.is_empty() && between.bytes().filter(|byte| *byte == b'\n').count() > 1 {
            self.out.push('\n');
        }
    }

    /// At the start of a line: prints the comments before `upto`, each on a line of its own.
    fn flush(&mut self, upto: u32) {
        while let Some(comment) = self.comments.get(self.next).filter(|comment| comment.span.start < upto) {
            self.out.push_str(&comment.text);
            self.line();
            self.next += 1;
        }
    }

    /// True when a comment that is not printed yet starts in the range.
    fn comment_in(&self, start: u32, end: u32) -> bool {
        let waiting = self.comments.get(self.next..).unwrap_or_default();
        let first = waiting.partition_point(|comment| comment.span.start < start);
        waiting.get(first).is_some_and(|comment| comment.span.start < end)
    }

    fn comment_in_span(&self, span: Span) -> bool {
        self.comment_in(span.start, span.end)
    }

    /// Where the bracket that closes what ends at `end` stands.
    fn closing(&self, end: u32) -> u32 {
        let mut at = end;
        loop {
            let index = self.comments.partition_point(|comment| comment.span.start < at);
            if let Some(comment) = self.comments.get(index).filter(|comment| comment.span.start == at && comment.span.end > at) {
                at = comment.span.end;
                continue;
            }
            match self.source.as_bytes().get(at as usize) {
                None | Some(b'}' | b']') => return at,
                Some(_) => at += 1,
            }
        }
    }

    fn line(&mut self) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(' ', self.indent));
    }

    fn indented(&mut self, by: usize, print: impl FnOnce(&mut Self)) {
        self.indent += by;
        print(self);
        self.indent -= by;
    }

    fn column(&self) -> usize {
        let line = self.out.rfind('\n').map_or(0, |at| at + 1);
        self.out.get(line..).unwrap_or_default().chars().count()
    }

    /// The text on one line, if with `reserve` more characters it fits on this one.
    fn fitting(&self, reserve: usize, write: impl FnOnce(&mut Line)) -> Option<String> {
        let mut line = Line { out: String::new(), wire: false, limit: WIDTH };
        write(&mut line);
        if line.full() {
            return None;
        }
        let mut width = self.column();
        for (index, part) in line.out.split('\n').enumerate() {
            width = if index == 0 { width } else { 0 } + part.chars().count();
            if width > WIDTH {
                return None;
            }
        }
        (width + reserve <= WIDTH).then_some(line.out)
    }

    fn whole(&mut self, write: impl FnOnce(&mut Line)) {
        let mut line = Line { out: std::mem::take(&mut self.out), wire: false, limit: usize::MAX };
        write(&mut line);
        self.out = line.out;
    }

    fn statement(&mut self, statement: &Statement) {
        let definition = match &statement.kind {
            StatementKind::Select(select) => return self.select(select),
            StatementKind::Let(definition) => definition,
        };
        match &definition.body {
            LetBody::Select(select) => {
                if !self.select_holds(select)
                    && let Some(text) = self.fitting(0, |line| line.statement(statement))
                {
                    return self.out.push_str(&text);
                }
                self.whole(|line| line.let_head(definition));
                self.indented(2, |printer| {
                    printer.line();
                    printer.select(select);
                });
            }
            LetBody::Expr(expr) => {
                self.whole(|line| line.let_head(definition));
                self.out.push(' ');
                self.expr(expr, 0);
            }
        }
    }

    /// One clause a line, from the start of a line.
    fn select(&mut self, select: &Select) {
        self.flush(head_of_select(select));
        let head = if select.explain { "EXPLAIN SELECT " } else { "SELECT " };
        self.out.push_str(if select.columns.is_empty() { head.trim_end() } else { head });
        self.indented(head.len(), |printer| {
            for (index, column) in select.columns.iter().enumerate() {
                let last = index + 1 == select.columns.len();
                if index > 0 {
                    printer.line();
                    if let Some(start) = start_of_column(column) {
                        printer.flush(start);
                    }
                }
                printer.select_column(column, last);
                if !last {
                    printer.out.push(',');
                }
            }
        });
        self.line();
        self.flush(select.from.span.start);
        self.out.push_str("FROM ");
        self.source(&select.from);
        if let Some(filter) = &select.filter {
            self.clause("WHERE ", filter);
        }
        if let Some(group_by) = &select.group_by {
            self.clause("GROUP BY ", group_by);
        }
        if let Some(order_by) = &select.order_by {
            self.line();
            self.flush(order_by.column.span.start);
            self.out.push_str("ORDER BY ");
            self.out.push_str(&order_by.column.text);
            if order_by.descending {
                self.out.push_str(" DESC");
            }
        }
        if let Some(limit) = select.limit {
            self.line();
            self.out.push_str("LIMIT ");
            self.whole(|line| line.number(limit));
        }
    }

    fn select_column(&mut self, column: &Column, last: bool) {
        let alias = column.alias.as_ref().map_or(0, |alias| alias.text.chars().count() + 4);
        let reserve = alias + usize::from(!last);
        match &column.kind {
            ColumnKind::Star => self.out.push('*'),
            ColumnKind::Select(select) => self.braced(select, select.span.start, reserve),
            ColumnKind::Expr(expr) => self.expr(expr, reserve),
        }
        if let Some(alias) = &column.alias {
            self.out.push_str(" AS ");
            self.out.push_str(&alias.text);
        }
    }

    fn clause(&mut self, keyword: &str, expr: &Expr) {
        self.line();
        self.flush(expr.span.start);
        self.out.push_str(keyword);
        match &expr.kind {
            ExprKind::Tuple { items, trailing_comma } => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        self.out.push_str(", ");
                    }
                    self.expr(item, 1);
                }
                if *trailing_comma {
                    self.out.push(',');
                }
            }
            ExprKind::Paren(inner) if matches!(inner.kind, ExprKind::Tuple { .. }) => self.expr(inner, 0),
            _ => self.expr(expr, 0),
        }
    }

    fn source(&mut self, source: &Source) {
        if !self.source_holds(source)
            && let Some(text) = self.fitting(0, |line| line.source(source))
        {
            return self.out.push_str(&text);
        }
        self.whole(|line| line.path(&source.path));
        if let Some(args) = &source.args {
            self.args(args, source.span.end, 0);
        }
    }

    /// Arguments in parentheses, each on a line of its own.
    fn args(&mut self, args: &[Arg], end: u32, reserve: usize) {
        self.out.push('(');
        self.indented(2, |printer| {
            for (index, arg) in args.iter().enumerate() {
                let last = index + 1 == args.len();
                printer.line();
                printer.flush(arg.name.span.start);
                printer.out.push_str(&arg.name.text);
                printer.out.push('=');
                printer.arg_value(&arg.value, arg.name.span.end, if last { reserve + 1 } else { 1 });
                if !last {
                    printer.out.push(',');
                }
            }
        });
        self.close(")", end);
    }

    fn arg_value(&mut self, value: &ArgValue, start: u32, reserve: usize) {
        match value {
            ArgValue::Expr(expr) => self.expr(expr, reserve),
            ArgValue::Select(select) => self.braced(select, start, reserve),
            ArgValue::Array { items, trailing_comma } => {
                let end = items.last().map_or(start, |last| self.closing(last.span.end));
                if items.is_empty() || !self.comment_in(start, end) {
                    let text = self.fitting(reserve, |line| line.arg_value(value));
                    if text.is_some() || items.is_empty() {
                        return self.out.push_str(text.as_deref().unwrap_or("[]"));
                    }
                }
                self.out.push('[');
                self.items(items, *trailing_comma);
                self.close("]", end);
            }
        }
    }

    fn items(&mut self, items: &[Expr], trailing_comma: bool) {
        self.indented(2, |printer| {
            for (index, item) in items.iter().enumerate() {
                printer.line();
                printer.flush(item.span.start);
                printer.expr(item, 1);
                if trailing_comma || index + 1 < items.len() {
                    printer.out.push(',');
                }
            }
        });
    }

    /// A closing bracket: on its own line when comments stand before it.
    fn close(&mut self, bracket: &str, end: u32) {
        if self.tail(end) {
            self.line();
        }
        self.out.push_str(bracket);
    }

    /// Before a closing bracket: prints the comments before `end` on lines of their own. False when there are none.
    fn tail(&mut self, end: u32) -> bool {
        let first = self.next;
        self.indented(2, |printer| {
            while let Some(comment) = printer.comments.get(printer.next).filter(|comment| comment.span.start < end) {
                printer.line();
                printer.out.push_str(&comment.text);
                printer.next += 1;
            }
        });
        self.next > first
    }

    /// `{ SELECT … }`; comments from `start` on are printed inside.
    fn braced(&mut self, select: &Select, start: u32, reserve: usize) {
        let end = self.closing(select.span.end);
        if !self.comment_in(start, end)
            && let Some(text) = self.fitting(reserve, |line| line.braced(select))
        {
            return self.out.push_str(&text);
        }
        self.out.push('{');
        self.indented(2, |printer| {
            printer.line();
            printer.select(select);
        });
        self.tail(end);
        self.line();
        self.out.push('}');
    }

    fn expr(&mut self, expr: &Expr, reserve: usize) {
        let text = self.fitting(reserve, |line| line.expr(expr));
        let fits = match text {
            Some(text) if !self.holds(expr) => return self.out.push_str(&text),
            text => text.is_some(),
        };
        match &expr.kind {
            ExprKind::Symbol(symbol) if symbol.args.as_ref().is_some_and(|args| !args.is_empty()) => {
                self.out.push_str(if symbol.negated { "-" } else { "" });
                self.whole(|line| line.path(&symbol.path));
                self.args(symbol.args.as_deref().unwrap_or_default(), expr.span.end, reserve);
            }
            ExprKind::Tuple { items, trailing_comma } => {
                self.out.push('(');
                self.items(items, *trailing_comma);
                self.close(")", expr.span.end);
            }
            ExprKind::Paren(inner) => {
                self.out.push('(');
                self.indented(1, |printer| printer.expr(inner, reserve + 1));
                self.out.push(')');
            }
            ExprKind::Member { object, name } => {
                self.expr(object, reserve + name.text.chars().count() + 1);
                self.out.push('.');
                self.out.push_str(&name.text);
            }
            ExprKind::Index { object, index } => {
                self.expr(object, reserve + 1);
                self.out.push('[');
                self.whole(|line| line.expr(index));
                self.out.push(']');
            }
            ExprKind::Slice { object, from, to } => {
                self.expr(object, reserve + 1);
                self.whole(|line| line.bounds(from.as_deref(), to.as_deref()));
            }
            ExprKind::Binary { op, left, right } => {
                self.expr(left, if fits { 1 } else { 0 });
                self.indented(2, |printer| {
                    if fits {
                        printer.out.push(' ');
                    } else {
                        printer.line();
                    }
                    printer.out.push_str(super::symbol_of(*op));
                    printer.out.push(' ');
                    printer.expr(right, reserve);
                });
            }
            ExprKind::And { first, rest } | ExprKind::Or { first, rest } => {
                let broken = !fits || self.operands_hold(expr, rest);
                self.expr(first, 1);
                self.indented(2, |printer| {
                    for (operator, operand) in rest {
                        if broken {
                            printer.line();
                            printer.flush(operand.span.start);
                        } else {
                            printer.out.push(' ');
                        }
                        printer.out.push_str(operator);
                        printer.out.push(' ');
                        printer.expr(operand, reserve);
                    }
                });
            }
            ExprKind::Not(operand) => {
                self.out.push_str("NOT ");
                self.expr(operand, reserve);
            }
            ExprKind::Null | ExprKind::Bool { .. } | ExprKind::Number(_) | ExprKind::String(_) | ExprKind::Symbol(_) => {
                self.whole(|line| line.expr(expr));
            }
        }
    }

    /// True when comments will be printed between the operands.
    fn operands_hold(&self, expr: &Expr, rest: &[(std::sync::Arc<str>, Expr)]) -> bool {
        rest.last().is_some_and(|(_, last)| self.comment_in(expr.span.start, last.span.start))
    }

    /// True when comments will be printed inside the expression.
    fn holds(&self, expr: &Expr) -> bool {
        if !self.comment_in_span(expr.span) {
            return false;
        }
        match &expr.kind {
            ExprKind::Symbol(symbol) => symbol.args.as_ref().is_some_and(|args| !args.is_empty()),
            ExprKind::Tuple { .. } => true,
            ExprKind::Paren(inner) | ExprKind::Not(inner) => self.holds(inner),
            ExprKind::Member { object, .. } | ExprKind::Index { object, .. } | ExprKind::Slice { object, .. } => self.holds(object),
            ExprKind::Binary { left, right, .. } => self.holds(left) || self.holds(right),
            ExprKind::And { first, rest } | ExprKind::Or { first, rest } => {
                self.operands_hold(expr, rest) || self.holds(first) || rest.iter().any(|(_, operand)| self.holds(operand))
            }
            ExprKind::Null | ExprKind::Bool { .. } | ExprKind::Number(_) | ExprKind::String(_) => false,
        }
    }

    fn source_holds(&self, source: &Source) -> bool {
        self.comment_in_span(source.span) && source.args.as_ref().is_some_and(|args| !args.is_empty())
    }

    /// True when comments will be printed inside the query.
    fn select_holds(&self, select: &Select) -> bool {
        let clauses = [select.filter.as_ref(), select.group_by.as_ref()];
        let last_break = [
            select.order_by.as_ref().map(|order_by| order_by.column.span.start),
            clauses.iter().flatten().map(|expr| expr.span.start).max(),
        ];
        let last_break = last_break.into_iter().flatten().max().unwrap_or(select.from.span.start);
        self.comment_in(select.span.start, last_break)
            || self.source_holds(&select.from)
            || clauses.into_iter().flatten().any(|expr| match &expr.kind {
                ExprKind::Tuple { items, .. } => items.iter().any(|item| self.holds(item)),
                _ => self.holds(expr),
            })
    }
}
