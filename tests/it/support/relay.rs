//! A relay in this process, on the test's database, whose signals are recorded from its start.

use std::time::Duration;

use pgoutbox::{
    Relay, Servers,
    relay::{
        Builder, Drained, Settings,
        telemetry::{Signal, Telemetry},
    },
};
use tokio::{sync::broadcast, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Database, Recorder};

/// A running relay.
#[derive(Debug)]
pub(crate) struct RelayBox {
    signals: broadcast::Receiver<Signal>,
    running: JoinSet<Result<Drained, pgoutbox::relay::Error>>,
    pub(crate) stop: CancellationToken,
    pub(crate) health: pgoutbox::relay::Health,
    pub(crate) telemetry: std::sync::Arc<Telemetry>,
}

/// Default settings of tests: the poll is slow, so that a missed notification is noticed.
pub(crate) fn settings(name: &str) -> Settings {
    Settings {
        name: name.to_owned(),
        poll: Some(Duration::from_secs(20)),
        drain: Duration::from_secs(5),
        ..Settings::default()
    }
}

impl RelayBox {
    /// Starts a relay that sends to a recorder, and waits until it runs.
    pub(crate) async fn start(database: &Database, recorder: &Recorder) -> Self {
        Self::start_with(database, |builder| builder.settings(settings("relay")).sink(recorder.clone())).await
    }

    /// Starts a relay with a builder of the test, and waits until it runs.
    pub(crate) async fn start_with(database: &Database, build: impl FnOnce(Builder) -> Builder) -> Self {
        Self::start_until(database, build, |signal| *signal == Signal::Started).await
    }

    /// Like [`RelayBox::start_with`], and waits for another signal.
    pub(crate) async fn start_until(
        database: &Database,
        build: impl FnOnce(Builder) -> Builder,
        wanted: impl Fn(&Signal) -> bool,
    ) -> Self {
        let pool = sqlx::PgPool::connect_lazy_with(database.relay_options.clone());
        Self::start_from(build(Relay::builder(pool)), wanted).await
    }

    /// Like [`RelayBox::start_with`], on the right one of these servers.
    pub(crate) async fn start_on(
        servers: impl Into<Servers>,
        build: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        Self::start_on_until(servers, build, |signal| *signal == Signal::Started).await
    }

    /// Like [`RelayBox::start_on`], and waits for another signal.
    pub(crate) async fn start_on_until(
        servers: impl Into<Servers>,
        build: impl FnOnce(Builder) -> Builder,
        wanted: impl Fn(&Signal) -> bool,
    ) -> Self {
        Self::start_from(build(Relay::on(servers)), wanted).await
    }

    async fn start_from(builder: Builder, wanted: impl Fn(&Signal) -> bool) -> Self {
        let telemetry = Telemetry::new();
        let signals = telemetry.signals();
        let relay = builder.telemetry(telemetry.clone()).build().await.unwrap();
        let (stop, health) = (CancellationToken::new(), relay.health());
        let mut running = JoinSet::new();
        running.spawn(relay.run(stop.clone()));
        let mut started = Self { signals, running, stop, health, telemetry };
        started.wait(wanted).await;
        started
    }

    /// Waits for a signal, at most 30 s. Skips other signals.
    pub(crate) async fn wait(&mut self, wanted: impl Fn(&Signal) -> bool) -> Signal {
        let mut passed = Vec::new();
        let waiting = async {
            loop {
                match self.signals.recv().await {
                    Ok(signal) if wanted(&signal) => return signal,
                    Ok(signal) => passed.push(signal),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => panic!("the relay is gone"),
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(30), waiting).await {
            Ok(signal) => signal,
            Err(_) => panic!(
                "the signal did not come within 30 s; the last ones that came: {:?}",
                passed.iter().rev().take(20).collect::<Vec<_>>()
            ),
        }
    }

    /// Waits until the relay sleeps because it has no work.
    pub(crate) async fn wait_asleep(&mut self) {
        self.wait(|signal| *signal == Signal::Slept).await;
    }

    /// The signals that no wait has seen.
    pub(crate) fn signals(&mut self) -> Vec<Signal> {
        std::iter::from_fn(|| self.signals.try_recv().ok()).collect()
    }

    /// Drains the relay.
    pub(crate) async fn stop(mut self) -> Drained {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.running.join_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// Ends the relay without draining, like a crash. All its tasks have ended then: what a task has spawned
    /// is dropped only after the task itself.
    pub(crate) async fn abort(mut self) {
        self.running.shutdown().await;
        let Self { health, telemetry, .. } = self;
        drop(health);
        let ended = async {
            while std::sync::Arc::strong_count(&telemetry) > 1 {
                tokio::task::yield_now().await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), ended).await;
        assert!(in_time.is_ok(), "{} still use the telemetry", std::sync::Arc::strong_count(&telemetry) - 1);
    }
}
