//! A WebSocket to a relay or a gateway.

use std::{io, sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{HeaderValue, StatusCode, header};
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest as _, protocol::WebSocketConfig},
};
use url::Url;

use crate::{
    cli::{Misuse, exit},
    sink::egress::Egress,
    sinks::webhook,
};

/// Timeout of name, TCP, TLS and the handshake together.
const WITHIN: Duration = Duration::from_secs(10);
/// Largest message that is read, in bytes: an event with the largest payload, with room for its escapes.
const LARGEST: usize = 4 * 1024 * 1024;

/// A connection, with or without TLS.
pub(super) type Socket = WebSocketStream<Box<dyn Wire>>;

pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The token is not accepted, or not there.
    Denied(String),
    /// It answers, but serves no live clients to this one.
    Refused(String),
    /// Perhaps later, not before this time has passed.
    Unreachable(String, Duration),
}

/// Where to connect.
pub(super) struct Address {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// `ws:` or `wss:`
    url: Url,
}

impl Address {
    /// Reads `http:`, `https:`, `ws:` or `wss:` with a host. Of `egress` the authorities are used.
    pub(super) fn of(given: &str, egress: &Egress) -> anyhow::Result<Self> {
        let wrong = |why: &str| Misuse(format!("--url: {given:?} {why}; write http://127.0.0.1:7411"));
        let mut url = Url::parse(given).map_err(|error| wrong(&format!("is no address ({error})")))?;
        let (scheme, is_secure) = match url.scheme() {
            "http" | "ws" => ("ws", false),
            "https" | "wss" => ("wss", true),
            _ => return Err(wrong("has another scheme than http and https").into()),
        };
        // The library refuses to change `http` into `ws` in place.
        url = Url::parse(&format!("{scheme}{}", &url.as_str()[url.scheme().len()..]))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(wrong("has more than a host and a path; a token belongs into --token-file").into());
        }
        let host = url.host_str().ok_or_else(|| wrong("has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_or_known_default().unwrap_or(443);
        let tls = if is_secure {
            let mut config = webhook::trust(egress)?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            let name = ServerName::try_from(host.clone()).context("--url")?;
            Some((TlsConnector::from(Arc::new(config)), name))
        } else {
            None
        };
        let path = url.path().trim_end_matches('/').trim_end_matches("/v1/ws");
        let path = format!("{path}/v1/ws");
        url.set_path(&path);
        Ok(Self { host, port, tls, url })
    }

    /// The address as people are shown it.
    pub(super) fn shown(&self) -> &str {
        self.url.as_str()
    }

    /// Connects with this token.
    pub(super) async fn connect(&self, token: Option<&SecretString>) -> Result<Socket, Failed> {
        match tokio::time::timeout(WITHIN, self.try_connect(token)).await {
            Ok(connected) => connected,
            Err(_) => {
                let why = format!("no answer within {} s", WITHIN.as_secs());
                Err(Failed::Unreachable(why, Duration::ZERO))
            }
        }
    }

    async fn try_connect(&self, token: Option<&SecretString>) -> Result<Socket, Failed> {
        let lost = |error: io::Error| Failed::Unreachable(error.to_string(), Duration::ZERO);
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(lost)?;
        let _ = tcp.set_nodelay(true);
        let stream: Box<dyn Wire> = match &self.tls {
            Some((tls, name)) => Box::new(tls.connect(name.clone(), tcp).await.map_err(lost)?),
            None => Box::new(tcp),
        };
        let mut request = self.url.as_str().into_client_request().map_err(failed)?;
        if let Some(token) = token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()));
            let mut value =
                value.map_err(|_| Failed::Denied("the token has characters of no token".to_owned()))?;
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let limits = WebSocketConfig::default().max_message_size(Some(LARGEST)).max_frame_size(Some(LARGEST));
        let (socket, _) = client_async_with_config(request, stream, Some(limits)).await.map_err(failed)?;
        Ok(socket)
    }
}

fn failed(error: tungstenite::Error) -> Failed {
    let tungstenite::Error::Http(answer) = error else {
        return Failed::Unreachable(exit::chain(&error.into()), Duration::ZERO);
    };
    let status = answer.status();
    let body = answer.body().as_deref().unwrap_or_default();
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let why = match problem["detail"].as_str() {
        Some(detail) => format!("{}: {detail}", status.as_u16()),
        None => status.to_string(),
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failed::Denied(why),
        StatusCode::TOO_MANY_REQUESTS => Failed::Unreachable(why, Duration::from_secs(1)),
        status if status.is_server_error() => {
            let after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|after| after.parse().ok()).unwrap_or_default();
            Failed::Unreachable(why, Duration::from_secs(after))
        }
        _ => Failed::Refused(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_the_socket_and_holds_no_secret() {
        let egress = Egress::default();
        for (given, shown) in [
            ("http://127.0.0.1:7411", "ws://127.0.0.1:7411/v1/ws"),
            ("http://[::1]:7411/", "ws://[::1]:7411/v1/ws"),
            ("ws://relay:80/v1/ws", "ws://relay/v1/ws"),
            ("http://relay/outbox/", "ws://relay/outbox/v1/ws"),
            ("https://relay.example.com", "wss://relay.example.com/v1/ws"),
        ] {
            assert_eq!(Address::of(given, &egress).unwrap().shown(), shown, "{given}");
        }
        for wrong in ["relay:7411", "ftp://relay", "http://me:secret@relay", "http://relay/?access_token=a"] {
            let error = Address::of(wrong, &egress).err().unwrap();
            assert!(error.is::<Misuse>(), "{wrong}: {error}");
        }
    }
}
