//! Live clients, beside a relay or alone, on threads of their own.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{
    runtime::{Handle, Runtime},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{config::Config, limits};
use crate::{
    live::{Gateway, Settings, Sources},
    relay::telemetry::Telemetry,
    store::ConnectionSettings,
};

/// How a gateway of this name connects to the database.
pub(super) fn connection(config: &Config, name: String) -> anyhow::Result<ConnectionSettings> {
    Ok(ConnectionSettings {
        servers: config.servers()?,
        relay: name,
        environment: config.relay.environment.clone(),
        pool_size: config.database.pool_size,
        function_pool_size: 0,
        pooler: config.database.pooler,
        allow_superuser: config.database.allow_superuser,
    })
}

/// Starts a gateway. `news`: what the relay of this process has read; none: there is no relay.
pub(super) fn start(
    config: &Config,
    connection: ConnectionSettings,
    news: Option<watch::Receiver<u64>>,
    telemetry: Arc<Telemetry>,
    descriptors: Option<usize>,
) -> anyhow::Result<Gateway> {
    let max_connections = limits::live_clients(descriptors, config.realtime.max_connections);
    if max_connections < config.realtime.max_connections {
        tracing::warn!(max_connections, "live clients are limited by the open files of the process");
    }
    let settings = Settings { max_connections, ..config.realtime.clone() };
    let sources = Sources { connection, listen: config.listen_servers()?, news, telemetry };
    Ok(Gateway::start(sources, settings))
}

/// Threads of live clients and of HTTP, which deliveries do not share: a thousand clients that are sent
/// something take their turns one after another, and a delivery does not wait for them.
#[derive(Debug)]
pub(super) struct Apart(Option<Runtime>, Handle);

impl Apart {
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.thread_name("live").enable_all().build().context("starting the runtime")?;
        let handle = runtime.handle().clone();
        Ok(Self(Some(runtime), handle))
    }

    /// What is spawned by this runs there.
    pub(super) fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // A task that is left, such as an answer that nobody reads, is not waited for.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs something beside a gateway. When `stop` is cancelled, live clients are asked to leave; when it has
/// ended, the gateway ends.
pub(super) async fn beside<T>(
    running: impl Future<Output = T>,
    gateway: Option<Gateway>,
    stop: CancellationToken,
) -> T {
    let leaving = async {
        stop.cancelled().await;
        if let Some(gateway) = &gateway {
            gateway.drain();
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = running => ended,
        () = leaving => unreachable!("it waits for ever"),
    };
    if let Some(gateway) = gateway {
        gateway.close().await;
    }
    ended
}
