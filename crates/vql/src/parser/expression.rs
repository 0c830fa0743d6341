//! Expressions: precedence climbing. From loosest to tightest: `AND`, `OR`, `NOT`, comparison, `+ -`, `* /`, member and index.

use std::sync::Arc;

use super::{Parser, Tall};
use crate::ast::{BinaryOp, Expr, ExprKind, Ident, Span, StringLiteral, Symbol};
use crate::lexer::TokenKind;
use crate::syntax_error::SyntaxError;

/// How tightly an operator binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    And,
    Or,
    Not,
    Compare,
    Add,
    Multiply,
}

impl Parser<'_> {
    pub(super) fn expression(&mut self) -> Result<Tall<Expr>, SyntaxError> {
        self.climb(Binding::And)
    }

    /// An expression of operators that bind at least as tightly as `least`.
    fn climb(&mut self, least: Binding) -> Result<Tall<Expr>, SyntaxError> {
        self.enter()?;
        let start = self.peek().span.start;
        let mut left = if least <= Binding::Not && self.eat(TokenKind::Not) {
            let (operand, height) = self.climb(Binding::Not)?;
            self.node(ExprKind::Not(Box::new(operand)), start, height)?
        } else {
            self.postfix()?
        };
        let mut compared: Option<Span> = None;
        loop {
            let token = self.peek();
            left = match operator(token.kind) {
                Some((Operator::Chain, binding)) if binding >= least => self.chain(left, binding, start)?,
                Some((Operator::Binary(op), binding)) if binding >= least => {
                    if binding == Binding::Compare && compared.is_some() {
                        let message = format!("unexpected token {:?} (comparisons cannot be chained)", self.slice(token.span));
                        return Err(self
                            .error(token.span, message)
                            .with_hint(Some("compare twice and join with AND, or use parentheses".to_owned())));
                    }
                    self.bump();
                    let (right, below) = match binding {
                        Binding::Multiply => self.bare_operand()?,
                        Binding::Add => self.climb(Binding::Multiply)?,
                        _ => self.climb(Binding::Add)?,
                    };
                    if binding == Binding::Compare {
                        compared = Some(token.span);
                    }
                    let (expression, height) = left;
                    self.node(ExprKind::Binary { op, left: Box::new(expression), right: Box::new(right) }, start, height.max(below))?
                }
                _ => break,
            };
        }
        self.leave();
        Ok(left)
    }

    /// The operands after the first of `a AND b AND c` or `a OR b OR c`.
    fn chain(&mut self, (first, mut height): Tall<Expr>, binding: Binding, start: u32) -> Result<Tall<Expr>, SyntaxError> {
        let mut rest: Vec<(Arc<str>, Expr)> = Vec::new();
        while let Some((Operator::Chain, found)) = operator(self.peek().kind) {
            if found != binding {
                break;
            }
            let token = self.bump();
            let text = Arc::from(self.slice(token.span));
            let (operand, below) = self.climb(if binding == Binding::And { Binding::Or } else { Binding::Not })?;
            height = height.max(below);
            rest.push((text, operand));
        }
        let first = Box::new(first);
        let kind = if binding == Binding::And { ExprKind::And { first, rest } } else { ExprKind::Or { first, rest } };
        self.node(kind, start, height)
    }

    /// What stands right of `*` and `/`: an index or a member there needs parentheses.
    fn bare_operand(&mut self) -> Result<Tall<Expr>, SyntaxError> {
        let operand = self.value()?;
        if matches!(self.peek().kind, TokenKind::OpenBracket | TokenKind::Dot) {
            let hint = "right of * and / an index or a member of a call needs parentheses, as in a * (b[0])";
            return Err(self.unexpected(None).with_hint(Some(hint.to_owned())));
        }
        Ok(operand)
    }

    fn postfix(&mut self) -> Result<Tall<Expr>, SyntaxError> {
        let start = self.peek().span.start;
        let mut left = self.value()?;
        loop {
            left = match self.peek().kind {
                TokenKind::OpenBracket => {
                    self.bump();
                    self.subscript(left, start)?
                }
                TokenKind::Dot => {
                    self.bump();
                    let (object, height) = left;
                    let name = self.ident()?;
                    self.node(ExprKind::Member { object: Box::new(object), name }, start, height)?
                }
                _ => return Ok(left),
            };
        }
    }

    /// The rest of `a[i]` or `a[i:j]`, its opening bracket already taken.
    fn subscript(&mut self, (object, mut height): Tall<Expr>, start: u32) -> Result<Tall<Expr>, SyntaxError> {
        let object = Box::new(object);
        let mut bound = |parser: &mut Self, end: &[TokenKind]| -> Result<Option<Box<Expr>>, SyntaxError> {
            if end.contains(&parser.peek().kind) {
                return Ok(None);
            }
            let (value, below) = parser.value()?;
            height = height.max(below);
            Ok(Some(Box::new(value)))
        };
        let from = bound(self, &[TokenKind::Colon])?;
        let kind = if self.eat(TokenKind::Colon) {
            let to = bound(self, &[TokenKind::CloseBracket])?;
            ExprKind::Slice { object, from, to }
        } else {
            match from {
                Some(index) => ExprKind::Index { object, index },
                None => return Err(self.unexpected(Some("<value>"))),
            }
        };
        self.expect(TokenKind::CloseBracket, "\"]\"")?;
        self.node(kind, start, height)
    }

    fn value(&mut self) -> Result<Tall<Expr>, SyntaxError> {
        let token = self.peek();
        let start = token.span.start;
        let kind = match token.kind {
            TokenKind::Null => ExprKind::Null,
            TokenKind::True => ExprKind::Bool { value: true, text: Arc::from(self.slice(token.span)) },
            TokenKind::False => ExprKind::Bool { value: false, text: Arc::from(self.slice(token.span)) },
            TokenKind::String => {
                let text = self.slice(token.span);
                let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
                ExprKind::String(StringLiteral { text: Arc::from(text), value: Arc::from(super::literal::string(inner)) })
            }
            TokenKind::RawString => {
                let text = self.slice(token.span);
                let inner = text.get(3..text.len().saturating_sub(3)).unwrap_or_default();
                ExprKind::String(StringLiteral { text: Arc::from(text), value: Arc::from(inner.as_bytes()) })
            }
            TokenKind::Number => {
                let number = self.number("<number>")?;
                return self.node(ExprKind::Number(number), start, 0);
            }
            TokenKind::Ident | TokenKind::SymbolIdent => return self.symbol(),
            TokenKind::OpenParen => return self.parenthesised(),
            _ => return Err(self.unexpected(Some("<expression>"))),
        };
        self.bump();
        self.node(kind, start, 0)
    }

    fn symbol(&mut self) -> Result<Tall<Expr>, SyntaxError> {
        let start = self.peek().span.start;
        let negated = self.peek().kind == TokenKind::SymbolIdent;
        let path = self.path(negated)?;
        let (args, height) = self.maybe_args()?;
        self.node(ExprKind::Symbol(Symbol { negated, path, args }), start, height)
    }

    /// `a.b.c`, or with a minus before it, which is left out.
    pub(super) fn path(&mut self, negated: bool) -> Result<Vec<Ident>, SyntaxError> {
        let first = if negated {
            let token = self.bump();
            self.ident_of(Span { start: token.span.start.saturating_add(1), end: token.span.end })
        } else {
            self.ident()?
        };
        let mut path = vec![first];
        while self.eat(TokenKind::Dot) {
            path.push(self.ident()?);
        }
        Ok(path)
    }

    fn parenthesised(&mut self) -> Result<Tall<Expr>, SyntaxError> {
        let start = self.bump().span.start;
        if self.peek().kind == TokenKind::CloseParen {
            return Err(self.unexpected(Some("<expression>")).with_hint(Some("an empty list exists only as an argument: x=[]".to_owned())));
        }
        let (mut items, trailing_comma, height) = self.list(TokenKind::CloseParen)?;
        self.expect(TokenKind::CloseParen, "\")\"")?;
        let kind = match items.pop() {
            Some(only) if items.is_empty() && !trailing_comma => ExprKind::Paren(Box::new(only)),
            last => {
                items.extend(last);
                ExprKind::Tuple { items, trailing_comma }
            }
        };
        self.node(kind, start, height)
    }

    /// Expressions with commas between and perhaps one behind, up to but without `end`.
    pub(super) fn list(&mut self, end: TokenKind) -> Result<(Vec<Expr>, bool, u32), SyntaxError> {
        let (first, mut height) = self.expression()?;
        let mut items = vec![first];
        while self.eat(TokenKind::Comma) {
            if self.peek().kind == end {
                return Ok((items, true, height));
            }
            let (item, below) = self.expression()?;
            items.push(item);
            height = height.max(below);
        }
        Ok((items, false, height))
    }

    fn node(&self, kind: ExprKind, start: u32, below: u32) -> Result<Tall<Expr>, SyntaxError> {
        let span = self.since(start);
        Ok((Expr { kind, span }, self.grow(below, span)?))
    }
}

enum Operator {
    Binary(BinaryOp),
    Chain,
}

fn operator(kind: TokenKind) -> Option<(Operator, Binding)> {
    let binary = |op, binding| Some((Operator::Binary(op), binding));
    match kind {
        TokenKind::And | TokenKind::AltAnd => Some((Operator::Chain, Binding::And)),
        TokenKind::Or | TokenKind::AltOr => Some((Operator::Chain, Binding::Or)),
        TokenKind::Equal => binary(BinaryOp::Eq, Binding::Compare),
        TokenKind::NotEqual | TokenKind::LessGreater => binary(BinaryOp::Ne, Binding::Compare),
        TokenKind::Less => binary(BinaryOp::Lt, Binding::Compare),
        TokenKind::LessEqual => binary(BinaryOp::Le, Binding::Compare),
        TokenKind::Greater => binary(BinaryOp::Gt, Binding::Compare),
        TokenKind::GreaterEqual => binary(BinaryOp::Ge, Binding::Compare),
        TokenKind::In => binary(BinaryOp::In, Binding::Compare),
        TokenKind::Match => binary(BinaryOp::Match, Binding::Compare),
        TokenKind::Plus => binary(BinaryOp::Add, Binding::Add),
        TokenKind::Minus => binary(BinaryOp::Sub, Binding::Add),
        TokenKind::Star => binary(BinaryOp::Mul, Binding::Multiply),
        TokenKind::Slash => binary(BinaryOp::Div, Binding::Multiply),
        _ => None,
    }
}
