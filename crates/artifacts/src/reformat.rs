//! Pretty printing of the queries inside an artifact's text. Everything else of the text stays as it is.

use crate::ArtifactError;
use crate::yaml::{indent, opens_block, split_dashes};

/// The keys whose literal blocks are queries.
const KEYS: [&str; 3] = ["query", "precondition", "export"];

/// Formats the queries that stand in literal blocks; queries on the line of their key stay. Trailing blanks of the text go.
///
/// # Errors
/// A query is not VQL. Whether the text is an artifact is not looked at.
pub fn reformat(text: &str) -> Result<String, ArtifactError> {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::with_capacity(text.len() + 64);
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let (dashes, content) = split_dashes(line);
        if !opens_block(content) {
            push(&mut out, line);
            continue;
        }
        let key = if content.starts_with(['|', '>']) { indent(line) } else { indent(line) + dashes };
        let rest = lines.get(at..).unwrap_or_default();
        let length = rest.iter().take_while(|line| line.trim().is_empty() || indent(line) > key).count();
        let mut block = rest.get(..length).unwrap_or_default();
        while let Some((last, before)) = block.split_last()
            && last.trim().is_empty()
        {
            block = before;
        }
        let blanks = length - block.len();
        let name = content.split(':').next().unwrap_or_default();
        let mark = content.get(name.len() + 1..).unwrap_or_default().trim();
        if KEYS.contains(&name) && mark.starts_with('|') && !block.is_empty() {
            let header = line.get(..indent(line) + dashes + name.len() + 1).unwrap_or(line);
            let chomp: String = mark.split(" #").next().unwrap_or_default().chars().filter(|c| !c.is_ascii_digit()).collect();
            push(&mut out, &format!("{header} {}", chomp.trim_end()));
            for line in query(block, name, at)?.lines() {
                let margin = if line.is_empty() { 0 } else { key + 2 };
                push(&mut out, &format!("{}{line}", " ".repeat(margin)));
            }
        } else {
            push(&mut out, line);
            block.iter().for_each(|line| push(&mut out, line));
        }
        (0..blanks).for_each(|_| push(&mut out, ""));
        at += length;
    }
    out.truncate(out.trim_end().len());
    Ok(out)
}

fn push(out: &mut String, line: &str) {
    out.push_str(line.trim_end_matches('\r'));
    out.push('\n');
}

/// The query of a block whose first line is line `first` of the text, from 0.
fn query(block: &[&str], part: &str, first: usize) -> Result<String, ArtifactError> {
    let margin = block.iter().find(|line| !line.trim().is_empty()).map_or(0, |line| indent(line));
    let text: Vec<&str> = block.iter().map(|line| line.get(margin.min(indent(line))..).unwrap_or_default()).collect();
    talon_vql::format::reformat(&text.join("\n")).map_err(|error| ArtifactError::Vql {
        artifact: "artifact".to_owned(),
        part: part.to_owned(),
        line: Some((first as u64).saturating_add(u64::from(error.line()))),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Definition;

    #[test]
    fn blocks_are_formatted_and_the_rest_stays() {
        let text = "\
name: Custom.A # why
description: |
    query: |
      SELECT   1
precondition: SELECT   *   FROM x
export: |4
    // shared
    LET X(a)   = '''one
        two'''

sources:
  - name: S
    query: |-
            SELECT A,B, -- both
               C FROM f(a=1)
    notebook:
      - type: vql
        template: |
          SELECT   *   FROM x
  - query: |   # last

      SELECT * FROM x";
        let expected = "\
name: Custom.A # why
description: |
    query: |
      SELECT   1
precondition: SELECT   *   FROM x
export: |
  // shared
  LET X(a) = '''one
      two'''

sources:
  - name: S
    query: |-
      SELECT A,
             B,
             -- both
             C
      FROM f(a=1)
    notebook:
      - type: vql
        template: |
          SELECT   *   FROM x
  - query: |
      SELECT *
      FROM x";
        assert_eq!(reformat(text).unwrap(), expected);
        assert_eq!(reformat(expected).unwrap(), expected);
        let (before, after) = (Definition::from_yaml(text).unwrap(), Definition::from_yaml(expected).unwrap());
        assert_eq!(before.stripped(Vec::new()), after.stripped(Vec::new()));
    }

    #[test]
    fn a_query_that_does_not_parse_is_an_error_with_its_line() {
        let error = reformat("name: A\nsources:\n- query: |\n    SELECT *\n    WHERE x\n").unwrap_err();
        assert_eq!(error.to_string(), "artifact: query (line 5): 2:1: unexpected token \"WHERE\" (expected <from>)");
    }

    #[test]
    fn the_recorded_reformat_cases() {
        let Ok(golden) = std::env::var("TALON_GOLDEN") else {
            eprintln!("SKIPPED: TALON_GOLDEN is not set");
            return;
        };
        let read = |name: &str| std::fs::read_to_string(std::path::Path::new(&golden).join(name)).unwrap();
        let input: serde_json::Value = serde_saphyr::from_str(&read("reformat.in.yaml")).unwrap();
        let output = read("reformat.out.yaml");
        let rows: serde_json::Value = serde_json::from_str(output.split("Output: ").nth(1).unwrap()).unwrap();
        let cases = input["Parameters"].as_object().unwrap();
        assert!(cases.len() >= 6);
        for (name, text) in cases {
            let expected: Vec<&str> = rows[0][name].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
            assert_eq!(reformat(text.as_str().unwrap()).unwrap(), expected.join("\n"), "{name}");
        }
    }
}
