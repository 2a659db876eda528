//! The egress guard: which addresses the relay may connect to for a subscription. Checks literal addresses
//! when a target is loaded, and every answer of the resolver when a connection is made, so that the checked
//! address is the one used.
//!
//! Opens no connection. Only the operator can allow exceptions (`egress.allow`), never a subscription.

mod resolver;

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use self::resolver::Answers;
use super::shortage;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// Default of `egress.deny_ports`: ports of mail, name and database servers.
pub const DENIED_PORTS: &[u16] = &[22, 25, 53, 110, 143, 465, 587, 993, 3306, 5432, 6379, 9200, 11211, 27017];

/// Settings of `[egress]`.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    /// Exceptions: ranges that are allowed although the table forbids them.
    pub allow: Vec<IpNet>,
    /// Whether `http:` is allowed besides `https:`.
    pub allow_http: bool,
    /// Proxy for all requests. The proxy then decides which addresses can be reached.
    pub proxy: Option<Url>,
    /// PEM file of additional certificate authorities.
    pub ca_file: Option<PathBuf>,
    /// Ports that are never connected to; none means those of mail, name and database servers.
    pub deny_ports: Option<Vec<u16>>,
    /// Most connections to receivers that are open at once, over all hosts; none means that they are not
    /// bounded.
    pub connections: Option<usize>,
}

/// Timeout of resolving one name.
pub const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(a: u16, b: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), length)
}

// Source of the ranges below: IANA's registries of special-purpose addresses for IPv4 and IPv6 (RFC 6890) as
// they stand with RFC 9637, August 2024; IANA's list of the address space of IPv6, of 2024-09-10, for the
// returned 6bone; and the documentation of clouds for the address that they serve secrets from.
const FORBIDDEN_V4: &[Ipv4Net] = &[
    v4(0, 0, 0, 0, 8),        // this network
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // carrier-grade NAT
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // Azure's services for its virtual machines, their certificates among them
    v4(169, 254, 0, 0, 16),   // link-local; the metadata service of clouds
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // protocol assignments
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 88, 99, 0, 24),   // 6to4 relays
    v4(192, 168, 0, 0, 16),   // private
    v4(198, 18, 0, 0, 15),    // benchmarks
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 4),      // multicast
    v4(240, 0, 0, 0, 4),      // reserved; broadcast
];

const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);

const FORBIDDEN_V6: &[Ipv6Net] = &[
    v6(0x2001, 0, 23),     // protocol assignments, Teredo
    v6(0x2001, 0xdb8, 32), // documentation
    v6(0x2002, 0, 16),     // 6to4: contains an IPv4 address
    v6(0x3ffe, 0, 16),     // once the 6bone, returned in 2006 and not assigned since
    v6(0x3fff, 0, 20),     // documentation
];

/// Addresses of NAT64, which contain an IPv4 address.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 96);

/// A running lookup.
pub type Looking = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Resolves names: the system's resolver, or a stub in tests.
pub trait Lookup: Send + Sync + 'static {
    /// All addresses of a name.
    fn lookup(&self, name: &str) -> Looking;
}

impl<F: Fn(&str) -> Looking + Send + Sync + 'static> Lookup for F {
    fn lookup(&self, name: &str) -> Looking {
        self(name)
    }
}

/// Why a name cannot be used. Contains no address: authors of subscriptions must not learn about the
/// operator's network.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// At least one of the name's addresses is forbidden.
    #[error("the name has an address that the egress policy forbids")]
    Forbidden,
    /// There is no such name, or the resolver failed.
    #[error("the name could not be resolved")]
    Failed(#[source] io::Error),
    /// The name has no address.
    #[error("the name has no address")]
    Empty,
    /// No answer within [`LOOKUP_DEADLINE`].
    #[error("the name could not be resolved within 5 s")]
    TimedOut,
    /// This machine lacks a resolver that answers, or what asking it needs.
    #[error("this machine cannot resolve names now")]
    NoResolver,
}

/// Decides where the relay may connect to. Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    allow: Arc<[IpNet]>,
    allow_http: bool,
    deny_ports: Arc<[u16]>,
    lookup: Arc<dyn Lookup>,
    answers: Arc<Answers>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("allow", &self.allow)
            .field("allow_http", &self.allow_http)
            .field("deny_ports", &self.deny_ports)
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard with the system's resolver.
    #[must_use]
    pub fn new(config: &Egress) -> Self {
        Self::with_lookup(config, Arc::new(system_lookup))
    }

    /// A guard with another resolver. Its answers are checked too.
    #[must_use]
    pub fn with_lookup(config: &Egress, lookup: Arc<dyn Lookup>) -> Self {
        Self {
            allow: config.allow.clone().into(),
            allow_http: config.allow_http,
            deny_ports: config.deny_ports.as_deref().unwrap_or(DENIED_PORTS).into(),
            lookup,
            answers: Arc::default(),
        }
    }

    /// Whether an address may be connected to.
    #[must_use]
    pub fn is_allowed(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.iter().any(|range| range.contains(&address)) || is_public(address)
    }

    /// Checks a URL without resolving its name.
    ///
    /// # Errors
    /// A message about `config.url` that says what to write. It contains no part of the URL that could be
    /// secret.
    pub fn check_url(&self, url: &Url) -> Result<(), String> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => {
                return Err(
                    "config.url: use https; plain http needs egress.allow_http in the relay's configuration"
                        .to_owned(),
                );
            }
            _ => return Err("config.url: the scheme must be https".to_owned()),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "config.url: remove the credentials; put them into config.headers as a reference such as \
                                    env:PGOUTBOX_SECRET_NAME"
                    .to_owned(),
            );
        }
        if url.fragment().is_some() {
            return Err("config.url: remove the fragment (#…); it is never sent".to_owned());
        }
        let port = url.port_or_known_default().unwrap_or(0);
        if port == 0 || self.deny_ports.contains(&port) {
            return Err(format!("config.url: port {port} is refused by egress.deny_ports"));
        }
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = match url.host() {
            None => return Err("config.url: it has no host".to_owned()),
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                (name == "localhost" || name.ends_with(".localhost")).then_some(loopback)
            }
        };
        match address {
            Some(address) if !self.is_allowed(address) => Err(format!(
                "config.url: the egress policy forbids {address}; the operator can allow it with egress.allow"
            )),
            _ => Ok(()),
        }
    }

    /// Whether a name or this machine is to blame for a failed lookup.
    fn blame(&self, name: &str, problem: ResolveError) -> ResolveError {
        let is_unanswered = match &problem {
            ResolveError::Failed(error) if shortage::of_system(error).is_some() => {
                return ResolveError::NoResolver;
            }
            ResolveError::Failed(error) => shortage::is_silent_resolver(error),
            ResolveError::TimedOut => true,
            _ => false,
        };
        if !is_unanswered {
            self.answers.answered();
            return problem;
        }
        let is_ours = self.answers.unanswered(name, Instant::now()) || shortage::has_no_network();
        if is_ours { ResolveError::NoResolver } else { problem }
    }

    /// Resolves a name within [`LOOKUP_DEADLINE`]. One forbidden address refuses the name: mixed answers are
    /// typical of DNS rebinding.
    ///
    /// # Errors
    /// When there is no address, or a forbidden one.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let answers = tokio::time::timeout(LOOKUP_DEADLINE, self.lookup.lookup(name))
            .await
            .map_err(|_| ResolveError::TimedOut)
            .and_then(|answers| answers.map_err(ResolveError::Failed))
            .map_err(|problem| self.blame(name, problem))?;
        self.answers.answered();
        if answers.is_empty() {
            return Err(ResolveError::Empty);
        }
        if !answers.iter().all(|address| self.is_allowed(*address)) {
            return Err(ResolveError::Forbidden);
        }
        Ok(answers)
    }
}

fn system_lookup(name: &str) -> Looking {
    let name = name.to_owned();
    Box::pin(
        async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) },
    )
}

/// Whether the table allows an address. Expects IPv4-mapped addresses as IPv4.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !FORBIDDEN_V4.iter().any(|range| range.contains(&address)),
        IpAddr::V6(address) if NAT64.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            is_public(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address) && !FORBIDDEN_V6.iter().any(|range| range.contains(&address))
        }
    }
}

#[cfg(test)]
mod tests;
