//! The Kafka sink with TLS and certificates of clients: a real broker behind a proxy that speaks TLS, because
//! the broker's own switches for it do not work.

use std::{path::Path, sync::Arc, time::Duration};

use pgoutbox::{
    delivery::{Outcome, Reason},
    sink::Registry,
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::tansu;
use crate::support::{
    deliveries::{deliveries, registry},
    server::{PrivateServer, certificates},
};

/// A broker that clients reach only by TLS.
pub(super) struct Secured {
    broker: PrivateServer,
    address: String,
    /// Settings of clients besides the sink.
    pub(super) client: ClientConfig,
    _proxying: JoinSet<()>,
}

impl Secured {
    /// Starts a broker, which tells its clients the address that it is given, behind the proxy.
    pub(super) async fn start(start: impl FnOnce(&str) -> PrivateServer, asks: Asks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let broker = start(&address);
        certificates(broker.directory());
        let acceptor = acceptor(broker.directory(), asks);
        let port = broker.port();
        let mut proxying = JoinSet::new();
        proxying.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &address)
            .set("group.id", "test")
            .set("security.protocol", "ssl")
            .set("ssl.ca.location", broker.directory().join("ca.pem").to_str().unwrap());
        Self { broker, address, client, _proxying: proxying }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.broker.directory().join(name).display().to_string()
    }

    pub(super) fn sink(&self, more: &str) -> Registry {
        registry(&format!("[sinks.kafka]\nbrokers = '{}'\ntimeout = '3s'\n{more}", self.address))
    }

    /// Payloads of the first records of a topic.
    pub(super) async fn payloads(&self, topic: &str, count: usize) -> Vec<String> {
        let (config, topic) = (self.client.clone(), topic.to_owned());
        let reading = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config.create().unwrap();
            let mut from = TopicPartitionList::new();
            from.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
            consumer.assign(&from).unwrap();
            let records = consumer.iter().filter_map(Result::ok).take(count);
            records.map(|record| String::from_utf8(record.payload().unwrap().to_vec()).unwrap()).collect()
        });
        tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap().unwrap()
    }
}

/// What the proxy asks of clients.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Certificate,
    Nothing,
}

fn acceptor(folder: &Path, asks: Asks) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let verifier = if asks == Asks::Certificate { verifier } else { WebPkiClientVerifier::no_client_auth() };
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(folder.join("server.pem")).unwrap()],
            PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_needs_the_authority_and_the_certificate_of_the_configuration() {
    let mut secured = Secured::start(|address| tansu::start(Some(address)), Asks::Certificate).await;
    let (certificate, key) = (secured.path("client.pem"), secured.path("client.key"));
    secured.client.set("ssl.certificate.location", certificate).set("ssl.key.location", key);
    let admin: AdminClient<DefaultClientContext> = secured.client.create().unwrap();
    let topic = NewTopic::new("orders", 1, TopicReplication::Fixed(1));
    admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap();

    let authority = format!("ca_file = '{}'", secured.path("ca.pem"));
    let certificate = format!(
        "{authority}\ncert_file = '{}'\nkey_file = '{}'",
        secured.path("client.pem"),
        secured.path("client.key")
    );
    for (more, expected) in
        [("tls = true", Some(Reason::TlsFailed)), (&authority, Some(Reason::TlsFailed)), (&certificate, None)]
    {
        let sink = secured.sink(more);
        let deliveries = deliveries(&sink, "kafka", json!({ "topic": "orders" }), 3);
        let reports = deliveries.outlet.send(&deliveries).await;
        assert!(reports.iter().all(|report| report.outcome.reason() == expected), "{more}: {reports:#?}");
        let said = deliveries.outlet.check().await;
        assert_eq!(said.is_ok(), expected.is_none(), "{more}: {said:?}");
        if more == authority {
            let said = reports[0].answer.as_deref().unwrap();
            assert!(said.contains("asks for a client certificate"), "{said}");
        }
        if expected.is_none() {
            assert!(reports.iter().all(|report| report.outcome == Outcome::Delivered));
            let sent: Vec<String> = deliveries.iter().map(|one| one.event.payload.clone()).collect();
            assert_eq!(secured.payloads("orders", 3).await, sent);
        }
    }
}
