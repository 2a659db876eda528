//! Rights to capture, and that capturing never runs code with the rights of the functions' owner.

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use uuid::Uuid;

use super::{ORDERS, Shop};

/// A new login in these groups, with its own schema for tables and types.
async fn login(shop: &mut Shop, groups: &str) -> (String, PgConnection) {
    let name = format!("capturer_{}", Uuid::new_v4().simple());
    shop.owner(&format!(
        "create role {name} login {groups}; \
         create schema authorization {name}; grant usage on schema {name} to public"
    ))
    .await;
    let connection = shop.database.options.clone().username(&name).connect().await.unwrap();
    (name, connection)
}

/// SQLSTATE and message of a refusal.
async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
    done.map(|_| ()).map_err(|error| {
        let error = error.into_database_error().unwrap();
        format!("{} {}", error.code().unwrap_or_default(), error.message())
    })
}

#[tokio::test]
async fn only_the_owner_of_a_table_who_may_publish_captures_and_releases_it() {
    let mut shop = Shop::new(
        "create table orders (id int primary key); create table captured (id int primary key); select outbox.capture('captured')",
    )
    .await;
    for groups in ["", "in role outbox_monitor", "in role outbox_relay"] {
        let (name, mut connection) = login(&mut shop, groups).await;
        let own = run(&mut connection, "create table own (id int); select outbox.capture('own')").await;
        assert!(
            own.as_ref().is_err_and(|error| error.starts_with("42501 permission denied for")),
            "{groups}: {own:?}"
        );
        connection.close().await.unwrap();
        shop.owner(&format!("drop owned by {name}; drop role {name}")).await;
    }
    for groups in ["in role outbox_publisher", "in role outbox_admin"] {
        let (name, mut connection) = login(&mut shop, groups).await;
        run(
            &mut connection,
            "create table own (id int primary key); select outbox.capture('own'); insert into own values (1)",
        )
        .await
        .unwrap();
        assert_eq!(shop.events().await[0].0, format!("{name}.own.create"));
        // Rights to read, write and create triggers are not enough: readers of events would see every
        // row.
        shop.owner(&format!("grant all on orders, captured to {name}")).await;
        assert_eq!(
            run(&mut connection, "select outbox.capture('public.orders')").await.unwrap_err(),
            "42501 table: must be owner of table public.orders"
        );
        assert_eq!(
            run(&mut connection, "select outbox.capture('public.captured', exclude => '{}')")
                .await
                .unwrap_err(),
            "42501 table: must be owner of table public.captured"
        );
        assert!(
            run(&mut connection, "select outbox.release('public.captured')")
                .await
                .unwrap_err()
                .starts_with("42501 must be owner of")
        );
        run(&mut connection, "select * from outbox.captures; select outbox.release('own')").await.unwrap();
        connection.close().await.unwrap();
        shop.owner(&format!("drop owned by {name}; drop role {name}")).await;
    }
    assert_eq!(shop.database.count("select count(*) from outbox.captures").await, 1);
    shop.end().await;
}

#[tokio::test]
async fn writing_to_a_captured_table_needs_no_right_on_the_outbox_and_gives_none() {
    let mut shop = Shop::new(ORDERS).await;
    assert_eq!(shop.write("insert into orders values (1, 'new', 1)").await.len(), 1);
    for sql in [
        "insert into outbox.events (topic, payload) values ('a.b', '{}')",
        "select outbox.publish('a.b', '{}')",
        "select * from outbox.captures",
        "select outbox.capture('orders')",
        "create trigger mine after insert on orders for each row execute function outbox_internal.capture_changes('{}')",
    ] {
        let refused = run(&mut shop.application, sql).await.unwrap_err();
        assert!(refused.starts_with("42501"), "{sql}: {refused}");
    }
    // The trigger does not read objects in the session's temporary schema.
    let hostile = "create temp table events (like pg_class); \
                   create function pg_temp.to_jsonb(anyelement) \
                   returns jsonb language sql as 'select null::jsonb';
                   create temp table pg_attribute (attrelid oid); \
                   set search_path = pg_temp, public, pg_catalog";
    run(&mut shop.application, hostile).await.unwrap();
    assert_eq!(shop.write("insert into orders values (2, 'new', 1), (3, 'new', 1)").await.len(), 2);
    shop.end().await;
}

/// to_jsonb calls a type's cast to json. A cast made by the type's owner would run with the rights of the
/// trigger's owner.
#[tokio::test]
async fn a_cast_to_json_that_the_owner_of_a_type_made_does_not_run_as_the_owner_of_the_outbox() {
    let mut shop = Shop::new(
        "create table taken (who text); grant insert on taken to public; \
         grant create on schema public to public",
    )
    .await;
    let (name, mut evil) = login(&mut shop, "in role outbox_publisher").await;
    let made = format!(
        "create type mood as enum ('sad', 'happy'); create type pair as (a int, m mood); create domain moody as mood;
         create function as_json(mood) returns json language plpgsql as $$ begin insert into public.taken values (current_user); return '\"cast\"'; end $$;
         create function as_json(pair) returns json language plpgsql as $$ begin insert into public.taken values (current_user); return '\"cast\"'; end $$;
         create cast (mood as json) with function as_json(mood); create cast (pair as json) with function as_json(pair);
         create table t (id int primary key, m mood, mm mood[], p pair, pp pair[], d moody, dd moody[]);
         create table keyed (m mood primary key);
         grant all on all tables in schema {name} to public;
         select outbox.capture('t'), outbox.capture('keyed')"
    );
    run(&mut evil, &made).await.unwrap();
    // The cast exists and would be called.
    run(&mut evil, "select to_jsonb('sad'::mood)").await.unwrap();
    assert_eq!(shop.database.count("delete from taken returning 1::bigint").await, 1);
    let values = "'sad', '{sad}', row(1, 'sad'), array[row(2, 'sad')::pair], 'sad', '{sad}'";
    for sql in [
        format!("set search_path = {name}; insert into t values (1, {values})"),
        format!("insert into t values (2, {values}), (3, {values})"),
        "update t set m = 'happy'; delete from t; \
         insert into keyed values ('sad'), ('happy'); delete from keyed"
            .to_owned(),
    ] {
        run(&mut shop.application, &sql).await.unwrap();
    }
    let events = shop.events().await;
    assert_eq!(events.len(), 13);
    assert_eq!(
        events[0].2["row"],
        serde_json::json!({
            "id": 1, "m": "sad", "mm": ["sad"], "p": {"a": 1, "m": "sad"}, "pp": [{"a": 2, "m": "sad"}],
            "d": "sad", "dd": ["sad"],
        })
    );
    assert_eq!(shop.database.count("select count(*) from taken").await, 0, "the cast ran as another role");
    evil.close().await.unwrap();
    shop.end().await;
}

/// A trigger without transition tables would find temporary tables with these names.
#[tokio::test]
async fn a_trigger_made_by_hand_does_not_read_a_hostile_temporary_view() {
    let mut shop = Shop::new("create table taken (who text); grant insert on taken to public").await;
    let (name, mut evil) = login(&mut shop, "in role outbox_publisher").await;
    let made = "create table t (id int primary key); select outbox.capture('t'); insert into t values (1);
                create function steal() returns int language plpgsql as $$ begin insert into public.taken values (current_user); return 1; end $$;";
    run(&mut evil, made).await.unwrap();
    let settings: String = sqlx::query_scalar(
        "select substring(pg_get_triggerdef(oid) \
         from 'capture_changes(.*)$') \
         from pg_trigger \
         where tgname = 'outbox_capture_insert' \
         and tgrelid = 't'::regclass",
    )
    .fetch_one(&mut evil)
    .await
    .unwrap();
    run(
        &mut evil,
        &format!(
            "create trigger by_hand after insert on t for each statement \
             execute function outbox_internal.capture_changes{settings}"
        ),
    )
    .await
    .unwrap();
    let missing = run(&mut evil, "insert into t values (2)").await.unwrap_err();
    assert!(missing.contains("relation \"outbox_after\" does not exist"), "{missing}");
    for relation in [
        "view outbox_after as select steal() as id",
        "view outbox_before as select steal() as id",
        "table outbox_after (id int)",
    ] {
        let attempt = format!("begin; create temp {relation}; insert into t values (2)");
        assert_eq!(
            run(&mut evil, &attempt).await.unwrap_err(),
            "42501 a temporary relation must not be called outbox_before or outbox_after"
        );
        run(&mut evil, "rollback").await.unwrap();
    }
    assert_eq!(shop.database.count("select count(*) from taken").await, 0);
    // Settings of another table have no effect.
    shop.owner("create table secrets (id int primary key, secret text)").await;
    run(&mut evil, "drop trigger by_hand on t").await.unwrap();
    let foreign = settings.replacen("\"table\": ", "\"table\": 1", 1);
    run(
        &mut evil,
        &format!(
            "create trigger by_hand after insert on t referencing new table as \
             outbox_after for each statement execute function \
             outbox_internal.capture_changes{foreign}; delete from t; insert into t values (5)"
        ),
    )
    .await
    .unwrap();
    evil.close().await.unwrap();
    shop.owner(&format!("drop schema {name} cascade")).await;
    shop.end().await;
}
