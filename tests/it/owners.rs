//! Whoever owns what: publishers and writers of captured tables never fail, and `check` says so.

use std::process::Output;

use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use uuid::Uuid;

use crate::support::Database;

/// What `pgoutbox check` prints, and whether it found nothing.
fn check(database: &Database) -> (String, bool) {
    let Output { status, stdout, .. } = database.pgoutbox(&["check"]);
    (String::from_utf8(stdout).unwrap(), status.success())
}

/// Migrates a database with a login that owns it and is no superuser.
async fn migrated_by_its_owner() -> (Database, String) {
    let database = Database::empty_beside_roles().await;
    let owner = format!("owner_{}", Uuid::new_v4().simple());
    database.execute(format!("create role {owner} login createrole")).await;
    database.execute(format!("alter database {} owner to {owner}", database.name())).await;
    pgoutbox::store::schema::run(&database.options.clone().username(&owner)).await.unwrap();
    (database, owner)
}

async fn drop_all(database: Database, roles: &[&str]) {
    for role in roles {
        database.execute(format!("reassign owned by {role} to postgres")).await;
        database.execute(format!("drop owned by {role}; drop role {role}")).await;
    }
    database.drop().await;
}

#[tokio::test]
async fn no_write_fails_whoever_owns_what_and_check_names_several_owners() {
    let (database, owner) = migrated_by_its_owner().await;
    let (writer, publisher) =
        (format!("writer_{}", Uuid::new_v4().simple()), format!("publisher_{}", Uuid::new_v4().simple()));
    database
        .execute(format!(
            "create role {writer} login; create role {publisher} login in role outbox_publisher;
             create table public.orders (id int primary key, note text, at date);
             grant select, insert, update, delete on public.orders to {writer};
             create function public.settle() returns trigger language plpgsql as $$ begin
                 update public.orders set at = '2026-11-01' where id = new.id; return null; end $$;
             create trigger settle after insert on public.orders for each row execute function public.settle();
             select outbox.capture('public.orders')"
        ))
        .await;
    assert_eq!(check(&database), (String::new(), true));
    let login = |name: &str| database.options.clone().username(name);
    let mut events = 0;
    for changed in [
        "select",
        "alter schema outbox owner to outbox_owner",
        "alter table outbox.events owner to outbox_owner",
        "alter table outbox.events_default owner to outbox_owner",
        "alter function outbox_internal.capture_payload owner to outbox_owner",
        "alter function outbox_internal.ring_doorbell owner to outbox_owner",
        "alter function outbox_internal.headers_are_valid owner to outbox_owner",
    ] {
        database.execute(changed).await;
        let mut write = login(&writer).connect().await.unwrap();
        write
            .execute(
                "insert into public.orders values (1, 'a'), (2, 'b'); update public.orders set note = 'c';
                 delete from public.orders",
            )
            .await
            .unwrap_or_else(|error| panic!("{changed}: {error}"));
        write.close().await.unwrap();
        let mut publish = login(&publisher).connect().await.unwrap();
        publish
            .execute(
                "select outbox.publish('a.b', '1', headers => '{\"a\": \"b\"}', id => gen_random_uuid())",
            )
            .await
            .unwrap_or_else(|error| panic!("{changed}: {error}"));
        publish.close().await.unwrap();
        events += 9;
        assert_eq!(database.count("select count(*) from outbox.events").await, events, "{changed}");
    }
    let (printed, good) = check(&database);
    assert!(!good && printed.contains(&format!("{owner} owns most of it")), "{printed}");
    assert!(printed.contains("outbox_owner (outbox.events, and 6 more)"), "{printed}");

    drop_all(database, &[&owner, &writer, &publisher]).await;
}

#[tokio::test]
async fn a_publication_for_all_tables_forbids_nothing_and_check_names_a_partition_that_it_would() {
    let database = Database::new().await;
    database.execute("create publication everything for all tables").await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_publication_tables where schemaname = 'outbox'",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert!(tables.len() > 15, "{tables:?}");
    for table in tables.iter().map(String::as_str).chain(["outbox.events", "outbox.attempts"]) {
        database.execute(format!("delete from {table} where false")).await;
    }
    assert_eq!(check(&database), (String::new(), true));
    let partition = "create table outbox.events_2027 partition of outbox.events \
                     for values from ('2027-01-01') to ('2028-01-01')";
    database.execute(partition).await;
    let (printed, good) = check(&database);
    let fix = "alter table outbox.events_2027 replica identity full";
    assert!(!good && printed.contains("publication everything") && printed.contains(fix), "{printed}");
    let refused = sqlx::query(AssertSqlSafe("delete from outbox.events".to_owned())).execute(&database.pool);
    assert!(refused.await.is_err());
    database.execute(fix).await;
    database.execute("delete from outbox.events").await;
    assert_eq!(check(&database), (String::new(), true));
    database.drop().await;
}
