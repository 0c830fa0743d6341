//! Statements, queries, columns, sources.

use std::sync::Arc;

use super::{Parser, Tall};
use crate::ast::{
    Arg, ArgValue, Column, ColumnKind, Expr, ExprKind, Let, LetBody, Number, OrderBy, Param, Select, Source, Span, Statement, StatementKind,
};
use crate::format;
use crate::lexer::TokenKind;
use crate::syntax_error::SyntaxError;

impl Parser<'_> {
    pub(super) fn statement(&mut self) -> Result<Statement, SyntaxError> {
        let start = self.peek().span.start;
        let kind = if self.eat(TokenKind::Let) {
            StatementKind::Let(Arc::new(self.definition()?))
        } else {
            StatementKind::Select(Arc::new(self.select()?.0))
        };
        Ok(Statement { kind, span: self.since(start) })
    }

    fn definition(&mut self) -> Result<Let, SyntaxError> {
        let name = self.ident()?;
        let params = if self.eat(TokenKind::OpenParen) { Some(self.params()?) } else { None };
        let materialized = match self.peek().kind {
            TokenKind::Equal => false,
            TokenKind::LessEqual => true,
            _ => return Err(self.unexpected(Some("\"=\" or \"<=\""))),
        };
        self.bump();
        let body = match self.peek().kind {
            TokenKind::Select | TokenKind::Explain => LetBody::Select(Arc::new(self.select()?.0)),
            _ => LetBody::Expr(Arc::new(self.expression()?.0)),
        };
        Ok(Let { name, params, materialized, body })
    }

    /// The rest of a parameter list, its opening parenthesis already taken.
    fn params(&mut self) -> Result<Vec<Param>, SyntaxError> {
        let mut params = Vec::new();
        if self.eat(TokenKind::CloseParen) {
            return Ok(params);
        }
        loop {
            let name = self.ident()?;
            let default = if self.eat(TokenKind::Equal) { Some(self.arg_value()?.0) } else { None };
            params.push(Param { name, default });
            if !self.eat(TokenKind::Comma) {
                self.expect(TokenKind::CloseParen, "\")\"")?;
                return Ok(params);
            }
        }
    }

    pub(super) fn select(&mut self) -> Result<Tall<Select>, SyntaxError> {
        self.enter()?;
        let start = self.peek().span.start;
        let explain = self.eat(TokenKind::Explain);
        self.expect(TokenKind::Select, "<select>")?;
        let (columns, mut height) = self.columns()?;
        self.expect(TokenKind::From, "<from>")?;
        let (from, below) = self.source()?;
        height = height.max(below);
        let mut filter = None;
        if self.eat(TokenKind::Where) {
            let (expression, below) = self.bare_list()?;
            filter = Some(expression);
            height = height.max(below);
        }
        let mut group_by = None;
        if self.eat(TokenKind::GroupBy) {
            let (expression, below) = self.bare_list()?;
            group_by = Some(expression);
            height = height.max(below);
        }
        let order_by = if self.eat(TokenKind::OrderBy) {
            let column = self.ident()?;
            Some(OrderBy { column, descending: self.eat(TokenKind::Desc) })
        } else {
            None
        };
        let limit = if self.eat(TokenKind::Limit) { Some(self.number("<number>")?) } else { None };
        self.leave();
        let span = self.since(start);
        let height = self.grow(height, span)?;
        Ok((Select { explain, columns, from, filter, group_by, order_by, limit, span }, height))
    }

    fn columns(&mut self) -> Result<Tall<Vec<Column>>, SyntaxError> {
        let mut columns = Vec::new();
        let mut tallest = 0;
        if self.peek().kind == TokenKind::Star {
            columns.push(self.column()?.0);
            self.eat(TokenKind::Comma);
        }
        if !starts_column(self.peek().kind) {
            return Ok((columns, tallest));
        }
        loop {
            let (column, height) = self.column()?;
            columns.push(column);
            tallest = tallest.max(height);
            if self.peek().kind != TokenKind::Comma || !starts_column(self.look(1).kind) {
                return Ok((columns, tallest));
            }
            self.bump();
        }
    }

    fn column(&mut self) -> Result<Tall<Column>, SyntaxError> {
        let start = self.peek().span.start;
        let (kind, height) = match self.peek().kind {
            TokenKind::Star => {
                self.bump();
                (ColumnKind::Star, 0)
            }
            TokenKind::OpenBrace => {
                let (select, height) = self.braced()?;
                (ColumnKind::Select(Arc::new(select)), height)
            }
            _ => {
                let (expression, height) = self.expression()?;
                (ColumnKind::Expr(expression), height)
            }
        };
        let span = self.since(start);
        let alias = if self.eat(TokenKind::As) { Some(self.ident()?) } else { None };
        let name = match (&alias, &kind) {
            (Some(alias), _) => Arc::clone(&alias.name),
            (None, ColumnKind::Star) => Arc::from(""),
            (None, kind) => self.derived_name(kind, span)?,
        };
        Ok((Column { kind, alias, name }, height))
    }

    /// The name of a column that was given none.
    fn derived_name(&mut self, kind: &ColumnKind, span: Span) -> Result<Arc<str>, SyntaxError> {
        if let ColumnKind::Expr(Expr { kind: ExprKind::Symbol(symbol), .. }) = kind
            && let ([ident], None, false) = (symbol.path.as_slice(), &symbol.args, symbol.negated)
        {
            let bare = ident.text.strip_prefix('`').and_then(|inner| inner.strip_suffix('`'));
            return Ok(bare.map_or_else(|| Arc::clone(&ident.text), Arc::from));
        }
        let length = span.end.saturating_sub(span.start) as usize;
        self.names_left = self.names_left.checked_sub(length).ok_or_else(|| {
            self.error(Span { start: span.start, end: span.start }, "too much text in unnamed columns of nested queries")
                .with_hint(Some("give the columns names with AS".to_owned()))
        })?;
        Ok(Arc::from(format::canonical_column(kind)))
    }

    /// `{ SELECT … }`
    fn braced(&mut self) -> Result<Tall<Select>, SyntaxError> {
        self.expect(TokenKind::OpenBrace, "\"{\"")?;
        let select = self.select()?;
        self.expect(TokenKind::CloseBrace, "\"}\"")?;
        Ok(select)
    }

    fn source(&mut self) -> Result<Tall<Source>, SyntaxError> {
        let start = self.peek().span.start;
        let path = self.path(false)?;
        let (args, height) = self.maybe_args()?;
        Ok((Source { path, args, span: self.since(start) }, height))
    }

    /// Arguments in parentheses, if there are any.
    pub(super) fn maybe_args(&mut self) -> Result<Tall<Option<Vec<Arg>>>, SyntaxError> {
        if !self.eat(TokenKind::OpenParen) {
            return Ok((None, 0));
        }
        let mut args = Vec::new();
        let mut tallest = 0;
        if self.eat(TokenKind::CloseParen) {
            return Ok((Some(args), tallest));
        }
        loop {
            if self.peek().kind != TokenKind::Ident {
                return Err(self.not_an_argument());
            }
            let name = self.ident()?;
            if self.peek().kind != TokenKind::Equal {
                return Err(self.argument_without_name(name.span));
            }
            self.bump();
            let (value, height) = self.arg_value()?;
            tallest = tallest.max(height);
            args.push(Arg { name, value });
            if !self.eat(TokenKind::Comma) {
                self.expect(TokenKind::CloseParen, "\")\"")?;
                return Ok((Some(args), tallest));
            }
        }
    }

    fn not_an_argument(&self) -> SyntaxError {
        let error = self.unexpected(Some("<ident>"));
        match self.peek().kind {
            kind if starts_column(kind) => error.with_hint(Some("every argument is written name=value".to_owned())),
            _ => error,
        }
    }

    fn argument_without_name(&self, name: Span) -> SyntaxError {
        self.unexpected(Some("\"=\"")).with_hint(Some(format!("every argument is written name=value, as in {}=…", self.slice(name))))
    }

    fn arg_value(&mut self) -> Result<Tall<ArgValue>, SyntaxError> {
        match self.peek().kind {
            TokenKind::OpenBrace => {
                let (select, height) = self.braced()?;
                Ok((ArgValue::Select(Arc::new(select)), height))
            }
            TokenKind::OpenBracket => {
                self.bump();
                if self.eat(TokenKind::CloseBracket) {
                    return Ok((ArgValue::Array { items: Vec::new(), trailing_comma: false }, 0));
                }
                let (items, trailing_comma, height) = self.list(TokenKind::CloseBracket)?;
                self.expect(TokenKind::CloseBracket, "\"]\"")?;
                Ok((ArgValue::Array { items, trailing_comma }, height))
            }
            _ => {
                let (expression, height) = self.expression()?;
                Ok((ArgValue::Expr(Arc::new(expression)), height))
            }
        }
    }

    /// Expressions without parentheses, as after `WHERE`. One in parentheses there is wrapped, so that printing tells them apart.
    fn bare_list(&mut self) -> Result<Tall<Expr>, SyntaxError> {
        let start = self.peek().span.start;
        let (first, mut height) = self.expression()?;
        if self.peek().kind != TokenKind::Comma {
            if matches!(first.kind, ExprKind::Tuple { .. }) {
                let span = first.span;
                return Ok((Expr { kind: ExprKind::Paren(Box::new(first)), span }, self.grow(height, span)?));
            }
            return Ok((first, height));
        }
        let mut items = vec![first];
        let mut trailing_comma = false;
        while self.eat(TokenKind::Comma) {
            trailing_comma = !starts_column(self.peek().kind);
            if trailing_comma {
                break;
            }
            let (item, below) = self.expression()?;
            items.push(item);
            height = height.max(below);
        }
        let span = self.since(start);
        Ok((Expr { kind: ExprKind::Tuple { items, trailing_comma }, span }, self.grow(height, span)?))
    }

    pub(super) fn number(&mut self, expected: &str) -> Result<Number, SyntaxError> {
        let token = self.expect(TokenKind::Number, expected)?;
        super::literal::number(self.slice(token.span)).ok_or_else(|| self.error(token.span, "this number is out of range"))
    }
}

pub(super) fn starts_column(kind: TokenKind) -> bool {
    matches!(
        kind,
        TokenKind::Star
            | TokenKind::OpenBrace
            | TokenKind::OpenParen
            | TokenKind::Ident
            | TokenKind::SymbolIdent
            | TokenKind::String
            | TokenKind::RawString
            | TokenKind::Number
            | TokenKind::True
            | TokenKind::False
            | TokenKind::Null
            | TokenKind::Not
    )
}
