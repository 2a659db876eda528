//! `adopt`: takes a copy of the outbox into use.

use super::{config::Config, connect, print};

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Adopt {
    /// Deliver from here what the original had not delivered.
    #[arg(long)]
    keep_pending: bool,
    /// Deliver none of it: only what is published from now on.
    #[arg(long)]
    discard_pending: bool,
}

impl Adopt {
    pub(super) async fn execute(&self, config: &Config) -> anyhow::Result<()> {
        let mut operator = connect(config).await?;
        let environment = &config.relay.environment;
        if operator.fenced(environment).await?.is_none() {
            anyhow::bail!("there is nothing to adopt: the outbox belongs to this database");
        }
        let adopted = operator.adopt(self.keep_pending, environment).await?;
        let fate = if self.keep_pending { "are delivered from here" } else { "were discarded" };
        print::line(&format!(
            "adopted for the environment {environment}: {} not routed and {} {fate}",
            print::counted(adopted.events, "event"),
            print::counted(adopted.deliveries, "delivery"),
        ))?;
        Ok(())
    }
}
