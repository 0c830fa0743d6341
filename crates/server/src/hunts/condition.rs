//! Which clients a hunt is for (`spec/05` §6.2).

use talon_proto::hunt_condition::UnionField;
use talon_proto::hunt_os_condition::Os;
use talon_proto::{ClientInfo, HuntCondition};

use crate::clients::has_label;

/// Whether a hunt with this condition is for this client.
#[must_use]
pub fn fits(condition: Option<&HuntCondition>, info: &ClientInfo) -> bool {
    let Some(condition) = condition else { return true };
    if condition.excluded_labels.iter().flat_map(|excluded| &excluded.label).any(|label| has_label(info, label)) {
        return false;
    }
    match &condition.union_field {
        None => true,
        Some(UnionField::Labels(labels)) => labels.label.is_empty() || labels.label.iter().any(|label| has_label(info, label)),
        Some(UnionField::Os(wanted)) => match wanted.os() {
            Os::All => true,
            Os::Windows => info.system == "windows",
            Os::Linux => info.system == "linux",
            Os::Osx => info.system == "darwin",
        },
    }
}

#[cfg(test)]
mod tests {
    use talon_proto::{HuntLabelCondition, HuntOsCondition};

    use super::*;

    fn labels(labels: &[&str]) -> HuntLabelCondition {
        HuntLabelCondition { label: labels.iter().map(|label| (*label).to_owned()).collect() }
    }

    #[test]
    fn conditions_select_clients() {
        let info = ClientInfo { system: "linux".into(), labels: vec!["Web".into(), "dmz".into()], ..ClientInfo::default() };
        let any = |found: &[&str]| Some(UnionField::Labels(labels(found)));
        let os = |os: Os| Some(UnionField::Os(HuntOsCondition { os: os.into() }));
        for (union_field, excluded, wanted) in [
            (None, &[][..], true),
            (any(&["web"]), &[], true),
            (any(&["mail", "WEB"]), &[], true),
            (any(&["mail"]), &[], false),
            (any(&["all"]), &[], true),
            (any(&["web"]), &["DMZ"], false),
            (None, &["dmz"], false),
            (None, &["all"], false),
            (os(Os::Linux), &[], true),
            (os(Os::Windows), &[], false),
            (os(Os::All), &[], true),
        ] {
            let condition = HuntCondition { excluded_labels: Some(labels(excluded)), union_field: union_field.clone() };
            assert_eq!(fits(Some(&condition), &info), wanted, "{union_field:?} without {excluded:?}");
        }
        assert!(fits(None, &info));
    }
}
