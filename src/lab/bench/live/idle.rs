//! Memory of clients to which nothing is sent, of a relay in a process of its own.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;

use super::{crowd::Crowd, listener};
use crate::lab::bench::{
    Row,
    memory::{Killed, memory_now, relay},
    report::{Figure, Report},
    stage::{SOON, Stage},
};

const FLOOR: &str = "the same connections before they subscribe";
const SUBSCRIBE: &str = r#"{"type":"subscribe","id":"bench","topics":["bench.**"]}"#;

pub(in crate::lab::bench) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let clients = stage.sizes.idle_clients;
    let metric = format!("{clients} idle clients, each");
    let mut figure = Figure::new(Row::LiveMemory, metric, "KiB", "");
    for _ in 0..stage.sizes.rounds {
        let (database, folder) = (stage.database().await?, stage.folder()?);
        // Free a moment ago, and nobody else is likely to take it.
        let address = listener().await?.local_addr()?;
        let process = relay(&database, &folder, &address.to_string())?;
        up(address).await?;
        let before = memory_now(process.id())?;
        figure.floor.push(each(&process, address, None, clients, before).await?);
        up(address).await?;
        figure.value.push(each(&process, address, Some(SUBSCRIBE), clients, before).await?);
        drop(process);
        stage.discard(database).await?;
    }
    Ok(report.print(FLOOR, &[figure])?)
}

/// KiB for each client, above what the process took before.
async fn each(
    process: &Killed,
    address: SocketAddr,
    wanted: Option<&str>,
    clients: u32,
    before: f64,
) -> anyhow::Result<f64> {
    let all = vec![wanted.map(ToOwned::to_owned); usize::try_from(clients)?];
    let crowd = Crowd::connect(address, all).await?;
    if wanted.is_some() {
        crowd.others(2 * u64::from(clients)).await?;
    }
    Ok((memory_now(process.id())? - before).max(0.0) * 1_024.0 / f64::from(clients))
}

/// Waits until a client can connect.
async fn up(address: SocketAddr) -> anyhow::Result<()> {
    let mut tries = tokio::time::interval(Duration::from_millis(20));
    let trying = async {
        loop {
            tries.tick().await;
            if let Ok(crowd) = Crowd::connect(address, vec![Some(SUBSCRIBE.to_owned())]).await
                && crowd.others(2).await.is_ok()
            {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, trying).await.context("waiting for a relay with live clients")
}
