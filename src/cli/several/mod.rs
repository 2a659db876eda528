//! `run` with `[[source]]`: a relay for each of several databases, in one process. They share its address,
//! its threads and limits (`relay/shared.rs`), and nothing else: one whose database is away is tried again,
//! and the others do not wait for it.
//!
//! `one.rs` keeps the relay of one source running, `place.rs` says how it stands.

mod one;
mod place;

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use self::{
    one::{News, One},
    place::{All, Place},
};
use super::{
    config::{Config, Named, Several, Sources},
    exit::Exit,
    limits, live, logging,
    probes::Probes,
    signals::{self, Signals},
    systemd,
};
use crate::{
    delivery::duration,
    http::{Server, Source, v1::Operators},
    relay::{Drained, Shared, telemetry::Telemetry},
    sink::secret::Secrets,
};

/// What the process knows of a source.
struct Known {
    name: String,
    config: Config,
    place: Place,
    telemetry: Arc<Telemetry>,
    /// Its first start has succeeded or failed.
    tried: bool,
}

/// Runs a relay for each source until a signal, then drains all of them at once.
pub(super) async fn run(sources: &Sources, several: Several, migrate: bool) -> anyhow::Result<Exit> {
    logging::init(&several.common.telemetry)?;
    let (mut signals, hangup) = (Signals::without_hangup()?, signals::hangup()?);
    let drain = CancellationToken::new();
    let longest = several.each.iter().map(|one| one.config.relay.drain).max().unwrap_or(Duration::ZERO);
    let work = systemd::watched(work(sources, several, migrate, hangup, drain.clone()));
    tokio::pin!(work);
    tokio::select! {
        ended = &mut work => return ended,
        () = signals.next() => {}
    }
    systemd::stopping(longest);
    drain.cancel();
    let deadline = duration::format(longest);
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
    sources: &Sources,
    several: Several,
    migrate: bool,
    mut hangup: Signal,
    drain: CancellationToken,
) -> anyhow::Result<Exit> {
    let Several { common, each } = several;
    let for_all = common.warnings();
    for warning in &for_all {
        tracing::warn!(warning, "configuration warning");
    }
    for Named { name, config } in &each {
        for warning in config.warnings().into_iter().filter(|warning| !for_all.contains(warning)) {
            tracing::warn!(source = name, warning, "configuration warning");
        }
    }
    // Listen first: a second process on the same address must not start to work.
    let apart = live::Apart::start()?;
    let mut probes = Probes::listen(&common.http, apart.handle().clone()).await?;
    let descriptors = limits::raise_descriptors().map(|all| all / each.len().max(1));
    let shared = Shared::new(common.relay.permits);
    let (hangups, heard) = watch::channel(());
    let (news, mut inbox) = mpsc::channel(each.len().max(1));
    let mut known: Vec<Known> = Vec::with_capacity(each.len());
    let mut running = FuturesUnordered::new();
    for (number, named) in each.into_iter().enumerate() {
        let (place, telemetry) = (Place::new(), Telemetry::of_source(&named.name));
        let span = tracing::error_span!("relay", source = %named.name);
        let one = One {
            number,
            name: named.name.clone(),
            sources: sources.clone(),
            secrets: Secrets::new(named.config.secrets.folder.clone()),
            config: named.config.clone(),
            descriptors,
            shared: shared.clone(),
            place: place.clone(),
            telemetry: telemetry.clone(),
            hangups: heard.clone(),
            news: news.clone(),
            drain: drain.clone(),
            migrate,
        };
        running.push(one.keep().instrument(span));
        known.push(Known { name: named.name, config: named.config, place, telemetry, tried: false });
    }
    drop(news);
    answer(&mut probes, &common, &known, &drain)?;
    let (failed, mut is_ready) = (probes.failed(), false);
    let mut drained = Drained { complete: true, left: 0 };
    loop {
        tokio::select! {
            ended = running.next() => match ended {
                Some(of_one) => {
                    drained.complete &= of_one.complete;
                    drained.left += of_one.left;
                }
                None => break,
            },
            Some(News { of, fresh }) = inbox.recv() => {
                let Some(one) = known.get_mut(of) else { continue };
                one.tried = true;
                if let Some(fresh) = fresh {
                    one.config = *fresh;
                    answer(&mut probes, &common, &known, &drain)?;
                }
                let works = known.iter().any(|one| one.place.is_running());
                if !is_ready && works && known.iter().all(|one| one.tried) {
                    is_ready = true;
                    systemd::ready();
                }
            }
            Some(()) = hangup.recv() => {
                tracing::info!("SIGHUP: reading every subscription and its secrets again");
                hangups.send_replace(());
                if is_ready {
                    systemd::reloading();
                    systemd::ready();
                }
            }
            () = failed.cancelled(), if !drain.is_cancelled() => {
                drain.cancel();
                while running.next().await.is_some() {}
                bail!("serving http ended; the log says why");
            }
        }
    }
    // Until here: probes are answered while relays drain.
    probes.close().await;
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

/// Serves probes, metrics and the API of all sources, as they are configured now.
fn answer(
    probes: &mut Probes,
    common: &Config,
    known: &[Known],
    drain: &CancellationToken,
) -> anyhow::Result<()> {
    let mut sources = Vec::with_capacity(known.len());
    for one in known {
        let operators = Operators::new(
            one.config.servers()?,
            one.config.database.pooler,
            one.config.relay.environment.clone(),
        );
        let server = server(common, one.place.clone(), one.telemetry.clone(), drain, Some(operators));
        sources.push(Source { name: one.name.clone(), server });
    }
    let places = known.iter().map(|one| (one.name.clone(), one.place.clone())).collect();
    let all = server(common, All::new(places), Telemetry::new(), drain, None);
    probes.answer_all(all, sources)
}

fn server<R>(
    common: &Config,
    readiness: R,
    telemetry: Arc<Telemetry>,
    drain: &CancellationToken,
    operators: Option<Operators>,
) -> Server<R> {
    Server {
        settings: common.http.clone(),
        readiness,
        telemetry,
        draining: drain.clone(),
        room: None,
        clients: TaskTracker::new(),
        operators,
    }
}
