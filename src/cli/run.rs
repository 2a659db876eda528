//! `run` and `migrate`. The first signal that would end the process drains; a second one stops without
//! draining. SIGHUP reloads.

use std::time::Duration;

use crate::{
    admin::Operator,
    cli::{config::Config, logging},
    http::{self, Server},
    relay::{Relay, telemetry::Telemetry},
    sink::{egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
    store::schema,
};
use anyhow::Context;
use sqlx::postgres::PgPoolOptions;
use tokio::{net::TcpListener, signal::unix::Signal};
use tokio_util::sync::CancellationToken;

use super::{
    exit::Exit,
    limits, print,
    signals::{self, Signals},
};

/// Timeout of getting a connection from the pool.
const ACQUIRE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Migrate {
    /// Print the pending migrations without applying them.
    #[arg(long, conflicts_with = "sql")]
    dry_run: bool,
    /// Print all migrations as SQL, for another migration runner. Needs no database.
    #[arg(long)]
    pub(super) sql: bool,
}

impl Migrate {
    pub(super) async fn execute(&self, config: &Config) -> anyhow::Result<()> {
        let options = config.connect_options()?;
        let mut operator = Operator::connect(&options, config.database.pooler).await?;
        let names = if self.dry_run {
            schema::pending(operator.connection()).await?
        } else {
            schema::run(&options).await?
        };
        for name in &names {
            print::line(name)?;
        }
        match (names.len(), self.dry_run) {
            (0, _) => print::note!("the schema outbox is up to date"),
            (_, true) => print::note!("pending; nothing was changed"),
            (_, false) => print::note!("applied; the schema outbox is up to date"),
        }
        Ok(())
    }
}

/// Runs a relay until a signal, then drains.
pub(super) async fn run(config: &Config, migrate_first: bool) -> anyhow::Result<Exit> {
    logging::init(&config.telemetry)?;
    let (mut signals, hangup) = (Signals::without_hangup()?, signals::hangup()?);
    let drain = CancellationToken::new();
    let work = work(config, migrate_first, hangup, drain.clone());
    tokio::pin!(work);
    tokio::select! {
        ended = &mut work => return ended,
        () = signals.next() => drain.cancel(),
    }
    let deadline = crate::delivery::duration::format(config.relay.drain);
    tracing::info!(%deadline, "draining; a second signal stops at once");
    tokio::select! {
        ended = &mut work => ended,
        () = signals.next() => {
            tracing::warn!(
                "stopped by a second signal; deliveries in flight are retried when their lease ends"
            );
            Ok(Exit::Unfinished)
        }
    }
}

async fn work(
    config: &Config,
    migrate_first: bool,
    mut hangup: Signal,
    drain: CancellationToken,
) -> anyhow::Result<Exit> {
    for warning in config.warnings() {
        tracing::warn!(warning, "configuration warning");
    }
    // Listen first: a second relay on the same address must not start to work.
    let listener = match config.http.listen {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("listening on {address} (http.listen)"))?,
        ),
        None => None,
    };
    let connections = limits::connections(limits::raise_descriptors(), config.database.pool_size);
    let egress = Egress { connections, ..config.egress.clone() };
    let telemetry = Telemetry::new();
    let built = async {
        let options = config.connect_options()?;
        if migrate_first {
            let applied = schema::run(&options).await?;
            tracing::info!(migrations = applied.len(), "migrated");
        }
        let pool = PgPoolOptions::new()
            .max_connections(config.database.pool_size)
            .acquire_timeout(ACQUIRE)
            .connect_lazy_with(options);
        let mut builder = Relay::builder(pool)
            .settings(config.relay.clone())
            .pooler(config.database.pooler)
            .allow_superuser(config.database.allow_superuser)
            .pool_size(config.database.pool_size)
            .sink(Webhook::new(&egress, Secrets::new(config.secrets.folder.clone()))?)
            .connections(&config.sinks)?
            .telemetry(telemetry.clone());
        if let Some(listen) = config.listen_options()? {
            builder = builder.listen(listen);
        }
        anyhow::Ok(builder.build().await?)
    };
    let relay = tokio::select! {
        relay = built => relay?,
        () = drain.cancelled() => return Ok(Exit::Done),
    };

    let health = relay.health();
    let reloading = async {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: reading every subscription and its secrets again");
            health.reload();
        }
    };
    let closed = CancellationToken::new();
    let server = Server {
        settings: config.http.clone(),
        readiness: relay.health(),
        telemetry,
        draining: drain.clone(),
    };
    let serving = async {
        match listener {
            Some(listener) => http::serve(listener, server, closed.clone()).await,
            None => Ok(()),
        }
    };
    let relaying = async {
        let drained = relay.run(drain).await;
        closed.cancel();
        drained
    };
    // Wait for both: probes are answered while the relay drains.
    let working = async { tokio::join!(relaying, serving) };
    let (drained, served) = tokio::select! {
        ended = working => ended,
        () = async { reloading.await; std::future::pending().await } => return Ok(Exit::Failed),
    };
    served.context("serving http")?;
    let drained = drained?;
    if drained.complete {
        tracing::info!("drained");
        return Ok(Exit::Done);
    }
    tracing::warn!(
        left = drained.left,
        "the drain ran out of time; unfinished deliveries were released and will be retried"
    );
    Ok(Exit::Unfinished)
}
