//! Settings of `[sinks.kafka]`, and the client's settings made from them. Opens no connection.

use std::time::Duration;

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use secrecy::{ExposeSecret, SecretString};

use crate::sink::{Settings, tls::TlsFiles};

const COMPRESSIONS: &[&str] = &["none", "gzip", "snappy", "lz4"];
const MECHANISMS: &[&str] = &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
/// Partitioners that put all records of one key into one partition.
const PARTITIONERS: &[&str] =
    &["consistent", "consistent_random", "murmur2", "murmur2_random", "fnv1a", "fnv1a_random"];
/// Options of librdkafka that may be set. None of them can break a promise of the sink.
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

/// Connection to a Kafka cluster: `[sinks.kafka]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bootstrap brokers, each `HOST:PORT`.
    pub brokers: Vec<String>,
    /// Client id that brokers see.
    pub client_id: String,
    /// Whether to use TLS.
    pub tls: bool,
    /// Certificates for `tls`.
    pub tls_files: TlsFiles,
    /// SASL user; requires `password`.
    pub username: Option<String>,
    /// SASL password.
    pub password: Option<SecretString>,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    /// `none`, `gzip`, `snappy` or `lz4`.
    pub compression: String,
    /// Whether the cluster may create missing topics.
    pub create_topics: bool,
    /// Time for which librdkafka tries to deliver a record, 1 s to 55 s.
    pub timeout: Duration,
    /// Further options of librdkafka, each `NAME=VALUE`.
    pub options: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            client_id: "pgoutbox".to_owned(),
            tls: false,
            tls_files: TlsFiles::default(),
            username: None,
            password: None,
            mechanism: "SCRAM-SHA-512".to_owned(),
            compression: "none".to_owned(),
            create_topics: false,
            timeout: Duration::from_secs(10),
            options: Vec::new(),
        }
    }
}

impl Config {
    pub(super) fn read(settings: &mut Settings<'_>) -> Option<Self> {
        let default = Self::default();
        let brokers = settings.list("brokers");
        let client_id = settings.text("client_id");
        let tls = settings.switch("tls");
        let tls_files = TlsFiles::read(settings);
        let config = Self {
            client_id: client_id.unwrap_or(default.client_id),
            // Setting certificates enables TLS.
            tls: tls.unwrap_or(tls_files.ca_file.is_some() || tls_files.cert_file.is_some()),
            tls_files,
            username: settings.text("username"),
            password: settings.secret("password"),
            mechanism: settings.text("mechanism").unwrap_or(default.mechanism),
            compression: settings.text("compression").unwrap_or(default.compression),
            create_topics: settings.switch("create_topics").unwrap_or(false),
            timeout: settings
                .duration("timeout", Duration::from_secs(1)..=Duration::from_secs(55))
                .unwrap_or(default.timeout),
            options: settings.list("options").unwrap_or_default(),
            brokers: brokers.clone().unwrap_or_default(),
        };
        let is_missing = brokers.is_none();
        settings
            .refuse_all(config.problems().into_iter().filter(|(key, _)| !(is_missing && *key == "brokers")));
        settings.require("brokers", brokers).map(|_| config)
    }

    /// Invalid keys, each with a message.
    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !MECHANISMS.contains(&self.mechanism.as_str()) {
            problems.push(("mechanism", format!("must be one of {}", MECHANISMS.join(", "))));
        }
        if !COMPRESSIONS.contains(&self.compression.as_str()) {
            problems.push(("compression", format!("must be one of {}", COMPRESSIONS.join(", "))));
        }
        if self.brokers.is_empty() || !self.brokers.iter().all(|broker| is_address(broker)) {
            problems.push((
                "brokers",
                "must be an array of addresses such as \"kafka-1.internal:9092\"".to_owned(),
            ));
        }
        problems.extend(self.tls_files.problem());
        if self.username.is_some() != self.password.is_some() {
            problems.push(("username", "must be set together with password".to_owned()));
        }
        problems.extend(self.options.iter().filter_map(|option| Some(("options", split(option).err()?))));
        problems
    }

    /// Checks the configuration without connecting.
    pub(super) fn usable(&self) -> Result<(), String> {
        if let Some((key, problem)) = self.problems().into_iter().next() {
            return Err(format!("{key}: {problem}"));
        }
        // librdkafka checks the values. Its messages contain the name of the option, never a
        // password.
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
            // The default of Java clients, so that all clients put a key into the same partition.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .set("topic.metadata.propagation.max.ms", (milliseconds / 2).min(5_000).to_string());
        for (name, value) in self.options.iter().filter_map(|option| split(option).ok()) {
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

    /// The settings of a client that only reads metadata.
    pub(super) fn for_metadata(&self) -> ClientConfig {
        let mut config = self.to_connect();
        config.set("allow.auto.create.topics", "false");
        config
    }

    fn to_connect(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Reports contain what it would log.
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", &self.client_id)
            .set("socket.keepalive.enable", "true")
            .set("socket.timeout.ms", self.timeout.as_millis().to_string())
            .set("socket.connection.setup.timeout.ms", "5000")
            // Reconnect soon after a broker is back; the relay's breaker bounds the attempts
            // meanwhile.
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
        let TlsFiles { ca_file, cert_file, key_file } = &self.tls_files;
        let files = [
            ("ssl.ca.location", ca_file),
            ("ssl.certificate.location", cert_file),
            ("ssl.key.location", key_file),
        ];
        for (name, path) in files {
            if let Some(path) = path {
                config.set(name, path.to_string_lossy());
            }
        }
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            config
                .set("sasl.mechanism", &self.mechanism)
                .set("sasl.username", username)
                .set("sasl.password", password.expose_secret());
        }
        config
    }
}

fn is_address(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        && !broker.contains(|c: char| c.is_whitespace() || c == ',' || c == '/')
}

fn split(option: &str) -> Result<(&str, &str), String> {
    let (name, value) = option.split_once('=').ok_or_else(|| format!("{option:?} must be NAME=VALUE"))?;
    if name == "partitioner" && !PARTITIONERS.contains(&value) {
        let known = PARTITIONERS.join(", ");
        Err(format!(
            "the partitioner {value:?} is unknown or spreads records of one key over partitions; \
             use one of {known}"
        ))
    } else if OPTIONS.contains(&name) {
        Ok((name, value))
    } else {
        Err(format!("{name:?} may not be set; the options that may be set are {}", OPTIONS.join(", ")))
    }
}
