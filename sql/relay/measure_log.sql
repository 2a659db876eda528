-- Measure what is in the log and not routed: the number of events, and the age of the oldest.
select log.unrouted, extract(epoch from log.oldest_age)::double precision as oldest_age_seconds
  from outbox.log_status as log
