//! A case file: what it asks, and the text that comes of it.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use talon_vql::regex::Regex;
use talon_vql::{CancelToken, LogSink as _, Query, Scope, Value, json};

use super::world::{Edits, Stage, World};

/// How long one case may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a case that was told to stop may take to do so.
const GRACE: Duration = Duration::from_secs(5);
/// Rows in one part of the output.
const PART: usize = 1000;

/// A case file.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Case {
    parameters: BTreeMap<String, String>,
    queries: Vec<String>,
    transforms: Vec<Transform>,
    config_patches: Vec<serde_json::Value>,
    config_merges: Vec<serde_json::Value>,
    /// The comment lines above each query.
    #[serde(skip)]
    comments: Vec<Vec<String>>,
}

/// A replacement in the output.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Transform {
    scope: String,
    search: String,
    regexp: String,
    replace: String,
}

impl Case {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut case: Self = serde_saphyr::from_str(text).map_err(|error| anyhow!("not a case: {}", error.without_snippet()))?;
        case.comments = comments(text);
        if case.comments.len() != case.queries.len() {
            bail!("not a case: the list of queries is not one item on each line");
        }
        Ok(case)
    }

    /// Runs the case: its output, and the line of the log that fails it.
    pub(super) fn run(self, world: &World, variables: &[(String, String)]) -> Result<(String, Option<String>)> {
        let stage = world.open(&Edits { patches: &self.config_patches, merges: &self.config_merges })?;
        let variables = [variables, &self.parameters.clone().into_iter().collect::<Vec<_>>()].concat();
        let cancel = CancelToken::new();
        let watched = cancel.clone();
        let (sender, receiver) = mpsc::channel();
        let work = move || {
            let scope = stage.scope(&variables, watched);
            let outcome = self.evaluate(&scope, &stage);
            drop(scope);
            // Nobody listens any more to a case that took too long.
            drop(sender.send(outcome.map(|out| (out, stage.log.failure()))));
        };
        talon_vql::spawn_query_thread("golden", work).context("cannot start a thread")?;
        match receiver.recv_timeout(LIMIT) {
            Ok(outcome) => outcome,
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the case ended by a defect in the program"),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                cancel.cancel("the case took too long");
                drop(receiver.recv_timeout(GRACE));
                bail!("it took longer than {} s", LIMIT.as_secs())
            }
        }
    }

    fn evaluate(&self, scope: &Scope, stage: &Stage) -> Result<String> {
        let mut out = String::new();
        for (text, comments) in self.queries.iter().zip(&self.comments) {
            comments.iter().for_each(|comment| out.push_str(&format!("{comment}\n")));
            out.push_str(&format!("Query: {text}\n"));
            let statement = talon_vql::parse_statement(text).map_err(|error| anyhow!("{error} in {text:?}"))?;
            stage.log.log(&format!("Running query {text}"));
            let mut query = Query::new(scope, &statement);
            let mut part = 0_usize;
            loop {
                let rows: Vec<Value> = query.by_ref().take(PART).map(Value::Dict).collect();
                if rows.is_empty() && part > 0 {
                    break;
                }
                let last = rows.len() < PART;
                out.push_str(&format!("Output: {}\n\n", self.transformed(&json::encode_pretty(&Value::list(rows)), scope)?));
                part = part.saturating_add(1);
                if last {
                    break;
                }
            }
        }
        Ok(out)
    }

    fn transformed(&self, text: &str, scope: &Scope) -> Result<String> {
        let mut text = text.to_owned();
        for transform in &self.transforms {
            if !transform.scope.is_empty() {
                let value = scope.variable(&transform.scope).map(|value| talon_vql::to_text(value, scope).to_str().into_owned());
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    text = text.replace(&value, &transform.replace);
                }
            } else if !transform.regexp.is_empty() {
                let regex = Regex::exact(transform.regexp.as_bytes()).map_err(|error| anyhow!("Transforms: {error}"))?;
                let hay = text.clone().into_bytes();
                let replaced = regex.replace_all(&hay, |groups, out| regex.expand(transform.replace.as_bytes(), &hay, groups, out));
                text = String::from_utf8_lossy(&replaced).into_owned();
            } else if !transform.search.is_empty() {
                text = text.replace(&transform.search, &transform.replace);
            }
        }
        Ok(text)
    }
}

/// The comments directly above the items of the list of queries. YAML readers drop them; the expected output has them.
fn comments(text: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| line.trim_end() != "Queries:").skip(1).peekable();
    let (mut all, mut pending) = (Vec::new(), Vec::new());
    let mut indent = None;
    for line in lines.by_ref() {
        let content = line.trim_start();
        let depth = line.len().saturating_sub(content.len());
        let starts_item = content == "-" || content.starts_with("- ");
        if starts_item && indent.is_none_or(|indent| indent == depth) {
            indent = Some(depth);
            all.push(std::mem::take(&mut pending));
        } else if content.starts_with('#') && indent.is_none_or(|indent| depth <= indent) {
            pending.push(content.to_owned());
        } else if content.is_empty() || indent.is_none_or(|indent| depth > indent) {
            pending.clear();
        } else {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> (String, Option<String>) {
        Case::parse(text).unwrap().run(&World::new().unwrap(), &[]).unwrap()
    }

    #[test]
    fn comments_belong_to_the_item_below() {
        let text = "Parameters:\n  A: b\nQueries:\n# one\n- SELECT 1\n  # deeper\n\n# lost\n\n# two\n# three\n- |\n  # inside\n  SELECT 2\nTransforms:\n- Search: x\n";
        assert_eq!(comments(text), [vec!["# one".to_owned()], vec!["# two".to_owned(), "# three".to_owned()]]);
    }

    #[test]
    fn a_case_prints_queries_and_rows() {
        let text = "Parameters:\n  P: x\nQueries:\n# c\n- LET A = P\n- SELECT A, 1.5 AS B FROM scope()\nTransforms:\n- Search: x\n  Replace: y\n- {Regexp: '1[.](5)', Replace: '2.$1'}\n- {Scope: _SessionId, Replace: z}\n";
        let expected = "# c\nQuery: LET A = P\nOutput: []\n\nQuery: SELECT A, 1.5 AS B FROM scope()\nOutput: [\n {\n  \"A\": \"y\",\n  \"B\": 2.5\n }\n]\n\n";
        assert_eq!(run(text), (expected.to_owned(), None));
    }

    #[test]
    fn a_symbol_that_is_not_there_fails_the_case() {
        let (_, failure) = run("Queries:\n- SELECT Nothing FROM scope()\n");
        assert!(failure.unwrap().contains("Symbol Nothing not found"));
        assert_eq!(run("Queries:\n- SELECT 'Symbol X not found' AS Text FROM scope()\n").1, None, "the query's own text is no failure");
    }

    #[test]
    fn the_environment_is_that_of_a_fresh_deployment() {
        let text = "
Queries:
- SELECT whoami() AS Me, _SessionId AS Session, config.server_urls[0] AS Url, read_file(filename=GoldenOutput) AS Empty FROM scope()
- SELECT OrgId FROM orgs()
- SELECT timestamp(epoch=now()) AS Then FROM scope()
- SELECT mock_time(now='2021-02-03T04:05:06Z') AS Set FROM scope()
- SELECT timestamp(epoch=now()) AS Then FROM scope()
- SELECT log(message='hello') AS Said FROM scope()
- SELECT Log FROM test_read_logs() WHERE NOT Log =~ 'Running query'
";
        let (out, failure) = run(text);
        assert_eq!(failure, None);
        for part in [
            "\"Me\": \"VelociraptorServer\",\n  \"Session\": \"F.Golden\",\n  \"Url\": \"https://localhost:8000/\",\n  \"Empty\": \"\"",
            "\"OrgId\": \"root\"",
            "\"Then\": \"2020-05-31T15:28:05Z\"",
            "\"Then\": \"2021-02-03T04:05:06Z\"",
            "\"Log\": \"Velociraptor: DEFAULT:hello\\n\"",
        ] {
            assert!(out.contains(part), "{part} in {out}");
        }
    }

    #[test]
    fn the_configuration_of_a_case_can_be_edited() {
        let text = "
ConfigMerges:
- '{\"Client\": {\"labels\": [\"a\"]}, \"security\": {\"denied_plugins\": [\"info\"]}}'
ConfigPatches:
- '[{\"op\": \"add\", \"path\": \"/Client/labels/0\", \"value\": \"b\"}]'
Queries:
- SELECT config.labels AS Labels FROM scope()
- SELECT * FROM info()
- SELECT * FROM test_read_logs() WHERE Log =~ 'blocked'
";
        let (out, failure) = run(text);
        assert_eq!(failure, None);
        assert!(out.contains("\"Labels\": [\n   \"b\",\n   \"a\"\n  ]"), "{out}");
        assert!(out.contains("VQL Plugin info() has been blocked in the configuration"), "{out}");
        let case = Case::parse("ConfigMerges: ['{\"Cleint\": {}}']\nQueries: []\n").unwrap();
        let refusal = case.run(&World::new().unwrap(), &[]).map(|_| ()).unwrap_err();
        assert!(format!("{refusal:#}").contains("did you mean \"Client\""), "{refusal:#}");
    }

    #[test]
    fn packs_of_the_configuration_are_built_in() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        std::fs::write(folder.path().join("deep/One.yaml"), "name: Pack.One\nsources:\n- query: SELECT 7 AS X FROM scope()\n").unwrap();
        std::fs::write(folder.path().join("Broken.yaml"), "name: Pack.Broken\nsources:\n- query: SELECT\n").unwrap();
        let path = folder.path().display();
        for key in [
            format!("{{\"Frontend\": {{\"artifact_definitions_directory\": \"{path}\"}}}}"),
            format!("{{\"defaults\": {{\"artifact_definitions_directories\": [\"{path}\"]}}}}"),
        ] {
            let text = format!(
                "ConfigMerges: ['{key}']\nQueries:\n- SELECT name, built_in FROM artifact_definitions(names='Pack.One')\n- SELECT X FROM Artifact.Pack.One()\n"
            );
            let (out, failure) = run(&text);
            assert_eq!(failure, None);
            assert!(out.contains("\"built_in\": true") && out.contains("\"X\": 7"), "{out}");
        }
        let missing =
            Case::parse("ConfigMerges: ['{\"Frontend\": {\"artifact_definitions_directory\": \"/no/such/pack\"}}']\nQueries: []\n")
                .unwrap();
        let refusal = missing.run(&World::new().unwrap(), &[]).map(|_| ()).unwrap_err();
        assert!(format!("{refusal:#}").contains("Frontend.artifact_definitions_directory"), "{refusal:#}");
    }

    #[test]
    fn uploads_go_into_a_container_and_requests_are_echoed() {
        let text = "
Queries:
- SELECT upload(file='content', accessor='data', name='/dir/a.txt') AS Upload FROM scope()
- SELECT httpbin() =~ '^http://127.0.0.1:' AS Url FROM scope()
";
        let (out, failure) = run(text);
        assert_eq!(failure, None);
        let sha256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
        assert!(out.contains("\"Size\": 7") && out.contains(sha256) && out.contains("\"Url\": true"), "{out}");
    }
}
