//! The Kafka sink with TLS and a password, as managed clusters have it, against a broker that checks it.

use pgoutbox::{delivery::Reason, sink::Report};
use serde_json::json;
use tokio::time::timeout;

use super::{
    kafka_tls::{Asks, Secured},
    tansu,
};
use crate::support::deliveries::{deliveries, reasons};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a broker that takes minutes to build: make test-sasl"]
async fn a_password_over_tls_delivers_and_a_wrong_one_is_retried_as_access_denied_in_time() {
    let users =
        [("shop", "scram256", "secret-of-the-shop"), ("shop", "scram512", "another-secret-of-the-shop")];
    let broker = |address: &str| tansu::start_with_users(address, "orders", &users);
    let mut secured = Secured::start(broker, Asks::Nothing).await;
    secured
        .client
        .set("security.protocol", "sasl_ssl")
        .set("sasl.mechanism", "SCRAM-SHA-256")
        .set("sasl.username", "shop")
        .set("sasl.password", "secret-of-the-shop");
    let login = |mechanism: &str, username: &str, password: &str| {
        format!(
            "ca_file = '{}'\nmechanism = '{mechanism}'\nusername = '{username}'\npassword = '{password}'",
            secured.path("ca.pem")
        )
    };
    let mut sent = Vec::new();
    for (more, expected) in [
        (login("SCRAM-SHA-256", "shop", "secret-of-the-shop"), None),
        (login("SCRAM-SHA-512", "shop", "another-secret-of-the-shop"), None),
        (login("SCRAM-SHA-256", "shop", "another-secret-of-the-shop"), Some("invalid-proof")),
        (login("SCRAM-SHA-512", "nobody", "secret-of-nobody"), Some("unknown-user")),
        // A mechanism that the broker does not have.
        (login("PLAIN", "shop", "secret-of-the-shop"), Some("PLAIN mechanism handshake failed")),
    ] {
        let sink = secured.sink(&more);
        let deliveries = deliveries(&sink, "kafka", json!({ "topic": "orders" }), 3);
        let outlet = &deliveries.outlet;
        let reports = timeout(outlet.deadline(), outlet.send(&deliveries)).await.expect("it ends in time");
        let checked = outlet.check().await;
        assert_eq!(checked.is_ok(), expected.is_none(), "{more}: {checked:?}");
        match expected {
            None => {
                assert_eq!(reasons(&reports), [("delivered", None); 3], "{more}: {reports:#?}");
                sent.extend(deliveries.iter().map(|one| one.event.payload.clone()));
                assert_eq!(secured.payloads("orders", sent.len()).await, sent);
            }
            Some(said) => {
                assert_eq!(reasons(&reports), [("retry", Some(Reason::AccessDenied)); 3], "{reports:#?}");
                let told = |report: &Report| report.answer.as_ref().is_some_and(|text| text.contains(said));
                assert!(reports.iter().all(|one| told(one) && !one.ambiguous), "{said}: {reports:#?}");
                // This broker closes the connection instead of naming its mechanisms.
                let said = if more.contains("PLAIN") { "TLS or a password" } else { said };
                assert!(checked.as_ref().unwrap_err().as_str().contains(said), "{checked:?}");
            }
        }
        let shown = format!("{reports:?} {checked:?}");
        assert!(!shown.contains("secret-of"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_broker_closes_connections_without_tls_or_a_password_that_is_named_as_what_to_look_at() {
    let secured = Secured::start(tansu::start_without_users, Asks::Nothing).await;
    for more in [format!("ca_file = '{}'", secured.path("ca.pem")), String::new()] {
        let deliveries = deliveries(&secured.sink(&more), "kafka", json!({ "topic": "orders" }), 1);
        let report = deliveries.outlet.send(&deliveries).await.remove(0);
        let reason = report.outcome.reason().unwrap();
        let is_retried = report.outcome.code() == "retry" && !report.ambiguous;
        assert!(is_retried && [Reason::Timeout, Reason::ConnectFailed].contains(&reason), "{report:?}");
        let checked = deliveries.outlet.check().await.unwrap_err();
        for said in [report.answer.as_deref().unwrap(), checked.as_str()] {
            // The client library names the setting itself where it has got an answer that it cannot read.
            assert!(said.contains("TLS or a password") || said.contains("security.protocol"), "{said}");
        }
    }
}
