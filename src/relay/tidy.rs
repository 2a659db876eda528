//! Gives back what has waited in this relay too long or cannot be sent. A crash here costs nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{deliver::Deliver, parts::Sending, way::Way};
use crate::delivery::Reason;

/// How often what waits here is looked at.
const TIDY_EVERY: Duration = Duration::from_millis(250);

/// Tidies until the relay is stopped.
pub(super) async fn tidy(sending: Arc<Sending>, deliver: Arc<Deliver>, shutdown: CancellationToken) {
    let mut looks = tokio::time::interval(TIDY_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = sending.dispatch.shared_freed() => {
                sending.dispatch.look_again();
                deliver.begin();
                continue;
            }
            () = shutdown.cancelled() => return,
        }
        let now = Instant::now();
        let back =
            sending.dispatch.take_back(now, &|subscription| sending.way(subscription, now) == Way::Blocked);
        deliver.give_back(back, Reason::LeaseLost).await;
        sending.dispatch.look_again();
        deliver.begin();
    }
}
