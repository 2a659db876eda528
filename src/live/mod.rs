//! Live clients: who asks, and what they may see of the log. A client is a cursor; nothing is owed to it.

pub mod caller;
