//! Random sequences of what operators, publishers, receivers and relays do, against a model that says for
//! each event what each version of each subscription may and must get.

mod model;
mod receiver;
mod world;

use std::time::{Duration, Instant};

use crate::support::seed;
use world::World;

/// Minutes for which seed after seed is tried; without them one short round is.
const MINUTES: &str = "PGOUTBOX_TEST_MINUTES";

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_operated_each_version_gets_what_it_may_and_must_and_nothing_else() {
    let seed = seed();
    let findings = World::new(seed).await.round(120).await;
    assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make operations"]
async fn many_rounds_find_nothing() {
    let minutes = std::env::var_os(MINUTES).and_then(|text| text.to_str()?.parse().ok()).unwrap_or(10);
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let (mut found, first) = (Vec::new(), seed());
    for seed in (0..).map(|round| first.wrapping_add(round)).take_while(|_| Instant::now() < until) {
        let findings = World::new(seed).await.round(300).await;
        for finding in &findings {
            eprintln!("FOUND with seed {seed}: {finding}");
        }
        found.extend(findings.into_iter().map(|finding| (seed, finding)));
    }
    assert!(found.is_empty(), "{found:#?}");
}
