//! `gateway`: a process that serves live clients and nothing else. The first signal asks clients to leave, a
//! second one ends at once.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use tokio::signal::unix::Signal;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    config::{Config, Error, Mistake, Sources},
    exit::{self, Exit},
    follow::{Change, Followed},
    limits, live, logging,
    probes::Probes,
    signals::{self, Signals},
    systemd,
};
use crate::{
    admin::Operator,
    delivery::duration,
    http::{Readiness, Server},
    live::{Gateway, Room},
    relay::{
        self,
        telemetry::{Telemetry, chain},
    },
    sink::secret::Secrets,
    sinks,
    store::{ConnectionSettings, Store, schema},
};

/// Interval of looking whether a database may be used again.
const AGAIN: Duration = Duration::from_secs(2);
/// Interval of looking whether clients have left.
const LOOK: Duration = Duration::from_millis(50);

/// Whether this gateway can serve.
#[derive(Debug, Clone)]
struct Standing {
    name: String,
    store: Arc<Store>,
    room: Arc<Room>,
}

impl Readiness for Standing {
    async fn ready(&self) -> Result<(), String> {
        self.store.inspect().await.map(drop).map_err(|error| chain(&error))
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({
            "gateway": self.name,
            "version": env!("CARGO_PKG_VERSION"),
            "fenced": self.store.is_fenced(),
            "connections": self.room.connections(),
        })
    }
}

/// Serves until a signal, then until clients have left.
pub(super) async fn run(sources: &Sources) -> anyhow::Result<Exit> {
    let config = load(sources)?;
    logging::init(&config.telemetry)?;
    let (mut signals, hangup) = (Signals::without_hangup()?, signals::hangup()?);
    let drain = CancellationToken::new();
    let longest = config.relay.drain;
    let work = systemd::watched(work(sources, config, hangup, drain.clone()));
    tokio::pin!(work);
    tokio::select! {
        ended = &mut work => return ended,
        () = signals.next() => {}
    }
    systemd::stopping(longest);
    drain.cancel();
    let deadline = duration::format(longest);
    tracing::info!(%deadline, "clients are asked to leave; a second signal stops at once");
    tokio::select! {
        ended = &mut work => ended,
        () = signals.next() => {
            tracing::warn!("stopped by a second signal; clients come back with their tokens");
            Ok(Exit::Unfinished)
        }
    }
}

/// The configuration, if clients can reach a gateway with it.
fn load(sources: &Sources) -> Result<Config, Error> {
    let config = Config::load(sources, sinks::CONFIGURED)?;
    let mistake = |key: &str, value: &str, problem: &str| Mistake {
        key: key.to_owned(),
        value: Some(value.to_owned()),
        origin: None,
        problem: problem.to_owned(),
    };
    let mistakes: Vec<Mistake> = [
        (config.http.listen.is_none())
            .then(|| mistake("http.listen", "off", "a gateway serves there; set an address")),
        (!config.realtime.enabled)
            .then(|| mistake("realtime.enabled", "false", "a gateway serves live clients; set it to true")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if mistakes.is_empty() { Ok(config) } else { Err(Error { mistakes }) }
}

/// What outlives a gateway of this process.
struct Gateways<'s> {
    sources: &'s Sources,
    followed: Followed,
    secrets: Secrets,
    hangup: Signal,
    drain: CancellationToken,
    probes: Probes,
    apart: live::Apart,
    telemetry: Arc<Telemetry>,
    /// Files that the process may have open; none: no limit is known.
    descriptors: Option<usize>,
}

/// Why a gateway is followed by another.
enum Next {
    /// The process is to end.
    Drained,
    /// It is configured in another way.
    Changed(Box<Config>),
    /// The database may not be used as it is.
    Tripped,
}

async fn work(
    sources: &Sources,
    config: Config,
    hangup: Signal,
    drain: CancellationToken,
) -> anyhow::Result<Exit> {
    for warning in config.warnings() {
        tracing::warn!(warning, "configuration warning");
    }
    let descriptors = limits::raise_descriptors();
    // Read again after looking at the files, so that no change between the two is missed.
    let followed = Followed::of(&config).await;
    let config = load(sources)?;
    let secrets = Secrets::new(config.secrets.folder.clone());
    // Listen first: a second process on the same address must not begin to serve.
    let apart = live::Apart::start()?;
    let probes = Probes::listen(&config.http, apart.handle().clone()).await?;
    let telemetry = Telemetry::new();
    let mut gateways =
        Gateways { sources, followed, secrets, hangup, drain, probes, apart, telemetry, descriptors };
    let served = gateways.serve(config).await;
    gateways.probes.close().await;
    served
}

impl Gateways<'_> {
    /// Serves, with one gateway after another.
    async fn serve(&mut self, mut config: Config) -> anyhow::Result<Exit> {
        let Some(store) = self.drain.clone().run_until_cancelled_owned(connect(&config)).await else {
            return Ok(Exit::Done);
        };
        let mut store = Arc::new(store?);
        let mut before: Option<Gateway> = None;
        loop {
            let connection = connection(&config)?;
            let name = connection.relay.clone();
            let gateway = {
                let _entered = self.apart.handle().enter();
                live::start(&config, connection, None, self.telemetry.clone(), self.descriptors)?
            };
            let standing = Standing { name, store: store.clone(), room: gateway.room().clone() };
            self.probes.answer(Server {
                settings: config.http.clone(),
                readiness: standing,
                telemetry: self.telemetry.clone(),
                draining: self.drain.clone(),
                room: Some(gateway.room().clone()),
                clients: TaskTracker::new(),
                // It steers nothing.
                operators: None,
            })?;
            tracing::info!(name = config.relay.name, "gateway started");
            systemd::ready();
            if let Some(before) = before.take() {
                // Its clients come back to this one.
                before.close().await;
            }
            let (failed, drain) = (self.probes.failed(), self.drain.clone());
            let next = tokio::select! {
                () = drain.cancelled() => Next::Drained,
                fresh = self.follow() => Next::Changed(Box::new(fresh)),
                () = store.tripped() => Next::Tripped,
                () = failed.cancelled() => bail!("serving http ended; the log says why"),
            };
            match next {
                Next::Drained => {
                    let exit = leave(gateway, config.relay.drain).await;
                    store.close().await;
                    return Ok(exit);
                }
                Next::Changed(fresh) => config = *fresh,
                Next::Tripped => tracing::warn!("the database was set back or belongs to another outbox"),
            }
            store.close().await;
            let Some(usable) = self.drain.clone().run_until_cancelled_owned(usable(&config)).await else {
                return Ok(leave(gateway, config.relay.drain).await);
            };
            (store, before) = (Arc::new(usable?), Some(gateway));
        }
    }

    /// Waits until another configuration is there that can be used.
    async fn follow(&mut self) -> Config {
        loop {
            let files = tokio::select! {
                change = self.followed.changed(&self.secrets) => match change {
                    Change::Secrets(_) => {
                        // Those of subscriptions: nothing is sent from here.
                        self.followed.accept();
                        continue;
                    }
                    Change::Connections(files) => files.join(", "),
                },
                Some(()) = self.hangup.recv() => "SIGHUP".to_owned(),
            };
            systemd::reloading();
            match self.configured().await {
                Ok(config) => {
                    tracing::info!(why = files, "the gateway begins anew with what is configured now");
                    self.followed = Followed::of(&config).await;
                    return config;
                }
                Err(error) => {
                    let error = exit::chain(&error);
                    tracing::warn!(why = files, error, "what is configured now cannot be used; it goes on");
                    self.followed.refuse();
                    systemd::ready();
                }
            }
        }
    }

    /// What is configured now, if a gateway could begin with it.
    async fn configured(&self) -> anyhow::Result<Config> {
        let config = load(self.sources)?;
        check_schema(&config).await?;
        Ok(config)
    }
}

/// Asks clients to leave, and waits for them so long at most.
async fn leave(gateway: Gateway, longest: Duration) -> Exit {
    gateway.drain();
    let left = async {
        let mut looks = tokio::time::interval(LOOK);
        while gateway.room().connections() > 0 {
            looks.tick().await;
        }
    };
    let exit = match tokio::time::timeout(longest, left).await {
        Ok(()) => Exit::Done,
        Err(_) => {
            let left = gateway.room().connections();
            tracing::warn!(left, "clients have not left in time; they come back with their tokens");
            Exit::Unfinished
        }
    };
    gateway.close().await;
    exit
}

/// Its own name: a relay with the same configuration has the other.
fn connection(config: &Config) -> anyhow::Result<ConnectionSettings> {
    live::connection(config, format!("{}-gateway", config.relay.name))
}

fn looking(config: &Config) -> anyhow::Result<ConnectionSettings> {
    let connection = connection(config)?;
    Ok(ConnectionSettings { relay: format!("{}/ready", connection.relay), pool_size: 1, ..connection })
}

/// Refuses a schema that is older or newer than this binary.
async fn check_schema(config: &Config) -> anyhow::Result<()> {
    let mut operator = Operator::connect(config.servers()?, config.database.pooler).await?;
    let missing = schema::pending(operator.connection()).await?.join(", ");
    if missing.is_empty() { Ok(()) } else { Err(relay::Error::Outdated { missing }.into()) }
}

/// Connects, and checks that the database can be used. A copy of an outbox is waited for.
async fn connect(config: &Config) -> anyhow::Result<Store> {
    check_schema(config).await?;
    Ok(Store::connect(looking(config)?).await?)
}

/// Waits until the database may be used.
async fn usable(config: &Config) -> anyhow::Result<Store> {
    let mut looks = tokio::time::interval(AGAIN);
    loop {
        looks.tick().await;
        // Anew each time: what was seen of the database before does not count.
        let store = Store::lazy(looking(config)?);
        match store.inspect().await {
            Ok(_) => return Ok(store),
            Err(error) => tracing::debug!(error = chain(&error), "the database cannot be used yet"),
        }
        store.close().await;
    }
}
