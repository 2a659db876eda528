//! The programs of `examples/publish`, run with their libraries.

use sqlx::Row;

use crate::support::{Database, clients};

#[tokio::test]
async fn the_examples_in_python_and_node_publish_the_event_whose_id_they_print() {
    let database = Database::new().await;
    let url = database.plain_url();
    let settings = [("DATABASE_URL", url.as_str())];
    let python = clients::python("../../examples/publish/publish.py", &settings).await;
    let node = clients::node("../../examples/publish/publish.mjs", &settings).await;
    for (id, key, total) in [(python, "1003", "2500"), (node, "1004", "700")] {
        let event = sqlx::query(
            "select topic, key, payload ->> 'total' as total from outbox.events where id = $1::text::uuid",
        )
        .bind(id.trim())
        .fetch_one(&database.pool)
        .await
        .unwrap();
        assert_eq!(
            (event.get("topic"), event.get("key"), event.get("total")),
            ("shop.orders.create", key, total)
        );
    }
    database.drop().await;
}
