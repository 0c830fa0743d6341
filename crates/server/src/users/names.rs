//! Names of users: which may be taken. Reserved names and names that look like them are nobody's.

use talon_ids::UserName;
use talon_proto::VelociraptorUser;
use unicode_security::GeneralSecurityProfile as _;
use unicode_security::confusable_detection::skeleton;

use crate::ServerError;

/// What a new user may be called.
#[derive(Debug, Clone)]
pub(crate) struct NameRule {
    superuser: UserName,
    pub(crate) gateway: Option<UserName>,
    /// `Defaults.disable_unicode_usernames`, which holds too when there is no section `defaults`.
    pub(crate) ascii_only: bool,
}

impl NameRule {
    pub(crate) fn reserving(superuser: UserName) -> Self {
        Self { superuser, gateway: None, ascii_only: true }
    }

    /// Whether a user of this name may exist.
    pub(crate) fn check(&self, name: &UserName) -> Result<(), ServerError> {
        if alike(name.as_str(), self.superuser.as_str()) {
            return Err(ServerError::invalid(format!("Username is reserved: {name}")));
        }
        if self.gateway.as_ref().is_some_and(|gateway| alike(name.as_str(), gateway.as_str())) {
            return Err(ServerError::invalid(format!("Username is reserved for the gateway: {name}")));
        }
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "@.-_#+".contains(letter);
        let acceptable = |letter: char| if letter.is_ascii() { plain(letter) } else { !self.ascii_only && letter.identifier_allowed() };
        if !name.as_str().chars().all(acceptable) {
            return Err(ServerError::invalid(format!("Unacceptable username {name}")));
        }
        Ok(())
    }

    /// Whether a new user would look like one that exists. Names of ASCII letters differ enough for those who chose them.
    pub(crate) fn check_unlike(name: &UserName, existing: &[VelociraptorUser]) -> Result<(), ServerError> {
        let looks_like =
            |other: &&VelociraptorUser| !(name.as_str().is_ascii() && other.name.is_ascii()) && alike(name.as_str(), &other.name);
        match existing.iter().find(looks_like) {
            Some(other) => Err(ServerError::invalid(format!("Unacceptable username {name}: it looks like {}", other.name))),
            None => Ok(()),
        }
    }
}

/// Whether two names look alike.
fn alike(one: &str, other: &str) -> bool {
    let (one, other) = (looks(one), looks(other));
    one.iter().any(|look| other.contains(look))
}

/// What a name looks like: letters that are mistaken for each other, in any case and width, come to the same. Dots at its end are not seen. A capital
/// that is mistaken for a small letter of another kind is no longer so once it is small: both orders count.
fn looks(name: &str) -> [String; 2] {
    let mistaken = |text: &str| skeleton(text).collect::<String>();
    let name = name.trim_end_matches(['.', ' ', '\u{3002}']);
    [mistaken(&mistaken(&name.to_lowercase()).to_lowercase()), mistaken(&mistaken(name).to_lowercase())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(ascii_only: bool) -> NameRule {
        let mut rule = NameRule::reserving("VelociraptorServer".parse().unwrap());
        rule.gateway = Some("GRPC_GW".parse().unwrap());
        rule.ascii_only = ascii_only;
        rule
    }

    fn refusal(rule: &NameRule, name: &str) -> String {
        name.parse::<UserName>()
            .map_or_else(|_| "not a name".to_owned(), |name| rule.check(&name).map_or_else(|error| error.to_string(), |()| String::new()))
    }

    #[test]
    fn reserved_names_are_reserved_in_every_disguise() {
        for ascii_only in [true, false] {
            for disguise in [
                "VelociraptorServer",
                "velociraptorserver",
                "VELOCIRAPTORSERVER",
                "VelociraptorServer.",
                "VelociraptorServer...",
                "VeIociraptorServer",
                "Velocirapt\u{43e}rServer",
                "\u{ff36}elociraptorServer",
                "\u{ff56}elociraptorserver",
                "Ve1ociraptorServer",
                "Velociraptor\u{405}erver",
            ] {
                let said = refusal(&rule(ascii_only), disguise);
                assert!(said.starts_with("Username is reserved: "), "{disguise:?}: {said}");
            }
            for disguise in ["GRPC_GW", "grpc_gw", "GRPC_G\u{ff37}", "GRPC_GW."] {
                let said = refusal(&rule(ascii_only), disguise);
                assert!(said.starts_with("Username is reserved for the gateway: "), "{disguise:?}: {said}");
            }
        }
    }

    #[test]
    fn names_that_are_none_never_get_here() {
        let long = "a".repeat(1 << 20);
        for bad in ["VelociraptorServer ", " VelociraptorServer", "Velociraptor\0Server", "Velociraptor\u{200b}Server", long.as_str(), ""] {
            assert_eq!(refusal(&rule(false), bad), "not a name");
        }
    }

    #[test]
    fn letters_beyond_ascii_are_taken_only_where_wanted() {
        assert_eq!(refusal(&rule(false), "Jürgen"), "");
        assert_eq!(refusal(&rule(true), "Jürgen"), "Unacceptable username Jürgen");
        assert_eq!(refusal(&rule(false), "a\u{ad}b"), "Unacceptable username a\u{ad}b");
        for (name, fits) in [("alice@example.com", true), ("a b", false), ("a$b", false), ("svc-1_x#+.", true), ("a'b", false)] {
            assert_eq!(refusal(&rule(true), name).is_empty(), fits, "{name}");
        }
    }

    #[test]
    fn nobody_looks_like_somebody_else() {
        let users = [VelociraptorUser { name: "paypal".into(), ..VelociraptorUser::default() }];
        let unlike = |name: &str| NameRule::check_unlike(&name.parse().unwrap(), &users).is_ok();
        assert!(!unlike("p\u{430}ypal"));
        assert!(unlike("paypa1") && unlike("peypal"));
    }
}
