//! The floor: an HTTP client (reqwest), with the limits of the webhook sink of pgoutbox, posting the same
//! bytes without a database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use reqwest::{
    Client, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::event::{Event, setting};

const LIMIT: Duration = Duration::from_secs(15);

/// A client for one receiver.
#[derive(Debug, Clone)]
pub(crate) struct Poster {
    client: Client,
    url: Url,
    headers: HeaderMap,
}

impl Poster {
    pub(crate) fn new(headers: HeaderMap) -> anyhow::Result<Self> {
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .timeout(LIMIT)
            .pool_max_idle_per_host(256)
            .tcp_nodelay(true)
            .build()?;
        Ok(Self { client, url: setting("RECEIVER_URL")?.parse()?, headers })
    }

    /// Posts a body and reads the answer to its end, as the connection cannot be used again otherwise.
    pub(crate) async fn post(&self, body: Vec<u8>) -> anyhow::Result<()> {
        let request = self.client.post(self.url.clone()).headers(self.headers.clone()).body(body);
        let answer = request.send().await.context("posting")?;
        anyhow::ensure!(answer.status().is_success(), "the receiver answered {}", answer.status());
        answer.bytes().await.context("reading an answer").map(drop)
    }
}

/// Posts the backlog with `at_once` requests in flight, and waits for SIGTERM.
pub(crate) async fn run(at_once: usize) -> anyhow::Result<()> {
    let poster = Poster::new(signed())?;
    let (jobs, next) = (setting("JOBS")?.parse::<usize>()?, Arc::new(AtomicUsize::new(1)));
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (poster, next) = (poster.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Relaxed);
                if n > jobs {
                    return anyhow::Ok(());
                }
                poster.post(serde_json::to_vec(&Event::new(n))?).await?;
            }
        });
    }
    while let Some(posted) = tasks.join_next().await {
        posted??;
    }
    // Runs until SIGTERM like the workers, so that its processor time can be read.
    let mut terminate = signal(SignalKind::terminate())?;
    terminate.recv().await.context("listening for SIGTERM")
}

/// Headers as long as those of a signed webhook, which are made once: the floor signs nothing.
fn signed() -> HeaderMap {
    HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (USER_AGENT, HeaderValue::from_static("pgoutbox/0.1.0")),
        (
            "webhook-id".parse().expect("a name"),
            HeaderValue::from_static("01900000-0000-7000-8000-000000000000"),
        ),
        ("webhook-timestamp".parse().expect("a name"), HeaderValue::from_static("1767225600")),
        (
            "webhook-signature".parse().expect("a name"),
            HeaderValue::from_static("v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ),
    ])
}
