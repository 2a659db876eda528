//! Who changed what, and when.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::{
    support::{Database, hostile::Hostile},
    webhook_relay::{once, publish, relay_settings, start, status, subscribe},
};

/// Action, subscription, rows and details, in the order in which they were written.
async fn entries(database: &Database) -> Vec<(String, Option<String>, Option<i64>, Value)> {
    sqlx::query_as("select action, subscription, rows, details from outbox.audit order by id")
        .fetch_all(&database.pool)
        .await
        .unwrap()
}

/// A session of a member of `outbox_admin`, and its login.
async fn operator(database: &Database) -> (PgConnection, String) {
    let login = format!("operator_{}", Uuid::new_v4().simple());
    database.execute(format!("create role {login} login in role outbox_admin")).await;
    let options = database.options.clone().username(&login).application_name("console");
    (options.connect().await.unwrap(), login)
}

async fn run(connection: &mut PgConnection, sql: &str) {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
}

#[tokio::test]
async fn each_change_of_a_subscription_is_recorded_with_who_made_it_and_without_its_configuration() {
    let database = Database::new().await;
    let (mut admin, login) = operator(&database).await;
    let made = "outbox.subscribe('shop', array['shop.**'], 'webhook', \
                '{\"url\": \"https://a.example\", \"secret\": \"env:PGOUTBOX_SECRET_CANARY\"}')";
    for sql in [
        &format!("select {made}"),
        &format!("select {made}"),
        "begin; select outbox.pause('shop'); rollback",
        "update outbox.subscriptions set topics = array['canary.*'], max_in_flight = 7",
        "update outbox.subscriptions set config = config || '{\"url\": \"https://canary.example\"}'",
        "select outbox.pause('shop')",
        "select outbox.pause('shop')",
        "set role outbox_admin; update outbox.subscriptions set active = true; reset role",
        "update outbox.subscriptions set name = 'store', active = false",
        "select outbox.resume('store')",
        "select outbox.unsubscribe('store')",
    ] {
        run(&mut admin, sql).await;
    }
    let made: Vec<(String, String, Value)> = entries(&database)
        .await
        .into_iter()
        .map(|(action, name, _, more)| (action, name.unwrap(), more))
        .collect();
    let expected = [
        ("created", "shop", json!({"sink": "webhook"})),
        ("changed", "shop", json!({"fields": ["max_in_flight", "topics"]})),
        ("changed", "shop", json!({"fields": ["config"]})),
        ("paused", "shop", json!({})),
        ("resumed", "shop", json!({})),
        ("changed", "store", json!({"fields": ["name"], "was": "shop"})),
        ("paused", "store", json!({})),
        ("resumed", "store", json!({})),
        ("deleted", "store", json!({})),
    ];
    let expected = expected.map(|(action, name, more)| (action.to_owned(), name.to_owned(), more));
    assert_eq!(made, expected);
    let who = format!(
        "select count(*) from outbox.audit where login = '{login}' and application = 'console' \
            and at between now() - interval '1 minute' and now() and rows is null \
            and role = case when id = (select min(id) from outbox.audit where action = 'resumed') \
                            then 'outbox_admin' else login end"
    );
    assert_eq!(database.count(who).await, 9);
    let secret = "select count(*) from outbox.audit as a where a::text ilike '%canary%'";
    assert_eq!(database.count(secret).await, 0);
    admin.close().await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn a_change_of_many_dead_letters_or_deliveries_is_one_entry_with_its_arguments_and_their_number() {
    let database = Database::new().await;
    let (mut admin, _) = operator(&database).await;
    database
        .execute(
            "select outbox.subscribe('shop', array['shop.**'], 'recorder'); \
             select outbox.publish('shop.sold', '{}') from generate_series(1, 9); \
             insert into outbox.deliveries (subscription_id, due_at, position, created_at) \
             select 1, now() + interval '1 hour', position, created_at from outbox.events; \
             insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, event_id, position, \
                                              created_at, topic, payload, headers, priority) \
             select 1, 'shop', 'timeout', 12, id, position, created_at, topic, payload, headers, priority \
               from outbox.events; \
             truncate outbox.audit",
        )
        .await;
    let event: Uuid = sqlx::query_scalar("select id from outbox.events order by position limit 1")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    for sql in [
        "select outbox.redrive('shop', 'shop.*', error_like => 'time%', max_rows => 5)",
        "select outbox.discard(until => '2100-01-01Z', max_rows => 3)",
        "select outbox.discard(id => (select min(id) from outbox.dead_letters))",
        &format!("select outbox.retry(event => '{event}')"),
        "select outbox.cancel('shop', dead_letters => true)",
        "select outbox.redrive('shop', 'no.such')",
        "select outbox.discard('shop', 'no.such'), outbox.retry('shop', 'no.such'), outbox.cancel('shop', 'no.such')",
    ] {
        run(&mut admin, sql).await;
    }
    let shop = || Some("shop".to_owned());
    let mut made = entries(&database).await;
    let id = made[2].3.as_object_mut().unwrap().remove("id");
    assert!(id.is_some_and(|id| id.is_i64()), "the dead letter that was named");
    assert_eq!(
        made[..4],
        [
            (
                "redriven".to_owned(),
                shop(),
                Some(5),
                json!({"topic": "shop.*", "error_like": "time%", "max_rows": 5})
            ),
            (
                "discarded".to_owned(),
                None,
                Some(3),
                json!({"until": "2100-01-01T00:00:00+00:00", "max_rows": 3})
            ),
            ("discarded".to_owned(), None, Some(1), json!({"max_rows": 1000})),
            // Of the first event one delivery waits, and the other one was asked for by the redrive.
            ("retried".to_owned(), None, Some(1), json!({"event": event, "max_rows": 1000})),
        ]
    );
    assert_eq!((made[4].0.as_str(), made[4].2), ("cancelled", Some(14)), "{made:?}");
    assert_eq!(made[4].3, json!({"max_rows": 1000, "dead_letters": true}));
    assert_eq!(made.len(), 5, "what changed nothing is not recorded: {made:?}");
    // Another environment is another database.
    database.execute("select outbox.adopt(true, 'staging')").await;
    let adopted = entries(&database).await.pop().unwrap();
    assert_eq!((adopted.0.as_str(), adopted.2), ("adopted", Some(0)), "{adopted:?}");
    assert_eq!(adopted.3, json!({"keep_pending": true, "environment": "staging", "events": 9}));
    admin.close().await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn an_operator_can_write_no_entry_by_hand_and_change_none() {
    let database = Database::new().await;
    let (mut admin, _) = operator(&database).await;
    run(
        &mut admin,
        "select outbox.subscribe('shop', array['shop.**'], 'webhook', '{\"url\": \"https://a.example\"}')",
    )
    .await;
    let before = entries(&database).await;
    for sql in [
        "select outbox_internal.record_audit('redriven', 'shop')",
        "select outbox_internal.audit_replay('replay cancelled', 1)",
        "insert into outbox.audit (action) values ('redriven')",
        "update outbox.audit set action = 'redriven'",
        "delete from outbox.audit",
        "truncate outbox.audit",
    ] {
        let refused = admin.execute(sqlx::raw_sql(sql)).await.expect_err(sql);
        let code = refused.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("42501"), "{sql}: {refused}");
    }
    assert_eq!(entries(&database).await, before);
    database.drop().await;
}

#[tokio::test]
async fn what_a_relay_finds_out_is_not_recorded_and_what_it_stops_is_recorded_as_by_a_relay() {
    let database = Database::new().await;
    let gone = Hostile::start(status(410)).await;
    subscribe(&database, "gone", "**", json!({"url": gone.url("/")}), once()).await;
    database
        .execute(
            "select outbox.subscribe('bad', array['**'], 'recorder', '{\"bad\": true}'); truncate outbox.audit",
        )
        .await;
    let relay = start(&database, relay_settings("relay")).await;
    database
        .eventually("select bool_or(state = 'invalid') and bool_or(state = 'ok') from outbox.subscriptions")
        .await;
    publish(&database, "a.b", 1).await;
    database.eventually("select state = 'gone' from outbox.subscriptions where name = 'gone'").await;
    relay.stop().await;
    let made = entries(&database).await;
    assert_eq!((made.len(), made[0].0.as_str(), made[0].1.as_deref()), (1, "gone", Some("gone")), "{made:?}");
    assert_eq!(made[0].3["by"], "relay", "{made:?}");
    let who = "select count(*) from outbox.audit \
                where login = 'relay_login' and application ~ '^pgoutbox/[0-9.]+/relay$'";
    assert_eq!(database.count(who).await, 1);
    database.execute("select outbox.resume('gone')").await;
    assert_eq!(entries(&database).await[1].0, "resumed");
    database.drop().await;
}

#[tokio::test]
async fn the_command_lists_the_newest_changes_of_a_subscription_and_since_a_time() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('shop', array['shop.**'], 'recorder'), \
                    outbox.subscribe('other', array['**'], 'recorder'); \
             update outbox.audit set at = at - interval '2 hours'",
        )
        .await;
    let paused = database.pgoutbox(&["subscriptions", "pause", "shop"]);
    assert_eq!(paused.status.code(), Some(0), "{paused:?}");
    let audit = |more: &[&str]| {
        let arguments: Vec<&str> = ["audit"].iter().chain(more).copied().collect();
        String::from_utf8(database.pgoutbox(&arguments).stdout).unwrap()
    };
    let said = audit(&[]);
    let rows: Vec<Vec<&str>> = said.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    let of = |row: &[&str]| (row[2].to_owned(), row[3].to_owned());
    assert_eq!(
        rows.iter().map(|row| of(row)).collect::<Vec<_>>(),
        [("paused", "shop"), ("created", "other"), ("created", "shop")].map(|(a, b)| (a.into(), b.into())),
        "{said}"
    );
    assert!(rows[0][5].ends_with("/cli"), "{said}");
    assert_eq!(audit(&["--subscription", "shop"]).lines().count(), 3);
    assert_eq!(audit(&["--since", "1h"]).lines().count(), 2);
    assert_eq!(audit(&["--limit", "1"]).lines().count(), 2);
    let json: Value = serde_json::from_str(&audit(&["--limit", "1", "--json"])).unwrap();
    assert_eq!((&json["action"], &json["details"]), (&"paused".into(), &json!({})));
    database.drop().await;
}

#[tokio::test]
async fn replays_parked_keys_and_limits_are_recorded() {
    let database = Database::new().await;
    let (mut admin, _) = operator(&database).await;
    for sql in [
        "select outbox.subscribe('shop', array['shop.**'], 'stdout', ordering => 'key', on_exhausted => 'park')",
        "select outbox.replay('shop', now() - interval '1 day')",
        "select outbox.pause_replay(1), outbox.pause_replay(1)",
        "select outbox.resume_replay(1)",
        "select outbox.cancel_replay(1), outbox.cancel_replay(1)",
        "select outbox.unpark('shop')",
        "select outbox.limit_organization('acme', '100/s')",
        "delete from outbox.organization_limits",
    ] {
        run(&mut admin, sql).await;
    }
    database
        .execute("insert into outbox.parked_keys select id, 'k', now(), 7 from outbox.subscriptions")
        .await;
    run(&mut admin, "select outbox.unpark('shop', 'k')").await;
    let made = entries(&database).await;
    let actions: Vec<&str> = made.iter().skip(1).map(|one| one.0.as_str()).collect();
    let expected = [
        "replay started",
        "replay paused",
        "replay resumed",
        "replay cancelled",
        "limited",
        "limited",
        "unparked",
    ];
    assert_eq!(actions, expected);
    assert_eq!(made[6].3, json!({"organization": "acme"}));
    assert_eq!((made[7].2, &made[7].3), (Some(1), &json!({"key": "k"})));
    admin.close().await.unwrap();
    database.drop().await;
}
