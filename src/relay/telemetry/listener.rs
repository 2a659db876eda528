//! The listener's connection and the database's timeline, in logs, metrics and signals.

use super::{Signal, Telemetry};
use crate::store::Promotion;

impl Telemetry {
    /// The database has another timeline than before.
    pub(crate) fn promoted(&self, promotion: Promotion) {
        self.metrics.promotions.inc();
        let Promotion { from, to } = promotion;
        tracing::warn!(from, to, "a standby was promoted: the database has a new timeline");
        self.signal(|| Signal::Promoted);
    }

    pub(crate) fn listener_connected(&self) {
        self.metrics.listener_connected.set(1);
        tracing::info!("listening for notifications");
        self.signal(|| Signal::ListenerConnected);
    }

    /// A listener is connected and hears nothing.
    pub(crate) fn listener_deaf(&self) {
        self.metrics.listener_connected.set(0);
        tracing::warn!(
            "LISTEN hears nothing, as behind a transaction pooler, so events wait for the poll; set \
             database.listen_url to a direct address"
        );
        self.signal(|| Signal::ListenerDeaf);
    }

    pub(crate) fn listener_lost(&self, why: &str) {
        self.metrics.listener_connected.set(0);
        self.metrics.listener_losses.inc();
        tracing::warn!(why, "listener lost, polling until it is connected again");
        self.signal(|| Signal::ListenerLost);
    }
}
