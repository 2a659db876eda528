//! Manifests, chart, compose file and units agree with the program: settings, ports, grace periods, rights,
//! versions. Whether they are well-formed is checked by `make lint-deploy`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use pgoutbox::{
    cli::config::{Config, MANUAL, Sources},
    delivery::duration,
    sinks::CONFIGURED,
};
use regex::Regex;
use serde::Deserialize as _;
use serde_json::Value;

use crate::tidy::files;

const KUBERNETES: &str = "deploy/kubernetes";
const CHART: &str = "deploy/helm/pgoutbox";
const UNIT: &str = "packaging/systemd/pgoutbox.service";

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The documents of a YAML file.
fn documents(name: &str) -> Vec<Value> {
    let text = read(name);
    let documents = yaml_serde::Deserializer::from_str(&text).map(|document| {
        let mut value =
            yaml_serde::Value::deserialize(document).unwrap_or_else(|error| panic!("{name}: {error}"));
        value.apply_merge().unwrap();
        serde_json::to_value(value).unwrap()
    });
    documents.collect()
}

fn document(name: &str) -> Value {
    documents(name).remove(0)
}

fn manifest(name: &str) -> Value {
    document(&format!("{KUBERNETES}/{name}.yaml"))
}

/// The value at a place, which must be there.
fn at<'a>(value: &'a Value, place: &str) -> &'a Value {
    value.pointer(place).unwrap_or_else(|| panic!("nothing at {place} in {value:#}"))
}

fn text<'a>(value: &'a Value, place: &str) -> &'a str {
    at(value, place).as_str().unwrap_or_else(|| panic!("no text at {place}"))
}

/// What a relay makes of such a pgoutbox.toml.
fn configured(text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("pgoutbox.toml");
    fs::write(&path, text).unwrap();
    let environment = vec![("DATABASE_URL".into(), "postgres://relay@localhost/shop".into())];
    let sources = Sources { file: Some(path), environment, ..Sources::default() };
    Config::load(&sources, CONFIGURED).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn in_cluster() -> Config {
    configured(text(&manifest("configmap"), "/data/pgoutbox.toml"))
}

/// The value of a line such as `TimeoutStopSec=30s`.
fn of_unit(key: &str) -> String {
    let unit = read(UNIT);
    let value = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
    value.unwrap_or_else(|| panic!("{UNIT} has no {key}")).to_owned()
}

#[test]
fn whatever_stops_a_relay_leaves_it_more_time_than_its_drain() {
    let default = configured("").relay.drain;
    let pod =
        at(&manifest("deployment"), "/spec/template/spec/terminationGracePeriodSeconds").as_u64().unwrap();
    assert!(Duration::from_secs(pod) > in_cluster().relay.drain, "{pod}");
    let compose = document("docker-compose.yml");
    assert!(duration::parse(text(&compose, "/services/relay/stop_grace_period")).unwrap() > default);
    assert!(duration::parse(&of_unit("TimeoutStopSec")).unwrap() > default);

    let values = document(&format!("{CHART}/values.yaml"));
    assert_eq!(at(&values, "/drainSeconds").as_u64().unwrap(), default.as_secs());
    let template = read(&format!("{CHART}/templates/deployment.yaml"));
    assert!(
        template.contains("terminationGracePeriodSeconds: {{ add .Values.drainSeconds 20 }}"),
        "{template}"
    );
}

#[test]
fn every_setting_and_file_of_settings_is_accepted() {
    let mut section = "";
    let mut keys = BTreeSet::new();
    for line in MANUAL.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            keys.insert(format!("PGOUTBOX__{section}__{key}").to_uppercase());
        }
    }
    let variable = Regex::new(r"PGOUTBOX__[A-Z_]*[A-Z]").unwrap();
    let all = [files("deploy", ""), files("packaging", "")].into_iter().flatten();
    let top = ["docker-compose.yml", "Dockerfile"].map(|name| (name.to_owned(), read(name)));
    let mut seen = 0;
    for (name, text) in all.chain(top) {
        for found in variable.find_iter(&text).map(|found| found.as_str()) {
            assert!(keys.contains(found), "{name}: {found} sets nothing");
            seen += 1;
        }
    }
    assert!(seen > 8, "{seen} variables");

    in_cluster();
    configured(text(&document(&format!("{CHART}/values.yaml")), "/config"));
    let installed = read("packaging/pgoutbox.toml");
    configured(&installed);
    // Each commented key is a valid one.
    let shown: Vec<&str> = installed
        .lines()
        .map(|line| if line.contains(" = ") { line.trim_start_matches("# ") } else { line })
        .collect();
    configured(&shown.join("\n"));
}

#[test]
fn probes_ask_where_the_relay_answers_them() {
    let probes = in_cluster().http.probes.expect("an address for probes");
    assert!(probes.ip().is_unspecified(), "the node must reach it");
    let deployment = manifest("deployment");
    let relay = at(&deployment, "/spec/template/spec/containers/0");
    assert_eq!(text(relay, "/ports/0/name"), "probes");
    assert_eq!(at(relay, "/ports/0/containerPort").as_u64().unwrap(), u64::from(probes.port()));
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(text(relay, &format!("/{probe}/httpGet/path")), path);
        assert_eq!(text(relay, &format!("/{probe}/httpGet/port")), "probes");
        // Within 3 s the relay answers that the database did not.
        assert!(at(relay, &format!("/{probe}/timeoutSeconds")).as_u64().unwrap() > 3);
    }
    let values = document(&format!("{CHART}/values.yaml"));
    assert_eq!(at(&values, "/probes/port").as_u64().unwrap(), u64::from(probes.port()));
    let listen = configured("").http.listen.unwrap();
    assert_eq!(at(&values, "/metrics/port").as_u64().unwrap(), u64::from(listen.port()));
    assert!(read("Dockerfile").contains(&format!("EXPOSE {} {}\n", listen.port(), probes.port())));
}

#[test]
fn every_pod_and_container_runs_without_rights() {
    let dockerfile = read("Dockerfile");
    let user = dockerfile.lines().filter_map(|line| line.strip_prefix("USER ")).next_back().unwrap();
    let (user, _) = user.split_once(':').unwrap();
    for name in ["deployment", "migrate"] {
        let manifest = manifest(name);
        let pod = at(&manifest, "/spec/template/spec");
        assert_eq!(at(pod, "/automountServiceAccountToken"), false, "{name}");
        assert_eq!(at(pod, "/securityContext/runAsNonRoot"), true, "{name}");
        assert_eq!(at(pod, "/securityContext/runAsUser").to_string(), user, "{name}");
        assert_eq!(text(pod, "/securityContext/seccompProfile/type"), "RuntimeDefault", "{name}");
        let rights = at(pod, "/containers/0/securityContext");
        assert_eq!(at(rights, "/allowPrivilegeEscalation"), false, "{name}");
        assert_eq!(at(rights, "/readOnlyRootFilesystem"), true, "{name}");
        assert_eq!(at(rights, "/capabilities/drop/0"), "ALL", "{name}");
    }
    let helpers = read(&format!("{CHART}/templates/_helpers.tpl"));
    assert!(helpers.contains(&format!("runAsUser: {user}\n")), "{helpers}");

    let compose = document("docker-compose.yml");
    let services = at(&compose, "/services").as_object().unwrap();
    let own =
        services.iter().filter(|(_, service)| service.get("image").is_some_and(|it| it == "pgoutbox:local"));
    let mut seen = 0;
    for (name, service) in own {
        assert_eq!(at(service, "/read_only"), true, "{name}");
        assert_eq!(at(service, "/cap_drop/0"), "ALL", "{name}");
        assert_eq!(at(service, "/security_opt/0"), "no-new-privileges:true", "{name}");
        seen += 1;
    }
    assert_eq!(seen, 3, "migrate, relay and receiver");
}

#[test]
fn every_container_runs_a_command_that_exists() {
    let mut commands = Vec::new();
    for name in ["deployment", "migrate"] {
        commands.push(at(&manifest(name), "/spec/template/spec/containers/0/args").clone());
    }
    let compose = document("docker-compose.yml");
    for service in ["migrate", "relay", "receiver"] {
        commands.push(at(&compose, &format!("/services/{service}/command")).clone());
    }
    let check = at(&compose, "/services/relay/healthcheck/test").as_array().unwrap().clone();
    commands.push(check[2..].to_vec().into());
    let unit = of_unit("ExecStart");
    let words: Vec<&str> = unit.split(' ').collect();
    assert_eq!(words[0], "/usr/bin/pgoutbox");
    commands.push(words[1..].to_vec().into());
    for command in commands {
        let words: Vec<&str> =
            command.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let output = Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .args(&words)
            .arg("--help")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

#[test]
fn every_part_names_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = document(&format!("{CHART}/Chart.yaml"));
    assert_eq!(text(&chart, "/appVersion"), version);
    for name in ["deployment", "migrate"] {
        let image = format!("pgoutbox:{version}");
        assert_eq!(text(&manifest(name), "/spec/template/spec/containers/0/image"), image, "{name}");
    }
    let changelog = read("packaging/changelog");
    assert!(changelog.starts_with(&format!("pgoutbox ({version}-")), "{changelog}");
}

#[test]
fn the_manifests_are_those_that_are_applied() {
    let listed = manifest("kustomization");
    let listed =
        at(&listed, "/resources").as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned());
    let listed: BTreeSet<String> = listed.collect();
    let there =
        files(KUBERNETES, ".yaml").into_keys().map(|name| name.rsplit('/').next().unwrap().to_owned());
    // The secrets are examples, which are edited and applied first.
    let there: BTreeSet<String> =
        there.filter(|name| !["kustomization.yaml", "secrets.yaml"].contains(&name.as_str())).collect();
    assert_eq!(listed, there);
    let secrets = documents(&format!("{KUBERNETES}/secrets.yaml"));
    let values = document(&format!("{CHART}/values.yaml"));
    for (secret, manifest, of_chart) in [(0, "deployment", "/database"), (1, "migrate", "/migrate")] {
        let (name, keys) = (text(&secrets[secret], "/metadata/name"), at(&secrets[secret], "/stringData"));
        let manifest = self::manifest(manifest);
        let pod = at(&manifest, "/spec/template/spec").to_string();
        assert!(pod.contains(&format!("\"secretName\":\"{name}\"")), "{pod}");
        let path = text(&manifest, "/spec/template/spec/containers/0/env/0/value");
        assert!(keys.get(path.rsplit('/').next().unwrap()).is_some(), "{path}");
        assert_eq!(text(&values, &format!("{of_chart}/secret")), name);
    }
}
