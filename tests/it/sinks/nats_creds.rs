//! The nats sink over TLS with a credentials file, as a system of several accounts has it: the operator signs
//! for accounts, an account for its users, and the server keeps no password.

use std::path::Path;

use async_nats::{ConnectOptions, jetstream};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use pgoutbox::delivery::{Outcome, Reason};
use serde_json::{Value, json};

use super::nats::{NATS, events};
use crate::support::{
    deliveries::{deliveries, reasons, registry},
    server::{PrivateServer, REFUSED_CERTIFICATE, certificates, eventually},
};

/// A token that one key signs for another.
fn token(signer: &KeyPair, subject: &KeyPair, expires: Option<i64>, claims: Value) -> String {
    let claims = json!({
        "jti": uuid::Uuid::new_v4().to_string(), "iat": 1_700_000_000, "exp": expires.unwrap_or(0),
        "iss": signer.public_key(), "sub": subject.public_key(), "name": "it", "nats": claims,
    });
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(claims));
    let signature = signer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// An account, and what its users may do.
struct Account {
    key: KeyPair,
    token: String,
}

impl Account {
    /// `storage`: what its streams may hold, in bytes; -1 means no limit.
    fn new(operator: &KeyPair, storage: i32) -> Self {
        let key = KeyPair::new_account();
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1,
            "wildcards": true, "mem_storage": storage, "disk_storage": storage, "streams": -1, "consumer": -1,
        });
        let token = token(operator, &key, None, json!({ "type": "account", "version": 2, "limits": limits }));
        Self { key, token }
    }

    /// The file of a user who may publish to this subject.
    fn credentials(&self, publishes: &str, expires: Option<i64>) -> String {
        let user = KeyPair::new_user();
        let claims = json!({
            "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
            "pub": { "allow": [publishes] }, "sub": { "allow": ["_INBOX.>"] },
        });
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            token(&self.key, &user, expires, claims),
            user.seed().unwrap()
        )
    }
}

fn section(server: &PrivateServer, more: &str) -> String {
    format!("[sinks.nats]\nservers = ['tls://localhost:{}']\n{more}", server.port())
}

/// A server that trusts the operator of this account, and the account's stream EVENTS.
async fn server(operator: &KeyPair, account: &Account) -> PrivateServer {
    let system = Account::new(operator, 0);
    let server = PrivateServer::start_in(NATS, |folder| {
        certificates(folder);
        let path = |name: &str| folder.join(name).display().to_string();
        let claims = json!({ "type": "operator", "version": 2, "system_account": system.key.public_key() });
        let file = format!(
            "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}\n\
             tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n",
            token(operator, operator, None, claims),
            account.key.public_key(),
            account.token,
            system.key.public_key(),
            system.token,
            path("server.pem"),
            path("server.key"),
            path("ca.pem"),
        );
        std::fs::write(folder.join("nats.conf"), file).unwrap();
        vec!["-c".into(), folder.join("nats.conf").into()]
    })
    .unwrap();
    let path = |name: &str| server.directory().join(name);
    let client = ConnectOptions::with_credentials(&account.credentials(">", None))
        .unwrap()
        .add_root_certificates(path("ca.pem"))
        .add_client_certificate(path("client.pem"), path("client.key"))
        .connect(format!("tls://localhost:{}", server.port()))
        .await
        .unwrap();
    jetstream::new(client).create_stream(events()).await.unwrap();
    server
}

#[tokio::test]
async fn credentials_of_the_account_deliver_where_they_may_and_others_are_denied() {
    let operator = KeyPair::new_operator();
    let (account, stranger) = (Account::new(&operator, -1), Account::new(&KeyPair::new_operator(), -1));
    let server = server(&operator, &account).await;
    let path = |name: &str| Path::join(server.directory(), name).display().to_string();
    let creds = format!("creds_file = '{}'", path("it.creds"));
    let authority = format!("{creds}\nca_file = '{}'", path("ca.pem"));
    let (cert, key) = (path("client.pem"), path("client.key"));
    let certificate = format!("ca_file = '{}'\ncert_file = '{cert}'\nkey_file = '{key}'", path("ca.pem"));
    let login = format!("{certificate}\n{creds}");
    let valid = account.credentials("events.orders", None);
    let (foreign, expired) = (stranger.credentials(">", None), account.credentials(">", Some(1_700_000_001)));
    let denied: &[Reason] = &[Reason::AccessDenied];
    for (more, file, subject, expected, said) in [
        (&creds, &valid, "events.orders", &[Reason::TlsFailed] as &[Reason], "certificate"),
        (&authority, &valid, "events.orders", REFUSED_CERTIFICATE, ""),
        (&certificate, &valid, "events.orders", denied, "authorization violation"),
        (&login, &foreign, "events.orders", denied, "authorization violation"),
        (&login, &expired, "events.orders", denied, "authorization violation"),
        (&login, &valid, "events.payments", denied, "Publish to \"events.payments\""),
        (&login, &valid, "events.orders", &[], ""),
    ] {
        std::fs::write(path("it.creds"), file).unwrap();
        let sink = registry(&section(&server, more));
        let deliveries = deliveries(&sink, "nats", json!({ "subject": subject }), 2);
        let reports = deliveries.outlet.send(&deliveries).await;
        for (report, outcome) in reports.iter().zip(reasons(&reports)) {
            let answer = report.answer.as_deref().unwrap_or_default();
            assert!(answer.contains(said), "{more}\n{subject}: {report:?}");
            match outcome {
                ("retry", Some(reason)) => assert!(expected.contains(&reason), "{more}: {report:?}"),
                _ => assert!(outcome.0 == "delivered" && expected.is_empty(), "{more}: {report:?}"),
            }
        }
    }
}

#[tokio::test]
async fn credentials_that_were_replaced_are_read_for_the_next_connection() {
    let operator = KeyPair::new_operator();
    let account = Account::new(&operator, -1);
    let mut server = server(&operator, &account).await;
    let path = |name: &str| Path::join(server.directory(), name).display().to_string();
    let file = path("it.creds");
    let more = format!(
        "ca_file = '{}'\ncert_file = '{}'\nkey_file = '{}'\ncreds_file = '{file}'",
        path("ca.pem"),
        path("client.pem"),
        path("client.key")
    );
    std::fs::write(&file, account.credentials("events.orders", Some(1_700_000_001))).unwrap();
    let sink = registry(&section(&server, &more));
    let deliveries = deliveries(&sink, "nats", json!({ "subject": "events.orders" }), 1);
    let outlet = &deliveries.outlet;
    let report = outlet.send(&deliveries).await.remove(0);
    assert_eq!(report.outcome.reason(), Some(Reason::AccessDenied), "{report:?}");
    std::fs::write(&file, account.credentials("events.orders", None)).unwrap();
    let report = outlet.send(&deliveries).await.remove(0);
    assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
    // A connection that works is kept, whatever the file says by now.
    std::fs::write(&file, account.credentials("nothing", None)).unwrap();
    assert_eq!(outlet.send(&deliveries).await.remove(0).outcome, Outcome::Delivered);
    server.stop();
    server.start_again().unwrap();
    eventually("it connects again, as a user who may publish nothing", async || {
        outlet.send(&deliveries).await[0].outcome.reason() == Some(Reason::AccessDenied)
    })
    .await;
}
