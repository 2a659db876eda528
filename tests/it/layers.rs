//! Layers around sinks: their order, what they may do with a batch, and what they cannot break.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use pgoutbox::{
    Layer, Next, Outcome, Outgoing, Reason, Report, Sink, Timeout,
    relay::{AttemptLog, Settings, telemetry::Signal},
    sink::{Batch, Problem},
};
use serde_json::Value;

use crate::support::{Database, Recorder, RelayBox, relay::settings};

type Said = Arc<Mutex<Vec<String>>>;

/// Notes when it is entered and left.
struct Note(&'static str, Said);

impl Layer for Note {
    async fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> Vec<Report> {
        self.1.lock().unwrap().push(format!("{} in", self.0));
        let reports = next.send(deliveries).await;
        self.1.lock().unwrap().push(format!("{} out", self.0));
        reports
    }
}

/// Replaces payloads, and refuses the payload `3`.
struct Alter;

impl Layer for Alter {
    async fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> Vec<Report> {
        let altered: Vec<Outgoing> = deliveries
            .iter()
            .cloned()
            .map(|mut one| {
                let event = Arc::make_mut(&mut one.event);
                event.payload = format!("[{}]", event.payload);
                one
            })
            .collect();
        let refuse = |one: &Outgoing| {
            let refused = Report::from(Outcome::Rejected { reason: Reason::PayloadUnusable });
            (one.event.payload == "[3]").then(|| refused.with_answer("no threes"))
        };
        next.send_unless(&altered, refuse).await
    }
}

/// Panics at the payload `"bad"`.
struct Fragile;

impl Layer for Fragile {
    async fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> Vec<Report> {
        assert!(deliveries.iter().all(|one| one.event.payload != "\"bad\""), "a layer of the application");
        next.send(deliveries).await
    }
}

/// Takes batches, and notes the payloads of each.
struct Batches(Said);

impl Sink for Batches {
    const KIND: &'static str = "batches";
    type Target = ();

    fn target(&self, _: &Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        Some("somewhere".to_owned())
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(5)
    }

    fn batch(&self, (): &()) -> Option<Batch> {
        Some(Batch { wait: Duration::from_millis(200), ..Batch::BROKER })
    }

    async fn send(&self, target: &(), delivery: &Outgoing) -> Report {
        pgoutbox::sink::only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, (): &(), deliveries: &[Outgoing]) -> Vec<Report> {
        let payloads: Vec<&str> = deliveries.iter().map(|one| one.event.payload.as_str()).collect();
        self.0.lock().unwrap().push(payloads.join(","));
        vec![Outcome::Delivered.into(); deliveries.len()]
    }
}

async fn subscribe(database: &Database, name: &str, sink: &str, config: &str) {
    sqlx::query("select outbox.subscribe($1, '{a.**}', $2, $3::jsonb, retry => '{\"schedule\": [\"0s\"]}')")
        .bind(name)
        .bind(sink)
        .bind(config)
        .execute(&database.pool)
        .await
        .unwrap();
}

fn said(said: &Said) -> Vec<String> {
    said.lock().unwrap().clone()
}

#[tokio::test]
async fn the_layer_that_was_added_first_is_the_outermost_and_one_of_a_kind_wraps_only_that_kind() {
    let database = Database::new().await;
    let (notes, recorder) = (Said::default(), Recorder::new());
    subscribe(&database, "plain", "recorder", "{}").await;
    let note = |name| Note(name, notes.clone());
    let relay = RelayBox::start_with(&database, |builder| {
        let builder = builder.settings(settings("relay")).layer(note("outer"));
        let builder = builder.layer_on("recorder", note("middle")).sink(Batches(Said::default()));
        builder.layer_on("batches", note("other")).sink(recorder.clone()).layer(note("inner"))
    })
    .await;
    database.execute("select outbox.publish('a.b', '1')").await;
    recorder.wait_for(1).await;
    relay.stop().await;
    assert_eq!(said(&notes), ["outer in", "middle in", "inner in", "inner out", "middle out", "outer out"]);
    database.drop().await;
}

#[tokio::test]
async fn a_layer_alters_and_refuses_some_of_a_batch_and_the_others_arrive_together() {
    let database = Database::new().await;
    let batches = Said::default();
    database.execute("select outbox.declare_sink('batches')").await;
    subscribe(&database, "all", "batches", "{}").await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).sink(Batches(batches.clone())).layer(Alter)
    })
    .await;
    database.execute("select outbox.publish('a.b', to_jsonb(n)) from generate_series(1, 5) as n").await;
    database
        .eventually(
            "select count(*) = 1 and bool_and(payload = '3' and reason = 'payload_unusable' \
             and answer = 'no threes') from outbox.dead_letters",
        )
        .await;
    relay.stop().await;
    let sent = said(&batches).join(",");
    assert_eq!(sent, "[1],[2],[4],[5]", "altered, in order, without the refused one");
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn a_layer_that_panics_fails_an_attempt_and_nothing_else() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    subscribe(&database, "plain", "recorder", "{}").await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).sink(recorder.clone()).layer(Fragile)
    })
    .await;
    database.execute("select outbox.publish('a.b', '\"bad\"'), outbox.publish('a.b', '\"good\"')").await;
    database.eventually("select count(*) = 1 from outbox.dead_letters where reason = 'sink_panicked'").await;
    let seen = recorder.wait_for(1).await;
    assert_eq!((seen.len(), seen[0].payload.as_str()), (1, "\"good\""));
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn an_attempt_above_the_limit_of_the_timeout_layer_is_an_ambiguous_timeout() {
    let database = Database::new().await;
    subscribe(&database, "hangs", "recorder", "{\"hang\": true}").await;
    let relay = RelayBox::start_with(&database, |builder| {
        let settings = Settings { attempt_log: AttemptLog::All, ..settings("relay") };
        let builder = builder.settings(settings).sink(Recorder::new());
        builder.layer(Timeout::new(Duration::from_millis(300)))
    })
    .await;
    database.execute("select outbox.publish('a.b', '1')").await;
    database
        .eventually(
            "select count(*) = 2 and bool_and(ambiguous and reason = 'timeout' \
             and answer = 'no report within 300ms' and duration < interval '3 seconds') \
             from outbox.attempts",
        )
        .await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_layer_on_a_kind_that_the_relay_does_not_have_is_an_error_that_names_it() {
    let database = Database::new().await;
    let pool = sqlx::PgPool::connect_lazy_with(database.relay_options.clone());
    let builder = pgoutbox::Relay::builder(pool).settings(settings("relay")).layer_on("webhok", Fragile);
    let error = builder.build().await.unwrap_err().to_string();
    assert!(error.contains("layer_on: this relay has no sink \"webhok\""), "{error}");
    database.drop().await;
}

/// A handler is a sink like the others.
#[tokio::test]
async fn handlers_are_wrapped_too() {
    let database = Database::new().await;
    let notes = Said::default();
    let note = Note("handler", notes.clone());
    let mut relay = RelayBox::start_with(&database, |builder| {
        let handler = |_| async { Ok::<(), pgoutbox::HandlerError>(()) };
        builder.settings(settings("relay")).layer_on("handler", note).handler("mine", ["a.**"], handler)
    })
    .await;
    database.execute("select outbox.publish('a.b', '1')").await;
    relay.wait(|signal| matches!(signal, Signal::Settled { .. })).await;
    relay.stop().await;
    assert_eq!(said(&notes), ["handler in", "handler out"]);
    database.drop().await;
}
