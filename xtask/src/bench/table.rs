//! The table of results: value, goal, whether it was met, and what of the machine's limit it is.

use std::fmt;

/// The rows, in the order in which they were measured.
#[derive(Default)]
pub(super) struct Table(Vec<Row>);

/// One number.
pub(super) struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Option<Goal>,
    note: String,
}

enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Table {
    /// Appends a number, and shows it at once: a run takes minutes.
    pub(super) fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) -> &mut Row {
        let row = Row { name: name.into(), value, unit, goal: None, note: String::new() };
        eprintln!("bench: {}: {} {}", row.name, shown(row.value), row.unit);
        let at = self.0.len();
        self.0.push(row);
        &mut self.0[at]
    }
}

impl Row {
    pub(super) fn at_most(&mut self, most: f64) -> &mut Self {
        self.goal = Some(Goal::AtMost(most));
        self
    }

    pub(super) fn at_least(&mut self, least: f64) -> &mut Self {
        self.goal = Some(Goal::AtLeast(least));
        self
    }

    /// What else there is to say: the share of a limit, or what was counted.
    pub(super) fn note(&mut self, note: impl Into<String>) -> &mut Self {
        self.note = note.into();
        self
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|row| row.name.chars().count()).max().unwrap_or_default();
        writeln!(out, "| {:width$} | {:>17} | {:>10} | met | beside it |", "measure", "value", "goal")?;
        writeln!(out, "|{:-<1$}|------------------:|-----------:|---|---|", "", width + 2)?;
        for row in &self.0 {
            let value = format!("{} {}", shown(row.value), row.unit);
            let (goal, met) = match row.goal {
                Some(Goal::AtMost(most)) => (format!("≤ {}", shown(most)), row.value <= most),
                Some(Goal::AtLeast(least)) => (format!("≥ {}", shown(least)), row.value >= least),
                None => (String::new(), true),
            };
            let met = if goal.is_empty() {
                ""
            } else if met {
                "yes"
            } else {
                "NO"
            };
            writeln!(out, "| {:width$} | {value:>17} | {goal:>10} | {met} | {} |", row.name, row.note)?;
        }
        Ok(())
    }
}

/// Three digits that count, whole above a hundred.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A count as a number to reckon with; exact up to 2⁵³.
pub(super) fn number(count: impl TryInto<u64>) -> f64 {
    count.try_into().map_or(f64::NAN, |count: u64| count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_is_missed_is_said_to_be() {
        let mut table = Table::default();
        table.add("slow", 5.0, "/s").at_least(6.0);
        table.add("small", 5.0, "MB").at_most(6.0).note("beside");
        let lines: Vec<String> = table.to_string().lines().map(str::to_owned).collect();
        assert!(lines[2].contains("| NO |") && lines[3].contains("| yes | beside |"), "{lines:?}");
    }
}
