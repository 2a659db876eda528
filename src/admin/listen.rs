//! Whether notifications of the database are heard at the address for LISTEN. Through a transaction pooler
//! LISTEN reports success, and nothing is heard.

use std::time::Duration;

use uuid::Uuid;

use super::{CONNECT, Error, Operator, ask, late, statement::statement};
use crate::sink::{plain::plain, servers::Servers};

const DOING: &str = "listening for a notification";
/// A notification is heard within this, or never.
const HEARS_WITHIN: Duration = Duration::from_secs(2);

/// What to do where nothing is heard.
pub const DEAF: &str = "LISTEN hears nothing there, as behind a transaction pooler, so events wait for the \
                        poll; set database.listen_url to a direct address";

impl Operator {
    /// Whether who listens at these servers hears a notification of this connection. Takes up to 7 s.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when the servers cannot be connected with.
    pub async fn is_heard(&mut self, at: &Servers) -> Result<bool, Error> {
        let channel = format!("outbox_check_{}", Uuid::new_v4().simple());
        let connecting = async {
            let mut listener = at.for_writing().listener().await?;
            listener.listen(&channel).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        let mut listener = match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(listener)) => listener,
            Ok(Err(source)) => return Err(Error::Unreachable { doing: DOING, source: plain(source) }),
            Err(_) => return Err(Error::Unreachable { doing: DOING, source: late(CONNECT) }),
        };
        let notifying = statement("select pg_notify($1, '')").bind(&channel);
        ask(DOING, notifying.execute(&mut self.connection)).await?;
        match tokio::time::timeout(HEARS_WITHIN, listener.try_recv()).await {
            Ok(heard) => Ok(heard.map_err(|error| Error::of(DOING, error))?.is_some()),
            Err(_) => Ok(false),
        }
    }
}
