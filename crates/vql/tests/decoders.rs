//! Whatever is read from outside, mutated at every place: nothing panics, and what is taken means the same when it is written and read again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use talon_vql::spill;
use talon_vql::{OsPath, PathFlavour, Value, format, json, parse, parse_statement};

/// Calls `run` for each seed, cut and changed at each place, and for mixes of two.
fn mutations(seeds: &[&[u8]], mut run: impl FnMut(&[u8])) {
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap()
    };
    for seed in seeds {
        run(seed);
        for at in 0..seed.len() {
            run(&seed[..at]);
            for change in [0x00, 0x20, 0x7f, 0x80, 0xff, b'"', b'\\', b'{', b'`', b'\''] {
                let mut changed = seed.to_vec();
                changed[at] = change;
                run(&changed);
                changed.insert(at, change);
                run(&changed);
            }
        }
        for _ in 0..500 {
            let mut mixed = seed[..next() % (seed.len() + 1)].to_vec();
            let other = seeds[next() % seeds.len()];
            mixed.extend_from_slice(&other[next() % (other.len() + 1)..]);
            run(&mixed);
        }
    }
}

const TEXTS: &[&[u8]] = &[
    br#"{"a":[1,-2,1.5e3,null,true,"x\u0000\ud83d\ude00"],"b":{"c":{}},"t":"2020-05-31T14:48:05.25Z"}"#,
    br#"[{"a":1},{"a":2,"b":3},[],18446744073709551615,-9223372036854775808,1e400]"#,
    b"\"\\ud800\\u0041 \xff\xc3\"",
];

#[test]
fn json() {
    mutations(TEXTS, |text| {
        if let Ok(value) = json::decode(text) {
            let settled = |text: &str| json::encode(&json::decode(text.as_bytes()).unwrap());
            let once = settled(&json::encode(&value));
            assert_eq!(settled(&once), once);
            assert_eq!(
                json::encode_pretty(&json::decode(json::encode_pretty(&json::decode(once.as_bytes()).unwrap()).as_bytes()).unwrap()).len(),
                { json::encode_pretty(&json::decode(once.as_bytes()).unwrap()).len() }
            );
        }
    });
    let mut reader = json::RowReader::default();
    mutations(TEXTS, |text| {
        let shared = reader.row(text).map(|row| json::encode(&Value::Dict(row)));
        let alone = json::decode_row(text).map(|row| json::encode(&row.into()));
        assert_eq!(shared, alone);
    });
}

#[test]
fn rows_in_binary() {
    let values: Vec<Vec<u8>> = TEXTS.iter().take(2).map(|text| spill::encode(&json::decode(text).unwrap())).collect();
    let path = spill::encode(&Value::from(OsPath::parse(
        r#"{"DelegateAccessor":"zip","DelegatePath":"/a.zip","Path":"b/c"}"#,
        PathFlavour::Linux,
    )));
    let seeds: Vec<&[u8]> = values.iter().map(Vec::as_slice).chain([path.as_slice()]).collect();
    mutations(&seeds, |bytes| {
        if let Some(value) = spill::decode(bytes) {
            let again = spill::encode(&value);
            assert_eq!(spill::encode(&spill::decode(&again).unwrap()), again);
        }
    });
}

#[test]
fn paths() {
    const PATHS: &[&[u8]] = &[
        b"/a/b/../c//d",
        br#"a\"b/c"\d"#,
        br"\\.\C:\Windows\\x",
        br"HKLM\Software\a",
        b"fs:/clients/\"C.1\"/x",
        br#"{"DelegateAccessor":"zip","Delegate":{"DelegatePath":"/x","Path":"y"},"Path":"/b"}"#,
    ];
    let flavours =
        [PathFlavour::Linux, PathFlavour::Generic, PathFlavour::Windows, PathFlavour::Ntfs, PathFlavour::Registry, PathFlavour::FileStore];
    mutations(PATHS, |text| {
        for flavour in flavours {
            let path = OsPath::parse(text, flavour);
            let written = path.to_text();
            let again = OsPath::parse(written.clone(), flavour);
            let _ = (path.basename(), path.dirname().to_text(), path.pathspec(), again.to_text());
        }
    });
}

#[test]
fn queries() {
    const QUERIES: &[&[u8]] = &[
        b"LET F(a, `b c`=3) = a + `b c` * -0x1F SELECT *, F(a=[1,])[0:-1].x AS `y z` FROM g(q={ SELECT 'a\\x41' FROM h }) WHERE NOT a =~ '''b''' AND c || d",
        b"EXPLAIN SELECT a.b /* c */ FROM Artifact.X.Y(z=1) GROUP BY 1, 2 ORDER BY a DESC LIMIT 5 -- end",
    ];
    mutations(QUERIES, |text| {
        let Ok(text) = std::str::from_utf8(text) else { return };
        if let Ok(program) = parse(text) {
            for statement in &program.statements {
                let canonical = format::canonical_statement(statement);
                let again = parse_statement(&canonical).unwrap_or_else(|error| panic!("{canonical}: {error}"));
                assert_eq!(format::canonical_statement(&again), canonical);
            }
        }
    });
}
