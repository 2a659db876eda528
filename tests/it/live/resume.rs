//! A client that comes back with a token is sent everything since, once each.

use std::time::Duration;

use pgoutbox::live::Settings;
use serde_json::{Value, json};

use crate::support::{Database, live::LiveBox};

async fn publish(database: &Database, from: usize, to: usize) {
    database
        .execute(format!("select outbox.publish('a.b', to_jsonb(n)) from generate_series({from}, {to}) as n"))
        .await;
}

fn numbers(payloads: &[Value]) -> Vec<u64> {
    payloads.iter().map(|payload| payload.as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_at_any_gateway_at_any_place_of_a_batch() {
    let database = Database::new().await;
    let (one, other) = (LiveBox::start(&database).await, LiveBox::start(&database).await);
    let mut client = one.connect().await;
    client.subscribe("a", &["a.*"], json!({})).await;
    client.wait("caught_up").await;
    publish(&database, 1, 20).await;
    let mut tokens = Vec::new();
    for n in 1..=20 {
        let event = client.wait("event").await;
        assert_eq!(event["event"]["payload"], n);
        tokens.push(event["token"].as_str().unwrap().to_owned());
    }
    publish(&database, 21, 25).await;
    for (gateway, token, first) in
        [(&one, 7, 9), (&one, 19, 21), (&other, 7, 9), (&other, 0, 2), (&other, 19, 21)]
    {
        let mut back = gateway.connect().await;
        back.subscribe("a", &["a.*"], json!({ "since": tokens[token] })).await;
        let expected: Vec<u64> = (first..=25).collect();
        assert_eq!(numbers(&back.payloads(expected.len()).await), expected);
        back.wait("caught_up").await;
    }
    one.stop().await;
    other.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_within_large_events_leads_to_all_that_follow() {
    let database = Database::new().await;
    let (one, other) = (LiveBox::start(&database).await, LiveBox::start(&database).await);
    let mut client = one.connect().await;
    client.subscribe("a", &["a.*"], json!({})).await;
    client.wait("caught_up").await;
    // More than one batch of bytes, in one commit.
    database
        .execute(
            "select outbox.publish('a.b', jsonb_build_array(n, repeat('x', 200000))) \
               from generate_series(1, 60) as n",
        )
        .await;
    let mut tokens = Vec::new();
    for n in 1..=60 {
        let event = client.wait("event").await;
        assert_eq!(event["event"]["payload"][0], n);
        tokens.push(event["token"].clone());
    }
    for (gateway, index) in [(&other, 2), (&other, 21), (&one, 30)] {
        let mut back = gateway.connect().await;
        back.subscribe("a", &["a.*"], json!({ "since": tokens[index] })).await;
        let rest: Vec<u64> =
            back.payloads(59 - index).await.iter().map(|payload| payload[0].as_u64().unwrap()).collect();
        assert_eq!(rest, (index as u64 + 2..=60).collect::<Vec<_>>());
        back.wait("caught_up").await;
    }
    one.stop().await;
    other.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_changed_is_refused() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    let token = live.connect().await.subscribe("a", &["a.*"], json!({})).await;
    let mut client = live.connect().await;
    for index in (9..token.len()).step_by(5) {
        let mut changed = token.clone().into_bytes();
        changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
        let since = String::from_utf8(changed).unwrap();
        let refused = json!({ "type": "subscribe", "id": "a", "topics": ["a.*"], "since": since });
        let code = client.refusal(refused).await;
        assert!(["bad_token", "other_database"].contains(&code.as_str()), "{since}: {code}");
    }
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_transaction_committed_late_is_not_missed() {
    let database = Database::new().await;
    let (one, other) = (LiveBox::start(&database).await, LiveBox::start(&database).await);
    let mut client = one.connect().await;
    client.subscribe("a", &["a.*"], json!({})).await;
    let mut late = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.publish('a.late', '100')").execute(&mut *late).await.unwrap();
    publish(&database, 1, 3).await;
    let mut token = Value::Null;
    for n in 1..=3 {
        let event = client.wait("event").await;
        assert_eq!(event["event"]["payload"], n);
        token = event["token"].clone();
    }
    drop(client);
    late.commit().await.unwrap();
    publish(&database, 4, 5).await;
    for gateway in [&one, &other] {
        let mut back = gateway.connect().await;
        back.subscribe("a", &["a.*"], json!({ "since": token })).await;
        let mut seen = numbers(&back.payloads(3).await);
        seen.sort_unstable();
        assert_eq!(seen, [4, 5, 100]);
        back.wait("caught_up").await;
    }
    one.stop().await;
    other.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_far_behind_reads_the_log_in_pages_and_goes_live_without_a_gap() {
    let database = Database::new().await;
    // A ring of a few dozen events.
    let settings = Settings { buffer: 65_536, ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let mut client = live.connect().await;
    let begin = client.subscribe("a", &["a.*"], json!({})).await;
    drop(client);
    publish(&database, 1, 3_000).await;
    let mut back = live.connect().await;
    back.subscribe("a", &["a.*"], json!({ "since": begin })).await;
    assert_eq!(numbers(&back.payloads(1_000).await), (1..=1_000).collect::<Vec<u64>>());
    publish(&database, 3_001, 5_000).await;
    assert_eq!(numbers(&back.payloads(4_000).await), (1_001..=5_000).collect::<Vec<u64>>());
    back.wait("caught_up").await;
    publish(&database, 5_001, 5_001).await;
    assert_eq!(numbers(&back.payloads(1).await), [5_001]);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_begin_at_a_time() {
    let database = Database::new().await;
    publish(&database, 1, 700).await;
    let time: String = sqlx::query_scalar(
        "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    publish(&database, 701, 900).await;
    let live = LiveBox::start(&database).await;
    let mut client = live.connect().await;
    client.subscribe("a", &["a.*"], json!({ "since": time })).await;
    assert_eq!(numbers(&client.payloads(200).await), (701..=900).collect::<Vec<u64>>());
    client.wait("caught_up").await;
    client.subscribe("b", &["a.*"], json!({ "since": "2020-01-01T00:00:00Z" })).await;
    assert_eq!(numbers(&client.payloads(900).await), (1..=900).collect::<Vec<u64>>());
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_has_the_newest_event_of_each_key_and_what_follows() {
    let database = Database::new().await;
    for n in 1..=30 {
        database.execute(format!("select outbox.publish('a.b', '{n}', key => 'k{}')", n % 3)).await;
    }
    let live = LiveBox::start(&database).await;
    let mut client = live.connect().await;
    let token = client.subscribe("a", &["a.*"], json!({ "snapshot": true })).await;
    assert_eq!(numbers(&client.payloads(3).await), [28, 29, 30]);
    client.wait("caught_up").await;
    publish(&database, 31, 32).await;
    assert_eq!(numbers(&client.payloads(2).await), [31, 32]);
    let mut again = live.connect().await;
    again.subscribe("a", &["a.*"], json!({ "since": token })).await;
    // Clients know the events of a snapshot by this, and come back with the token of any of them.
    let inside = again.wait("event").await["token"].as_str().unwrap().to_owned();
    assert!(inside.starts_with("snapshot."), "{inside}");
    assert_eq!(numbers(&again.payloads(2).await), [29, 30]);
    let mut third = live.connect().await;
    third.subscribe("a", &["a.*"], json!({ "since": inside })).await;
    assert_eq!(numbers(&third.payloads(3).await), [28, 29, 30]);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_what_was_removed_is_refused_and_a_younger_one_is_not() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    let mut client = live.connect().await;
    let old = client.subscribe("a", &["a.*"], json!({})).await;
    let mut open = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.publish('a.late', '100')").execute(&mut *open).await.unwrap();
    publish(&database, 1, 5).await;
    client.payloads(5).await;
    let beside = client.subscribe("d", &["a.*"], json!({})).await;
    open.commit().await.unwrap();
    // Also what another database writes meanwhile could be an event, as far as a snapshot says.
    let has_ended = "select pg_snapshot_xmin(pg_current_snapshot()) > xid from outbox.events \
                      order by xid desc limit 1";
    database.eventually(has_ended).await;
    let young = client.subscribe("b", &["a.*"], json!({})).await;
    let early = client.subscribe("c", &["a.*"], json!({ "since": "2020-01-01T00:00:00Z" })).await;
    live.stop().await;
    database.execute("delete from outbox.events").await;
    publish(&database, 6, 7).await;
    let live = LiveBox::start(&database).await;
    let mut back = live.connect().await;
    let refused = json!({ "type": "subscribe", "id": "a", "topics": ["a.*"], "since": old });
    assert_eq!(back.refusal(refused).await, "token_too_old");
    let refused =
        json!({ "type": "subscribe", "id": "a", "topics": ["a.*"], "since": "2020-01-01T00:00:00Z" });
    assert_eq!(back.refusal(refused).await, "token_too_old");
    assert_eq!(live.stream(&format!("topics=a.*&since={old}"), &[]).await.response.status(), 410);
    let refused = json!({ "type": "subscribe", "id": "a", "topics": ["a.*"], "since": early });
    assert_eq!(back.refusal(refused).await, "token_too_old", "a token of a time does not outlive it");
    let refused = json!({ "type": "subscribe", "id": "a", "topics": ["a.*"], "since": beside });
    assert_eq!(back.refusal(refused).await, "token_too_old", "a transaction was open that wrote one");
    back.subscribe("a", &["a.*"], json!({ "since": young })).await;
    assert_eq!(numbers(&back.payloads(2).await), [6, 7]);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_database_is_refused() {
    let (database, other) = (Database::new().await, Database::new().await);
    let (live, elsewhere) = (LiveBox::start(&database).await, LiveBox::start(&other).await);
    let token = elsewhere.connect().await.subscribe("a", &["a.*"], json!({})).await;
    let refused = json!({ "type": "subscribe", "id": "a", "topics": ["a.*"], "since": token });
    assert_eq!(live.connect().await.refusal(refused).await, "other_database");
    live.stop().await;
    elsewhere.stop().await;
    database.drop().await;
    other.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_resume_with_the_last_id_compressed_or_not() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    let mut stream = live.stream("topics=a.*,b.*", &[]).await;
    assert_eq!(stream.next().await.unwrap().event, "subscribed");
    publish(&database, 1, 5).await;
    let mut last = String::new();
    for n in 1..=3 {
        let sent = stream.event().await;
        assert_eq!(
            (&sent.data["event"]["payload"], sent.data["token"].as_str()),
            (&json!(n), Some(&*sent.id))
        );
        last = sent.id;
    }
    drop(stream);
    let mut back = live.stream("topics=a.*&since=ignored", &[("last-event-id", &last)]).await;
    assert_eq!(back.event().await.data["event"]["payload"], 4);
    assert_eq!(back.event().await.data["event"]["payload"], 5);
    let mut compressed =
        live.stream(&format!("topics=a.*&since={last}"), &[("accept-encoding", "br, gzip")]).await;
    assert_eq!(compressed.response.headers()["content-encoding"], "gzip");
    let mut read = flate2::write::GzDecoder::new(Vec::new());
    let until = |text: &[u8]| String::from_utf8_lossy(text).contains("caught_up");
    while !until(read.get_ref()) {
        let part = tokio::time::timeout(Duration::from_secs(20), compressed.response.chunk()).await;
        std::io::Write::write_all(&mut read, &part.unwrap().unwrap().unwrap()).unwrap();
        std::io::Write::flush(&mut read).unwrap();
    }
    assert!(String::from_utf8_lossy(read.get_ref()).contains("\"payload\":5"));
    live.stop().await;
    database.drop().await;
}
