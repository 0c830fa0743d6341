//! The known name that a misspelt one resembles most.

/// The name among `known` that differs least from `word`, unless they differ in more than a third.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded = word.to_ascii_lowercase();
    let (distance, name) = known.iter().map(|name| (distance(&folded, &name.to_ascii_lowercase()), *name)).min()?;
    let tolerance = (word.chars().count() / 3).max(1);
    (distance <= tolerance).then_some(name)
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    let mut previous = None;
    for (row, symbol) in left.chars().take(64).enumerate() {
        let mut current = vec![row.saturating_add(1)];
        for (column, other) in right.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX);
            let substitution = at(&last, column).saturating_add(usize::from(symbol != *other));
            let gap = at(&last, column.saturating_add(1)).min(at(&current, column)).saturating_add(1);
            let mut best = substitution.min(gap);
            if let Some(before) = column.checked_sub(1)
                && previous == Some(*other)
                && right.get(before) == Some(&symbol)
            {
                best = best.min(at(&before_last, before).saturating_add(1));
            }
            current.push(best);
        }
        previous = Some(symbol);
        before_last = std::mem::replace(&mut last, current);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_recognised() {
        let known = ["bind_port", "bind_address", "base_path", "hostname"];
        for (word, name) in [
            ("bind_prot", Some("bind_port")),
            ("Bind_Port", Some("bind_port")),
            ("bindport", Some("bind_port")),
            ("hostnam", Some("hostname")),
            ("hsotname", Some("hostname")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), name, "{word}");
        }
    }
}
