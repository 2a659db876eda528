//! The receiver of webhooks, on its own thread and runtime in both arms, so that it neither shares the
//! relay's threads nor gets more of the machine when there is no relay.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError, mpsc::sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::stage::SOON;
use crate::lab::receiver::{Options, Received, Receiver, Switch};

/// Most requests that wait to be recorded.
const QUEUE: usize = 1_024;

/// A running receiver. Dropping it stops it.
#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) url: String,
    switch: Switch,
    arrivals: Arc<Mutex<Arrivals>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// Arrivals that a receiver has recorded.
#[derive(Debug, Default)]
struct Arrivals {
    /// Time of the first request for each event.
    first: HashMap<Uuid, Instant>,
    /// The first request.
    sample: Option<Received>,
}

impl Receiving {
    /// A receiver that answers 204 and only counts.
    pub(super) fn counting() -> anyhow::Result<Self> {
        Self::start(false, Duration::ZERO)
    }

    /// A receiver that answers 204 and records the arrival of each event.
    pub(super) fn recording() -> anyhow::Result<Self> {
        Self::start(true, Duration::ZERO)
    }

    /// A receiver that answers 204 after this delay and only counts.
    pub(super) fn delayed(delay: Duration) -> anyhow::Result<Self> {
        Self::start(false, delay)
    }

    fn start(record: bool, delay: Duration) -> anyhow::Result<Self> {
        let (stop, arrivals) = (CancellationToken::new(), Arc::new(Mutex::new(Arrivals::default())));
        let (report, started) = sync_channel(1);
        let (stopped, recorded) = (stop.clone(), arrivals.clone());
        let receive = async move {
            let (sender, received) = mpsc::channel(QUEUE);
            let options =
                Options { delay, quiet: !record, received: record.then_some(sender), ..Options::default() };
            match Receiver::bind((Ipv4Addr::LOCALHOST, 0).into(), options).await {
                Ok(receiver) => {
                    let _ = report.send(Ok((receiver.address(), receiver.switch())));
                    // Cancel explicitly: the switch keeps the channel open. If the
                    // receiver ends early, deliveries fail.
                    let _ = tokio::join!(
                        receiver.run(stopped.clone()),
                        stopped.run_until_cancelled(collect(received, recorded))
                    );
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the receiver")?;
        let thread = std::thread::Builder::new()
            .name("receiver".to_owned())
            .spawn(move || runtime.block_on(receive))?;
        let (address, switch) =
            started.recv_timeout(SOON).context("starting the receiver")?.context("opening a port")?;
        Ok(Self { url: format!("http://{address}/"), switch, arrivals, stop, thread: Some(thread) })
    }

    /// Number of requests so far.
    pub(super) fn requests(&self) -> u64 {
        self.switch.requests()
    }

    /// Number of different events so far, if they are recorded.
    pub(super) fn events(&self) -> u64 {
        u64::try_from(self.lock().first.len()).unwrap_or(u64::MAX)
    }

    /// Time of the first request for an event.
    pub(super) fn arrival(&self, event: Uuid) -> Option<Instant> {
        self.lock().first.get(&event).copied()
    }

    /// The first request.
    pub(super) fn sample(&self) -> Option<Received> {
        self.lock().sample.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn collect(mut received: mpsc::Receiver<Received>, arrivals: Arc<Mutex<Arrivals>>) {
    while let Some(request) = received.recv().await {
        let now = Instant::now();
        let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = request.id.as_deref().and_then(|id| id.parse().ok()) {
            arrivals.first.entry(event).or_insert(now);
        }
        arrivals.sample.get_or_insert(request);
    }
}
