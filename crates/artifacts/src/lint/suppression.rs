//! Comments that silence the linter: `linter: RULE:REGEX`.

use talon_vql::ast::{Comment, Span};
use talon_vql::regex::Regex;

use super::{Finding, Rule};

/// The suppressions of one artifact.
#[derive(Default)]
pub(super) struct Suppressions(Vec<Suppression>);

struct Suppression {
    text: String,
    rule: Rule,
    subject: Regex,
}

impl Suppressions {
    /// Takes those of some comments; what is wrong with them is found. `place` says where the comments are in the text that is checked.
    pub(super) fn read(&mut self, comments: &[Comment], context: &str, findings: &mut Vec<Finding>, place: &dyn Fn(Span) -> Option<Span>) {
        for comment in comments {
            for text in comment.text.lines().filter_map(marked) {
                match Suppression::parse(text) {
                    Ok(suppression) => self.0.push(suppression),
                    Err((problem, hint)) => findings.push(Finding {
                        rule: Rule::InvalidSuppression,
                        subject: text.to_owned(),
                        context: context.to_owned(),
                        text: problem,
                        hint,
                        span: place(comment.span),
                    }),
                }
            }
        }
    }

    /// Removes what is silenced.
    pub(super) fn apply(&self, findings: &mut Vec<Finding>) {
        findings.retain(|finding| !self.0.iter().any(|one| one.rule == finding.rule && one.subject.is_match(finding.subject.as_bytes())));
    }

    pub(super) fn into_texts(self) -> Vec<String> {
        self.0.into_iter().map(|one| one.text).collect()
    }
}

/// What follows the mark in a line of a comment.
fn marked(line: &str) -> Option<&str> {
    let content = line.trim().trim_start_matches(['-', '/', '*']).trim_end_matches("*/").trim();
    content.strip_prefix("linter:").map(str::trim)
}

impl Suppression {
    fn parse(text: &str) -> Result<Self, (String, Option<String>)> {
        let (id, pattern) = text.split_once(':').unwrap_or((text, ""));
        let rule = Rule::ALL.into_iter().find(|rule| rule.id() == id.trim()).ok_or_else(|| {
            let near = talon_vql::nearest(id.trim(), Rule::ALL.map(Rule::id));
            let hint =
                near.map_or_else(|| "a suppression is written linter: RULE:REGEX".to_owned(), |near| format!("did you mean {near}?"));
            (format!("there is no rule {:?}", id.trim()), Some(hint))
        })?;
        let subject = Regex::ignoring_case(pattern.trim().as_bytes()).map_err(|error| (error.to_string(), None))?;
        Ok(Self { text: text.to_owned(), rule, subject })
    }
}
