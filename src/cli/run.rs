//! `run`. The first signal that would end the process drains; a second one stops without
//! draining. SIGHUP reloads.

use std::time::Duration;

use crate::{
    cli::{
        config::{Config, Several, Sources},
        logging,
    },
    sinks,
    store::schema,
};
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use super::{
    Misuse,
    exit::Exit,
    follow::Followed,
    once::{self, Left},
    relays::Relays,
    several,
    signals::{self, Signals},
    systemd,
};

/// Runs a relay until a signal, or with `once` until nothing is due, then drains.
pub(super) async fn run(sources: &Sources, migrate_first: bool, once: bool) -> anyhow::Result<Exit> {
    if sources.source.is_none()
        && let Some(several) = Several::load(sources, sinks::CONFIGURED)?
    {
        if once {
            return Err(
                Misuse("run --once is for one source; choose it with --source NAME".to_owned()).into()
            );
        }
        return several::run(sources, several, migrate_first).await;
    }
    let mut config = Config::load(sources, sinks::CONFIGURED)?;
    if once {
        config.relay.retention.first_look = Duration::ZERO;
    }
    logging::init(&config.telemetry)?;
    let (mut signals, hangup) = (Signals::without_hangup()?, signals::hangup()?);
    let drain = CancellationToken::new();
    let longest = config.relay.drain;
    let (servers, pooler) = (config.servers()?, config.database.pooler);
    let environment = config.relay.environment.clone();
    let work = systemd::watched(work(sources, config, migrate_first, hangup, drain.clone()));
    tokio::pin!(work);
    let mut left = Left::Nothing;
    tokio::select! {
        ended = &mut work => return ended,
        () = signals.next() => {}
        due = once::until_idle(&servers, pooler, &environment), if once => left = due,
    }
    systemd::stopping(longest);
    drain.cancel();
    let deadline = crate::delivery::duration::format(longest);
    tracing::info!(%deadline, "draining; a second signal stops at once");
    tokio::select! {
        ended = &mut work => match (ended?, left) {
            (Exit::Done, Left::Nothing) => Ok(Exit::Done),
            (Exit::Done, Left::Fenced(why)) => {
                tracing::error!(why, "nothing was sent");
                Ok(Exit::Failed)
            }
            (Exit::Done, Left::Stuck(left)) => {
                tracing::warn!(left, "what is due does not get on; see `pgoutbox status`");
                Ok(Exit::Failed)
            }
            (ended, _) => Ok(ended),
        },
        () = signals.next() => {
            tracing::warn!(
                "stopped by a second signal; deliveries in flight are retried when their lease ends"
            );
            Ok(Exit::Unfinished)
        }
    }
}

async fn work(
    sources: &Sources,
    config: Config,
    migrate_first: bool,
    hangup: Signal,
    drain: CancellationToken,
) -> anyhow::Result<Exit> {
    for warning in config.warnings() {
        tracing::warn!(warning, "configuration warning");
    }
    // Read again after looking at the files, so that no change between the two is missed.
    let followed = Followed::of(&config).await;
    let config = Config::load(sources, sinks::CONFIGURED)?;
    // Listen first: a second relay on the same address must not start to work.
    let mut relays = Relays::new(sources, &config, followed, hangup, drain.clone()).await?;
    let built = async {
        if migrate_first {
            let applied = schema::run(&config.servers()?.find(false).await?).await?;
            tracing::info!(migrations = applied.len(), "migrated");
        }
        relays.build(&config).await
    };
    let first = tokio::select! {
        relay = built => relay?,
        () = drain.cancelled() => return Ok(Exit::Done),
    };
    let drained = relays.run(first, config).await;
    // Until here: probes are answered while the relay drains.
    relays.close().await;
    let Some(drained) = drained? else { return Ok(Exit::Done) };
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
