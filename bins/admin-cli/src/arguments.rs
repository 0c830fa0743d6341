//! The command line's grammar: verbs and flags as administrators know them from stock deployments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Administers a deployment: configurations, users, queries, proofs.
#[derive(Debug, Parser)]
#[command(name = "talon", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags that every verb knows.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// The configuration file; without it VELOCIRAPTOR_CONFIG names one.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The API client's configuration file; without it VELOCIRAPTOR_API_CONFIG names one.
    #[arg(short, long = "api_config", global = true, value_name = "FILE")]
    pub(crate) api_config: Option<PathBuf>,
    /// The organisation.
    #[arg(long, global = true, value_name = "ID")]
    pub(crate) org: Option<String>,
    /// Overrides one key of the configuration, as Frontend.bind_port=8443.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Says more on stderr.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Makes, shows and checks configurations.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Makes and shows users.
    #[command(subcommand)]
    User(UserVerb),
    /// Grants and shows what users may do.
    #[command(subcommand)]
    Acl(AclVerb),
    /// Closes parts of a running deployment, and opens them again.
    #[command(subcommand)]
    Lock(LockVerb),
    /// Runs queries: over the API with -a, else on this machine.
    Query(QueryArgs),
    /// Works with the language itself.
    #[command(subcommand)]
    Vql(VqlVerb),
    /// Lists, shows and verifies artifacts.
    Artifacts(ArtifactsArgs),
    /// Proves what happened.
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Checks, saves and restores the server's data.
    #[command(subcommand)]
    Store(StoreVerb),
    /// Runs query cases in the stock format and compares their output.
    Golden(GoldenArgs),
    /// Shows the version of this program.
    Version,
}

/// `config …`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Prints a complete new server configuration with its own authority.
    Generate {
        #[command(flatten)]
        patches: Patches,
    },
    /// Prints the configuration of agents.
    Client,
    /// Makes a certificate for a user and writes the configuration of an API client.
    #[command(name = "api_client")]
    ApiClient {
        /// The user's name.
        #[arg(long)]
        name: String,
        /// Roles; with them the user is made too. Replaces the roles that the user has.
        #[arg(long, value_delimiter = ',')]
        role: Vec<String>,
        /// The file to write.
        file: PathBuf,
    },
    /// Prints the configuration as programs see it.
    Show {
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        patches: Patches,
    },
    /// Says what is wrong with a configuration, or will be.
    Check,
    /// Prints the server configuration with new keys and certificates for the frontend and the gateway.
    #[command(name = "rotate_keys", alias = "rotate")]
    RotateKeys {
        /// Days that the new certificates are valid.
        #[arg(long, value_name = "DAYS")]
        validity: Option<u32>,
    },
    /// Prints the server configuration with new certificates for the same keys.
    #[command(name = "reissue_certs")]
    ReissueCerts {
        /// Days that the new certificates are valid.
        #[arg(long, value_name = "DAYS")]
        validity: Option<u32>,
    },
}

/// Merge patches.
#[derive(Debug, Args)]
pub(crate) struct Patches {
    /// A JSON merge patch (RFC 7396).
    #[arg(long, value_name = "JSON")]
    pub(crate) merge: Vec<String>,
    /// A file with a JSON merge patch, applied before those of --merge.
    #[arg(long = "merge_file", value_name = "FILE")]
    pub(crate) merge_file: Option<PathBuf>,
}

/// `user …`
#[derive(Debug, Subcommand)]
pub(crate) enum UserVerb {
    /// Makes a user, or gives one another password and other roles.
    Add {
        /// The user's name.
        user: String,
        /// The password; without one, a line from stdin.
        password: Option<String>,
        /// Roles, in place of those that the user has.
        #[arg(long, value_delimiter = ',', required = true)]
        role: Vec<String>,
    },
    /// Prints a user's record.
    Show {
        /// The user's name.
        user: String,
        /// With what is stored of the password.
        #[arg(long = "with_hashes")]
        with_hashes: bool,
    },
    /// Takes a user's policies away in one organisation, and the user with the last of them.
    Delete {
        /// The user's name.
        user: String,
    },
    /// Locks a user out, whatever the policies say.
    Lock {
        /// The user's name.
        user: String,
        /// Lets the user in again.
        #[arg(long)]
        off: bool,
    },
}

/// `acl …`
#[derive(Debug, Subcommand)]
pub(crate) enum AclVerb {
    /// Sets what a user may do, in place of what was.
    Grant {
        /// The user's name.
        user: String,
        /// A policy as JSON, such as {"collect_client": true}.
        #[arg(default_value = "{}")]
        policy: String,
        /// Roles.
        #[arg(long, value_delimiter = ',')]
        role: Vec<String>,
        /// Adds to what the user may do instead.
        #[arg(long)]
        merge: bool,
    },
    /// Prints a user's policy.
    Show {
        /// The user's name.
        user: String,
        /// With the permissions that the roles give.
        #[arg(long)]
        effective: bool,
    },
    /// Explains why a user may do something, or not.
    Why {
        /// The user's name.
        user: String,
        /// The permission, such as EXECVE.
        permission: String,
    },
    /// Prints who can reach administrator, or code on endpoints or the server, and by which shortest path.
    Escalations {
        /// Prints only what is not in this earlier output, and fails if there is any.
        #[arg(long = "fail-on-new", value_name = "FILE")]
        fail_on_new: Option<PathBuf>,
    },
    /// Checks assertions about policies.
    Test {
        /// YAML: a list of assertions.
        file: PathBuf,
    },
}

/// `lock …`
#[derive(Debug, Subcommand)]
pub(crate) enum LockVerb {
    /// Closes a user, a role, a client, an artifact, with --org an organisation, or everything, at once.
    Add {
        /// A user.
        #[arg(long)]
        user: Option<String>,
        /// Whoever has a role.
        #[arg(long)]
        role: Option<String>,
        /// A client, by its id.
        #[arg(long)]
        client: Option<String>,
        /// An artifact.
        #[arg(long)]
        artifact: Option<String>,
        /// Everything.
        #[arg(long)]
        all: bool,
        /// How long the lock holds: seconds, or as 90m, 12h, 7d; until it is removed when left out.
        #[arg(long, value_name = "DURATION", value_parser = seconds)]
        ttl: Option<u64>,
        /// Why; whoever is refused reads it.
        #[arg(long)]
        reason: String,
    },
    /// Prints the locks that hold.
    List,
    /// Removes a lock, or votes for that where it takes several administrators.
    Remove {
        /// The lock's id.
        id: String,
        /// A file with the unlock token.
        #[arg(long = "token_file", value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Makes an unlock token, to be kept offline.
    Token,
}

/// `query …`
#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// The queries, which share one scope.
    #[arg(required = true, value_name = "VQL")]
    pub(crate) queries: Vec<String>,
    /// The form of the rows.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    pub(crate) format: Format,
    /// A variable, NAME=VALUE.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Stops after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) timeout: u64,
    /// Rows in one message of the server.
    #[arg(long = "max_row", value_name = "ROWS", default_value_t = 1000, hide = true)]
    pub(crate) max_row: u64,
}

/// The form of rows on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One array for each query.
    Json,
    /// One object on each line.
    Jsonl,
    /// Comma separated, with a line of names.
    Csv,
    /// A table for people.
    Text,
}

/// `vql …`
#[derive(Debug, Subcommand)]
pub(crate) enum VqlVerb {
    /// Says whether a text is VQL, prints its canonical form, and says on stderr what will not work.
    Parse {
        /// A file, the text itself, or - for stdin.
        vql: String,
        /// A folder or zip file of artifacts that queries may refer to.
        #[arg(long, value_name = "DIR")]
        definitions: Vec<PathBuf>,
    },
    /// Prints a text in the house style.
    Reformat {
        /// A file, the text itself, or - for stdin.
        vql: String,
    },
    /// Lists the plugins and functions.
    List,
    /// Prints the reference of all plugins and functions.
    Export {
        /// The form of the reference.
        #[arg(long, value_enum, default_value_t = ReferenceFormat::Json)]
        format: ReferenceFormat,
    },
    /// Serves editors: speaks the language server protocol on stdin and stdout.
    Lsp {
        /// A folder or zip file of artifacts that queries may refer to.
        #[arg(long, value_name = "DIR")]
        definitions: Vec<PathBuf>,
    },
}

/// The form of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReferenceFormat {
    /// One array, for programs.
    Json,
    /// A page, for people.
    Markdown,
}

/// `artifacts …`
#[derive(Debug, Args)]
pub(crate) struct ArtifactsArgs {
    /// A folder or zip file of artifacts, beside the built-in ones.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) definitions: Vec<PathBuf>,
    #[command(subcommand)]
    pub(crate) verb: ArtifactsVerb,
}

/// The verbs of `artifacts`.
#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactsVerb {
    /// Lists the artifacts.
    List {
        /// A regular expression on the name.
        pattern: Option<String>,
    },
    /// Prints an artifact.
    Show {
        /// Its name.
        name: String,
    },
    /// Checks definitions, and says what they call that this program does not have.
    Verify {
        /// YAML files, folders or zip files of them; without any, those of --definitions.
        files: Vec<PathBuf>,
    },
}

/// `audit …`
#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Verifies the whole log offline, or one proof.
    Verify {
        /// A file of 'audit prove'; needs nothing but the log's public key.
        #[arg(long, value_name = "FILE", requires = "key")]
        proof: Option<PathBuf>,
        /// The log's public key, in place of the one beside the log.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// A checkpoint that was kept elsewhere and that the log must continue.
        #[arg(long, value_name = "FILE", conflicts_with = "proof")]
        checkpoint: Option<PathBuf>,
        /// The public key of a witness that has to have signed the checkpoint; may be repeated.
        #[arg(long, value_name = "FILE", requires = "checkpoint")]
        witness: Vec<PathBuf>,
        /// How many of the witnesses have to have signed; all of them when not given.
        #[arg(long, value_name = "N", requires = "witness")]
        quorum: Option<usize>,
    },
    /// Prints the newest checkpoint, to be kept elsewhere or signed by witnesses.
    Checkpoint,
    /// Says how long the log is and how far its copies are.
    Status,
    /// Writes the log as static files that any tlog-tiles client can follow, without the details of records.
    Export {
        /// The folder, which must be empty or not be there.
        folder: PathBuf,
    },
    /// Erases the details of a record for good, and records that; all proofs stay valid. The server must not be running.
    Redact {
        /// The record's number; the first is 0.
        index: u64,
        /// Why, for the record.
        #[arg(long)]
        reason: String,
    },
    /// Writes a proof that a record is in the log.
    Prove {
        /// The record's number; the first is 0.
        index: u64,
        /// The file to write, in place of stdout.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Prints the last records.
    Tail {
        /// How many; all with 0.
        #[arg(long, short = 'n', default_value_t = 20)]
        lines: u64,
        /// Goes on with records as they come.
        #[arg(long, short)]
        follow: bool,
        /// The form of the records.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

/// `store …`
#[derive(Debug, Subcommand)]
pub(crate) enum StoreVerb {
    /// Reads and verifies everything that is stored.
    Check,
    /// Writes everything to stdout, or to a file.
    Export {
        /// The file.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Takes everything in from an export, into an empty store.
    Import {
        /// The file.
        file: PathBuf,
    },
}

/// `golden …`
#[derive(Debug, Args)]
pub(crate) struct GoldenArgs {
    /// The folder with NAME.in.yaml and NAME.out.yaml.
    pub(crate) folder: PathBuf,
    /// A variable, NAME=VALUE.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// A regular expression on the name.
    #[arg(long, value_name = "RE")]
    pub(crate) filter: Option<String>,
}

/// Whole seconds, from a number of them or a duration such as `90m`, `12h`, `7d`.
fn seconds(text: &str) -> Result<u64, String> {
    let refused = || format!("{text:?} is no duration; write seconds, or as 90m, 12h, 7d");
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let (count, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(refused)?;
    let count: u64 = count.parse().map_err(|_| refused())?;
    let length = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(refused()),
    };
    count.checked_mul(length).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn durations_are_seconds_or_have_a_unit() {
        let read = |text: &str| super::seconds(text).ok();
        assert_eq!(["60", "90s", "90m", "12h", "7d"].map(read), [Some(60), Some(90), Some(5_400), Some(43_200), Some(604_800)]);
        assert_eq!(["", "h", "1w", "-1", "1.5h", "é", "99999999999999999d"].map(read), [None; 7]);
    }

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_fixed_command_lines_parse() {
        for line in [
            "talon config generate",
            "talon config generate --merge {} --merge {\"lockdown\":true} --merge_file f.json",
            "talon -c s.yaml config client --org O123",
            "talon -c s.yaml config api_client --name U --role administrator,api FILE",
            "talon -c s.yaml config show --json",
            "talon -c s.yaml config check",
            "talon config check -c s.yaml",
            "talon -c s.yaml config rotate_keys --validity 30",
            "talon -c s.yaml config reissue_certs",
            "talon -c s.yaml user add U PASSWORD --role reader",
            "talon -c s.yaml user show U",
            "talon -c s.yaml acl grant U --role reader",
            "talon -c s.yaml acl grant U {\"any_query\":true} --merge",
            "talon -c s.yaml acl show U --effective",
            "talon -c s.yaml acl why U EXECVE",
            "talon -c s.yaml acl escalations --fail-on-new baseline.json",
            "talon -c s.yaml acl test policies.yaml",
            "talon -c s.yaml user lock U --off",
            "talon -c s.yaml user delete U --org O123",
            "talon -a api.yaml lock add --user U --ttl 60 --reason R",
            "talon -a api.yaml lock add --org O123 --reason R",
            "talon -c s.yaml lock list",
            "talon -a api.yaml lock remove L.1 --token_file f",
            "talon lock token",
            "talon -a api.yaml query SELECT --format csv --org ID --env K=V --env L=W",
            "talon --api_config api.yaml query SELECT SELECT",
            "talon query SELECT --format text",
            "talon vql parse SELECT",
            "talon vql reformat @f.vql",
            "talon vql list",
            "talon vql export",
            "talon vql export --format markdown",
            "talon vql lsp --definitions pack",
            "talon artifacts list",
            "talon artifacts show Generic.Client.Info",
            "talon artifacts verify a.yaml b.yaml",
            "talon artifacts verify --definitions pack.zip",
            "talon artifacts --definitions pack list",
            "talon -c s.yaml audit verify",
            "talon audit verify --proof f --key k",
            "talon -c s.yaml audit prove 7 --output f",
            "talon -c s.yaml audit tail --format jsonl",
            "talon -c s.yaml store check",
            "talon -c s.yaml store export",
            "talon -c s.yaml store import f",
            "talon -c s.yaml --set Frontend.bind_port=1 config show",
            "talon golden cases --env srcDir=/x --filter ^array",
            "talon version",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn wrong_usage_is_refused_with_2() {
        for line in [
            "talon",
            "talon no-such-verb",
            "talon config",
            "talon config api_client FILE",
            "talon config api_client --name U",
            "talon user add U",
            "talon query",
            "talon query SELECT --format xml",
            "talon audit prove x",
            "talon audit verify --proof f",
            "talon --no-such-flag version",
        ] {
            assert_eq!(parse(line).map(|_| ()).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
