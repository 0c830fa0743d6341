//! What requests become.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use expect_test::{Expect, expect};
use talon_artifacts::{Batching, Compiler, Definition, Layer, Repository};
use talon_proto::prost::Message as _;
use talon_proto::{self as proto, ArtifactCollectorArgs, ArtifactSpec, VqlCollectorArgs};

fn repository(texts: &[&str]) -> Repository {
    let repository = Repository::with_built_ins();
    for text in texts {
        repository.set(Definition::from_yaml(text).unwrap_or_else(|error| panic!("{error}")), Layer::Custom).unwrap();
    }
    repository
}

fn request(artifacts: &[&str]) -> ArtifactCollectorArgs {
    ArtifactCollectorArgs { artifacts: artifacts.iter().map(|&name| name.to_owned()).collect(), ..Default::default() }
}

fn spec(artifact: &str, env: &[(&str, &str)]) -> ArtifactSpec {
    let env = env.iter().map(|(key, value)| proto::VqlEnv { key: (*key).to_owned(), value: (*value).to_owned(), comment: String::new() });
    ArtifactSpec { artifact: artifact.to_owned(), parameters: Some(proto::ArtifactParameters { env: env.collect() }), ..Default::default() }
}

/// A request as text, in the order of its fields, unset ones left out.
fn show(compiled: &[VqlCollectorArgs]) -> String {
    let mut out = String::new();
    for args in compiled {
        out.push_str(&format!("request {}/{}\n", args.query_id, args.total_queries));
        for env in &args.env {
            let comment = if env.comment.is_empty() { String::new() } else { format!(" # {}", env.comment) };
            out.push_str(&format!("  env {}={:?}{comment}\n", env.key, env.value));
        }
        if !args.precondition.is_empty() {
            out.push_str(&format!("  precondition {:?}\n", args.precondition));
        }
        for query in &args.query {
            out.push_str(&format!("  {}: {}\n", if query.name.is_empty() { "-" } else { &query.name }, query.vql));
        }
        for artifact in &args.artifacts {
            out.push_str(&format!("  with {} {}\n", artifact.name, artifact.r#type));
            for parameter in &artifact.parameters {
                out.push_str(&format!("    parameter {} {} {:?}\n", parameter.name, parameter.r#type, parameter.default));
            }
            for (what, text) in [("precondition", &artifact.precondition), ("export", &artifact.export)] {
                if !text.is_empty() {
                    out.push_str(&format!("    {what} {text:?}\n"));
                }
            }
            for source in &artifact.sources {
                out.push_str(&format!("    source {:?} {:?} {:?}\n", source.name, source.precondition, source.queries));
            }
            assert_eq!((artifact.raw.as_str(), artifact.description.as_str(), artifact.tools.len()), ("", "", 0));
        }
        let limits =
            (args.max_row, args.max_row_buffer_size, args.max_wait, args.timeout, args.cpu_limit, args.ops_per_second, args.iops_limit);
        if limits != (1000, 0, 0, 0, 0.0, 0.0, 0.0) {
            out.push_str(&format!("  limits {limits:?}\n"));
        }
        if !args.effective_principal.is_empty() {
            out.push_str(&format!("  as {}\n", args.effective_principal));
        }
    }
    out
}

fn check(repository: &Repository, request: &ArtifactCollectorArgs, expected: &Expect) {
    expected.assert_eq(&show(&Compiler::new(repository).compile(request).unwrap()));
}

#[test]
fn statements_come_in_the_stock_order() {
    let repository = repository(&[
        "name: Custom.Lib\nexport: |\n  // a library\n  LET Lib(x) = x + 1\n",
        r"
name: Custom.A
impersonate: admin
imports: [Custom.Lib]
export: LET Own = 1
parameters:
- {name: N, type: int, default: 5}
- {name: Secret, type: redacted, default: none}
- {name: odd name, type: bool, default: Y}
precondition: |
  // only there
  SELECT * FROM info() WHERE OS = 'linux' and N
sources:
- name: First
  query: |
    LET X = Lib(x=N) -- gone
    SELECT X,Own FROM scope()
- name: Empty
- name: Second
  query: SELECT * FROM Artifact.Custom.Dep(Z=1)
",
        "name: Custom.Dep\ndescription: gone\nimports: [Custom.Lib]\nparameters: [{name: Z, type: json, default: '{}', description: gone}]\nsources:\n- name: D\n  precondition: SELECT 1 FROM scope() -- c\n  query: |\n    LET Y = 1\n    SELECT Y FROM Artifact.Custom.Deeper\n",
        "name: Custom.Deeper\nsources:\n- query: SELECT * FROM Artifact.Custom.Dep()\n",
    ]);
    let mut request = request(&["Custom.A"]);
    request.specs = vec![spec("Custom.A", &[("N", "7"), ("Undeclared", "u")]), spec("Custom.Lib", &[("N", "8")])];
    check(
        &repository,
        &request,
        &expect![[r#"
        request 1/1
          env N="7"
          env Secret="none" # redacted
          env odd name="Y"
          env Undeclared="u"
          precondition "LET N <= int(int=N)\n\nLET `odd name` <= `odd name` = TRUE OR `odd name` =~ \"^(Y|TRUE|YES|OK)$\"\n\n// only there\nSELECT * FROM info() WHERE OS = 'linux' and N\n"
          -: LET N <= int(int=N)
          -: LET `odd name` <= `odd name` = TRUE OR `odd name` =~ "^(Y|TRUE|YES|OK)$"
          -: LET Own = 1
          -: LET Lib(x) = x + 1
          -: LET X = Lib(x=N)
          Custom.A/First: SELECT X, Own FROM scope()
          Custom.A/Second: SELECT * FROM Artifact.Custom.Dep(Z=1)
          with Custom.Deeper client
            source "" "" ["SELECT * FROM Artifact.Custom.Dep()"]
          with Custom.Dep client
            parameter Z json "{}"
            source "D" "SELECT 1 FROM scope()" ["LET Y = 1", "SELECT Y FROM Artifact.Custom.Deeper"]
          with Custom.Lib client
            export "LET Lib(x) = x + 1"
          as admin
    "#]],
    );
}

#[test]
fn how_many_requests() {
    let sources = "sources:\n- {name: P, query: SELECT 1 FROM x%P}\n- {name: Q, query: SELECT 2 FROM x}\n";
    let own = sources.replace("%P", ", precondition: SELECT 0 FROM y");
    let none = sources.replace("%P", "");
    let gate = "precondition: SELECT 3 FROM z\n";
    for (kind, text, expected) in [
        ("CLIENT", none.clone(), "[P Q]"),
        ("CLIENT", format!("{gate}{none}"), "[P Q]if3"),
        ("CLIENT", own.clone(), "[P]if0 [Q]"),
        ("SERVER", own.clone(), "[P]if0 [Q]"),
        ("CLIENT_EVENT", none.clone(), "[P] [Q]"),
        ("SERVER_EVENT", none.clone(), "[P] [Q]"),
        ("INTERNAL", none.clone(), "[P] [Q]"),
        ("CLIENT_EVENT", format!("{gate}{none}"), "[P]if3 [Q]if3"),
        ("CLIENT_EVENT", own.clone(), "[P]if0 [Q]"),
        ("CLIENT", String::new(), ""),
        ("CLIENT_EVENT", String::new(), ""),
    ] {
        let repository = repository(&[&format!("name: Custom.A\ntype: {kind}\n{text}")]);
        let compiled = Compiler::new(&repository).compile(&request(&["Custom.A"])).unwrap();
        let shown: Vec<String> = compiled
            .iter()
            .map(|args| {
                let names: Vec<&str> = args.query.iter().filter_map(|query| query.name.split('/').nth(1)).collect();
                let gate = args.precondition.split(' ').nth(1).map(|number| format!("if{number}")).unwrap_or_default();
                format!("[{}]{gate}", names.join(" "))
            })
            .collect();
        assert_eq!(shown.join(" "), expected, "{kind} {text}");
        let free = Compiler::new(&repository).without_preconditions().compile(&request(&["Custom.A"])).unwrap();
        assert!(free.iter().all(|args| args.precondition.is_empty()));
        assert_eq!(free.len(), compiled.len());
    }
}

#[test]
fn queries_are_numbered_over_the_whole_collection() {
    let repository = repository(&[]);
    let compiled = Compiler::new(&repository)
        .compile(&request(&["Generic.Client.Info", "Linux.Sys.Pslist", "Generic.Client.Info/BasicInformation"]))
        .unwrap();
    let ids: Vec<(i64, i64)> = compiled.iter().map(|args| (args.query_id, args.total_queries)).collect();
    assert_eq!(ids, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
}

#[test]
fn unknown_names_are_refused_by_name() {
    let repository = repository(&[
        "name: Custom.Ref\nsources: [{query: SELECT * FROM Artifact.No.Such()}]",
        "name: Custom.Import\nimports: [No.Such]\nsources: [{query: SELECT * FROM x}]",
        "name: Custom.Via\nsources: [{query: SELECT * FROM Artifact.Custom.Ref()}]",
    ]);
    for (name, expected) in [
        ("No.Such", "Unknown artifact No.Such"),
        ("Generic.Client.Info/No", "Unknown artifact Generic.Client.Info/No"),
        ("Custom.Ref", "Unknown artifact reference No.Such"),
        ("Custom.Via", "Unknown artifact reference No.Such"),
        ("Custom.Import", "Artifact Custom.Import imports No.Such which is not known."),
    ] {
        assert_eq!(Compiler::new(&repository).compile(&request(&[name])).unwrap_err().to_string(), expected);
    }
    let tolerant = Compiler::new(&repository).tolerant().compile(&request(&["No.Such", "Linux.Sys.Users"])).unwrap();
    assert_eq!(tolerant.len(), 1);
}

#[test]
fn custom_overrides_win_when_allowed() {
    let repository = repository(&["name: Custom.Linux.Sys.Users\nsources: [{query: SELECT * FROM mine()}]"]);
    let mut request = request(&["Linux.Sys.Users"]);
    let name =
        |request: &ArtifactCollectorArgs| Compiler::new(&repository).compile(request).unwrap().pop().unwrap().query.pop().unwrap().name;
    assert_eq!(name(&request), "Linux.Sys.Users");
    request.allow_custom_overrides = true;
    assert_eq!(name(&request), "Custom.Linux.Sys.Users");
}

#[test]
fn seams_of_the_caller_are_used() {
    let repository = repository(&[
        r"
name: Custom.A
parameters: [{name: ApiKey, type: server_metadata, default: unset}, {name: Other, type: server_metadata, default: unset}]
tools: [{name: Thing, url: 'https://example.com/x'}]
sources: [{name: S, query: SELECT * FROM Artifact.Custom.B()}]
",
        "name: Custom.B\ntools: [{name: Other}]\nsources: [{query: SELECT * FROM x}]",
    ]);
    let obfuscate = |name: &str| format!("${}", name.len());
    let metadata = |key: &str| (key == "ApiKey").then(|| "k".to_owned());
    let tools = |tool: &proto::Tool| match tool.name.as_str() {
        "Broken" => Err("no file".to_owned()),
        name => Ok(vec![(format!("Tool_{name}_HASH"), "abc".to_owned())]),
    };
    let compiler = Compiler::new(&repository).obfuscate(&obfuscate).server_metadata(&metadata).tools(&tools);
    let mut request = request(&["Custom.A"]);
    request.specs = vec![spec("Custom.A", &[("Tool_Thing_HASH", "forged")])];
    expect![[r#"
        request 1/1
          env ApiKey="k"
          env Other="unset"
          env Tool_Thing_HASH="forged"
          env Tool_Thing_HASH="abc"
          $10: SELECT * FROM Artifact.Custom.B()
          with Custom.B client
            parameter Tool_Other_HASH  "abc"
            source "" "" ["SELECT * FROM x"]
    "#]]
    .assert_eq(&show(&compiler.compile(&request).unwrap()));
    let broken = Definition::from_yaml("name: Custom.C\ntools: [{name: Broken}]\nsources: [{query: SELECT * FROM x}]").unwrap();
    assert_eq!(compiler.artifact(&broken, None).unwrap_err().to_string(), "tool Broken of artifact Custom.C: no file");
}

#[test]
fn limits_follow_their_order() {
    let repository = repository(&[
        "name: Custom.A\nresources: {timeout: 10, ops_per_second: 11, cpu_limit: 12, iops_limit: 13, max_rows: 14, max_upload_bytes: 15, max_batch_wait: 16, max_batch_rows: 17, max_batch_rows_buffer: 18}\nsources: [{query: SELECT * FROM x}]",
        "name: Custom.B\nsources: [{query: SELECT * FROM x}]",
    ]);
    let batching = |max_rows, max_bytes, max_wait| Batching { max_rows, max_bytes, max_wait };
    let limits = |name: &str, batching: Batching, change: &dyn Fn(&mut ArtifactCollectorArgs)| {
        let mut request = request(&[name]);
        request.specs = vec![spec(name, &[])];
        change(&mut request);
        let compiler = Compiler::new(&repository).batching(batching);
        let compiled = compiler.compile(&request).unwrap();
        let one = &compiled[0];
        let all = compiler.collection_limits(&request, &compiled).unwrap();
        format!(
            "rows {} bytes {} wait {} timeout {} cpu {} ops {} iops {} progress {} | rows {} uploads {} timeout {} cpu {} ops {} iops {}",
            one.max_row,
            one.max_row_buffer_size,
            one.max_wait,
            one.timeout,
            one.cpu_limit,
            one.ops_per_second,
            one.iops_limit,
            one.progress_timeout,
            all.max_rows,
            all.max_upload_bytes,
            all.timeout,
            all.cpu_limit,
            all.ops_per_second,
            all.iops_limit
        )
    };
    let shown = [
        limits("Custom.B", batching(0, 0, 0), &|_| {}),
        limits("Custom.B", batching(5, 6, 7), &|_| {}),
        limits("Custom.A", batching(5, 6, 7), &|_| {}),
        limits("Custom.A", batching(500, 600, 700), &|_| {}),
        limits("Custom.A", batching(500, 600, 700), &|request| {
            let spec = &mut request.specs[0];
            (spec.max_batch_rows, spec.max_batch_rows_buffer, spec.max_batch_wait, spec.cpu_limit, spec.timeout) = (1, 2, 3, 4.0, 5);
        }),
        limits("Custom.A", batching(0, 0, 0), &|request| {
            request.specs[0].timeout = 5;
            (request.timeout, request.cpu_limit, request.ops_per_second, request.iops_limit) = (20, 21.0, 22.0, 23.0);
            (request.progress_timeout, request.max_rows, request.max_upload_bytes) = (24.0, 25, 26);
        }),
    ];
    expect![[r#"
        rows 1000 bytes 0 wait 0 timeout 0 cpu 0 ops 0 iops 0 progress 0 | rows 0 uploads 1073741824 timeout 0 cpu 0 ops 0 iops 0
        rows 5 bytes 6 wait 7 timeout 0 cpu 0 ops 0 iops 0 progress 0 | rows 0 uploads 1073741824 timeout 0 cpu 0 ops 0 iops 0
        rows 17 bytes 18 wait 16 timeout 10 cpu 12 ops 11 iops 13 progress 0 | rows 14 uploads 15 timeout 10 cpu 12 ops 11 iops 13
        rows 500 bytes 600 wait 700 timeout 10 cpu 12 ops 11 iops 13 progress 0 | rows 14 uploads 15 timeout 10 cpu 12 ops 11 iops 13
        rows 1 bytes 2 wait 3 timeout 5 cpu 4 ops 11 iops 13 progress 0 | rows 14 uploads 15 timeout 5 cpu 4 ops 11 iops 13
        rows 17 bytes 18 wait 16 timeout 20 cpu 21 ops 22 iops 23 progress 24 | rows 25 uploads 26 timeout 20 cpu 21 ops 22 iops 23"#]]
    .assert_eq(&shown.join("\n"));
}

#[test]
fn every_built_in_artifact_compiles_travels_and_parses() {
    let repository = Repository::with_built_ins();
    for (name, entry) in repository.entries() {
        let compiled = Compiler::new(&repository).compile(&request(&[&name])).unwrap_or_else(|error| panic!("{name}: {error}"));
        let runs_nothing = entry.definition.sources().iter().all(|source| source.statements.is_empty());
        assert_eq!(compiled.is_empty(), runs_nothing, "{name}");
        for args in &compiled {
            assert_eq!(VqlCollectorArgs::decode(args.encode_to_vec().as_slice()).unwrap(), *args);
            let gate = Some(&args.precondition).filter(|text| !text.is_empty());
            for text in args.query.iter().map(|query| &query.vql) {
                talon_vql::parse_statement(text).unwrap_or_else(|error| panic!("{name}: {}", error.render()));
            }
            gate.map(|text| talon_vql::parse(text).unwrap_or_else(|error| panic!("{name}: {}", error.render())));
            let along = Repository::of_request(&args.artifacts).unwrap();
            assert_eq!(along.entries().len(), args.artifacts.len());
        }
        let again = Definition::from_proto(entry.definition.stripped(Vec::new())).unwrap();
        let twice = Definition::from_proto(proto::Artifact::decode(again.proto().encode_to_vec().as_slice()).unwrap()).unwrap();
        assert_eq!(again.stripped(Vec::new()), twice.stripped(Vec::new()));
        assert_eq!(again.stripped(Vec::new()), entry.definition.stripped(Vec::new()), "{name}");
    }
}

#[test]
fn what_enrolment_asks() {
    check(
        &repository(&[]),
        &request(&["Generic.Client.Info"]),
        &expect![[r#"
        request 1/3
          -: LET Addresses = SELECT HardwareAddrString AS MAC FROM interfaces() WHERE HardwareAddrString
          Generic.Client.Info/BasicInformation: SELECT config.version.name AS Name, config.version.version AS Version, config.version.build_time AS BuildTime, config.version.ci_build_url AS build_url, config.version.install_time AS install_time, config.labels AS Labels, Hostname, Fqdn, OS, Architecture, Platform, PlatformVersion, KernelVersion, Addresses.MAC AS MACAddresses FROM info()
        request 2/3
          Generic.Client.Info/DetailedInfo: SELECT * FROM info()
        request 3/3
          precondition "SELECT OS FROM info() WHERE OS = \"linux\"\n"
          Generic.Client.Info/Users: SELECT * FROM Artifact.Linux.Sys.Users()
          with Linux.Sys.Users client
            parameter PasswdFile  "/etc/passwd"
            precondition "SELECT OS FROM info() WHERE OS = \"linux\""
            source "" "" ["LET Line = '''(?m)^(?P<User>[^:#\\n][^:\\n]*):[^:\\n]*:(?P<Uid>[0-9]+):(?P<Gid>[0-9]+):(?P<Description>[^:\\n]*):(?P<Homedir>[^:\\n]*):(?P<Shell>[^:\\n]*)$'''", "SELECT User, Description, int(int=Uid) AS Uid, int(int=Gid) AS Gid, Homedir, Shell FROM parse_records_with_regex(file=PasswdFile, regex=Line)"]
    "#]],
    );
}

#[test]
fn parameters_of_the_file_finder() {
    check(
        &repository(&[]),
        &request(&["Linux.Search.FileFinder"]),
        &expect![[r#"
            request 1/1
              env SearchFilesGlobs="Glob\n/home/*\n"
              env Accessor="auto"
              env ModifiedAfter=""
              env ModifiedBefore=""
              env MaxSize="0"
              env IncludeDirectories="N"
              env LocalFilesystemOnly="N"
              env FollowLinks="N"
              env CalculateHash="N"
              env UploadFiles="N"
              precondition "LET SearchFilesGlobs <= if(condition=format(format=\"%T\", args=(SearchFilesGlobs, )) = \"string\", then={ SELECT * FROM parse_csv(filename=SearchFilesGlobs, accessor=\"data\") }, else=SearchFilesGlobs)\n\nLET ModifiedAfter <= timestamp(epoch=ModifiedAfter)\n\nLET ModifiedBefore <= timestamp(epoch=ModifiedBefore)\n\nLET MaxSize <= int(int=MaxSize)\n\nLET IncludeDirectories <= IncludeDirectories = TRUE OR IncludeDirectories =~ \"^(Y|TRUE|YES|OK)$\"\n\nLET LocalFilesystemOnly <= LocalFilesystemOnly = TRUE OR LocalFilesystemOnly =~ \"^(Y|TRUE|YES|OK)$\"\n\nLET FollowLinks <= FollowLinks = TRUE OR FollowLinks =~ \"^(Y|TRUE|YES|OK)$\"\n\nLET CalculateHash <= CalculateHash = TRUE OR CalculateHash =~ \"^(Y|TRUE|YES|OK)$\"\n\nLET UploadFiles <= UploadFiles = TRUE OR UploadFiles =~ \"^(Y|TRUE|YES|OK)$\"\n\nSELECT OS FROM info() WHERE OS = \"linux\"\n"
              -: LET SearchFilesGlobs <= if(condition=format(format="%T", args=(SearchFilesGlobs, )) = "string", then={ SELECT * FROM parse_csv(filename=SearchFilesGlobs, accessor="data") }, else=SearchFilesGlobs)
              -: LET ModifiedAfter <= timestamp(epoch=ModifiedAfter)
              -: LET ModifiedBefore <= timestamp(epoch=ModifiedBefore)
              -: LET MaxSize <= int(int=MaxSize)
              -: LET IncludeDirectories <= IncludeDirectories = TRUE OR IncludeDirectories =~ "^(Y|TRUE|YES|OK)$"
              -: LET LocalFilesystemOnly <= LocalFilesystemOnly = TRUE OR LocalFilesystemOnly =~ "^(Y|TRUE|YES|OK)$"
              -: LET FollowLinks <= FollowLinks = TRUE OR FollowLinks =~ "^(Y|TRUE|YES|OK)$"
              -: LET CalculateHash <= CalculateHash = TRUE OR CalculateHash =~ "^(Y|TRUE|YES|OK)$"
              -: LET UploadFiles <= UploadFiles = TRUE OR UploadFiles =~ "^(Y|TRUE|YES|OK)$"
              -: LET Found = SELECT OSPath, Size, Mode.String || Mode AS Mode, Mtime, Atime, Ctime, Btime, IsDir FROM glob(globs=SearchFilesGlobs.Glob, accessor=Accessor, nosymlink=NOT FollowLinks, one_filesystem=LocalFilesystemOnly) WHERE (IncludeDirectories OR NOT IsDir)  AND (MaxSize = 0 OR Size <= MaxSize)  AND (NOT ModifiedAfter OR Mtime > ModifiedAfter)  AND (NOT ModifiedBefore OR Mtime < ModifiedBefore)
              Linux.Search.FileFinder: SELECT OSPath, Size, Mode, Mtime, Atime, Ctime, Btime, IsDir, if(condition=CalculateHash  AND NOT IsDir, then=hash(path=OSPath, accessor=Accessor)) AS Hash, if(condition=UploadFiles  AND NOT IsDir, then=upload(file=OSPath, accessor=Accessor, mtime=Mtime)) AS Upload FROM Found
        "#]],
    );
}

#[test]
fn custom_artifacts_of_the_recorded_server_load_and_compile() {
    let Ok(vectors) = std::env::var("TALON_VECTORS") else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let repository = Repository::with_built_ins();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(std::path::Path::new(&vectors).join("artifacts")).unwrap() {
        let path = entry.unwrap().path();
        let definition =
            Definition::from_yaml(&std::fs::read_to_string(&path).unwrap()).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        names.push(definition.name().to_string());
        repository.set(definition, Layer::Custom).unwrap();
    }
    assert!(names.len() >= 12);
    for name in &names {
        let compiled = Compiler::new(&repository).compile(&request(&[name])).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!compiled.is_empty(), "{name}");
        for query in compiled.iter().flat_map(|args| &args.query) {
            talon_vql::parse_statement(&query.vql).unwrap_or_else(|error| panic!("{name}: {}", error.render()));
        }
    }
}
