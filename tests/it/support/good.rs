//! A receiver that answers every request with 204 and passes it to the test.

use std::time::Duration;

use pgoutbox::lab::receiver::{Options, Received, Receiver, Switch};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A receiver that answers 204 unless it is set down.
#[derive(Debug)]
pub(crate) struct Good {
    pub(crate) url: String,
    pub(crate) switch: Switch,
    received: mpsc::Receiver<Received>,
    _stop: DropGuard,
    _running: JoinSet<std::io::Result<()>>,
}

impl Good {
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// A receiver that only counts requests and answers each after this time.
    pub(crate) async fn counting(takes: Duration) -> Self {
        Self::start_with(Options { quiet: true, delay: takes, ..Options::default() }).await
    }

    async fn start_with(options: Options) -> Self {
        let (sender, received) = mpsc::channel(10_000);
        let options = Options { received: Some(sender), ..options };
        let receiver = Receiver::bind("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
        let (url, switch, stop) =
            (format!("http://{}/", receiver.address()), receiver.switch(), CancellationToken::new());
        let mut running = JoinSet::new();
        running.spawn(receiver.run(stop.clone()));
        Self { url, switch, received, _stop: stop.drop_guard(), _running: running }
    }

    /// The next request, at most `within` from now.
    pub(crate) async fn next(&mut self, within: Duration) -> Option<Received> {
        timeout(within, self.received.recv()).await.ok().flatten()
    }

    /// Waits for this many requests, at most 30 s.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Received> {
        let mut taken = Vec::new();
        let taking = async {
            while taken.len() < count {
                taken.push(self.received.recv().await.unwrap());
            }
        };
        let all = timeout(Duration::from_secs(30), taking).await.is_ok();
        assert!(all, "{count} requests should have come, {} did", taken.len());
        taken
    }
}
