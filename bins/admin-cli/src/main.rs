//! `talon`: the administrator's command line. Parses arguments, calls the verb, turns its outcome into an exit code.

mod api;
mod arguments;
mod artifacts;
mod audit;
mod builtins;
mod config;
mod deployment;
mod golden;
mod language;
mod output;
mod query;
mod rights;
mod store;
mod users;

use std::process::ExitCode;

use clap::Parser;
use talon_config::{ConfigError, EXIT_UNUSABLE};

use arguments::{Arguments, Verb};

fn main() -> ExitCode {
    let Arguments { globals, verb } = Arguments::parse();
    output::log(globals.verbose);
    let outcome = match verb {
        Verb::Config(verb) => config::run(&globals, verb),
        Verb::User(verb) => users::user(&globals, verb),
        Verb::Acl(verb) => users::acl(&globals, verb),
        Verb::Lock(verb) => rights::lock(&globals, &verb),
        Verb::Query(query) => query::run(&globals, &query),
        Verb::Vql(verb) => language::run(verb),
        Verb::Artifacts(arguments) => artifacts::run(&arguments),
        Verb::Audit(verb) => audit::run(&globals, verb),
        Verb::Store(verb) => store::run(&globals, verb),
        Verb::Golden(arguments) => golden::run(&arguments),
        Verb::Version => output::version(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// One line on stderr that says what to do, and the exit code that scripts rely on.
fn report(error: &anyhow::Error) -> ExitCode {
    if output::is_broken_pipe(error) {
        return ExitCode::FAILURE;
    }
    eprintln!("talon: {error:#}");
    if error.chain().any(|cause| cause.is::<ConfigError>()) { ExitCode::from(EXIT_UNUSABLE) } else { ExitCode::FAILURE }
}
