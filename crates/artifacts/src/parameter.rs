//! Parameters: they travel as strings, and statements in front of the queries turn them into what their type says.

use talon_proto as proto;
use talon_vql::format::quote_name;

/// What becomes of a parameter's text before the queries run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterType {
    /// Stays a string: `string`, `regex`, `yara`, `hidden`, `choices` and unknown types.
    Text,
    /// Stays a string, and is hidden in stored requests.
    Redacted,
    /// Stays a string; the server may have a value of its own.
    ServerMetadata,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// `Y`, `YES`, `TRUE`, `OK` are true.
    Bool,
    /// A moment.
    Timestamp,
    /// Rows of a CSV text.
    Csv,
    /// Any JSON value.
    Json,
    /// A JSON list.
    JsonArray,
    /// An XML document.
    Xml,
    /// A YAML document.
    Yaml,
    /// A Starlark module.
    Starlark,
    /// The content behind a URL.
    Upload,
    /// A temporary file with the content behind a URL.
    UploadFile,
}

impl ParameterType {
    /// The type by its name in definitions. Unknown ones stay strings, as stock servers have it.
    #[must_use]
    pub fn of(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "redacted" => Self::Redacted,
            "server_metadata" => Self::ServerMetadata,
            "int" | "int64" | "integer" => Self::Int,
            "float" => Self::Float,
            "bool" => Self::Bool,
            "timestamp" => Self::Timestamp,
            "csv" | "artifactset" => Self::Csv,
            "json" => Self::Json,
            "json_array" | "regex_array" | "multichoice" => Self::JsonArray,
            "xml" => Self::Xml,
            "yaml" => Self::Yaml,
            "starlark" => Self::Starlark,
            "upload" => Self::Upload,
            "upload_file" => Self::UploadFile,
            _ => Self::Text,
        }
    }

    /// True for the names that definitions may use without a lint.
    #[must_use]
    pub fn is_known(name: &str) -> bool {
        Self::of(name) != Self::Text
            || ["", "string", "regex", "yara", "hidden", "choices"].iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// A parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The variable that the queries see.
    pub name: String,
    /// Its text unless a request says otherwise.
    pub default: String,
    /// What becomes of the text.
    pub kind: ParameterType,
}

impl Parameter {
    pub(crate) fn new(parameter: &proto::ArtifactParameter) -> Self {
        Self { name: parameter.name.clone(), default: parameter.default.clone(), kind: ParameterType::of(&parameter.r#type) }
    }

    /// The statements that convert the text, in order.
    #[must_use]
    pub fn conversion(&self) -> Vec<String> {
        let name = quote_name(&self.name);
        let convert = |expression: String| vec![format!("LET {name} <= {expression}")];
        // A caller in VQL may pass a real value where a request passes text.
        let unless_value = |parsed: String| {
            convert(format!("if(condition=format(format=\"%T\", args=({name}, )) = \"string\", then={parsed}, else={name})"))
        };
        match self.kind {
            ParameterType::Text | ParameterType::Redacted | ParameterType::ServerMetadata => Vec::new(),
            ParameterType::Int => convert(format!("int(int={name})")),
            ParameterType::Float => convert(format!("parse_float(string={name})")),
            ParameterType::Bool => convert(format!("{name} = TRUE OR {name} =~ \"^(Y|TRUE|YES|OK)$\"")),
            ParameterType::Timestamp => convert(format!("timestamp(epoch={name})")),
            ParameterType::Csv => unless_value(format!("{{ SELECT * FROM parse_csv(filename={name}, accessor=\"data\") }}")),
            ParameterType::Json => unless_value(format!("parse_json(data={name})")),
            ParameterType::JsonArray => unless_value(format!("parse_json_array(data={name})")),
            ParameterType::Xml => unless_value(format!("parse_xml(file={name}, accessor=\"data\")")),
            ParameterType::Yaml => unless_value(format!("parse_yaml(filename={name}, accessor=\"data\")")),
            ParameterType::Starlark => unless_value(format!("starl(code={name})")),
            ParameterType::Upload => self.fetch(""),
            ParameterType::UploadFile => self.fetch(", tempfile_extension=\".tmp\""),
        }
    }

    fn fetch(&self, extra: &str) -> Vec<String> {
        let (name, fetched) = (quote_name(&self.name), quote_name(&format!("{}_", self.name)));
        vec![
            format!("LET {fetched} <= SELECT Content FROM if(condition={name}, then={{ SELECT * FROM http_client(url={name}{extra}) }})"),
            format!("LET {name} <= if(condition={name}, then={fetched}[0].Content)"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn conversions_of_every_type() {
        let kinds = [
            "",
            "string",
            "regex",
            "yara",
            "hidden",
            "choices",
            "no such type",
            "redacted",
            "server_metadata",
            "int",
            "INT64",
            "integer",
            "float",
            "bool",
            "timestamp",
            "csv",
            "artifactset",
            "json",
            "json_array",
            "regex_array",
            "multichoice",
            "xml",
            "yaml",
            "starlark",
            "upload",
            "upload_file",
        ];
        let mut shown = String::new();
        for kind in kinds {
            let parameter = Parameter { name: "P".to_owned(), default: String::new(), kind: ParameterType::of(kind) };
            for statement in parameter.conversion() {
                let parsed = talon_vql::parse_statement(&statement).unwrap_or_else(|error| panic!("{}", error.render()));
                assert_eq!(talon_vql::format::canonical_statement(&parsed), statement);
                shown.push_str(&format!("{kind}: {statement}\n"));
            }
        }
        expect![[r#"
            int: LET P <= int(int=P)
            INT64: LET P <= int(int=P)
            integer: LET P <= int(int=P)
            float: LET P <= parse_float(string=P)
            bool: LET P <= P = TRUE OR P =~ "^(Y|TRUE|YES|OK)$"
            timestamp: LET P <= timestamp(epoch=P)
            csv: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then={ SELECT * FROM parse_csv(filename=P, accessor="data") }, else=P)
            artifactset: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then={ SELECT * FROM parse_csv(filename=P, accessor="data") }, else=P)
            json: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then=parse_json(data=P), else=P)
            json_array: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then=parse_json_array(data=P), else=P)
            regex_array: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then=parse_json_array(data=P), else=P)
            multichoice: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then=parse_json_array(data=P), else=P)
            xml: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then=parse_xml(file=P, accessor="data"), else=P)
            yaml: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then=parse_yaml(filename=P, accessor="data"), else=P)
            starlark: LET P <= if(condition=format(format="%T", args=(P, )) = "string", then=starl(code=P), else=P)
            upload: LET P_ <= SELECT Content FROM if(condition=P, then={ SELECT * FROM http_client(url=P) })
            upload: LET P <= if(condition=P, then=P_[0].Content)
            upload_file: LET P_ <= SELECT Content FROM if(condition=P, then={ SELECT * FROM http_client(url=P, tempfile_extension=".tmp") })
            upload_file: LET P <= if(condition=P, then=P_[0].Content)
        "#]].assert_eq(&shown);
    }

    #[test]
    fn odd_names_are_quoted() {
        for name in ["1st", "a b", "a.b", "a-b", "it's", "select", "q\"q"] {
            for kind in ["int", "bool", "csv", "upload"] {
                let parameter = Parameter { name: name.to_owned(), default: String::new(), kind: ParameterType::of(kind) };
                for statement in parameter.conversion() {
                    talon_vql::parse_statement(&statement).unwrap_or_else(|error| panic!("{}", error.render()));
                }
            }
        }
    }
}
