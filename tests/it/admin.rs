//! Operator functions on a real database.

use pgoutbox::{
    Event,
    admin::{DeadLetterFilter, Error, Operator},
};
use serde_json::{Value, json};
use sqlx::{Executor as _, PgConnection};

use crate::support::Database;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn operator(database: &Database) -> Operator {
    Operator::connect(&database.options, false).await.unwrap()
}

async fn dead_letters(connection: &mut PgConnection, subscription: &str, count: i32) {
    sqlx::query(
        "insert into outbox.dead_letters (subscription_id, subscription, reason, status, attempts, event_id, position, created_at, topic, payload, headers, priority)
         select coalesce((select id from outbox.subscriptions where name = $1), 999), $1, 'server_error', 500, 12, outbox.new_id(), 1000 + n, now(),
                'shop.orders.create', '{\"total\": 12345678901234567890.123}', '{}', 0
           from generate_series(1, $2) as n",
    )
    .bind(subscription)
    .bind(count)
    .execute(connection)
    .await
    .unwrap();
}

async fn subscribe(connection: &mut PgConnection, name: &str, url: &str) {
    sqlx::query(
        "select outbox.subscribe($1, array['shop.**'], 'webhook', jsonb_build_object('url', $2::text))",
    )
    .bind(name)
    .bind(url)
    .execute(connection)
    .await
    .unwrap();
}

#[tokio::test]
async fn a_database_without_the_schema_says_to_migrate() {
    let database = Database::empty().await;
    let mut operator = operator(&database).await;
    assert!(matches!(operator.subscription_status().await, Err(Error::NotMigrated)));
    assert!(matches!(operator.publish(&Event::new("a.b", 1).unwrap()).await, Err(Error::NotMigrated)));
    assert!(matches!(
        operator.count_dead_letters(&DeadLetterFilter::default()).await,
        Err(Error::NotMigrated)
    ));
    let output = database.pgoutbox(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("outbox is not migrated: run `pgoutbox migrate`"),
        "{output:?}"
    );
    database.drop().await;
}

#[tokio::test]
async fn refused_input_shows_the_message_and_hint_of_postgresql() {
    let database = Database::new().await;
    let mut operator = operator(&database).await;
    let error = operator.pause_subscription("nobody").await.unwrap_err().to_string();
    assert_eq!(error, "there is no subscription 'nobody' (List all: select name from outbox.subscriptions.)");
    let error = operator.publish(&Event::new("a..b", 1).unwrap()).await.unwrap_err().to_string();
    assert!(error.starts_with("topic: 'a..b' is not a topic (Use segments separated by dots"), "{error}");
    let output = database.pgoutbox(&["publish", "a.*"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    database.drop().await;
}

#[tokio::test]
async fn publish_prints_the_id_of_a_committed_event() {
    let database = Database::new().await;
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let arguments = [
        "publish",
        "shop.orders.create",
        "{\"total\": 12345678901234567890.10}",
        "--key",
        "o-1",
        "--organization",
        "acme",
        "--header",
        "x-a=b=c",
        "--id",
        id,
        "--priority",
        "5",
        "--deliver-after",
        "1h",
    ];
    for _ in 0..2 {
        let output = database.pgoutbox(&arguments);
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stdout).trim()),
            (Some(0), id),
            "{output:?}"
        );
    }
    let row: (i64, String, String, bool) = sqlx::query_as(
        "select count(*), min(payload::text), min(headers::text), bool_and(deliver_after between now() + interval '59 min' and now() + interval '61 min'
                and key = 'o-1' and organization = 'acme' and priority = 5) from outbox.events",
    )
    .fetch_one(&mut database.connection().await)
    .await
    .unwrap();
    assert_eq!(
        row,
        (1, "{\"total\": 12345678901234567890.10}".to_owned(), "{\"x-a\": \"b=c\"}".to_owned(), true)
    );
    database.drop().await;
}

#[tokio::test]
async fn subscriptions_are_listed_paused_resumed_and_removed() {
    let database = Database::new().await;
    subscribe(&mut database.connection().await, "shop", "https://example.com/hook").await;
    let mut operator = operator(&database).await;
    assert!(operator.pause_subscription("shop").await.unwrap());
    assert!(!operator.pause_subscription("shop").await.unwrap());
    let status = operator.subscription_status().await.unwrap();
    assert_eq!(
        (status[0].name.as_str(), status[0].active, status[0].backlog, status[0].success_rate),
        ("shop", false, 0, None)
    );
    assert!(operator.resume_subscription("shop").await.unwrap());
    assert!(operator.list_relays().await.unwrap().is_empty());

    let output = database.pgoutbox(&["subscriptions", "list", "--json"]);
    let row: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&row["name"], &row["config"]["url"]), (&"shop".into(), &"https://example.com/hook".into()));
    let output = database.pgoutbox(&["status", "--json"]);
    let row: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&row["name"], &row["breaker"]), (&"shop".into(), &"closed".into()));
    assert_eq!(database.pgoutbox(&["subscriptions", "show", "shop"]).status.code(), Some(0));
    assert_eq!(database.pgoutbox(&["subscriptions", "delete", "shop"]).status.code(), Some(0));
    assert_eq!(database.pgoutbox(&["subscriptions", "delete", "shop"]).status.code(), Some(1));
    assert_eq!(database.pgoutbox(&["subscriptions", "show", "shop"]).status.code(), Some(1));
    database.drop().await;
}

#[tokio::test]
async fn check_names_each_subscription_that_cannot_be_served() {
    let database = Database::new().await;
    let mut connection = database.connection().await;
    sqlx::query("select outbox.subscribe('good', array['a'], 'stdout')")
        .execute(&mut connection)
        .await
        .unwrap();
    let bad = "select outbox.declare_sink('telegraph'), outbox.subscribe('bad', array['a'], 'telegraph')";
    connection.execute(bad).await.unwrap();
    let output = database.pgoutbox(&["check", "--json"]);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["subject"],
        "subscription bad"
    );
    let output = database.pgoutbox(&["check"]);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        printed.starts_with("subscription bad: sink: this relay has no sink \"telegraph\"")
            && !printed.contains("good"),
        "{printed}"
    );
    sqlx::query("select outbox.unsubscribe('bad')").execute(&mut connection).await.unwrap();
    assert_eq!(database.pgoutbox(&["check"]).status.code(), Some(0));
    database.drop().await;
}

/// Ids of the dead letters of a subscription.
async fn letters_of(database: &Database, subscription: &str) -> Vec<i64> {
    sqlx::query_scalar("select id from outbox.dead_letters where subscription = $1 order by id")
        .bind(subscription)
        .fetch_all(&database.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn dead_letters_are_listed_counted_redriven_and_discarded() {
    let database = Database::new().await;
    let mut connection = database.connection().await;
    subscribe(&mut connection, "shop", "https://example.com/hook").await;
    dead_letters(&mut connection, "shop", 5).await;
    dead_letters(&mut connection, "removed", 2).await;
    let mut operator = operator(&database).await;
    let all = DeadLetterFilter::default();
    let count = operator.count_dead_letters(&all).await.unwrap();
    assert_eq!((count.matching, count.redrivable), (7, 5));
    let choice = DeadLetterFilter {
        topic: Some("shop.*.create".into()),
        error_like: Some("5__".into()),
        ..DeadLetterFilter::default()
    };
    assert_eq!(operator.count_dead_letters(&choice).await.unwrap().matching, 7);
    let none = DeadLetterFilter {
        since: Some(operator.read_clock(-60.0).await.unwrap()),
        ..DeadLetterFilter::default()
    };
    assert_eq!(operator.list_dead_letters(&none, None, 10).await.unwrap(), []);

    let letters = operator.list_dead_letters(&all, None, 3).await.unwrap();
    assert_eq!(letters.len(), 3);
    let shown = operator.show_dead_letter(letters[0].id).await.unwrap().unwrap();
    let payload = shown.payload.as_str();
    assert!(payload.contains("12345678901234567890.123"), "a number of the payload is kept: {payload}");
    let output = database.pgoutbox(&["dead-letters", "show", &letters[0].id.to_string()]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("12345678901234567890.123"), "{output:?}");

    let stdout = |arguments: &[&str]| {
        let output = database.pgoutbox(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(stdout(&["dead-letters", "list", "--json", "--since", "1h"]).lines().count(), 7);
    assert_eq!(stdout(&["dead-letters", "redrive", "--dry-run"]), "5");
    assert_eq!(
        stdout(&["dead-letters", "redrive", "--subscription", "shop", "--limit", "2", "--json"]),
        "{\"redriven\":2,\"left\":3}"
    );
    // Nothing is chosen: everything would be.
    for all in
        [&["dead-letters", "redrive"][..], &["dead-letters", "discard", "--yes"], &["deliveries", "retry"]]
    {
        let output = database.pgoutbox(all);
        assert_eq!(output.status.code(), Some(2), "{all:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--all"), "{output:?}");
    }
    // By id; one that is not there fails and keeps no other from it.
    let of = |name| letters_of(&database, name);
    let (shop, removed) = (of("shop").await, of("removed").await);
    let (first, gone) = (shop[0].to_string(), removed[0].to_string());
    assert_eq!(stdout(&["dlq", "redrive", &first]), "1");
    let output = database.pgoutbox(&["dead-letters", "redrive", &first, &gone, &shop[1].to_string()]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b"1\n"[..]), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("dead letter {first} is not there")) && said.contains(&gone), "{said}");
    assert_eq!(stdout(&["dead-letters", "show", &gone, &shop[2].to_string(), "--json"]).lines().count(), 2);
    assert_eq!(stdout(&["dead-letters", "discard", "--yes", &gone]), "1");
    assert_eq!(of("removed").await, removed[1..]);
    assert_eq!(stdout(&["dead-letters", "redrive", "--all"]), "1");
    assert_eq!(stdout(&["dead-letters", "discard", "--dry-run"]), "1");
    assert_eq!(stdout(&["dead-letters", "discard", "--yes", "--all"]), "1");
    assert_eq!(operator.count_dead_letters(&all).await.unwrap().matching, 0);
    assert_eq!(operator.subscription_status().await.unwrap()[0].backlog, 5);
    assert!(matches!(operator.show_dead_letter(1).await, Ok(None)));
    database.drop().await;
}

#[tokio::test]
async fn a_subscription_is_created_and_deleted_by_options() {
    let database = Database::new().await;
    let create = ["subscriptions", "create", "shop", "--topics", "shop.**"];
    let run = |more: &[&str]| {
        let arguments: Vec<&str> = create.iter().chain(more).copied().collect();
        let output = database.pgoutbox(&arguments);
        (output.status.code(), text(&output.stderr))
    };
    let usage = |more: &[&str], word: &str| {
        let (code, said) = run(more);
        assert!(code == Some(2) && said.contains(word), "{more:?}: {code:?} {said}");
    };
    usage(&[], "--url");
    usage(&["--url", "https://a.example", "--sink", "stdout"], "--sink");
    usage(&["--sink", "stdout", "--sink-config", "{\"a\": }"], "--sink-config: ");
    let (code, said) = run(&["--sink", "webhok"]);
    assert!(code == Some(1) && said.contains("webhok"), "{code:?} {said}");
    let (code, said) =
        run(&["--url", "https://a.example/x", "--match", "{\"a\": 1}", "--retry", "{\"max_attempts\": 3}"]);
    assert_eq!(code, Some(0), "{said}");
    let made: Value = sqlx::query_scalar(
        "select jsonb_build_array(sink, config, match, retry, topics) from outbox.subscriptions",
    )
    .fetch_one(&mut database.connection().await)
    .await
    .unwrap();
    let url = json!({"url": "https://a.example/x"});
    assert_eq!(made, json!(["webhook", url, {"a": 1}, {"max_attempts": 3}, ["shop.**"]]));
    let (code, said) = run(&["--sink", "stdout"]);
    assert!(code == Some(1) && said.contains("apply"), "what exists is not changed: {code:?} {said}");
    assert_eq!(database.pgoutbox(&["subs", "delete", "shop"]).status.code(), Some(0));
    assert_eq!(database.pgoutbox(&["subs", "remove", "shop"]).status.code(), Some(1));
    database.drop().await;
}

#[tokio::test]
async fn a_subscription_that_another_session_has_just_made_is_not_changed_by_create() {
    let database = Database::new().await;
    let mut other = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.subscribe('shop', array['mine'], 'stdout')")
        .execute(&mut *other)
        .await
        .unwrap();
    let create = async {
        let arguments = ["subscriptions", "create", "shop", "--topics", "other", "--sink", "stdout"];
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
        command.args(arguments).env("DATABASE_URL", database.url()).output().await.unwrap()
    };
    let commit = async {
        database.eventually("select exists (select from pg_locks where not granted)").await;
        other.commit().await.unwrap();
    };
    let (output, ()) = tokio::join!(create, commit);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(database.count("select count(*) from outbox.subscriptions where topics = '{mine}'").await, 1);
    database.drop().await;
}

/// The relay has the sink `recorder`, and its own secrets; the command line has neither.
#[tokio::test]
async fn check_says_what_it_cannot_judge_because_a_relay_elsewhere_uses_it() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('here', array['x'], 'stdout'), \
                    outbox.subscribe('shop', array['**'], 'recorder')",
        )
        .await;
    let secret = json!({"url": "https://hooks.example.com/", "secret": "env:PGOUTBOX_SECRET_ELSEWHERE"});
    let subscribe = format!("select outbox.subscribe('hook', array['never'], 'webhook', '{secret}')");
    database.execute(subscribe).await;
    let check = || {
        let output = database.pgoutbox(&["check"]);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, found, said) = check();
    assert_eq!(code, Some(1), "nobody has judged the secret: {found}");
    assert!(found.contains("subscription hook: ") && found.contains("subscription shop: "), "{found}");
    assert!(!found.contains("subscription here"), "{found}");
    assert!(said.contains("a relay opens up to 43: 4 for reports"), "{said}");
    // As a relay that has the secret and sends it would leave them.
    database
        .execute(
            "update outbox.subscriptions set state = 'ok'; \
             insert into outbox.relays (name, version, started_at, seen_at, permits, leased_ahead, in_flight, \
                                        unsettled) values ('relay', '0', now(), now(), 1, 0, 0, 0)",
        )
        .await;
    let (code, found, said) = check();
    assert_eq!((code, found.as_str()), (Some(0), ""), "{said}");
    assert!(said.contains("subscription hook is not judged here"), "{said}");
    let like_a_relay = database.pgoutbox_with(&[("PGOUTBOX__RELAY__PERMITS", "8")], &["check"]);
    assert_eq!(like_a_relay.status.code(), Some(1), "the next relay would lack the secret: {like_a_relay:?}");
    assert!(!text(&like_a_relay.stdout).contains("shop"), "a sink of another program: {like_a_relay:?}");
    database.execute("update outbox.subscriptions set state = 'invalid' where name = 'shop'").await;
    let (code, found, _) = check();
    assert!(code == Some(1) && found.contains("shop: sink: "), "no relay can use it: {found}");
    database.execute("update outbox.subscriptions set state = 'ok' where name = 'shop'").await;
    database.execute("update outbox.subscriptions set topics = array['other'] where name = 'hook'").await;
    assert_eq!(check().0, Some(1), "the relay has not judged the change");
    database.drop().await;
}
