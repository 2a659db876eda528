//! Live clients beside a relay, on threads of their own.

use anyhow::Context as _;
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;

use crate::live::Gateway;

/// Threads of live clients and of HTTP, which deliveries do not share: a thousand clients that are sent
/// something take their turns one after another, and a delivery does not wait for them.
#[derive(Debug)]
pub(super) struct Apart(Option<Runtime>, Handle);

impl Apart {
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.thread_name("live").enable_all().build().context("starting the runtime")?;
        let handle = runtime.handle().clone();
        Ok(Self(Some(runtime), handle))
    }

    /// What is spawned by this runs there.
    pub(super) fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // A task that is left, such as an answer that nobody reads, is not waited for.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs something beside a gateway. When `stop` is cancelled, live clients are asked to leave; when it has
/// ended, the gateway ends.
pub(super) async fn beside<T>(
    running: impl Future<Output = T>,
    gateway: Option<Gateway>,
    stop: CancellationToken,
) -> T {
    let leaving = async {
        stop.cancelled().await;
        if let Some(gateway) = &gateway {
            gateway.drain();
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = running => ended,
        () = leaving => unreachable!("it waits for ever"),
    };
    if let Some(gateway) = gateway {
        gateway.close().await;
    }
    ended
}
