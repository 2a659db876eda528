//! Rows of `outbox.gateways`, the processes with live clients, and how relays tell them of new events.

use super::{connection::Store, error::Error, log::UPKEEP};

impl Store {
    /// Records that this process serves so many live clients; to be repeated every 5 s. Relays tell it of new
    /// events, on the channel `outbox_news`, until it has not reported for 15 s. Relays that listen learn of
    /// a new gateway at once, the others with their next report, which is after 10 s at most. A gateway in
    /// the process of a relay has the relay's name: `Relay::news` tells it what that relay reads.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn report_gateway(&self, name: &str, connections: i32) -> Result<(), Error> {
        self.statement("reporting this gateway", sql!("relay/report_gateway"))
            .on(UPKEEP)
            .bind(name)
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(connections)
            .execute()
            .await
    }

    /// Removes this gateway from `outbox.gateways`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn leave_gateway(&self, name: &str) -> Result<(), Error> {
        self.statement("taking this gateway off the list", sql!("relay/leave_gateway"))
            .bind(name)
            .execute()
            .await
    }

    /// Tells gateways that there may be new events.
    ///
    /// # Errors
    /// Those of the database. They were then not told.
    pub async fn tell_news(&self) -> Result<(), Error> {
        self.statement("telling gateways of news", sql!("relay/tell_news")).execute().await
    }
}
