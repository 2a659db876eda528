//! Rates of subscriptions and of organizations, over relays and their restarts.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::{Settings, telemetry::Signal},
};
use serde_json::json;

use crate::{
    support::{Database, Good, Recorder, RelayBox, pause, relay::settings},
    webhook_relay::{publish, relay_settings, start, subscribe},
};

/// When each subscription was sent to, in seconds.
#[derive(Clone)]
struct Log {
    began: Instant,
    sent: Arc<Mutex<Vec<(String, f64)>>>,
    recorder: Recorder,
}

impl Log {
    fn answering(answer: impl Fn(u32) -> Outcome + Send + Sync + 'static) -> Self {
        let (began, sent) = (Instant::now(), Arc::<Mutex<Vec<(String, f64)>>>::default());
        let into = sent.clone();
        let recorder = Recorder::answering(move |seen| {
            into.lock().unwrap().push((seen.subscription.clone(), began.elapsed().as_secs_f64()));
            answer(seen.attempt)
        });
        Self { began, sent, recorder }
    }

    fn new() -> Self {
        Self::answering(|_| Outcome::Delivered)
    }

    async fn relay(&self, database: &Database, name: &str) -> RelayBox {
        let recorder = self.recorder.clone();
        RelayBox::start_with(database, |builder| builder.settings(settings(name)).sink(recorder)).await
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// The times at which subscriptions whose names begin so were sent to.
    fn of(&self, prefix: &str) -> Vec<f64> {
        let sent = self.sent.lock().unwrap();
        let mut times: Vec<f64> =
            sent.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, at)| *at).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// How many a second are sent, from now on. It takes so long that what may come late, after the relay had
    /// no processor for a while, is a tenth: a second's worth.
    async fn rate(&self, prefix: &str) -> f64 {
        const LONG: f64 = 10.0;
        let from = self.now();
        pause(Duration::from_secs_f64(LONG)).await;
        self.of(prefix).iter().filter(|at| (from..from + LONG).contains(*at)).count() as f64 / LONG
    }

    /// In no time were there more than the rate allows, a second's worth and a tenth.
    fn assert_holds(&self, prefix: &str, rate: f64) {
        let times = self.of(prefix);
        for (first, from) in times.iter().enumerate() {
            for (last, to) in times.iter().enumerate().skip(first) {
                let (count, allowed) = ((last - first + 1) as f64, rate * (to - from + 1.0));
                assert!(
                    count <= allowed * 1.1 + 1.0,
                    "{count} in {} s, where {allowed} are allowed, from {from} s on",
                    to - from
                );
            }
        }
    }
}

async fn events(database: &Database, count: u32) {
    database
        .execute(format!("select outbox.publish('a.b', '1') from generate_series(1, {count}) as n"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_holds_with_three_relays_with_one_that_has_the_work_and_after_restarts() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('slow', array['**'], 'recorder', rate => '50/s')").await;
    database.execute("select outbox.subscribe('free', array['**'], 'recorder')").await;
    let log = Log::new();
    let mut relays = Vec::new();
    for name in ["one", "two", "three"] {
        relays.push(log.relay(&database, name).await);
    }
    events(&database, 2_000).await;
    let published = log.now();
    log.recorder
        .wait_until(|seen| seen.iter().filter(|one| one.subscription == "free").count() == 2_000)
        .await;
    assert!(log.now() - published < 5.0, "the other subscription is not held up");
    assert!(log.of("slow").len() < 400);
    let with_three = log.rate("slow").await;
    assert!((45.0..=55.0).contains(&with_three), "{with_three} a second with three relays");
    // Two of them die, and the one that is left soon has all the work.
    for relay in relays.drain(..2) {
        relay.abort().await;
    }
    pause(Duration::from_secs(2)).await;
    let with_one = log.rate("slow").await;
    assert!((45.0..=55.0).contains(&with_one), "{with_one} a second with one relay of three");
    // Restarts give nothing more.
    for relay in relays {
        relay.abort().await;
    }
    for _ in 0..4 {
        let relay = log.relay(&database, "again").await;
        pause(Duration::from_millis(400)).await;
        relay.stop().await;
    }
    log.assert_holds("slow", 50.0);
    database.drop().await;
}

#[tokio::test]
async fn a_rate_costs_a_few_writes_a_second_and_none_for_each_delivery() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('slow', array['**'], 'recorder', rate => '200/s')").await;
    let log = Log::new();
    let relay = log.relay(&database, "relay").await;
    events(&database, 800).await;
    log.recorder.wait_for(800).await;
    let took = log.now();
    assert!((2.5..=5.0).contains(&took), "{took} s");
    relay.stop().await;
    database.eventually("select n_tup_upd > 0 from pg_stat_user_tables where relname = 'paces'").await;
    let writes = database
        .count(
            "select sum(n_tup_ins + n_tup_upd)::bigint from pg_stat_user_tables
              where relname in ('paces', 'backlog', 'deliveries')",
        )
        .await;
    assert!(writes <= 40, "{writes} row versions for 800 deliveries in {took} s");
    log.assert_holds("slow", 200.0);
    database.drop().await;
}

#[tokio::test]
async fn a_retry_counts_as_a_delivery_and_an_urgent_event_goes_first() {
    let database = Database::new().await;
    let retry = r#"{"schedule": ["0s"], "jitter": 0}"#;
    database
        .execute(format!(
            "select outbox.subscribe('slow', array['**'], 'recorder', rate => '30/s', retry => '{retry}')"
        ))
        .await;
    // Each fails once.
    let log = Log::answering(|attempt| match attempt {
        1 => Outcome::Retry { reason: Reason::ServerError, after: None },
        _ => Outcome::Delivered,
    });
    let relay = log.relay(&database, "relay").await;
    events(&database, 60).await;
    log.recorder.wait_for(60).await;
    database.execute("select outbox.publish('a.urgent', '1', priority => 5)").await;
    let at = log.recorder.seen().len();
    let seen = log.recorder.wait_until(|seen| seen.iter().any(|one| one.topic == "a.urgent")).await;
    assert!(seen.len() <= at + 35, "behind what had a slot already");
    log.recorder.wait_for(122).await;
    log.assert_holds("slow", 30.0);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_limited_organization_shares_its_rate_and_no_other_is_limited() {
    let database = Database::new().await;
    for (name, organization) in [("acme-1", "acme"), ("acme-2", "acme"), ("other", "other")] {
        database
            .execute(format!(
                "select outbox.subscribe('{name}', array['**'], 'recorder', organization => '{organization}')"
            ))
            .await;
    }
    let log = Log::new();
    let relay = log.relay(&database, "relay").await;
    assert_eq!(database.count("select outbox.limit_organization('acme', '40/s')::int::bigint").await, 1);
    assert_eq!(database.count("select outbox.limit_organization('acme', '40/s')::int::bigint").await, 0);
    for organization in ["acme", "other"] {
        database
            .execute(format!(
                "select outbox.publish('a.b', '1', organization => '{organization}')
                   from generate_series(1, 400) as n"
            ))
            .await;
    }
    log.recorder
        .wait_until(|seen| seen.iter().filter(|one| one.subscription == "other").count() == 400)
        .await;
    let rate = log.rate("acme").await;
    assert!((36.0..=44.0).contains(&rate), "{rate} a second");
    let (one, two) = (log.of("acme-1").len(), log.of("acme-2").len());
    assert!(one.abs_diff(two) < 60, "both get a part: {one} and {two}");
    log.assert_holds("acme", 40.0);
    // Without the limit the rest is sent at once.
    assert_eq!(database.count("select outbox.limit_organization('acme')::int::bigint").await, 1);
    let from = log.now();
    log.recorder.wait_for(1_200).await;
    assert!(log.now() - from < 5.0);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_batch_counts_as_many_as_it_has_events() {
    let database = Database::new().await;
    let good = Good::start().await;
    subscribe(
        &database,
        "shop",
        "**",
        json!({"url": good.url, "batch": {"max": 20, "wait": "10ms"}}),
        json!({}),
    )
    .await;
    database.execute("update outbox.subscriptions set rate = '50/s'").await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 400).await;
    let began = Instant::now();
    database.eventually("select exists (select from outbox.owed)").await;
    database.eventually("select not exists (select from outbox.owed)").await;
    let took = began.elapsed().as_secs_f64();
    // All but the burst: 350 to 400 events.
    assert!((6.9..=9.0).contains(&took), "400 events took {took} s");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_four_relays_begin_slowly() {
    let database = Database::new().await;
    let good = Good::counting(Duration::ZERO).await;
    let retry = json!({"schedule": vec!["0s"; 100], "jitter": 0});
    subscribe(&database, "shop", "**", json!({"url": good.url}), retry).await;
    let mut relays = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let settings = Settings { poll: Some(Duration::from_millis(500)), ..relay_settings(name) };
        relays.push(start(&database, settings).await);
    }
    // Their windows grow before the outage.
    publish(&database, "a.b", 500).await;
    database.eventually_within(Duration::from_secs(120), "select not exists (select from outbox.owed)").await;
    good.switch.set_down(true);
    publish(&database, "a.b", 2_500).await;
    for relay in &mut relays {
        relay.wait(|signal| matches!(signal, Signal::Breaker { open: true, .. })).await;
    }
    database.eventually("select not exists (select from outbox.owed where lease_token is not null)").await;
    let before = good.switch.requests();
    good.switch.set_down(false);
    relays[0].wait(|signal| matches!(signal, Signal::Breaker { open: false, .. })).await;
    let closed = Instant::now();
    pause(Duration::from_millis(400).saturating_sub(closed.elapsed())).await;
    let first = good.switch.requests() - before;
    // 8 at once and 16 a second, twice as many with each quarter of a second, and the probes.
    let allowed = 4.0 * (10.0 + 5.8 * ((4.0 * closed.elapsed().as_secs_f64()).exp2() - 1.0)) + 20.0;
    database.eventually_within(Duration::from_secs(120), "select not exists (select from outbox.owed)").await;
    let all = good.switch.requests() - before;
    assert!((first as f64) < allowed, "{first} requests at first, of which {allowed} are allowed");
    assert!(all >= 2_500);
    for relay in relays {
        relay.stop().await;
    }
    database.drop().await;
}
