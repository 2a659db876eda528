//! `subscriptions create`: one subscription from options.

use anyhow::bail;
use serde_json::json;

use super::{Misuse, config::Config, exit::Exit, input, print};
use crate::{
    admin::{self, Created, SubscriptionSpec},
    store::SubscriptionRow,
};

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// Unique name.
    name: String,
    /// Topic pattern of the events it receives, such as shop.orders.*; may be repeated.
    #[arg(long, value_name = "PATTERN", required = true)]
    topics: Vec<String>,
    /// Send webhooks to this URL: short for --sink webhook --sink-config '{"url": …}'.
    #[arg(long, conflicts_with_all = ["sink", "target"], required_unless_present = "sink")]
    url: Option<String>,
    /// Kind of sink, such as webhook, kafka or function.
    #[arg(long)]
    sink: Option<String>,
    /// Target within the sink: a JSON object with the fields that outbox.sinks lists.
    #[arg(long = "sink-config", value_name = "JSON", requires = "sink")]
    target: Option<String>,
    /// JSON that the payload must contain.
    #[arg(long = "match", value_name = "JSON")]
    matching: Option<String>,
    /// CEL expression that an event must satisfy.
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// CEL expression that makes the payload that is sent.
    #[arg(long, value_name = "CEL")]
    transform: Option<String>,
    /// Tenant whose events it receives [default: every organization].
    #[arg(long)]
    organization: Option<String>,
    /// Keep the order of the events with one key.
    #[arg(long, value_name = "ORDER", value_parser = ["none", "key"])]
    ordering: Option<String>,
    /// What happens to a key when its event becomes a dead letter.
    #[arg(long, value_name = "WHAT", value_parser = ["skip", "park", "halt"])]
    on_exhausted: Option<String>,
    /// Send only the newest of the waiting events of a key.
    #[arg(long, value_name = "WHAT", value_parser = ["none", "key"])]
    coalesce: Option<String>,
    /// Most deliveries in a time, by all relays together, such as 50/s.
    #[arg(long)]
    rate: Option<String>,
    /// Retry policy: a JSON object such as {"max_attempts": 5, "disable_after": "3d"}.
    #[arg(long, value_name = "JSON")]
    retry: Option<String>,
    /// Begin with past events: beginning, or a time such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHEN")]
    start: Option<String>,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
}

impl Create {
    pub(super) async fn execute(self, config: &Config) -> anyhow::Result<Exit> {
        let spec = self.spec()?;
        admin::check_specs(std::slice::from_ref(&spec))?;
        let mut operator = super::connect(config).await?;
        let Some(id) = operator.create_subscription(&spec).await? else {
            bail!(
                "there is a subscription {:?} already; change it with `pgoutbox subscriptions apply` or \
                 outbox.subscribe(…)",
                spec.name
            );
        };
        if self.json {
            print::json([Created { id, subscription: spec.name.clone() }])?;
        }
        print::note!("{} created", spec.name);
        Ok(Exit::Done)
    }

    fn spec(&self) -> Result<SubscriptionSpec, Misuse> {
        let (sink, target) = match (&self.url, &self.sink) {
            (Some(url), _) => ("webhook", Some(json!({ "url": url }).into())),
            (None, sink) => {
                (sink.as_deref().unwrap_or_default(), input::json("--sink-config", self.target.as_deref())?)
            }
        };
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let row = SubscriptionRow::new(&self.name, &topics, sink, json!({}));
        Ok(SubscriptionSpec {
            config: target,
            matching: input::json("--match", self.matching.as_deref())?,
            filter: self.filter.clone(),
            transform: self.transform.clone(),
            organization: self.organization.clone(),
            ordering: self.ordering.clone(),
            on_exhausted: self.on_exhausted.clone(),
            coalesce: self.coalesce.clone(),
            rate: self.rate.clone(),
            retry: input::json("--retry", self.retry.as_deref())?,
            start: self.start.clone(),
            ..SubscriptionSpec::from(&row)
        })
    }
}
