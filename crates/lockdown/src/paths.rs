//! Path rules: which parts of the server's own files and stored files a query may reach.

/// Allowed and denied path prefixes, compared component by component. The denied ones win; no allowed ones means all others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrefixRules {
    allowed: Vec<Vec<String>>,
    denied: Vec<Vec<String>>,
}

/// What of the stored files nobody reaches by path unless the configuration says otherwise.
pub const DENIED_STORED: &[&str] = &["acl", "backups", "config", "orgs", "secrets", "users"];

impl PrefixRules {
    /// The rules of two configuration lists of paths.
    pub fn new<'a>(allowed: impl IntoIterator<Item = &'a str>, denied: impl IntoIterator<Item = &'a str>) -> Self {
        Self { allowed: allowed.into_iter().map(components).collect(), denied: denied.into_iter().map(components).collect() }
    }

    /// The rules for stored files: a list of denied prefixes replaces [`DENIED_STORED`].
    pub fn for_stored<'a>(allowed: impl IntoIterator<Item = &'a str>, denied: impl IntoIterator<Item = &'a str>) -> Self {
        let mut rules = Self::new(allowed, denied);
        if rules.denied.is_empty() {
            rules.denied = DENIED_STORED.iter().copied().map(components).collect();
        }
        rules
    }

    /// Whether the path may be reached. A path that steps upwards may not.
    pub fn allows<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> bool {
        let path: Vec<&str> = path.into_iter().filter(|part| !part.is_empty() && *part != ".").collect();
        let under = |prefix: &Vec<String>| path.len() >= prefix.len() && prefix.iter().zip(&path).all(|(want, have)| want == have);
        !path.contains(&"..") && !self.denied.iter().any(under) && (self.allowed.is_empty() || self.allowed.iter().any(under))
    }
}

fn components(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(rules: &PrefixRules, path: &str) -> bool {
        rules.allows(path.split('/'))
    }

    #[test]
    fn prefixes_are_components_and_not_letters() {
        let rules = PrefixRules::for_stored([], []);
        for (path, wanted) in
            [("/acl/alice", false), ("acl", false), ("/aclx/a", true), ("/clients/C.1/acl", true), ("/./users/x", false), ("//orgs", false)]
        {
            assert_eq!(allows(&rules, path), wanted, "{path}");
        }
        assert!(!allows(&rules, "/clients/../acl/alice"));
    }

    #[test]
    fn configured_denials_replace_the_defaults_and_win_over_allowed_prefixes() {
        let rules = PrefixRules::for_stored(["/clients"], ["/clients/C.1"]);
        assert!(allows(&rules, "/clients/C.2/x"));
        assert!(!allows(&rules, "/clients/C.1/x"));
        assert!(!allows(&rules, "/acl/x"));
        assert!(allows(&PrefixRules::for_stored([], ["/clients"]), "/acl/x"));
    }
}
