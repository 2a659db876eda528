//! Live clients beside a relay.

use tokio_util::sync::CancellationToken;

use crate::live::Gateway;

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
