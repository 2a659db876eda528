//! Brokers for tests: servers from Debian packages, each with its own directory and port, killed with the
//! test. A missing program fails the test with the name of its package.

use std::{path::Path, process::Command};

use pgoutbox::delivery::Reason;
pub(crate) use pgoutbox::lab::private_server::{Kind, PrivateServer};

/// Waits until a condition holds, at most 60 s: breakers of destinations that were down stay open for a
/// while.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
    let looking = async {
        while !so().await {
            looks.tick().await;
        }
    };
    assert!(
        tokio::time::timeout(std::time::Duration::from_secs(60), looking).await.is_ok(),
        "not within 60 s: {what}"
    );
}

/// Reasons when a server refuses a client's certificate. With TLS 1.3 it does so after the handshake, and its
/// alert may be lost when it closes the connection.
pub(crate) const REFUSED_CERTIFICATE: &[Reason] = &[Reason::TlsFailed, Reason::ConnectFailed];

/// Creates an authority and its certificates for the server localhost and for a client.
pub(crate) fn certificates(folder: &Path) {
    let script = "
        set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        for name in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
            printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE' > $name.ext
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext -out $name.pem
        done";
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(
        output.status.success(),
        "openssl, of the package openssl: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
