//! The newest event of each key, to begin from.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::support::{Database, Recorder, RelayBox};

/// Key and payload of what a call returns, in its order.
async fn latest(database: &Database, arguments: &str) -> Vec<(String, Value)> {
    let sql = format!("select key, payload from outbox.latest({arguments})");
    let rows = sqlx::query_as::<_, (String, Value)>(AssertSqlSafe(sql)).fetch_all(&database.pool).await;
    rows.unwrap()
}

async fn refusal(database: &Database, arguments: &str) -> String {
    let sql = format!("select from outbox.latest({arguments})");
    let error = database.pool.execute(AssertSqlSafe(sql)).await.unwrap_err().into_database_error().unwrap();
    assert_eq!(error.code().as_deref(), Some("22023"), "{error}");
    error.message().to_owned()
}

fn pairs(expected: &[(&str, i64)]) -> Vec<(String, Value)> {
    expected.iter().map(|(key, payload)| ((*key).to_owned(), json!(payload))).collect()
}

#[tokio::test]
async fn the_newest_event_of_each_key_is_returned_in_the_order_of_positions() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.publish('shop.orders.create', '1', key => 'a'), \
                    outbox.publish('shop.orders.create', '2', key => 'b'), \
                    outbox.publish('shop.orders.update', '3', key => 'a'), \
                    outbox.publish('shop.orders.update', '4'), \
                    outbox.publish('shop.users.update', '5', key => 'b'), \
                    outbox.publish('other.thing', '6', key => 'a'), \
                    outbox.publish('shop.orders.delete', '7', key => 'c'), \
                    outbox.publish('shop.orders.create', '8', key => 'b', organization => 'acme')",
        )
        .await;
    assert_eq!(
        latest(&database, "array['shop.orders.*']").await,
        pairs(&[("b", 2), ("a", 3), ("c", 7), ("b", 8)]),
        "the key of a tenant is not that of another; events without a key are left out"
    );
    assert_eq!(
        latest(&database, "array['shop.orders.*', 'shop.users.*', 'other.**']").await,
        pairs(&[("b", 5), ("a", 6), ("c", 7), ("b", 8)]),
        "one for a key, whatever its topics"
    );
    assert_eq!(latest(&database, "array['shop.**'], organization => 'acme'").await, pairs(&[("b", 8)]));
    database
        .execute(
            "update outbox.events set created_at = now() - interval '2 days' where payload in ('2', '3')",
        )
        .await;
    assert_eq!(
        latest(&database, "array['shop.orders.*'], since => now() - interval '1 day'").await,
        pairs(&[("a", 1), ("c", 7), ("b", 8)])
    );
    database.drop().await;
}

/// Leaving something out would begin from a state that was never there.
#[tokio::test]
async fn a_log_that_is_larger_than_may_be_read_is_refused_and_not_read_in_part() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.publish('a.b', to_jsonb(n), key => (n % 3)::text) from generate_series(1, 20) as n",
        )
        .await;
    assert_eq!(latest(&database, "array['a.*'], max_events => 20").await.len(), 3);
    let said = refusal(&database, "array['a.*'], max_events => 19").await;
    assert_eq!(said, "max_events: the log has more than 19 events to look at");
    database
        .execute("update outbox.events set created_at = now() - interval '1 day' where position <= 5")
        .await;
    let newer = "array['a.*'], now() - interval '1 hour', max_events => 15";
    assert_eq!(latest(&database, newer).await.len(), 3);
    for (arguments, message) in [
        ("null", "topics: must be an array of 1 to 100 topic patterns"),
        ("'{}'", "topics: must be an array"),
        ("array['a.*', null]", "topics: has a null"),
        ("array['a..b']", "topic: 'a..b' is not a topic pattern"),
        ("array['a.*'], max_events => 0", "max_events: 0 is not between"),
        ("array['a.*'], max_events => null", "max_events: null is not between"),
    ] {
        let said = refusal(&database, arguments).await;
        assert!(said.starts_with(message), "{arguments}: {said}");
    }
    database.drop().await;
}

/// The recipe of docs/tasks/newest-state.md, with a transaction on each side of each of its steps.
#[tokio::test]
async fn who_subscribes_and_then_begins_from_the_newest_events_misses_none_that_commits_meanwhile() {
    let database = Database::new().await;
    let set = "select outbox.publish('stock.set', to_jsonb($2), key => $1)";
    let mut open = Vec::new();
    for key in ["before", "between", "after"] {
        sqlx::query(set).bind(key).bind(0_i64).execute(&database.pool).await.unwrap();
        open.push(database.connection().await);
    }
    for (connection, key) in open.iter_mut().zip(["before", "between", "after"]) {
        connection.execute("begin").await.unwrap();
        sqlx::query(set).bind(key).bind(1_i64).execute(connection).await.unwrap();
    }
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    open[0].execute("commit").await.unwrap();
    // It is routed: the subscription does not get it.
    database.eventually("select bool_and(status = 'completed') from outbox.event_status").await;
    database
        .execute(
            "begin; select outbox.subscribe('stock', array['stock.*'], 'recorder'); \
                  select outbox.pause('stock'); commit",
        )
        .await;
    open[1].execute("commit").await.unwrap();
    let mut state: BTreeMap<String, (i64, Value)> = BTreeMap::new();
    let begin = "select key, position, payload from outbox.latest(array['stock.*'])";
    for (key, position, payload) in
        sqlx::query_as::<_, (String, i64, Value)>(begin).fetch_all(&database.pool).await.unwrap()
    {
        state.insert(key, (position, payload));
    }
    assert_eq!(state["after"].1, json!(0));
    database.execute("select outbox.resume('stock')").await;
    open[2].execute("commit").await.unwrap();
    let all = "select position, key from outbox.events where position > 3";
    let keys: BTreeMap<i64, String> =
        sqlx::query_as(all).fetch_all(&database.pool).await.unwrap().into_iter().collect();
    let applied = recorder
        .wait_until(|seen| seen.iter().any(|one| keys.get(&one.position).is_some_and(|key| key == "after")))
        .await;
    for one in applied {
        let Some(key) = keys.get(&one.position) else { continue };
        let kept = state.get_mut(key).unwrap();
        if one.position > kept.0 {
            *kept = (one.position, serde_json::from_str(&one.payload).unwrap());
        }
    }
    let values: Vec<&Value> = state.values().map(|(_, payload)| payload).collect();
    assert_eq!(values, [&json!(1); 3], "{state:?}");
    for connection in open {
        connection.close().await.unwrap();
    }
    relay.stop().await;
    database.drop().await;
}
