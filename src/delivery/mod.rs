//! One event owed to one subscription: what an attempt may come to, what is recorded of it, and when it is repeated. Pure.

pub mod duration;
mod retry;
mod verdict;

pub use self::{
    retry::RetryPolicy,
    verdict::{LONGEST_PAUSE, Outcome, Reason, Verdict, verdict},
};
