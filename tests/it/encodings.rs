//! Databases that cannot hold an answer: in other encodings than UTF-8, or by a rule of their operator.

use serde_json::json;

use crate::{
    support::{
        Database, Good,
        hostile::{Hostile, Mode},
    },
    webhook_relay::{once, relay_settings, start, subscribe},
};

#[tokio::test]
async fn in_a_database_in_latin1_answers_with_other_characters_delay_no_verdict() {
    let database = Database::encoded("LATIN1").await;
    let mut good = Good::start().await;
    let answer = "größe 3 € 注文".as_bytes().to_vec();
    let refusing = Hostile::start(Mode::Status(500, vec![], answer)).await;
    subscribe(&database, "refusing", "**", json!({"url": refusing.url("/")}), once()).await;
    subscribe(&database, "good", "**", json!({"url": good.url}), once()).await;
    let relay = start(&database, relay_settings("relay")).await;
    database.execute("select outbox.publish('a.b', '{\"size\": \"größe\"}')").await;
    assert!(good.take(1).await[0].body.contains("größe"));
    database.eventually("select not exists (select from outbox.owed)").await;
    for table in ["dead_letters", "attempts"] {
        database
            .eventually(&format!("select exists (select from outbox.{table} where answer is not null)"))
            .await;
        let answer: String = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "select answer from outbox.{table} where answer is not null"
        )))
        .fetch_one(&database.pool)
        .await
        .unwrap();
        assert!(answer.contains(r"gr\u{f6}\u{df}e 3 \u{20ac}"), "{table}: {answer}");
    }
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn in_a_database_that_takes_no_answers_at_all_verdicts_are_written_without_them() {
    let database = Database::new().await;
    database
        .execute("alter table outbox.dead_letters add constraint no_answers check (answer is null)")
        .await;
    let mut good = Good::start().await;
    let refusing = Hostile::start(Mode::Status(500, vec![], b"no".to_vec())).await;
    subscribe(&database, "refusing", "**", json!({"url": refusing.url("/")}), once()).await;
    subscribe(&database, "good", "**", json!({"url": good.url}), once()).await;
    let relay = start(&database, relay_settings("relay")).await;
    database.execute("select outbox.publish('a.b', '1') from generate_series(1, 20)").await;
    good.take(20).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert_eq!(database.count("select count(*) from outbox.dead_letters where status = 500").await, 20);
    assert!(relay.stop().await.complete);
    database.drop().await;
}
