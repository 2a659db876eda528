//! Notifications to relays and gateways.

use super::{connection::Store, error::Error};

impl Store {
    /// Notifies a channel: wakes relays, or shows that this relay still hears its listener.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn ring(&self, channel: &str) -> Result<(), Error> {
        self.statement("ringing the doorbell", "select pg_notify($1, '')").bind(channel).execute().await
    }

    /// Sends messages over a channel, in their order.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn notify(&self, channel: &str, messages: &[String]) -> Result<(), Error> {
        const NOTIFY: &str = "select pg_notify($1, message) from unnest($2::text[]) as message";
        self.statement("telling other relays", NOTIFY).bind(channel).bind(messages).execute().await
    }
}
