//! Tokens to syntax tree: recursive descent with one token of lookahead, bounded in depth, height and derived text.

mod expression;
mod literal;
mod statement;

use std::sync::Arc;

use crate::ast::{Comment, Expr, Ident, Lambda, Program, Span, Statement};
use crate::lexer::{Fault, Token, TokenKind, is_keyword, lex};
use crate::syntax_error::{SyntaxError, nearest};

/// The longest text that is parsed, in bytes.
pub const MAX_TEXT: usize = 32 << 20;
/// The deepest recursion of the parser itself.
const MAX_DEPTH: u32 = 120;
/// The tallest tree: bounds the recursion of everything that walks one.
const MAX_HEIGHT: u32 = 500;
/// How many times over a text may be repeated in derived column names.
const NAME_FACTOR: usize = 8;

/// Parses a text of one or more statements.
pub fn parse(text: &str) -> Result<Program, SyntaxError> {
    let mut parser = Parser::new(text)?;
    let mut statements = Vec::new();
    loop {
        statements.push(parser.statement()?);
        match parser.peek().kind {
            TokenKind::Eof => break,
            TokenKind::Let | TokenKind::Select | TokenKind::Explain => {}
            _ => return Err(parser.unexpected(None)),
        }
    }
    Ok(Program { statements, comments: parser.comments() })
}

/// Parses exactly one statement.
pub fn parse_statement(text: &str) -> Result<Statement, SyntaxError> {
    let mut parser = Parser::new(text)?;
    let statement = parser.statement()?;
    parser.end()?;
    Ok(statement)
}

/// Parses an expression alone.
pub fn parse_expression(text: &str) -> Result<Expr, SyntaxError> {
    let mut parser = Parser::new(text)?;
    let (expression, _) = parser.expression()?;
    parser.end()?;
    Ok(expression)
}

/// Parses `x=>expr` or `x,y=>expr`.
pub fn parse_lambda(text: &str) -> Result<Lambda, SyntaxError> {
    let mut parser = Parser::new(text)?;
    let mut params = vec![parser.ident()?];
    while parser.eat(TokenKind::Comma) {
        params.push(parser.ident()?);
    }
    parser.expect(TokenKind::Arrow, "\"=>\"")?;
    let (body, _) = parser.expression()?;
    parser.end()?;
    Ok(Lambda { params, body })
}

/// A part of the tree, and how tall it is.
type Tall<T> = (T, u32);

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    comments: Vec<Span>,
    at: usize,
    /// Where the last taken token ended.
    last_end: u32,
    depth: u32,
    names_left: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, SyntaxError> {
        if text.len() > MAX_TEXT {
            return Err(SyntaxError::new("", Span::default(), format!("the text is longer than {MAX_TEXT} bytes")));
        }
        let lexed = lex(text);
        Ok(Self {
            text,
            tokens: lexed.tokens,
            comments: lexed.comments,
            at: 0,
            last_end: 0,
            depth: 0,
            names_left: text.len().saturating_mul(NAME_FACTOR).saturating_add(1024),
        })
    }

    fn comments(&self) -> Vec<Comment> {
        self.comments.iter().map(|span| Comment { text: self.slice(*span).to_owned(), span: *span }).collect()
    }

    fn slice(&self, span: Span) -> &'a str {
        self.text.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    fn peek(&self) -> Token {
        self.look(0)
    }

    fn look(&self, ahead: usize) -> Token {
        let end = Token { kind: TokenKind::Eof, span: Span::default() };
        self.tokens.get(self.at.saturating_add(ahead)).or(self.tokens.last()).copied().unwrap_or(end)
    }

    /// Takes the next token. The last one, `Eof` or `Invalid`, is never passed.
    fn bump(&mut self) -> Token {
        let token = self.peek();
        if !matches!(token.kind, TokenKind::Eof | TokenKind::Invalid(_)) {
            self.at += 1;
            self.last_end = token.span.end;
        }
        token
    }

    fn eat(&mut self, kind: TokenKind) -> bool {
        let found = self.peek().kind == kind;
        if found {
            self.bump();
        }
        found
    }

    fn expect(&mut self, kind: TokenKind, expected: &str) -> Result<Token, SyntaxError> {
        if self.peek().kind == kind { Ok(self.bump()) } else { Err(self.unexpected(Some(expected))) }
    }

    fn end(&self) -> Result<(), SyntaxError> {
        if self.peek().kind == TokenKind::Eof { Ok(()) } else { Err(self.unexpected(None)) }
    }

    fn since(&self, start: u32) -> Span {
        Span { start, end: self.last_end.max(start) }
    }

    fn ident(&mut self) -> Result<Ident, SyntaxError> {
        let token = self.expect(TokenKind::Ident, "<ident>")?;
        Ok(self.ident_of(token.span))
    }

    fn ident_of(&self, span: Span) -> Ident {
        let text: Arc<str> = Arc::from(self.slice(span));
        let name = match text.strip_prefix('`').and_then(|inner| inner.strip_suffix('`')) {
            Some(inner) => Arc::from(literal::name(inner)),
            None => Arc::clone(&text),
        };
        Ident { text, name, span }
    }

    /// Enters a level of recursion; whoever succeeds must call [`Parser::leave`].
    fn enter(&mut self) -> Result<(), SyntaxError> {
        if self.depth >= MAX_DEPTH {
            return Err(self.too_deep(self.peek().span));
        }
        self.depth += 1;
        Ok(())
    }

    fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn grow(&self, height: u32, span: Span) -> Result<u32, SyntaxError> {
        if height >= MAX_HEIGHT { Err(self.too_deep(span)) } else { Ok(height + 1) }
    }

    fn too_deep(&self, span: Span) -> SyntaxError {
        SyntaxError::new(
            self.text,
            Span { start: span.start, end: span.start.saturating_add(1).min(span.end) },
            "nested too deeply".to_owned(),
        )
        .with_hint(Some("name parts of it with LET".to_owned()))
    }

    fn error(&self, span: Span, message: impl Into<String>) -> SyntaxError {
        SyntaxError::new(self.text, span, message.into())
    }

    /// The next token does not fit.
    fn unexpected(&self, expected: Option<&str>) -> SyntaxError {
        let token = self.peek();
        match token.kind {
            TokenKind::Invalid(fault) => self.invalid(token.span, fault),
            _ => SyntaxError::unexpected(self.text, token.span, expected).with_hint(self.hint(token, expected)),
        }
    }

    fn invalid(&self, span: Span, fault: Fault) -> SyntaxError {
        match fault {
            Fault::Character => self.error(span, format!("invalid input text {:?}", self.slice(span))).with_hint(match self.slice(span) {
                ";" => Some("statements follow each other without a separator".to_owned()),
                "&" => Some("did you mean \"&&\"?".to_owned()),
                _ => None,
            }),
            Fault::OpenString => self.error(span, "this string is never closed"),
            Fault::OpenComment => self.error(Span { start: span.start, end: span.start.saturating_add(2) }, "this comment is never closed"),
            Fault::OpenBacktick => self.error(span, "this backtick is never closed"),
            Fault::EmptyBacktick => self.error(span, "a name in backticks must not be empty"),
        }
    }

    /// What the author may have meant by the token that does not fit, or by the one before it.
    fn hint(&self, token: Token, expected: Option<&str>) -> Option<String> {
        let word = self.slice(token.span);
        if expected == Some("<ident>") && is_keyword(word) {
            return Some(format!("{word} is a keyword; write `{word}` in backticks to use it as a name"));
        }
        match token.kind {
            TokenKind::Number | TokenKind::SymbolIdent if word.starts_with('-') => {
                return Some("a minus that touches what follows is its sign; write a space after it to subtract".to_owned());
            }
            TokenKind::OpenBracket => return Some("lists are written (a, b), or [a, b] directly as the value of an argument".to_owned()),
            TokenKind::OpenBrace => return Some("a query in braces is the value of an argument or a column".to_owned()),
            TokenKind::Percent => return Some("there is no modulo operator".to_owned()),
            TokenKind::Ident if word.eq_ignore_ascii_case("asc") => {
                return Some("ascending order is the default; there is no ASC".to_owned());
            }
            _ => {}
        }
        let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at)).copied();
        [Some(token), before].into_iter().flatten().find_map(|token| self.misspelt(token))
    }

    fn misspelt(&self, token: Token) -> Option<String> {
        const WORDS: [&str; 13] =
            ["SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "GROUP", "ORDER", "LIMIT", "LET", "EXPLAIN", "DESC", "AND", "NOT"];
        if token.kind != TokenKind::Ident {
            return None;
        }
        let word = match nearest(self.slice(token.span), WORDS)? {
            "GROUP" => "GROUP BY",
            "ORDER" => "ORDER BY",
            word => word,
        };
        Some(format!("did you mean {word}?"))
    }
}
