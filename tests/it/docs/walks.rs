//! Runs the commands of whole pages as a reader pastes them: the first hour, and what is done seldom.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    Block, Page,
    reader::{LIMIT, Reader},
};
#[cfg(feature = "kafka")]
use crate::sinks::kafka::Topic;

/// The blocks of shell of a page.
fn steps<const N: usize>(page: &Page) -> [Block; N] {
    let blocks: Vec<_> = page.blocks().into_iter().filter(|block| block.language == "sh").collect();
    blocks
        .try_into()
        .unwrap_or_else(|blocks| panic!("{}: the test expects {N} blocks: {blocks:#?}", page.name))
}

const START: &str = "docs/start/your-own-database.md";

/// Creates the database of the first page and its owner, who is no superuser.
async fn with_database() -> (Reader, [Block; 7]) {
    let reader = Reader::new();
    let blocks = steps::<7>(&Page::read(START));
    assert!(blocks[0].text.starts_with("cargo install --locked --path .\nsudo -u postgres psql "));
    reader.works(&blocks[0]).await;
    assert_eq!(reader.sql("shop_owner", "select rolsuper from pg_roles where rolname = user").await, "f\n");
    (reader, blocks)
}

/// The same, with the schema and the logins of the first page.
async fn with_logins() -> (Reader, [Block; 7]) {
    let (reader, blocks) = with_database().await;
    assert!(reader.works(&blocks[1]).await.contains("0001_events\n"));
    (reader, blocks)
}

#[tokio::test]
async fn five_minutes_on_your_own_database_work_as_they_are_printed_and_so_do_five_more() {
    let (reader, [_, _, receive, run, subscribe, publish, status]) = with_logins().await;
    let receiver = reader.terminal(&receive, "receiving webhooks at").await;
    let relay = reader.terminal(&run, "relay started").await;
    reader.works(&subscribe).await;
    reader.works(&publish).await;
    let data = r#""data":{"id": 1001, "total": 4200}}"#;
    receiver.shows(&["204 ", "shop.orders.create", data]).await;
    assert!(Page::read(START).text.contains(data), "{START} shows what arrives");
    let shown = reader.works(&status).await;
    assert!(shown.lines().any(|line| line.starts_with("shop-orders   webhook  ok ")), "{shown}");

    let heading = "## Five more minutes: let one fail";
    let [fail, two_attempts, list, receive, redrive] =
        steps(&Page::read("docs/operate/dead-letters.md").section(heading));
    receiver.close().await;
    let failing = reader.terminal(&fail, "receiving webhooks at").await;
    reader.works(&two_attempts).await;
    failing.shows(&["500 ", r#"{"id": 1002, "total": 990}"#]).await;
    let mut looks = tokio::time::interval(Duration::from_millis(200));
    let waiting = async {
        loop {
            looks.tick().await;
            let shown = reader.works(&list).await;
            if shown.contains("server_error") {
                return shown;
            }
        }
    };
    let shown = timeout(LIMIT, waiting).await.expect("a dead letter");
    let page = Page::read("docs/operate/dead-letters.md");
    let printed = page.blocks().into_iter().find(|block| block.language == "text").unwrap();
    assert_eq!(shown.lines().next(), printed.text.lines().next(), "the columns of {}", page.name);
    failing.close().await;
    let receiver = reader.terminal(&receive, "receiving webhooks at").await;
    assert_eq!(reader.works(&redrive).await, "1\n");
    receiver.shows(&["204 ", r#"{"id": 1002, "total": 990}"#]).await;
    receiver.close().await;
    relay.close().await;
}

#[cfg(feature = "kafka")]
#[tokio::test]
async fn kafka_first_works_as_it_is_printed() {
    let (mut reader, _) = with_logins().await;
    let page = Page::read("docs/start/kafka.md");
    let [_compose, create, run, subscribe, publish, consume, status] = steps(&page);
    for by_docker in [&create, &consume] {
        assert!(by_docker.text.contains("--topic orders"), "{by_docker:?}");
    }
    let topic = Topic::private(1).await;
    topic.create("orders", 3).await;
    reader.kafka = Some(topic.brokers.clone());
    let relay = reader.terminal(&run, "relay started").await;
    reader.works(&subscribe).await;
    reader.works(&publish).await;
    let mut looks = tokio::time::interval(Duration::from_millis(200));
    let waiting = async {
        loop {
            looks.tick().await;
            if let Some(record) = topic.records_of("orders").await.pop() {
                return record;
            }
        }
    };
    let record = timeout(LIMIT, waiting).await.expect("a record");
    assert_eq!(
        (record.key.as_deref(), record.payload.as_str()),
        (Some("1001"), r#"{"id": 1001, "total": 4200}"#)
    );
    assert!(record.headers.contains_key("pgoutbox-id"), "{record:?}");
    assert!(page.text.contains(&record.payload), "{} shows what arrives", page.name);
    let shown = reader.works(&status).await;
    assert!(shown.lines().any(|line| line.starts_with("orders-to-kafka  kafka  ok ")), "{shown}");
    relay.close().await;
}

#[tokio::test]
async fn a_login_that_may_only_create_schemas_migrates_and_a_relay_fits() {
    let (reader, _) = with_database().await;
    let [roles, migrate, check] = steps(&Page::read("docs/operate/managed.md"));
    reader.works(&roles).await;
    assert!(reader.works(&migrate).await.contains("0001_events\n"));
    let may = "select rolcreaterole or rolsuper from pg_roles where rolname = user";
    assert_eq!(reader.sql("shop_migrator", may).await, "f\n");
    reader.works(&check).await;
    let here = "select count(system_identifier), count(timeline) from outbox.here";
    assert_eq!(reader.sql("shop_relay", here).await, "1|1\n");
}

#[tokio::test]
async fn the_page_about_what_was_not_delivered_shows_what_is_printed() {
    let (reader, _) = with_logins().await;
    let page = Page::read("docs/tasks/not-delivered.md");
    let [publish, trace] = steps(&page);
    reader.works(&publish).await;
    let said = reader.works(&trace).await;
    let printed = page.blocks().into_iter().find(|block| block.language == "text").unwrap();
    // Times and transactions are others.
    let same = |line: &&str| !line.starts_with("published at ");
    let (said, shown): (Vec<_>, Vec<_>) =
        (said.lines().filter(same).collect(), printed.text.lines().filter(same).collect());
    assert_eq!(said[..shown.len()], shown);
    let second = "large-orders: not_routed; waits for a running relay";
    assert!(said.contains(&second) && page.text.contains(&format!("`{second}`")), "{said:#?}");
}

#[tokio::test]
async fn a_database_is_moved_by_a_dump_with_what_was_not_delivered() {
    let (reader, _) = with_logins().await;
    reader.sql("shop_owner", "select outbox.capture('orders'); insert into orders values (1, 2)").await;
    let [dump, adopt] = steps(&Page::read("docs/operate/backup.md"));
    reader.works(&dump).await;
    let said = reader.works(&adopt).await;
    assert!(said.contains("1 event not routed"), "{said}");
}

#[tokio::test]
async fn nothing_is_left_after_uninstalling_but_the_tables_of_the_application() {
    let (reader, _) = with_logins().await;
    reader
        .sql(
            "shop_owner",
            "create table parts (id int primary key) partition by range (id);
             create table parts_1 partition of parts for values from (0) to (10);
             create table messages (kind text, payload jsonb);
             select outbox.capture('orders'), outbox.capture('parts'),
                    outbox.bridge('messages', topic => 'shop.{kind}')",
        )
        .await;
    let page = Page::read("docs/operate/uninstall.md");
    for block in page.blocks().into_iter().filter(|block| block.language == "sql") {
        let by_operators = block.text.starts_with("-- as a member of outbox_admin\n");
        reader.sql(if by_operators { "shop_operator" } else { "shop_owner" }, &block.text).await;
    }
    let [uninstall, roles] = steps(&page);
    reader.works(&uninstall).await;
    reader.works(&roles).await;
    let left =
        "insert into orders values (1, 2); insert into parts values (3); insert into messages values ('a');
                select count(*) from pg_trigger where not tgisinternal;
                select count(*) from pg_namespace where nspname like 'outbox%';
                select count(*) from pg_roles where rolname like 'outbox%'";
    let counted = reader.sql("shop_owner", left).await;
    assert!(counted.ends_with("\n0\n0\n0\n"), "{counted}");
}
