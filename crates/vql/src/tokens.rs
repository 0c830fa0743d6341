//! The tokens of a text, for tools that read queries which are still being written.

use crate::ast::Span;
use crate::lexer::{TokenKind, lex};

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenClass {
    /// `SELECT`, `FROM`, `TRUE` …
    Keyword,
    /// A name, perhaps in backticks or with a minus before it.
    Name,
    /// A number.
    Number,
    /// A string literal.
    Text,
    /// An operator, a bracket, a comma, a dot …
    Mark,
    /// What cannot be read: a string that is never closed, a stray character. Nothing after it is looked at.
    Fault,
}

/// A token and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextToken {
    /// What it is.
    pub class: TokenClass,
    /// Where it stands.
    pub span: Span,
}

/// The tokens of a text, without comments. Nothing for one that is longer than [`crate::MAX_TEXT`].
#[must_use]
pub fn tokens(text: &str) -> Vec<TextToken> {
    if text.len() > crate::MAX_TEXT {
        return Vec::new();
    }
    let lexed = lex(text).tokens.into_iter();
    lexed.filter_map(|token| Some(TextToken { class: class(token.kind)?, span: token.span })).collect()
}

fn class(kind: TokenKind) -> Option<TokenClass> {
    use TokenKind as Kind;
    Some(match kind {
        Kind::Eof => return None,
        Kind::Invalid(_) => TokenClass::Fault,
        Kind::Number => TokenClass::Number,
        Kind::Ident | Kind::SymbolIdent => TokenClass::Name,
        Kind::RawString | Kind::String => TokenClass::Text,
        Kind::Explain | Kind::Select | Kind::Where | Kind::And | Kind::Or | Kind::From | Kind::Not | Kind::As | Kind::In | Kind::Limit => {
            TokenClass::Keyword
        }
        Kind::Null | Kind::Desc | Kind::GroupBy | Kind::OrderBy | Kind::True | Kind::False | Kind::Let => TokenClass::Keyword,
        _ => TokenClass::Mark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_queries_have_tokens() {
        let text = "SELECT `a b`, -x -- note\nFROM f(y=0x1, z='it";
        let seen: Vec<_> =
            tokens(text).iter().map(|token| (token.class, &text[token.span.start as usize..token.span.end as usize])).collect();
        use TokenClass::{Fault, Keyword, Mark, Name, Number};
        let expected = [
            (Keyword, "SELECT"),
            (Name, "`a b`"),
            (Mark, ","),
            (Name, "-x"),
            (Keyword, "FROM"),
            (Name, "f"),
            (Mark, "("),
            (Name, "y"),
            (Mark, "="),
            (Number, "0x1"),
            (Mark, ","),
            (Name, "z"),
            (Mark, "="),
            (Fault, "'"),
        ];
        assert_eq!(seen, expected);
        assert_eq!(tokens(""), []);
    }
}
