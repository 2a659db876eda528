//! Kafka, as the mock cluster of the client library: in this process, in memory.

use std::sync::Arc;

use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
    message::{Header, OwnedHeaders},
    mocking::MockCluster,
    producer::{DefaultProducerContext, FutureProducer, FutureRecord},
};

use super::{Destination, LIMIT, attributes, payload};
use crate::sink::Connection;

/// The cluster, and a consumer that counts its records.
pub(super) struct Server(MockCluster<'static, DefaultProducerContext>, Arc<BaseConsumer>);

impl Destination for Server {
    const KIND: &'static str = "kafka";
    const FLOOR: &'static str = "the same client library: an idempotent producer with the same settings \
                                 and the same records, in batches as large as the relay's, each batch \
                                 after the confirmations of the one before; to the library's mock cluster";
    const CONFIG: &'static str = r#"{"topic": "events"}"#;

    async fn start() -> anyhow::Result<Self> {
        let cluster = MockCluster::new(1)?;
        cluster.create_topic("events", 4, 1)?;
        let consumer = ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create()?;
        Ok(Self(cluster, Arc::new(consumer)))
    }

    fn connection(&self) -> Option<Connection> {
        let brokers = self.0.bootstrap_servers().split(',').map(str::to_owned).collect();
        let config = crate::sinks::kafka::Config { brokers, ..Default::default() };
        Some(Connection::new::<crate::sinks::kafka::Kafka>(config, "default"))
    }

    async fn send(&self, events: u32, batch: u32) -> anyhow::Result<()> {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", self.0.bootstrap_servers())
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .create()?;
        let mut sent = 0;
        while sent < events {
            let some = batch.min(events - sent);
            let mut unconfirmed = Vec::with_capacity(usize::try_from(some)?);
            for number in sent..sent + some {
                let mut headers = OwnedHeaders::new()
                    .insert(Header { key: "content-type", value: Some("application/json") });
                for (name, value) in attributes(number) {
                    headers =
                        headers.insert(Header { key: &format!("pgoutbox-{name}"), value: Some(&value) });
                }
                let payload = payload(number);
                let record: FutureRecord<'_, str, str> =
                    FutureRecord::to("events").payload(payload.as_str()).headers(headers);
                unconfirmed.push(producer.send_result(record).map_err(|(error, _)| error)?);
            }
            for confirmation in unconfirmed {
                confirmation.await?.map_err(|(error, _)| error)?;
            }
            sent += some;
        }
        Ok(())
    }

    async fn count(&self) -> anyhow::Result<u64> {
        let consumer = self.1.clone();
        let counting = move || {
            let mut count = 0;
            for partition in 0..4 {
                // The mock cluster keeps 5 MB of a partition: the low watermark rises.
                let (_, high) = consumer.fetch_watermarks("events", partition, LIMIT)?;
                count += u64::try_from(high)?;
            }
            anyhow::Ok(count)
        };
        tokio::task::spawn_blocking(counting).await?
    }
}
