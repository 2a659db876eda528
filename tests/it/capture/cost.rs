//! Cost of capturing: one pass for a statement with many rows, and no notification for a statement without
//! rows.

use std::time::{Duration, Instant};

use sqlx::{Executor, Row};

use super::Shop;

#[tokio::test]
async fn a_statement_of_ten_thousand_rows_writes_its_events_in_one_pass() {
    let mut shop = Shop::new(
        "create table plain (id int primary key, word text, n int); create table captured (like plain including all);
         select outbox.capture('captured');
         create table inserts (many bigint);
         create function count_inserts() returns trigger language plpgsql as $$ begin insert into public.inserts select count(*) from written; return null; end $$;
         create trigger count_inserts after insert on outbox.events referencing new table as written for each statement execute function count_inserts()",
    )
    .await;
    for (statement, topic) in [
        ("insert into {} select n, 'a word', n from generate_series(1, 10000) n", "public.captured.create"),
        ("update {} set word = 'another'", "public.captured.update"),
        ("delete from {}", "public.captured.delete"),
    ] {
        let mut times = [Duration::ZERO; 2];
        for (time, table) in times.iter_mut().zip(["plain", "captured"]) {
            let began = Instant::now();
            shop.application.execute(sqlx::AssertSqlSafe(statement.replace("{}", table))).await.unwrap();
            *time = began.elapsed();
        }
        eprintln!(
            "{statement}: {:?} plain, {:?} captured, {:.1} times",
            times[0],
            times[1],
            times[1].as_secs_f64() / times[0].as_secs_f64()
        );
        let counted = sqlx::query(
            "select count(*) as events, count(distinct key) as keys, \
             bool_and(topic = $1) as fits, (select array_agg(many) \
                 from inserts) as passes from outbox.events",
        )
        .bind(topic)
        .fetch_one(&shop.database.pool)
        .await
        .unwrap();
        assert_eq!(
            (counted.get::<i64, _>("events"), counted.get::<i64, _>("keys"), counted.get("fits")),
            (10_000, 10_000, true)
        );
        assert_eq!(counted.get::<Vec<i64>, _>("passes"), [10_000], "{statement}: one insert of all events");
        shop.owner("truncate outbox.events, inserts").await;
    }
    shop.end().await;
}

#[tokio::test]
async fn a_statement_that_finds_no_row_does_not_ring_the_doorbell() {
    let mut shop = Shop::new(
        "create table orders (id int primary key, n int); select outbox.capture('orders');
         create table rings (what text);
         create function count_rings() returns trigger language plpgsql as $$ begin insert into public.rings values (tg_op); return null; end $$;
         create trigger count_rings after insert on outbox.events for each statement execute function count_rings()",
    )
    .await;
    shop.write("update orders set n = 1; delete from orders; insert into orders select 1, 1 where false")
        .await;
    assert_eq!(shop.database.count("select count(*) from rings").await, 0);
    shop.write("insert into orders values (1, 1); update orders set n = n").await;
    assert_eq!(shop.database.count("select count(*) from rings").await, 1);
    shop.end().await;
}
