//! The AMQP sink over TLS with a private authority, certificates of clients and a password, as a RabbitMQ
//! in a company has it.

use std::{net::TcpListener, path::Path};

use lapin::{Channel, Connection, options::QueueDeclareOptions, types::FieldTable};
use pgoutbox::{delivery::Reason, lab::private_server::rabbitmq};
use serde_json::json;

use super::amqp::client;
use crate::support::{
    Database,
    deliveries::{deliveries, reasons, registry},
    server::{PrivateServer, REFUSED_CERTIFICATE, certificates, eventually},
};

/// A server with a TLS port besides the other one. Clients need a certificate of the authority.
fn settings(folder: &Path, port: u16) -> String {
    certificates(folder);
    let path = |name: &str| folder.join(name).display().to_string();
    format!(
        "listeners.ssl.local = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n",
        path("ca.pem"),
        path("server.pem"),
        path("server.key")
    )
}

/// The server, once it lets users in, its port for TLS and a channel to it without TLS.
async fn start() -> (PrivateServer, u16, Connection, Channel) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = rabbitmq::start_with(|folder| settings(folder, port)).unwrap();
    let (connection, channel) = client(&server).await;
    eventually("RabbitMQ listens for TLS", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    })
    .await;
    (server, port, connection, channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn amqps_needs_the_authority_the_certificate_and_the_password_of_the_configuration() {
    let (server, port, _connection, channel) = start().await;
    channel
        .queue_declare("orders".into(), QueueDeclareOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let others = tempfile::tempdir().unwrap();
    certificates(others.path());
    let path = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let trusting = |folder: &Path| format!("ca_file = '{}'", path(folder, "ca.pem"));
    let known = |folder: &Path| {
        let (cert, key) = (path(folder, "client.pem"), path(folder, "client.key"));
        format!("{}\ncert_file = '{cert}'\nkey_file = '{key}'", trusting(server.directory()))
    };
    let ours = known(server.directory());
    let login = |password: &str| format!("{ours}\nusername = 'guest'\npassword = '{password}'");
    let none: &[Reason] = &[];
    for (more, expected) in [
        (String::new(), &[Reason::TlsFailed] as &[Reason]),
        (trusting(others.path()), &[Reason::TlsFailed]),
        (trusting(server.directory()), REFUSED_CERTIFICATE),
        (known(others.path()), REFUSED_CERTIFICATE),
        (login("secret-of-nobody"), &[Reason::AccessDenied]),
        (login("guest"), none),
    ] {
        let sink = registry(&format!("[sinks.amqp]\nurl = 'amqps://localhost:{port}'\n{more}"));
        let deliveries = deliveries(&sink, "amqp", json!({ "routing_key": "orders" }), 3);
        let reports = deliveries.outlet.send(&deliveries).await;
        let checked = deliveries.outlet.check().await;
        assert_eq!(checked.is_ok(), expected.is_empty(), "{more}: {checked:?}");
        for (report, outcome) in reports.iter().zip(reasons(&reports)) {
            assert!(!report.ambiguous, "{more}: {report:?}");
            match outcome {
                ("retry", Some(reason)) => assert!(expected.contains(&reason), "{more}: {report:?}"),
                _ => assert!(outcome.0 == "delivered" && expected.is_empty(), "{more}: {report:?}"),
            }
            if expected == REFUSED_CERTIFICATE {
                let answer = report.answer.as_deref().unwrap_or_default().to_lowercase();
                assert!(answer.contains("certificate") || answer.contains("alert"), "{more}: {report:?}");
            }
        }
        let shown = format!("{reports:?} {checked:?}");
        assert!(!shown.contains("secret-of-nobody"), "{shown}");
    }
    let queue = channel.queue_declare(
        "orders".into(),
        QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() },
        FieldTable::default(),
    );
    assert_eq!(queue.await.unwrap().message_count(), 3, "what was delivered, and nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authorities_of_the_configuration_replace_those_of_the_system() {
    let (server, port, _connection, _channel) = start().await;
    let (database, others) = (Database::new().await, tempfile::tempdir().unwrap());
    certificates(others.path());
    database.execute("select outbox.subscribe('all', array['**'], 'amqp')").await;
    let ours = |name: &str| server.directory().join(name);
    let (right, wrong) = (ours("ca.pem"), others.path().join("ca.pem"));
    let file = others.path().join("pgoutbox.toml");
    for (system, configured, expected) in
        [(&right, None, 0), (&wrong, None, 1), (&wrong, Some(&right), 0), (&right, Some(&wrong), 1)]
    {
        let authority = configured.map(|path| format!("ca_file = {path:?}")).unwrap_or_default();
        let (cert, key) = (ours("client.pem"), ours("client.key"));
        let section = format!(
            "[sinks.amqp]\nurl = 'amqps://localhost:{port}'\ncert_file = {cert:?}\nkey_file = {key:?}\n{authority}"
        );
        std::fs::write(&file, section).unwrap();
        let mut checking = database.command(&["check", "--config", file.to_str().unwrap()]);
        let checked = checking.env("SSL_CERT_FILE", system).output().unwrap();
        let printed = String::from_utf8_lossy(&checked.stdout);
        assert_eq!(checked.status.code(), Some(expected), "{system:?} {authority}: {checked:?}");
        assert_eq!(printed.contains("peer certificate"), expected == 1, "{checked:?}");
    }
    database.drop().await;
}
