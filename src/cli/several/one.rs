//! Keeps the relay of one source running: starts it, tries again while its database is away, follows its
//! files, and drains it.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        config::{Config, Several, Sources},
        exit,
        follow::{Change, Followed},
        relays,
    },
    place::Place,
};
use crate::{
    relay::{Drained, Health, Relay, Shared, telemetry::Telemetry},
    sink::secret::Secrets,
    sinks,
    store::schema,
};

/// First pause before a relay is started again.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause before a relay is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the process hears of a source: that it was started, or that this failed.
#[derive(Debug)]
pub(super) struct News {
    /// Number of the source.
    pub(super) of: usize,
    /// What it is configured with now, if that has changed.
    pub(super) fresh: Option<Box<Config>>,
}

/// One source.
pub(super) struct One {
    pub(super) number: usize,
    pub(super) name: String,
    pub(super) sources: Sources,
    pub(super) config: Config,
    pub(super) secrets: Secrets,
    /// Files that its relay may have open; none: no limit is known.
    pub(super) descriptors: Option<usize>,
    pub(super) shared: Arc<Shared>,
    pub(super) place: Place,
    pub(super) telemetry: Arc<Telemetry>,
    /// Changes at each SIGHUP.
    pub(super) hangups: watch::Receiver<()>,
    pub(super) news: mpsc::Sender<News>,
    pub(super) drain: CancellationToken,
    /// Whether to migrate before the first start.
    pub(super) migrate: bool,
}

/// Why a relay was stopped.
enum Stopped {
    Drained(Drained),
    /// It ended by itself, which is a bug.
    Failed,
    /// It is configured in another way.
    Changed(Box<Config>),
}

impl One {
    /// Keeps a relay running until the drain.
    pub(super) async fn keep(mut self) -> Drained {
        let nothing = Drained { complete: true, left: 0 };
        let mut pauses = Pauses::default();
        loop {
            let followed = Followed::of(&self.config).await;
            let drain = self.drain.clone();
            let Some(started) = drain.run_until_cancelled(self.start()).await else { return nothing };
            match started {
                Ok(relay) => {
                    self.place.runs(relay.health());
                    self.tell(None).await;
                    match self.run(relay, followed).await {
                        Stopped::Drained(drained) => return drained,
                        Stopped::Changed(fresh) => {
                            self.config = (*fresh).clone();
                            self.place.is_down("starting again".to_owned());
                            self.tell(Some(fresh)).await;
                            pauses = Pauses::default();
                            continue;
                        }
                        Stopped::Failed => {}
                    }
                }
                Err(error) => {
                    let error = exit::chain(&error);
                    self.place.is_down(error.clone());
                    let pause_seconds = pauses.next.as_secs_f64();
                    tracing::warn!(error, pause_seconds, "the source cannot be served, trying again");
                    self.tell(None).await;
                }
            }
            let pause = tokio::time::timeout(pauses.take(), self.drain.cancelled());
            if pause.await.is_ok() {
                return nothing;
            }
            // What it refers to may have changed. What cannot be read is reported by the next start.
            if let Some(fresh) = self.configured() {
                self.config = fresh;
            }
        }
    }

    /// Builds a relay, and migrates before if that is asked for.
    async fn start(&mut self) -> anyhow::Result<Relay> {
        if self.migrate {
            let applied = schema::run(&self.config.servers()?.find(false).await?).await?;
            self.migrate = false;
            tracing::info!(migrations = applied.len(), "migrated");
        }
        let builder = relays::builder(&self.config, self.descriptors, &self.secrets, &self.telemetry)?;
        Ok(builder.shared(self.shared.clone()).build().await?)
    }

    /// Runs a relay until it has drained, failed, or must be another.
    async fn run(&mut self, relay: Relay, mut followed: Followed) -> Stopped {
        let (stop, health) = (self.drain.child_token(), relay.health());
        let running = relay.run(stop.clone());
        tokio::pin!(running);
        let fresh = tokio::select! {
            ended = &mut running => return self.ended(ended),
            fresh = self.follow(&mut followed, &health) => fresh,
        };
        // Attempts in flight end as they began; the rest is given back, and is owed to the next relay.
        stop.cancel();
        match self.ended(running.await) {
            Stopped::Drained(_) if !self.drain.is_cancelled() => Stopped::Changed(Box::new(fresh)),
            ended => ended,
        }
    }

    fn ended(&self, ended: Result<Drained, crate::relay::Error>) -> Stopped {
        match ended {
            Ok(drained) => Stopped::Drained(drained),
            Err(error) => {
                let error = exit::chain(&error.into());
                tracing::error!(error, "the relay of the source ended, starting it again");
                self.place.is_down(error);
                Stopped::Failed
            }
        }
    }

    /// Follows secrets and SIGHUP, until a file has changed that connections depend on. Returns what is
    /// configured then.
    async fn follow(&mut self, followed: &mut Followed, health: &Health) -> Config {
        loop {
            let change = tokio::select! {
                change = followed.changed(&self.secrets) => change,
                Ok(()) = self.hangups.changed() => {
                    health.reload();
                    continue;
                }
            };
            let files = match change {
                Change::Secrets(files) => {
                    let files = files.join(", ");
                    tracing::info!(files, "secrets have changed, the relay follows them");
                    followed.accept();
                    health.reload();
                    continue;
                }
                Change::Connections(files) => files.join(", "),
            };
            let Some(fresh) = self.configured() else {
                tracing::warn!(files, "files have changed and cannot be used; the relay goes on without");
                followed.refuse();
                continue;
            };
            match relays::usable(&fresh).await {
                Ok(()) => {
                    tracing::info!(files, "files have changed, the relay follows them");
                    return fresh;
                }
                Err(error)
                    if matches!(exit::Exit::of(&error), exit::Exit::Unreachable | exit::Exit::Denied) =>
                {
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
                    followed.refuse();
                }
            }
        }
    }

    /// What is configured for this source now; none if the configuration is wrong or has it no more.
    fn configured(&self) -> Option<Config> {
        let several = Several::load(&self.sources, sinks::CONFIGURED).ok()??;
        several.each.into_iter().find(|one| one.name == self.name).map(|one| one.config)
    }

    async fn tell(&self, fresh: Option<Box<Config>>) {
        // The process hears it until it ends.
        let _ = self.news.send(News { of: self.number, fresh }).await;
    }
}

/// Pauses between tries, which get longer.
#[derive(Debug)]
struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: PAUSE }
    }
}

impl Pauses {
    fn take(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}
