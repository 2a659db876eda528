//! Parses addresses of databases. Parameters that sqlx would ignore are refused: a misspelt `sslmode` must
//! not mean no encryption.

use sqlx::postgres::PgConnectOptions;

/// Parameters that are allowed in the query of an address.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
    "ssl-mode",
    "ssl-root-cert",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
];

/// Parses an address.
///
/// # Errors
/// A message that says what to write, without the address, which may contain a password.
pub(crate) fn parse(address: &str) -> Result<PgConnectOptions, String> {
    let url = url::Url::parse(address)
        .map_err(|error| format!("is not an address ({error}); write postgres://user@host:5432/database"))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(format!("begins with {}:; write postgres://user@host:5432/database", url.scheme()));
    }
    for (name, _) in url.query_pairs() {
        let known = PARAMETERS.contains(&&*name) || (name.starts_with("options[") && name.ends_with(']'));
        if !known {
            return Err(format!(
                "has the unknown parameter {name:?}; remove it, or use one of {}",
                PARAMETERS[..12].join(", ")
            ));
        }
    }
    address.parse().map_err(|error: sqlx::Error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        format!("cannot be used: {cause}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_without_effect_is_refused_and_named() {
        for address in [
            "postgres://h/d?ssl_mode=require",
            "postgres://h/d?sslmode=require&connect_timeout=5",
            "postgres://h/d?SSLMODE=x",
        ] {
            assert!(parse(address).unwrap_err().contains("parameter"), "{address}");
        }
        for address in [
            "postgres://h/d",
            "postgresql://u:p@h:1/d?sslmode=verify-full&options[search_path]=x",
            "postgres:///d?host=/run",
        ] {
            assert!(parse(address).is_ok(), "{address}");
        }
    }

    #[test]
    fn other_addresses_are_refused_without_being_shown() {
        for address in [
            "mysql://u:hunter2@h/d",
            "hunter2",
            "postgres://u:hunter2@h/d?sslmode=maybe",
            "postgres://u:hunter2@h:99999/d",
        ] {
            let problem = parse(address).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
