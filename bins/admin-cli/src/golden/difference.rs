//! The difference between two texts, line by line, for people.

/// Lines shown before and after what differs.
const CONTEXT: usize = 3;
/// The most lines shown of either text.
const MOST: usize = 40;

/// What `actual` has in place of `expected`: from the first line that differs to the last. `None` when nothing differs.
pub(super) fn between(expected: &str, actual: &str) -> Option<String> {
    if expected == actual {
        return None;
    }
    let (expected, actual): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let before = expected.iter().zip(&actual).take_while(|(ours, theirs)| ours == theirs).count();
    let rest = |lines: &[&str]| lines.len().saturating_sub(before);
    let after = expected.iter().rev().zip(actual.iter().rev()).take_while(|(ours, theirs)| ours == theirs).count();
    let after = after.min(rest(&expected)).min(rest(&actual));
    let mut out = Vec::new();
    if let Some(query) = expected.iter().take(before).rev().find(|line| line.starts_with("Query: ")) {
        out.push(format!("  {query}"));
    }
    out.extend(expected.iter().take(before).skip(before.saturating_sub(CONTEXT)).map(|line| format!("  {line}")));
    for (mark, lines) in [('-', &expected), ('+', &actual)] {
        let differing = rest(lines).saturating_sub(after);
        out.extend(lines.iter().skip(before).take(differing.min(MOST)).map(|line| format!("{mark} {line}")));
        if differing > MOST {
            out.push(format!("{mark} … {} more lines", differing.saturating_sub(MOST)));
        }
    }
    out.extend(expected.iter().skip(expected.len().saturating_sub(after)).take(CONTEXT).map(|line| format!("  {line}")));
    Some(out.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_shown_with_its_query() {
        assert_eq!(between("a\nb", "a\nb"), None);
        let expected = "Query: one\nOutput: [\n1\n2\n3\n4\n]\nQuery: two";
        let actual = "Query: one\nOutput: [\n1\n2\n3\n5\n6\n]\nQuery: two";
        assert_eq!(between(expected, actual).unwrap(), "  Query: one\n  1\n  2\n  3\n- 4\n+ 5\n+ 6\n  ]\n  Query: two");
        assert_eq!(between("a", "a\na").unwrap(), "  a\n+ a");
        assert_eq!(between("", "x").unwrap(), "+ x");
        let long = vec!["x"; 100].join("\n");
        assert!(between("", &long).unwrap().ends_with("+ … 60 more lines"));
    }
}
