//! `receive`: a receiver on this machine, for trying things out.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Context;
use pgoutbox::{config::Sources, duration, receiver::Receiver};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Misuse, run::Signals};
use crate::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Receive {
    /// Port on 127.0.0.1; 0 chooses a free one.
    #[arg(long, default_value_t = 7412)]
    port: u16,
    /// Share of deliveries answered with 500, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    fail: f64,
    /// Verify signatures with the secret at env:NAME or file:/path.
    #[arg(long, value_name = "REF")]
    secret: Option<String>,
    /// Wait so long before each answer.
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    delay: Duration,
}

impl Receive {
    pub(super) async fn execute(self, sources: &Sources) -> anyhow::Result<Exit> {
        let secret = match &self.secret {
            None => None,
            Some(reference) if reference.starts_with("env:") || reference.starts_with("file:") => {
                Some(sources.resolve(reference).map_err(|problem| Misuse(format!("--secret: {problem}")))?)
            }
            Some(_) => return Err(Misuse("--secret takes a reference, env:NAME or file:/path, never the secret itself".to_owned()).into()),
        };
        let mut signals = Signals::new()?;
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await.with_context(|| format!("listening on port {}", self.port))?;
        eprintln!("receiving webhooks at http://{}/ until Ctrl-C", listener.local_addr()?);
        let shutdown = CancellationToken::new();
        let receiver = Receiver { fail: self.fail, delay: self.delay, secret };
        let receiving = receiver.run(listener, shutdown.clone());
        tokio::pin!(receiving);
        tokio::select! {
            ended = &mut receiving => ended?,
            () = signals.next() => {
                shutdown.cancel();
                tokio::select! {
                    ended = receiving => ended?,
                    () = signals.next() => {}
                }
            }
        }
        Ok(Exit::Done)
    }
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "write a number from 0 to 1".to_owned())
}
