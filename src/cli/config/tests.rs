//! Tests of the configuration. Each has its own file and environment.

use std::io::Write;

use std::time::Duration;

use super::*;
use crate::sinks::CONFIGURED;

pub(super) const URL: (&str, &str) = ("DATABASE_URL", "postgres://relay:hunter2@db.internal/shop");

pub(super) fn sources(file: &str, environment: &[(&str, &str)]) -> (Sources, tempfile::NamedTempFile) {
    let mut kept = tempfile::NamedTempFile::new().unwrap();
    kept.write_all(file.as_bytes()).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    (Sources { file: Some(kept.path().to_owned()), environment, ..Sources::default() }, kept)
}

pub(super) fn load(file: &str, environment: &[(&str, &str)]) -> Config {
    let (sources, _kept) = sources(file, environment);
    Config::load(&sources, CONFIGURED).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn mistakes(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let (sources, kept) = sources(file, environment);
    let error = Config::load(&sources, CONFIGURED).unwrap_err();
    let path = kept.path().to_str().unwrap();
    error.mistakes.iter().map(|mistake| mistake.to_string().replace(path, "FILE")).collect()
}

#[test]
fn the_manual_contains_the_defaults_and_every_key() {
    let (sources, _kept) = sources(MANUAL, &[URL]);
    let (mut config, keys, mistakes) = Config::read(&sources, CONFIGURED);
    assert_eq!(mistakes, []);
    let defaults = Config::new(URL.1.into());
    config.relay.name.clone_from(&defaults.relay.name);
    assert_eq!(format!("{config:?}"), format!("{defaults:?}"));

    let mut section = String::new();
    let mut listed = Vec::new();
    let built = |section: &str| {
        section
            .strip_prefix("sinks.")
            .is_none_or(|kind| crate::sinks::CONFIGURED.iter().any(|one| one.name == kind))
    };
    let mut commented = false;
    for line in MANUAL.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            assert!(commented, "{section}.{key} has no comment");
            listed.extend(built(&section).then(|| format!("{section}.{key}")));
        }
        commented = line.starts_with('#');
    }
    assert_eq!(listed, keys);
}

#[test]
fn the_commented_keys_of_the_manual_are_valid() {
    let shown: String = MANUAL
        .lines()
        .map(|line| if line.contains(" = ") { line.trim_start_matches("# ") } else { line })
        .collect::<Vec<_>>()
        .join("\n");
    let config =
        load(&shown, &[("PGOUTBOX_HTTP_TOKEN", "secret"), ("PGOUTBOX_HTTP_JWT_SECRET", "another secret")]);
    assert_eq!(config.relay.name, "relay-1");
    assert_eq!(config.egress.deny_ports.unwrap().len(), 14);
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let file = "[database]\nurl = 'postgres://file/d'\n[relay]\npermits = 7\nlease = '1m'";
    let host = |config: &Config| config.servers().unwrap().last().get_host().to_owned();
    assert_eq!(host(&load(file, &[])), "file");
    assert_eq!(host(&load(file, &[URL])), "db.internal");
    let both = [URL, ("PGOUTBOX__DATABASE__URL", "postgres://variable/d"), ("PGOUTBOX__RELAY__PERMITS", "8")];
    let config = load(file, &both);
    assert_eq!(
        (host(&config).as_str(), config.relay.permits, config.relay.lease),
        ("variable", 8, Duration::from_secs(60))
    );
    let (mut sources, _kept) = sources(file, &both);
    sources.flags.push(("database.url", "--database-url", "postgres://flag/d".to_owned()));
    assert_eq!(host(&Config::load(&sources, CONFIGURED).unwrap()), "flag");
}

#[test]
fn all_mistakes_are_reported_at_once_with_value_and_origin() {
    let found = mistakes(
        "[relay]\npermits = 0\nlease = '1s'\npermit = 5\n[archive]\ndays = 5",
        &[
            URL,
            ("PGOUTBOX__RELAY__POLL", "often"),
            ("PGOUTBOX__RELAY__DRAINS", "5s"),
            ("PGOUTBOX__DATABASE__POOL_SIZE", "101"),
        ],
    );
    assert_eq!(found.len(), 7, "{found:#?}");
    for expected in [
        "database.pool_size = \"101\" (PGOUTBOX__DATABASE__POOL_SIZE): must be a whole number from 1 to 100",
        "relay.permits = 0 (FILE): must be a whole number from 1 to 100000",
        "relay.lease = \"1s\" (FILE): must be from 3s to 10m",
        "relay.poll = \"often\" (PGOUTBOX__RELAY__POLL): \"often\" is not a duration",
        "relay.drains (PGOUTBOX__RELAY__DRAINS): unknown key; [relay] has name, environment, permits",
        "relay.permit (FILE): unknown key",
        "archive (FILE): unknown section; known sections are database, relay, retention, egress, secrets, http",
    ] {
        assert!(found.iter().any(|mistake| mistake.starts_with(expected)), "{expected}\n{found:#?}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let found = mistakes(
        "[http]\ntoken = 'hunter2 x'\n[egress]\nproxy = 'ftp://u:hunter2@p'\n\
                 [databas]\nurl = 'postgres://u:hunter2@h'",
        &[("DATABASE_URL", "postgres://u:hunter2@h/d?tls=1"), ("PGOUTBOX__DATABASE__LISTEN_URL", "hunter2")],
    );
    assert_eq!(found.len(), 5, "{found:#?}");
    assert!(!found.join("\n").contains("hunter2"), "{found:#?}");
    assert!(
        found[0].starts_with("database.url = [redacted] (DATABASE_URL): has the unknown parameter \"tls\""),
        "{found:#?}"
    );
    let config = load("[http]\ntoken = 'hunter2'", &[URL]);
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_broken_line_of_the_file_is_named_but_not_shown() {
    let found = mistakes("[database]\nurl = 'postgres://u:hunter2@h/d", &[URL]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with("FILE: ") && found[0].contains("line 2") && !found[0].contains("hunter2"),
        "{found:#?}"
    );
}

#[test]
fn a_token_of_digits_stays_text() {
    let config = load(
        "",
        &[
            URL,
            ("PGOUTBOX__HTTP__TOKEN", "00123456789012345678901234567890"),
            ("PGOUTBOX__RELAY__NAME", "007"),
        ],
    );
    assert_eq!(config.http.token.unwrap().expose_secret(), "00123456789012345678901234567890");
    assert_eq!(config.relay.name, "007");
}

#[test]
fn secrets_can_be_references() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "postgres://u:pass@from-file/d").unwrap();
    let reference = format!("file:{}", file.path().display());
    let config = load("[http]\ntoken = 'env:TOKEN'", &[("DATABASE_URL", &reference), ("TOKEN", "open")]);
    assert_eq!(config.servers().unwrap().last().get_host(), "from-file");
    assert_eq!(config.http.token.unwrap().expose_secret(), "open");
    let found = mistakes("", &[("DATABASE_URL", "env:MISSING")]);
    assert_eq!(
        found,
        ["database.url = [redacted] (DATABASE_URL): the environment variable MISSING is not set"]
    );
}

#[test]
fn off_switches_polling_and_http_off() {
    let config = load("[relay]\npoll = 'off'", &[URL, ("PGOUTBOX__HTTP__LISTEN", "off")]);
    assert_eq!((config.relay.poll, config.http.listen), (None, None));
    assert!(config.warnings()[0].contains("relay.poll is off"));
}

#[test]
fn a_variable_with_one_underscore_is_warned_of_unless_it_may_be_a_reference() {
    let variables =
        [URL, ("PGOUTBOX_RELAY_PERMITS", "8"), ("PGOUTBOX_HTTP_TOKEN", "a"), ("PGOUTBOX_PORT", "tcp://a")];
    let config = load("", &variables);
    assert_eq!(config.warnings(), ["PGOUTBOX_RELAY_PERMITS is no setting; write PGOUTBOX__RELAY__PERMITS"]);
    assert_eq!(load("", &[URL]).warnings(), [""; 0]);
}

#[test]
fn an_address_others_can_reach_needs_a_token() {
    for listen in ["0.0.0.0:7411", "[::]:7411", "192.168.1.5:80"] {
        let found = mistakes("", &[URL, ("PGOUTBOX__HTTP__LISTEN", listen)]);
        assert!(found.len() == 1 && found[0].contains("needs http.token"), "{found:#?}");
        assert!(
            load("", &[URL, ("PGOUTBOX__HTTP__LISTEN", listen), ("PGOUTBOX__HTTP__TOKEN", "1")])
                .http
                .token
                .is_some()
        );
    }
    assert!(load("", &[URL, ("PGOUTBOX__HTTP__LISTEN", "[::1]:0")]).http.token.is_none());
}

#[test]
fn limits_hold_at_both_ends() {
    for (name, inside, outside) in [
        ("RELAY__PERMITS", ["64", "100000"], ["0", "100001"]),
        ("RELAY__LEASE", ["3s", "10m"], ["2999ms", "601s"]),
        ("RELAY__DRAIN", ["0s", "1h"], ["5", "61m"]),
        ("RELAY__POLL", ["100ms", "1h"], ["99ms", "2h"]),
        ("DATABASE__POOL_SIZE", ["1", "100"], ["0", "-1"]),
        ("DATABASE__POOLER", ["true", "false"], ["yes", "1"]),
        ("RELAY__ATTEMPT_LOG", ["all", "off"], ["none", ""]),
        ("EGRESS__ALLOW", ["10.0.0.0/8,fd00::/8", "127.0.0.1"], ["10.0.0.1/8", "10.0.0.0/33"]),
        ("EGRESS__DENY_PORTS", ["22,25", "0"], ["65536", "ssh"]),
        ("TELEMETRY__LOG", ["info,pgoutbox=debug", "off"], ["a=b=c", ""]),
        ("TELEMETRY__FORMAT", ["text", "json"], ["xml", "TEXT"]),
        ("RELAY__NAME", ["a", "host-1"], ["a b", ""]),
        ("HTTP__LISTEN", ["127.0.0.1:0", "off"], ["7411", "example.com:80"]),
        ("HTTP__PROBES", ["0.0.0.0:7413", "off"], ["7413", "example.com:80"]),
    ] {
        let name = format!("PGOUTBOX__{name}");
        for value in inside {
            load("", &[URL, (&name, value)]);
        }
        for value in outside {
            assert_eq!(mistakes("", &[URL, (&name, value)]).len(), 1, "{name}={value}");
        }
    }
}

#[test]
fn permits_of_one_subscription_are_at_most_all_permits() {
    assert_eq!(load("[relay]\npermits = 5", &[URL]).relay.permits_per_subscription, 5);
    assert_eq!(mistakes("[relay]\npermits = 5\npermits_per_subscription = 6", &[URL]).len(), 1);
}

#[test]
fn a_relay_that_would_never_find_work_is_refused() {
    let found = mistakes("[database]\npooler = true\n[relay]\npoll = 'off'", &[URL]);
    assert!(found.len() == 1 && found[0].contains("database.listen_url"), "{found:#?}");
}

#[test]
fn a_missing_address_or_file_is_reported_and_a_variable_must_name_a_key() {
    assert!(mistakes("", &[])[0].starts_with("database.url: is not set; set DATABASE_URL"));
    let missing = Sources {
        file: Some("/nowhere/pgoutbox.toml".into()),
        environment: vec![(URL.0.into(), URL.1.into())],
        ..Sources::default()
    };
    assert!(
        Config::load(&missing, CONFIGURED)
            .unwrap_err()
            .to_string()
            .contains("/nowhere/pgoutbox.toml: cannot be read")
    );
    for name in ["PGOUTBOX__RELAY", "PGOUTBOX__RELAY__PERMITS__MAX", "PGOUTBOX____PERMITS", "PGOUTBOX__"] {
        assert!(mistakes("", &[URL, (name, "5")])[0].contains("does not name a key"), "{name}");
    }
    load("", &[URL, ("PGOUTBOX_PORT", "tcp://10.0.0.1:80"), ("PGOUTBOX_SERVICE_HOST", "10.0.0.1")]);
}

#[test]
fn the_variables_of_postgresql_are_enough() {
    let config = load("", &[("PGHOST", "/run/postgresql")]);
    assert!(config.servers().is_ok());
}

#[test]
fn a_section_of_sinks_without_effect_is_refused_with_a_fix() {
    for (file, expected) in [
        (
            "[sinks.postgres.connections.default]\nurl = 'postgres://u:hunter2@h/d'",
            "sinks.postgres.connections.default (FILE): the connection default is \
             [sinks.postgres] itself; move",
        ),
        (
            "[sinks.function]\nworkers = 5",
            "sinks.function (FILE): this sink has no configuration; remove this section",
        ),
        (
            "[sinks.stdout]\npath = 'a'",
            "sinks.stdout (FILE): this sink has no configuration; remove this section",
        ),
        (
            "[sinks.webhook]\nproxy = 'hunter2'",
            "sinks.webhook (FILE): webhooks are configured in [egress]; remove this section",
        ),
        ("[sinks.sqs]\nqueue = 'a'", "sinks.sqs (FILE): unknown sink; known sinks are postgres"),
        (
            "[sinks]\npostgres = 'hunter2'",
            "sinks.postgres (FILE): must be a section: write [sinks.postgres] with its keys",
        ),
        (
            "[sinks.postgres.connections]\nbilling = 'postgres://u:hunter2@h/d'",
            "sinks.postgres.connections.billing (FILE): must be a section: write [sinks.postgres.connections",
        ),
        ("[sinks.postgres]\nconnections = 'hunter2'", "sinks.postgres.connections (FILE): must be a section"),
    ] {
        let found = mistakes(file, &[URL]);
        assert!(
            found.len() == 1 && found[0].starts_with(expected) && !found[0].contains("hunter2"),
            "{expected}\n{found:#?}"
        );
    }
    let both = load(
        "[sinks.postgres]\nurl = 'postgres://h/d'\n\
                 [sinks.postgres.connections.billing]\nurl = 'postgres://h/d'",
        &[URL],
    );
    assert_eq!(both.sinks.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["default", "billing"]);
}

#[test]
fn every_file_that_settings_refer_to_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let address = folder.path().join("address");
    std::fs::write(&address, "postgres://relay@db/shop?sslmode=verify-full&sslrootcert=/ca/db.pem\n")
        .unwrap();
    let reference = format!("file:{}", address.display());
    let file = "[egress]\nca_file = '/ca/receivers.pem'\n\
                [sinks.nats]\nservers = ['tls://nats:4222']\ncreds_file = '/ca/nats.creds'\n\
                cert_file = '/ca/nats.pem'\nkey_file = '/ca/nats.key'\n";
    let (sources, _kept) = sources(file, &[("DATABASE_URL", &reference)]);
    let (config, _, _) = Config::read(&sources, CONFIGURED);
    let mut files: Vec<_> = config.files.iter().map(|path| path.to_str().unwrap()).collect();
    files.sort_unstable();
    let mut expected =
        vec!["/ca/db.pem", "/ca/nats.creds", "/ca/nats.key", "/ca/nats.pem", "/ca/receivers.pem"];
    expected.push(address.to_str().unwrap());
    expected.sort_unstable();
    assert_eq!(files, expected);
}

#[test]
fn tokens_of_users_are_configured_in_a_section_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("jwks.json");
    let of_file = format!("file:{}", keys.display());
    let text = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}]}"#;
    let point = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
    std::fs::write(&keys, text.replace("AAAA", point)).unwrap();
    let file = format!("[http.jwt]\nsecret = 'env:SECRET'\njwks = '{of_file}'\nissuer = 'i'\naudience = 'a'");
    let long = "a secret that has at least 32 bytes";
    let config = load(&file, &[URL, ("SECRET", long)]);
    let jwt = config.http.jwt.as_ref().unwrap();
    assert_eq!(jwt.secret.as_ref().unwrap().expose_secret(), long);
    assert!(matches!(jwt.jwks, Some(http::Jwks::File(_))));
    assert_eq!((jwt.issuer.as_deref(), jwt.audience.as_deref()), (Some("i"), Some("a")));
    assert_eq!(config.files, std::slice::from_ref(&keys));
    assert_eq!(config.warnings(), [""; 0]);
    assert!(!format!("{config:?}").contains(long));

    let secret = ("PGOUTBOX__HTTP__JWT__SECRET", "short");
    assert!(load("", &[URL, secret]).warnings()[0].contains("fewer than 32 bytes"));
    assert!(load("[http.jwt]", &[URL]).http.jwt.is_none());
    for proof in [secret, ("PGOUTBOX__HTTP__JWT__JWKS", "https://login.example.com/jwks.json")] {
        load("", &[URL, ("PGOUTBOX__HTTP__LISTEN", "0.0.0.0:7411"), proof]);
    }
    std::fs::write(&keys, text).unwrap();
    assert!(mistakes(&file, &[URL, ("SECRET", long)])[0].contains("has no key for RS256"));
}

#[test]
fn a_mistake_in_the_section_of_tokens_is_named() {
    for (file, named) in [
        (
            "[http.jwt]\nsecrets = 'a'",
            "http.jwt.secrets (FILE): unknown key; [http.jwt] has secret, jwks, issuer",
        ),
        ("[http]\njwt = 'a'", "http.jwt (FILE): must be a section: write [http.jwt] with its keys"),
        ("[http.jwt]\nissuer = 'i'", "http.jwt.issuer = \"i\" (FILE): is of no use without"),
        ("[http.jwt]\naudience = 'i'", "http.jwt.audience = \"i\" (FILE): is of no use without"),
        ("[http.jwt]\nsecret = 'env:NOWHERE'", "the environment variable NOWHERE is not set"),
        ("[http.jwt]\njwks = 'file:/nowhere/jwks.json'", "reading /nowhere/jwks.json"),
        ("[http.jwt]\njwks = 'file:/dev/zero'", "more than 262144 bytes"),
        ("[http.jwt]\njwks = 'http://login.example.com/keys'", "http: on this machine"),
        ("[http.jwt]\njwks = 'http://127.0.0.1.evil.example/keys'", "http: on this machine"),
        ("[http.jwt]\njwks = 'ftp://127.0.0.1/keys'", "http: on this machine"),
        ("[http.jwt]\njwks = 'keys.json'", "must be file:/path"),
        (
            "[http.jwt]\njwks = 'https://user:hunter2@login.example.com/'",
            "[redacted] (FILE): must not contain cred",
        ),
        ("[http]\norigins = ['*']", "\"*\" is not an origin; write its scheme and host"),
        ("[http]\norigins = 'https://a.example/page'", "is not an origin"),
    ] {
        let found = mistakes(file, &[URL]);
        assert!(found.len() == 1 && found[0].contains(named), "{file}: {found:#?}");
        assert!(!found[0].contains("hunter2"), "{found:?}");
    }
    let origins = ("PGOUTBOX__HTTP__ORIGINS", "https://a.example/,http://localhost:3000");
    assert_eq!(load("", &[URL, origins]).http.origins, ["https://a.example", "http://localhost:3000"]);
    for jwks in ["http://localhost:8080/keys", "http://127.0.0.2/keys", "http://[::1]:1/keys"] {
        load("", &[URL, ("PGOUTBOX__HTTP__JWT__JWKS", jwks)]);
    }
    assert!(mistakes("", &[URL, ("PGOUTBOX__HTTP__TOKEN__SECRET", "a")])[0].contains("does not name a key"));
}
