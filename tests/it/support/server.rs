//! Brokers of a test's own: real servers from Debian's packages, each with a directory and a port of its own, killed with
//! the test. A missing program fails the test with the name of its package.

pub(crate) use pgoutbox::private_server::{Kind, PrivateServer};

/// Waits until something is so, at most 30 s.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
    let looking = async {
        while !so().await {
            looks.tick().await;
        }
    };
    assert!(tokio::time::timeout(std::time::Duration::from_secs(30), looking).await.is_ok(), "not within 30 s: {what}");
}
