//! The syntax of templates: text with actions in double braces, as Go's text/template has it.

/// How deep blocks and parentheses may nest.
const MAX_NESTING: usize = 100;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Show(Pipeline),
    If { condition: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
    With { value: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
    Range { items: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
}

/// Commands, each with the value of the one before as its last argument.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    /// Variables that the value is bound to, without their dollars.
    pub(super) names: Vec<String>,
    /// Whether they are changed (`=`) and not made (`:=`).
    pub(super) assigns: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Function(String),
    Variable(String),
    Nested(Box<Pipeline>),
    Member(Box<Operand>, String),
}

/// Reads a template.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let mut reader = Reader { pieces: pieces(text)?.into_iter(), depth: 0 };
    match reader.block()? {
        (nodes, Stop::Text) => Ok(nodes),
        (_, Stop::End) => Err("unexpected {{end}}".to_owned()),
        (_, Stop::Else(_)) => Err("unexpected {{else}}".to_owned()),
    }
}

/// Text and the insides of actions, in turn.
enum Piece {
    Text(String),
    Action(Vec<Token>),
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let (after, trim_before) = match after.strip_prefix('-') {
            Some(inner) if inner.starts_with(char::is_whitespace) => (inner, true),
            _ => (after, false),
        };
        let before = if trim { before.trim_start() } else { before };
        pieces.push(Piece::Text(if trim_before { before.trim_end() } else { before }.to_owned()));
        let inside = after.trim_start();
        let tail = if let Some(comment) = inside.strip_prefix("/*") {
            comment.split_once("*/").ok_or("a comment is not closed")?.1
        } else {
            let (tokens, tail) = tokens(after)?;
            pieces.push(Piece::Action(tokens));
            tail
        };
        let tail = tail.trim_start();
        let (tail, trim_after) = tail.strip_prefix('-').map_or((tail, false), |tail| (tail, true));
        rest = tail.strip_prefix("}}").ok_or("an action is not closed")?;
        trim = trim_after;
    }
    pieces.push(Piece::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
    Ok(pieces)
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// `.Name`, with whether blanks stand before it.
    Field(String, bool),
    Dot,
    Variable(String),
    Str(String),
    Number(String),
    Sign(&'static str),
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The tokens up to the end of the action, and what follows them.
fn tokens(text: &str) -> Result<(Vec<Token>, &str), String> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        let trimmed = rest.trim_start();
        let blank = trimmed.len() < rest.len();
        rest = trimmed;
        let ends = rest.starts_with("}}") || (blank && rest.strip_prefix('-').is_some_and(|rest| rest.starts_with("}}")));
        let Some(first) = rest.chars().next().filter(|_| !ends) else { return Ok((found, rest)) };
        let tail = rest.get(first.len_utf8()..).unwrap_or_default();
        let name = |text: &str| text.chars().take_while(|c| is_name(*c)).collect::<String>();
        let (token, used) = match first {
            '"' => {
                let (text, used) = quoted(tail)?;
                (Token::Str(text), used.saturating_add(1))
            }
            '`' => {
                let (text, _) = tail.split_once('`').ok_or("a string is not closed")?;
                (Token::Str(text.to_owned()), text.len().saturating_add(2))
            }
            '$' => {
                let name = name(tail);
                let used = name.len().saturating_add(1);
                (Token::Variable(name), used)
            }
            '.' if tail.starts_with(is_name) => {
                let name = name(tail);
                let used = name.len().saturating_add(1);
                (Token::Field(name, blank || found.is_empty()), used)
            }
            '.' => (Token::Dot, 1),
            ':' if tail.starts_with('=') => (Token::Sign(":="), 2),
            '=' => (Token::Sign("="), 1),
            '|' => (Token::Sign("|"), 1),
            '(' => (Token::Sign("("), 1),
            ')' => (Token::Sign(")"), 1),
            ',' => (Token::Sign(","), 1),
            '-' | '+' | '0'..='9' => {
                let number: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+')).collect();
                let used = number.len();
                (Token::Number(number), used)
            }
            c if is_name(c) => {
                let name = name(rest);
                let used = name.len();
                (Token::Word(name), used)
            }
            other => return Err(format!("unexpected {other:?} in an action")),
        };
        found.push(token);
        rest = rest.get(used..).unwrap_or_default();
    }
}

/// The text up to the closing quote, and how many bytes that took.
fn quoted(text: &str) -> Result<(String, usize), String> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((out, at.saturating_add(1))),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(other) => out.push(other),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err("a string is not closed".to_owned())
}

/// How a block ended.
enum Stop {
    Text,
    End,
    /// `{{else}}`, or `{{else if …}}` with the tokens after `else`.
    Else(Vec<Token>),
}

struct Reader {
    pieces: std::vec::IntoIter<Piece>,
    depth: usize,
}

impl Reader {
    fn block(&mut self) -> Result<(Vec<Node>, Stop), String> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_NESTING {
            return Err("blocks are nested too deeply".to_owned());
        }
        let mut nodes = Vec::new();
        let end = loop {
            match self.pieces.next() {
                None => break Stop::Text,
                Some(Piece::Text(text)) if text.is_empty() => {}
                Some(Piece::Text(text)) => nodes.push(Node::Text(text)),
                Some(Piece::Action(tokens)) => match tokens.split_first() {
                    Some((Token::Word(word), [])) if word == "end" => break Stop::End,
                    Some((Token::Word(word), rest)) if word == "else" => break Stop::Else(rest.to_vec()),
                    _ => nodes.push(self.action(&tokens)?),
                },
            }
        };
        self.depth = self.depth.saturating_sub(1);
        Ok((nodes, end))
    }

    fn action(&mut self, tokens: &[Token]) -> Result<Node, String> {
        let Some((Token::Word(word), rest)) = tokens.split_first() else { return Ok(Node::Show(pipeline(tokens)?)) };
        match word.as_str() {
            "if" => {
                let condition = pipeline(rest)?;
                let (then, otherwise) = self.branches(word)?;
                Ok(Node::If { condition, then, otherwise })
            }
            "with" => {
                let value = pipeline(rest)?;
                let (body, otherwise) = self.branches(word)?;
                Ok(Node::With { value, body, otherwise })
            }
            "range" => {
                let items = pipeline(rest)?;
                let (body, otherwise) = self.branches(word)?;
                Ok(Node::Range { items, body, otherwise })
            }
            "define" | "template" | "block" | "break" | "continue" => Err(format!("{{{{{word}}}}} is not supported")),
            _ => Ok(Node::Show(pipeline(tokens)?)),
        }
    }

    fn branches(&mut self, word: &str) -> Result<(Vec<Node>, Vec<Node>), String> {
        let (first, end) = self.block()?;
        match end {
            Stop::Text => Err(format!("{{{{{word}}}}} has no {{{{end}}}}")),
            Stop::End => Ok((first, Vec::new())),
            Stop::Else(tokens) if tokens.is_empty() => match self.block()? {
                (second, Stop::End) => Ok((first, second)),
                _ => Err(format!("{{{{{word}}}}} has no {{{{end}}}}")),
            },
            Stop::Else(tokens) => {
                self.depth = self.depth.saturating_add(1);
                if self.depth > MAX_NESTING {
                    return Err("blocks are nested too deeply".to_owned());
                }
                let nested = self.action(&tokens)?;
                self.depth = self.depth.saturating_sub(1);
                Ok((first, vec![nested]))
            }
        }
    }
}

fn pipeline(tokens: &[Token]) -> Result<Pipeline, String> {
    let mut rest = tokens;
    let pipeline = read_pipeline(&mut rest, 0)?;
    if rest.is_empty() { Ok(pipeline) } else { Err("unexpected `)` in an action".to_owned()) }
}

fn read_pipeline(rest: &mut &[Token], depth: usize) -> Result<Pipeline, String> {
    if depth > MAX_NESTING {
        return Err("parentheses are nested too deeply".to_owned());
    }
    let (names, assigns) = match rest {
        [Token::Variable(name), Token::Sign(sign @ (":=" | "=")), after @ ..] => {
            *rest = after;
            (vec![name.clone()], *sign == "=")
        }
        [Token::Variable(first), Token::Sign(","), Token::Variable(second), Token::Sign(sign @ (":=" | "=")), after @ ..] => {
            *rest = after;
            (vec![first.clone(), second.clone()], *sign == "=")
        }
        _ => (Vec::new(), false),
    };
    let mut commands = vec![Vec::new()];
    while let Some((token, after)) = rest.split_first() {
        if *token == Token::Sign(")") {
            break;
        }
        *rest = after;
        let Some(command) = commands.last_mut() else { break };
        let operand = match token {
            Token::Sign("|") => {
                if command.is_empty() {
                    return Err("a command is missing before `|`".to_owned());
                }
                commands.push(Vec::new());
                continue;
            }
            Token::Sign("(") => {
                let inner = read_pipeline(rest, depth.saturating_add(1))?;
                match rest.split_first() {
                    Some((Token::Sign(")"), after)) => *rest = after,
                    _ => return Err("a parenthesis is not closed".to_owned()),
                }
                Operand::Nested(Box::new(inner))
            }
            Token::Field(name, _) => Operand::Member(Box::new(Operand::Dot), name.clone()),
            Token::Dot => Operand::Dot,
            Token::Variable(name) => Operand::Variable(name.clone()),
            Token::Str(text) => Operand::Str(text.clone()),
            Token::Number(text) => number(text)?,
            Token::Word(word) => match word.as_str() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                "nil" => Operand::Nil,
                _ => Operand::Function(word.clone()),
            },
            Token::Sign(sign) => return Err(format!("unexpected {sign:?} in an action")),
        };
        command.push(with_members(operand, rest));
    }
    if commands.iter().any(Vec::is_empty) {
        return Err("an action is empty".to_owned());
    }
    Ok(Pipeline { names, assigns, commands })
}

/// The operand with the members that follow it without a blank. Their number is bounded, since they nest.
fn with_members(mut operand: Operand, rest: &mut &[Token]) -> Operand {
    for _ in 0..MAX_NESTING {
        let Some((Token::Field(name, false), after)) = rest.split_first() else { break };
        *rest = after;
        operand = Operand::Member(Box::new(operand), name.clone());
    }
    operand
}

fn number(text: &str) -> Result<Operand, String> {
    if let Ok(number) = text.parse() {
        return Ok(Operand::Int(number));
    }
    if let Some(Ok(number)) = text.strip_prefix("0x").map(|digits| i64::from_str_radix(digits, 16)) {
        return Ok(Operand::Int(number));
    }
    text.parse().map(Operand::Float).map_err(|_| format!("{text:?} is not a number"))
}
