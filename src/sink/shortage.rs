//! What this machine lacks, or what a peer grants it no more of, as opposed to what a destination does wrong.
//! Such a delivery waits, and no attempt is counted. Decides from the error, and looks at the routes.

use std::{error::Error, fmt, fs, io};

use super::Report;
use crate::delivery::{Outcome, Reason};

/// The report of an attempt that was not made for want of something.
pub(crate) fn report(lack: impl fmt::Display) -> Report {
    Report::from(Outcome::Retry { reason: Reason::NoResources, after: None }).with_answer(lack)
}

/// What this machine lacks according to an error or one of its causes; none if the error is the peer's.
pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<&'static str> {
    causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).find_map(of_system)
}

/// An error and its causes, also the error that an I/O error wraps.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause| {
        match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => cause.source(),
        }
    })
}

/// What this machine lacks according to an error of the system.
pub(crate) fn of_system(error: &io::Error) -> Option<&'static str> {
    of_number(error.raw_os_error()?)
}

/// What this machine lacks according to the message of a library that keeps no numbers.
#[cfg(feature = "kafka")]
pub(crate) fn of_text(message: &str) -> Option<&'static str> {
    [12, 23, 24, 99, 100, 101, 105].into_iter().find_map(|number| {
        let text = io::Error::from_raw_os_error(number).to_string();
        let text = text.split(" (os error").next()?;
        message.contains(text).then(|| of_number(number))?
    })
}

fn of_number(number: i32) -> Option<&'static str> {
    // Numbers of Linux; those of other systems differ, and are then the peer's as before.
    match number {
        23 | 24 => Some("this machine has no file descriptor left"),
        12 | 105 => Some("this machine has no memory left for a connection"),
        99 => Some("this machine has no local port left"),
        100 => Some("the network of this machine is down"),
        // Without a default route it may still be the destination's network that is unreachable.
        101 if has_no_network() => Some("this machine has no network"),
        _ => None,
    }
}

/// Whether a resolver says that it got no answer, rather than that there is no such name.
pub(crate) fn is_silent_resolver(error: &io::Error) -> bool {
    let text = error.to_string();
    // The texts of glibc and musl; the standard library keeps no code.
    text.contains("Temporary failure in name resolution") || text.contains("Try again")
}

/// Whether no route leads out of this machine. False where that cannot be known.
pub(crate) fn has_no_network() -> bool {
    let v4 = fs::read_to_string("/proc/net/route");
    let v6 = fs::read_to_string("/proc/net/ipv6_route");
    v4.is_ok_and(|routes| !leads_out_v4(&routes)) && !v6.is_ok_and(|routes| leads_out_v6(&routes))
}

fn leads_out_v4(routes: &str) -> bool {
    routes.lines().skip(1).filter_map(|line| line.split_whitespace().next()).any(|device| device != "lo")
}

fn leads_out_v6(routes: &str) -> bool {
    // Link-local (fe80) and multicast (ff00) routes lead to neighbours only.
    routes.lines().any(|line| {
        let is_local = ["fe80", "ff00"].iter().any(|prefix| line.starts_with(prefix));
        !is_local && line.split_whitespace().last().is_some_and(|device| device != "lo")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_told_apart_from_what_the_peer_does() {
        for ours in [12, 23, 24, 99, 100, 105] {
            assert!(of(&io::Error::from_raw_os_error(ours)).is_some(), "{ours}");
            // However deep a library wraps it.
            let wrapped = io::Error::other(io::Error::other(io::Error::from_raw_os_error(ours)));
            assert!(of(&wrapped).is_some(), "{ours}");
        }
        for theirs in [104, 110, 111, 113] {
            assert_eq!(of(&io::Error::from_raw_os_error(theirs)), None, "{theirs}");
        }
        assert_eq!(of(&io::Error::other("refused")), None);
        #[cfg(feature = "kafka")]
        {
            let message =
                "localhost:9092/bootstrap: Failed to create socket: Too many open files (after 0ms)";
            assert_eq!(of_text(message), of_number(24));
            assert_eq!(of_text("Connect to 127.0.0.1:1 failed: Connection refused"), None);
        }
    }

    #[test]
    fn a_machine_without_routes_has_no_network() {
        let heading = "Iface\tDestination\tGateway\n";
        assert!(!leads_out_v4(heading));
        assert!(!leads_out_v4(&format!("{heading}lo\t0000007F\t00000000\n")));
        assert!(leads_out_v4(&format!("{heading}eth0\t00000000\t010200C0\n")));
        let (lo, link) = ("0000 00 0000 00 0000 ffffffff 1 0 200200 lo", "fe80 40 0000 00 0000 1 0 1 eth0");
        assert!(!leads_out_v6(&format!("{lo}\n{link}\n")));
        assert!(leads_out_v6("2001 40 0000 00 0000 00000100 1 0 00000001 eth0\n"));
    }
}
