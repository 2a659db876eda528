//! Tables without options and with a key of one column, which shorter statements read.

use serde_json::json;

use super::{Shop, event, shapes::short};

/// The session has planned the statements before.
#[tokio::test]
async fn a_table_captured_whole_follows_its_columns_and_types_within_a_session() {
    let mut shop = Shop::new(
        "create type mood as enum ('sad', 'happy'); create table pairs (b text, a int primary key); \
         select outbox.capture('pairs')",
    )
    .await;
    assert_eq!(
        shop.write("insert into pairs (b, a) values ('x', 1)").await,
        [event("public.pairs.create", "1", json!({"row": {"a": 1, "b": "x"}}))]
    );
    shop.owner("alter table pairs rename a to c; alter table pairs rename b to a").await;
    assert_eq!(
        shop.write("insert into pairs (a, c) values ('y', 2); delete from pairs where c = 1").await,
        [
            event("public.pairs.create", "2", json!({"row": {"a": "y", "c": 2}})),
            event("public.pairs.delete", "1", json!({"row": {"a": "x", "c": 1}})),
        ]
    );
    shop.owner("alter table pairs add column doc json default '{\"n\": 1}'").await;
    let updated = json!({
        "row": {"a": "z", "c": 2, "doc": {"n": 1}},
        "changed": ["a"], "previous": {"a": "y"},
    });
    assert_eq!(shop.write("update pairs set a = 'z'").await, [event("public.pairs.update", "2", updated)]);
    shop.owner(
        "alter table pairs drop column doc; alter table pairs alter column a type mood using 'happy'::mood",
    )
    .await;
    assert_eq!(
        shop.write("insert into pairs (a, c) values ('sad', 3)").await,
        [event("public.pairs.create", "3", json!({"row": {"a": "sad", "c": 3}}))]
    );
    // A new column is not the one of the key, although it has its name and place.
    shop.owner(
        "alter table pairs alter column a type text; alter table pairs drop column c, add column c int",
    )
    .await;
    assert_eq!(
        short(&shop.write("insert into pairs (a, c) values ('v', 4); delete from pairs where c = 4").await),
        ["create -", "delete -"]
    );
    shop.end().await;
}
