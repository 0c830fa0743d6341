//! Signatures: what a built-in is called, what it takes and which permissions it needs. The dispatcher enforces them.

use talon_ids::{Permission, Permissions};

/// What a built-in is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Gives rows; stands after `FROM`.
    Plugin,
    /// Gives a value.
    Function,
}

/// What a call that failed gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// `NULL`
    Null,
    /// `FALSE`: a few functions.
    False,
}

/// The declared type of an argument. It decides what is accepted and how it is converted (`spec/04` §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArgType {
    /// Text; numbers and bools are written out.
    String,
    /// A list of text; a scalar is a list of one.
    Strings,
    /// A signed integer; never numeric text.
    Int,
    /// An unsigned integer.
    UInt,
    /// A number.
    Float,
    /// Truth of any value.
    Bool,
    /// A dict.
    Dict,
    /// A list of dicts; a dict is a list of one.
    Dicts,
    /// A query; lists, dicts and scalars become rows.
    Query,
    /// Any value. Queries stay unread.
    Any,
    /// A list of any values; a scalar is a list of one.
    AnyList,
    /// Not evaluated until the body asks.
    Lazy,
    /// A moment: time, epoch or text.
    Time,
    /// A lambda, given as text.
    Lambda,
    /// A path, read by the accessor that the argument `accessor` names.
    Path,
    /// A list of paths.
    Paths,
}

impl ArgType {
    /// The name in reference documentation, as the stock list has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Strings => "[string]",
            Self::Int => "int64",
            Self::UInt => "uint64",
            Self::Float => "float64",
            Self::Bool => "bool",
            Self::Dict => "Dict",
            Self::Dicts => "[Dict]",
            Self::Query => "StoredQuery",
            Self::Any => "Any",
            Self::AnyList => "[Any]",
            Self::Lazy => "LazyExpr",
            Self::Time => "Time",
            Self::Lambda => "Lambda",
            Self::Path => "OSPath",
            Self::Paths => "[OSPath]",
        }
    }
}

/// One declared argument.
#[derive(Debug, Clone, Copy)]
pub struct Arg {
    /// The name.
    pub name: &'static str,
    /// The type.
    pub ty: ArgType,
    /// A call without it fails.
    pub required: bool,
    /// What it means, in one sentence.
    pub doc: &'static str,
}

impl Arg {
    /// An argument that may be left out.
    #[must_use]
    pub const fn optional(name: &'static str, ty: ArgType, doc: &'static str) -> Self {
        Self { name, ty, required: false, doc }
    }

    /// An argument that must be given.
    #[must_use]
    pub const fn required(name: &'static str, ty: ArgType, doc: &'static str) -> Self {
        Self { name, ty, required: true, doc }
    }
}

/// Declares arguments anywhere: `.args(args![Arg::required(…), Arg::optional(…)])`.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => {{
        const ARGS: &[$crate::Arg] = &[$($arg),*];
        ARGS
    }};
}

/// The signature of a built-in.
#[derive(Debug, Clone, Copy)]
pub struct Signature {
    /// The name that queries use.
    pub name: &'static str,
    /// Plugin or function.
    pub kind: Kind,
    /// The declared arguments.
    pub args: &'static [Arg],
    /// Arguments beside the declared ones are welcome: the body gets them in the order in which they were written.
    pub free_form: bool,
    /// In free-form calls, arguments are not evaluated before the body.
    pub lazy_extras: bool,
    /// All are needed. Checked by the dispatcher before anything is evaluated for the body.
    pub permissions: Permissions,
    /// The number that `version()` gives.
    pub version: i64,
    /// What a failed call gives.
    pub on_error: OnError,
    /// Keeps a state per place of call and group: an aggregate.
    pub aggregate: bool,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// Why it cannot be had here, for a built-in that is known by name only: calls log this and give nothing.
    pub unavailable: Option<&'static str>,
}

impl Signature {
    const fn new(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self {
            name,
            kind,
            args: &[],
            free_form: false,
            lazy_extras: false,
            permissions: Permissions::NONE,
            version: 0,
            on_error: OnError::Null,
            aggregate: false,
            doc,
            unavailable: None,
        }
    }

    /// A plugin without arguments and permissions; chain the rest.
    ///
    /// ```
    /// use talon_ids::Permission;
    /// use talon_vql::{Arg, ArgType, Signature};
    ///
    /// const GLOB: Signature = Signature::plugin("glob", "Finds files.")
    ///     .args(&[Arg::required("globs", ArgType::Strings, "What to look for.")])
    ///     .permissions(&[Permission::FilesystemRead])
    ///     .version(3);
    /// assert_eq!(GLOB.args.len(), 1);
    /// ```
    #[must_use]
    pub const fn plugin(name: &'static str, doc: &'static str) -> Self {
        Self::new(name, Kind::Plugin, doc)
    }

    /// A function without arguments and permissions; chain the rest.
    #[must_use]
    pub const fn function(name: &'static str, doc: &'static str) -> Self {
        Self::new(name, Kind::Function, doc)
    }

    /// Declares the arguments.
    #[must_use]
    pub const fn args(mut self, args: &'static [Arg]) -> Self {
        self.args = args;
        self
    }

    /// Declares the permissions.
    #[must_use]
    pub const fn permissions(mut self, permissions: &[Permission]) -> Self {
        self.permissions = Permissions::of(permissions);
        self
    }

    /// Declares the version.
    #[must_use]
    pub const fn version(mut self, version: i64) -> Self {
        self.version = version;
        self
    }

    /// Welcomes any further argument.
    #[must_use]
    pub const fn free_form(mut self) -> Self {
        self.free_form = true;
        self
    }

    /// Welcomes any further argument and leaves it unevaluated.
    #[must_use]
    pub const fn lazy_free_form(mut self) -> Self {
        self.free_form = true;
        self.lazy_extras = true;
        self
    }

    /// A failed call gives `FALSE`.
    #[must_use]
    pub const fn false_on_error(mut self) -> Self {
        self.on_error = OnError::False;
        self
    }

    /// Declares an aggregate.
    #[must_use]
    pub const fn aggregate(mut self) -> Self {
        self.aggregate = true;
        self
    }

    /// Declares that calls are refused, and why. Any argument is welcome, and `version()` gives −1. Register it with
    /// [`Registry::unavailable`](crate::Registry::unavailable).
    #[must_use]
    pub const fn unavailable(mut self, reason: &'static str) -> Self {
        self.unavailable = Some(reason);
        self.version = -1;
        self.lazy_free_form()
    }

    /// The declared argument `name`.
    #[must_use]
    pub fn arg(&self, name: &str) -> Option<&Arg> {
        self.args.iter().find(|arg| arg.name == name)
    }
}
