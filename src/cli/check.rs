//! `check`, `healthcheck` and `explain`: whether all is well, and what words mean.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use futures_util::StreamExt as _;
use pgoutbox::{
    config::Config,
    migrate,
    operate::{Error, Operator},
    relay::add_own_sinks,
    secret::Secrets,
    sinks::{Registry, webhook::Webhook},
    store::ConnectionSettings,
    subscription::{Row, Subscription},
    verdict::Reason,
};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Misuse, print};
use crate::Exit;

/// How long `healthcheck` waits for an answer; container probes give up after 30 s by default.
const PATIENCE: Duration = Duration::from_secs(5);

/// Destinations asked at once.
const AT_ONCE: usize = 16;

/// Something a person must mend.
#[derive(Debug, Serialize)]
struct Finding {
    subject: String,
    problem: String,
}

/// The configuration was checked when it was loaded; this checks what it leads to.
pub(super) async fn check(config: &Config, json: bool) -> anyhow::Result<Exit> {
    for warning in config.warnings() {
        eprintln!("note: {warning}");
    }
    let findings = match Operator::connect(&config.connect_options()?, config.database.pooler).await {
        Ok(mut operator) => findings(config, &mut operator).await?,
        Err(error @ Error::Unreachable { .. }) => {
            eprintln!("the configuration is good; subscriptions were not checked: {error:#}", error = anyhow::Error::from(error));
            return Ok(Exit::Done);
        }
        Err(error) => return Err(error.into()),
    };
    if findings.is_empty() {
        eprintln!("the configuration and every subscription are good");
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

async fn findings(config: &Config, operator: &mut Operator) -> anyhow::Result<Vec<Finding>> {
    let pending = migrate::pending(operator.connection()).await?;
    if !pending.is_empty() {
        let problem = format!("not migrated ({} pending): run `pgoutbox migrate`", pending.len());
        return Ok(vec![Finding { subject: "schema outbox".to_owned(), problem }]);
    }
    let registry = sinks(config)?;
    let rows = operator.list_subscriptions(None).await?;
    let mut checks = futures_util::stream::iter(rows.into_iter().map(|row| judge(row, &registry))).buffered(AT_ONCE);
    let mut findings = Vec::new();
    while let Some(finding) = checks.next().await {
        findings.extend(finding);
    }
    Ok(findings)
}

async fn judge(row: Row, registry: &Registry) -> Option<Finding> {
    let subject = format!("subscription {}", row.name);
    let ended = matches!(row.state.as_str(), "gone" | "disabled")
        .then(|| format!("is {}: {}", row.state, row.state_reason.as_deref().unwrap_or("no reason is recorded")));
    let (subscription, problem) = Subscription::bind(row, registry);
    let problem = match problem.or(ended) {
        Some(problem) => problem,
        None => {
            subscription.outlet.check().await.err().map(|problem| format!("its destination does not answer as it should: {problem}"))?
        }
    };
    Some(Finding { subject, problem })
}

/// The sinks that a relay with this configuration has.
pub(super) fn sinks(config: &Config) -> anyhow::Result<Registry> {
    let mut registry = Registry::default();
    registry.add(Webhook::new(&config.egress, Secrets::new(&config.secrets))?);
    registry.open(&config.sinks).map_err(anyhow::Error::msg)?;
    let settings = ConnectionSettings {
        options: config.connect_options()?,
        relay: config.relay.name.clone(),
        pool_size: 1,
        pooler: config.database.pooler,
        allow_superuser: config.database.allow_superuser,
    };
    add_own_sinks(&mut registry, &settings);
    Ok(registry)
}

/// Asks `/readyz` of the relay that has the same configuration.
pub(super) async fn healthcheck(config: &Config) -> anyhow::Result<Exit> {
    let Some(mut address) = config.http.listen else { bail!("http.listen is off: there is nobody to ask") };
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    let answer = tokio::time::timeout(PATIENCE, ask(address)).await;
    let answer = answer.with_context(|| format!("no answer from {address}"))?.with_context(|| format!("asking {address}"))?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(Exit::Done);
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    bail!("{}", if body.trim().is_empty() { answer.lines().next().unwrap_or("no answer") } else { body.trim() })
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    /// The longest answer read, in bytes.
    const LONGEST: u64 = 16 * 1024;
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Prints what a reason means, or all of them.
pub(super) fn explain(code: Option<&str>) -> anyhow::Result<()> {
    let Some(code) = code else {
        let rows: Vec<_> = Reason::ALL.iter().map(|reason| [reason.code().to_owned(), reason.meaning().trim().to_owned()]).collect();
        return Ok(print::table(["REASON", "MEANING"], &rows)?);
    };
    match Reason::ALL.iter().find(|reason| reason.code() == code) {
        Some(reason) => Ok(print::line(&format!("{code}: {}", reason.meaning().trim()))?),
        None => Err(Misuse(format!("{code:?} is not a reason; `pgoutbox explain` lists them")).into()),
    }
}
