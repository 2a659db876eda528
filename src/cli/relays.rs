//! The relays of a process: one, and the next when a file has changed that its connections depend on.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use tokio::signal::unix::Signal;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    check,
    config::{Config, Sources},
    exit::{self, Exit},
    follow::{Change, Followed},
    limits, live,
    probes::Probes,
    systemd,
};
use crate::{
    admin::Operator,
    http::{Server, v1::Operators},
    live::Gateway,
    relay::{Builder, Drained, Health, Relay, telemetry::Telemetry},
    sink::{egress::Egress, secret::Secrets},
    sinks::{self, webhook::Webhook},
};

/// Interval of trying to start again after a file has changed.
const AGAIN: Duration = Duration::from_secs(1);

/// What outlives a relay of this process.
pub(super) struct Relays<'s> {
    sources: &'s Sources,
    followed: Followed,
    hangup: Signal,
    drain: CancellationToken,
    probes: Probes,
    /// Serves live clients and `http.listen`.
    apart: live::Apart,
    /// Files that the process may have open; none: no limit is known.
    descriptors: Option<usize>,
    secrets: Secrets,
    telemetry: Arc<Telemetry>,
}

impl<'s> Relays<'s> {
    /// Listens for probes; the relays drain when `drain` is cancelled.
    pub(super) async fn new(
        sources: &'s Sources,
        config: &Config,
        followed: Followed,
        hangup: Signal,
        drain: CancellationToken,
    ) -> anyhow::Result<Self> {
        let apart = live::Apart::start()?;
        Ok(Self {
            sources,
            followed,
            hangup,
            drain,
            probes: Probes::listen(&config.http, apart.handle().clone()).await?,
            apart,
            descriptors: limits::raise_descriptors(),
            secrets: Secrets::new(config.secrets.folder.clone()),
            telemetry: Telemetry::new(),
        })
    }

    /// A relay with this configuration.
    pub(super) async fn build(&self, config: &Config) -> anyhow::Result<Relay> {
        let builder = builder(config, self.descriptors, &self.secrets, &self.telemetry)?;
        Ok(builder.build().await?)
    }

    /// Serves live clients from the database of this configuration; none: nobody could reach them.
    fn gateway(&self, config: &Config, relay: &Relay) -> anyhow::Result<Option<Gateway>> {
        if !config.realtime.enabled || config.http.listen.is_none() {
            return Ok(None);
        }
        let connection = live::connection(config, config.relay.name.clone())?;
        let _entered = self.apart.handle().enter();
        live::start(config, connection, Some(relay.news()), self.telemetry.clone(), self.descriptors)
            .map(Some)
    }

    /// Runs a relay, and the next one when connections need another, until the last has drained. None if
    /// there was no relay when the drain began.
    pub(super) async fn run(
        &mut self,
        mut relay: Relay,
        mut config: Config,
    ) -> anyhow::Result<Option<Drained>> {
        loop {
            let health = relay.health();
            let gateway = self.gateway(&config, &relay)?;
            self.probes.answer(Server {
                settings: config.http.clone(),
                readiness: relay.health(),
                telemetry: self.telemetry.clone(),
                draining: self.drain.clone(),
                room: gateway.as_ref().map(|gateway| gateway.room().clone()),
                clients: TaskTracker::new(),
                operators: Some(Operators::new(
                    config.servers()?,
                    config.database.pooler,
                    config.relay.environment.clone(),
                )),
            })?;
            let stop = self.drain.child_token();
            let running = live::beside(relay.run(stop.clone()), gateway, stop.clone());
            tokio::pin!(running);
            systemd::ready();
            let failed = self.probes.failed();
            let fresh = tokio::select! {
                drained = &mut running => return Ok(Some(drained?)),
                fresh = self.follow(&health) => Some(fresh),
                () = failed.cancelled() => None,
            };
            // Attempts in flight end as they began; the rest is given back, and is owed to the next relay.
            stop.cancel();
            let drained = running.await?;
            if self.drain.is_cancelled() {
                return Ok(Some(drained));
            }
            config = match fresh {
                Some(fresh) => fresh,
                None => bail!("serving http ended; the log says why"),
            };
            match self.next(config).await {
                Some((next, its)) => (relay, config) = (next, its),
                None => return Ok(None),
            }
        }
    }

    /// Follows secrets and SIGHUP, until a file has changed that connections depend on. Returns what is
    /// configured then. What cannot be used is reported, and the relay goes on as it is.
    async fn follow(&mut self, health: &Health) -> Config {
        loop {
            let change = tokio::select! {
                change = self.followed.changed(&self.secrets) => change,
                Some(()) = self.hangup.recv() => {
                    tracing::info!("SIGHUP: reading every subscription and its secrets again");
                    systemd::reloading();
                    health.reload();
                    systemd::ready();
                    continue;
                }
            };
            let files = match change {
                Change::Secrets(files) => {
                    let files = files.join(", ");
                    tracing::info!(files, "secrets have changed, the relay follows them");
                    self.followed.accept();
                    health.reload();
                    continue;
                }
                Change::Connections(files) => files.join(", "),
            };
            match self.usable().await {
                Ok(config) => {
                    tracing::info!(files, "files have changed, the relay follows them");
                    // It may refer to other files now. What is configured is read again after this.
                    self.followed = Followed::of(&config).await;
                    return config;
                }
                // A password may be changed in its file before it is in the database.
                Err(error) if matches!(Exit::of(&error), Exit::Unreachable | Exit::Denied) => {
                    let error = exit::chain(&error);
                    tracing::warn!(files, error, "files have changed and the database refuses, retrying");
                }
                Err(error) => {
                    let error = exit::chain(&error);
                    tracing::warn!(
                        files,
                        error,
                        "files have changed and cannot be used; the relay goes on without"
                    );
                    self.followed.refuse();
                }
            }
        }
    }

    /// What is configured now, if the database accepts it and every sink can be made with it.
    async fn usable(&self) -> anyhow::Result<Config> {
        let config = Config::load(self.sources, sinks::CONFIGURED)?;
        usable(&config).await?;
        Ok(config)
    }

    /// The next relay, as soon as it can be built, and what it is configured with; none if the drain begins
    /// before. Files may change again meanwhile.
    async fn next(&self, mut config: Config) -> Option<(Relay, Config)> {
        let mut tries = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                _ = tries.tick() => {}
                () = self.drain.cancelled() => return None,
            }
            config = Config::load(self.sources, sinks::CONFIGURED).unwrap_or(config);
            match self.build(&config).await {
                Ok(relay) => return Some((relay, config)),
                Err(error) => {
                    tracing::warn!(error = exit::chain(&error), "starting again failed, retrying");
                }
            }
        }
    }

    /// Ends the probes.
    pub(super) async fn close(self) {
        self.probes.close().await;
    }
}

/// A relay with this configuration, before it is built. `descriptors`: files that it may have open.
pub(super) fn builder(
    config: &Config,
    descriptors: Option<usize>,
    secrets: &Secrets,
    telemetry: &Arc<Telemetry>,
) -> anyhow::Result<Builder> {
    let connections = limits::connections(descriptors, config.database.pool_size);
    let egress = Egress { connections, ..config.egress.clone() };
    let mut builder = Relay::on(config.servers()?)
        .settings(config.relay.clone())
        .pooler(config.database.pooler)
        .allow_superuser(config.database.allow_superuser)
        .pool_size(config.database.pool_size)
        .function_pool_size(config.database.function_pool_size)
        .sink(Webhook::new(&egress, secrets.clone())?)
        .connections(&config.sinks)?
        .telemetry(telemetry.clone());
    if let Some(listen) = config.listen_servers()? {
        builder = builder.listen(listen);
    }
    Ok(builder)
}

/// Whether the database accepts what is configured, and every sink can be made with it.
pub(super) async fn usable(config: &Config) -> anyhow::Result<()> {
    check::registry(config)?;
    Operator::connect(config.servers()?, config.database.pooler).await?;
    Ok(())
}
