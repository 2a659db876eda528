//! A managed database: nobody is a superuser, the login that migrates may only create schemas, and the
//! provider has taken away what PostgreSQL gives everybody.

use pgoutbox::{
    lab::private_postgres::{Options, PrivatePostgres},
    store::schema,
};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

use crate::support::{Database, Recorder, RelayBox};

/// What a provider may keep for itself, though no login of PostgreSQL is without it.
const TAKEN: &str = "revoke temporary, connect on database shop from public; \
     revoke execute on function pg_catalog.pg_cancel_backend(integer), \
     pg_catalog.pg_terminate_backend(integer, bigint), pg_catalog.pg_control_checkpoint(), \
     pg_catalog.pg_control_init(), pg_catalog.pg_control_recovery(), pg_catalog.pg_current_wal_lsn(), \
     pg_catalog.pg_walfile_name(pg_lsn) from public; \
     revoke all on schema public from public";

#[tokio::test]
async fn a_login_that_may_only_create_schemas_migrates_and_a_relay_delivers_with_what_a_provider_leaves() {
    let server = PrivatePostgres::start(Options::default()).unwrap();
    server.create_database("shop").unwrap();
    let database = Database::beside_roles(&server).await;
    database.execute(TAKEN).await;
    database
        .execute(
            "create role migrator login in role outbox_publisher; \
             grant connect, create on database shop to migrator; \
             grant connect on database shop to outbox_relay, outbox_publisher",
        )
        .await;
    let migrator = database.options.clone().username("migrator");
    assert!(schema::run(&migrator).await.unwrap().len() > 15);
    let mut login = migrator.connect().await.unwrap();
    for set_up in [
        "select outbox.declare_sink('recorder')",
        "select outbox.subscribe('shop', array['**'], 'recorder', ordering => 'key')",
    ] {
        login.execute(set_up).await.unwrap();
    }
    let check = || database.pgoutbox_with(&[("DATABASE_URL", &database.relay_url())], &["check"]);

    // By this a relay recognises a copy of its database. Without it there is no relay, and it says what to
    // grant.
    database.execute("revoke execute on function pg_catalog.pg_control_system() from public").await;
    let missing = check();
    let grant = "grant execute on function pg_control_system() to outbox_relay";
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(String::from_utf8_lossy(&missing.stdout).contains(grant), "{missing:?}");
    database.execute(grant).await;

    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    let publish =
        "select outbox.publish('shop.sold', to_jsonb(n), key => 'k') from generate_series(1, 20) as n";
    login.execute(publish).await.unwrap();
    recorder.wait_for(20).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    let found = check();
    // The sink of this test is unknown to the program, and that is all.
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("recorder"), "{said}");
    let owner = "select distinct pg_get_userbyid(relowner)::text from pg_class \
                  where relnamespace = 'outbox'::regnamespace";
    let owners: Vec<String> = sqlx::query_scalar(owner).fetch_all(&database.pool).await.unwrap();
    assert_eq!(owners, ["migrator"]);
    login.execute("select outbox.uninstall('shop', force => true)").await.unwrap();
    let left = "select count(*) from pg_namespace where nspname like 'outbox%'";
    assert_eq!(database.count(left).await, 0);
    login.close().await.unwrap();
    database.pool.close().await;
}
