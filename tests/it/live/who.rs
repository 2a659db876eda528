//! Who may see what: the organization, topics and channels of a token, and its end.

use std::time::Duration;

use pgoutbox::{
    http::{self, Jwt},
    live::Settings,
};
use serde_json::{Value, json};

use crate::support::{
    Database,
    live::{Client, LiveBox},
    tokens::{Signer, claims, now},
};

const SECRET: &str = "a secret of at least 32 bytes, as RFC 7518 asks for";

fn token(more: Value) -> String {
    let mut claims = claims(more);
    if claims["all_organizations"] == true {
        claims.as_object_mut().unwrap().remove("organization");
    }
    Signer::secret(SECRET).token(None, &claims)
}

async fn started(database: &Database, settings: Settings) -> LiveBox {
    let jwt = Jwt { secret: Some(SECRET.into()), ..Jwt::default() };
    let http = http::Settings { token: Some("0perator".into()), jwt: Some(jwt), ..http::Settings::default() };
    LiveBox::start_with(database, settings, http).await
}

async fn publish_for_all(database: &Database) {
    for (topic, organization, n) in [
        ("shop.order", "'acme'", 1),
        ("shop.order", "'beta'", 2),
        ("shop.order", "null", 3),
        ("shop.invoice", "'acme'", 4),
        ("secret.thing", "'acme'", 5),
        ("shop.order", "'acme'", 6),
    ] {
        database
            .execute(format!("select outbox.publish('{topic}', '{n}', organization => {organization})"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_sees_its_own_organization_and_its_topics_whatever_it_asks_for() {
    let database = Database::new().await;
    let live = started(&database, Settings::default()).await;
    let acme = token(json!({ "organization": "acme", "topics": ["shop.*"] }));
    let beta = token(json!({ "organization": "beta", "topics": ["**"] }));
    let all = token(json!({ "all_organizations": true, "topics": ["shop.order"] }));
    let mut clients = Vec::new();
    for bearer in [acme.as_str(), &beta, &all, "0perator"] {
        let mut client = Client::connect_as(live.address, bearer).await;
        client.subscribe("a", &["**"], json!({})).await;
        client.wait("caught_up").await;
        clients.push(client);
    }
    publish_for_all(&database).await;
    let expected: [&[u64]; 4] = [&[1, 4, 6], &[2], &[1, 2, 3, 6], &[1, 2, 3, 4, 5, 6]];
    for (client, expected) in clients.iter_mut().zip(expected) {
        let seen: Vec<u64> =
            client.payloads(expected.len()).await.iter().map(|payload| payload.as_u64().unwrap()).collect();
        assert_eq!(seen, expected);
    }
    // A filter that looks for others finds nothing.
    let mut client = Client::connect_as(live.address, &acme).await;
    let since = "2020-01-01T00:00:00Z";
    client.subscribe("a", &["**"], json!({ "since": since, "filter": "organization != 'acme'" })).await;
    client.subscribe("b", &["**"], json!({ "since": since, "filter": "payload == 6" })).await;
    let event = client.wait("event").await;
    assert_eq!((&event["id"], &event["event"]["payload"]), (&json!("b"), &json!(6)));
    // Nor does a snapshot, which has the newest of what may be seen.
    for (topic, organization, n) in
        [("shop.order", "acme", 7), ("secret.thing", "acme", 8), ("shop.order", "beta", 9)]
    {
        let sql = "select outbox.publish($1, to_jsonb($2), key => 'k', organization => $3)";
        sqlx::query(sql).bind(topic).bind(n).bind(organization).execute(&database.pool).await.unwrap();
    }
    let mut again = Client::connect_as(live.address, &acme).await;
    again.subscribe("c", &["**"], json!({ "snapshot": true })).await;
    assert_eq!(again.payloads(1).await, [json!(7)]);
    again.wait("caught_up").await;
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_joined_by_its_name_and_shows_what_it_shapes_to_whom_it_is_for() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('board', array['shop.*'], 'live', filter => 'payload > 1', \
                                     transform => '{\"number\": payload}'), \
                    outbox.subscribe('acme', array['**'], 'live', organization => 'acme'), \
                    outbox.subscribe('hook', array['**'], 'webhook', '{\"url\": \"https://h.example/\"}')",
        )
        .await;
    let live = started(&database, Settings { channels_only: true, ..Settings::default() }).await;
    let acme =
        token(json!({ "organization": "acme", "topics": ["**"], "channels": ["board", "acme", "hook"] }));
    let beta = token(json!({ "organization": "beta", "channels": ["*"] }));
    let mut one = Client::connect_as(live.address, &acme).await;
    let mut two = Client::connect_as(live.address, &beta).await;
    let join = |channel: &str| json!({ "type": "subscribe", "id": channel, "channel": channel });
    assert_eq!(
        one.refusal(json!({ "type": "subscribe", "id": "x", "topics": ["**"] })).await,
        "channels_only"
    );
    assert_eq!(one.refusal(join("other")).await, "forbidden");
    assert_eq!(one.refusal(join("hook")).await, "unknown_channel");
    assert_eq!(two.refusal(join("acme")).await, "unknown_channel", "another organization has it");
    for client in [&mut one, &mut two] {
        client.send(join("board")).await;
        client.wait("caught_up").await;
    }
    publish_for_all(&database).await;
    for (client, numbers) in [(&mut one, vec![4, 6]), (&mut two, vec![2])] {
        for number in numbers {
            let event = client.wait("event").await;
            assert_eq!(
                (&event["id"], &event["event"]["payload"]),
                (&json!("board"), &json!({ "number": number }))
            );
        }
    }
    // Another form of the channel holds from the next event on.
    database.execute("update outbox.subscriptions set transform = null where name = 'board'").await;
    database.execute("select outbox.publish('shop.order', '8', organization => 'acme')").await;
    assert_eq!(one.wait("event").await["event"]["payload"], 8);
    database.execute("select outbox.pause('board')").await;
    database.execute("select outbox.publish('shop.order', '9', organization => 'acme')").await;
    let told = one.next().await.unwrap();
    assert_eq!((&told["type"], &told["code"]), (&json!("error"), &json!("unavailable")), "{told}");
    assert_eq!(one.refusal(join("board")).await, "unavailable");
    database.execute("select outbox.resume('board'), outbox.unsubscribe('acme')").await;
    one.send(join("board")).await;
    one.wait("caught_up").await;
    // An operator may follow topics nevertheless.
    Client::connect_as(live.address, "0perator").await.subscribe("x", &["**"], json!({})).await;
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_when_its_token_expires() {
    let database = Database::new().await;
    let live = started(&database, Settings::default()).await;
    let brief = token(json!({ "organization": "acme", "topics": ["**"], "exp": now() + 2 }));
    let mut client = Client::connect_as(live.address, &brief).await;
    let token = client.subscribe("a", &["**"], json!({})).await;
    let mut stream = live.stream("topics=**", &[("authorization", &format!("Bearer {brief}"))]).await;
    assert_eq!(stream.next().await.unwrap().event, "subscribed");
    let closed = tokio::time::timeout(Duration::from_secs(20), client.closed()).await.unwrap();
    assert_eq!(closed.unwrap().0, 1008);
    while stream.next().await.is_some() {}
    database.execute("select outbox.publish('a.b', '1', organization => 'acme')").await;
    let fresh = self::token(json!({ "organization": "acme", "topics": ["**"] }));
    let mut back = Client::connect_as(live.address, &fresh).await;
    back.subscribe("a", &["**"], json!({ "since": token })).await;
    assert_eq!(back.payloads(1).await, [json!(1)]);
    live.stop().await;
    database.drop().await;
}
