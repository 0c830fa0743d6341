//! What users set for themselves: theme, language, timezone, links. The password of exports is among them, so only its owner reads it.

use talon_audit::Receipt;
use talon_ids::{OrgId, UserName};
use talon_proto::{GuiCustomizations, GuiLink, SetGuiOptionsRequest};
use talon_store::Space;

use super::Directory;
use crate::ServerError;
use crate::layout::{get, get_in, put};
use crate::transaction::Pending;

/// Keys of options in [`Space::Settings`] of the root organisation begin with this.
const PREFIX: &str = "gui/";
/// The longest value of an option, in bytes.
const MAX_TEXT: usize = 16 * 1024;
/// More links than anybody has.
const MAX_LINKS: usize = 200;

const THEMES: &[&str] = &[
    "veloci-light",
    "veloci-dark",
    "veloci-docs",
    "no-theme",
    "pink-light",
    "ncurses-light",
    "ncurses-dark",
    "github-dimmed-dark",
    "coolgray-dark",
    "midnight",
    "vscode-dark",
];
const LANGUAGES: &[(&str, &str)] = &[
    ("en", "English"),
    ("de", "Deutsch"),
    ("es", "Spanish"),
    ("por", "Portuguese"),
    ("fr", "French"),
    ("jp", "Japanese"),
    ("vi", "Vietnamese"),
];

pub(super) fn key(user: &UserName) -> Vec<u8> {
    format!("{PREFIX}{}", user.folded()).into_bytes()
}

/// A change of options: empty fields stay as they are.
pub type OptionsChange = SetGuiOptionsRequest;

/// The options of somebody who set none.
#[must_use]
pub fn default_options() -> SetGuiOptionsRequest {
    SetGuiOptionsRequest {
        theme: "veloci-light".into(),
        customizations: Some(GuiCustomizations { hunt_expiry_hours: 168, ..GuiCustomizations::default() }),
        ..SetGuiOptionsRequest::default()
    }
}

/// Links that everybody has who did not disable them.
fn common_links() -> Vec<GuiLink> {
    let link = |text: &str, url: &str, parameter: &str, encode: &str| GuiLink {
        text: text.into(),
        url: url.into(),
        r#type: "context".into(),
        parameter: parameter.into(),
        encode: encode.into(),
        ..GuiLink::default()
    };
    vec![
        link("Google", "https://www.google.com", "q", ""),
        link("VirusTotal", "https://www.virustotal.com/gui/search/", "", ""),
        link("CyberChef", "https://gchq.github.io/CyberChef/#", "input", "base64"),
    ]
}

impl Directory {
    /// The options of a user, with what everybody has.
    ///
    /// # Errors
    /// When storage fails.
    pub fn options(&self, user: &UserName) -> Result<SetGuiOptionsRequest, ServerError> {
        let stored: Option<SetGuiOptionsRequest> = get(self.engine().reader(), &OrgId::root(), Space::Settings, &key(user))?;
        let mut options = stored.unwrap_or_else(default_options);
        for common in common_links() {
            if !options.links.iter().any(|link| link.text == common.text) {
                options.links.push(common);
            }
        }
        options.links.retain(|link| !link.disabled);
        Ok(options)
    }

    /// Whether options can be set to that.
    ///
    /// # Errors
    /// [`ServerError::Invalid`] listing what can be.
    pub fn check_options(&self, change: &OptionsChange) -> Result<(), ServerError> {
        if !change.theme.is_empty() && !THEMES.contains(&change.theme.as_str()) {
            return Err(ServerError::invalid(format!("invalid theme {}: the themes are {}", clip(&change.theme), THEMES.join(", "))));
        }
        let known = |(code, name): &(&str, &str)| change.lang == *code || change.lang == *name;
        if !change.lang.is_empty() && !LANGUAGES.iter().any(known) {
            let codes: Vec<_> = LANGUAGES.iter().map(|(code, _)| *code).collect();
            return Err(ServerError::invalid(format!("invalid lang {}: the languages are {}", clip(&change.lang), codes.join(", "))));
        }
        if !change.org.is_empty() {
            let org: OrgId = change.org.parse().map_err(|_| ServerError::not_found("Org", clip(&change.org)))?;
            if !self.orgs()?.contains(&org) {
                return Err(ServerError::not_found("Org", org));
            }
        }
        let texts = [&change.options, &change.timezone, &change.default_password, &change.auth_redirect_template];
        let link = |link: &GuiLink| [&link.text, &link.url, &link.icon_url].into_iter().any(|text| text.len() > MAX_TEXT);
        if texts.into_iter().any(|text| text.len() > MAX_TEXT) || change.links.len() > MAX_LINKS || change.links.iter().any(link) {
            return Err(ServerError::invalid("an option is too long"));
        }
        let web = |link: &GuiLink| link.url.is_empty() || link.url.starts_with("https://") || link.url.starts_with("http://");
        if let Some(bad) = change.links.iter().find(|link| !web(link)) {
            return Err(ServerError::invalid(format!("the link {} must begin with https:// or http://", clip(&bad.text))));
        }
        Ok(())
    }

    /// Changes options of a user.
    ///
    /// # Errors
    /// As [`Directory::check_options`].
    pub fn set_options(
        &self,
        receipt: Receipt,
        user: &UserName,
        change: OptionsChange,
    ) -> Result<Pending<SetGuiOptionsRequest>, ServerError> {
        drop(receipt);
        self.check_options(&change)?;
        let key = key(user);
        Ok(Pending::submit(&**self.engine(), move |txn| {
            let stored: Option<SetGuiOptionsRequest> = get_in(txn, &OrgId::root(), Space::Settings, &key)?;
            let mut options = stored.unwrap_or_else(default_options);
            merge(&mut options, change);
            put(txn, &OrgId::root(), Space::Settings, &key, &options);
            Ok(options)
        }))
    }
}

fn merge(options: &mut SetGuiOptionsRequest, change: OptionsChange) {
    let text = |old: &mut String, new: String| {
        if !new.is_empty() {
            *old = new;
        }
    };
    text(&mut options.options, change.options);
    text(&mut options.theme, change.theme);
    text(&mut options.lang, change.lang);
    text(&mut options.timezone, change.timezone);
    text(&mut options.org, change.org);
    match change.default_password.as_str() {
        "-" => options.default_password.clear(),
        _ => text(&mut options.default_password, change.default_password),
    }
    options.default_downloads_lock |= change.default_downloads_lock;
    if change.customizations.is_some() {
        options.customizations = change.customizations;
    }
    for mut link in change.links {
        if link.method.is_empty() {
            "GET".clone_into(&mut link.method);
        }
        options.links.retain(|old| old.text != link.text);
        options.links.push(link);
    }
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_fields_of_a_change_stay_and_a_dash_clears_the_password() {
        let mut options = default_options();
        merge(&mut options, OptionsChange { lang: "fr".into(), default_password: "x".into(), ..OptionsChange::default() });
        assert_eq!((options.theme.as_str(), options.lang.as_str(), options.default_password.as_str()), ("veloci-light", "fr", "x"));
        merge(&mut options, OptionsChange { default_password: "-".into(), ..OptionsChange::default() });
        assert_eq!((options.lang.as_str(), options.default_password.as_str()), ("fr", ""));
    }

    #[test]
    fn a_link_replaces_the_one_with_its_text() {
        let mut options = default_options();
        for url in ["https://a", "https://b"] {
            let link = GuiLink { text: "A".into(), url: url.into(), ..GuiLink::default() };
            merge(&mut options, OptionsChange { links: vec![link], ..OptionsChange::default() });
        }
        assert_eq!(options.links.len(), 1);
        assert_eq!(options.links.first().map(|link| (link.url.as_str(), link.method.as_str())), Some(("https://b", "GET")));
    }
}
