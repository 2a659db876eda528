//! Makes connections: the name within the egress policy, TCP, the proxy if there is one, TLS. Says which of
//! them failed. Sends no request, but that of a tunnel to the proxy.

use std::{
    fs,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, StatusCode, Uri, uri::Scheme};
use hyper_util::{
    client::legacy::connect::{HttpConnector, dns},
    rt::TokioIo,
};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower_service::Service;
use url::Url;

use super::{
    WebhookError,
    room::Room,
    wire::{Stream, Wire},
};
use crate::sink::egress::{Egress, Guard, LOOKUP_DEADLINE, ResolveError};

/// Timeout of name, TCP, proxy and TLS together. A little longer than [`LOOKUP_DEADLINE`], so that a slow
/// resolver is reported as such.
const CONNECT_DEADLINE: Duration = LOOKUP_DEADLINE.saturating_add(Duration::from_millis(500));
/// Longest head of a proxy's answer.
const LONGEST_ANSWER: usize = 16 * 1024;
/// TCP keepalive of connections.
const KEEPALIVE: Duration = Duration::from_secs(15);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Name or TCP.
    #[error("connecting")]
    Tcp(#[source] Cause),
    /// The TLS handshake.
    #[error("TLS handshake")]
    Tls(#[source] io::Error),
    /// Something was too slow.
    #[error("no connection within {CONNECT_DEADLINE:?}")]
    TimedOut,
    /// The proxy cannot be reached, or its answer cannot be read.
    #[error("connecting to egress.proxy")]
    Proxy(#[source] Cause),
    /// This machine has no room for another connection.
    #[error("every connection that this relay may open is busy")]
    NoRoom,
    /// The proxy makes no tunnel.
    #[error("egress.proxy answered {0}")]
    Refused(StatusCode),
}

/// Makes connections for the client.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector<Names>,
    tls: TlsConnector,
    proxy: Option<Arc<Proxy>>,
    room: Arc<Room>,
}

struct Proxy {
    /// Resolves with the system, for the operator has chosen the name.
    tcp: HttpConnector,
    address: Uri,
    /// Value of `proxy-authorization`.
    authorization: Option<HeaderValue>,
}

/// The guard as a resolver.
#[derive(Clone)]
struct Names(Guard);

impl Service<dns::Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ResolveError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        let guard = self.0.clone();
        Box::pin(async move {
            let answers = guard.resolve(name.as_str()).await?;
            // Port 0 means the port of the URL.
            let addresses: Vec<_> = answers.into_iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}

impl Connector {
    pub(super) fn new(egress: &Egress, guard: &Guard, room: Arc<Room>) -> Result<Self, WebhookError> {
        let proxy = egress.proxy.as_ref().map(Proxy::new).transpose()?.map(Arc::new);
        let tcp = configured(HttpConnector::new_with_resolver(Names(guard.clone())));
        Ok(Self { tcp, tls: tls(egress)?, proxy, room })
    }

    /// What the proxy asks for, if there is one.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.proxy.as_ref()?.authorization.clone()
    }

    async fn connect(mut self, destination: Uri) -> Result<Wire, ConnectError> {
        let is_https = destination.scheme() == Some(&Scheme::HTTPS);
        let host = destination.host().unwrap_or_default();
        let stream: Box<dyn Stream> = match &self.proxy {
            None => {
                let stream = self.tcp.call(destination.clone()).await;
                Box::new(stream.map_err(|error| ConnectError::Tcp(error.into()))?.into_inner())
            }
            Some(proxy) => {
                let stream = proxy.connect(&self.tls).await?;
                if !is_https {
                    return Ok(Wire::new(stream, false, true));
                }
                let port = destination.port_u16().unwrap_or(443);
                proxy.tunnel(stream, &format!("{host}:{port}")).await?
            }
        };
        if !is_https {
            return Ok(Wire::new(stream, false, false));
        }
        let stream = handshake(&self.tls, host, stream).await.map_err(ConnectError::Tls)?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Wire::new(Box::new(stream), is_http2, false))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Wire>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let (room, connecting) = (Arc::clone(&self.room), self.clone().connect(destination));
        Box::pin(async move {
            // Before the deadline begins: what waits here says nothing of the destination.
            let room = room.take().await.ok_or(ConnectError::NoRoom)?;
            let connected = timeout(CONNECT_DEADLINE, connecting).await;
            let wire = connected.unwrap_or(Err(ConnectError::TimedOut))?;
            Ok(TokioIo::new(wire.within(room)))
        })
    }
}

impl Proxy {
    fn new(url: &Url) -> Result<Self, WebhookError> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        let address = Uri::try_from(format!("{}://{host}:{port}/", url.scheme()))
            .ok()
            .filter(|_| matches!(url.scheme(), "http" | "https"))
            .ok_or(WebhookError::Proxy)?;
        let plain = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
        let authorization = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let credentials =
                [plain(url.username()), vec![b':'], plain(url.password().unwrap_or_default())].concat();
            let value = format!("Basic {}", BASE64_STANDARD.encode(credentials));
            let mut value = HeaderValue::try_from(value).expect("base64 is a header value");
            value.set_sensitive(true);
            value
        });
        Ok(Self { tcp: configured(HttpConnector::new()), address, authorization })
    }

    async fn connect(&self, tls: &TlsConnector) -> Result<Box<dyn Stream>, ConnectError> {
        let stream = self.tcp.clone().call(self.address.clone()).await;
        let stream = stream.map_err(|error| ConnectError::Proxy(error.into()))?.into_inner();
        if self.address.scheme() != Some(&Scheme::HTTPS) {
            return Ok(Box::new(stream));
        }
        let host = self.address.host().unwrap_or_default();
        let stream = handshake(tls, host, stream).await.map_err(|error| ConnectError::Proxy(error.into()))?;
        Ok(Box::new(stream))
    }

    /// Asks the proxy for a tunnel to the destination.
    async fn tunnel(
        &self,
        mut stream: Box<dyn Stream>,
        destination: &str,
    ) -> Result<Box<dyn Stream>, ConnectError> {
        let authorization = self.authorization.as_ref().and_then(|value| value.to_str().ok());
        let authorization =
            authorization.map(|value| format!("proxy-authorization: {value}\r\n")).unwrap_or_default();
        let request = format!("CONNECT {destination} HTTP/1.1\r\nhost: {destination}\r\n{authorization}\r\n");
        let broken = |error: io::Error| ConnectError::Proxy(error.into());
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut answer = Vec::new();
        // Byte by byte: what follows the head belongs to the destination.
        while !answer.ends_with(b"\r\n\r\n") && !answer.ends_with(b"\n\n") {
            if answer.len() == LONGEST_ANSWER {
                return Err(ConnectError::Proxy("its answer is too long".into()));
            }
            answer.push(stream.read_u8().await.map_err(broken)?);
        }
        let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
        match status.and_then(|status| StatusCode::from_bytes(status).ok()) {
            Some(status) if status.is_success() => Ok(stream),
            Some(status) => Err(ConnectError::Refused(status)),
            None => Err(ConnectError::Proxy("its answer is not HTTP".into())),
        }
    }
}

fn configured<R>(mut connector: HttpConnector<R>) -> HttpConnector<R> {
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(3));
    #[cfg(target_os = "linux")]
    connector.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    connector
}

async fn handshake<S: Stream>(
    tls: &TlsConnector,
    host: &str,
    stream: S,
) -> io::Result<tokio_rustls::client::TlsStream<S>> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    tls.connect(name, stream).await
}

fn tls(egress: &Egress) -> Result<TlsConnector, WebhookError> {
    let mut config = trust(egress)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Trusts the system's authorities and those of the operator.
pub(crate) fn trust(egress: &Egress) -> Result<rustls::ClientConfig, WebhookError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let more = egress.ca_file.as_ref().map(|path| {
        let pem = fs::read(path).map_err(|source| WebhookError::CaFile { path: path.clone(), source })?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|source| WebhookError::Certificates { path: path.clone(), source: Some(source) })?;
        if certificates.is_empty() {
            return Err(WebhookError::Certificates { path: path.clone(), source: None });
        }
        Ok(certificates)
    });
    let more = more.transpose()?.unwrap_or_default();
    let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(more, Arc::clone(&provider))
        .map_err(WebhookError::Client)?;
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(WebhookError::Client)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}
