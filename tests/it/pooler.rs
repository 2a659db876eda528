//! Behind the real PgBouncer in transaction mode, a version that does not follow prepared statements: relays
//! start, deliver and end, as often as one likes.

use std::{fs, time::Duration};

use serde_json::json;

use crate::support::{
    ChildRelay, Database, Good,
    server::{Kind, PrivateServer},
};

/// As root it runs as another user, because it refuses to be root.
const PGBOUNCER: Kind = Kind {
    program: "sh",
    package: "pgbouncer",
    arguments: |directory, port| {
        let script = "[ $(id -u) = 0 ] && user='-u nobody'; chmod 755 \"$0\"; \
                      PATH=$PATH:/usr/sbin; exec pgbouncer -q $user \"$0/$1.ini\"";
        let listening = format!("\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n");
        let settings = fs::read_to_string(directory.join("settings")).unwrap();
        fs::write(directory.join(format!("{port}.ini")), settings + &listening).unwrap();
        ["-c".into(), script.into(), directory.into(), port.to_string().into()].into()
    },
};

/// A pooler that gives the relays of a database two sessions, in turns: what follows a statement outside of a
/// transaction is in another session.
fn pooler(database: &Database) -> PrivateServer {
    let options = &database.relay_options;
    let here = format!("host={} port={} dbname={}", options.get_host(), options.get_port(), database.name());
    let relay = options.get_username();
    let settings = format!(
        "[databases]\nrelay = {here} user={relay}\n\
         [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 2\nauth_type = any\nunix_socket_dir =\n\
         ignore_startup_parameters = extra_float_digits\nserver_round_robin = 1"
    );
    let written = |directory: &std::path::Path| {
        fs::write(directory.join("settings"), &settings).unwrap();
        Vec::new()
    };
    PrivateServer::start_in(PGBOUNCER, written).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_start_deliver_and_end_again_and_again_behind_a_transaction_pooler() {
    let database = Database::new().await;
    let pooler = pooler(&database);
    let relay = format!("postgres://any@127.0.0.1:{}/relay?sslmode=disable", pooler.port());
    let mut good = Good::start().await;
    sqlx::query("select outbox.subscribe('all', '{**}', 'webhook', $1)")
        .bind(json!({ "url": good.url }))
        .execute(&database.pool)
        .await
        .unwrap();
    let settings = [
        ("DATABASE_URL", relay.as_str()),
        ("PGOUTBOX__DATABASE__POOLER", "true"),
        ("PGOUTBOX__RELAY__POLL", "100ms"),
    ];
    for round in 0..3 {
        let mut child = ChildRelay::start(&database, &format!("relay-{round}"), &settings).await;
        let publish = "select outbox.publish('shop.sold', to_jsonb(n)) from generate_series(1, 100) as n";
        database.execute(publish).await;
        assert_eq!(good.take(100).await.len(), 100);
        database.eventually("select not exists (select from outbox.owed)").await;
        child.signal("TERM");
        assert_eq!(child.ended(Duration::from_secs(30)).await, Some(0));
    }
    drop(pooler);
    database.drop().await;
}
