//! `check`, `healthcheck` and `explain`.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Misuse,
    config::{Config, Named, Several, Sources},
    exit::{self, Exit},
    print,
};
use crate::{
    admin::{self, DEAF, Elsewhere, Error, Finding, Operator},
    delivery::Reason,
    sink::{Registry, secret::Secrets},
    sinks::{self, function::Functions, webhook::Webhook},
    store::{self, schema},
};

/// Timeout of `healthcheck`. Container probes give up after 30 s by default.
const PROBE: Duration = Duration::from_secs(5);

/// Checks the database of the configuration, or of several each and ends as the first that is not in order.
pub(super) async fn check_each(sources: &Sources, json: bool) -> anyhow::Result<Exit> {
    let is_of_a_relay = sources.are_of_a_relay();
    let several = if sources.source.is_none() { Several::load(sources, sinks::CONFIGURED)? } else { None };
    let Some(several) = several else {
        return check(&Config::load(sources, sinks::CONFIGURED)?, is_of_a_relay, json).await;
    };
    let mut first = Exit::Done;
    for Named { name, config } in several.each {
        print::note!("source {name}:");
        let ended = match check(&config, is_of_a_relay, json).await {
            Ok(ended) => ended,
            Err(error) => {
                print::note!("pgoutbox: {}", exit::chain(&error));
                Exit::of(&error)
            }
        };
        first = if first == Exit::Done { ended } else { first };
    }
    Ok(first)
}

/// The configuration for what all sources share: the address, the log.
pub(super) fn http_of(sources: &Sources) -> anyhow::Result<Config> {
    match Several::load(sources, sinks::CONFIGURED)? {
        Some(several) => Ok(several.common),
        None => Ok(Config::load(sources, sinks::CONFIGURED)?),
    }
}

/// Checks the database and all subscriptions. Loading has checked the configuration already.
/// `is_of_a_relay`: whether that is the configuration of a relay.
async fn check(config: &Config, is_of_a_relay: bool, json: bool) -> anyhow::Result<Exit> {
    for warning in config.warnings() {
        print::note!("note: {warning}");
    }
    let database = &config.database;
    print::note!(
        "a relay opens {}",
        store::connections_wanted(database.pool_size, database.function_pool_size)
    );
    let findings = match Operator::connect(config.servers()?, config.database.pooler).await {
        Ok(mut operator) => findings(config, is_of_a_relay, &mut operator).await?,
        Err(error @ Error::Unreachable { .. }) => {
            print::note!("the configuration is valid; the database and the subscriptions were not checked");
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    };
    if findings.is_empty() {
        print::note!("the configuration and all subscriptions are valid, as far as this process can judge");
        return Ok(Exit::Done);
    }
    if json {
        print::json(&findings)?;
    } else {
        for finding in &findings {
            print::line(&format!("{}: {}", finding.subject, finding.problem))?;
        }
    }
    Ok(Exit::Failed)
}

async fn findings(
    config: &Config,
    is_like_a_relay: bool,
    operator: &mut Operator,
) -> anyhow::Result<Vec<Finding>> {
    let pending = schema::pending(operator.connection()).await?;
    if !pending.is_empty() {
        let problem = format!("not migrated ({} pending): run `pgoutbox migrate`", pending.join(", "));
        return Ok(vec![Finding { subject: "schema outbox".to_owned(), problem }]);
    }
    // What a relay with this login asks at its start.
    let unsuitable = store::unsuitable(operator.connection(), config.database.allow_superuser).await?;
    let unsuitable = unsuitable.map(|problem| Finding { subject: "database".to_owned(), problem });
    // Who may not use the database may not be able to ask.
    let fenced = match unsuitable {
        Some(_) => None,
        None => operator.fenced(&config.relay.environment).await?,
    };
    let fenced = fenced.map(|problem| Finding { subject: "database".to_owned(), problem });
    let keys = if is_like_a_relay { config.http.check_keys().await.err() } else { None };
    let keys = keys.map(|problem| Finding { subject: "http.jwt.jwks".to_owned(), problem });
    let backplane = if is_like_a_relay { config.realtime.check_backplane().await.err() } else { None };
    let backplane = backplane.map(|problem| Finding { subject: "realtime.backplane".to_owned(), problem });
    let deaf = deaf(config, operator).await?;
    let of_schema = operator.check_schema().await?;
    for (subject, problem, _) in operator.list_kept().await?.iter().filter(|(.., is_problem)| !is_problem) {
        print::note!("{}: {}", print::escaped(subject), print::escaped(problem));
    }
    let registry = registry(config)?;
    let is_running = !operator.list_relays().await?.is_empty();
    let elsewhere = Elsewhere {
        running: if is_running { Some(operator.subscription_status().await?) } else { None },
        is_like_a_relay,
    };
    let rows = operator.list_subscriptions(None).await?;
    let of_subscriptions = admin::check_subscriptions(rows, &registry, &elsewhere).await;
    for Finding { subject, problem } in of_subscriptions.unjudged {
        print::note!("{subject} is not judged here: {problem}");
    }
    let of_database = unsuitable.into_iter().chain(fenced).chain(deaf).chain(of_schema);
    Ok(of_database.chain(keys).chain(backplane).chain(of_subscriptions.problems).collect())
}

/// That a relay with this configuration would hear no notification.
async fn deaf(config: &Config, operator: &mut Operator) -> anyhow::Result<Option<Finding>> {
    let Some(listen) = config.listen_servers()? else { return Ok(None) };
    let subject = if config.database.listen_url.is_some() { "database.listen_url" } else { "database.url" };
    let problem = match operator.is_heard(&listen).await {
        Ok(true) => return Ok(None),
        Ok(false) => DEAF.to_owned(),
        Err(error @ Error::Unreachable { .. }) => exit::chain(&error.into()),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Finding { subject: subject.to_owned(), problem }))
}

/// The sinks of a relay with this configuration.
pub(super) fn registry(config: &Config) -> anyhow::Result<Registry> {
    let webhook = Webhook::new(&config.egress, Secrets::new(config.secrets.folder.clone()))?;
    let mut registry = sinks::registry();
    registry.add(webhook);
    registry.open(&config.sinks)?;
    let database = &config.database;
    let (relay, functions) = (&config.relay.name, database.function_pool_size);
    let functions = Functions::new(config.servers()?, relay, database.pooler, functions);
    sinks::add_built_in(&mut registry, functions);
    Ok(registry)
}

/// Requests `/readyz` of the relay with the same configuration.
pub(super) async fn healthcheck(config: &Config) -> anyhow::Result<Exit> {
    let Some(mut address) = config.http.listen.or(config.http.probes) else {
        bail!("http.listen is off, and so is http.probes: the relay serves no probes")
    };
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let answer = tokio::time::timeout(PROBE, ask(address)).await;
    let answer = answer
        .with_context(|| format!("no answer from {address}"))?
        .with_context(|| format!("asking {address}"))?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(Exit::Done);
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    bail!(
        "{}",
        if body.trim().is_empty() { answer.lines().next().unwrap_or("no answer") } else { body.trim() }
    )
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    /// Largest answer, in bytes.
    const LONGEST: u64 = 16 * 1024;
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Prints the meaning of one reason or of all.
pub(super) fn explain(code: Option<&str>) -> anyhow::Result<()> {
    let Some(code) = code else {
        let rows: Vec<_> = Reason::ALL
            .iter()
            .map(|reason| [reason.code().to_owned(), reason.meaning().trim().to_owned()])
            .collect();
        return Ok(print::table(["REASON", "MEANING"], &rows)?);
    };
    match Reason::ALL.iter().find(|reason| reason.code() == code) {
        Some(reason) => Ok(print::line(&format!("{code}: {}", reason.meaning().trim()))?),
        None => Err(Misuse(format!("{code:?} is not a reason; `pgoutbox explain` lists them")).into()),
    }
}
