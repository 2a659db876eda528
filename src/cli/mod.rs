//! The command line: one variant for each command, one file for each group. Each calls the library and
//! prints: data to standard output, messages to standard error.

mod adopt;
mod apply;
mod attempts;
mod audit;
mod bench;
mod bulk;
mod check;
pub mod config;
mod create;
mod dead_letters;
mod deliveries;
mod events;
mod exit;
mod follow;
mod gateway;
mod input;
mod limits;
mod listing;
mod live;
pub mod logging;
mod manual;
mod migrate;
mod moment;
mod once;
mod organizations;
mod pace;
mod print;
mod probes;
mod progress;
mod publish;
mod receive;
mod redrive;
mod relays;
mod replays;
mod run;
mod several;
mod signals;
mod status;
mod subscriptions;
mod systemd;
mod tail;
mod trace;
mod trial;
mod types;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use self::config::{Config, Sources};
use crate::admin::Operator;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::exit::Exit;

/// Wrong usage that is found after the arguments were parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(String);

/// Transactional outbox for PostgreSQL: commits events with your data and delivers them.
#[derive(Debug, Parser)]
#[command(
    name = "pgoutbox",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Arguments {
    /// Configuration file [default: pgoutbox.toml, if it exists].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the database; overrides `DATABASE_URL`. Other users can see arguments: prefer env:NAME
    /// or file:/path.
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// Name of the source, if the configuration has several databases (`[[source]]`).
    #[arg(long, global = true, value_name = "NAME")]
    source: Option<String>,
    /// Show times in UTC instead of this machine's time zone; JSON always has UTC.
    #[arg(long, global = true)]
    utc: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a demo: a private PostgreSQL, a shop that publishes orders, and receivers that fail now and
    /// then.
    Demo {
        /// Play one round, check it, and end.
        #[arg(long)]
        once: bool,
    },
    /// Create or update the schema `outbox`.
    Migrate(migrate::Migrate),
    /// Deliver events until SIGTERM or SIGINT; a second signal stops without draining. SIGHUP reads
    /// subscriptions and their secrets again.
    Run {
        /// Migrate before starting.
        #[arg(long)]
        migrate: bool,
        /// Deliver what is due, then end: for cron and tests. What waits for a later retry is left.
        #[arg(long)]
        once: bool,
    },
    /// Serve live clients and nothing else, until SIGTERM or SIGINT; a second signal stops at once. SIGHUP
    /// reads the configuration again.
    ///
    /// It serves /v1/ws, /v1/stream, /livez, /readyz and /metrics at http.listen, and delivers nothing. Its
    /// login must be a member of outbox_relay. It has the configuration of a relay and may run beside relays,
    /// on the same machine at another address, or without any. At the first signal clients are asked to come
    /// back after a while, and it waits for them for relay.drain.
    Gateway,
    /// Follow events as they are committed, through a relay or a gateway. Ends with Ctrl-C, and says how to
    /// continue.
    ///
    /// It comes back by itself when the connection is lost, and goes on where it was. It needs no database.
    Tail(tail::Tail),
    /// Check the configuration and, if the database answers, all subscriptions.
    Check {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show backlog, failures and state of each subscription.
    Status {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Take a copy of the outbox into use: a restored dump, a copied or upgraded cluster.
    Adopt(adopt::Adopt),
    /// Publish one event and print its id.
    Publish(publish::Publish),
    /// Print SQL for a database that receives events from the sink postgres or detects duplicates.
    Inbox {
        /// What it does anyway.
        #[arg(long, hide = true)]
        sql: bool,
    },
    /// Receive and print webhooks on this machine; can verify signatures, fail and delay.
    Receive(receive::Receive),
    /// List, show, create, test, export, apply, pause, resume and delete subscriptions.
    #[command(subcommand, visible_alias = "subs")]
    Subscriptions(subscriptions::Subscriptions),
    /// List, write and check event types: schemas of payloads by topic and version.
    #[command(subcommand)]
    Types(types::EventTypes),
    /// Limit how fast organizations are sent to, and list these limits.
    #[command(subcommand)]
    Organizations(organizations::Organizations),
    /// List, show, redrive and discard dead letters: deliveries that were given up.
    #[command(subcommand, visible_alias = "dlq")]
    DeadLetters(dead_letters::DeadLetters),
    /// List, retry and cancel deliveries that wait.
    #[command(subcommand)]
    Deliveries(deliveries::Deliveries),
    /// Send events of the log again to a subscription. Prints the id of the replay; relays do the work.
    Replay(replays::Start),
    /// List, pause, resume and cancel replays.
    #[command(subcommand)]
    Replays(replays::Replays),
    /// List and show events of the log.
    #[command(subcommand)]
    Events(events::Events),
    /// List attempts of deliveries, newest first: failures only, unless relay.attempt_log is "all".
    Attempts(attempts::Attempts),
    /// List who changed subscriptions, dead letters and waiting deliveries, newest first.
    Audit(audit::Audit),
    /// Say why an event was not delivered: for each subscription what became of it and what it waits for.
    Trace(trace::Trace),
    /// Measure how fast this machine delivers, on a private PostgreSQL, each figure with its floor.
    Bench(bench::Bench),
    /// Check that a running relay is ready, for container probes: exit code 0 or 1.
    Healthcheck,
    /// Explain a reason such as `timeout`, or all reasons.
    Explain {
        /// Code of the reason, as in dead letters, attempts and metrics.
        code: Option<String>,
    },
    /// Print completions for a shell.
    Completions {
        /// Name of the shell.
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command into a folder, for packages.
    #[command(hide = true)]
    Man {
        /// An existing folder.
        folder: PathBuf,
    },
}

/// Runs the command line, including the program's name. Returns the exit code.
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
            print::note!("pgoutbox: starting the runtime: {error}");
            return Exit::Failed.into();
        }
    };
    let ended = runtime.block_on(execute(arguments));
    // Do not wait for attempts that a second signal left in flight.
    runtime.shutdown_background();
    ended
        .unwrap_or_else(|error| {
            let exit = Exit::of(&error);
            if exit != Exit::Done {
                print::note!("pgoutbox: {}", exit::chain(&error));
            }
            exit
        })
        .into()
}

/// Parses the arguments.
///
/// # Errors
/// Also for `--help` and `--version`, which clap reports as errors.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    Arguments::from_arg_matches(&command().try_get_matches_from(arguments)?)
}

/// Executes the command.
pub(crate) async fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    if arguments.utc {
        moment::show_utc();
    }
    let sources = || {
        let mut sources = Sources::of_process(arguments.config.clone());
        sources.source.clone_from(&arguments.source);
        sources
            .flags
            .extend(arguments.database_url.clone().map(|url| ("database.url", "--database-url", url)));
        sources
    };
    let config = || Config::load(&sources(), crate::sinks::CONFIGURED);
    match arguments.command {
        Command::Demo { once } => crate::lab::demo::run(crate::lab::demo::Options { once }).await?,
        Command::Bench(options) => {
            // A thousand clients have two ends each in this process.
            limits::raise_descriptors();
            crate::lab::bench::run(options.into()).await?;
        }
        Command::Migrate(options) => return options.execute(config).await,
        Command::Run { migrate, once } => return run::run(&sources(), migrate, once).await,
        Command::Gateway => return gateway::run(&sources()).await,
        Command::Tail(options) => return options.execute(&sources()).await,
        Command::Check { json } => return check::check_each(&sources(), json).await,
        Command::Status { json } => {
            let config = config()?;
            status::status(&mut connect(&config).await?, &config, json).await?
        }
        Command::Adopt(options) => options.execute(&config()?).await?,
        Command::Publish(options) => return options.execute(async || connect(&config()?).await).await,
        Command::Inbox { sql: _ } => print::raw(crate::sinks::postgres::INBOX)?,
        Command::Receive(options) => return options.execute(&sources()).await,
        Command::Subscriptions(command) => return command.execute(config).await,
        Command::Types(command) => return command.execute(&config()?).await,
        Command::Organizations(command) => return command.execute(async || connect(&config()?).await).await,
        Command::DeadLetters(command) => return command.execute(async || connect(&config()?).await).await,
        Command::Deliveries(command) => return command.execute(async || connect(&config()?).await).await,
        Command::Replay(options) => return options.execute(config).await,
        Command::Replays(command) => return command.execute(async || connect(&config()?).await).await,
        Command::Events(command) => return command.execute(async || connect(&config()?).await).await,
        Command::Attempts(options) => options.execute(async || connect(&config()?).await).await?,
        Command::Audit(options) => options.execute(async || connect(&config()?).await).await?,
        Command::Trace(options) => return options.execute(async || connect(&config()?).await).await,
        Command::Healthcheck => return check::healthcheck(&check::http_of(&sources())?).await,
        Command::Explain { code } => check::explain(code.as_deref())?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "pgoutbox", &mut script);
            print::raw(&String::from_utf8_lossy(&script))?
        }
        Command::Man { folder } => manual::write(&command(), &folder)?,
    }
    Ok(Exit::Done)
}

fn command() -> clap::Command {
    let codes: String =
        Exit::ALL.iter().map(|(exit, meaning)| format!("\n  {:>2}  {meaning}", *exit as u8)).collect();
    Arguments::command().after_help(format!("Exit codes:{codes}\n"))
}

async fn connect(config: &Config) -> anyhow::Result<Operator> {
    Ok(Operator::connect(config.servers()?, config.database.pooler).await?)
}
