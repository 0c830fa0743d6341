//! Where a place of a query is in the YAML text around it.

use talon_vql::ast::Span;

/// The bytes of line `line` of `text`, from 1, without its end.
fn line_at(text: &str, line: u64) -> Option<(usize, &str)> {
    let mut start = 0;
    for (number, content) in (1_u64..).zip(text.split('\n')) {
        if number == line {
            return Some((start, content.trim_end_matches('\r')));
        }
        start += content.len() + 1;
    }
    None
}

fn span(start: usize, length: usize) -> Option<Span> {
    Some(Span { start: u32::try_from(start).ok()?, end: u32::try_from(start.checked_add(length)?).ok()? })
}

/// The place `inner` of `query`, whose first line is line `first` of `yaml`. The whole line when the two do not look alike there, as in folded texts.
pub(super) fn in_yaml(yaml: &str, first: u64, query: &str, inner: Span) -> Option<Span> {
    let start = usize::try_from(inner.start).ok()?;
    let before = query.get(..start)?;
    let down = before.bytes().filter(|byte| *byte == b'\n').count();
    let (line_start, line) = line_at(query, u64::try_from(down).ok()?.checked_add(1)?)?;
    let (yaml_start, yaml_line) = line_at(yaml, first.checked_add(u64::try_from(down).ok()?)?)?;
    let content = line.trim_end();
    match yaml_line.find(content).filter(|_| !content.is_empty()) {
        Some(indent) => {
            let column = start.saturating_sub(line_start);
            let length = usize::try_from(inner.end).ok()?.saturating_sub(start).min(content.len().saturating_sub(column));
            span(yaml_start + indent + column, length)
        }
        None => {
            let content = yaml_line.trim();
            span(yaml_start + yaml_line.find(content).unwrap_or(0), content.len())
        }
    }
}

/// The rest of the line from a line and a column, both from 1.
pub(super) fn at_line_and_column(text: &str, line: u64, column: u64) -> Option<Span> {
    let (start, content) = line_at(text, line)?;
    let skipped = usize::try_from(column).ok()?.saturating_sub(1);
    let offset = content.char_indices().nth(skipped).map_or(content.len(), |(at, _)| at);
    span(start + offset, content.len() - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<'a>(yaml: &'a str, first: u64, query: &str, part: &str) -> &'a str {
        let at = query.find(part).unwrap();
        let span = in_yaml(yaml, first, query, span(at, part.len()).unwrap()).unwrap();
        &yaml[span.start as usize..span.end as usize]
    }

    #[test]
    fn places_are_found_in_blocks_and_on_the_line_of_the_key() {
        let yaml = "name: A\nsources:\n- query: |\n    SELECT é, Foo()\n      FROM bar()\n- query: SELECT x FROM y()\n- query: \"SELECT\\\n    \\ 1 FROM z()\"\n";
        let block = "SELECT é, Foo()\n  FROM bar()\n";
        assert_eq!(shown(yaml, 4, block, "Foo"), "Foo");
        assert_eq!(shown(yaml, 4, block, "bar"), "bar");
        assert_eq!(shown(yaml, 6, "SELECT x FROM y()", "y"), "y");
        assert_eq!(shown(yaml, 7, "SELECT 1 FROM z()", "z"), "- query: \"SELECT\\");
        assert!(in_yaml(yaml, 99, block, Span::default()).is_none());
        assert_eq!(at_line_and_column(yaml, 2, 3), span(10, 6));
    }
}
