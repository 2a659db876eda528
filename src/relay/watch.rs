//! Watches the tasks of a relay. One that panics, or ends before it is asked to, stops the relay: another
//! process must go on, because nobody does the work of that task.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::telemetry::Telemetry;

/// The stage that ended unasked, if one did.
#[derive(Debug, Clone, Default)]
pub(super) struct Failed(Arc<OnceLock<&'static str>>);

impl Failed {
    /// Name of the stage that ended unasked.
    pub(super) fn stage(&self) -> Option<&'static str> {
        self.0.get().copied()
    }
}

/// Runs tasks and stops the relay when one of them fails.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    telemetry: Arc<Telemetry>,
    failed: Failed,
    /// Asks the stages to end.
    stop: CancellationToken,
    /// Cancelled when the relay is dropped without a drain.
    dropped: CancellationToken,
}

impl Watch {
    pub(super) fn new(
        telemetry: Arc<Telemetry>,
        failed: Failed,
        stop: CancellationToken,
        dropped: CancellationToken,
    ) -> Self {
        Self { telemetry, failed, stop, dropped }
    }

    /// Runs a stage. It may end only after the relay was asked to stop.
    pub(super) fn stage(
        &self,
        name: &'static str,
        stage: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.run(name, true, stage)
    }

    /// Runs a task of a stage. It may end at any time, but not by a panic.
    pub(super) fn task(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.run(name, false, task)
    }

    fn run(
        &self,
        name: &'static str,
        lasts: bool,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let this = self.clone();
        // Boxed: each layer of futures around it would have room for it twice.
        let task = Box::pin(AssertUnwindSafe(task).catch_unwind());
        async move {
            match this.dropped.run_until_cancelled(task).await {
                Some(Ok(())) if lasts && !this.stop.is_cancelled() => this.fail(name),
                Some(Err(_)) => this.fail(name),
                Some(Ok(())) | None => {}
            }
        }
        .in_current_span()
    }

    /// Stops the relay: this stage does not work any more.
    pub(super) fn fail(&self, name: &'static str) {
        let is_first = self.failed.0.set(name).is_ok();
        // Before anything else can fail.
        self.stop.cancel();
        if is_first {
            self.telemetry.stage_ended(name);
        }
    }
}
