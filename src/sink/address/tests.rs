//! Addresses as people have them.

use super::*;

/// Host, port, user, database and whether there is a password, of addresses as people have them.
#[test]
fn the_forms_of_libpq_are_taken() {
    for (address, host, port, user, database) in [
        ("postgres://u@h/d", "h", 5432, "u", "d"),
        ("postgresql://u:p@h:1/d?sslmode=verify-full&options[search_path]=x", "h", 1, "u", "d"),
        ("postgres://u@[::1]/d", "::1", 5432, "u", "d"),
        ("postgres://u@[2001:db8::1234]:5433/d", "2001:db8::1234", 5433, "u", "d"),
        ("postgres://h?user=u&dbname=d", "h", 5432, "u", "d"),
        ("postgres://h?user=u@corp&dbname=d", "h", 5432, "u@corp", "d"),
        ("postgres://u%40corp:x@h/d", "h", 5432, "u@corp", "d"),
        ("postgres://u:a#b?c@h/d", "h", 5432, "u", "d"),
        ("postgres://u:a@b@h:6543/d", "h", 6543, "u", "d"),
        ("postgres://u:a%2Fb@h/d%20e", "h", 5432, "u", "d e"),
        ("\"postgres://u:p@h/d\"", "h", 5432, "u", "d"),
        ("'postgres://u:p@h/d'\n", "h", 5432, "u", "d"),
        ("postgres://u@h/d?sslmode=require&channel_binding=prefer", "h", 5432, "u", "d"),
        ("postgres://u@h/d?target_session_attrs=read-write&gssencmode=disable", "h", 5432, "u", "d"),
        ("postgres://u@h/d?ssl=true", "h", 5432, "u", "d"),
        ("postgres://u@h/d?sslrootcert=system", "h", 5432, "u", "d"),
        ("host=h user=u dbname=d", "h", 5432, "u", "d"),
        (r"host = h port=1 user='u v' password='it\'s' dbname=d", "h", 1, "u v", "d"),
        (r"host=h password=a\ b user=u dbname=''  ", "h", 5432, "u", ""),
    ] {
        let options = parse(address).unwrap_or_else(|problem| panic!("{address}: {problem}"));
        let database = Some(database).filter(|name| !name.is_empty() || address.contains("''"));
        assert_eq!(
            (options.get_host(), options.get_port(), options.get_username(), options.get_database()),
            (host, port, user, database),
            "{address}"
        );
        assert_eq!(options.get_socket(), None, "{address}");
    }
}

#[test]
fn a_folder_is_a_socket() {
    for address in [
        "postgres:///d?host=/run/postgresql",
        "postgres://u@/d?host=/run/postgresql",
        "postgres://u:p@%2Frun%2Fpostgresql/d",
        "postgresql://u@%2Frun%2Fpostgresql:5433/d",
        "host=/run/postgresql dbname=d",
    ] {
        let options = parse(address).unwrap_or_else(|problem| panic!("{address}: {problem}"));
        assert_eq!(options.get_socket().unwrap().to_str(), Some("/run/postgresql"), "{address}");
    }
}

#[test]
fn a_password_is_what_was_written() {
    for (address, password) in [
        ("postgres://u:a#b?c@h/d", "a#b?c"),
        ("postgres://u:a%2Fb%25@h/d", "a/b%"),
        ("postgres://u:a+b:c@h/d", "a+b:c"),
        ("postgres://h/d?user=u&password=a+b%26c", "a+b&c"),
        (r"host=h user=u password='a\'b\\c d'", r"a'b\c d"),
    ] {
        let url = sqlx::ConnectOptions::to_url_lossy(&parse(address).unwrap());
        let written = percent_decode_str(url.password().unwrap()).decode_utf8().unwrap();
        assert_eq!(written, password, "{address}");
    }
}

#[test]
fn what_cannot_be_obeyed_is_refused_with_the_fix() {
    for (address, fix) in [
        ("postgres://h/d?ssl_mode=require", "parameter \"ssl_mode\""),
        ("postgres://h/d?sslmode=require&connect_timeout=5", "remove it"),
        ("postgres://h/d?SSLMODE=x", "parameter"),
        ("postgres://h/d?sslmode=require&channel_binding=require", "sslmode=verify-full"),
        ("postgres://h/d?target_session_attrs=standby", "read-write"),
        ("postgres://h/d?schema=public", "remove it"),
        ("postgres://h/d?pgbouncer=true", "database.pooler"),
        ("postgres://a,b/d", "several hosts"),
        ("postgres://a:1,b:2/d", "several hosts"),
        ("postgres:///d?host=a,b", "several hosts"),
        ("host=a,b dbname=d", "several hosts"),
        ("postgres://u:a/b@h/d", "%2F"),
        ("postgres://u:a/b?c@h/d", "%2F"),
        ("postgres://u:100%@h/d", "%25"),
        ("postgres://u@::1/d", "[::1]:5432"),
        ("postgres://u@[::1/d", "[::1]:5432"),
        ("postgres://u@h:x/d", "port"),
        ("postgres://h/d?sslmode=require&sslrootcert=system", "verify-full"),
        ("postgres://h/d?host=h&hostaddr=127.0.0.1&sslmode=verify-full", "remove hostaddr"),
        ("jdbc:postgresql://h/d", "postgres://user@host"),
        ("postgresql+asyncpg://h/d", "postgres://user@host"),
        ("host=h password='x", "quote"),
        ("", "is empty"),
    ] {
        let problem = parse(address).expect_err(address);
        assert!(problem.contains(fix), "{address}: {problem}");
    }
}

#[test]
fn other_addresses_are_refused_without_being_shown() {
    for address in [
        "mysql://u:hunter2@h/d",
        "hunter2",
        "hunter2 host=x",
        "postgres://u:hunter2@h/d?sslmode=maybe",
        "postgres://u:hunter2@h:99999/d",
        "postgres://u:x/hunter2@h/d",
        "postgres://u:x/?hunter2@h/d",
        "postgres://u:5/?hunter2=@h/d",
        "password='hunter2",
        "password=x hunter2=y",
    ] {
        let problem = parse(address).unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}

/// Host and port of each server, and the attribute that is wanted.
#[test]
fn an_address_may_name_several_servers() {
    for (address, expected, wanted) in [
        ("postgres://u@a,b/d", &[("a", 5432), ("b", 5432)][..], None),
        ("postgres://u:p@a:1,b:2/d?target_session_attrs=any", &[("a", 1), ("b", 2)], Some(Wanted::Any)),
        ("postgres://a:1,b/d?target_session_attrs=primary", &[("a", 1), ("b", 5432)], Some(Wanted::Primary)),
        ("postgres://[::1]:1,[2001:db8::1]/d", &[("::1", 1), ("2001:db8::1", 5432)], None),
        ("postgres:///d?host=a,b&port=1", &[("a", 1), ("b", 1)], None),
        ("host=a,b,c port=1,2,3 dbname=d", &[("a", 1), ("b", 2), ("c", 3)], None),
        ("host=a,b hostaddr=10.0.0.1,10.0.0.2 dbname=d", &[("10.0.0.1", 5432), ("10.0.0.2", 5432)], None),
        ("postgres://h/d?target_session_attrs=standby", &[("h", 5432)], Some(Wanted::Standby)),
    ] {
        let (servers, said) = parse_servers(address).unwrap_or_else(|problem| panic!("{address}: {problem}"));
        let places: Vec<_> = servers.iter().map(|one| (one.get_host(), one.get_port())).collect();
        assert_eq!((places.as_slice(), said), (expected, wanted), "{address}");
        assert!(servers.iter().all(|one| one.get_database() == Some("d")), "{address}");
    }
    for (address, fix) in [
        ("postgres://a,b/d?target_session_attrs=master", "prefer-standby"),
        ("postgres://a,b/d?port=1,2,3", "as many ports as hosts"),
        ("host=a port=1,2 dbname=d", "as many ports as hosts"),
        ("host=a,b hostaddr=10.0.0.1 dbname=d", "hostaddr"),
        ("postgres://a,b,c,d,e,f,g,h,i/d", "more than 8"),
        ("postgres://a,b:x/d", "port"),
        ("postgres://a,::1/d", "[::1]:5432"),
        ("postgres://a,b/d?connect_timeout=5", "remove it"),
    ] {
        let problem = parse_servers(address).expect_err(address);
        assert!(problem.contains(fix), "{address}: {problem}");
    }
}
