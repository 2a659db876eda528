//! RabbitMQ, with a durable queue on the disk.

use anyhow::Context;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::{Destination, LIMIT, attributes, payload};
use crate::{
    lab::private_server::{PrivateServer, rabbitmq},
    sink,
};

pub(super) struct Server(PrivateServer, Connection, Channel);

impl Server {
    fn url(server: &PrivateServer) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", server.port())
    }
}

impl Destination for Server {
    const KIND: &'static str = "amqp";
    const FLOOR: &'static str = "the same client library: the same persistent messages, mandatory, in \
                                 batches as large as the relay's, each batch after the confirmations of \
                                 the one before";
    const CONFIG: &'static str = r#"{"routing_key": "events"}"#;

    async fn start() -> anyhow::Result<Self> {
        let server = tokio::task::spawn_blocking(rabbitmq::start).await??;
        let mut tries = tokio::time::interval(std::time::Duration::from_millis(100));
        let connecting = async {
            loop {
                tries.tick().await;
                if let Ok(connection) =
                    Connection::connect(&Self::url(&server), ConnectionProperties::default()).await
                {
                    return connection;
                }
            }
        };
        let connection = tokio::time::timeout(LIMIT, connecting).await.context("logging in to RabbitMQ")?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare("events".into(), durable, FieldTable::default()).await?;
        Ok(Self(server, connection, channel))
    }

    fn connection(&self) -> Option<sink::Connection> {
        let config = crate::sinks::amqp::Config::new(Self::url(&self.0).into());
        Some(sink::Connection::new::<crate::sinks::amqp::Amqp>(config, "default"))
    }

    async fn send(&self, events: u32, batch: u32) -> anyhow::Result<()> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let mut sent = 0;
        while sent < events {
            let some = batch.min(events - sent);
            let publishing = (sent..sent + some).map(|number| async move {
                let mut headers = FieldTable::default();
                for (name, value) in attributes(number) {
                    headers.insert(format!("pgoutbox-{name}").into(), AMQPValue::LongString(value.into()));
                }
                let [(_, id), ..] = attributes(number);
                let properties = BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_message_id(id.into())
                    .with_content_type("application/json".into())
                    .with_headers(headers);
                let payload = payload(number);
                self.2
                    .basic_publish("".into(), "events".into(), options, payload.as_bytes(), properties)
                    .await?
                    .await
            });
            futures_util::future::try_join_all(publishing).await?;
            sent += some;
        }
        Ok(())
    }

    async fn count(&self) -> anyhow::Result<u64> {
        let channel = self.1.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        Ok(channel
            .queue_declare("events".into(), passive, FieldTable::default())
            .await?
            .message_count()
            .into())
    }
}
