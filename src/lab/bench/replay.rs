//! The floor of webhooks: an HTTP client (reqwest), with the limits of the webhook sink, posts the same bytes
//! repeatedly, without relay and database. Headers, signature and body are those of a request that a relay
//! has sent, so nothing is signed.

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

/// Idle connections, as many as the sink keeps.
const IDLE_PER_HOST: usize = 256;

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub(super) struct Replay {
    client: reqwest::Client,
    headers: HeaderMap,
    body: Bytes,
}

impl Replay {
    /// Lets a relay send one event and keeps the request.
    pub(super) async fn capture(stage: &Stage) -> anyhow::Result<Self> {
        let (database, receiving) = (stage.database().await?, Receiving::recording()?);
        database.subscribe_webhook(&receiving.url).await?;
        database.fill(1).await?;
        let relay = Running::start(&database, Permits::standard(), stage.webhook()?).await?;
        reach(|| receiving.events(), 1, SOON, "waiting for a request to replay").await?;
        relay.stop().await?;
        let Received { mut headers, body, .. } =
            receiving.sample().context("the first request is recorded")?;
        // The client sets these itself.
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

    /// Sends the request, unchanged or with the id of another event.
    pub(super) async fn post(&self, url: &url::Url, event: Option<Uuid>) -> anyhow::Result<()> {
        let mut request = reqwest::Request::new(reqwest::Method::POST, url.clone());
        *request.headers_mut() = self.headers.clone();
        if let Some(event) = event {
            request.headers_mut().insert("webhook-id", HeaderValue::try_from(event.to_string())?);
        }
        *request.body_mut() = Some(self.body.clone().into());
        let answer = self.client.execute(request).await.context("posting")?;
        anyhow::ensure!(answer.status().is_success(), "the receiver answered {}", answer.status());
        // The connection is reused only after the response was read to its end.
        answer.bytes().await.context("reading the answer").map(drop)
    }
}
