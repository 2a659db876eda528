//! `migrate`: applies, lists or prints migrations.

use crate::{
    admin::Operator,
    cli::config::Config,
    store::schema::{self, Status},
};

use super::{Misuse, exit::Exit, print};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Migrate {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print the pending migrations without applying them.
    #[arg(long, conflicts_with = "sql")]
    dry_run: bool,
    /// Print all migrations as SQL, for another migration runner. Needs no database.
    #[arg(long)]
    sql: bool,
    /// With --sql: only the migrations from this number on.
    #[arg(long, requires = "sql", value_name = "NUMBER")]
    from: Option<i64>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say which migrations are pending. Ends with 1 when the schema is behind this program.
    Status {
        /// Print one JSON object on one line.
        #[arg(long)]
        json: bool,
    },
}

impl Migrate {
    pub(super) async fn execute(
        self,
        config: impl FnOnce() -> Result<Config, super::config::Error>,
    ) -> anyhow::Result<Exit> {
        if self.sql {
            print::raw(&self.script()?)?;
            return Ok(Exit::Done);
        }
        let config = config()?;
        let servers = config.servers()?;
        let mut operator = Operator::connect(&servers, config.database.pooler).await?;
        if let Some(Command::Status { json }) = self.command {
            return show(&schema::status(operator.connection()).await?, json);
        }
        let names = if self.dry_run {
            schema::pending(operator.connection()).await?
        } else {
            schema::run(&servers.find(false).await?).await?
        };
        for name in &names {
            print::line(name)?;
        }
        match (names.len(), self.dry_run) {
            (0, _) => print_fit(&schema::status(operator.connection()).await?),
            (_, true) => print::note!("pending; nothing was changed"),
            (_, false) => print::note!("applied; the schema outbox is up to date"),
        }
        Ok(Exit::Done)
    }

    fn script(&self) -> Result<String, Misuse> {
        let newest = schema::newest();
        match self.from {
            Some(from) if from < 1 || from > newest => {
                Err(Misuse(format!("--from: {from} is no migration; they are 1 to {newest}")))
            }
            from => Ok(schema::script(from)),
        }
    }
}

fn show(status: &Status, json: bool) -> anyhow::Result<Exit> {
    if json {
        print::json([status])?;
    } else {
        for name in &status.pending {
            print::line(name)?;
        }
    }
    if status.pending.is_empty() {
        print_fit(status);
        return Ok(Exit::Done);
    }
    print::note!("{} pending; run `pgoutbox migrate`", status.pending.len());
    Ok(Exit::Failed)
}

fn print_fit(status: &Status) {
    if status.applied > status.known {
        print::note!(
            "the schema outbox is newer (migration {}) than this program (migration {}), which may use it",
            status.applied,
            status.known
        );
    } else {
        print::note!("the schema outbox is up to date");
    }
}
