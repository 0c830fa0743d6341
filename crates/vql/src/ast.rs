//! The syntax tree: what the parser makes, the formatter prints and the evaluator runs. Never changed after parsing.

use std::sync::Arc;

/// A range of bytes in the source text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset past the last byte.
    pub end: u32,
}

/// A comment and where it stands; only the pretty printer and the golden runner care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comment {
    /// The whole comment, with its marks.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// A parsed text: its statements in order, and its comments.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// At least one, unless parsing failed.
    pub statements: Vec<Statement>,
    /// In order of appearance.
    pub comments: Vec<Comment>,
}

/// One statement.
#[derive(Debug, Clone)]
pub struct Statement {
    /// `LET` or `SELECT`.
    pub kind: StatementKind,
    /// From the first token to the last.
    pub span: Span,
}

/// The two kinds of statement.
#[derive(Debug, Clone)]
pub enum StatementKind {
    /// `LET name = …`
    Let(Arc<Let>),
    /// `SELECT …`
    Select(Arc<Select>),
}

/// A definition.
#[derive(Debug, Clone)]
pub struct Let {
    /// What is defined.
    pub name: Ident,
    /// `None` when there are no parentheses.
    pub params: Option<Vec<Param>>,
    /// `<=`: run now and keep the result.
    pub materialized: bool,
    /// What the name stands for.
    pub body: LetBody,
}

/// The right side of a definition.
#[derive(Debug, Clone)]
pub enum LetBody {
    /// A stored query.
    Select(Arc<Select>),
    /// A stored expression.
    Expr(Arc<Expr>),
}

/// A parameter of a definition.
#[derive(Debug, Clone)]
pub struct Param {
    /// The name bound in the body.
    pub name: Ident,
    /// Evaluated in the caller's scope when the argument is missing.
    pub default: Option<ArgValue>,
}

/// A name: verbatim for printing, decoded for looking up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ident {
    /// As written, with backticks if it had them.
    pub text: Arc<str>,
    /// Without backticks, escapes decoded.
    pub name: Arc<str>,
    /// Where it stands.
    pub span: Span,
}

/// A query.
#[derive(Debug, Clone)]
pub struct Select {
    /// `EXPLAIN` stood before it.
    pub explain: bool,
    /// What is selected, in order.
    pub columns: Vec<Column>,
    /// Where rows come from.
    pub from: Source,
    /// `WHERE`. Here and in `GROUP BY` a tuple was written without parentheses; one with them is inside a `Paren`.
    pub filter: Option<Expr>,
    /// `GROUP BY`: one expression, or a tuple of them.
    pub group_by: Option<Expr>,
    /// `ORDER BY`
    pub order_by: Option<OrderBy>,
    /// `LIMIT`
    pub limit: Option<Number>,
    /// The whole query.
    pub span: Span,
}

/// One selected column.
#[derive(Debug, Clone)]
pub struct Column {
    /// The value.
    pub kind: ColumnKind,
    /// `AS` name.
    pub alias: Option<Ident>,
    /// The name in output rows: the alias, or the canonical text of the expression. Empty for `*`.
    pub name: Arc<str>,
}

/// What a column is.
#[derive(Debug, Clone)]
pub enum ColumnKind {
    /// `*`
    Star,
    /// `{ SELECT … }`
    Select(Arc<Select>),
    /// An expression.
    Expr(Expr),
}

/// The target of `FROM`.
#[derive(Debug, Clone)]
pub struct Source {
    /// A plugin, or a variable, perhaps dotted.
    pub path: Vec<Ident>,
    /// `None` when there are no parentheses.
    pub args: Option<Vec<Arg>>,
    /// Where it stands.
    pub span: Span,
}

/// `ORDER BY name [DESC]`
#[derive(Debug, Clone)]
pub struct OrderBy {
    /// The column.
    pub column: Ident,
    /// `DESC`
    pub descending: bool,
}

/// One named argument.
#[derive(Debug, Clone)]
pub struct Arg {
    /// The name.
    pub name: Ident,
    /// The value.
    pub value: ArgValue,
}

/// What an argument may be.
#[derive(Debug, Clone)]
pub enum ArgValue {
    /// An expression.
    Expr(Arc<Expr>),
    /// `{ SELECT … }`, passed unrun.
    Select(Arc<Select>),
    /// `[a, b]`. A single element without trailing comma stands for itself.
    Array {
        /// The elements.
        items: Vec<Expr>,
        /// `[a, ]` is a list of one.
        trailing_comma: bool,
    },
}

/// An expression and where it stands.
#[derive(Debug, Clone)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Where it stands.
    pub span: Span,
}

/// The kinds of expression.
#[derive(Debug, Clone)]
pub enum ExprKind {
    /// `NULL`
    Null,
    /// `TRUE`, `FALSE`
    Bool {
        /// The value.
        value: bool,
        /// As written: the case is kept when printing.
        text: Arc<str>,
    },
    /// A number.
    Number(Number),
    /// A string literal.
    String(StringLiteral),
    /// A name, a dotted path, or a call of either.
    Symbol(Symbol),
    /// `(a, b)` or `(a, )`: a list.
    Tuple {
        /// The elements.
        items: Vec<Expr>,
        /// `(a, )` is a list of one.
        trailing_comma: bool,
    },
    /// `(a)`: kept so that printing gives it back.
    Paren(Box<Expr>),
    /// `a.b` where `a` is not itself a plain symbol path.
    Member {
        /// The left side.
        object: Box<Expr>,
        /// The name.
        name: Ident,
    },
    /// `a[i]`
    Index {
        /// The left side.
        object: Box<Expr>,
        /// The index.
        index: Box<Expr>,
    },
    /// `a[i:j]`, either bound optional.
    Slice {
        /// The left side.
        object: Box<Expr>,
        /// The first bound.
        from: Option<Box<Expr>>,
        /// The second bound.
        to: Option<Box<Expr>>,
    },
    /// Arithmetic and comparison.
    Binary {
        /// The operator.
        op: BinaryOp,
        /// The left operand.
        left: Box<Expr>,
        /// The right operand.
        right: Box<Expr>,
    },
    /// `a AND b && c`: operands in order, each later one with the operator before it.
    And {
        /// The first operand.
        first: Box<Expr>,
        /// Operator as written (`AND`, `and`, `&&`) and operand.
        rest: Vec<(Arc<str>, Expr)>,
    },
    /// `a OR b || c`, likewise.
    Or {
        /// The first operand.
        first: Box<Expr>,
        /// Operator as written (`OR`, `or`, `||`) and operand.
        rest: Vec<(Arc<str>, Expr)>,
    },
    /// `NOT a`
    Not(Box<Expr>),
}

/// A name, a dotted path, or a call of either, perhaps negated.
#[derive(Debug, Clone)]
pub struct Symbol {
    /// A minus stood directly before it.
    pub negated: bool,
    /// The components; at least one.
    pub path: Vec<Ident>,
    /// `None` when there are no parentheses.
    pub args: Option<Vec<Arg>>,
}

/// `x=>expr`, parsed from the text of a string value.
#[derive(Debug, Clone)]
pub struct Lambda {
    /// The names bound in the body; at least one.
    pub params: Vec<Ident>,
    /// What is computed.
    pub body: Expr,
}

/// A number literal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Decimal, hexadecimal or octal.
    Int(i64),
    /// With a fraction or exponent, or past the range of 64 bits.
    Float(f64),
}

/// A string literal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StringLiteral {
    /// As written, with quotes.
    pub text: Arc<str>,
    /// Escapes decoded; any bytes.
    pub value: Arc<[u8]>,
}

/// The operators between two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `=`
    Eq,
    /// `!=` and `<>`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `IN`
    In,
    /// `=~`
    Match,
}
