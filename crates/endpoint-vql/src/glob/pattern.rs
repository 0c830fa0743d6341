//! Patterns of paths: braces are expanded first, then each component is matched by itself.

/// How many patterns the braces of all globs may expand to.
const MAX_PATTERNS: usize = 100_000;

/// The depth of `**` without a number.
const DEFAULT_DEPTH: u32 = 30;

/// One component of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`: up to this many folders.
    Deep(u32),
    /// Characters to match one by one.
    Name(Vec<Unit>),
}

/// One unit of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unit {
    Char(char),
    Any,
    Many,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

/// All patterns of one walk.
pub(super) struct Patterns {
    globs: Vec<String>,
    /// The glob that each came from, and its components.
    expanded: Vec<(usize, Vec<Part>)>,
}

/// How far one pattern has matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pattern: usize,
    part: usize,
    /// Folders that a `**` at `part` has taken.
    taken: u32,
}

impl Patterns {
    /// Expands and splits `globs`; `split` takes a path apart by the accessor's rules.
    pub(super) fn parse(globs: &[String], split: impl Fn(&str) -> Vec<String>) -> Result<Self, String> {
        let mut expanded = Vec::new();
        for (at, glob) in globs.iter().enumerate() {
            let mut plain = Vec::new();
            expand(glob, &mut plain)?;
            for text in plain {
                let parts: Vec<Part> = split(&text).iter().map(|part| parse_part(part)).collect();
                if !parts.is_empty() {
                    expanded.push((at, parts));
                }
            }
            if expanded.len() > MAX_PATTERNS {
                return Err(too_many());
            }
        }
        Ok(Self { globs: globs.to_vec(), expanded })
    }

    /// Where every pattern starts.
    pub(super) fn start(&self) -> Vec<State> {
        (0..self.expanded.len()).map(|pattern| State { pattern, part: 0, taken: 0 }).collect()
    }

    /// What an entry called `name` does to `states`: the globs that it completes, and the states for what lies below it.
    pub(super) fn step(&self, states: &[State], name: &str) -> (Vec<&str>, Vec<State>) {
        let folded: Vec<char> = name.chars().flat_map(char::to_lowercase).collect();
        let (mut matched, mut below) = (Vec::new(), Vec::new());
        for state in states {
            self.step_one(*state, &folded, &mut matched, &mut below);
        }
        matched.sort_unstable();
        matched.dedup();
        (matched.into_iter().filter_map(|at| self.globs.get(at).map(String::as_str)).collect(), below)
    }

    fn step_one(&self, state: State, name: &[char], matched: &mut Vec<usize>, below: &mut Vec<State>) {
        let Some((glob, parts)) = self.expanded.get(state.pattern) else { return };
        let mut push = |next: State| {
            if !below.contains(&next) {
                below.push(next);
            }
        };
        match parts.get(state.part) {
            None => {}
            Some(Part::Name(units)) if !matches(units, name) => {}
            Some(Part::Name(_)) if state.part + 1 == parts.len() => matched.push(*glob),
            Some(Part::Name(_)) => push(State { part: state.part + 1, taken: 0, ..state }),
            Some(Part::Deep(depth)) => {
                if state.taken < *depth {
                    push(State { taken: state.taken + 1, ..state });
                }
                if state.part + 1 == parts.len() {
                    matched.push(*glob);
                } else {
                    // `**` also stands for no folder at all.
                    self.step_one(State { part: state.part + 1, taken: 0, ..state }, name, matched, below);
                }
            }
        }
    }
}

fn too_many() -> String {
    format!("the globs expand to more than {MAX_PATTERNS} patterns")
}

/// Expands the first pair of braces with a comma in it, and then the results.
fn expand(text: &str, out: &mut Vec<String>) -> Result<(), String> {
    let mut pending = vec![text.to_owned()];
    while let Some(text) = pending.pop() {
        match braces(&text) {
            None => out.push(text),
            Some((before, choices, after)) => pending.extend(choices.iter().rev().map(|choice| format!("{before}{choice}{after}"))),
        }
        if out.len() + pending.len() > MAX_PATTERNS {
            return Err(too_many());
        }
    }
    Ok(())
}

/// Splits at the first outermost `{…}`: what is before, the choices, what is after.
fn braces(text: &str) -> Option<(&str, Vec<&str>, &str)> {
    let open = text.find('{')?;
    let (mut depth, mut from) = (0_u32, open + 1);
    let mut choices = Vec::new();
    for (at, character) in text.char_indices().skip_while(|(at, _)| *at < open) {
        match character {
            '{' => depth += 1,
            ',' if depth == 1 => {
                choices.push(text.get(from..at)?);
                from = at + 1;
            }
            '}' if depth == 1 => {
                choices.push(text.get(from..at)?);
                return Some((text.get(..open)?, choices, text.get(at + 1..)?));
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn parse_part(text: &str) -> Part {
    if let Some(depth) = text.strip_prefix("**")
        && depth.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Part::Deep(if depth.is_empty() { DEFAULT_DEPTH } else { depth.parse().unwrap_or(DEFAULT_DEPTH) });
    }
    let mut units = Vec::new();
    let characters: Vec<char> = text.chars().collect();
    let mut rest = characters.as_slice();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            '*' => {
                if units.last() != Some(&Unit::Many) {
                    units.push(Unit::Many);
                }
            }
            '?' => units.push(Unit::Any),
            '[' => match parse_class(tail) {
                Some((class, after)) => {
                    units.push(class);
                    rest = after;
                }
                None => units.push(Unit::Char('[')),
            },
            other => units.extend(other.to_lowercase().map(Unit::Char)),
        }
    }
    Part::Name(units)
}

/// A class after its `[`, and what follows its `]`.
fn parse_class(text: &[char]) -> Option<(Unit, &[char])> {
    let (negated, mut rest) = match text.split_first() {
        Some(('!' | '^', tail)) => (true, tail),
        _ => (false, text),
    };
    let mut ranges = Vec::new();
    loop {
        let (first, tail) = rest.split_first()?;
        rest = tail;
        if *first == ']' && !ranges.is_empty() {
            return Some((Unit::Class { negated, ranges }, rest));
        }
        let low = lower(*first);
        match rest {
            ['-', high, tail @ ..] if *high != ']' => {
                ranges.push((low, lower(*high)));
                rest = tail;
            }
            _ => ranges.push((low, low)),
        }
    }
}

fn lower(character: char) -> char {
    character.to_lowercase().next().unwrap_or(character)
}

/// Whether the whole name matches: greedy with one point to return to, so that it takes no more than the product of both lengths.
fn matches(units: &[Unit], name: &[char]) -> bool {
    let (mut unit, mut at) = (0, 0);
    let mut again: Option<(usize, usize)> = None;
    loop {
        match (units.get(unit), name.get(at)) {
            (Some(Unit::Many), _) => {
                again = Some((unit, at));
                unit += 1;
                continue;
            }
            (Some(one), Some(character)) if accepts(one, *character) => {
                unit += 1;
                at += 1;
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match again {
            Some((star, from)) if from < name.len() => {
                again = Some((star, from + 1));
                unit = star + 1;
                at = from + 1;
            }
            _ => return false,
        }
    }
}

fn accepts(unit: &Unit, character: char) -> bool {
    match unit {
        Unit::Char(own) => *own == character,
        Unit::Any | Unit::Many => true,
        Unit::Class { negated, ranges } => ranges.iter().any(|(low, high)| (*low..=*high).contains(&character)) != *negated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(glob: &str, name: &str) -> bool {
        let Part::Name(units) = parse_part(glob) else { panic!("{glob} is not a name") };
        let folded: Vec<char> = name.chars().flat_map(char::to_lowercase).collect();
        matches(&units, &folded)
    }

    #[test]
    fn names_match() {
        for (glob, name) in [
            ("*", ""),
            ("a*c", "abbc"),
            ("*.TXT", "x.txt"),
            ("?x", "ax"),
            ("[a-c]1", "B1"),
            ("[!a]*", "b"),
            ("a**b", "ab"),
            ("[", "["),
            ("*a*a*a", "aXaYa"),
        ] {
            assert!(hits(glob, name), "{glob} {name}");
        }
        for (glob, name) in [("a", "ab"), ("?", ""), ("[!a]", "A"), ("a*b", "abc"), ("[a-", "a")] {
            assert!(!hits(glob, name), "{glob} {name}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        assert!(!hits(&"*a".repeat(500), &"a".repeat(400).replace('a', "b")));
    }

    #[test]
    fn braces_expand_in_order_and_nest() {
        let mut out = Vec::new();
        expand("/{a,b{1,2}}/x", &mut out).unwrap();
        assert_eq!(out, ["/a/x", "/b1/x", "/b2/x"]);
        assert!(expand(&"{a,b}".repeat(40), &mut Vec::new()).is_err());
    }
}
