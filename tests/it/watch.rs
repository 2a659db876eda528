//! A stage that panics stops the relay: nobody would do its work, and its leases would be renewed for ever.

use std::{fmt, time::Duration};

use pgoutbox::{
    Relay,
    delivery::{Outcome, Reason},
    relay::Error,
};
use tokio_util::sync::CancellationToken;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::support::{Database, Recorder, relay::settings};

/// Panics when this message is logged, as a logger does that cannot write.
struct PanicsAt(&'static str);

/// Whether a log line has this message.
struct Looks(&'static str, bool);

impl Visit for Looks {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.1 |= field.name() == "message" && format!("{value:?}") == self.0;
    }
}

impl Subscriber for PanicsAt {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut looks = Looks(self.0, false);
        event.record(&mut looks);
        assert!(!looks.1, "the logger panics");
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_stage_that_panics_ends_the_relay_and_is_named() {
    for (message, stage) in [
        ("dead letter", "settle"),
        ("attempt failed", "deliver"),
        ("subscriptions loaded", "work"),
        ("listening for notifications", "await_work"),
    ] {
        let database = Database::new().await;
        database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
        database.execute("insert into outbox.events (topic, payload) values ('shop.sold', '1')").await;
        let pool = sqlx::PgPool::connect_lazy_with(database.relay_options.clone());
        let refusing = Recorder::answering(|_| Outcome::Rejected { reason: Reason::Refused });
        let relay = Relay::builder(pool).settings(settings("relay")).sink(refusing).build().await.unwrap();
        let health = relay.health();
        let ended = {
            // The runtime has one thread, so every stage logs here.
            let _logger = tracing::subscriber::set_default(PanicsAt(message));
            tokio::time::timeout(Duration::from_secs(30), relay.run(CancellationToken::new())).await
        };
        let error = ended.unwrap_or_else(|_| panic!("{stage} is gone, and the relay does not end"));
        assert!(
            matches!(error, Err(Error::StageEnded { stage: ended }) if ended == stage),
            "{message}: {error:?}"
        );
        let unready = health.ready().await.unwrap_err();
        assert!(unready.contains(stage), "{unready}");
        database.drop().await;
    }
}
