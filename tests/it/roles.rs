//! What each role may and may not do.

use std::collections::BTreeMap;

use pgoutbox::Relay;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Row};
use uuid::Uuid;

use crate::support::{Database, Recorder, RelayBox};

/// SQLSTATE of a missing right.
const DENIED: &str = "42501";

/// A database with an event, a delivery and a dead letter in it, and a login in each group.
struct Stage {
    database: Database,
    logins: BTreeMap<&'static str, PgConnection>,
}

impl Stage {
    async fn new() -> Self {
        let database = Database::new().await;
        database
            .execute(
                "select outbox.subscribe('shop', array['**'], 'recorder');
                 select outbox.publish('shop.orders.create', '{\"canary\": \"payload\"}', headers => '{\"canary\": \"header\"}');
                 insert into outbox.deliveries (subscription_id, due_at, position, created_at) select 1, now(), position, created_at from outbox.events;
                 insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, event_id, position, created_at, topic, payload, headers, priority)
                 select 1, 'shop', 'timeout', 12, id, position, created_at, topic, payload, headers, priority from outbox.events, generate_series(1, 3)",
            )
            .await;
        let mut logins = BTreeMap::new();
        for role in ["publisher", "relay", "admin", "monitor"] {
            let login = format!("{role}_{}", Uuid::new_v4().simple());
            database.execute(format!("create role {login} login in role outbox_{role}")).await;
            logins.insert(role, database.options.clone().username(&login).connect().await.unwrap());
        }
        Self { database, logins }
    }

    /// Executes a statement and rolls it back. Returns SQLSTATE and message of a refusal.
    async fn attempt(&mut self, role: &str, sql: &str) -> Result<(), (String, String)> {
        let connection = self.logins.get_mut(role).unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let result = transaction.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await;
        transaction.rollback().await.unwrap();
        result.map(|_| ()).map_err(|error| {
            let error =
                error.into_database_error().unwrap_or_else(|| panic!("{sql}: only the database may refuse"));
            (error.code().unwrap_or_default().into_owned(), error.message().to_owned())
        })
    }

    async fn assert(&mut self, role: &str, may: &[&str], may_not: &[&str]) {
        for sql in may {
            if let Err(refusal) = self.attempt(role, sql).await {
                panic!("{role} may do this, but: {refusal:?}\n{sql}");
            }
        }
        for sql in may_not {
            match self.attempt(role, sql).await {
                Err((code, _)) if code == DENIED || code == "428C9" => {}
                other => panic!("{role} may not do this, but: {other:?}\n{sql}"),
            }
        }
    }

    async fn end(self) {
        for (_, connection) in self.logins {
            connection.close().await.unwrap();
        }
        self.database.drop().await;
    }
}

#[tokio::test]
async fn a_publisher_publishes_and_does_nothing_else() {
    let mut stage = Stage::new().await;
    stage
        .assert(
            "publisher",
            &[
                "insert into outbox.events (topic, payload) values ('a.b', '{}')",
                "insert into outbox.events (id, topic, key, payload, headers, organization, source, user_id, priority, deliver_after, schema_version)
                 values (gen_random_uuid(), 'a.b', 'k', '{}', '{\"a\": \"b\"}', 'acme', 's', 'u', 5, now(), 1)",
                "select outbox.publish('a.b', '{}')",
                "select outbox.publish('a.b', '{}', 'k', '{\"a\": \"b\"}', 'acme', gen_random_uuid(), 5, now(), 's', 'u', 1)",
                "select outbox.publish('a.b', '{}', id => '01890a5d-ac96-774b-bcce-b302099a8057'), outbox.publish('a.b', '{}', id => '01890a5d-ac96-774b-bcce-b302099a8057')",
                "set local outbox.doorbell = 'off'; insert into outbox.events (topic, payload) values ('a.b', '{}')",
                "do $$ begin perform outbox.wait(gen_random_uuid()); exception when invalid_parameter_value then null; end $$",
            ],
            &[
                "select * from outbox.events",
                "select count(*) from outbox.events",
                "insert into outbox.events (topic, payload) values ('a.b', '{}') returning position",
                "insert into outbox.events (topic, payload) values ('a.b', '{}') returning id",
                "insert into outbox.events (topic, payload, position) overriding system value values ('a.b', '{}', 1)",
                "insert into outbox.events (topic, payload, xid) values ('a.b', '{}', '3')",
                "insert into outbox.events (topic, payload, created_at) values ('a.b', '{}', now())",
                "update outbox.events set payload = '{}'",
                "delete from outbox.events",
                "truncate outbox.events",
                "insert into outbox.events_default (topic, payload) values ('a.b', '{}')",
                "insert into outbox.deliveries (subscription_id, due_at, position, created_at) values (1, now(), 1, now())",
                "select * from outbox.deliveries",
                "select * from outbox.event_ids",
                "select * from outbox.audit",
                "select * from outbox.latest(array['**'])",
                "select * from outbox.subscriptions",
                "select outbox.subscribe('mine', array['**'], 'recorder')",
                "select outbox.redrive()",
                "select outbox.discard()",
                "select outbox.retry()",
                "select outbox.cancel()",
                "select * from outbox.explain('00000000-0000-0000-0000-000000000000')",
                "select * from outbox.event_status",
                "select * from outbox.subscription_status",
                "select * from outbox.dead_letters",
                "update outbox.cursor set step = step + 1",
                "select nextval('outbox.events_position_seq')",
                "select setval('outbox.events_position_seq', 1)",
                "select last_value from outbox.events_position_seq",
                "create table outbox.mine (n int)",
                "create function outbox.mine() returns int language sql as 'select 1'",
                "select outbox.grant_roles()",
                "insert into outbox.audit (action, login, role, application) values ('paused', 'a', 'b', 'c')",
                "update outbox.audit set login = 'somebody'",
                "delete from outbox.audit",
                "truncate outbox.audit",
                "select outbox_internal.record_audit('paused', 'shop')",
                "alter table outbox.events disable trigger ring_doorbell",
            ],
        )
        .await;
    stage.end().await;
}

#[tokio::test]
async fn a_relay_changes_deliveries_but_neither_events_nor_definitions_of_subscriptions() {
    let mut stage = Stage::new().await;
    stage
        .assert(
            "relay",
            &[
                "select * from outbox.events",
                "select * from outbox.latest(array['**'])",
                "select * from outbox.subscriptions",
                "update outbox.cursor set step = step + 1",
                "insert into outbox.deliveries (subscription_id, due_at, position, created_at) values (1, now(), 1, now())",
                "update outbox.deliveries set attempt = attempt + 1",
                "delete from outbox.deliveries",
                "insert into outbox.attempts (delivery_id, subscription_id, position, event_id, attempt, duration, outcome, relay)
                 values (1, 1, 1, gen_random_uuid(), 1, '1s', 'retry', 'r')",
                "update outbox.subscriptions set state = 'gone', state_reason = 'because'",
                "insert into outbox.pauses values (1, now(), now())",
                "select id from outbox.subscriptions for update skip locked",
                "update outbox.event_types set state_reason = 'because'",
            ],
            &[
                "insert into outbox.events (topic, payload) values ('a.b', '{}')",
                "select outbox.publish('a.b', '{}')",
                "update outbox.events set payload = '{}'",
                "delete from outbox.events",
                "truncate outbox.events",
                "update outbox.subscriptions set config = '{}'",
                "update outbox.subscriptions set topics = array['**']",
                "update outbox.subscriptions set sink = 'webhook'",
                "update outbox.subscriptions set active = false",
                "update outbox.subscriptions set retry = '{}'",
                "insert into outbox.subscriptions (name, topics, sink) values ('mine', array['**'], 'recorder')",
                "delete from outbox.subscriptions",
                "select outbox.subscribe('mine', array['**'], 'recorder')",
                "update outbox.event_types set schema = 'false'",
                "insert into outbox.event_types (topic) values ('mine')",
                "select outbox.define_event_type('mine')",
                "select outbox.redrive()",
                "select outbox.discard()",
                "select outbox.retry()",
                "select outbox.cancel()",
                "select * from outbox.explain('00000000-0000-0000-0000-000000000000')",
                "delete from outbox.dead_letters",
                "update outbox.dead_letters set payload = '{}'",
                "delete from outbox.attempts",
                "update outbox.generation set value = 0",
                "insert into outbox.cursor (step, settled) values (99, pg_current_snapshot())",
                "delete from outbox.cursor",
                "delete from outbox.migrations",
                "create table outbox.mine (n int)",
                "drop table outbox.events_default",
                "alter table outbox.deliveries add column n int",
                "select outbox.grant_roles()",
                "insert into outbox.audit (action, login, role, application) values ('paused', 'a', 'b', 'c')",
                "update outbox.audit set login = 'somebody'",
                "delete from outbox.audit",
                "truncate outbox.audit",
                "select outbox_internal.record_audit('paused', 'shop')",
                "create role mine",
                "select setval('outbox.events_position_seq', 1)",
            ],
        )
        .await;
    stage.end().await;
}

#[tokio::test]
async fn a_monitor_sees_status_and_no_payload() {
    let mut stage = Stage::new().await;
    stage
        .assert(
            "monitor",
            &[
                "select * from outbox.subscription_status",
                "select * from outbox.event_status",
                "select * from outbox.audit",
                "select * from outbox.relays",
                "select * from outbox.relay_subscriptions",
            ],
            &[
                "select * from outbox.events",
                "select payload from outbox.events",
                "select headers from outbox.events",
                "select payload from outbox.dead_letters",
                "select config from outbox.subscriptions",
                "select answer from outbox.attempts",
                "select * from outbox.latest(array['**'])",
                "select * from outbox.deliveries",
                "select outbox.publish('a.b', '{}')",
                "select outbox.pause('shop')",
                "select outbox.redrive()",
                "select outbox.matching_dead_letters()",
                "select * from outbox.explain('00000000-0000-0000-0000-000000000000')",
                "insert into outbox.events (topic, payload) values ('a.b', '{}')",
                "insert into outbox.audit (action, login, role, application) values ('paused', 'a', 'b', 'c')",
                "update outbox.audit set login = 'somebody'",
                "delete from outbox.audit",
                "truncate outbox.audit",
                "select outbox_internal.record_audit('paused', 'shop')",
                "delete from outbox.relays",
                "create table outbox.mine (n int)",
            ],
        )
        .await;
    for view in ["subscription_status", "event_status", "relays", "relay_subscriptions"] {
        let sql =
            format!("select coalesce(string_agg(to_jsonb(seen)::text, ''), '') from outbox.{view} as seen");
        let seen: String = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(stage.logins.get_mut("monitor").unwrap())
            .await
            .unwrap();
        assert!(!seen.contains("canary"), "{view} shows a payload or a header: {seen}");
    }
    stage.end().await;
}

#[tokio::test]
async fn an_admin_subscribes_redrives_and_discards_and_does_not_write_the_log() {
    let mut stage = Stage::new().await;
    stage
        .assert(
            "admin",
            &[
                "select outbox.subscribe('mine', array['a.*'], 'webhook', '{\"url\": \"https://example.com\"}')",
                "insert into outbox.subscriptions (name, topics, sink) values ('mine', array['**'], 'recorder')",
                "update outbox.subscriptions set topics = array['a.**']",
                "select outbox.define_event_type('a.*'), outbox.define_event_type('a.*', mode => 'warn'), outbox.drop_event_type('a.*')",
                "select outbox.pause('shop')",
                "select outbox.pause('shop'), outbox.resume('shop')",
                "select outbox.unsubscribe('shop')",
                "select outbox.redrive()",
                "select outbox.retry('shop'), outbox.cancel('shop', dead_letters => true)",
                "select * from outbox.matching_deliveries('shop')",
                "select * from outbox.audit",
                "select * from outbox.latest(array['**'])",
                "select one.* from outbox.events as event, outbox.explain(event.id) as one",
                "select outbox.discard('shop', 'shop.**', 'time%', now() - interval '1 day', 10)",
                "select * from outbox.matching_dead_letters('shop')",
                "select * from outbox.subscription_status",
                "select * from outbox.event_status",
            ],
            &[
                "update outbox.events set payload = '{}'",
                "delete from outbox.events",
                "truncate outbox.events",
                "insert into outbox.deliveries (subscription_id, due_at, position, created_at) values (1, now(), 1, now())",
                "delete from outbox.deliveries",
                "delete from outbox.dead_letters",
                "update outbox.cursor set step = step + 1",
                "insert into outbox.audit (action, login, role, application) values ('paused', 'a', 'b', 'c')",
                "update outbox.audit set login = 'somebody'",
                "delete from outbox.audit",
                "truncate outbox.audit",
                "select outbox_internal.record_audit('paused', 'shop')",
                "update outbox.generation set value = 0",
                "create table outbox.mine (n int)",
                "drop table outbox.subscriptions",
            ],
        )
        .await;
    stage.end().await;
}

#[tokio::test]
async fn events_of_a_publisher_role_are_delivered() {
    let mut stage = Stage::new().await;
    stage.database.execute("delete from outbox.deliveries").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&stage.database, &recorder).await;
    let publisher = stage.logins.get_mut("publisher").unwrap();
    publisher.execute("insert into outbox.events (topic, payload) values ('by.insert', '{}')").await.unwrap();
    publisher.execute("select outbox.publish('by.function', '{}')").await.unwrap();
    recorder
        .wait_until(|seen| {
            ["by.insert", "by.function"].iter().all(|topic| seen.iter().any(|one| one.topic == *topic))
        })
        .await;
    relay.stop().await;
    stage.end().await;
}

#[tokio::test]
async fn a_relay_whose_login_is_a_superuser_does_not_start() {
    let database = Database::new().await;
    let build = async |allow: bool| {
        Relay::builder(PgPool::connect_lazy_with(database.options.clone()))
            .allow_superuser(allow)
            .build()
            .await
    };
    let refusal = build(false).await.unwrap_err();
    let why = std::error::Error::source(&refusal).and_then(std::error::Error::source).unwrap().to_string();
    assert!(why.contains("the login is a superuser"), "{why}");
    assert!(build(true).await.is_ok(), "unless that was allowed");
    database.drop().await;
}

#[tokio::test]
async fn functions_that_run_as_their_owner_pin_their_search_path_and_are_not_public() {
    let database = Database::new().await;
    let functions = sqlx::query(
        "select p.proname, p.prosecdef, coalesce(array_to_string(p.proconfig, ','), '') as settings,
                exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as granted where granted.grantee = 0) as is_public
           from pg_proc as p
          where p.pronamespace in ('outbox'::regnamespace, 'outbox_internal'::regnamespace)",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let mut definers = 0;
    for function in functions {
        let (name, definer, settings, is_public): (String, bool, String, bool) =
            (function.get(0), function.get(1), function.get(2), function.get(3));
        assert!(!is_public, "outbox.{name} may be executed by PUBLIC");
        if definer {
            definers += 1;
            let pinned = settings
                .strip_prefix("search_path=pg_catalog, pg_temp")
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(','));
            assert!(pinned, "outbox.{name}: {settings}");
        }
    }
    assert!(definers >= 3, "{definers} functions run as their owner");
    let tables = "select count(*) from pg_class as c, aclexplode(c.relacl) as granted \
                  where c.relnamespace = 'outbox'::regnamespace and granted.grantee = 0";
    assert_eq!(database.count(tables).await, 0, "nothing is granted to PUBLIC");
    let schema = "select count(*) from pg_namespace as n, aclexplode(n.nspacl) as granted \
                  where n.nspname in ('outbox', 'outbox_internal') and granted.grantee = 0";
    assert_eq!(database.count(schema).await, 0, "the schema is closed to PUBLIC");
    database.drop().await;
}

/// Temporary objects with the names of those that a security definer function uses.
#[tokio::test]
async fn a_hostile_temporary_object_does_not_fool_a_function_that_runs_as_its_owner() {
    let mut stage = Stage::new().await;
    let hostile = "
        create temp table dead_letters (like outbox.dead_letters);
        create temp table deliveries (like outbox.deliveries);
        create temp table events (like outbox.events);
        create temp table generation (value bigint);
        create temp table subscriptions (id bigint, name text);
        create function pg_temp.clock_timestamp() returns timestamptz language sql as $$ select 'infinity'::timestamptz $$;
        create function pg_temp.array_agg(bigint) returns bigint[] language sql as $$ select array[1::bigint] $$;
        create function pg_temp.subscription_id(text) returns bigint language sql as $$ select 1::bigint $$;
        set search_path = pg_temp, outbox, public;";
    let admin = stage.logins.get_mut("admin").unwrap();
    admin.execute(sqlx::raw_sql(hostile)).await.unwrap();
    let redriven: i64 =
        sqlx::query_scalar("select outbox.redrive(max_rows => 2)").fetch_one(&mut *admin).await.unwrap();
    let discarded: i64 = sqlx::query_scalar("select outbox.discard()").fetch_one(&mut *admin).await.unwrap();
    assert_eq!((redriven, discarded), (2, 1));
    admin.execute("update outbox.subscriptions set max_in_flight = 7").await.unwrap();
    assert_eq!(
        sqlx::query_scalar::<_, i64>("select count(*) from pg_temp.deliveries")
            .fetch_one(&mut *admin)
            .await
            .unwrap(),
        0
    );
    assert_eq!(
        stage.database.count("select count(*) from outbox.deliveries where due_at < 'infinity'").await,
        3
    );
    assert_eq!(stage.database.count("select count(*) from outbox.dead_letters").await, 0);
    assert!(
        stage.database.count("select value from outbox.generation").await > 2,
        "the real generation moved"
    );
    stage.end().await;
}
