//! Deliveries: the outcome of an attempt, the verdict that is recorded, and the retry schedule. Pure.

pub mod duration;
mod ids;
pub mod ranges;
pub mod rate;
mod retry;
mod verdict;

pub use self::{
    ids::{DeliveryId, PageId, ReplayId, SubscriptionId},
    retry::RetryPolicy,
    verdict::{LONGEST_PAUSE, Outcome, Reason, Verdict, verdict},
};
