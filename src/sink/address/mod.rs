//! Turns the address of a database into options, for everything that connects to one: the relay, its
//! listener, the command line and the sink `postgres`. Takes the forms of libpq, `postgres://…` and
//! `host=… dbname=…`, and refuses what would have no effect: a misspelt `sslmode` must not mean no
//! encryption.

use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

use super::servers::Wanted;

/// A word that an address sets, and its value.
type Pair = (String, String);

/// Words that are passed on to the driver.
const TAKEN: &[&str] = &[
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

/// Words with values that say what is done anyway.
const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    ("channel_binding", &["prefer", "disable"]),
    ("client_encoding", &["auto", "UTF8", "utf8", "UTF-8", "utf-8"]),
    ("gssencmode", &["prefer", "disable"]),
    ("sslcompression", &["0"]),
    ("sslsni", &["1"]),
    ("target_session_attrs", &["any", "read-write", "primary"]),
];

/// Words of other programs and of libpq that cannot be obeyed, and what to do.
const REFUSED: &[(&str, &str)] = &[
    (
        "channel_binding",
        "channel_binding=require is not supported; remove it, and write sslmode=verify-full, \
         which lets nobody stand between",
    ),
    ("client_encoding", "client_encoding must be UTF8; remove it"),
    ("connect_timeout", "the parameter \"connect_timeout\" has no effect; remove it: the limit is 5 s"),
    ("gssencmode", "gssencmode=require is not supported; remove it, and write sslmode=verify-full"),
    ("passfile", "passfile is not read from an address; set PGPASSFILE instead"),
    ("pgbouncer", "pgbouncer is no parameter here; remove it and set database.pooler = true"),
    ("schema", "schema is no parameter here; remove it: the schema of pgoutbox is always outbox"),
    ("service", "service is not supported; write its host, port, dbname and user"),
    ("sslcompression", "sslcompression is not supported; remove it"),
    ("sslsni", "sslsni cannot be switched off; remove it"),
    (
        "target_session_attrs",
        "target_session_attrs must be read-write, primary or any, for pgoutbox writes; remove it",
    ),
];

const FORM: &str = "write postgres://user@host:5432/database";

/// Most servers that an address may name.
const MOST_SERVERS: usize = 8;

/// Parses an address of one server.
///
/// # Errors
/// A message that says what to write, without the address, which may contain a password.
pub(crate) fn parse(address: &str) -> Result<PgConnectOptions, String> {
    let pairs = pairs(address)?;
    match each_server(&pairs)?.as_slice() {
        [one] => options(one),
        _ => {
            Err("names several hosts; write one that always leads to the primary, such as a virtual address \
                  or a proxy"
                .to_owned())
        }
    }
}

/// Parses an address of one server or several, and which of them is wanted.
///
/// # Errors
/// As [`parse`].
pub(super) fn parse_servers(address: &str) -> Result<(Vec<PgConnectOptions>, Option<Wanted>), String> {
    const ATTRIBUTE: &str = "target_session_attrs";
    let (attributes, pairs): (Vec<Pair>, Vec<Pair>) =
        pairs(address)?.into_iter().partition(|(name, _)| name == ATTRIBUTE);
    let wanted = attributes.last().map(|(_, value)| {
        Wanted::of(value).ok_or_else(|| {
            format!("has an unknown {ATTRIBUTE}; use one of {}", Wanted::ALL.map(Wanted::word).join(", "))
        })
    });
    let wanted = wanted.transpose()?;
    let servers = each_server(&pairs)?.iter().map(|one| options(one)).collect::<Result<_, _>>()?;
    Ok((servers, wanted))
}

/// The words of each server: of lists such as `host=a,b port=5432,5433` it has its own entry.
fn each_server(pairs: &[Pair]) -> Result<Vec<Vec<Pair>>, String> {
    const LISTS: [&str; 3] = ["host", "hostaddr", "port"];
    let list = |name: &str| -> Vec<&str> {
        let said = pairs.iter().rev().find(|(other, value)| other == name && !value.is_empty());
        said.map(|(_, value)| value.split(',').collect()).unwrap_or_default()
    };
    let lists = LISTS.map(list);
    let [hosts, addresses, ports] = &lists;
    let count = hosts.len().max(addresses.len()).max(1);
    if [hosts, addresses].iter().any(|list| !list.is_empty() && list.len() != count) {
        return Err("must name as many in host as in hostaddr".to_owned());
    }
    if ports.len() > 1 && ports.len() != count {
        return Err("must have one port for all hosts, or as many ports as hosts".to_owned());
    }
    if count > MOST_SERVERS {
        return Err(format!("names more than {MOST_SERVERS} hosts"));
    }
    if count == 1 {
        return Ok(vec![pairs.to_vec()]);
    }
    let common: Vec<Pair> =
        pairs.iter().filter(|(name, _)| !LISTS.contains(&name.as_str())).cloned().collect();
    let of_one = |index: usize| {
        let mut pairs = common.clone();
        for (name, list) in LISTS.iter().zip(&lists) {
            let value = list.get(if list.len() == 1 { 0 } else { index });
            pairs.extend(
                value
                    .filter(|value| !value.is_empty())
                    .map(|value| ((*name).to_owned(), (*value).to_owned())),
            );
        }
        pairs
    };
    Ok((0..count).map(of_one).collect())
}

fn pairs(address: &str) -> Result<Vec<Pair>, String> {
    let address = unquoted(address.trim());
    match address.split_once("://") {
        Some(("postgres" | "postgresql", rest)) => of_url(rest),
        Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.:".contains(c)) => {
            Err(format!("begins with {scheme}://; {FORM}"))
        }
        _ => of_words(address),
    }
}

/// Files that an address names, which must have been parsed.
pub(crate) fn files(address: &str) -> Vec<std::path::PathBuf> {
    let pairs = pairs(address).unwrap_or_default();
    let is_file =
        |name: &str| ["sslrootcert", "sslcert", "sslkey"].contains(&name) || name.starts_with("ssl-c");
    pairs
        .into_iter()
        .filter(|(name, value)| is_file(name) && value != "system")
        .map(|(_, value)| value.into())
        .collect()
}

/// Without the quotes around it that some programs keep when they read a file of variables.
fn unquoted(address: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| address.strip_prefix(quote)?.strip_suffix(quote))
        .map_or(address, str::trim)
}

/// `user:password@host:port/database?name=value`, as libpq reads it: up to its `@` a login may contain any
/// letter but `/`.
fn of_url(rest: &str) -> Result<Vec<Pair>, String> {
    let (before_path, path) =
        rest.split_once('/').map_or((rest, None), |(before, path)| (before, Some(path)));
    let (login, place) = match before_path.rsplit_once('@') {
        // In `host?user=a@b` it is part of a parameter.
        Some((login, _)) if login.split_once('?').is_some_and(|(_, query)| is_word(query)) => (None, rest),
        Some((login, place)) => {
            (Some(login), &rest[rest.len() - place.len() - path.map_or(0, |p| p.len() + 1)..])
        }
        None => (None, rest),
    };
    let (place, query) = place.split_once('?').map_or((place, None), |(place, query)| (place, Some(query)));
    let (hosts, database) = place.split_once('/').map_or((place, ""), |(hosts, database)| (hosts, database));

    let mut pairs = Vec::new();
    let mut set = |name: &str, value: &str| -> Result<(), String> {
        pairs.push((name.to_owned(), decoded(value)?));
        Ok(())
    };
    let at_follows = database.contains('@') || query.is_some_and(|query| query.contains('@'));
    let places = hosts.split(',').map(|place| host_and_port(place, at_follows));
    let (hosts, ports): (Vec<&str>, Vec<&str>) = places.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
        if !user.is_empty() {
            set("user", user)?;
        }
        if let Some(password) = password {
            set("password", password)?;
        }
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        set("host", &hosts.join(","))?;
    }
    if ports.iter().any(|port| !port.is_empty()) {
        set("port", &ports.join(","))?;
    }
    if !database.is_empty() {
        set("dbname", database)?;
    }
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        let Some((name, value)) = parameter.split_once('=') else {
            return Err("has a parameter without a value; in a password write / as %2F, ? as %3F, @ as %40"
                .to_owned());
        };
        set(&decoded(name)?, value)?;
    }
    Ok(pairs)
}

/// Whether a query begins like `name=value`.
fn is_word(query: &str) -> bool {
    query.split_once('=').is_some_and(|(name, _)| {
        TAKEN.contains(&name) || name.starts_with("options[") || REFUSED.iter().any(|(word, _)| *word == name)
    })
}

/// The host without the brackets of an IPv6 address, and the port.
fn host_and_port(place: &str, at_follows: bool) -> Result<(&str, &str), String> {
    let (host, port) = match place.strip_prefix('[') {
        Some(inner) => {
            let Some((host, port)) = inner.split_once(']') else {
                return Err("has a [ without its ]; write [::1]:5432".to_owned());
            };
            (host, port.strip_prefix(':').unwrap_or(port))
        }
        None if place.matches(':').count() > 1 => {
            return Err("has an IPv6 address without brackets; write [::1]:5432".to_owned());
        }
        None => place.split_once(':').unwrap_or((place, "")),
    };
    if at_follows && !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("has a / in its login; write / in a password as %2F".to_owned());
    }
    Ok((host, port))
}

fn decoded(text: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    let broken = (0..bytes.len()).any(|at| {
        let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        bytes[at] == b'%' && !(is_hex(at + 1) && is_hex(at + 2))
    });
    if broken {
        return Err("has a % that begins no code; write % in a password as %25".to_owned());
    }
    match percent_decode_str(text).decode_utf8() {
        Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
        _ => Err("has a %-code that is no letter".to_owned()),
    }
}

/// `host=… dbname='…'`: values with spaces are quoted, and a backslash takes the next letter as it is.
fn of_words(address: &str) -> Result<Vec<Pair>, String> {
    let mut pairs = Vec::new();
    let mut rest = address;
    while !rest.is_empty() {
        let known = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let Some((name, after)) = rest.split_once('=').filter(|(name, _)| known(name.trim_end())) else {
            return Err(format!("is not an address; {FORM}"));
        };
        let after = after.trim_start();
        let (quoted, mut letters) = match after.strip_prefix('\'') {
            Some(inner) => (true, inner.char_indices()),
            None => (false, after.char_indices()),
        };
        let (mut value, mut closed) = (String::new(), !quoted);
        rest = "";
        let text = letters.as_str();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
                '\'' if quoted => {
                    closed = true;
                    rest = text[at + 1..].trim_start();
                    break;
                }
                letter if !quoted && letter.is_whitespace() => {
                    rest = text[at..].trim_start();
                    break;
                }
                letter => value.push(letter),
            }
        }
        if !closed {
            return Err("has a quote without its end; write ' in a value as \\'".to_owned());
        }
        pairs.push((name.trim_end().to_owned(), value));
    }
    if pairs.is_empty() { Err(format!("is empty; {FORM}")) } else { Ok(pairs) }
}

/// Checks the words and gives them to the driver, which adds what the environment and `.pgpass` say.
fn options(pairs: &[Pair]) -> Result<PgConnectOptions, String> {
    let start = "postgres:///?";
    let mut driver = url::form_urlencoded::Serializer::for_suffix(start.to_owned(), start.len());
    let said =
        |name: &str| pairs.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let verified = said("sslmode").or(said("ssl-mode"));
    for (name, value) in pairs {
        let is_option = name.starts_with("options[") && name.ends_with(']');
        match name.as_str() {
            "ssl" if value == "true" => {
                if verified.is_none() {
                    driver.append_pair("sslmode", "require");
                }
            }
            "sslrootcert" if value == "system" => match verified {
                None => drop(driver.append_pair("sslmode", "verify-full")),
                Some("verify-full") => {}
                Some(_) => return Err("has sslrootcert=system, which needs sslmode=verify-full".to_owned()),
            },
            "host" if said("hostaddr").is_some_and(|address| !address.is_empty()) => {
                if verified == Some("verify-full") {
                    return Err("has host and hostaddr, of which only one can be verified; remove hostaddr"
                        .to_owned());
                }
            }
            "port" if value.parse::<u16>().is_err() => {
                return Err("has a port that is not a number from 1 to 65535".to_owned());
            }
            _ if TAKEN.contains(&name.as_str()) || is_option => drop(driver.append_pair(name, value)),
            _ => refuse_without_effect(name, value)?,
        }
    }
    driver.finish().parse().map_err(|error: sqlx::Error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        format!("cannot be used: {cause}")
    })
}

fn refuse_without_effect(name: &str, value: &str) -> Result<(), String> {
    if WITHOUT_EFFECT.iter().any(|(word, values)| *word == name && values.contains(&value)) {
        return Ok(());
    }
    if let Some((_, instead)) = REFUSED.iter().find(|(word, _)| *word == name) {
        return Err((*instead).to_owned());
    }
    let harmless =
        name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_alphabetic() || b"_-".contains(&byte));
    Err(format!(
        "has the unknown parameter {}; remove it, or use one of {}",
        if harmless { format!("{name:?}") } else { "whose name is not shown".to_owned() },
        TAKEN[..12].join(", ")
    ))
}

#[cfg(test)]
mod tests;
