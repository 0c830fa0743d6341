//! `parse_binary()`: structures in files, described by a profile.

mod profile;
mod source;
mod structure;

use talon_vql::{Arg, ArgType, Call, CallError, Registry, Signature, Value};

use profile::Profiles;
use structure::Session;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function(
            "parse_binary",
            "A structure of a file, by a profile that describes it. Fields are read when they are asked for.",
        )
        .args(
            const {
                &[
                    Arg::required("filename", ArgType::Path, "The file."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                    Arg::optional(
                        "profile",
                        ArgType::String,
                        "The structures, as JSON: [[name, size, [[field, offset, type, options] …]] …].",
                    ),
                    Arg::required("struct", ArgType::String, "The structure, or a type such as uint32."),
                    Arg::optional("offset", ArgType::Int, "Where it begins."),
                    Arg::optional("env", ArgType::Dict, "Names that lambdas of the profile may use."),
                ]
            },
        )
        .version(2),
        parse_binary,
    );
}

fn parse_binary(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let profile = scope.shared::<Profiles>().get(&call.bytes("profile"))?;
    let path = call.path("filename").ok_or_else(|| CallError::failed("Field filename is required"))?;
    let source = source::open(scope, &call.string("accessor"), &path)?;
    let offset = u64::try_from(call.int("offset")).map_err(|_| CallError::failed("offset must not be negative"))?;
    let session = Session::new(scope, profile, source, call.dict("env"));
    session.read(scope, &call.string("struct"), offset)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    fn run(setup: &[&str], vql: &str) -> Vec<String> {
        let log = Arc::new(MemoryLog::default());
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let environment = Environment::new(Arc::new(crate::registry())).log(log.clone());
        let scope = crate::with_authority(environment, authority).open();
        for statement in setup {
            assert_eq!(Query::new(&scope, &parse_statement(statement).unwrap()).count(), 0);
        }
        let rows: Vec<String> = Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect();
        rows.into_iter().chain(log.take().into_iter().filter(|line| !line.starts_with("DEBUG"))).collect()
    }

    /// The value of one type at the start of `hex`.
    fn one(hex: &str, field: &str) -> String {
        let profile = format!(r#"LET P = '''[["T", 0, [["n", 0, "uint8"], ["f", {field}]]]]'''"#);
        let vql =
            format!("SELECT parse_binary(filename=unhex(string='{hex}'), accessor='data', profile=P, struct='T').f AS f FROM scope()");
        run(&[&profile], &vql).join("\n")
    }

    #[test]
    fn each_type_is_read() {
        for (hex, field, expected) in [
            ("01ff", r#"1, "uint8""#, "255"),
            ("01ff", r#"1, "int8""#, "-1"),
            ("010102", r#"1, "uint16""#, "513"),
            ("010102", r#"1, "uint16b""#, "258"),
            ("01fffffffe", r#"1, "int32b""#, "-2"),
            ("01ffffffffffffffff", r#"1, "uint64""#, "18446744073709551615"),
            ("01ffffffffffffffff", r#"1, "int64""#, "-1"),
            ("01000000000000f83f", r#"1, "float64""#, "1.5"),
            ("010000c03f", r#"1, "float32""#, "1.5"),
            ("01", r#"1, "uint32""#, "null"),
            ("0161626300ff", r#"1, "String""#, r#""abc""#),
            ("01616263", r#"1, "String", {"length": 2}"#, r#""ab""#),
            ("02616263", r#"1, "String", {"length": "x=>x.n"}"#, r#""ab""#),
            ("0161006263", r#"1, "String", {"length": 4}"#, r#""a""#),
            ("0161006263", r#"1, "String", {"length": 4, "term": ""}"#, r#""a\u0000bc""#),
            ("0161623b63", r#"1, "String", {"term": ";"}"#, r#""ab""#),
            ("0161626364", r#"1, "String", {"term_hex": "6364"}"#, r#""ab""#),
            ("0161626364", r#"1, "String", {"max_length": 3}"#, r#""abc""#),
            ("0161006200000063", r#"1, "String", {"encoding": "utf16"}"#, r#""ab""#),
            ("0161006200", r#"1, "String", {"encoding": "utf16", "length": 4}"#, r#""ab""#),
            ("01010203", r#"1, "Array", {"type": "uint8", "count": 2}"#, "[1,2]"),
            ("03010203", r#"1, "Array", {"type": "uint8", "count": "x=>x.n"}"#, "[1,2,3]"),
            ("01010200", r#"1, "Array", {"type": "uint8", "count": 10, "sentinel": "x=>x=0"}"#, "[1,2]"),
            ("01010200", r#"1, "Array", {"type": "uint8", "count": 10, "max_count": 1}"#, "[1]"),
            ("010203", r#"1, "Array", {"type": "uint8", "count": 10}"#, "[2,3]"),
            ("01ffff", r#"1, "short int""#, "-1"),
            ("0102", r#"1, "Enumeration", {"type": "uint8", "choices": {"2": "Two"}}"#, r#""Two""#),
            ("0102", r#"1, "Enumeration", {"type": "uint8", "map": {"Two": 2}}"#, r#""Two""#),
            ("01fe", r#"1, "Enumeration", {"type": "uint8", "choices": {"2": "Two"}}"#, r#""0xfe""#),
            ("0105", r#"1, "Flags", {"type": "uint8", "bitmap": {"A": 0, "B": 1, "C": 2}}"#, r#"["A","C"]"#),
            ("01f3", r#"1, "BitField", {"type": "uint8", "start_bit": 4, "end_bit": 8}"#, "15"),
            ("02aabb", r#"1, "Union", {"selector": "x=>x.n", "choices": {"1": "uint8", "2": "uint16"}}"#, "48042"),
            ("05", r#"0, "Value", {"value": "x=>x.n * 2"}"#, "10"),
            ("05", r#"0, "Value", {"value": "plain"}"#, r#""plain""#),
            ("010200ff", r#"1, "Pointer16", {"type": "uint8"}"#, "0"),
            ("0103", r#"0, "Profile", {"type": "uint8", "offset": "x=>x.n"}"#, "3"),
            ("0180c0a5ab7f9cd501", r#"1, "WinFileTime""#, r#""2019-11-16T13:13:43.1843968Z""#),
            ("01a5c8d35e", r#"1, "Timestamp", {"type": "uint32"}"#, r#""2020-05-31T15:09:25Z""#),
            ("01e8030000", r#"1, "Timestamp", {"type": "uint32", "factor": 1000}"#, r#""1970-01-01T00:00:01Z""#),
            ("01bf50c76e", r#"1, "FatTimestamp""#, r#""2020-05-31T13:54:14Z""#),
            ("01e58e26", r#"1, "leb128""#, "624485"),
        ] {
            let found = one(hex, field);
            assert_eq!(found, format!("{{\"f\":{expected}}}"), "{field}");
        }
    }

    const HEADER: &str = r#"LET P = '''[
        ["Header", "x=>x.Offset + 1", [
            ["__Hidden", 0, "uint8"],
            ["Offset", 1, "uint8"],
            ["Item", "x=>x.Offset", "Item"],
            ["Items", 2, "Array", {"type": "Item", "count": 2}]
        ]],
        ["Item", 2, [["A", 0, "uint8"], ["B", 1, "uint8"], ["Up", 0, "Value", {"value": "x=>x.ParentOf.Offset"}]]]
    ]'''"#;
    const PARSED: &str = "parse_binary(filename=unhex(string='09040a0b0c0d'), accessor='data', profile=P, struct='Header')";

    #[test]
    fn structures_nest_and_show_their_fields() {
        assert_eq!(
            run(&[HEADER], &format!("SELECT {PARSED} AS X FROM scope()")),
            [r#"{"X":{"Offset":4,"Item":{"A":12,"B":13,"Up":4},"Items":[{"A":10,"B":11,"Up":4},{"A":12,"B":13,"Up":4}]}}"#]
        );
        let members = "X.__Hidden AS H, X.SizeOf AS Size, X.Item.StartOf AS Start, X.Items[1].EndOf AS End, X.Items.A AS All";
        assert_eq!(
            run(&[HEADER, &format!("LET X = {PARSED}")], &format!("SELECT {members} FROM scope()")),
            [r#"{"H":9,"Size":5,"Start":4,"End":6,"All":[10,12]}"#]
        );
    }

    #[test]
    fn elements_are_rows() {
        assert_eq!(
            run(&[HEADER, &format!("LET X = {PARSED}")], "SELECT * FROM foreach(row=X.Items)"),
            [r#"{"A":10,"B":11,"Up":4}"#, r#"{"A":12,"B":13,"Up":4}"#]
        );
        assert_eq!(
            run(&[HEADER, &format!("LET X = {PARSED}")], "SELECT StartOf FROM foreach(row=X.Items)"),
            [r#"{"StartOf":2}"#, r#"{"StartOf":4}"#]
        );
    }

    #[test]
    fn lambdas_reach_functions_and_the_environment() {
        let profile = r#"LET P = '''[["T", 0, [["n", 0, "uint8"], ["f", 0, "Value", {"value": "x=>Twice(N=x.n) + Extra"}]]]]'''"#;
        let vql = "SELECT parse_binary(filename='\x03', accessor='data', profile=P, struct='T', env=dict(Extra=100)).f AS f FROM scope()";
        assert_eq!(run(&[profile, "LET Twice(N) = N * 2"], vql), [r#"{"f":106}"#]);
        let materialized = "LET X <= parse_binary(filename='\x03', accessor='data', profile=P, struct='T', env=dict(Extra=1))";
        assert_eq!(run(&[profile, "LET Twice(N) = N * 2", materialized], "SELECT X.f AS f FROM scope()"), [r#"{"f":7}"#]);
    }

    #[test]
    fn rings_and_self_reference_end() {
        let ring = r#"LET P = '''[["T", 1, [["n", 0, "uint8"], ["Next", 0, "Profile", {"type": "T", "offset": 0}]]]]'''"#;
        let vql = "SELECT parse_binary(filename='a', accessor='data', profile=P, struct='T') AS X FROM scope()";
        assert!(run(&[ring], vql).first().is_some_and(|row| row.starts_with(r#"{"X":{"n":97,"Next":{"n":97"#)));
        let own = r#"LET P = '''[["T", 1, [["n", "x=>x.n", "uint8"]]]]'''"#;
        assert!(run(&[own], vql).first().is_some_and(|row| row == r#"{"X":{"n":null}}"#));
        let endless = r#"LET P = '''[["T", 1, [["n", 0, "Array", {"type": "Empty", "count": 1000000000, "max_count": 1000000000}]]], ["Empty", 0, []]]'''"#;
        assert!(!run(&[endless], vql).is_empty());
    }

    #[test]
    fn bad_profiles_say_what_is_wrong() {
        for (profile, part) in [
            ("{}", "list of structures"),
            ("[", "profile"),
            (r#"[["T"]]"#, "T"),
            (r#"[["T", 0, [["f", 0]]]]"#, "f"),
            (r#"[["T", 0, [["f", 0, "Array", {}]]]]"#, "type"),
        ] {
            let vql = format!("SELECT parse_binary(filename='a', accessor='data', profile='''{profile}''', struct='T') AS X FROM scope()");
            let lines = run(&[], &vql);
            assert!(lines.iter().any(|line| line.starts_with("parse_binary: ") && line.contains(part)), "{profile}: {lines:?}");
        }
    }
}
