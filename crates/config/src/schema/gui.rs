//! The web interface and who may log in.

use std::collections::BTreeMap;

use crate::Secret;
use crate::section::section;

section! {
    /// The web interface.
    Gui {
        /// The address.
        bind_address: String,
        /// The port.
        bind_port: u32,
        /// The gateway's certificate, in PEM.
        gw_certificate: String,
        /// Its private key.
        gw_private_key: Secret,
        /// Where users reach it; ends in `/app/index.html`.
        public_url: String,
        /// Routes to other servers.
        reverse_proxy: Vec<ReverseProxy>,
        /// Links in the side bar and in context menus.
        links: Vec<GuiLink>,
        /// Users that the first start makes.
        initial_users: Vec<InitialUser>,
        /// Unused.
        artifact_search_filter: String,
        /// Who may log in.
        authenticator: Option<Authenticator>,
        /// Whether TLS ends before this server.
        use_plain_http: bool,
        /// What all URLs begin with.
        base_path: String,
        /// Organisations that the first start makes.
        initial_orgs: Vec<InitialOrg>,
        /// Networks that may connect; all when empty.
        allowed_cidr: Vec<String>,
        /// The header with a user's address.
        forwarded_proxy_header: String,
        /// Origins that may send forms.
        trusted_origins: Vec<String>,
    }
}

section! {
    /// A route to another server.
    ReverseProxy {
        /// The path here.
        route: String,
        /// The URL there.
        url: String,
        /// Whether users must be logged in.
        require_auth: bool,
    }
}

section! {
    /// A link.
    GuiLink {
        /// Its text.
        text: String,
        /// Where it leads.
        url: String,
        /// Its icon.
        icon_url: String,
        /// `sidebar` or `context`.
        "type" => kind: String,
        /// Whether it opens a tab.
        new_tab: bool,
        /// How the value is encoded.
        encode: String,
        /// The parameter that gets the value.
        parameter: String,
        /// `GET` or `POST`.
        method: String,
        /// Whether it hides the built-in link of the same text.
        disabled: bool,
    }
}

section! {
    /// A user that the first start makes.
    InitialUser {
        /// The name.
        name: String,
        /// Hexadecimal SHA-256 of salt and password.
        password_hash: Secret,
        /// Hexadecimal salt.
        password_salt: Secret,
    }
}

section! {
    /// An organisation that the first start makes.
    InitialOrg {
        /// The id; made up when empty.
        org_id: String,
        /// The name.
        name: String,
        /// The agents' secret; made up when empty.
        nonce: Secret,
    }
}

section! {
    /// Who may log in.
    Authenticator {
        /// `basic`, `google`, `github`, `azure`, `oidc`, `saml`, `certs` or `multi`.
        "type" => kind: String,
        /// The OIDC issuer.
        oidc_issuer: String,
        /// The OAuth client's id.
        oauth_client_id: String,
        /// The OAuth client's secret.
        oauth_client_secret: Secret,
        /// The Azure tenant.
        tenant: String,
        /// The SAML certificate.
        saml_certificate: String,
        /// Its private key.
        saml_private_key: Secret,
        /// The identity provider's metadata.
        saml_idp_metadata_url: String,
        /// The root URL.
        saml_root_url: String,
        /// The attribute with the user's name.
        saml_user_attribute: String,
        /// Roles of new users.
        saml_user_roles: Vec<String>,
        /// Whether the provider may start a login.
        saml_allow_idp_initiated: bool,
        /// The choices of `multi`.
        sub_authenticators: Vec<Authenticator>,
        /// The name that is shown.
        oidc_name: String,
        /// The icon that is shown.
        avatar: String,
        /// Minutes of a session; 1440 when not set.
        default_session_expiry_min: u64,
        /// Where users go who are not logged in.
        auth_redirect_template: String,
        /// Roles of users with a certificate that nobody made.
        default_roles_for_unknown_user: Vec<String>,
        /// Further parameters of the request.
        oidc_auth_url_params: BTreeMap<String, String>,
        /// What claims mean.
        claims: Option<OidcClaims>,
        /// Whether claims are logged.
        oidc_debug: bool,
        /// Whether users are not pinned to the provider's id.
        disable_email_to_sub_pin: bool,
    }
}

section! {
    /// What OIDC claims mean.
    OidcClaims {
        /// The claim with the user's name.
        username: String,
        /// The claim with the roles.
        roles: String,
        /// Role claims to roles and permissions here.
        role_map: BTreeMap<String, RoleClaims>,
        /// Whether unverified addresses are accepted.
        allow_unverified_email: bool,
        /// Whether claims replace the policy.
        override_acls: bool,
    }
}

section! {
    /// What a role claim gives.
    RoleClaims {
        /// Roles.
        roles: Vec<String>,
        /// Permissions.
        permissions: Vec<String>,
    }
}
