//! Relays that start, stop and are killed, and the end, when everything must be delivered.

use std::time::{Duration, Instant};

use pgoutbox::{
    relay::Settings,
    sink::{egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
};
use rand::Rng;

use super::{PERMITS, Spec, World};
use crate::support::{RelayBox, pause, relay::settings};

/// Time for everything to be delivered at the end: leases of killed relays and open breakers end first.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

impl World {
    pub(super) async fn start_relay(&mut self) {
        if self.relays.len() >= 3 {
            return;
        }
        if let Some((_, until @ None)) = self.history.silences.last_mut() {
            *until = Some(Instant::now());
        }
        self.started += 1;
        let settings = Settings {
            permits: PERMITS,
            lease: Duration::from_secs(3),
            drain: Duration::from_millis([300, 5_000][self.random.random_range(0..2)]),
            poll: Some(Duration::from_millis(500)),
            ..settings(&format!("relay{}", self.started))
        };
        let egress =
            Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..Egress::default() };
        let secrets = Secrets::with_environment(None, |name| {
            (name == "PGOUTBOX_SECRET_A").then(|| "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into())
        });
        let webhook = Webhook::new(&egress, secrets).unwrap();
        self.relays.push(
            RelayBox::start_with(&self.database, |builder| builder.settings(settings).sink(webhook)).await,
        );
    }

    pub(super) async fn end_relay(&mut self) {
        if self.relays.is_empty() {
            return;
        }
        let number = self.random.random_range(0..self.relays.len());
        let relay = self.relays.swap_remove(number);
        let begun = Instant::now();
        if self.random.random_bool(0.5) {
            relay.abort().await;
            self.history.kills.push(Instant::now());
        } else if !relay.stop().await.complete {
            self.history.kills.push(Instant::now());
        }
        self.history.stops.extend([begun, Instant::now()]);
        if self.relays.is_empty() {
            self.history.silences.push((Instant::now(), None));
        }
    }

    /// Fixes, resumes and redrives everything until nothing is owed. Returns what does not end.
    pub(super) async fn settle(&mut self) -> Option<String> {
        while !self.open.is_empty() {
            self.end_transaction().await;
        }
        if self.relays.is_empty() {
            self.start_relay().await;
        }
        self.receiver.all_good();
        for number in 0..self.history.subscriptions.len() {
            let one = &self.history.subscriptions[number];
            if !one.is_alive() {
                continue;
            }
            if !one.now().spec.is_valid() {
                let (path, spec) = (one.now().path, Spec { secret: None, ..one.now().spec.clone() });
                self.change(number, path, spec, None).await;
            }
            self.resume_one(number).await;
        }
        let began = Instant::now();
        while began.elapsed() < SETTLED_WITHIN {
            let question = "select not exists (select from outbox.owed \
                                             join outbox.subscriptions as existing \
                                               on existing.id = owed.subscription_id) \
                               and not exists (select from outbox.starts) \
                               and (select unrouted from outbox.log_status) = 0 \
                               and not exists (select from outbox.subscriptions \
                                                where state <> 'ok' or not active)";
            let settled: bool = sqlx::query_scalar(question).fetch_one(&self.database.pool).await.unwrap();
            let letters: Vec<i64> = sqlx::query_scalar(
                "select distinct letter.subscription_id from outbox.dead_letters as letter \
                   join outbox.subscriptions as existing on existing.id = letter.subscription_id",
            )
            .fetch_all(&self.database.pool)
            .await
            .unwrap();
            if settled && letters.is_empty() {
                return None;
            }
            let gone = "select id from outbox.subscriptions where state = 'gone'";
            let gone: Vec<i64> = sqlx::query_scalar(gone).fetch_all(&self.database.pool).await.unwrap();
            for number in 0..self.history.subscriptions.len() {
                let one = &self.history.subscriptions[number];
                if gone.contains(&one.id) {
                    // The answer may not have been recorded when it was resumed: then that changed nothing.
                    if one.changes.last().is_some_and(|last| last.is_new) {
                        return Some(format!("subscription {number} is gone again after it was resumed"));
                    }
                    self.resume_one(number).await;
                }
                if letters.contains(&self.history.subscriptions[number].id) {
                    self.redrive_one(number).await;
                }
            }
            pause(Duration::from_millis(200)).await;
        }
        let subscriptions: Vec<String> =
            sqlx::query_scalar("select status::text from outbox.subscription_status as status")
                .fetch_all(&self.database.pool)
                .await
                .unwrap();
        Some(format!(
            "not settled within {SETTLED_WITHIN:?}: {subscriptions:#?}\n{}",
            self.database.rows_at_hand().await
        ))
    }
}
