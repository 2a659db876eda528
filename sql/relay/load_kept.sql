-- Read which partitions are due to be dropped and stay, and why.
select kept.log, kept.partition, kept.kept_by
  from outbox.retention_kept as kept
 order by kept.log, kept.partition
