//! The command line: one variant per command, one file per group of commands. Each calls the library and prints.
//! Data goes to standard output, talk to standard error.

mod apply;
mod bench;
mod check;
pub mod config;
mod dead_letters;
mod exit;
pub mod logging;
mod moment;
mod print;
mod publish;
mod receive;
mod run;
mod status;
mod subscriptions;
mod trial;
mod types;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use self::config::{Config, Sources};
use crate::admin::Operator;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::exit::Exit;

/// Wrong usage that only shows after the arguments were parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(String);

/// Transactional outbox for PostgreSQL: commit events with your data, have them delivered.
#[derive(Debug, Parser)]
#[command(
    name = "pgoutbox",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Arguments {
    /// Configuration file [default: pgoutbox.toml, when it exists].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the database; wins over `DATABASE_URL`. Others on this machine can see arguments: prefer env:NAME or file:/path.
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show everything at work: a private PostgreSQL, a shop that sells, receivers that fail now and then.
    Demo {
        /// End after one round instead of at Ctrl-C.
        #[arg(long)]
        once: bool,
    },
    /// Create or update the schema `outbox`.
    Migrate(run::Migrate),
    /// Deliver events until SIGTERM or SIGINT; a second signal stops at once.
    Run {
        /// Migrate first.
        #[arg(long)]
        migrate: bool,
    },
    /// Check the configuration and, when the database answers, every subscription.
    Check {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// How each subscription stands.
    Status {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Publish one event and print its id.
    Publish(publish::Publish),
    /// What a database needs that receives events from the sink postgres, or wants to recognise repeats.
    Inbox {
        /// Print it as SQL, to be run there.
        #[arg(long, required = true)]
        sql: bool,
    },
    /// Receive webhooks on this machine: verifies signatures, and can misbehave.
    Receive(receive::Receive),
    /// List, show, test, pause, resume and remove subscriptions. They are created with outbox.subscribe(…) in SQL.
    #[command(subcommand)]
    Subscriptions(subscriptions::Subscriptions),
    /// List, write and check event types: what payloads look like, by topic and version.
    #[command(subcommand)]
    Types(types::EventTypes),
    /// List, show, redrive and discard deliveries that were given up.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// Measure how fast this machine delivers: each figure beside its floor, on a private PostgreSQL.
    Bench(bench::Bench),
    /// Ask a running relay whether it is ready: exit code 0 or 1, for container probes.
    Healthcheck,
    /// What a reason such as `timeout` means; without a code, all of them.
    Explain {
        /// The code, as in dead letters, attempts and metrics.
        code: Option<String>,
    },
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Does what the arguments say, the program's name first. Returns the exit code of the process.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match parse(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("pgoutbox: starting the runtime: {error}");
            return Exit::Failed.into();
        }
    };
    let ended = runtime.block_on(execute(arguments));
    // After a second signal there may be attempts in flight: they are not waited for.
    runtime.shutdown_background();
    ended
        .unwrap_or_else(|error| {
            let exit = Exit::of(&error);
            if exit != Exit::Done {
                eprintln!("pgoutbox: {}", exit::chain(&error));
            }
            exit
        })
        .into()
}

/// What was typed.
///
/// # Errors
/// Also for `--help` and `--version`, as clap has it.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    Arguments::from_arg_matches(&command().try_get_matches_from(arguments)?)
}

/// Does what was asked.
pub(crate) async fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    let sources = || {
        let mut sources = Sources::of_process(arguments.config.clone());
        sources
            .flags
            .extend(arguments.database_url.clone().map(|url| ("database.url", "--database-url", url)));
        sources
    };
    let config = || Config::load(&sources(), crate::sinks::CONFIGURED);
    match arguments.command {
        Command::Demo { once } => crate::lab::demo::run(crate::lab::demo::Options { once }).await?,
        Command::Bench(options) => crate::lab::bench::run(options.into()).await?,
        Command::Migrate(options) if options.sql => print::raw(&crate::store::schema::script())?,
        Command::Migrate(options) => options.execute(&config()?).await?,
        Command::Run { migrate } => return run::run(&config()?, migrate).await,
        Command::Check { json } => return check::check(&config()?, json).await,
        Command::Status { json } => status::status(&mut connect(&config()?).await?, json).await?,
        Command::Publish(options) => options.execute(async || connect(&config()?).await).await?,
        Command::Inbox { sql: _ } => print::raw(crate::sinks::postgres::INBOX)?,
        Command::Receive(options) => return options.execute(&sources()).await,
        Command::Subscriptions(command) => return command.execute(config).await,
        Command::Types(command) => return command.execute(&config()?).await,
        Command::DeadLetters(command) => return command.execute(async || connect(&config()?).await).await,
        Command::Healthcheck => return check::healthcheck(&config()?).await,
        Command::Explain { code } => check::explain(code.as_deref())?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "pgoutbox", &mut script);
            print::raw(&String::from_utf8_lossy(&script))?
        }
    }
    Ok(Exit::Done)
}

fn command() -> clap::Command {
    let codes: String =
        Exit::ALL.iter().map(|(exit, meaning)| format!("\n  {:>2}  {meaning}", *exit as u8)).collect();
    Arguments::command().after_help(format!("Exit codes:{codes}\n"))
}

async fn connect(config: &Config) -> anyhow::Result<Operator> {
    Ok(Operator::connect(&config.connect_options()?, config.database.pooler).await?)
}
