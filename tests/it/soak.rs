//! a relay that runs for long takes no more memory and descriptors than after its first minutes,
//! whatever happens around it meanwhile: `make soak`.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::support::{Books, ChildRelay, Crowd, Database, Habits, Server, pause, seed};

/// Minutes for which it runs.
const MINUTES: &str = "PGOUTBOX_TEST_MINUTES";
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const FAULT_EVERY: Duration = Duration::from_secs(60);
/// A run of so many minutes shows a slope of memory.
const LONG: u64 = 60;

/// What a process has at a time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    hours: f64,
    kibibytes: f64,
    descriptors: usize,
    dead_rows: i64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak"]
async fn a_relay_takes_no_more_memory_and_descriptors_after_long() {
    let minutes: u64 = std::env::var_os(MINUTES).and_then(|text| text.to_str()?.parse().ok()).unwrap_or(10);
    let (seed, began) = (seed(), Instant::now());
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_millis(5)).await;
    server.subscribe(&database, "all", &["**"]).await;
    server.subscribe(&database, "orders", &["shop.orders.*"]).await;
    let watched = ChildRelay::start(&database, "watched", &[]).await;
    let mut other = ChildRelay::start(&database, "other-0", &[]).await;
    let habits = Habits { publishers: 2, rests: Duration::from_millis(200), ..Habits::default() };
    let crowd = Crowd::start(&database, &books, seed, habits);
    let (mut samples, mut faults) = (Vec::new(), 0_u64);
    while began.elapsed() < Duration::from_secs(60 * minutes) {
        pause(SAMPLE_EVERY).await;
        samples.push(sample(&watched, &database, began).await);
        if began.elapsed() > FAULT_EVERY * u32::try_from(faults + 1).unwrap() {
            faults += 1;
            other.kill().await;
            books.fault("kill", 1_024);
            database
                .execute(
                    "select count(pg_terminate_backend(pid))
                       from (select pid from pg_stat_activity
                              where datname = current_database() and application_name like 'pgoutbox%watched%'
                              order by random() limit 3) as chosen",
                )
                .await;
            books.fault("backends terminated", 1_024);
            other = ChildRelay::start(&database, &format!("other-{faults}"), &[]).await;
        }
    }
    crowd.stop().await;
    books.healed(&database).await;
    let findings = books.balance(&database, seed).await;
    let third = samples.len() / 3;
    let (second, last) = (&samples[third..2 * third], &samples[2 * third..]);
    let descriptors = |part: &[Sample]| {
        let mut all: Vec<usize> = part.iter().map(|one| one.descriptors).collect();
        all.sort_unstable();
        all
    };
    let usual = |part: &[Sample]| descriptors(part)[part.len() / 2];
    let most = |part: &[Sample]| descriptors(part)[part.len() - 1];
    let slope = slope(&samples[third..]);
    println!(
        "{minutes} minutes, {faults} kills of another relay: {} requests, {} copies; memory {:.1} MiB after a \
         third, {:.1} MiB in the last one, {slope:+.2} % an hour; descriptors {} and {}; at most {} dead rows",
        books.requests(),
        findings.duplicates(),
        mean(second) / 1_024.0,
        mean(last) / 1_024.0,
        most(second),
        most(last),
        samples.iter().map(|one| one.dead_rows).max().unwrap()
    );
    println!("usually {} descriptors, then {}", usual(second), usual(last));
    assert!(usual(last) <= usual(second) + 4, "descriptors grow");
    assert!(most(last) <= most(second) + 4, "descriptors grow");
    assert!(mean(last) < 1.1 * mean(second), "memory grows");
    assert!(minutes < LONG || slope < 1.0, "memory grows by {slope} % an hour");
    drop((watched, other));
    database.drop().await;
}

async fn sample(relay: &ChildRelay, database: &Database, began: Instant) -> Sample {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let dead =
        "select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables where schemaname = 'outbox'";
    Sample {
        hours: began.elapsed().as_secs_f64() / 3_600.0,
        kibibytes: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        descriptors: fs::read_dir(format!("/proc/{}/fd", relay.id())).unwrap().count(),
        dead_rows: database.count(dead).await,
    }
}

#[expect(clippy::cast_precision_loss, reason = "few")]
fn mean(samples: &[Sample]) -> f64 {
    samples.iter().map(|one| one.kibibytes).sum::<f64>() / samples.len() as f64
}

/// By how many percent the memory grows in an hour: the line of least squares.
#[expect(clippy::cast_precision_loss, reason = "few")]
fn slope(samples: &[Sample]) -> f64 {
    let (memory, time) =
        (mean(samples), samples.iter().map(|one| one.hours).sum::<f64>() / samples.len() as f64);
    let (mut both, mut square) = (0.0, 0.0);
    for one in samples {
        both += (one.hours - time) * (one.kibibytes - memory);
        square += (one.hours - time).powi(2);
    }
    100.0 * both / square / memory
}
