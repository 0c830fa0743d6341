//! Checks `docs/protocol-conformance.md`: no table has an empty cell, and every test, case and file that it names is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

const PAGE: &str = "docs/protocol-conformance.md";

/// Notes what is wrong with the page; `files` are those under version control.
pub(crate) fn check(root: &Path, files: &[std::path::PathBuf], broken: &mut Vec<String>) -> Result<()> {
    let page = fs::read_to_string(root.join(PAGE))?;
    let mut functions = BTreeSet::new();
    let mut cases = String::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        // A file may have been deleted in the working tree.
        let Ok(text) = fs::read_to_string(file) else { continue };
        functions.extend(text.split("fn ").skip(1).filter_map(name_of).map(str::to_owned));
        if file.starts_with(root.join("xtask/src/e2e")) {
            cases.push_str(&text);
        }
    }
    broken.extend(faults(&page, &functions, &cases, &|path| root.join(path).exists()));
    Ok(())
}

fn name_of(text: &str) -> Option<&str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_').next().filter(|name| !name.is_empty())
}

fn faults(page: &str, functions: &BTreeSet<String>, cases: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in page.lines().enumerate() {
        let mut fault = |what: &str| faults.push(format!("{PAGE}:{}: {what}", number.saturating_add(1)));
        if let Some(row) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'))
            && row.split('|').any(|cell| cell.trim().is_empty())
        {
            fault("an empty cell");
        }
        for span in line.split('`').skip(1).step_by(2) {
            let is_test =
                span.matches('_').count() > 1 && span.chars().all(|character| character.is_ascii_alphanumeric() || character == '_');
            if is_test && !functions.contains(span) {
                fault(&format!("there is no test {span}"));
            }
        }
        for case in line.split("e2e: ").skip(1) {
            let case = case.split([';', '|', '`', ',']).next().unwrap_or_default().trim();
            if !cases.contains(case) {
                fault(&format!("there is no case {case:?} in xtask/src/e2e"));
            }
        }
        for word in line.split([' ', '|', ',', '(', ')', ';', '`']) {
            let is_file = word.contains('/') && Path::new(word).extension().is_some_and(|extension| extension == "rs");
            if is_file && !exists(word) {
                fault(&format!("there is no file {word}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_names_of_nothing_are_found() {
        let functions = BTreeSet::from(["a_real_test".to_owned()]);
        let cases = r#"("an agent does it over http", run)"#;
        let check = |line: &str| faults(line, &functions, cases, &|path| path == "crates/wire/src/lib.rs").len();
        for (line, count) in [
            ("| 01 | what | crates/wire/src/lib.rs | `a_real_test`; e2e: an agent does it |", 0),
            ("| 01 |  | crates/wire/src/lib.rs |", 1),
            ("| `no_such_test` | `a_real_test`, `not_one_either` |", 2),
            ("| e2e: an agent does something else; `a_real_test` |", 1),
            ("| crates/wire/src/gone.rs, crates/wire/src/lib.rs |", 1),
            ("Text with `max_poll` and | a bar.", 0),
        ] {
            assert_eq!(check(line), count, "{line}");
        }
    }
}
