//! Priority moves a delivery forward among waiting ones and never delays it.

use crate::support::{Database, Recorder, RelayBox};

#[tokio::test]
async fn an_urgent_event_for_a_full_subscription_is_sent_as_soon_as_a_permit_is_free() {
    let database = Database::new().await;
    // The subscription with many permits keeps up, so that deliveries of the other do not wait in the
    // log.
    database.execute("select outbox.subscribe('narrow', array['**'], 'recorder', max_in_flight => 1)").await;
    database.execute("select outbox.subscribe('wide', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    // It knows then that nothing waits from before its start.
    relay.wait_asleep().await;
    let topics = ["a.first", "a.ordinary", "a.urgent", "a.later"];
    // Twice: the second time the relay has read everything that was due.
    for round in 1..=2 {
        let closed = recorder.gate.clone().write_owned().await;
        for topic in topics {
            let priority = if topic == "a.urgent" { 10 } else { 0 };
            database.execute(format!("select outbox.publish('{topic}', '1', priority => {priority})")).await;
        }
        database.eventually("select count(*) = 8 from outbox.owed").await;
        drop(closed);
        let seen = recorder.wait_for(14 * round - 6).await;
        let narrow: Vec<_> = seen
            .iter()
            .filter(|one| one.subscription == "narrow")
            .skip(7 * (round - 1))
            .map(|one| one.topic.as_str())
            .collect();
        assert_eq!(narrow, ["a.first", "a.urgent", "a.ordinary", "a.later"], "round {round}");
        // One after the other, so that the relay catches up and then reads only deliveries that
        // become due later.
        for quiet in 1..=3 {
            database.execute("select outbox.publish('quiet', '1')").await;
            recorder.wait_for(14 * round - 6 + 2 * quiet).await;
            database.eventually("select not exists (select from outbox.owed)").await;
        }
    }
    relay.stop().await;
    database.drop().await;
}
