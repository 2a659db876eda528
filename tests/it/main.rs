//! The list of what we promise.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up fails; clippy.toml allows it in the tests themselves, not in their helpers"
)]

mod demo; // everything together, played to its end and interrupted
mod private_postgres; // a server of our own: starts as root, survives crashes, leaves nothing behind
mod support; // what the tests share
mod webhook; // the webhook sink against receivers that misbehave
