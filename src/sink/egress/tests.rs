//! Tests of the egress guard, address by address.

use proptest::prelude::*;

use super::*;

/// Spellings of forbidden addresses. Each is refused by the URL parser or by the guard.
const FORBIDDEN: &[&str] = &[
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "2130706433",
    "2130706433.",
    "0x7f000001",
    "0x7F.0.0.1",
    "0x7f.1",
    "0177.0.0.1",
    "0177.1",
    "017700000001",
    "0x7f.0x0.0x0.0x1",
    "00000177.0.0.1",
    "①②⑦.⓪.⓪.①",
    "１２７.０.０.１",
    "127。0。0。1",
    "127%2e0%2e0%2e1",
    "%31%32%37.0.0.1",
    "0",
    "0.0.0.0",
    "0x0",
    "00",
    "0.0.0.1",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "a.localhost",
    "ⓛocalhost",
    "10.0.0.1",
    "10.1",
    "167772161",
    "012.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "168.63.129.16",
    "0xa83f8110",
    "169.254.169.254",
    "169.254.43518",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.257",
    "3232235521",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "4294967295",
    "[::]",
    "[::1]",
    "[3ffe::1]",
    "[3ffe:ffff::1]",
    "[::ffff:168.63.129.16]",
    "[0:0:0:0:0:0:0:1]",
    "[0000::0001]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::a00:1]",
    "[2002:7f00:1::]",
    "[2002:808:808::]",
    "[2001::1]",
    "[2001:0:808:808::1]",
    "[2001:1ff::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "[3fff:fff::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[fe80::a9fe:a9fe]",
    "[fec0::1]",
    "[ff02::1]",
    "[100::1]",
    "[1fff::1]",
    "[4000::1]",
    "[5f00::1]",
    "[::8.8.8.8]",
    "[fe80::1%25eth0]",
    "256.256.256.256",
    "127.0.0.1\t",
    "127.0.0.0x1",
];

const ALLOWED: &[&str] = &[
    "8.8.8.8",
    "1.1.1.1",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "[2001:4860:4860::8888]",
    "[2001:200::1]",
    "[2a00::1]",
    "[::ffff:8.8.8.8]",
    "[64:ff9b::8.8.8.8]",
    "example.com",
    "localhost.example.com",
];

fn guard(allow: &[&str]) -> Guard {
    Guard::new(&Egress {
        allow: allow.iter().map(|range| range.parse().unwrap()).collect(),
        allow_http: true,
        ..Egress::default()
    })
}

fn is_refused(guard: &Guard, url: &str) -> bool {
    Url::parse(url).map_or(true, |url| guard.check_url(&url).is_err())
}

#[test]
fn every_spelling_of_a_forbidden_address_is_refused() {
    assert!(FORBIDDEN.len() >= 60);
    let guard = guard(&[]);
    for host in FORBIDDEN {
        for url in [
            format!("https://{host}/"),
            format!("http://{host}:8080/hook?x=1"),
            format!("https:\\\\{host}\\"),
        ] {
            assert!(is_refused(&guard, &url), "{url}");
        }
    }
}

#[test]
fn the_rest_of_the_internet_is_allowed() {
    for host in ALLOWED {
        assert!(!is_refused(&guard(&[]), &format!("https://{host}/")), "{host}");
    }
}

#[test]
fn an_allowed_range_opens_itself_and_nothing_else() {
    let guard = guard(&["127.0.0.1/32", "fd00:1::/32"]);
    for host in ["127.0.0.1", "2130706433", "localhost", "[::ffff:127.0.0.1]", "[fd00:1::7]"] {
        assert!(!is_refused(&guard, &format!("http://{host}:8080/")), "{host}");
    }
    for host in ["127.0.0.2", "[::1]", "[64:ff9b::127.0.0.1]", "[fd00:2::7]", "10.0.0.1"] {
        assert!(is_refused(&guard, &format!("http://{host}:8080/")), "{host}");
    }
}

#[test]
fn schemes_credentials_fragments_and_ports_are_refused_by_name() {
    let strict = Guard::new(&Egress::default());
    for url in [
        "http://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "unix:/run/docker.sock",
        "ftp://example.com/",
        "data:,x",
        "ws://example.com/",
        "https://user@example.com/",
        "https://:canary@example.com/",
        "https://u:canary@example.com/",
        "https://example.com/#canary",
        "https://example.com:0/",
        "https://example.com:22/",
        "https://example.com:25/",
        "https://example.com:5432/",
        "https://example.com:6379/",
    ] {
        let refusal = strict.check_url(&Url::parse(url).unwrap()).expect_err(url);
        assert!(refusal.starts_with("config.url: ") && !refusal.contains("canary"), "{refusal}");
    }
    for port in DENIED_PORTS {
        assert!(is_refused(&strict, &format!("https://example.com:{port}/")), "{port}");
    }
    let open = Guard::new(&Egress { deny_ports: Some(vec![443]), ..Egress::default() });
    assert!(is_refused(&open, "https://example.com/") && !is_refused(&open, "https://example.com:22/"));
}

fn answering(answers: &'static [&'static str]) -> Guard {
    let lookup = move |_: &str| -> Looking {
        Box::pin(async move { Ok(answers.iter().map(|text| text.parse().unwrap()).collect()) })
    };
    Guard::with_lookup(
        &Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], ..Egress::default() },
        Arc::new(lookup),
    )
}

#[tokio::test]
async fn one_forbidden_answer_refuses_the_whole_name() {
    for answers in [
        &["10.0.0.1"] as &[_],
        &["8.8.8.8", "10.0.0.1"],
        &["::ffff:10.0.0.1"],
        &["127.0.0.1", "127.0.0.2"],
        &["8.8.8.8", "::1"],
    ] {
        assert!(
            matches!(answering(answers).resolve("shop.test").await, Err(ResolveError::Forbidden)),
            "{answers:?}"
        );
    }
    assert_eq!(answering(&["8.8.8.8", "127.0.0.1"]).resolve("shop.test").await.unwrap().len(), 2);
    assert!(matches!(answering(&[]).resolve("shop.test").await, Err(ResolveError::Empty)));
}

#[tokio::test]
async fn a_failed_lookup_is_not_a_forbidden_address() {
    let lookup = |_: &str| -> Looking { Box::pin(async { Err(io::Error::other("servfail")) }) };
    let guard = Guard::with_lookup(&Egress::default(), Arc::new(lookup));
    assert!(matches!(guard.resolve("shop.test").await, Err(ResolveError::Failed(_))));
}

#[tokio::test]
async fn a_resolver_that_answers_for_no_name_is_not_the_fault_of_the_names() {
    let lookup = |name: &str| -> Looking {
        let missing = name == "missing.test";
        Box::pin(async move {
            let text =
                if missing { "Name or service not known" } else { "Temporary failure in name resolution" };
            Err(io::Error::other(text))
        })
    };
    let guard = Guard::with_lookup(&Egress::default(), Arc::new(lookup));
    // One name without an answer may be the fault of its own servers.
    assert!(matches!(guard.resolve("a.test").await, Err(ResolveError::Failed(_))));
    assert!(matches!(guard.resolve("b.test").await, Err(ResolveError::NoResolver)));
    assert!(matches!(guard.resolve("a.test").await, Err(ResolveError::NoResolver)));
    // It answers that there is no such name: so it works.
    assert!(matches!(guard.resolve("missing.test").await, Err(ResolveError::Failed(_))));
    assert!(matches!(guard.resolve("a.test").await, Err(ResolveError::Failed(_))));
    let lookup = |_: &str| -> Looking { Box::pin(async { Err(io::Error::from_raw_os_error(24)) }) };
    let guard = Guard::with_lookup(&Egress::default(), Arc::new(lookup));
    assert!(matches!(guard.resolve("a.test").await, Err(ResolveError::NoResolver)));
}

proptest! {
    #[test]
    fn an_accepted_address_is_globally_routable(bits: u128, shape in 0u8..4) {
        let address: IpAddr = match shape {
            0 => Ipv4Addr::from_bits(bits as u32).into(),
            1 => Ipv6Addr::from_bits(0xffff << 32 | u128::from(bits as u32)).into(),
            2 => Ipv6Addr::from_bits(0x64_ff9b << 96 | u128::from(bits as u32)).into(),
            _ => Ipv6Addr::from_bits(bits).into(),
        };
        if guard(&[]).is_allowed(address) {
            prop_assert!(is_routable(address), "{address}");
        }
    }
}

/// An independent definition, by the standard library and bit masks instead of the table.
fn is_routable(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_documentation())
                && !(v4.is_multicast() || v4.is_unspecified() || a == 0 || a >= 224)
                && !(a == 100 && b & 0xc0 == 64 || a == 198 && b & 0xfe == 18)
        }
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                is_routable(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into())
            }
            [first, ..] => {
                first & 0xe000 == 0x2000
                    && first != 0x2002
                    && !(v6.is_loopback()
                        || v6.is_unspecified()
                        || v6.is_multicast()
                        || v6.is_unique_local()
                        || v6.is_unicast_link_local())
            }
        },
    }
}
