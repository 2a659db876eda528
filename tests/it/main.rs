//! The list of what we promise.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot be set up fails; clippy.toml allows it in the tests themselves, not in their helpers"
)]

mod admin; // what an operator asks the database
mod apply; // subscriptions as SQL and from a file
mod await_work; // no event waits for a poll, and the doorbell costs publishers nothing
mod backfill; // subscriptions that begin before they were made
mod bench; // every figure stands beside its floor
mod capture; // a change of a captured table is an event, whoever made it and however
mod cli; // help, exit codes, what goes to which stream
mod clients; // programs in other languages publish
mod demo; // everything together, played to its end and interrupted
mod docs; // README and the book against the program: links, commands, names, tables, examples
mod event_types; // payloads that do not fit, versions, and what a bad schema may cost
mod faults; // what killed, cut off, panicking relays and crashing servers may cost
mod filters; // match and filters: what they keep away, and what cannot be evaluated
mod http; // who may ask what of a relay over HTTP
mod ledger; // the checker of histories finds each kind of defect, and nothing where there is none
mod migrations; // the schema as one text, its history, and the checks it shares with the relay
mod pages; // the protocol of pages against a model, with deaths between any two statements
mod private_postgres; // a server of our own: starts as root, survives crashes, leaves nothing behind
mod processes; // the real binary killed, stopped, frozen
mod promises; // nothing lost, nothing sent before its commit, nothing twice, no tenant crossed
mod records; // dead letters, the attempt log, the status views
mod reload; // changes of subscriptions are followed; one bad row disturbs nobody
mod roles; // who may do what in the database
mod rooms; // use runs in one direction
mod route; // each committed event once, to those that want it
mod sink_contract; // one suite for every sink
mod sinks; // the real destinations, and what each sink promises beyond the contract
mod sql; // every statement's plan, with lying statistics and with a million rows
mod support; // what the tests share
mod testing; // what the tests of an application get
mod tidy; // the rooms, and lists that must equal the code
mod transforms; // what is sent in place of the payload, and trying it before it is saved
mod urgent; // priority among what waits
mod webhook; // the webhook sink against receivers that misbehave
mod webhook_batch; // several events in one request: gathered, acknowledged in part, repeated alone
mod webhook_clients; // what independent libraries make of our requests
mod webhook_relay; // webhooks end to end, against receivers that misbehave
