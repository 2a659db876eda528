//! `[sinks.kafka]`: how to reach a cluster, and the client's settings that follow. Never here: a connection.

use std::{path::PathBuf, time::Duration};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use secrecy::{ExposeSecret, SecretString};

use crate::config::Settings;

/// How long librdkafka tries to deliver a record, when nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
const COMPRESSIONS: &[&str] = &["none", "gzip", "snappy", "lz4"];
const MECHANISMS: &[&str] = &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
/// Ways to place keys that put records of one key into one partition.
const PARTITIONERS: &[&str] = &["consistent", "consistent_random", "murmur2", "murmur2_random", "fnv1a", "fnv1a_random"];
/// Options of librdkafka that may be set: none of them can break what the sink promises.
const OPTIONS: &[&str] = &[
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "client.dns.lookup",
    "client.rack",
    "compression.level",
    "connections.max.idle.ms",
    "linger.ms",
    "message.max.bytes",
    "metadata.max.age.ms",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.timeout.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.nagle.disable",
    "sticky.partitioning.linger.ms",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.interval.ms",
];

/// `[sinks.kafka]`
#[derive(Debug, Clone)]
pub struct Config {
    brokers: Vec<String>,
    client_id: String,
    tls: bool,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<SecretString>,
    mechanism: String,
    compression: String,
    create_topics: bool,
    pub(super) timeout: Duration,
    options: Vec<(String, String)>,
}

impl Config {
    pub(super) fn read(settings: &mut Settings<'_>) -> Option<Self> {
        let brokers = settings.list("brokers");
        let client_id = settings.text("client_id");
        let tls = settings.switch("tls");
        let ca_file = settings.path("ca_file");
        let cert_file = settings.path("cert_file");
        let key_file = settings.path("key_file");
        let username = settings.text("username");
        let password = settings.secret("password");
        let mechanism = settings.text("mechanism").unwrap_or_else(|| "SCRAM-SHA-512".to_owned());
        let compression = settings.text("compression").unwrap_or_else(|| "none".to_owned());
        let create_topics = settings.switch("create_topics").unwrap_or(false);
        let timeout = settings.duration("timeout", Duration::from_secs(1)..=Duration::from_secs(55)).unwrap_or(TIMEOUT);
        let options = settings.list("options").unwrap_or_default();

        if !MECHANISMS.contains(&mechanism.as_str()) {
            settings.refuse("mechanism", format!("must be one of {}", MECHANISMS.join(", ")));
        }
        if !COMPRESSIONS.contains(&compression.as_str()) {
            settings.refuse("compression", format!("must be one of {}", COMPRESSIONS.join(", ")));
        }
        if brokers.as_ref().is_some_and(|brokers| brokers.is_empty() || !brokers.iter().all(|broker| is_address(broker))) {
            settings.refuse("brokers", "must be an array of addresses such as \"kafka-1.internal:9092\"");
        }
        if cert_file.is_some() != key_file.is_some() {
            settings.refuse("cert_file", "cert_file and key_file go together");
        }
        if username.is_some() != password.is_some() {
            settings.refuse("username", "username and password go together");
        }
        let options = options.iter().filter_map(|option| match split(option) {
            Ok(option) => Some(option),
            Err(problem) => {
                settings.refuse("options", problem);
                None
            }
        });
        let options = options.collect();
        Some(Self {
            brokers: settings.require("brokers", brokers)?,
            client_id: client_id.unwrap_or_else(|| "pgoutbox".to_owned()),
            // Naming an authority asks for TLS.
            tls: tls.unwrap_or(ca_file.is_some() || cert_file.is_some()),
            ca_file,
            cert_file,
            key_file,
            username,
            password,
            mechanism,
            compression,
            create_topics,
            timeout,
            options,
        })
    }

    /// Whether this program can do what is asked for. Connects to nothing.
    pub(super) fn usable(&self) -> Result<(), String> {
        if !cfg!(feature = "kafka-tls") && (self.tls || self.username.is_some()) {
            return Err("this program was built without the feature kafka-tls, which TLS and passwords for Kafka need".to_owned());
        }
        // librdkafka looks at the values; its words name the option, never a password.
        self.for_sending().create_native_config().map(drop).map_err(|error| match error {
            rdkafka::error::KafkaError::ClientConfig(_, problem, option, _) => format!("{option}: {problem}"),
            other => other.to_string(),
        })
    }

    /// The settings of the producer.
    pub(super) fn for_sending(&self) -> ClientConfig {
        let milliseconds = self.timeout.as_millis();
        let mut config = self.to_connect();
        config
            // As Java's clients do, so that both agree where a key belongs.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .set("topic.metadata.propagation.max.ms", (milliseconds / 2).min(5_000).to_string());
        for (name, value) in &self.options {
            config.set(name, value);
        }
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.codec", &self.compression)
            .set("message.timeout.ms", milliseconds.to_string())
            .set("allow.auto.create.topics", self.create_topics.to_string());
        config
    }

    /// The settings of a client that looks and creates nothing.
    pub(super) fn for_looking(&self) -> ClientConfig {
        let mut config = self.to_connect();
        config.set("allow.auto.create.topics", "false");
        config
    }

    fn to_connect(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Whatever it would log, a report says.
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", &self.client_id)
            .set("socket.keepalive.enable", "true")
            .set("socket.timeout.ms", self.timeout.as_millis().to_string())
            .set("socket.connection.setup.timeout.ms", "5000")
            // A broker that is back is found soon; the relay's breaker keeps attempts few meanwhile.
            .set("reconnect.backoff.max.ms", "1000");
        let protocol = match (self.tls, self.username.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        if protocol != "plaintext" {
            config.set("security.protocol", protocol);
        }
        for (name, path) in
            [("ssl.ca.location", &self.ca_file), ("ssl.certificate.location", &self.cert_file), ("ssl.key.location", &self.key_file)]
        {
            if let Some(path) = path {
                config.set(name, path.to_string_lossy());
            }
        }
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            config.set("sasl.mechanism", &self.mechanism).set("sasl.username", username).set("sasl.password", password.expose_secret());
        }
        config
    }
}

fn is_address(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        && !broker.contains(|c: char| c.is_whitespace() || c == ',' || c == '/')
}

fn split(option: &str) -> Result<(String, String), String> {
    let (name, value) = option.split_once('=').ok_or_else(|| format!("{option:?} should be NAME=VALUE"))?;
    if name == "partitioner" && !PARTITIONERS.contains(&value) {
        let known = PARTITIONERS.join(", ");
        Err(format!("the partitioner {value:?} would put the records of one key into any partition, or is not known; there are {known}"))
    } else if OPTIONS.contains(&name) {
        Ok((name.to_owned(), value.to_owned()))
    } else {
        Err(format!("{name:?} may not be set here; those of librdkafka's options that may are {}", OPTIONS.join(", ")))
    }
}
