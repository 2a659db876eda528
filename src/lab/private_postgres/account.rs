//! The account that runs a private server: PostgreSQL refuses to run as root.

use std::process::{Command, Stdio};

use super::Error;
use crate::lab::private_server::child;

/// An account other than root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// The account for the server; none means the current user, if that is not root.
    pub(super) fn unprivileged() -> Result<Option<Self>, Error> {
        if id(&["-u"]) != Some(0) {
            return Ok(None);
        }
        if !child::can_own() {
            return Err(Error::Root("setpriv was not found (sudo apt-get install util-linux)"));
        }
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| Some(Self { uid: id(&["-u", name])?, gid: id(&["-g", name])? }))
            .map(Some)
            .ok_or(Error::Root("the users postgres and nobody do not exist"))
    }
}

fn id(arguments: &[&str]) -> Option<u32> {
    String::from_utf8(output(Command::new("id").args(arguments))?).ok()?.trim().parse().ok()
}

/// Standard output of a program, if it succeeds.
pub(super) fn output(command: &mut Command) -> Option<Vec<u8>> {
    command
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| output.stdout)
}
