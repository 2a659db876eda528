//! Few connections, limited times, and who is recorded.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Extension, Router};
use pgoutbox::{
    http::v1::{Operators, router},
    live::caller::{Caller, Channels, Claims, Tenant},
};
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, net::TcpListener, net::TcpStream, time::timeout};
use tokio_util::task::TaskTracker;

use super::{Api, DEADLINE, login};
use crate::support::Database;

/// Connections of the API that are in the database.
const CONNECTIONS: &str = "select count(*) from pg_stat_activity \
    where datname = current_database() and application_name like 'pgoutbox/%/api'";

#[tokio::test]
async fn requests_at_once_share_four_connections_and_reuse_them() {
    let database = Database::new().await;
    let api = Api::of(&database).await;
    let requests = (0..40).map(|_| api.get("/v1/subscriptions"));
    for reply in futures_util::future::join_all(requests).await {
        reply.is(200);
    }
    let open = database.count(CONNECTIONS).await;
    assert!((1..=4).contains(&open), "{open} connections");
    let first = database.count(format!("{CONNECTIONS} and backend_start < now()")).await;
    for _ in 0..10 {
        api.get("/v1/subscriptions").await.is(200);
    }
    assert_eq!(database.count(CONNECTIONS).await, first, "no request opens another");
    // A connection that the server has closed is replaced, not reported.
    database
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity \
              where datname = current_database() and application_name like 'pgoutbox/%/api'",
        )
        .await;
    api.get("/v1/subscriptions").await.is(200);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn those_who_wait_leave_connections_to_others_and_one_too_many_is_told_to_come_back() {
    let database = Database::new().await;
    database.execute("select outbox.publish('a.b', '1')").await;
    let api = Api::of(&database).await;
    let id = api.get("/v1/events").await.is(200)["items"][0]["event_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/events/{id}/wait?timeout=4s");
    let began = Instant::now();
    let waiters = futures_util::future::join_all((0..3).map(|_| api.get(&path)));
    let others = async {
        database
            .eventually(&format!("{} and state = 'active'", CONNECTIONS.replace("count(*)", "count(*) = 2")))
            .await;
        for _ in 0..5 {
            api.get("/v1/subscriptions").await.is(200);
        }
        began.elapsed()
    };
    let (waited, others) = tokio::join!(waiters, others);
    assert!(others < Duration::from_secs(4), "others had to wait {others:?}");
    let mut statuses: Vec<u16> = waited.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503]);
    let refused = waited.iter().find(|reply| reply.status == 503).unwrap();
    assert_eq!((refused.problem(503).0, refused.headers["retry-after"].to_str().unwrap()), ("busy", "1"));
    let pending = waited.iter().find(|reply| reply.status == 200).unwrap();
    assert_eq!(pending.body["status"], json!("pending"));
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_locked_row_ends_the_request_before_its_time_and_changes_nothing() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    let api = Api::of(&database).await;
    let mut holder = database.pool.begin().await.unwrap();
    sqlx::query("select from outbox.subscriptions for update").execute(&mut *holder).await.unwrap();
    let path = "/v1/subscriptions/shop/pause";
    let refused = api.call(path).await;
    assert_eq!((refused.problem(503).0, refused.headers["retry-after"].to_str().unwrap()), ("busy", "1"));
    holder.rollback().await.unwrap();
    assert_eq!(database.count("select count(*) from outbox.subscriptions where active").await, 1);
    let answer = api.call(path).await;
    assert_eq!(answer.is(200)["changed"], true);
    api.close().await;
    database.drop().await;
}

/// Pausing a subscription takes so many seconds from now on.
async fn slow_down(database: &Database, seconds: u32) {
    database
        .execute(format!(
            "create or replace function outbox.pause(name text) returns boolean language sql \
                 as $$ select pg_sleep({seconds}) is not null $$"
        ))
        .await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_what_it_asked_for() {
    let database = Database::new().await;
    slow_down(&database, 7).await;
    let api = Api::of(&database).await;
    let mut client = TcpStream::connect(api.address).await.unwrap();
    let request = format!("POST /v1/subscriptions/shop/pause HTTP/1.1\r\nHost: {}\r\n\r\n", api.address);
    client.write_all(request.as_bytes()).await.unwrap();
    let active = format!("{CONNECTIONS} and wait_event = 'PgSleep'");
    database.eventually(&active.replace("count(*)", "count(*) = 1")).await;
    let began = Instant::now();
    drop(client);
    database.eventually(&CONNECTIONS.replace("count(*)", "count(*) = 0")).await;
    assert!(began.elapsed() < Duration::from_secs(4), "it went on for {:?}", began.elapsed());
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn what_takes_too_long_is_ended_and_said_with_a_problem_and_changes_nothing() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    slow_down(&database, 20).await;
    let login = login(&database, "outbox_admin").await;
    let options = database.options.clone().username(&login);
    // Behind a pooler a session has no settings of its own, so the request's own limit ends it.
    let (direct, pooled) = (Api::with(options.clone()).await, Api::through(options, true).await);
    let path = "/v1/subscriptions/shop/pause";
    for refused in <[super::Reply; 2]>::from(tokio::join!(direct.call(path), pooled.call(path))) {
        assert_eq!(refused.problem(503).0, "late");
        assert_eq!(refused.headers["retry-after"], "5");
    }
    database
        .eventually(
            &format!("{CONNECTIONS} and state = 'idle in transaction'").replace("count(*)", "count(*) = 0"),
        )
        .await;
    assert_eq!(database.count("select count(*) from outbox.subscriptions where active").await, 1);
    direct.close().await;
    pooled.close().await;
    database.drop().await;
}

#[tokio::test]
async fn the_audit_names_the_api_and_who_asked_it() {
    let database = Database::new().await;
    let login = login(&database, "outbox_relay, outbox_admin").await;
    let operators = Operators::new(database.options.clone().username(&login), false, "default".to_owned());
    // The guard puts who asks into the request.
    let of = |name: &str| {
        let claims = Claims {
            subject: Some(name.to_owned()),
            organization: Tenant::All,
            topics: Vec::new(),
            channels: Channels::All,
            is_operator: true,
            expires_at: chrono::DateTime::UNIX_EPOCH,
        };
        router::<()>(operators.clone()).layer(Extension(Caller::Client(Arc::new(claims))))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().nest("/ann", of("ann")).nest("/nobody", router::<()>(operators.clone()));
    let tasks = TaskTracker::new();
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone();
    tasks.spawn(
        async move { axum::serve(listener, app).with_graceful_shutdown(stopped.cancelled_owned()).await },
    );
    tasks.close();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let spec = r#"{"topics": ["a.b"], "sink": "stdout", "name": "shop"}"#;
    let json = ("content-type", "application/json");
    let url = |who: &str, path: &str| format!("http://{address}/{who}/v1/{path}");
    for (method, url) in [
        ("PUT", url("ann", "subscriptions/shop")),
        ("POST", url("ann", "subscriptions/shop/pause")),
        // The same connection, for somebody else.
        ("POST", url("nobody", "subscriptions/shop/resume")),
        ("DELETE", url("ann", "subscriptions/shop")),
        ("POST", url("ann", "subscriptions")),
    ] {
        let request = client.request(method.parse().unwrap(), &url).header(json.0, json.1).body(spec);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{url}: {}", answer.text().await.unwrap());
    }
    let made: Vec<(String, Option<String>, String, bool)> = sqlx::query_as(
        "select action, actor, login, application ~ '^pgoutbox/[^/]+/api$' and not details ? 'by' \
           from outbox.audit order by id",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let ann = || Some("ann".to_owned());
    let expected =
        [("created", ann()), ("paused", ann()), ("resumed", None), ("deleted", ann()), ("created", ann())];
    let expected = expected.map(|(action, actor)| (action.to_owned(), actor, login.clone(), true));
    assert_eq!(made, expected);
    let said = database.pgoutbox(&["audit", "--limit", "1"]).stdout;
    assert!(String::from_utf8_lossy(&said).contains("/api for ann"), "people see who asked");
    stop.cancel();
    drop(client);
    timeout(DEADLINE, tasks.wait()).await.unwrap();
    database.drop().await;
}
