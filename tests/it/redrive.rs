//! Dead letters at scale: redriven by filter at a rate, until an interrupt.

use std::{
    collections::BTreeMap,
    process::{Command, Output, Stdio},
};

use pgoutbox::delivery::{Outcome, Reason};
use serde_json::Value;

use crate::support::{Database, Recorder, RelayBox};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A subscription with so many dead letters, each of an event of its own, one a minute until now.
async fn fill(database: &Database, letters: i64) {
    database
        .execute(format!(
            "select outbox.subscribe('shop', array['shop.**'], 'recorder', retry => '{{\"max_attempts\": 1}}'); \
             insert into outbox.dead_letters (died_at, subscription_id, subscription, reason, attempts, event_id, \
                                              position, created_at, topic, payload, headers, priority) \
             select now() - make_interval(mins => ({letters} - n)::int), \
                    (select id from outbox.subscriptions), 'shop', 'timeout', 12, outbox.new_id(), \
                    n, now(), 'shop.sold', '1', '{{}}', 0 \
               from generate_series(1, {letters}) as n; \
             select setval('outbox.events_position_seq', {letters} + 1)"
        ))
        .await;
}

/// Runs the program beside the relay of a test.
async fn run(database: &Database, arguments: &[&str]) -> Output {
    let mut command = database.command(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_rate_spreads_what_is_redriven_and_is_a_limit_of_its_own() {
    let database = Database::new().await;
    fill(&database, 30).await;
    let dry = run(&database, &["dlq", "redrive", "--all", "--rate", "20/s", "--dry-run"]).await;
    let dry_run = run(&database, &["dlq", "redrive", "--rate", "20/s", "--dry-run"]).await;
    assert_eq!(dry.stdout, dry_run.stdout, "{dry:?}");
    assert!(text(&dry.stderr).ends_with("at this rate it takes 2s\n"), "{dry:?}");
    assert_eq!(database.count("select count(*) from outbox.deliveries").await, 0);
    let output = run(&database, &["dlq", "redrive", "--all", "--rate", "20/s", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["redriven"], &json["left"]), (&30.into(), &0.into()), "{output:?}");
    assert_eq!(text(&output.stderr), "", "no progress where there is no terminal");
    // A second's burst is a quarter of a second here: at 20/s 30 of them take more than a second.
    let spread = "select count(*) = 30 and max(due_at) - min(due_at) between '1.2s' and '20s'
                     and count(distinct (extract(epoch from due_at) * 8)::bigint) >= 6
                     and array_agg(position order by due_at, id) = array_agg(position order by position)
                    from outbox.deliveries";
    database.eventually(spread).await;
    fill_again(&database, 1200).await;
    let limited = run(&database, &["dlq", "redrive", "--all", "--rate", "9999999/s", "--limit", "7"]).await;
    assert_eq!(text(&limited.stdout), "7\n", "{limited:?}");
    let all = run(&database, &["dlq", "redrive", "--all", "--rate", "9999999/s"]).await;
    assert_eq!(text(&all.stdout), "1193\n", "{all:?}");
    let refused = run(&database, &["dlq", "redrive", "--all", "--rate", "fast"]).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    database.drop().await;
}

async fn fill_again(database: &Database, letters: i64) {
    database.execute("delete from outbox.deliveries").await;
    fill(database, letters).await;
}

/// Else one that fails at once would go round until somebody stops it.
#[tokio::test]
async fn what_is_given_up_again_meanwhile_is_left_alone() {
    let database = Database::new().await;
    fill(&database, 20).await;
    let recorder = Recorder::answering(|_| Outcome::Rejected { reason: Reason::Refused });
    let relay = RelayBox::start(&database, &recorder).await;
    let output = run(&database, &["dlq", "redrive", "--all", "--rate", "16/s"]).await;
    assert_eq!(text(&output.stdout), "20\n", "{output:?}");
    recorder.wait_for(20).await;
    database.eventually("select count(*) = 20 from outbox.dead_letters where reason = 'refused'").await;
    let mut times = BTreeMap::new();
    for seen in recorder.seen() {
        *times.entry(seen.position).or_insert(0) += 1;
    }
    assert_eq!((times.len(), times.values().max()), (20, Some(&1)), "{times:?}");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn an_interrupt_stops_between_two_parts_and_says_what_was_done() {
    let database = Database::new().await;
    fill(&database, 1000).await;
    let mut child = database
        .command(&["dlq", "redrive", "--subscription", "shop", "--rate", "8/s", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    database.eventually("select count(*) >= 4 from outbox.deliveries").await;
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = tokio::task::spawn_blocking(move || {
        child.wait().unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let redriven = database.count("select count(*) from outbox.deliveries").await;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["redriven"], &json["left"]), (&redriven.into(), &(1000 - redriven).into()));
    assert!(
        text(&output.stderr).ends_with(&format!("interrupted after {redriven} dead letters\n")),
        "{output:?}"
    );
    database.drop().await;
}

#[tokio::test]
async fn a_terminal_is_shown_how_far_it_is() {
    let database = Database::new().await;
    fill(&database, 10).await;
    let program = env!("CARGO_BIN_EXE_pgoutbox");
    let said = tokio::task::spawn_blocking({
        let mut command = database.command(&[]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut script = Command::new("script");
        for (name, value) in command.env("PATH", path).get_envs() {
            script.env(name, value.unwrap_or_default());
        }
        script.args(["-qefc", &format!("{program} dlq redrive --all --rate 20/s"), "/dev/null"]);
        script.stdin(Stdio::null());
        move || script.output().unwrap()
    });
    let said = text(&said.await.unwrap().stdout);
    assert!(
        said.starts_with("\rredriven 0 of 10 (0 %), 1s left\u{1b}[K\rredriven 5 of 10 (50 %)"),
        "{said:?}"
    );
    assert!(said.ends_with("\r\u{1b}[K10\r\n"), "it is removed before the result: {said:?}");
    database.drop().await;
}

#[tokio::test]
async fn what_was_given_up_before_a_time_is_chosen_by_until() {
    let database = Database::new().await;
    fill(&database, 30).await;
    let count = async |arguments: &[&str]| {
        let arguments: Vec<&str> = ["dlq"].iter().chain(arguments).copied().collect();
        let output = run(&database, &arguments).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        text(&output.stdout)
    };
    // The newest is of now, the oldest of 29 minutes ago.
    let chosen = ["--since", "1230s", "--until", "630s"];
    let with = |first: &[&'static str]| first.iter().chain(&chosen).copied().collect::<Vec<&str>>();
    assert_eq!(count(&with(&["redrive", "--dry-run"])).await, "10\n");
    assert_eq!(count(&with(&["list"])).await.lines().count(), 11);
    assert_eq!(count(&with(&["list", "--grouped"])).await.lines().count(), 2);
    assert_eq!(count(&with(&["discard", "--yes", "--limit", "3"])).await, "3\n");
    assert_eq!(count(&with(&["redrive"])).await, "7\n");
    assert_eq!(
        database
            .count("select count(*) from outbox.matching_dead_letters(until => now() - interval '630s')")
            .await,
        9
    );
    assert_eq!(database.count("select outbox.discard(until => now() - interval '630s')").await, 9);
    assert_eq!(database.count("select outbox.redrive(until => now() - interval '630s')").await, 0);
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 11);
    database.drop().await;
}
