//! Channels: subscriptions that live clients join by name. Nothing is owed to them, and nothing waits for
//! them.

use pgoutbox::store::{ConnectionSettings, Latest, Store, SubscriptionState, TooMuch};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _, postgres::PgDatabaseError};

use crate::support::{Database, Recorder, RelayBox};

/// The statements of a relay's login.
pub(crate) async fn store(database: &Database) -> Store {
    let settings = ConnectionSettings {
        servers: database.relay_options.clone().into(),
        relay: "gateway".to_owned(),
        environment: "default".to_owned(),
        pool_size: 2,
        function_pool_size: 1,
        pooler: false,
        allow_superuser: false,
    };
    Store::connect(settings).await.unwrap()
}

async fn text(database: &Database, sql: &str) -> String {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&database.pool).await.unwrap()
}

/// Code, message and hint of a refusal.
async fn refusal(database: &Database, sql: &str) -> (String, String, String) {
    let error = database.pool.execute(AssertSqlSafe(sql.to_owned())).await.expect_err(sql);
    let error = error.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
    (error.code().to_owned(), error.message().to_owned(), error.hint().unwrap_or_default().to_owned())
}

/// Writes down every row that is made for a subscription.
const WATCH: &str = "
    create table written (place text, subscription_id bigint);
    create function watch() returns trigger language plpgsql security definer as $$
    begin
        if tg_table_name = 'pages' then
            insert into public.written select 'page', unnest(new.subscriptions);
        else
            insert into public.written values (tg_table_name, new.subscription_id);
        end if;
        return new;
    end $$;
    create trigger watch before insert on outbox.pages for each row execute function watch();
    create trigger watch before insert on outbox.backlog for each row execute function watch();
    create trigger watch before insert on outbox.deliveries for each row execute function watch();";

#[tokio::test]
async fn a_channel_is_owed_nothing_and_nobody_waits_for_it() {
    let database = Database::new().await;
    database.pool.execute(sqlx::raw_sql(WATCH)).await.unwrap();
    database
        .execute(
            "select outbox.subscribe('board', array['tasks.**'], 'live', '{}',
                                     filter => 'payload.open', transform => '{\"id\": payload.id}',
                                     organization => 'acme', keys => array['k'], match => '{\"id\": 1}'),
                    outbox.subscribe('everything', array['**'], 'live'),
                    outbox.subscribe('paused', array['**'], 'live'),
                    outbox.subscribe('unusable', array['**'], 'live', filter => 'payload.('),
                    outbox.subscribe('shop', array['shop.**'], 'recorder')",
        )
        .await;
    database.execute("select outbox.pause('paused')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database
        .execute(
            "select outbox.publish('tasks.create', '{\"id\": 1, \"open\": true}', key => 'k1',
                                   organization => 'acme'),
                    outbox.publish('tasks.later', '1', deliver_after => now() + interval '1 hour'),
                    outbox.publish('tasks.urgent', '1', priority => 1000),
                    outbox.publish('shop.orders.create', '2')",
        )
        .await;
    recorder.wait_for(1).await;
    database.eventually("select bool_and(status = 'completed') from outbox.event_status").await;
    let waited = "select outbox.wait((select id from outbox.events where topic = 'tasks.create'))";
    assert_eq!(text(&database, waited).await, "completed");
    let states = "select string_agg(name || ' ' || active || ' ' || state, ', ' order by id)
                    from outbox.subscription_status join outbox.subscriptions using (name, active, state)
                   where name <> 'shop'";
    let expected = "board true ok, everything true ok, paused false ok, unusable true invalid";
    database.eventually(&format!("select ({states}) = '{expected}'")).await;
    let reason = "select state_reason from outbox.subscription_status where name = 'unusable'";
    assert!(text(&database, reason).await.starts_with("filter: "));
    database.execute("select outbox.resume('paused')").await;
    database.execute("select outbox.publish('shop.orders.create', '3')").await;
    recorder.wait_for(2).await;
    let others = "select count(*) from written
                   where subscription_id <> (select id from outbox.subscriptions where name = 'shop')";
    assert_eq!(database.count(others).await, 0);
    assert!(database.count("select count(*) from written").await > 0, "what is written is seen");
    let status = "select sum(backlog + in_flight + retrying + dead_letters)::bigint
                    from outbox.subscription_status where sink = 'live' and breaker = 'closed'
                     and oldest_age is null";
    assert_eq!(database.count(status).await, 0);
    assert!(!relay.telemetry.render().contains("\"board\""), "no gauge");
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn what_means_nothing_for_a_channel_is_refused_by_the_name_of_its_field() {
    let database = Database::new().await;
    for (field, value) in [
        ("ordering", "'key'"),
        ("rate", "'5/s'"),
        ("retry", "'{\"max_attempts\": 3}'"),
        ("max_in_flight", "5"),
        ("start", "'beginning'"),
        ("start", "'2026-01-01'"),
    ] {
        let sql = format!("select outbox.subscribe('a', array['**'], 'live', {field} => {value})");
        let (code, message, _) = refusal(&database, &sql).await;
        let expected = format!("{field}: means nothing for a channel (sink live), to which nothing is owed");
        assert_eq!((code.as_str(), message.as_str()), ("22023", expected.as_str()));
    }
    for (field, more) in [("on_exhausted", "on_exhausted => 'park'"), ("coalesce", "\"coalesce\" => 'key'")] {
        let sql = format!("select outbox.subscribe('a', array['**'], 'live', {more})");
        let (_, message, _) = refusal(&database, &sql).await;
        assert!(message.starts_with(&format!("{field}: ")), "{message}");
    }
    let unknown = r#"select outbox.subscribe('a', array['**'], 'live', '{"url": "https://a"}')"#;
    let (_, message, hint) = refusal(&database, unknown).await;
    assert_eq!(message, "config.url: unknown field");
    assert!(hint.contains("live has no fields"), "{hint}");
    assert_eq!(database.count("select count(*) from outbox.subscriptions").await, 0);

    database
        .execute(
            "select outbox.subscribe('board', array['a.**'], 'live'),
                    outbox.subscribe('hook', array['a.**'], 'recorder')",
        )
        .await;
    for sql in [
        "select outbox.subscribe('board', array['a.**'], 'recorder')",
        "update outbox.subscriptions set sink = 'live' where name = 'hook'",
    ] {
        let (code, message, hint) = refusal(&database, sql).await;
        assert!(
            code == "22023" && message.starts_with("sink: ") && hint.contains("unsubscribe"),
            "{message}"
        );
    }
    let again = "select outbox.subscribe('board', array['a.**'], 'live', start => 'beginning')";
    assert!(refusal(&database, again).await.1.starts_with("start: "), "also where it exists");
    let (_, message, _) = refusal(
        &database,
        "insert into outbox.starts (subscription_id) select id from outbox.subscriptions where name = 'board'",
    )
    .await;
    assert!(message.starts_with("start: "), "{message}");
    let replay = "select outbox.replay('board', since => now() - interval '1 hour')";
    let (code, message, hint) = refusal(&database, replay).await;
    assert_eq!((code.as_str(), message.starts_with("subscription: ")), ("22023", true), "{message}");
    assert!(hint.contains("resume with their token"), "{hint}");
    database
        .execute(
            "select outbox.subscribe('board', array['b.**'], 'live', filter => 'true', schema_version => 2),
                    outbox.pause('board'), outbox.resume('board'), outbox.unsubscribe('board'),
                    outbox.subscribe('board', array['**'], 'recorder')",
        )
        .await;
    database.drop().await;
}

#[tokio::test]
async fn trace_and_explain_say_that_a_channel_is_owed_nothing() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('board', array['tasks.**'], 'live', filter => 'payload.id == 1'),
                    outbox.subscribe('plain', array['tasks.**'], 'live'),
                    outbox.subscribe('small', array['tasks.**'], 'live', filter => 'payload.id > 5'),
                    outbox.subscribe('other', array['shop.**'], 'live')",
        )
        .await;
    let event = text(&database, "select outbox.publish('tasks.create', '{\"id\": 1}')::text").await;
    let output = database.pgoutbox(&["trace", &event]);
    let said = String::from_utf8(output.stdout).unwrap();
    for line in ["board: channel", "plain: channel", "small: unwanted, filter: payload.id > 5", "4 not owed"]
    {
        assert!(said.lines().any(|one| one == line), "{line} in:\n{said}");
    }
    let explained: Vec<(String, String)> = sqlx::query_as(
        "select subscription, status || coalesce(', ' || waits_for, '') from outbox.explain($1::text::uuid)
          order by subscription",
    )
    .bind(&event)
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let expected = [("board", "unknown"), ("other", "unwanted"), ("plain", "channel"), ("small", "unknown")];
    assert_eq!(explained, expected.map(|(name, status)| (name.to_owned(), status.to_owned())));
    database.drop().await;
}

#[tokio::test]
async fn commands_list_try_export_apply_and_check_channels() {
    let database = Database::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subscriptions.toml");
    let file = path.to_str().unwrap();
    let declared = "[[subscriptions]]\nname = \"board\"\ntopics = [\"tasks.**\"]\nsink = \"live\"\n\
                    filter = \"payload.id == 1\"\ntransform = '{\"id\": payload.id}'\n";
    let run = |arguments: &[&str]| {
        let output = database.pgoutbox(arguments);
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    std::fs::write(&path, declared).unwrap();
    let (code, said) = run(&["subscriptions", "apply", "--file", file]);
    assert_eq!((code, said.trim_end()), (Some(0), "+ board"));
    assert_eq!(run(&["subscriptions", "apply", "--file", file]), (Some(0), "nothing to change\n".to_owned()));
    std::fs::write(&path, format!("{declared}rate = \"5/s\"\n")).unwrap();
    let (code, said) = run(&["subscriptions", "apply", "--file", file]);
    assert!(code == Some(1) && said.contains("rate: means nothing for a channel"), "{said}");
    let (_, said) = run(&["subscriptions", "list"]);
    assert!(said.contains("board  live"), "{said}");
    let (_, said) = run(&["subscriptions", "show", "board", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["sink"], json!("live"));
    database.execute("select outbox.publish('tasks.create', '{\"id\": 1, \"secret\": 2}')").await;
    let (code, said) = run(&["subscriptions", "test", "board"]);
    assert!(code == Some(0) && said.contains("tasks.create  {\"id\":1}"), "{said}");
    let (_, exported) = run(&["subscriptions", "export"]);
    database.execute("select outbox.unsubscribe('board')").await;
    database.pool.execute(sqlx::raw_sql(AssertSqlSafe(exported.clone()))).await.expect(&exported);
    assert_eq!(run(&["subscriptions", "export"]).1, exported);
    let (code, said) = run(&["status"]);
    assert!(code == Some(0) && said.contains("board         live"), "{said}");
    let (_, said) = run(&["check"]);
    assert!(!said.contains("board"), "{said}");
    database.drop().await;
}

#[tokio::test]
async fn a_gateway_loads_the_channels_and_the_generation() {
    let database = Database::new().await;
    let store = store(&database).await;
    let none = store.load_channels().await.unwrap();
    assert!(none.rows.is_empty());
    database
        .execute(
            "select outbox.subscribe('b', array['b.**'], 'live', organization => 'acme', filter => 'true'),
                    outbox.subscribe('hook', array['**'], 'recorder'),
                    outbox.subscribe('a', array['a.**'], 'live')",
        )
        .await;
    database.execute("select outbox.pause('a')").await;
    let some = store.load_channels().await.unwrap();
    let names: Vec<(&str, bool)> = some.rows.iter().map(|row| (row.name.as_str(), row.active)).collect();
    assert_eq!(names, [("b", true), ("a", false)]);
    assert_eq!(some.rows[0].organization.as_deref(), Some("acme"));
    assert_eq!(some.rows[0].state, SubscriptionState::Pending);
    assert!(some.unreadable.is_empty());
    assert!(some.generation > none.generation);
    assert_eq!(some.generation, store.read_generation().await.unwrap());
    store.close().await;
    database.drop().await;
}

fn latest(topics: &[String]) -> Latest<'_> {
    Latest { topics, organization: None, keys: None, most_keys: 10, most_events: 100, allowed: None }
}

#[tokio::test]
async fn the_newest_event_of_each_key_comes_with_the_snapshot_that_it_is_true_in() {
    let database = Database::new().await;
    let store = store(&database).await;
    let mut open = database.connection().await;
    open.execute("begin; select outbox.publish('shop.late', '0', key => 'late')").await.unwrap();
    database
        .execute(
            "select outbox.publish('shop.a', '1', key => 'a'), outbox.publish('shop.b', '2', key => 'b'),
                    outbox.publish('shop.a', '3', key => 'a'), outbox.publish('shop.a', '4'),
                    outbox.publish('other', '5', key => 'a'),
                    outbox.publish('shop.c', '6', key => 'c', organization => 'acme')",
        )
        .await;
    database
        .execute("select outbox.publish('shop.large', to_jsonb(repeat('x', 20000)), key => 'large')")
        .await;
    database.execute("select outbox.subscribe('x', array['a'], 'recorder')").await;
    database.execute("select outbox.pause('x')").await;
    let topics = ["shop.**".to_owned()];
    let read = async |wanted| {
        let snapshot = store.latest(wanted).await.unwrap();
        let events = snapshot.events.as_ref().map(|events| {
            let shown = |new: &pgoutbox::store::NewEvent| {
                (new.event.key.clone().unwrap(), new.event.payload.clone(), new.payload_read)
            };
            events.iter().map(shown).collect::<Vec<_>>()
        });
        events.map_err(|refused| *refused)
    };
    let row = |key: &str, payload: &str| (key.to_owned(), payload.to_owned(), !payload.is_empty());
    let all = [row("b", "2"), row("a", "3"), row("c", "6"), row("large", "")];
    assert_eq!(read(latest(&topics)).await.unwrap(), all);
    let of_acme = Latest { organization: Some("acme"), ..latest(&topics) };
    assert_eq!(read(of_acme).await.unwrap(), [row("c", "6")]);
    let keys = ["l".to_owned(), "b".to_owned()];
    assert_eq!(
        read(Latest { keys: Some(&keys), ..latest(&topics) }).await.unwrap(),
        [row("b", "2"), row("large", "")]
    );
    assert_eq!(read(Latest { most_keys: 4, ..latest(&topics) }).await.unwrap().len(), 4);
    assert_eq!(read(Latest { most_keys: 3, ..latest(&topics) }).await, Err(TooMuch::Keys));
    let logged = database.count("select count(*) from outbox.events").await;
    assert_eq!(read(Latest { most_events: logged, ..latest(&topics) }).await.unwrap().len(), 4);
    assert_eq!(read(Latest { most_events: logged - 1, ..latest(&topics) }).await, Err(TooMuch::Events));
    let everything = ["**".to_owned()];
    let keys: Vec<String> =
        read(latest(&everything)).await.unwrap().into_iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, ["b", "a", "c", "large"], "and not the operators' event about x");
    let allowed = ["nothing.*".to_owned()];
    assert_eq!(read(Latest { allowed: Some(&allowed), ..latest(&topics) }).await.unwrap(), []);
    let operators = ["outbox.**".to_owned()];
    assert_eq!(read(latest(&operators)).await.unwrap().len(), 1);

    let snapshot = store.latest(latest(&topics)).await.unwrap();
    open.execute("commit").await.unwrap();
    let visible = |topic: &str| {
        let snapshot = snapshot.snapshot.clone();
        let sql = format!(
            "select pg_visible_in_snapshot(xid, '{snapshot}')::int::bigint from outbox.events \
              where topic = '{topic}' order by position desc limit 1"
        );
        let database = &database;
        async move { database.count(sql).await }
    };
    assert_eq!((visible("shop.late").await, visible("shop.c").await), (0, 1));
    let bounds = "select low || ' ' || low_xid from outbox.cursor";
    assert_eq!(text(&database, bounds).await, format!("{} {}", snapshot.low.0, snapshot.low_xid));
    let latest = "select count(*) from outbox.latest(array['**']) where topic like 'outbox.%'";
    assert_eq!(database.count(latest).await, 0);
    assert_eq!(database.count(latest.replace("'**'", "'**', 'outbox.**'")).await, 1);
    store.close().await;
    database.drop().await;
}
