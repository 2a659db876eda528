//! The far end of webhooks: the receiver on a thread and runtime of its own, in both arms alike, so that it neither shares
//! the relay's threads nor gets more of the machine when there is no relay.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError, mpsc::sync_channel},
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::stage::SOON;
use crate::lab::receiver::{Options, Received, Receiver, Switch};

/// Requests that may wait to be looked at.
const AT_ONCE: usize = 1_024;

/// A running receiver. Dropping it stops it.
#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) url: String,
    switch: Switch,
    arrivals: Arc<Mutex<Arrivals>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What a looking receiver remembers.
#[derive(Debug, Default)]
struct Arrivals {
    /// When each event came first.
    first: HashMap<Uuid, Instant>,
    /// One request in full.
    sample: Option<Received>,
}

impl Receiving {
    /// Answers 204 and only counts.
    pub(super) fn counting() -> anyhow::Result<Self> {
        Self::start(false)
    }

    /// Answers 204 and notes when each event came.
    pub(super) fn noting() -> anyhow::Result<Self> {
        Self::start(true)
    }

    fn start(note: bool) -> anyhow::Result<Self> {
        let (stop, arrivals) = (CancellationToken::new(), Arc::new(Mutex::new(Arrivals::default())));
        let (tell, told) = sync_channel(1);
        let (stopped, noted) = (stop.clone(), arrivals.clone());
        let receive = async move {
            let (sender, received) = mpsc::channel(AT_ONCE);
            let options = Options { quiet: !note, received: note.then_some(sender), ..Options::default() };
            match Receiver::bind((Ipv4Addr::LOCALHOST, 0).into(), options).await {
                Ok(receiver) => {
                    let _ = tell.send(Ok((receiver.address(), receiver.switch())));
                    // Cancelled and not only closed: the switch keeps the sending end alive. An end before its time
                    // shows as deliveries that fail.
                    let _ = tokio::join!(
                        receiver.run(stopped.clone()),
                        stopped.run_until_cancelled(look(received, noted))
                    );
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
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
            told.recv_timeout(SOON).context("starting the receiver")?.context("opening a port")?;
        Ok(Self { url: format!("http://{address}/"), switch, arrivals, stop, thread: Some(thread) })
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> u64 {
        self.switch.requests()
    }

    /// Different events so far, when it notes them.
    pub(super) fn events(&self) -> u64 {
        u64::try_from(self.lock().first.len()).unwrap_or(u64::MAX)
    }

    /// When an event came first.
    pub(super) fn arrival(&self, event: Uuid) -> Option<Instant> {
        self.lock().first.get(&event).copied()
    }

    /// One request in full.
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

async fn look(mut received: mpsc::Receiver<Received>, arrivals: Arc<Mutex<Arrivals>>) {
    while let Some(request) = received.recv().await {
        let now = Instant::now();
        let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = request.id.as_deref().and_then(|id| id.parse().ok()) {
            arrivals.first.entry(event).or_insert(now);
        }
        arrivals.sample.get_or_insert(request);
    }
}
