//! `talon config …`: makes, shows and checks configurations.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use talon_config::{Configuration, Loader, MergePatch, Override, Secret, ServerConfig, Severity, check, generate};
use talon_crypto::SystemRng;
use talon_ids::{OrgId, UserName};
use talon_pki::{Identity, LeafProfile, UnixTime};

use crate::arguments::{ConfigVerb, Globals, Patches};
use crate::output::{print, print_line, write_private};
use crate::users;

pub(crate) fn run(globals: &Globals, verb: ConfigVerb) -> Result<()> {
    match verb {
        ConfigVerb::Generate { patches } => print(&generate(&read(&patches)?, &SystemRng, now())?.to_yaml()?),
        ConfigVerb::Client => client(globals),
        ConfigVerb::ApiClient { name, role, file } => api_client(globals, &name, &role, &file),
        ConfigVerb::Show { json, patches } => show(globals, json, &patches),
        ConfigVerb::Check => doctor(globals),
        ConfigVerb::RotateKeys { validity } => renew(globals, validity, true),
        ConfigVerb::ReissueCerts { validity } => renew(globals, validity, false),
    }
}

/// The configuration that the command line or the environment names.
pub(crate) fn load(globals: &Globals) -> Result<Configuration> {
    let overrides = globals.overrides.iter().map(|flag| Override::from_flag(flag)).collect::<Result<_, _>>()?;
    Ok(Loader::from_process().file(globals.config.clone()).overrides(overrides).load()?)
}

/// The same as a server's.
pub(crate) fn load_server(globals: &Globals) -> Result<ServerConfig> {
    Ok(ServerConfig::new(load(globals)?)?)
}

/// The organisation of `--org`.
pub(crate) fn org(globals: &Globals) -> Result<OrgId> {
    let text = globals.org.as_deref().unwrap_or("root");
    text.parse().with_context(|| "--org: an id begins with O, the root organisation is root")
}

/// The present, as certificates count it.
pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn read(patches: &Patches) -> Result<Vec<MergePatch>> {
    let mut all = Vec::new();
    if let Some(file) = &patches.merge_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("--merge_file: cannot read {}", file.display()))?;
        all.push(MergePatch::parse(&file.display().to_string(), &text)?);
    }
    for text in &patches.merge {
        all.push(MergePatch::parse("--merge", text)?);
    }
    Ok(all)
}

fn client(globals: &Globals) -> Result<()> {
    let server = load_server(globals)?;
    let org = org(globals)?;
    let nonce = if org.is_root() { None } else { Some(Secret::new(users::nonce_of(&server, &org)?)) };
    print(&server.client_config(nonce)?.configuration().to_yaml()?)
}

fn api_client(globals: &Globals, name: &str, roles: &[String], file: &Path) -> Result<()> {
    let server = load_server(globals)?;
    let user: UserName = name.parse().context("--name")?;
    let config = server.api_client(&user, &SystemRng, now())?;
    if !roles.is_empty() {
        users::set_roles(&server, &user, roles, &OrgId::root())?;
    }
    write_private(file, &config.to_yaml()?)?;
    print_line(&format!("Creating API client file on {}.", file.display()))?;
    if roles.is_empty() {
        print_line(&format!("No role added to user {user}. You will need to do this later using the 'acl grant' command."))?;
    }
    Ok(())
}

fn show(globals: &Globals, json: bool, patches: &Patches) -> Result<()> {
    let configuration = load(globals)?.merge(&read(patches)?)?;
    let configuration = if configuration.stock.frontend.is_some() {
        ServerConfig::new(configuration)?.configuration().clone()
    } else {
        talon_config::ClientConfig::new(configuration)?.configuration().clone()
    };
    if json { print(&configuration.to_json()?) } else { print(&configuration.to_yaml()?) }
}

/// Prints findings, the worst first; fails when there is an error among them.
fn doctor(globals: &Globals) -> Result<()> {
    let configuration = load(globals)?;
    let findings = check(&configuration, now());
    let mut errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    for finding in &findings {
        print_line(&format!("{}: {}", finding.severity.word(), finding.text))?;
    }
    for (severity, text) in on_this_machine(globals, &configuration) {
        errors = errors.saturating_add(usize::from(severity == Severity::Error));
        print_line(&format!("{}: {text}", severity.word()))?;
    }
    if errors > 0 {
        bail!("{errors} errors in {}", configuration.origin);
    }
    Ok(())
}

/// What the files of this machine add: who can read secrets, and whether named files are there.
fn on_this_machine(globals: &Globals, configuration: &Configuration) -> Vec<(Severity, String)> {
    let mut findings = Vec::new();
    let stock = &configuration.stock;
    let secrets = stock.frontend.is_some() || stock.ca.is_some();
    if let Some(file) = &globals.config
        && secrets
        && is_readable_by_others(file)
    {
        findings.push((Severity::Error, format!("{} can be read by everybody on this machine: chmod 600 {0}", file.display())));
    }
    let frontend = stock.frontend.clone().unwrap_or_default();
    for (key, path) in [
        ("Frontend.tls_certificate_filename", &frontend.tls_certificate_filename),
        ("Frontend.tls_private_key_filename", &frontend.tls_private_key_filename),
    ] {
        if !path.is_empty() && std::fs::File::open(path).is_err() {
            findings.push((Severity::Error, format!("{key}: {path} cannot be read")));
        }
    }
    findings
}

#[cfg(unix)]
fn is_readable_by_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
}

#[cfg(not(unix))]
fn is_readable_by_others(_: &Path) -> bool {
    false
}

/// Prints the server's configuration with new certificates for frontend and gateway, and with new keys if wanted.
fn renew(globals: &Globals, validity: Option<u32>, new_keys: bool) -> Result<()> {
    let server = load_server(globals)?;
    let mut configuration = server.configuration().clone();
    let validity = match validity {
        None => server.certificate_validity(),
        Some(days) => {
            configuration.stock.security.get_or_insert_default().certificate_validity_days = days.into();
            Duration::from_secs(u64::from(days).saturating_mul(86_400))
        }
    };
    let authority = server.authority()?;
    let issue = |name: &str, old: &Identity| -> Result<(String, Option<Secret>)> {
        let profile = LeafProfile::frontend(name).valid_for(validity);
        if new_keys {
            let identity = authority.issue(&profile, &SystemRng, now())?;
            Ok((identity.certificate().pem(), Some(Secret::new(identity.private_key_pem()?.as_str()))))
        } else {
            Ok((authority.certify(old.key().public(), &profile, &SystemRng, now())?.pem(), None))
        }
    };
    if let Some(frontend) = &mut configuration.stock.frontend {
        let (certificate, key) = issue(server.server_name(), server.frontend_identity())?;
        frontend.certificate = certificate;
        frontend.private_key = key.unwrap_or_else(|| frontend.private_key.clone());
    }
    if let Some(gui) = &mut configuration.stock.gui {
        let (certificate, key) = issue(server.gateway_name(), server.gateway_identity())?;
        gui.gw_certificate = certificate;
        gui.gw_private_key = key.unwrap_or_else(|| gui.gw_private_key.clone());
    }
    print(&configuration.to_yaml()?)
}
