//! The redis sink over TLS, as a user who may do one thing: add entries to one stream.

use pgoutbox::delivery::Reason;
use serde_json::json;

use super::redis::tls_server;
use crate::support::{
    deliveries::{deliveries, reasons, registry},
    server::{REFUSED_CERTIFICATE, certificates},
};

#[tokio::test]
async fn a_user_who_may_only_add_to_one_stream_delivers_there_and_is_denied_elsewhere() {
    let writer = ["--user", "writer", "on", ">secret-of-the-writer", "~orders", "+xadd"];
    let server = tls_server(&[&writer[..], &["--user", "default", "off"]].concat());
    let others = tempfile::tempdir().unwrap();
    certificates(others.path());
    let path = |name: &str| server.directory().join(name).display().to_string();
    let authority = format!("ca_file = '{}'", path("ca.pem"));
    let another = format!("ca_file = '{}'", others.path().join("ca.pem").display());
    let (cert, key) = (path("client.pem"), path("client.key"));
    let known = format!("{authority}\ncert_file = '{cert}'\nkey_file = '{key}'");
    let login = |password: &str| format!("{known}\nusername = 'writer'\npassword = '{password}'");
    let (right, wrong) = (login("secret-of-the-writer"), login("secret-of-nobody"));
    let tls_failed: &[Reason] = &[Reason::TlsFailed];
    let denied: &[Reason] = &[Reason::AccessDenied];
    for (more, stream, expected, said) in [
        ("", "orders", tls_failed, "certificate"),
        (&another, "orders", tls_failed, "certificate"),
        (&authority, "orders", REFUSED_CERTIFICATE, ""),
        (&known, "orders", denied, "NOAUTH"),
        (&wrong, "orders", denied, "authentication failed"),
        (&right, "others", denied, "NOPERM"),
        (&right, "orders", &[], ""),
    ] {
        let sink = registry(&format!("[sinks.redis]\nurl = 'rediss://localhost:{}'\n{more}", server.port()));
        let deliveries = deliveries(&sink, "redis", json!({ "stream": stream }), 3);
        let (outlet, case) = (&deliveries.outlet, format!("{more}\n{stream}"));
        let reports = outlet.send(&deliveries).await;
        let checked = outlet.check().await;
        assert_eq!(checked.is_ok(), expected.is_empty(), "{case}: {checked:?}");
        for (report, outcome) in reports.iter().zip(reasons(&reports)) {
            let answer = report.answer.as_deref().unwrap_or_default();
            assert!(answer.contains(said) && !report.ambiguous, "{case}: {report:?}");
            match outcome {
                ("retry", Some(reason)) => assert!(expected.contains(&reason), "{case}: {report:?}"),
                _ => assert!(outcome.0 == "delivered" && expected.is_empty(), "{case}: {report:?}"),
            }
        }
        let shown = format!("{reports:?} {checked:?}");
        assert!(!shown.contains("secret-of"), "{shown}");
    }
}
