//! Text to tokens: ordered alternatives, the first that matches wins. Works on bytes, allocates one vector.

use crate::ast::Span;

/// A token and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Explain,
    Select,
    Where,
    And,
    Or,
    /// One or more `|`.
    AltOr,
    /// `&&`
    AltAnd,
    From,
    Not,
    As,
    In,
    Limit,
    Null,
    Desc,
    GroupBy,
    OrderBy,
    True,
    False,
    Let,
    Number,
    Ident,
    /// A minus directly before an identifier.
    SymbolIdent,
    /// `<>`
    LessGreater,
    NotEqual,
    LessEqual,
    GreaterEqual,
    /// `=>`
    Arrow,
    /// `=~`
    Match,
    Minus,
    Plus,
    Colon,
    Star,
    Slash,
    Percent,
    Comma,
    Dot,
    OpenParen,
    CloseParen,
    Equal,
    Less,
    Greater,
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    /// `'''…'''`
    RawString,
    String,
    Eof,
    Invalid(Fault),
}

/// Why no token could be made; the text after it is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Character,
    OpenString,
    OpenComment,
    OpenBacktick,
    EmptyBacktick,
}

/// The tokens of a text, the last of which is `Eof` or `Invalid`, and its comments.
pub(crate) struct Lexed {
    pub(crate) tokens: Vec<Token>,
    pub(crate) comments: Vec<Span>,
}

/// Splits a text of less than 4 GiB.
pub(crate) fn lex(text: &str) -> Lexed {
    let mut lexer = Lexer { text, bytes: text.as_bytes(), at: 0, comments: Vec::new() };
    let mut tokens = Vec::with_capacity(text.len() / 4 + 1);
    loop {
        let fault = lexer.skip();
        let start = lexer.at;
        let kind = match fault {
            Some(fault) => {
                lexer.at = lexer.bytes.len();
                TokenKind::Invalid(fault)
            }
            None if start >= lexer.bytes.len() => TokenKind::Eof,
            None => lexer.token(),
        };
        tokens.push(Token { kind, span: span(start, lexer.at) });
        if matches!(kind, TokenKind::Eof | TokenKind::Invalid(_)) {
            return Lexed { tokens, comments: lexer.comments };
        }
    }
}

/// True when the word would be taken for a keyword.
pub(crate) fn is_keyword(word: &str) -> bool {
    keyword(word).is_some()
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    comments: Vec<Span>,
}

impl Lexer<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Skips white space and comments.
    fn skip(&mut self) -> Option<Fault> {
        loop {
            let start = self.at;
            match (self.byte(start), self.byte(start + 1)) {
                (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => self.at += 1,
                (b'-', b'-') | (b'/', b'/') => {
                    let length = self.rest().iter().position(|byte| *byte == b'\n').unwrap_or(self.rest().len());
                    self.at += length;
                    let carriage_return = usize::from(self.byte(self.at.saturating_sub(1)) == b'\r');
                    self.comments.push(span(start, self.at - carriage_return));
                }
                (b'/', b'*') => {
                    let body = self.bytes.get(start + 2..).unwrap_or_default();
                    let Some(length) = body.windows(2).position(|pair| pair == b"*/") else { return Some(Fault::OpenComment) };
                    self.at = start + 2 + length + 2;
                    self.comments.push(span(start, self.at));
                }
                (0x80.., _) => match self.text.get(start..).and_then(|rest| rest.chars().next()) {
                    Some(c) if c.is_whitespace() => self.at += c.len_utf8(),
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    fn token(&mut self) -> TokenKind {
        let (first, second) = (self.byte(self.at), self.byte(self.at + 1));
        match first {
            b'A'..=b'Z' | b'a'..=b'z' | b'_' => self.word(),
            b'0'..=b'9' => self.number(),
            b'.' if second.is_ascii_digit() => self.number(),
            b'-' if second.is_ascii_digit() || (second == b'.' && self.byte(self.at + 2).is_ascii_digit()) => self.number(),
            b'-' if second == b'`' || second == b'_' || second.is_ascii_alphabetic() => {
                self.at += 1;
                if second == b'`' {
                    return self.backtick(TokenKind::SymbolIdent);
                }
                self.take_word();
                TokenKind::SymbolIdent
            }
            b'`' => self.backtick(TokenKind::Ident),
            b'|' => {
                while self.byte(self.at) == b'|' {
                    self.at += 1;
                }
                TokenKind::AltOr
            }
            b'&' if second == b'&' => self.take(2, TokenKind::AltAnd),
            b'<' if second == b'>' => self.take(2, TokenKind::LessGreater),
            b'!' if second == b'=' => self.take(2, TokenKind::NotEqual),
            b'<' if second == b'=' => self.take(2, TokenKind::LessEqual),
            b'>' if second == b'=' => self.take(2, TokenKind::GreaterEqual),
            b'=' if second == b'>' => self.take(2, TokenKind::Arrow),
            b'=' if second == b'~' => self.take(2, TokenKind::Match),
            b'-' => self.take(1, TokenKind::Minus),
            b'+' => self.take(1, TokenKind::Plus),
            b':' => self.take(1, TokenKind::Colon),
            b'*' => self.take(1, TokenKind::Star),
            b'/' => self.take(1, TokenKind::Slash),
            b'%' => self.take(1, TokenKind::Percent),
            b',' => self.take(1, TokenKind::Comma),
            b'.' => self.take(1, TokenKind::Dot),
            b'(' => self.take(1, TokenKind::OpenParen),
            b')' => self.take(1, TokenKind::CloseParen),
            b'=' => self.take(1, TokenKind::Equal),
            b'<' => self.take(1, TokenKind::Less),
            b'>' => self.take(1, TokenKind::Greater),
            b'{' => self.take(1, TokenKind::OpenBrace),
            b'}' => self.take(1, TokenKind::CloseBrace),
            b'[' => self.take(1, TokenKind::OpenBracket),
            b']' => self.take(1, TokenKind::CloseBracket),
            b'\'' | b'"' => self.string(first),
            _ => {
                let length = self.text.get(self.at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
                self.take(length, TokenKind::Invalid(Fault::Character))
            }
        }
    }

    fn take(&mut self, length: usize, kind: TokenKind) -> TokenKind {
        self.at += length;
        kind
    }

    fn take_word(&mut self) {
        while matches!(self.byte(self.at), b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_') {
            self.at += 1;
        }
    }

    fn take_digits(&mut self) {
        while self.byte(self.at).is_ascii_digit() {
            self.at += 1;
        }
    }

    fn word(&mut self) -> TokenKind {
        let start = self.at;
        self.take_word();
        let word = self.text.get(start..self.at).unwrap_or_default();
        if let Some(kind) = keyword(word) {
            return kind;
        }
        let grouping = word.eq_ignore_ascii_case("group");
        if grouping || word.eq_ignore_ascii_case("order") {
            let after_word = self.at;
            while matches!(self.byte(self.at), b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c) {
                self.at += 1;
            }
            let by = self.at;
            self.take_word();
            if by > after_word && self.text.get(by..self.at).unwrap_or_default().eq_ignore_ascii_case("by") {
                return if grouping { TokenKind::GroupBy } else { TokenKind::OrderBy };
            }
            self.at = after_word;
        }
        TokenKind::Ident
    }

    fn number(&mut self) -> TokenKind {
        if self.byte(self.at) == b'-' {
            self.at += 1;
        }
        if self.byte(self.at) == b'0' && matches!(self.byte(self.at + 1), b'x' | b'X') && self.byte(self.at + 2).is_ascii_hexdigit() {
            self.at += 2;
            while self.byte(self.at).is_ascii_hexdigit() {
                self.at += 1;
            }
            return TokenKind::Number;
        }
        self.take_digits();
        if self.byte(self.at) == b'.' && self.byte(self.at + 1).is_ascii_digit() {
            self.at += 1;
            self.take_digits();
        }
        if matches!(self.byte(self.at), b'e' | b'E') {
            let signed = usize::from(matches!(self.byte(self.at + 1), b'+' | b'-'));
            if self.byte(self.at + 1 + signed).is_ascii_digit() {
                self.at += 1 + signed;
                self.take_digits();
            }
        }
        TokenKind::Number
    }

    fn backtick(&mut self, kind: TokenKind) -> TokenKind {
        let body = self.bytes.get(self.at + 1..).unwrap_or_default();
        match body.iter().position(|byte| *byte == b'`') {
            Some(0) => self.take(2, TokenKind::Invalid(Fault::EmptyBacktick)),
            Some(length) => self.take(length + 2, kind),
            None => self.take(1, TokenKind::Invalid(Fault::OpenBacktick)),
        }
    }

    fn string(&mut self, quote: u8) -> TokenKind {
        if self.rest().starts_with(b"'''") {
            let body = self.bytes.get(self.at + 3..).unwrap_or_default();
            if let Some(length) = body.windows(3).position(|three| three == b"'''") {
                return self.take(length + 6, TokenKind::RawString);
            }
        }
        let mut escaped = false;
        for (offset, byte) in self.rest().iter().enumerate().skip(1) {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                byte if *byte == quote => return self.take(offset + 1, TokenKind::String),
                _ => {}
            }
        }
        self.take(1, TokenKind::Invalid(Fault::OpenString))
    }
}

fn keyword(word: &str) -> Option<TokenKind> {
    const KEYWORDS: [(&str, TokenKind); 17] = [
        ("EXPLAIN", TokenKind::Explain),
        ("SELECT", TokenKind::Select),
        ("WHERE", TokenKind::Where),
        ("AND", TokenKind::And),
        ("OR", TokenKind::Or),
        ("FROM", TokenKind::From),
        ("NOT", TokenKind::Not),
        ("AS", TokenKind::As),
        ("IN", TokenKind::In),
        ("LIMIT", TokenKind::Limit),
        ("NULL", TokenKind::Null),
        ("DESC", TokenKind::Desc),
        ("TRUE", TokenKind::True),
        ("FALSE", TokenKind::False),
        ("LET", TokenKind::Let),
        ("GROUP BY", TokenKind::GroupBy),
        ("ORDER BY", TokenKind::OrderBy),
    ];
    if word.len() > 7 {
        return None;
    }
    KEYWORDS.iter().find(|(text, _)| text.eq_ignore_ascii_case(word)).map(|(_, kind)| *kind)
}

fn span(start: usize, end: usize) -> Span {
    Span { start: u32::try_from(start).unwrap_or(u32::MAX), end: u32::try_from(end).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kinds and texts, as `Kind:text`, the final `Eof` left out.
    fn tokens(text: &str) -> String {
        let lexed = lex(text);
        let mut out: Vec<String> = Vec::new();
        for token in lexed.tokens {
            if token.kind != TokenKind::Eof {
                out.push(format!("{:?}:{}", token.kind, &text[token.span.start as usize..token.span.end as usize]));
            }
        }
        out.join(" ")
    }

    #[test]
    fn a_minus_belongs_to_the_number_or_name_it_touches() {
        for (text, expected) in [
            ("1-2", "Number:1 Number:-2"),
            ("1 - 2", "Number:1 Minus:- Number:2"),
            ("a-b", "Ident:a SymbolIdent:-b"),
            ("a - b", "Ident:a Minus:- Ident:b"),
            ("-`x y`", "SymbolIdent:-`x y`"),
            ("-f(x=1)", "SymbolIdent:-f OpenParen:( Ident:x Equal:= Number:1 CloseParen:)"),
            ("-.5", "Number:-.5"),
            ("-SELECT", "SymbolIdent:-SELECT"),
        ] {
            assert_eq!(tokens(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers() {
        for (text, expected) in [
            ("0x10", "Number:0x10"),
            ("0xg", "Number:0 Ident:xg"),
            (".5", "Number:.5"),
            ("5.", "Number:5 Dot:."),
            ("1.2.3", "Number:1.2 Number:.3"),
            ("1e5", "Number:1e5"),
            ("1e-5", "Number:1e-5"),
            ("1.5E+3x", "Number:1.5E+3 Ident:x"),
            ("1e", "Number:1 Ident:e"),
        ] {
            assert_eq!(tokens(text), expected, "{text}");
        }
    }

    #[test]
    fn keywords_are_whole_words_in_any_case() {
        for (text, expected) in [
            ("select Selected", "Select:select Ident:Selected"),
            ("GROUP  \n BY", "GroupBy:GROUP  \n BY"),
            ("order by", "OrderBy:order by"),
            ("ORDER BYE", "Ident:ORDER Ident:BYE"),
            ("GROUPBY BY ASC", "Ident:GROUPBY Ident:BY Ident:ASC"),
            ("group/**/by", "Ident:group Ident:by"),
        ] {
            assert_eq!(tokens(text), expected, "{text}");
        }
    }

    #[test]
    fn operators_take_the_longest_listed_form() {
        assert_eq!(
            tokens("<> != <= >= => =~ = < > | || ||| &&"),
            "LessGreater:<> NotEqual:!= LessEqual:<= GreaterEqual:>= Arrow:=> Match:=~ Equal:= Less:< Greater:> AltOr:| AltOr:|| AltOr:||| AltAnd:&&"
        );
        assert_eq!(tokens("+ : * / % , . ( ) { } [ ]").split(' ').count(), 13);
    }

    #[test]
    fn strings_of_every_quote() {
        for (text, expected) in [
            (r"'a\'b'", r"String:'a\'b'"),
            ("\"a\nb\"", "String:\"a\nb\""),
            (r#"'''a\'b"c''' x"#, r#"RawString:'''a\'b"c''' Ident:x"#),
            ("''", "String:''"),
            ("''''''", "RawString:''''''"),
            ("'' ''", "String:'' String:''"),
        ] {
            assert_eq!(tokens(text), expected, "{text}");
        }
    }

    #[test]
    fn comments_may_stand_between_any_tokens() {
        assert_eq!(tokens("a--b\n//c\r\nd/*e\n*/f"), "Ident:a Ident:d Ident:f");
        assert_eq!(lex("a--b\n//c\r\nd/*e\n*/f").comments.len(), 3);
        assert_eq!(tokens("'-- no' /* '*/ x"), "String:'-- no' Ident:x");
    }

    #[test]
    fn lexing_stops_at_the_first_fault() {
        for (text, fault) in [
            ("a ; b", Fault::Character),
            ("a & b", Fault::Character),
            ("a é", Fault::Character),
            ("\u{0}", Fault::Character),
            ("'abc", Fault::OpenString),
            ("'''abc", Fault::OpenString),
            ("\"abc\\\"", Fault::OpenString),
            ("/* abc", Fault::OpenComment),
            ("`abc", Fault::OpenBacktick),
            ("``", Fault::EmptyBacktick),
        ] {
            assert_eq!(lex(text).tokens.last().map(|token| token.kind), Some(TokenKind::Invalid(fault)), "{text}");
        }
    }
}
