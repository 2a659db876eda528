//! What is said of retention.

use super::{Signal, Telemetry, metrics::LogLabels};
use crate::store::Kept;

impl Telemetry {
    pub(crate) fn partition_made(&self, log: &'static str, partition: &str) {
        self.metrics.partitions_made.get_or_create(&LogLabels { log }).inc();
        tracing::info!(log, partition, "partition made");
        self.signal(|| Signal::PartitionMade);
    }

    pub(crate) fn partition_dropped(&self, log: &'static str, partition: &str) {
        self.metrics.partitions_dropped.get_or_create(&LogLabels { log }).inc();
        tracing::info!(log, partition, "partition dropped: its events are older than [retention] keeps them");
        self.signal(|| Signal::PartitionDropped);
    }

    /// A partition was emptied, and is dropped when its log is not used for a moment.
    pub(crate) fn partition_emptied(&self, log: &'static str, partition: &str) {
        tracing::info!(log, partition, "partition emptied: its lock is not to be had, as dropping needs it");
    }

    /// Deliveries became dead letters because their events are too old.
    pub(crate) fn owed_copied(&self, partition: &str, rows: i64) {
        self.metrics.retention_dead_letters.inc_by(u64::try_from(rows).unwrap_or(0));
        tracing::warn!(partition, rows, "deliveries became dead letters: retention.laggard is dead-letter");
    }

    pub(crate) fn old_rows_deleted(&self, log: &'static str, rows: i64) {
        self.metrics.rows_deleted.get_or_create(&LogLabels { log }).inc_by(u64::try_from(rows).unwrap_or(0));
    }

    /// No partition can be made now; most problems last until somebody acts.
    pub(crate) fn partition_refused(&self, log: &'static str, problem: &str) {
        tracing::error!(log, problem, "no partition can be made");
    }

    /// A partition is due to be dropped and stays.
    pub(crate) fn partition_kept(&self, kept: &Kept) {
        let Kept { log, partition, kept_by } = kept;
        tracing::warn!(log, partition, kept_by, "partition is due to be dropped and stays");
    }

    /// How many partitions of a log are due to be dropped and stay.
    pub(crate) fn kept_measured(&self, log: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.partitions_kept.get_or_create(&LogLabels { log }).set(count);
    }

    /// A look at what is old has ended.
    pub(crate) fn retention_looked(&self) {
        self.signal(|| Signal::RetentionLooked);
    }
}
