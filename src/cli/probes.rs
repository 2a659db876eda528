//! The addresses for probes and metrics, which stay open while one relay or gateway of the process
//! follows another.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::http::{self, Readiness, Server, Settings, Source};

/// The addresses, and what answers there.
#[derive(Debug)]
pub(super) struct Probes {
    /// `http.listen`
    listen: Option<TcpListener>,
    /// `http.probes`, which serves nothing but probes.
    probes: Option<TcpListener>,
    /// Settings of what answers now.
    settings: Settings,
    serving: TaskTracker,
    /// Where `http.listen` is served.
    apart: Handle,
    /// Ends what answers now.
    closed: CancellationToken,
    failed: CancellationToken,
}

impl Probes {
    /// Listens where the settings name an address.
    pub(super) async fn listen(settings: &Settings, apart: Handle) -> anyhow::Result<Self> {
        let (closed, failed) = (CancellationToken::new(), CancellationToken::new());
        let (listen, probes) =
            (bound("http.listen", settings.listen).await?, bound("http.probes", settings.probes).await?);
        let settings = settings.clone();
        Ok(Self { listen, probes, settings, serving: TaskTracker::new(), apart, closed, failed })
    }

    /// Answers for this relay or gateway from now on, and no longer for the one before.
    pub(super) fn answer<R: Readiness>(&mut self, server: Server<R>) -> anyhow::Result<()> {
        self.answer_with(server, http::serve)
    }

    /// Answers for these relays from now on.
    pub(super) fn answer_all<A: Readiness, R: Readiness>(
        &mut self,
        all: Server<A>,
        sources: Vec<Source<R>>,
    ) -> anyhow::Result<()> {
        self.answer_with(all, |listener, all, closed| http::serve_sources(listener, all, sources, closed))
    }

    /// `serve` serves `http.listen`.
    fn answer_with<R: Readiness, S>(
        &mut self,
        mut server: Server<R>,
        serve: impl FnOnce(tokio::net::TcpListener, Server<R>, CancellationToken) -> S,
    ) -> anyhow::Result<()>
    where
        S: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        server.settings.keep_keys_of(&self.settings);
        self.settings = server.settings.clone();
        let probes = again(self.probes.as_ref())?;
        let listen = {
            let _entered = self.apart.enter();
            again(self.listen.as_ref())?
        };
        std::mem::take(&mut self.closed).cancel();
        if let Some(listener) = listen {
            self.serve(&self.apart, serve(listener, server.clone(), self.closed.clone()));
        }
        if let Some(listener) = probes {
            self.serve(&Handle::current(), http::serve_probes(listener, server, self.closed.clone()));
        }
        Ok(())
    }

    fn serve(&self, on: &Handle, serving: impl Future<Output = std::io::Result<()>> + Send + 'static) {
        let failed = self.failed.clone();
        let serving = async move {
            // Also when it panics.
            let failing = failed.drop_guard();
            match serving.await {
                Ok(()) => drop(failing.disarm()),
                Err(error) => tracing::error!(%error, "serving http failed"),
            }
        };
        self.serving.spawn_on(serving, on);
    }

    /// Cancelled when nobody answers although nobody asked for that.
    pub(super) fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Ends, once requests that were begun are answered.
    pub(super) async fn close(self) {
        self.closed.cancel();
        self.serving.close();
        self.serving.wait().await;
    }
}

async fn bound(key: &str, address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    let listener = tokio::net::TcpListener::bind(address).await;
    let listener = listener.and_then(tokio::net::TcpListener::into_std);
    listener.map(Some).with_context(|| format!("listening on {address} ({key})"))
}

/// The same listener for another server.
fn again(listener: Option<&TcpListener>) -> anyhow::Result<Option<tokio::net::TcpListener>> {
    let again = listener.map(|one| one.try_clone().and_then(tokio::net::TcpListener::from_std));
    again.transpose().context("serving http")
}
