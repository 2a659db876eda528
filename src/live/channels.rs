//! The channels and event types of the database, as the feed last read them.

use std::{collections::HashMap, sync::Arc};

use crate::{
    event::types::{EventType, Types},
    sink::Registry,
    store::{Error, Store},
    subscription::Subscription,
};

/// Channels by name, at one generation of the subscriptions.
#[derive(Debug, Default)]
pub(super) struct Channels {
    /// Value of `outbox.generation` at which they were read.
    pub(super) generation: i64,
    by_name: HashMap<String, Arc<Subscription>>,
    pub(super) types: Arc<Types>,
}

impl Channels {
    /// Reads them.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn load(store: &Store) -> Result<Self, Error> {
        let crate::store::Channels { generation, rows, unreadable } = store.load_channels().await?;
        for (id, why) in unreadable {
            tracing::warn!(id = id.0, why, "a channel cannot be read");
        }
        // Read after the generation: a type that changes in between changes it again.
        let loaded = store.load_event_types(None).await?;
        let mut types = Vec::with_capacity(loaded.rows.len());
        for row in loaded.rows {
            // Compiling takes a while, so it does not run on a thread of the runtime.
            if let Ok(read) = tokio::task::spawn_blocking(move || Arc::new(EventType::read(row))).await {
                types.push(read);
            }
        }
        let sinks = Registry::default();
        let mut by_name = HashMap::new();
        for row in rows {
            // The problem that it has no sink is none: its events go to clients.
            let (channel, _) = Subscription::bind(row, &sinks);
            by_name.insert(channel.row.name.clone(), Arc::new(channel));
            tokio::task::yield_now().await;
        }
        Ok(Self { generation, by_name, types: Arc::new(Types::new(types)) })
    }

    /// The channel of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Subscription>> {
        self.by_name.get(name)
    }
}
