//! Priority moves a delivery forward among those that wait; it never makes it wait longer.

use crate::support::{Database, Recorder, RelayBox};

#[tokio::test]
async fn an_urgent_event_for_a_full_subscription_is_sent_as_soon_as_there_is_room() {
    let database = Database::new().await;
    // The wide one keeps up, so that the narrow one's deliveries do not wait in the log.
    database.execute("select outbox.subscribe('narrow', array['**'], 'recorder', max_in_flight => 1)").await;
    database.execute("select outbox.subscribe('wide', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    let topics = ["a.first", "a.ordinary", "a.urgent", "a.later"];
    // Twice: the second time the relay has seen everything that was due.
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
        // One after the other: the relay catches up, and from then on looks only at what falls due from then on.
        for quiet in 1..=3 {
            database.execute("select outbox.publish('quiet', '1')").await;
            recorder.wait_for(14 * round - 6 + 2 * quiet).await;
            database.eventually("select not exists (select from outbox.owed)").await;
        }
    }
    relay.stop().await;
    database.drop().await;
}
