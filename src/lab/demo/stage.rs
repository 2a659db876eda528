//! Starts and stops the parts of the demo: a private PostgreSQL, receivers on loopback, a relay.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::SecretString;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::super::{
    private_postgres::{self, PrivatePostgres},
    receiver::{self, Receiver},
};
use super::{
    ledger::{ACCOUNTING, Arrival, Ledger, MAIL, Plan, WAREHOUSE},
    page, screen,
    shop::{Done, Shop},
    status::Status,
};
use crate::{
    http::{self, Server},
    live::{self, Gateway, Sources},
    relay::{self, AttemptLog, Relay, Settings, telemetry::Telemetry},
    sink::{egress::Egress, secret},
    sinks::webhook::{Webhook, sign::Key},
    store::{ConnectionSettings, schema},
};

const DATABASE: &str = "shop";
/// File name of the secret; subscriptions refer to it as `file:demo`.
const SECRET: &str = "demo";
/// Most requests that wait to be recorded.
const QUEUE: usize = 64;

/// All running parts. Dropping it stops PostgreSQL at once; [`Stage::stop`] stops all parts in order.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) shop: Shop,
    pub(super) pool: PgPool,
    /// Address of the database.
    pub(super) url: String,
    /// Address of the relay's HTTP server.
    pub(super) http: Option<SocketAddr>,
    /// Working address of accounting.
    pub(super) new_url: String,
    warehouse: receiver::Switch,
    ledger: Arc<Mutex<Ledger>>,
    relay: JoinSet<Result<relay::Drained, relay::Error>>,
    gateway: Option<Gateway>,
    servers: JoinSet<anyhow::Result<()>>,
    stop_relay: CancellationToken,
    stop_servers: CancellationToken,
    postgres: PrivatePostgres,
}

impl Stage {
    /// Starts everything.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let postgres =
            tokio::task::spawn_blocking(|| PrivatePostgres::start(private_postgres::Options::default()))
                .await??;
        postgres.create_database(DATABASE)?;
        let url = postgres.url(DATABASE);
        let options: PgConnectOptions = url.parse()?;
        schema::run(&options).await.context("creating the schema outbox")?;
        screen::say(&format!(
            "PostgreSQL runs on port {}; the schema outbox is in its database {DATABASE}",
            postgres.port()
        ));

        let secret = format!("whsec_{}", BASE64_STANDARD.encode(rand::random::<[u8; 32]>()));
        let folder = postgres.directory().join("secrets");
        std::fs::create_dir(&folder)
            .and_then(|()| std::fs::write(folder.join(SECRET), &secret))
            .context("writing the demo's secret")?;

        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (mut servers, stop_servers) = (JoinSet::new(), CancellationToken::new());
        let key = Key::parse(&SecretString::from(secret)).map_err(anyhow::Error::msg)?;
        let mut listen = async |plan: Plan, fail_rate: f64| -> anyhow::Result<_> {
            let (sender, mut received) = mpsc::channel(QUEUE);
            let options = receiver::Options {
                fail_rate,
                secrets: vec![key.clone()],
                received: Some(sender),
                ..receiver::Options::default()
            };
            let receiver = Receiver::bind((Ipv4Addr::LOCALHOST, 0).into(), options)
                .await
                .with_context(|| format!("opening a port for the receiver of {}", plan.name))?;
            let (switch, url) = (receiver.switch(), format!("http://{}/", receiver.address()));
            let (ledger, stop) = (ledger.clone(), stop_servers.clone());
            servers.spawn(async move {
                receiver.run(stop).await.with_context(|| format!("receiving for {}", plan.name))
            });
            servers.spawn(async move {
                while let Some(got) = received.recv().await {
                    let (id, topic) = (got.id.unwrap_or_default(), got.topic.unwrap_or_default());
                    let (verified, answered) = (got.verified, got.answered);
                    lock(&ledger).arrive(Arrival { subscription: plan.name, id, topic, verified, answered });
                }
                Ok(())
            });
            Ok((switch, url))
        };
        let (_, mail_url) = listen(MAIL, 0.2).await?;
        let (warehouse, warehouse_url) = listen(WAREHOUSE, 0.0).await?;
        let (_, old_accounting_url) = listen(ACCOUNTING, 1.0).await?;
        let (_, new_url) = listen(ACCOUNTING, 0.0).await?;

        let pool = connect(options.clone()).await?;
        let shop = Shop::open(pool.clone()).await?;
        let many_attempts = r#"{"initial": "200ms", "multiplier": 1.5, "max": "2s", "max_attempts": 100}"#;
        subscribe(&pool, MAIL, &mail_url, many_attempts).await?;
        subscribe(&pool, WAREHOUSE, &warehouse_url, many_attempts).await?;
        subscribe(&pool, ACCOUNTING, &old_accounting_url, r#"{"schedule": ["500ms", "1s"]}"#).await?;

        let mut stage = Self {
            shop,
            pool,
            url,
            http: None,
            new_url,
            warehouse,
            ledger,
            relay: JoinSet::new(),
            gateway: None,
            servers,
            stop_relay: CancellationToken::new(),
            stop_servers,
            postgres,
        };
        stage.start_relay(options, folder).await?;
        Ok(stage)
    }

    async fn start_relay(
        &mut self,
        options: PgConnectOptions,
        secrets: std::path::PathBuf,
    ) -> anyhow::Result<()> {
        // Loopback and plain http are refused by default.
        let egress = Egress {
            allow: vec!["127.0.0.0/8".parse().expect("a network")],
            allow_http: true,
            ..Egress::default()
        };
        screen::say(
            "the relay may send to 127.0.0.0/8 over plain http (egress.allow, egress.allow_http); \
             the default is no",
        );
        let secrets = secret::Secrets::new(Some(secrets));
        let settings = Settings {
            name: "demo".to_owned(),
            environment: "demo".to_owned(),
            drain: Duration::from_secs(5),
            attempt_log: AttemptLog::All,
            ..Settings::default()
        };
        let telemetry = Telemetry::new();
        let connection = ConnectionSettings {
            servers: options.clone().into(),
            relay: settings.name.clone(),
            environment: settings.environment.clone(),
            pool_size: 1,
            function_pool_size: 0,
            pooler: false,
            allow_superuser: true,
        };
        let relay = Relay::builder(connect(options.clone()).await?)
            .settings(settings)
            .sink(Webhook::new(&egress, secrets)?)
            .telemetry(telemetry.clone())
            .allow_superuser(true)
            .build()
            .await
            .context("starting the relay")?;
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("opening a port for HTTP")?;
        self.http = Some(listener.local_addr()?);
        let sources = Sources {
            connection,
            listen: Some(options.into()),
            news: Some(relay.news()),
            telemetry: telemetry.clone(),
        };
        let gateway = Gateway::start(sources, live::Settings::default());
        let server = Server {
            settings: http::Settings { listen: self.http, ..http::Settings::default() },
            readiness: relay.health(),
            telemetry,
            draining: self.stop_relay.clone(),
            room: Some(gateway.room().clone()),
            clients: tokio_util::task::TaskTracker::new(),
            operators: None,
        };
        self.gateway = Some(gateway);
        screen::say(&format!("the orders, live, in a browser: {}", self.page()));
        let closed = self.stop_servers.clone();
        self.servers.spawn(async move {
            let served = http::serve_with(listener, server, page::routes(), closed);
            served.await.context("serving http")
        });
        let stop = self.stop_relay.clone();
        self.relay.spawn(async move { relay.run(stop).await });
        Ok(())
    }

    /// Address of the page with the orders.
    pub(super) fn page(&self) -> String {
        self.http.map_or_else(String::new, |http| format!("http://{http}{}", page::PATH))
    }

    /// A copy of the ledger.
    pub(super) fn ledger(&self) -> Ledger {
        lock(&self.ledger).clone()
    }

    /// Records an action of the shop.
    pub(super) fn record(&self, done: Done) {
        let mut ledger = lock(&self.ledger);
        match done {
            Done::Committed { event, topic, order } => {
                ledger.commit(event, topic);
                ledger.last_action = format!("order {order}: {topic}");
            }
            Done::RolledBack { event, order } => {
                ledger.roll_back(event);
                ledger.last_action = format!("order {order}: the card was refused, rolled back");
            }
        }
    }

    /// Sets whether the warehouse's receiver is down and answers 503.
    pub(super) fn set_warehouse_down(&self, down: bool) {
        self.warehouse.set_down(down);
    }

    /// Reads the status of the subscriptions.
    pub(super) async fn status(&self) -> anyhow::Result<Vec<Status>> {
        sqlx::query_as(
            "select name, backlog, retrying, dead_letters, state, breaker \
                       from outbox.subscription_status order by name",
        )
        .fetch_all(&self.pool)
        .await
        .context("reading outbox.subscription_status")
    }

    /// Returns when a part that should run has ended.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            Some(ended) = self.relay.join_next() => match ended {
                Ok(Ok(drained)) => anyhow::anyhow!("the relay ended by itself: {drained:?}"),
                Ok(Err(error)) => anyhow::Error::new(error).context("running the relay"),
                Err(error) => anyhow::Error::new(error).context("running the relay"),
            },
            Some(ended) = self.servers.join_next() => match ended {
                Ok(Ok(())) => anyhow::anyhow!("a receiver ended by itself"),
                Ok(Err(error)) => error,
                Err(error) => anyhow::Error::new(error).context("running a receiver"),
            },
            else => anyhow::anyhow!("all parts have ended"),
        }
    }

    /// Drains the relay, stops the receivers and PostgreSQL, and removes the directory.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.stop_relay.cancel();
        let mut result = Ok(());
        while let Some(ended) = self.relay.join_next().await {
            if let Err(error) =
                ended.map_err(anyhow::Error::new).and_then(|drained| drained.map_err(anyhow::Error::new))
            {
                result = Err(error.context("stopping the relay"));
            }
        }
        if let Some(gateway) = &self.gateway {
            gateway.drain();
        }
        self.stop_servers.cancel();
        if tokio::time::timeout(Duration::from_secs(5), async {
            while self.servers.join_next().await.is_some() {}
        })
        .await
        .is_err()
        {
            self.servers.shutdown().await;
        }
        if let Some(gateway) = self.gateway.take() {
            gateway.close().await;
        }
        self.pool.close().await;
        tokio::task::spawn_blocking(move || drop(self.postgres)).await.context("stopping PostgreSQL")?;
        result
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("no panic while the ledger is locked")
}

async fn connect(options: PgConnectOptions) -> anyhow::Result<PgPool> {
    // As a relay does: compiling the statement that reads the status takes longer than running it.
    let options = options.options([("jit", "off")]);
    let pool = PgPoolOptions::new().max_connections(10).acquire_timeout(Duration::from_secs(10));
    pool.connect_with(options).await.context("connecting to the private PostgreSQL")
}

/// Subscribes, as a migration of the shop would do.
async fn subscribe(pool: &PgPool, plan: Plan, url: &str, retry: &str) -> anyhow::Result<()> {
    sqlx::query(
        "select outbox.subscribe($1, array[$2], 'webhook', \
                 config => jsonb_build_object('url', $3::text, 'secret', $4::text, 'timeout', '5s'), \
                 retry => $5::text::jsonb)",
    )
    .bind(plan.name)
    .bind(plan.pattern)
    .bind(url)
    .bind(format!("file:{SECRET}"))
    .bind(retry)
    .execute(pool)
    .await
    .with_context(|| format!("subscribing {}", plan.name))?;
    screen::say(&format!("subscribed {:<10} to {:<19} at {url}", plan.name, plan.pattern));
    Ok(())
}
