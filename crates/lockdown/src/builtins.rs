//! Allow- and deny-lists of plugins, functions and accessors: which built-ins a deployment has at all.

use std::collections::BTreeSet;

use crate::LockdownError;

/// What a name list says of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be used.
    Allowed,
    /// There is an allow-list and it is not on it.
    NotListed,
    /// It is on the deny-list.
    Denied,
}

/// An allow-list and a deny-list over one kind of names. The deny-list wins; an empty allow-list allows all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NameRules {
    allowed: BTreeSet<String>,
    denied: BTreeSet<String>,
}

impl NameRules {
    /// The rules of two configuration lists.
    pub fn new<A, D>(allowed: A, denied: D) -> Self
    where
        A: IntoIterator,
        A::Item: Into<String>,
        D: IntoIterator,
        D::Item: Into<String>,
    {
        Self { allowed: allowed.into_iter().map(Into::into).collect(), denied: denied.into_iter().map(Into::into).collect() }
    }

    /// What the rules say of `name`. Case counts.
    #[must_use]
    pub fn verdict(&self, name: &str) -> Verdict {
        if self.denied.contains(name) {
            Verdict::Denied
        } else if self.allowed.is_empty() || self.allowed.contains(name) {
            Verdict::Allowed
        } else {
            Verdict::NotListed
        }
    }

    /// Names that some list mentions: they stay known, and blocked, even if nothing of that name exists.
    pub fn mentioned(&self) -> impl Iterator<Item = &str> {
        self.allowed.union(&self.denied).map(String::as_str)
    }
}

/// The kinds of built-ins that lists cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuiltinKind {
    /// A source of rows.
    Plugin,
    /// A function.
    Function,
}

/// Which built-ins may be used: the `allowed_*` and `denied_*` lists of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuiltinRules {
    plugins: NameRules,
    functions: NameRules,
    accessors: NameRules,
    known_accessors: Option<BTreeSet<String>>,
}

impl BuiltinRules {
    /// The rules of a deployment.
    ///
    /// # Errors
    /// [`LockdownError::UnknownAccessor`]: unlike the other lists, the list of allowed accessors must name accessors that exist.
    pub fn new<'a>(
        plugins: NameRules,
        functions: NameRules,
        accessors: NameRules,
        known_accessors: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, LockdownError> {
        let known: BTreeSet<String> = known_accessors.into_iter().map(str::to_owned).collect();
        match accessors.allowed.iter().find(|name| !known.contains(*name)) {
            Some(unknown) => Err(LockdownError::UnknownAccessor(unknown.clone())),
            None => Ok(Self { plugins, functions, accessors, known_accessors: Some(known) }),
        }
    }

    /// Whether a plugin or function may be called.
    ///
    /// # Errors
    /// [`Blocked`], whose text is the log line of the query.
    pub fn check(&self, kind: BuiltinKind, name: &str) -> Result<(), Blocked> {
        let rules = match kind {
            BuiltinKind::Plugin => &self.plugins,
            BuiltinKind::Function => &self.functions,
        };
        match rules.verdict(name) {
            Verdict::Allowed => Ok(()),
            Verdict::NotListed | Verdict::Denied => Err(Blocked { kind, name: name.to_owned() }),
        }
    }

    /// Names of a kind that the lists mention.
    pub fn mentioned(&self, kind: BuiltinKind) -> impl Iterator<Item = &str> {
        match kind {
            BuiltinKind::Plugin => self.plugins.mentioned(),
            BuiltinKind::Function => self.functions.mentioned(),
        }
    }

    /// What the lists say of an accessor. One that is not listed looks like one that does not exist.
    #[must_use]
    pub fn accessor(&self, name: &str) -> Verdict {
        let known = self.known_accessors.as_ref().is_none_or(|known| known.contains(name));
        match self.accessors.verdict(name) {
            Verdict::Allowed if !known => Verdict::NotListed,
            verdict => verdict,
        }
    }
}

/// The text of a denied accessor.
pub const ACCESSOR_DENIED: &str = "Not implemented: Accessor denied by configuration";

/// A built-in that the configuration blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "VQL {} {name}() has been blocked in the configuration. Please update the configuration file to allow it.",
    match .kind { BuiltinKind::Plugin => "Plugin", BuiltinKind::Function => "Function" }
)]
#[non_exhaustive]
pub struct Blocked {
    /// What it is.
    pub kind: BuiltinKind,
    /// Its name.
    pub name: String,
}

/// The lists that the configuration wizard writes for a server whose queries should not reach the server machine.
pub mod server_defaults {
    /// Plugins without reach to the host or the network.
    pub const PLUGINS: &str = "artifact_definitions batch chain client_delete clients clock column_filter combine delay delete_events \
        delete_flow diff enumerate_flow fifo flatten flow_logs flow_results flows foreach glob hunt_delete hunt_flows hunt_results hunts if \
        items monitoring notebook_delete olevba parallelize parse_csv parse_ese parse_ese_catalog parse_evtx parse_json_array parse_jsonl \
        parse_lines parse_mft parse_ntfs_i30 parse_ntfs_ranges parse_records_with_regex parse_recyclebin parse_usn plist prefetch query \
        range read_file sample scope sequence source split_records stat switch timeline unzip uploads yara";

    /// Functions without reach to the host or the network.
    pub const FUNCTIONS: &str = "add_client_monitoring all any array artifact_delete artifact_set atexit atoi base64decode base64encode \
        basename cache cancel_flow cidr_contains client_create client_metadata client_set_metadata collect_client commandline_split \
        compress count create_flow_download create_hunt_download crypto_rc4 dict dirname encode entropy enumerate favorites_delete \
        favorites_save file_store_delete filter format generate get get_client_monitoring get_flow grok gunzip hash humanize hunt hunt_add \
        if import_collection int ip items join label len log lowcase lru lzxpress_decompress max memoize min now parse_binary parse_float \
        parse_json parse_json_array parse_ntfs parse_pe parse_pkcs7 parse_string_with_regex parse_x509 parse_xml parse_yaml patch \
        path_join path_split pathspec pipe plist rand rate read_file relpath repack remap rm_client_monitoring rot13 scope serialize \
        server_metadata server_set_metadata set set_client_monitoring sleep slice split str strip substr sum timeline_add timestamp \
        to_dict unhex upcase upload url utf16 utf16_encode uuid version whoami xor";

    /// Accessors of what was collected and of what is given in the query.
    pub const ACCESSORS: &str = "fs data scope collector bzip2 gzip zip raw_reg mft";
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn rules(allowed: &[&str], denied: &[&str]) -> NameRules {
        NameRules::new(allowed.iter().copied(), denied.iter().copied())
    }

    #[test]
    fn deny_wins_and_an_empty_allow_list_allows() {
        for (allowed, denied, name, verdict) in [
            (&[][..], &[][..], "info", Verdict::Allowed),
            (&["glob"], &[], "info", Verdict::NotListed),
            (&["glob"], &[], "glob", Verdict::Allowed),
            (&["glob"], &["glob"], "glob", Verdict::Denied),
            (&[], &["execve"], "execve", Verdict::Denied),
            (&[], &["execve"], "Execve", Verdict::Allowed),
        ] {
            assert_eq!(rules(allowed, denied).verdict(name), verdict, "{allowed:?} {denied:?} {name}");
        }
    }

    #[test]
    fn a_blocked_builtin_says_so() {
        let builtins = BuiltinRules::new(rules(&["glob"], &[]), rules(&[], &["hash"]), rules(&[], &[]), ["file"]).unwrap();
        assert!(builtins.check(BuiltinKind::Plugin, "glob").is_ok());
        assert!(builtins.check(BuiltinKind::Function, "glob").is_ok());
        expect!["VQL Plugin info() has been blocked in the configuration. Please update the configuration file to allow it."]
            .assert_eq(&builtins.check(BuiltinKind::Plugin, "info").unwrap_err().to_string());
        expect!["VQL Function hash() has been blocked in the configuration. Please update the configuration file to allow it."]
            .assert_eq(&builtins.check(BuiltinKind::Function, "hash").unwrap_err().to_string());
    }

    #[test]
    fn allowed_accessors_must_exist_and_denied_ones_need_not() {
        let known = ["file", "data"];
        let with = |accessors| BuiltinRules::new(NameRules::default(), NameRules::default(), accessors, known);
        expect!["Unknown accessor in allow list: nosuch"].assert_eq(&with(rules(&["data", "nosuch"], &[])).unwrap_err().to_string());
        let builtins = with(rules(&["data"], &["nosuch"])).unwrap();
        assert_eq!(builtins.accessor("data"), Verdict::Allowed);
        assert_eq!(builtins.accessor("file"), Verdict::NotListed);
        assert_eq!(builtins.accessor("nosuch"), Verdict::Denied);
        assert_eq!(with(rules(&[], &[])).unwrap().accessor("ntfs"), Verdict::NotListed);
    }

    #[test]
    fn the_default_lists_reach_no_host() {
        for name in ["execve", "http_client", "info", "pslist", "environ", "write_csv", "netstat"] {
            assert!(!server_defaults::PLUGINS.split_whitespace().any(|plugin| plugin == name), "{name}");
        }
        assert!(server_defaults::ACCESSORS.split_whitespace().all(|accessor| accessor != "file"));
    }
}
