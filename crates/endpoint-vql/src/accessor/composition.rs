//! Accessors as queries see them, and how they compose.

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Arc;

use talon_acl::{Authority, EndpointPolicy};
use talon_vql::{Environment, MemoryLog, Query, Scope, Value, json, parse_statement};
use zip::write::SimpleFileOptions;

fn scope() -> (Scope, Arc<MemoryLog>) {
    let log = Arc::new(MemoryLog::default());
    let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
    (crate::with_authority(Environment::new(Arc::new(crate::registry())).log(log.clone()), authority).open(), log)
}

fn run(scope: &Scope, vql: &str) -> Vec<String> {
    Query::new(scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
}

fn rows(vql: &str) -> Vec<String> {
    let (scope, log) = scope();
    let rows = run(&scope, vql);
    rows.into_iter().chain(log.take().into_iter().filter(|line| !line.starts_with("DEBUG"))).collect()
}

fn zipped(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in members {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(content).unwrap();
    out.finish().unwrap()
}

fn write(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// A pathspec as an expression.
fn inside(accessor: &str, path: &str, member: &str) -> String {
    format!("pathspec(DelegateAccessor='{accessor}', DelegatePath='{path}', Path='{member}')")
}

#[test]
fn members_of_archives_are_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let long = b"long text ".repeat(10_000);
    let file = write(folder.path(), "a.zip", &zipped(&[("a/one.txt", b"one"), ("a/b/two.txt", b"two"), ("TOP.TXT", &long)]));
    let glob = format!("SELECT OSPath.Path AS P, Size, IsDir FROM glob(globs='**', accessor='zip', root={})", inside("file", &file, "/"));
    let mut found = rows(&glob);
    found.sort();
    assert_eq!(
        found,
        [
            r#"{"P":"/TOP.TXT","Size":100000,"IsDir":false}"#,
            r#"{"P":"/a","Size":0,"IsDir":true}"#,
            r#"{"P":"/a/b","Size":0,"IsDir":true}"#,
            r#"{"P":"/a/b/two.txt","Size":3,"IsDir":false}"#,
            r#"{"P":"/a/one.txt","Size":3,"IsDir":false}"#,
        ]
    );
    let read = |accessor: &str, member: &str, more: &str| {
        let spec = inside("file", &file, member);
        rows(&format!("SELECT read_file(accessor='{accessor}', filename={spec}{more}) AS X FROM scope()")).remove(0)
    };
    assert_eq!(read("zip", "a/b/two.txt", ""), r#"{"X":"two"}"#);
    assert_eq!(read("zip", "top.txt", ", length=4"), r#"{"X":null}"#);
    assert_eq!(read("zip_nocase", "top.txt", ", offset=99995, length=100"), r#"{"X":"text "}"#);
    assert_eq!(read("zip", "/a", ""), r#"{"X":null}"#);
}

#[test]
fn containers_lie_in_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let inner = zipped(&[("deep/x.txt.gz", &gzipped(b"found it"))]);
    let file = write(folder.path(), "outer.zip", &zipped(&[("in.zip", &inner), ("pad", b"pad")]));
    let outer = format!(r#"{{"DelegateAccessor":"file","DelegatePath":"{file}","Path":"in.zip"}}"#);
    let (scope, log) = scope();
    scope.define("Outer", outer);
    let member = "pathspec(DelegateAccessor='zip', DelegatePath=Outer, Path='deep/x.txt.gz')";
    let found = run(
        &scope,
        &format!(
            "SELECT read_file(accessor='gzip', filename=pathspec(DelegateAccessor='zip', DelegatePath=str(str={member}))) AS X FROM scope()"
        ),
    );
    assert_eq!(found, [r#"{"X":"found it"}"#], "{:?}", log.take());
    let listed = run(
        &scope,
        "SELECT Name FROM glob(globs='/*', accessor='zip', root=pathspec(DelegateAccessor='zip', DelegatePath=Outer, Path='deep'))",
    );
    assert_eq!(listed, [r#"{"Name":"x.txt.gz"}"#], "{:?}", log.take());
}

#[test]
fn nesting_without_end_is_refused() {
    let mut spec = r#"{"DelegateAccessor":"data","DelegatePath":"x","Path":"/"}"#.to_owned();
    for _ in 0..15 {
        spec = format!(r#"{{"DelegateAccessor":"gzip","Delegate":{spec},"Path":"/"}}"#);
    }
    let lines = rows(&format!("SELECT read_file(accessor='gzip', filename='''{spec}''') AS X FROM scope()"));
    assert_eq!(lines.first().map(String::as_str), Some(r#"{"X":null}"#));
    assert!(lines.iter().any(|line| line.contains("container files inside each other")), "{lines:?}");
}

#[test]
fn compressed_files_are_read_and_their_folders_listed() {
    let folder = tempfile::tempdir().unwrap();
    let gz = write(folder.path(), "a.gz", &[gzipped(b"hello "), gzipped(b"world")].concat());
    let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    out.write_all(b"squeezed").unwrap();
    let bz = write(folder.path(), "b.bz2", &out.finish().unwrap());
    assert_eq!(rows(&format!("SELECT read_file(accessor='gzip', filename='{gz}') AS X FROM scope()")), [r#"{"X":"hello world"}"#]);
    assert_eq!(rows(&format!("SELECT read_file(accessor='gzip', filename='{gz}', offset=6) AS X FROM scope()")), [r#"{"X":"world"}"#]);
    assert_eq!(rows(&format!("SELECT read_file(accessor='bzip2', filename='{bz}') AS X FROM scope()")), [r#"{"X":"squeezed"}"#]);
    let listed = rows(&format!("SELECT Name FROM glob(globs='*', accessor='gzip', root='{}')", folder.path().display()));
    assert_eq!(listed, [r#"{"Name":"a.gz"}"#, r#"{"Name":"b.bz2"}"#]);
}

#[test]
fn parts_of_files_are_files() {
    for (accessor, path, expected) in [
        ("offset", "4", "o world"),
        ("offset", "/6", "world"),
        ("ranged", r#"[{"FileOffset":0,"OriginalOffset":2,"FileLength":5,"Length":5}]"#, r"\u0000\u0000hello"),
    ] {
        let vql = format!(
            "SELECT read_file(accessor='{accessor}', filename=pathspec(DelegateAccessor='data', DelegatePath='hello world', Path='''{path}''')) AS X FROM scope()"
        );
        assert_eq!(rows(&vql), [format!("{{\"X\":\"{expected}\"}}")], "{accessor} {path}");
    }
}

#[test]
fn names_may_be_in_any_case() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("Some")).unwrap();
    write(folder.path(), "Some/File.TXT", b"x");
    let root = folder.path().display();
    assert_eq!(
        rows(&format!("SELECT read_file(accessor='file_nocase', filename='{root}/sOME/file.txt') AS X FROM scope()")),
        [r#"{"X":"x"}"#]
    );
    assert!(rows(&format!("SELECT read_file(accessor='file', filename='{root}/sOME/file.txt') AS X FROM scope()"))[0].contains("null"));
}

#[test]
fn layers_are_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    for layer in ["one", "two"] {
        std::fs::create_dir(folder.path().join(layer)).unwrap();
        write(folder.path(), &format!("{layer}/both"), layer.as_bytes());
        write(folder.path(), &format!("{layer}/only_{layer}"), b"");
    }
    let (scope, _) = scope();
    let paths = Value::list([folder.path().join("one").display().to_string(), folder.path().join("two").display().to_string()]);
    scope.define("OVERLAY_ACCESSOR_DELEGATES", talon_vql::Dict::new().with("paths", paths).with("accessor", "file"));
    assert_eq!(
        run(&scope, "SELECT Name, OSPath FROM glob(globs='*', accessor='overlay')"),
        [
            r#"{"Name":"both","OSPath":"/both"}"#,
            r#"{"Name":"only_one","OSPath":"/only_one"}"#,
            r#"{"Name":"only_two","OSPath":"/only_two"}"#
        ]
    );
    assert_eq!(run(&scope, "SELECT read_file(accessor='overlay', filename='/both') AS X FROM scope()"), [r#"{"X":"one"}"#]);
}

#[test]
fn rows_of_a_query_are_a_file() {
    let (scope, _) = scope();
    assert!(
        run(&scope, "LET MyPipe = pipe(query={ SELECT format(format='line %v', args=_value) FROM range(end=3) }, sep='\n')").is_empty()
    );
    assert_eq!(
        run(&scope, "SELECT Line FROM parse_lines(filename='MyPipe', accessor='pipe')"),
        [r#"{"Line":"line 0"}"#, r#"{"Line":"line 1"}"#, r#"{"Line":"line 2"}"#]
    );
    let endless = "LET Endless = pipe(query={ SELECT 'x' FROM range(end=1000000000000) })";
    assert!(run(&scope, endless).is_empty());
    assert_eq!(run(&scope, "SELECT read_file(filename='Endless', accessor='pipe', length=5) AS X FROM scope()"), [r#"{"X":"xxxxx"}"#]);
}

#[test]
fn the_memory_of_a_process_is_a_file() {
    let pid = std::process::id();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let start = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
    let vql = format!("SELECT read_file(accessor='process', filename='/{pid}', offset={start}, length=4) AS X FROM scope()");
    assert_eq!(rows(&vql), ["{\"X\":\"\u{7f}ELF\"}"]);
    assert!(rows("SELECT Name FROM glob(globs='*', accessor='process')").contains(&format!("{{\"Name\":\"{pid}\"}}")));
}

#[test]
fn streams_of_compound_files_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.doc");
    let mut file = cfb::create(&path).unwrap();
    file.create_storage("/Sub").unwrap();
    file.create_stream("/Sub/Text").unwrap().write_all(b"in a stream").unwrap();
    file.flush().unwrap();
    let spec = |inner: &str| inside("file", path.to_str().unwrap(), inner);
    assert_eq!(
        rows(&format!("SELECT read_file(accessor='mscfb', filename={}) AS X FROM scope()", spec("Sub/Text"))),
        [r#"{"X":"in a stream"}"#]
    );
    let listed = rows(&format!("SELECT Name, Size, IsDir FROM glob(globs='**', accessor='mscfb', root={})", spec("/")));
    assert_eq!(listed, [r#"{"Name":"Sub","Size":0,"IsDir":true}"#, r#"{"Name":"Text","Size":11,"IsDir":false}"#]);
}

#[test]
fn packed_files_of_collections_are_shown_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let index = br#"{"ranges":[{"file_length":3,"length":3},{"file_offset":3,"original_offset":3,"length":4}]}"#;
    let file = write(folder.path(), "c.zip", &zipped(&[("uploads/x", b"abc"), ("uploads/x.idx", index)]));
    let spec = inside("file", &file, "uploads/x");
    let read = |accessor: &str| rows(&format!("SELECT read_file(accessor='{accessor}', filename={spec}) AS X FROM scope()")).remove(0);
    assert_eq!(read("collector"), r#"{"X":"abc\u0000\u0000\u0000\u0000"}"#);
    assert_eq!(read("collector_sparse"), r#"{"X":"abc"}"#);
}

#[test]
fn encrypted_members_need_their_password() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    archive.start_file("secret", SimpleFileOptions::default().with_aes_encryption(zip::AesMode::Aes256, "open sesame")).unwrap();
    archive.write_all(b"treasure").unwrap();
    let file = write(folder.path(), "e.zip", &archive.finish().unwrap().into_inner());
    let vql = format!("SELECT read_file(accessor='zip', filename={}) AS X FROM scope()", inside("file", &file, "secret"));
    let lines = rows(&vql);
    assert!(lines[0].contains("null") && lines[1].contains("ZIP_PASSWORDS"), "{lines:?}");
    let (scope, _) = scope();
    scope.define("ZIP_PASSWORDS", "wrong\nopen sesame");
    assert_eq!(run(&scope, &vql), [r#"{"X":"treasure"}"#]);
}

#[test]
fn bombs_end_at_the_limit_and_damaged_files_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..64 {
        out.write_all(&zeros).unwrap();
    }
    let file = write(folder.path(), "bomb.gz", &out.finish().unwrap());
    let (scope, _) = scope();
    scope.define("BUFFER_MAX_SIZE", 1_000_000);
    let vql = format!("SELECT len(list=read_file(accessor='gzip', filename='{file}')) AS X FROM scope()");
    assert_eq!(run(&scope, &vql), [r#"{"X":1000000}"#]);
    let nested =
        format!("SELECT * FROM glob(globs='*', accessor='zip', root=pathspec(DelegateAccessor='gzip', DelegatePath='{file}', Path='/'))");
    assert!(run(&scope, &nested).is_empty());
    for accessor in ["zip", "gzip", "bzip2", "mscfb", "collector"] {
        let damaged = format!(
            "SELECT read_file(accessor='{accessor}', filename=pathspec(DelegateAccessor='data', DelegatePath='PK no archive', Path='x')) AS X FROM scope()"
        );
        let lines = rows(&damaged);
        assert!(lines[0].contains("null") && lines.len() == 2, "{accessor}: {lines:?}");
    }
}

#[test]
fn what_this_host_lacks_says_so() {
    for (accessor, part) in [("ntfs", "not on this platform"), ("ewf", "no maintained reader"), ("vfs", "server")] {
        let lines = rows(&format!("SELECT * FROM read_file(accessor='{accessor}', filenames='x')"));
        assert!(lines.iter().any(|line| line.contains(accessor) && line.contains(part)), "{lines:?}");
    }
    let lines = rows("SELECT * FROM read_file(accessor='nonsense', filenames='x')");
    assert!(lines.iter().any(|line| line.contains("Unknown filesystem accessor nonsense")), "{lines:?}");
}

#[test]
fn containers_do_not_open_what_the_query_may_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "a.zip", &zipped(&[("x", b"secret")]));
    let log = Arc::new(MemoryLog::default());
    let denied = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
    for accessor in ["zip", "zip_nocase", "gzip", "bzip2", "mscfb", "offset", "collector", "file_nocase", "raw_file", "me", "process"] {
        let vql = format!("SELECT read_file(accessor='{accessor}', filename={}) AS X FROM scope()", inside("file", &file, "1"));
        assert_eq!(run(&denied, &vql), [r#"{"X":null}"#], "{accessor}");
        let lines = log.take();
        assert!(lines.iter().any(|line| line.contains("PermissionDenied") || line.contains("Permission denied")), "{accessor}: {lines:?}");
    }
}
