//! Reads a document from a URL that the operator has chosen, such as a set of keys, with the client of
//! webhooks. The egress policy is for the authors of subscriptions; here every address is allowed, and plain
//! HTTP on loopback.

use std::time::Duration;

use http_body_util::Full;
use ipnet::IpNet;
use tokio::time::Instant;
use url::Url;

use super::client::{Client, Failure, Request};
use crate::sink::egress::{Egress, Guard};

/// The body of the answer to GET. Redirects are not followed. Of `egress` the authorities and, for https, the
/// proxy are used.
///
/// # Errors
/// A message for the operator: no connection, no answer `within` that time, another status than 200, more
/// than `largest` bytes.
pub async fn fetch(egress: &Egress, url: &Url, largest: usize, within: Duration) -> Result<Vec<u8>, String> {
    let until = Instant::now() + within;
    let said = |failure: Failure| match failure {
        Failure::TimedOut => format!("no answer within {within:?}"),
        failure => chain(&failure),
    };
    let (client, uri) = (client(egress, url).await?, url.as_str().parse());
    let mut request = Request::new(Full::default());
    *request.uri_mut() = uri.map_err(|_| "is not an address that can be requested".to_owned())?;
    let mut response = client.send(request, until).await.map_err(said)?;
    match response.status.as_u16() {
        200 => {}
        status @ 300..=399 => return Err(format!("answered {status}; redirects are not followed")),
        status => return Err(format!("answered {status}")),
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(said)? {
        if body.len() + chunk.len() > largest {
            return Err(format!("answered with more than {largest} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

async fn client(egress: &Egress, url: &Url) -> Result<Client, String> {
    let is_https = url.scheme() == "https";
    let ranges: &[&str] = if is_https { &["0.0.0.0/0", "::/0"] } else { &["127.0.0.0/8", "::1/128"] };
    let egress = Egress {
        allow: ranges.iter().filter_map(|range| range.parse::<IpNet>().ok()).collect(),
        proxy: egress.proxy.clone().filter(|_| is_https),
        ca_file: egress.ca_file.clone(),
        ..Egress::default()
    };
    // Reads the system's certificates.
    let making = tokio::task::spawn_blocking(move || Client::new(&egress, &Guard::new(&egress)));
    let made = making.await.map_err(|_| "the HTTP client could not be made".to_owned())?;
    made.map_err(|error| chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
