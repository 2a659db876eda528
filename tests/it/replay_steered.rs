//! Replays are paused, resumed, cancelled, bounded and refused; a relay for cron works them, too.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor as _, postgres::PgDatabaseError};
use uuid::Uuid;

use crate::{
    fence::restore,
    replay::{ended, numbers, publish, replay, replayed, subscribed},
    support::{Database, Recorder, RelayBox, recorder::Seen},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_paused_resumed_and_cancelled() {
    let database = subscribed("").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, 300).await;
    recorder.wait_for(300).await;
    let id = replay(&database, "now() - interval '1 hour', rate => '40/s'").await;
    let again = |seen: &[Seen]| seen.iter().filter(|one| one.replay == Some(id)).count();
    recorder.wait_until(|seen| again(seen) >= 10).await;
    let text = id.to_string();
    let said = |word: &str| {
        let output = database.pgoutbox(&["replays", word, &text]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said("pause").contains("is paused"));
    assert!(said("pause").contains("was not paused"));
    // What was queued is sent, and then nothing.
    database.eventually("select waiting = 0 and state = 'paused' from outbox.replay_status").await;
    let paused = again(&recorder.seen());
    assert!(paused < 150, "{paused} were sent");
    publish(&database, "a.live", 0, 0).await;
    recorder.wait_until(|seen| seen.iter().any(|one| one.topic == "a.live")).await;
    assert_eq!(again(&recorder.seen()), paused);

    assert!(said("resume").contains("is resumed"));
    recorder.wait_until(|seen| again(seen) >= paused + 10).await;
    assert!(said("cancel").contains("is cancelled"));
    let cancelled = again(&recorder.seen());
    database.eventually("select waiting = 0 from outbox.replay_status").await;
    let (sent, state): (i64, String) = sqlx::query_as("select sent, state from outbox.replay_status")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(state, "cancelled");
    publish(&database, "a.live", 1, 1).await;
    recorder.wait_until(|seen| seen.iter().filter(|one| one.topic == "a.live").count() == 2).await;
    let in_all = again(&recorder.seen());
    assert_eq!(i64::try_from(in_all).unwrap(), sent);
    assert!(in_all - cancelled < 10, "{} were sent after it was cancelled", in_all - cancelled);
    for word in ["resume", "pause", "cancel"] {
        assert!(said(word).contains("was not"), "an ended replay does not change");
    }
    let missing = database.pgoutbox(&["replays", "cancel", "4711"]);
    assert!(String::from_utf8(missing.stderr).unwrap().contains("there is no replay 4711"));
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_replays_go_on_at_once_and_end_with_their_subscription() {
    let database = subscribed("").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, 400).await;
    recorder.wait_for(400).await;
    let both = [
        replay(&database, "now() - interval '1 hour'").await,
        replay(&database, "now() - interval '1 hour', topic => 'a.*'").await,
    ];
    for id in both {
        ended(&database, id, "done").await;
        assert_eq!(numbers(&replayed(&recorder.seen(), id)), (1..=400).collect());
    }
    database
        .execute(
            "select outbox.replay('all', now() - interval '1 hour', rate => '1/h') \
               from generate_series(1, 10)",
        )
        .await;
    let refusal = database.pool.execute("select outbox.replay('all', now() - interval '1 hour')").await;
    let refusal = refusal.unwrap_err();
    let refusal = refusal.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
    assert_eq!(refusal.message(), "subscription 'all' has 10 replays that have not ended");
    database.execute("select outbox.unsubscribe('all')").await;
    database
        .eventually(
            "select (select count(*) from outbox.replays) + (select count(*) from outbox.deliveries) = 0",
        )
        .await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_runs_once_works_a_replay_to_its_end() {
    let database = Database::new().await;
    // Most parts of the log have nothing for it.
    let filter = "payload == 1 || payload == 2 || payload == 20000";
    database
        .execute(format!("select outbox.subscribe('all', array['a.**'], 'stdout', filter => '{filter}')"))
        .await;
    publish(&database, "a.b", 1, 20_000).await;
    let run = || {
        let output = database.pgoutbox_with(
            &[("DATABASE_URL", &database.relay_url()), ("PGOUTBOX__HTTP__LISTEN", "off")],
            &["run", "--once"],
        );
        assert!(output.status.success(), "{output:?}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let marker = |line: &str| {
            let whole: serde_json::Value = serde_json::from_str(line).unwrap();
            (whole["id"].to_string(), whole["headers"]["pgoutbox-replay"].as_str().map(ToOwned::to_owned))
        };
        lines.lines().map(marker).collect::<Vec<_>>()
    };
    let mut first: Vec<String> = run().into_iter().map(|(id, _)| id).collect();
    let id = replay(&database, "now() - interval '1 hour'").await;
    let again = run();
    assert!(again.iter().all(|(_, marker)| *marker == Some(id.to_string())));
    let mut again: Vec<String> = again.into_iter().map(|(id, _)| id).collect();
    first.sort();
    again.sort();
    assert_eq!((first.len(), again), (3, first));
    database.drop().await;
}

#[tokio::test]
async fn what_cannot_be_replayed_is_refused_with_its_field() {
    let database = subscribed("").await;
    publish(&database, "a.b", 1, 1).await;
    let event: Uuid =
        sqlx::query_scalar("select id from outbox.events").fetch_one(&database.pool).await.unwrap();
    for (arguments, message) in [
        ("'none', now()", "there is no subscription 'none'".to_owned()),
        ("'all', null", "since: is null".to_owned()),
        ("'all', now() + interval '1 day'", "since: ".to_owned()),
        ("'all', '2026-01-02Z', '2026-01-01Z'", "until: 2026-01-01".to_owned()),
        ("'all', '2026-01-02Z', '2026-01-02Z'", "until: 2026-01-02".to_owned()),
        ("'all', now(), topic => 'a..b'", "topic: 'a..b' is not a topic pattern".to_owned()),
        ("'all', now(), rate => '50'", "rate: '50' is not a rate".to_owned()),
        ("'all', now(), rate => '0/s'", "rate: '0/s' is not a rate".to_owned()),
        (
            "'all', null, event => '00000000-0000-0000-0000-000000000001'",
            "event: 00000000-0000-0000-0000-000000000001 is not in the log".to_owned(),
        ),
        (
            &format!("'all', '2020-01-01Z', '2020-01-02Z', event => '{event}'"),
            format!("event: {event} was published at "),
        ),
    ] {
        let call = format!("select outbox.replay({arguments})");
        let refusal = database.pool.execute(AssertSqlSafe(call)).await.unwrap_err();
        let refusal = refusal.as_database_error().unwrap();
        assert!(refusal.message().starts_with(&message), "{arguments}: {refusal}");
    }
    for (arguments, code, message) in [
        (&["replay", "all"][..], 2, "--since <TIME>"),
        (&["replay", "none", "--since", "1h"], 1, "there is no subscription 'none'"),
        (&["replay", "none", "--since", "1h", "--dry-run"], 1, "there is no subscription 'none'"),
        (&["replay", "all", "--since", "1h", "--rate", "fast"], 2, "\"fast\" is not a rate; write 50/s"),
        (&["replay", "all", "--since", "yesterday"], 2, "write a time such as"),
    ] {
        let output = database.pgoutbox(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(message), "{arguments:?}: {said}");
    }
    assert_eq!(database.count("select count(*) from outbox.replays").await, 0);
    database.drop().await;
}

/// Half a million positions, of which a replay of the last hour looks at few.
#[tokio::test]
async fn the_first_event_of_a_time_is_found_without_reading_the_log() {
    let database = subscribed("").await;
    database
        .execute(
            "insert into outbox.events (topic, payload, created_at) \
             select 'x.y', '1', now() - interval '10 days' * (300000 - n) / 300000 \
               from generate_series(1, 300000) as n",
        )
        .await;
    publish(&database, "a.b", 1, 5).await;
    let began = Instant::now();
    let id = replay(&database, "now() - interval '1 minute'").await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let (first, exact): (i64, i64) = sqlx::query_as(
        "select first_position, (select min(position) from outbox.events where created_at >= since) \
           from outbox.replays where id = $1",
    )
    .bind(id)
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert!(first < exact && exact - first < 5_000, "from {first}, the first event is {exact}");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_replay_that_is_left_open_delays_no_other() {
    let database = subscribed("").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, 100).await;
    recorder.wait_for(100).await;
    database.execute("select outbox.pause('all')").await;
    let locked = replay(&database, "now() - interval '1 hour'").await;
    let free = replay(&database, "now() - interval '1 hour'").await;
    let mut open = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.pause_replay($1)").bind(locked).execute(&mut *open).await.unwrap();
    let began = Instant::now();
    database.execute("select outbox.resume('all')").await;
    ended(&database, free, "done").await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(replayed(&recorder.seen(), locked).len(), 0);
    open.rollback().await.unwrap();
    ended(&database, locked, "done").await;
    assert_eq!(numbers(&replayed(&recorder.seen(), locked)), (1..=100).collect());
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_in_a_restored_dump_or_ends_with_what_is_discarded() {
    let original = subscribed("").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&original, &recorder).await;
    publish(&original, "a.b", 1, 300).await;
    recorder.wait_for(300).await;
    assert!(relay.stop().await.complete);
    // What is not routed yet is sent as always.
    publish(&original, "a.b", 301, 310).await;
    let id = replay(&original, "now() - interval '1 hour'").await;
    publish(&original, "a.b", 311, 320).await;
    for (how, again, live, state) in
        [("--keep-pending", 300, 20, "done"), ("--discard-pending", 0, 0, "cancelled")]
    {
        let copy = Database::empty().await;
        restore(&original, &copy.plain_url());
        let output = copy.pgoutbox(&["adopt", how]);
        assert!(output.status.success(), "{output:?}");
        let recorder = Recorder::new();
        let relay = RelayBox::start(&copy, &recorder).await;
        publish(&copy, "a.last", 0, 0).await;
        ended(&copy, id, state).await;
        recorder.wait_until(|seen| seen.iter().filter(|one| one.replay.is_none()).count() > live).await;
        assert!(relay.stop().await.complete);
        let seen = recorder.seen();
        assert_eq!(numbers(&replayed(&seen, id)), (1..=again).collect(), "{how}");
        assert_eq!(seen.iter().filter(|one| one.replay.is_none()).count(), live + 1, "{how}");
        copy.drop().await;
    }
    let recorder = Recorder::new();
    let relay = RelayBox::start(&original, &recorder).await;
    ended(&original, id, "done").await;
    let seen = recorder.wait_until(|seen| seen.len() >= 320).await;
    assert_eq!(numbers(&replayed(&seen, id)), (1..=300).collect());
    assert_eq!(seen.iter().filter(|one| one.replay.is_none()).count(), 20);
    assert!(relay.stop().await.complete);
    original.drop().await;
}

/// What a command writes to a terminal.
async fn on_a_terminal(database: &Database, command: &str) -> String {
    let program = env!("CARGO_BIN_EXE_pgoutbox");
    let script = tokio::process::Command::new("script")
        .args(["-qec", &command.replace("pgoutbox", program), "/dev/null"])
        .env("DATABASE_URL", database.url())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(30), script).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_how_far_a_replay_is_and_an_interrupt_ends_only_the_command() {
    let database = subscribed("").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 1, 20).await;
    recorder.wait_for(20).await;
    let shown = on_a_terminal(&database, "pgoutbox replay all --since 1h").await;
    assert!(
        shown.contains("\r[") && shown.contains("###]") && shown.contains("sent 20  waiting 0"),
        "{shown:?}"
    );
    assert!(shown.contains("is done: 20 deliveries, 0 failed"), "{shown:?}");
    let command = "timeout --foreground --preserve-status -s INT 2 pgoutbox replay all --since 1h --rate 1/h";
    let shown = on_a_terminal(&database, command).await;
    let id = database.count("select max(id) from outbox.replays").await;
    let expected = format!("replay {id} goes on; `pgoutbox replays cancel {id}` ends it");
    assert!(shown.contains(&expected), "{shown:?}");
    assert_eq!(database.count("select count(*) from outbox.replays where state = 'running'").await, 1);
    relay.stop().await;
    database.drop().await;
}
