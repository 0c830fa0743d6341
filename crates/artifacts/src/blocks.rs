//! The queries in the text of an artifact, found by its lines alone: also in a text that is still being written.

use std::ops::Range;

use crate::yaml::{indent, opens_block, split_dashes};

/// The keys whose values are queries.
const KEYS: [&str; 3] = ["query", "precondition", "export"];

/// The bytes of each query, in order. A query in a literal block has all lines of the block.
#[must_use]
pub fn query_ranges(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut lines = Lines { text, at: 0 };
    while let Some((start, line)) = lines.next() {
        let (dashes, content) = split_dashes(line);
        let Some((key, value)) = content.split_once(':') else { continue };
        let key_column = indent(line) + dashes;
        let is_query = KEYS.contains(&key);
        let value_start = start + line.len() - value.len();
        if opens_block(content) || (is_query && value.trim().is_empty()) {
            let block = lines.block(key_column);
            if is_query && !block.is_empty() {
                ranges.push(block);
            }
        } else if is_query {
            let skipped = value.len() - value.trim_start().len();
            ranges.push(value_start + skipped..value_start + value.trim_end().len().max(skipped));
        }
    }
    ranges
}

struct Lines<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<(usize, &'a str)> {
        let start = self.at;
        let rest = self.text.get(start..).filter(|rest| !rest.is_empty())?;
        let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
        self.at = start + length;
        Some((start, rest.get(..length).unwrap_or_default().trim_end_matches(['\n', '\r'])))
    }

    /// Takes the lines that are indented deeper than `column`, and blank ones between them.
    fn block(&mut self, column: usize) -> Range<usize> {
        let start = self.at;
        let mut end = start;
        loop {
            let before = self.at;
            match self.next() {
                Some((_, line)) if line.trim().is_empty() => {}
                Some((at, line)) if indent(line) > column => end = at + line.len(),
                _ => {
                    self.at = before;
                    return start..end;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_found_in_unfinished_texts() {
        let text = "name: A\ndescription: |\n  query: |\n    not this\nexport: |\n  LET X = 1\n\nprecondition: SELECT 1 FROM x\nsources:\n- query: |\n    SELECT\n\n    FROM inf\n  description: x\n- name: B\n  query:\n    SELECT 2\n";
        let found: Vec<_> = query_ranges(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, ["  LET X = 1", "SELECT 1 FROM x", "    SELECT\n\n    FROM inf", "    SELECT 2"]);
        assert!(query_ranges("query:").is_empty());
        assert_eq!(query_ranges("query: x"), vec![7..8]);
    }
}
