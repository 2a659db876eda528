//! A relay in a box: in this process, on the test's own database, with its signals recorded from before it starts.

use std::time::Duration;

use pgoutbox::{
    Relay,
    relay::{
        Builder, Drained, Settings,
        telemetry::{Signal, Telemetry},
    },
};
use tokio::{sync::broadcast, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Database, Recorder};

/// One running relay.
#[derive(Debug)]
pub(crate) struct RelayBox {
    signals: broadcast::Receiver<Signal>,
    running: JoinSet<Result<Drained, pgoutbox::relay::Error>>,
    pub(crate) stop: CancellationToken,
}

/// What tests use where they do not say otherwise: the poll is slow, so that a missed doorbell shows.
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

    /// Starts a relay as the test likes it, and waits until it runs.
    pub(crate) async fn start_with(database: &Database, build: impl FnOnce(Builder) -> Builder) -> Self {
        let pool = sqlx::PgPool::connect_lazy_with(database.relay_options.clone());
        let telemetry = Telemetry::new();
        let signals = telemetry.signals();
        let relay = build(Relay::builder(pool)).telemetry(telemetry).build().await.unwrap();
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(relay.run(stop.clone()));
        let mut started = Self { signals, running, stop };
        started.wait(|signal| *signal == Signal::Started).await;
        started
    }

    /// Waits for a signal, at most 30 s. Signals before it are passed over.
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

    /// Waits until the relay sleeps: nothing is left to do.
    pub(crate) async fn wait_asleep(&mut self) {
        self.wait(|signal| *signal == Signal::Slept).await;
    }

    /// Drains it.
    pub(crate) async fn stop(mut self) -> Drained {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.running.join_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// Ends it without draining, as a crash of its process would.
    pub(crate) async fn abort(mut self) {
        self.running.shutdown().await;
    }
}
