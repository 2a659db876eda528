//! Before anything is read or sent: does the outbox belong to this database? A crash here costs nothing.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::parts::Base;

/// How often a relay that may not send looks whether the database was adopted.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How a relay came past the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fence {
    /// There was none.
    Open,
    /// The database was adopted.
    Lifted,
    /// The relay was stopped before.
    Stopped,
}

/// Waits until the relay may send from its database.
///
/// A database that is away is for the stages to wait for: each connection that they make is looked at.
pub(super) async fn pass(base: &Base, shutdown: &CancellationToken) -> Fence {
    let mut told = false;
    while !shutdown.is_cancelled() {
        match base.store.inspect_anew().await {
            Err(error) if error.is_fenced() => {
                base.telemetry.fenced(&error, !told);
                told = true;
            }
            Err(error) if base.store.is_tripped() => base.telemetry.database_failed("fence", &error),
            answered => {
                if let Ok(ahead) = answered {
                    base.clock.set(ahead);
                }
                base.telemetry.passed(told);
                return if told { Fence::Lifted } else { Fence::Open };
            }
        }
        wait(shutdown).await;
    }
    Fence::Stopped
}

/// Waits before the next look.
pub(super) async fn wait(shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep_until((Instant::now() + LOOK_AGAIN).into()) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Waits until the relay may send no more. A relay that drains ends anyway.
pub(super) async fn tripped(base: &Base, shutdown: &CancellationToken) {
    base.store.tripped().await;
    if shutdown.is_cancelled() {
        std::future::pending().await
    }
}
