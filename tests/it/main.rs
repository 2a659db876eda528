//! The list of promises.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot be set up fails; \
              clippy.toml allows it in the tests themselves, not in their helpers"
)]

mod access; // who may ask for what: tokens, keys, origins
mod addresses; // addresses of databases in each form, and words about those that lead nowhere
mod admin; // operator functions
mod api; // /v1 over HTTP: each resource, refusals, pages, limits, the document
mod apply; // subscriptions exported as SQL and applied from a file
mod audit; // who changed what, and when
mod await_work; // no event waits for a poll, and publishers do not pay for notifications
mod backfill; // subscriptions that receive past events
mod batched; // nothing begins under an old version, also behind a batch
mod bench; // every figure has its floor
mod breakers; // breakers of webhooks, and what relays share of them
mod bridge; // rows of an outbox table that an application has already
mod capture; // each change of a captured table is an event
mod channels; // channels of live clients are owed nothing, and nothing waits for them
mod cli; // help, exit codes, output streams
mod clients; // programs in other languages publish
mod deploy; // manifests, chart, compose file and units agree with the program
mod clocks; // clocks of relays that are wrong, and a server whose clock is set
mod contention; // others take every connection, or lock a whole table
mod crashes; // a relay dies at each step of a delivery
mod demo; // everything together, to its end and interrupted
mod docs; // README and the book against the program: links, commands, names, tables, examples
mod drivers; // drivers of other languages publish, and the page that says how
mod early; // urgent events that are routed before their turn: random interleavings
mod encodings; // databases that cannot hold an answer
mod event_types; // payloads that do not fit, versions, invalid schemas
mod failover; // a promoted standby, roles that flip, addresses of several hosts
mod faults; // killed, disconnected and panicking relays, crashing servers
mod fence; // a copy of an outbox sends nothing before it is adopted
mod filters; // match and filters, and events they cannot evaluate
mod follow; // files that a relay refers to change while it runs
mod forgotten; // what was removed of the log is known
mod full_disk; // a database without room
mod gateway; // a process that serves live clients and nothing else
mod health; // whether a relay gets anywhere is seen from outside
mod hints;
mod http; // access, probes and metrics over HTTP
mod image; // the program runs in the image with no more than its base has
mod isolation; // one bad subscriber, publisher or tenant costs the others nothing
mod latest; // the newest event of each key, to begin from
mod layers; // layers around sinks
mod ledger; // the ledger checker finds each kind of defect
mod live; // clients that follow the log by WebSocket and server-sent events
mod locked; // rows that another session has locked
mod managed; // databases of providers, with less than PostgreSQL gives everybody
mod migrate; // many processes, killed ones, beside publishers and relays, by hand; uninstalling
mod migrations; // the schema as one text, its history, checks shared with the relay
mod model; // database, relays and destinations in virtual time, and the defects that it must find
mod network; // what the network between a relay and its database does
mod news; // who serves live clients learns of new events at once
mod once; // a relay for cron
mod operator_events; // what happens to subscriptions is published through the outbox itself
mod operations; // whatever is operated, each version of a subscription gets what it may and must
mod order; // of the events with one key one is in flight, in order
mod outputs; // logs and output that cannot be written stop nothing
mod owners; // whoever owns what, and whatever is published, no write fails
mod pace; // how fast subscriptions and organizations are sent to
mod packages; // the Debian package, built, looked into and installed
mod pages; // the protocol of pages against a model, with a death between any two statements
mod pooler; // relays and commands behind the real PgBouncer
mod private_postgres; // a private server starts as root, survives crashes, leaves nothing
mod processes; // the binary killed, stopped and frozen
mod promises; // nothing lost, nothing before its commit, nothing twice, no tenant crossed
mod redrive; // dead letters at scale: by filter, at a rate, until an interrupt
mod records; // dead letters, the attempt log, the status views
mod reload; // changes of subscriptions are followed; an invalid row affects no other
mod replay; // events of the log are sent again beside live ones
mod replay_steered; // replays are paused, cancelled, bounded and refused
mod repeats; // what may have arrived already is marked where it is sent again
mod retention; // what is old leaves: partitions made ahead and dropped, also beside publishers
mod roles; // rights of each role
mod rooms; // rooms use each other in one direction
mod route; // each committed event once to each matching subscription
mod scale; // millions of rows that are in the way
mod shortages; // what this relay lacks is charged to no destination
mod shown; // people see tables and local times, programs one kind of JSON
mod signals; // every signal that would end a relay drains it
mod sink_contract; // one suite for every sink
mod sinks; // each sink beyond the contract, against real destinations
mod sizes; // events that are too large are refused at the insert
mod soak; // a relay that runs for long takes no more and more
mod sources; // several databases served by one process
mod sql; // the plan of every statement, with stale statistics and a million rows
mod support; // shared by the tests
mod supported; // what each supported version of PostgreSQL must do
mod sweep; // due deliveries among dead entries
mod systemd; // notifications for systemd: ready, alive, reloading, stopping
mod tail; // events followed from the command line
mod terminal; // what strangers wrote never controls a terminal
mod testing; // helpers for tests of an application
mod tidy; // rules of rooms, files and lines
mod torture; // one fault after the other, for as long as is asked
mod trace; // why an event was not delivered: SQL and the command say the same
mod transforms; // transforms, and trying them before they are saved
mod unreadable; // an event that the database cannot read
mod unusual; // settings of roles, databases and sessions change nothing
mod upgraded; // clusters that pg_upgrade has brought to a newer PostgreSQL
mod urgent; // priority among waiting deliveries
mod versions; // an answer binds the version of the subscription that it was sent for
mod wait; // waiting for an event after its commit
mod waiting; // deliveries that wait are listed, sent now and cancelled
mod watch; // a stage that dies ends the relay
mod webhook; // the webhook sink against receivers that misbehave
mod webhook_batch; // several events in one request: collected, acknowledged in part, retried alone
mod webhook_clients; // independent libraries read our requests
mod webhook_doors; // who said no: a proxy, a TLS server, the destination
mod webhook_heads; // responses with malformed or endless heads
mod webhook_relay; // webhooks end to end, against receivers that misbehave
mod width; // no line is wider than the code
mod words; // what is said when rights, connections or the schema do not fit
