//! Who said no: a proxy's answer is the proxy's, and a TLS server's alert is not a broken answer.

use std::sync::{Arc, Mutex};

use pgoutbox::{
    delivery::{Outcome, Reason},
    sink::{Outlet, Report, egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    deliveries::{Deliveries, deliveries},
    hostile::{Hostile, Mode},
    server::certificates,
};

fn to(url: &str, egress: Egress) -> Deliveries {
    let egress = Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..egress };
    let mut registry = pgoutbox::sinks::registry();
    registry.add(Webhook::new(&egress, Secrets::with_environment(None, |_| None)).unwrap());
    deliveries(&registry, "webhook", json!({"url": url, "dead_letter_on": [403], "timeout": "5s"}), 1)
}

async fn send(url: &str, egress: Egress) -> (Report, Outlet) {
    let deliveries = to(url, egress);
    (pgoutbox::sink::only(deliveries.outlet.send(&deliveries).await), deliveries.outlet.clone())
}

fn behind(proxy: &str) -> Egress {
    Egress { proxy: Some(proxy.parse().unwrap()), ..Egress::default() }
}

#[tokio::test]
async fn what_a_proxy_answers_is_the_proxys_and_nothing_final_follows_from_it() {
    for status in [403, 407, 410, 429, 500, 502, 503] {
        let proxy =
            Hostile::start(Mode::Status(status, vec![("retry-after", "60".into())], b"no".into())).await;
        let (report, outlet) = send("https://shop.test/", behind(&proxy.url("/"))).await;
        let expected = Outcome::Retry { reason: Reason::ProxyFailed, after: None };
        assert_eq!((&report.outcome, report.ambiguous), (&expected, false), "{report:?}");
        let answer = report.answer.unwrap();
        assert!(answer.contains(&format!("egress.proxy answered {status}")), "{answer}");
        assert!(outlet.check().await.is_err());
        assert!(
            proxy.requests()[0].head.starts_with("CONNECT shop.test:443 HTTP/1.1\r\nhost: shop.test:443")
        );
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hostile = Hostile::start(Mode::Garbage).await;
    let mute = Hostile::start(Mode::CloseUnanswered).await;
    for proxy in [format!("http://{closed}/"), hostile.url("/"), mute.url("/"), format!("https://{closed}/")]
    {
        let (report, _) = send("https://shop.test/", behind(&proxy)).await;
        assert_eq!(report.outcome.reason(), Some(Reason::ProxyFailed), "{report:?}");
        assert!(!report.ambiguous);
    }
}

#[tokio::test]
async fn without_a_tunnel_a_410_or_403_that_may_be_the_proxys_is_not_final() {
    let reason = async |status, headers| {
        let proxy = Hostile::start(Mode::Status(status, headers, vec![])).await;
        let address = proxy.url("/").replace("//", "//user:p%40ss@");
        let (report, _) = send("http://shop.test/hook", behind(&address)).await;
        let [request] = &proxy.requests()[..] else { panic!("one request") };
        assert!(request.head.starts_with("POST http://shop.test/hook HTTP/1.1\r\n"), "{}", request.head);
        assert_eq!(request.header("proxy-authorization"), Some("Basic dXNlcjpwQHNz"));
        (report.outcome.code(), report.outcome.reason())
    };
    assert_eq!(reason(200, vec![]).await, ("delivered", None));
    for status in [403, 410] {
        assert_eq!(reason(status, vec![]).await, ("retry", Some(Reason::ClientError)));
        let names_itself = vec![("proxy-status", "squid; error=destination_unavailable".to_owned())];
        assert_eq!(reason(status, names_itself).await, ("retry", Some(Reason::ProxyFailed)));
    }
    assert_eq!(reason(407, vec![]).await, ("retry", Some(Reason::ProxyFailed)));
    assert_eq!(reason(503, vec![]).await, ("retry", Some(Reason::RateLimited)));
}

/// A server with TLS that answers 204, and its folder of certificates. Counts requests.
async fn tls_server(asks: bool) -> (String, tempfile::TempDir, Arc<Mutex<usize>>, JoinSet<()>) {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let path = |name: &str| folder.path().join(name);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let builder = if asks {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(path("ca.pem")).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let certificate = CertificateDer::from_pem_file(path("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(path("server.key")).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![certificate], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let (served, mut tasks) = (Arc::new(Mutex::new(0)), JoinSet::new());
    let count = Arc::clone(&served);
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut read = vec![0; 64 * 1024];
            if stream.read(&mut read).await.is_ok_and(|length| length > 0) {
                *count.lock().unwrap() += 1;
                let _ = stream.write_all(b"HTTP/1.1 204 X\r\nconnection: close\r\n\r\n").await;
            }
            let _ = stream.shutdown().await;
        }
    });
    (url, folder, served, tasks)
}

fn trusting(folder: &tempfile::TempDir) -> Egress {
    Egress { ca_file: Some(folder.path().join("ca.pem")), ..Egress::default() }
}

#[tokio::test]
async fn a_server_that_asks_for_a_client_certificate_fails_the_handshake_and_says_so() {
    let (url, folder, served, _tasks) = tls_server(true).await;
    for _ in 0..20 {
        let (report, outlet) = send(&url, trusting(&folder)).await;
        let expected = (Some(Reason::TlsFailed), false);
        assert_eq!((report.outcome.reason(), report.ambiguous), expected, "{:?}", report.answer);
        let answer = report.answer.unwrap();
        assert!(answer.contains("asks for a client certificate"), "{answer}");
        assert!(outlet.check().await.unwrap_err().to_string().contains("client certificate"));
    }
    assert_eq!(*served.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_tunnel_leads_to_the_destination_and_its_answer_is_the_destinations() {
    let (url, folder, served, _tasks) = tls_server(false).await;
    assert_eq!(send(&url, trusting(&folder)).await.0.outcome, Outcome::Delivered);
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/", proxy.local_addr().unwrap());
    let destination = url.trim_start_matches("https://").trim_end_matches('/').to_owned();
    let tunnel = async {
        let (mut client, _) = proxy.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            read.push(client.read_u8().await.unwrap());
        }
        assert!(read.starts_with(format!("CONNECT {destination} HTTP/1.1\r\n").as_bytes()));
        client.write_all(b"HTTP/1.1 200 Connection established\r\nx: y\r\n\r\n").await.unwrap();
        let mut server = TcpStream::connect(&destination).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut server).await;
    };
    let egress = Egress { proxy: Some(address.parse().unwrap()), ..trusting(&folder) };
    let ((report, _), ()) = tokio::join!(send(&url, egress), tunnel);
    assert_eq!((report.outcome, report.status), (Outcome::Delivered, Some(204)));
    assert_eq!(*served.lock().unwrap(), 2);
}
