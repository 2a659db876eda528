//! The address for probes and metrics, which stays open while one relay of the process follows another.

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    http::{self, Server, Settings},
    relay::Health,
};

/// The address, and what answers there.
#[derive(Debug)]
pub(super) struct Probes {
    listener: Option<std::net::TcpListener>,
    serving: TaskTracker,
    /// Ends what answers now.
    closed: CancellationToken,
    failed: CancellationToken,
}

impl Probes {
    /// Listens, if the settings name an address.
    pub(super) async fn listen(settings: &Settings) -> anyhow::Result<Self> {
        let listener = match settings.listen {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .and_then(TcpListener::into_std)
                    .with_context(|| format!("listening on {address} (http.listen)"))?,
            ),
            None => None,
        };
        let (closed, failed) = (CancellationToken::new(), CancellationToken::new());
        Ok(Self { listener, serving: TaskTracker::new(), closed, failed })
    }

    /// Answers for this relay from now on, and no longer for the one before.
    pub(super) fn answer(&mut self, server: Server<Health>) -> anyhow::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let listener = listener.try_clone().and_then(TcpListener::from_std).context("serving http")?;
        std::mem::take(&mut self.closed).cancel();
        let (closed, failed) = (self.closed.clone(), self.failed.clone());
        self.serving.spawn(async move {
            // Also when it panics.
            let failing = failed.drop_guard();
            match http::serve(listener, server, closed).await {
                Ok(()) => drop(failing.disarm()),
                Err(error) => tracing::error!(%error, "serving http failed"),
            }
        });
        Ok(())
    }

    /// Cancelled when nobody answers although nobody asked for that.
    pub(super) fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Ends, once requests that were begun are answered.
    pub(super) async fn close(self) {
        self.closed.cancel();
        self.serving.close();
        self.serving.wait().await;
    }
}
