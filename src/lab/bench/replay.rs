//! The floor of webhooks: the same HTTP client, set up as the webhook sink sets it up, posting the same bytes again and again
//! without a relay and a database. Headers and body are those of a request that a relay really sent, signature included;
//! they are made once, so the floor signs nothing.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use uuid::Uuid;

use super::{
    reach,
    receiving::Receiving,
    running::{Permits, Running},
    stage::{SOON, Stage},
};
use crate::lab::receiver::Received;

/// As many as the sink keeps.
const IDLE_PER_HOST: usize = 256;

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub(super) struct Replay {
    client: reqwest::Client,
    headers: HeaderMap,
    body: Bytes,
}

impl Replay {
    /// Has a relay send one event, and keeps what arrived.
    pub(super) async fn capture(stage: &Stage) -> anyhow::Result<Self> {
        let (database, receiving) = (stage.database().await?, Receiving::noting()?);
        database.subscribe_webhook(&receiving.url).await?;
        database.fill(1).await?;
        let relay = Running::start(&database, Permits::standard(), stage.webhook()?).await?;
        reach(|| receiving.events(), 1, SOON, "waiting for one request to repeat").await?;
        relay.stop().await?;
        let Received { mut headers, body, .. } =
            receiving.sample().context("a request that arrived is remembered")?;
        // The client writes these itself.
        headers.remove(header::HOST);
        headers.remove(header::CONTENT_LENGTH);
        stage.discard(database).await?;
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .timeout(SOON)
            .connect_timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .tcp_nodelay(true)
            .build()
            .context("setting up the HTTP client")?;
        Ok(Self { client, headers, body: body.into() })
    }

    /// Sends it once more, as it was or for another event.
    pub(super) async fn post(&self, url: &url::Url, event: Option<Uuid>) -> anyhow::Result<()> {
        let mut request = reqwest::Request::new(reqwest::Method::POST, url.clone());
        *request.headers_mut() = self.headers.clone();
        if let Some(event) = event {
            request.headers_mut().insert("webhook-id", HeaderValue::try_from(event.to_string())?);
        }
        *request.body_mut() = Some(self.body.clone().into());
        let answer = self.client.execute(request).await.context("posting")?;
        anyhow::ensure!(answer.status().is_success(), "the receiver answered {}", answer.status());
        // Read to its end, or the connection cannot be used again.
        answer.bytes().await.context("reading the answer").map(drop)
    }
}
