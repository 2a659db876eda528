//! What a program that embeds a relay can wait for.

use uuid::Uuid;

use crate::store::SubscriptionState;

/// What happened. Signals are in every build and cost nothing while nobody listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The relay has loaded subscriptions and works.
    Started,
    /// The outbox belongs to another database: the relay sends nothing until it is adopted.
    Fenced,
    /// The database has a new timeline: a standby was promoted.
    Promoted,
    /// A routing step was committed.
    Routed {
        /// Number of events.
        events: usize,
        /// Number of their deliveries.
        deliveries: usize,
    },
    /// A subscription's match or filter could not be evaluated for an event, which counts as no match.
    FilterFailed {
        /// Id of the event.
        event: Uuid,
        /// Name of the subscription.
        subscription: String,
    },
    /// A payload does not fit its event type and is delivered nevertheless.
    SchemaWarned {
        /// Id of the event.
        event: Uuid,
    },
    /// A partition was made.
    PartitionMade,
    /// A partition was dropped.
    PartitionDropped,
    /// A look at what is old has ended.
    RetentionLooked,
    /// Due deliveries were leased.
    Claimed {
        /// Number of deliveries.
        deliveries: usize,
    },
    /// An attempt was not made because this relay lacks something; its delivery waits.
    ResourcesLacked {
        /// Name of the subscription.
        subscription: String,
    },
    /// An attempt ended and its verdict was recorded.
    Settled {
        /// Id of the event; none if it could not be read.
        event: Option<Uuid>,
        /// Name of the subscription.
        subscription: String,
        /// `settled`, `retry`, `dead_letter`, `superseded`, `gone` or `stale`.
        verdict: &'static str,
    },
    /// The relay found no work and sleeps.
    Slept,
    /// The relay woke: by a notification, the poll or a due time.
    Woke,
    /// The relay uses changed subscriptions.
    Reloaded {
        /// Generation at which they were read.
        generation: i64,
    },
    /// The listener was connected.
    ListenerConnected,
    /// The listener is connected and hears nothing, as behind a transaction pooler.
    ListenerDeaf,
    /// The listener was lost: no connection, or no notification from itself.
    ListenerLost,
    /// A relay changed the state of a subscription.
    SubscriptionChanged {
        /// Name of the subscription.
        subscription: String,
        /// The state that it has now.
        state: SubscriptionState,
    },
    /// A breaker opened or closed.
    Breaker {
        /// Name of the breaker's destination.
        destination: String,
        /// Whether it is open now.
        open: bool,
    },
    /// A query failed and is retried.
    DatabaseFailed,
}
