//! Drains a backlog to each kind of sink, compared with the same client library sending the same bytes in
//! batches of the same size without a relay. Brokers are private servers; a kind whose program is missing is
//! reported and skipped.

#[cfg(feature = "amqp")]
mod amqp;
#[cfg(feature = "kafka")]
mod kafka;
mod files;
mod sql;

use std::time::{Duration, Instant};

use super::{
    Row, per_second,
    report::{Figure, Report},
    running::{Permits, Running},
    stage::{Database, Stage, TOPIC, payload},
    within,
};
use crate::{lab::private_server, sink::Connection};

const LIMIT: Duration = Duration::from_secs(180);

/// A destination of one kind: its server, and how to send to it without a relay.
trait Destination: Sized {
    const KIND: &'static str;
    /// Description of the floor.
    const FLOOR: &'static str;
    /// A subscription's config.
    const CONFIG: &'static str;

    /// Starts the server.
    async fn start() -> anyhow::Result<Self>;
    /// Prepares the database of the outbox.
    async fn prepare(&self, database: &Database) -> anyhow::Result<()> {
        let _ = database;
        std::future::ready(Ok(())).await
    }
    /// How the relay reaches it; `None` where it needs no connection of its own.
    fn connection(&self) -> Option<Connection>;
    /// Sends events in batches and waits for the confirmation of each batch before the next.
    async fn send(&self, events: u32, batch: u32) -> anyhow::Result<()>;
    /// Number of events that it has.
    async fn count(&self) -> anyhow::Result<u64>;
}

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    // One line for each kind.
    kind::<sql::Called>(stage, report).await?;
    kind::<sql::Inbox>(stage, report).await?;
    #[cfg(feature = "kafka")]
    kind::<kafka::Server>(stage, report).await?;
    #[cfg(feature = "nats")]
    kind::<nats::Server>(stage, report).await?;
    #[cfg(feature = "redis")]
    kind::<redis::Server>(stage, report).await?;
    #[cfg(feature = "amqp")]
    kind::<amqp::Server>(stage, report).await?;
    kind::<files::Folder>(stage, report).await?;
    Ok(())
}

async fn kind<D: Destination>(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let events = stage.sizes.sink_events;
    let both = [Permits::standard(), Permits::wide(2_048)];
    let figure = |permits: Permits| {
        Figure::new(Row::Sinks, format!("{}, {}", D::KIND, permits.label()), "events/s", ">= 0.60")
    };
    let mut figures = both.map(figure);
    for _ in 0..stage.sizes.rounds {
        for (figure, permits) in figures.iter_mut().zip(both) {
            // Each arm has a new server.
            let destination = match D::start().await {
                Ok(destination) => destination,
                Err(error) => match error.downcast_ref::<private_server::Error>() {
                    Some(missing @ private_server::Error::Missing { .. }) => {
                        return Ok(report.not_run(Row::Sinks, D::KIND, missing)?);
                    }
                    _ => return Err(error),
                },
            };
            let began = Instant::now();
            within(LIMIT, "sending without a relay", destination.send(events, permits.for_one.min(500)))
                .await?;
            figure.floor.push(per_second(events.into(), began.elapsed()));
            drop(destination);
            figure.value.push(per_second(
                events.into(),
                through_the_relay(stage, &D::start().await?, permits).await?,
            ));
        }
    }
    Ok(report.print(D::FLOOR, &figures)?)
}

async fn through_the_relay<D: Destination>(
    stage: &Stage,
    destination: &D,
    permits: Permits,
) -> anyhow::Result<Duration> {
    let database = stage.database().await?;
    destination.prepare(&database).await?;
    database.subscribe("bench", D::KIND, D::CONFIG.to_owned()).await?;
    database.fill(stage.sizes.sink_events).await?;
    let connections: Vec<Connection> = destination.connection().into_iter().collect();
    let relay = Running::start_with(&database, permits, |builder| builder.connections(&connections)).await?;
    within(LIMIT, "draining to a broker", async {
        let mut polls = tokio::time::interval(Duration::from_millis(5));
        polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while destination.count().await? < stage.sizes.sink_events.into() {
            polls.tick().await;
        }
        anyhow::Ok(())
    })
    .await?;
    database.settled().await?;
    let took = relay.since.elapsed();
    relay.stop().await?;
    stage.discard(database).await?;
    Ok(took)
}

/// Attributes that both arms send besides the payload.
fn attributes(number: u32) -> [(&'static str, String); 3] {
    [
        ("id", format!("00000000-0000-7000-8000-{number:012}")),
        ("topic", TOPIC.to_owned()),
        ("created-at", "2026-01-31T12:00:00.000000Z".to_owned()),
    ]
}

#[cfg(feature = "redis")]
mod redis {
    //! Redis, without a disk.

    use super::{Destination, attributes, payload};
    use crate::{
        lab::private_server::{Kind, PrivateServer},
        sink::Connection,
    };

    pub(super) struct Server(PrivateServer, ::redis::aio::MultiplexedConnection);

    impl Destination for Server {
        const KIND: &'static str = "redis";
        const FLOOR: &'static str = "the same client library: pipelines of XADD with the same fields, as \
                                     large as the relay's batches, one after the other";
        const CONFIG: &'static str = r#"{"stream": "events"}"#;

        async fn start() -> anyhow::Result<Self> {
            let arguments = |_: &std::path::Path, port: u16| {
                let port = port.to_string();
                ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port]
                    .iter()
                    .map(Into::into)
                    .collect()
            };
            let kind = Kind { program: "redis-server", package: "redis-server", arguments };
            let server = tokio::task::spawn_blocking(move || PrivateServer::start(kind, &[])).await??;
            let client = ::redis::Client::open(format!("redis://127.0.0.1:{}", server.port()))?;
            let config = ::redis::AsyncConnectionConfig::new().set_response_timeout(Some(super::LIMIT));
            Ok(Self(server, client.get_multiplexed_async_connection_with_config(&config).await?))
        }

        fn connection(&self) -> Option<Connection> {
            let url = format!("redis://127.0.0.1:{}", self.0.port());
            let config = crate::sinks::redis::Config::new(url.into());
            Some(Connection::new::<crate::sinks::redis::Redis>(config, "default"))
        }

        async fn send(&self, events: u32, batch: u32) -> anyhow::Result<()> {
            let mut connection = self.1.clone();
            let mut sent = 0;
            while sent < events {
                let some = batch.min(events - sent);
                let mut pipeline = ::redis::Pipeline::with_capacity(usize::try_from(some)?);
                for number in sent..sent + some {
                    let command = pipeline.cmd("XADD").arg("events").arg("*");
                    for (name, value) in attributes(number) {
                        command.arg(name).arg(value);
                    }
                    command
                        .arg("content-type")
                        .arg("application/json")
                        .arg("payload")
                        .arg(payload(number))
                        .ignore();
                }
                pipeline.exec_async(&mut connection).await?;
                sent += some;
            }
            Ok(())
        }

        async fn count(&self) -> anyhow::Result<u64> {
            Ok(::redis::cmd("XLEN").arg("events").query_async(&mut self.1.clone()).await?)
        }
    }
}

#[cfg(feature = "nats")]
mod nats {
    //! NATS, with a stream on the disk.

    use async_nats::jetstream;

    use super::{Destination, attributes, payload};
    use crate::{
        lab::private_server::{Kind, PrivateServer},
        sink::Connection,
    };

    pub(super) struct Server(PrivateServer, jetstream::Context);

    impl Destination for Server {
        const KIND: &'static str = "nats";
        const FLOOR: &'static str = "the same client library: the same messages published to JetStream, in \
                                     batches as large as the relay's, each batch after the \
                                     acknowledgements of the one before";
        const CONFIG: &'static str = r#"{"subject": "events"}"#;

        async fn start() -> anyhow::Result<Self> {
            let arguments = |folder: &std::path::Path, port: u16| {
                let (port, folder) = (port.to_string(), folder.join("jetstream").into_os_string());
                ["-js", "-a", "127.0.0.1", "-p", &port, "-sd"]
                    .iter()
                    .map(Into::into)
                    .chain([folder])
                    .collect()
            };
            let kind = Kind { program: "nats-server", package: "nats-server", arguments };
            let server = tokio::task::spawn_blocking(move || PrivateServer::start(kind, &[])).await??;
            let jetstream =
                jetstream::new(async_nats::connect(format!("nats://127.0.0.1:{}", server.port())).await?);
            let stream = jetstream::stream::Config {
                name: "EVENTS".to_owned(),
                subjects: vec!["events".to_owned()],
                ..Default::default()
            };
            jetstream.create_stream(stream).await?;
            Ok(Self(server, jetstream))
        }

        fn connection(&self) -> Option<Connection> {
            let server = format!("nats://127.0.0.1:{}", self.0.port());
            let config = crate::sinks::nats::Config::new(vec![server]);
            Some(Connection::new::<crate::sinks::nats::Nats>(config, "default"))
        }

        async fn send(&self, events: u32, batch: u32) -> anyhow::Result<()> {
            let mut sent = 0;
            while sent < events {
                let some = batch.min(events - sent);
                let mut unconfirmed = Vec::with_capacity(usize::try_from(some)?);
                for number in sent..sent + some {
                    let mut headers = async_nats::HeaderMap::new();
                    for (name, value) in attributes(number) {
                        if name == "id" {
                            headers.insert("Nats-Msg-Id", value.as_str());
                        }
                        headers.insert(format!("pgoutbox-{name}"), value);
                    }
                    headers.insert("content-type", "application/json");
                    unconfirmed
                        .push(self.1.publish_with_headers("events", headers, payload(number).into()).await?);
                }
                for confirmation in unconfirmed {
                    confirmation.await?;
                }
                sent += some;
            }
            Ok(())
        }

        async fn count(&self) -> anyhow::Result<u64> {
            Ok(self.1.get_stream("EVENTS").await?.cached_info().state.messages)
        }
    }
}
