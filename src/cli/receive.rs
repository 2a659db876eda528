//! `receive`: a webhook receiver on this machine, for trying things out.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    cli::config::Sources,
    delivery::duration,
    lab::receiver::{Options, Received, Receiver},
    sinks::webhook::sign::Key,
};
use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::exit::Exit;
use super::{Misuse, print, signals::Signals};

/// Most requests that wait to be printed.
const PRINT_QUEUE: usize = 64;

#[derive(Debug, clap::Args)]
pub(super) struct Receive {
    /// Port on 127.0.0.1; 0 selects a free one.
    #[arg(long, default_value_t = 7412)]
    port: u16,
    /// Share of requests answered with 500, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    fail: f64,
    /// Verify signatures with the secret at env:NAME or file:/path.
    #[arg(long, value_name = "REF")]
    secret: Option<String>,
    /// Delay before each answer.
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    delay: Duration,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Receive {
    pub(super) async fn execute(self, sources: &Sources) -> anyhow::Result<Exit> {
        let secret = match &self.secret {
            None => None,
            Some(reference) if reference.starts_with("env:") || reference.starts_with("file:") => {
                Some(sources.resolve(reference).map_err(|problem| Misuse(format!("--secret: {problem}")))?)
            }
            Some(_) => {
                return Err(Misuse(
                    "--secret must be a reference, env:NAME or file:/path, not the secret itself".to_owned(),
                )
                .into());
            }
        };
        let mut signals = Signals::new()?;
        let secrets = secret
            .iter()
            .map(Key::parse)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|problem| Misuse(format!("--secret: {problem}")))?;
        let (sender, received) = mpsc::channel(PRINT_QUEUE);
        let options = Options {
            fail_rate: self.fail,
            delay: self.delay,
            secrets,
            quiet: false,
            received: Some(sender),
        };
        let receiver = Receiver::bind((Ipv4Addr::LOCALHOST, self.port).into(), options)
            .await
            .with_context(|| format!("listening on port {}", self.port))?;
        print::note!("receiving webhooks at http://{}/ until Ctrl-C", receiver.address());
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let receiving = async {
            // The receiver closes the channel when it has drained, which ends printing too.
            let (served, shown) = tokio::join!(receiver.run(stop), show(received, self.json));
            served.context("receiving")?;
            shown
        };
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

/// Prints each request.
async fn show(mut received: mpsc::Receiver<Received>, json: bool) -> anyhow::Result<()> {
    while let Some(got) = received.recv().await {
        let (id, topic) = (got.id.unwrap_or_default(), got.topic.unwrap_or_default());
        if json {
            let line = serde_json::json!({
                "id": id,
                "topic": topic,
                "answered": got.answered,
                "verified": got.verified,
                "body": got.body,
            });
            print::json([line])?;
        } else {
            let signature = match got.verified {
                None => "",
                Some(true) => "  signature valid",
                Some(false) => "  signature INVALID",
            };
            print::line(&format!("{}  {id}  {topic}{signature}  {}", got.answered, got.body))?;
        }
    }
    Ok(())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "write a number from 0 to 1".to_owned())
}
