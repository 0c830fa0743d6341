//! The configuration's schema: every key of stock configurations by its own name, and Talon's own settings.
//!
//! Zero means "not set", as in stock files. Sections are `Option`s: absent and empty are two things.

use std::collections::BTreeMap;

use crate::section::section;

mod client;
mod gui;
mod policy;
mod server;
mod talon;

pub use client::{Client, CryptoConfig, DarwinInstaller, LocalBuffer, ProxyConfig, WindowsInstaller};
pub use gui::{Authenticator, Gui, GuiLink, InitialOrg, InitialUser, OidcClaims, ReverseProxy, RoleClaims};
pub use policy::{Defaults, Security};
pub use server::{
    Api, ApiClientConfig, Ca, Datastore, DynDns, Frontend, FrontendResources, LogRotation, Logging, MinionOverrides, Monitoring,
};
pub use talon::{TalonAgent, TalonAudit, TalonServer, TalonSettings};

/// A part of the configuration that is read and written but has no meaning here.
pub type Opaque = serde_json::Value;

section! {
    /// A configuration file's first document: of a server, of an agent, or of both.
    Config {
        /// The program that wrote the file.
        version: Option<Version>,
        /// The agent, and what servers must agree with it about.
        "Client" => client: Option<Client>,
        /// The gRPC listener.
        "API" => api: Option<Api>,
        /// The web interface.
        "GUI" => gui: Option<Gui>,
        /// The authority's private key; may be kept elsewhere.
        "CA" => ca: Option<Ca>,
        /// The listener for agents.
        "Frontend" => frontend: Option<Frontend>,
        /// Further frontends.
        "ExtraFrontends" => extra_frontends: Vec<Frontend>,
        /// Where data is stored.
        "Datastore" => datastore: Option<Datastore>,
        /// Deprecated and ignored.
        "Writeback" => writeback: Opaque,
        /// Deprecated and ignored.
        "Mail" => mail: Opaque,
        /// Log files.
        "Logging" => logging: Option<Logging>,
        /// What further frontends have differently.
        "Minion" => minion: Option<MinionOverrides>,
        /// Runtime only.
        verbose: bool,
        /// Not empty: certificates come from an ACME authority and are cached in this directory.
        autocert_cert_cache: String,
        /// The metrics listener.
        "Monitoring" => monitoring: Option<Monitoring>,
        /// A client of the API.
        api_config: Option<ApiClientConfig>,
        /// What a repacked program runs without arguments.
        autoexec: Option<AutoExec>,
        /// `windows` turns on the checks for Windows paths.
        server_type: String,
        /// Hides the names of queries from agents.
        obfuscation_nonce: crate::Secret,
        /// Behaviour that can be tuned.
        defaults: Option<Defaults>,
        /// Deprecated and ignored.
        analysis_target: Opaque,
        /// Where accessors look instead.
        remappings: Vec<Remapping>,
        /// Runtime only.
        org_id: String,
        /// Runtime only.
        org_name: String,
        /// Runtime only.
        debug_mode: bool,
        /// Runtime only.
        services: Opaque,
        /// Restrictions.
        security: Option<Security>,
        /// Whether the server starts locked down.
        lockdown: bool,
    }
}

section! {
    /// A program's version.
    Version {
        /// The program's name.
        name: String,
        /// What the program is.
        description: String,
        /// The semantic version.
        version: String,
        /// The source revision.
        commit: String,
        /// When it was built, RFC 3339.
        build_time: String,
        /// When it was installed, in unix seconds.
        install_time: u64,
        /// Where it was built.
        ci_build_url: String,
        /// The compiler.
        compiler: String,
        /// The operating system, as `linux`.
        system: String,
        /// The processor, as `amd64`.
        architecture: String,
    }
}

section! {
    /// What a program with an embedded configuration runs.
    AutoExec {
        /// The arguments.
        argv: Vec<String>,
        /// Artifacts that count as built-in.
        artifact_definitions: Vec<Opaque>,
    }
}

section! {
    /// One rule of where accessors look instead.
    Remapping {
        /// The kind of rule.
        "type" => kind: String,
        /// The source.
        from: Option<MountPoint>,
        /// The place where the source appears.
        on: Option<MountPoint>,
        /// Permissions of an impersonated system.
        permissions: Vec<String>,
        /// Operating system of an impersonated system.
        os: String,
        /// Host name of an impersonated system.
        hostname: String,
        /// Environment of an impersonated system.
        env: Vec<BTreeMap<String, String>>,
        /// Functions that are not there.
        disabled_functions: Vec<String>,
        /// Plugins that are not there.
        disabled_plugins: Vec<String>,
        /// What the rule is for.
        description: String,
        /// VQL that runs first.
        scope: String,
    }
}

section! {
    /// One end of a remapping.
    MountPoint {
        /// The accessor.
        accessor: String,
        /// The path.
        prefix: String,
        /// The kind of path.
        path_type: String,
    }
}
