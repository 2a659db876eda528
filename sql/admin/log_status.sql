-- How much of the log is not routed yet.
select log.unrouted, extract(epoch from log.oldest_age)::double precision as oldest_age_seconds
  from outbox.log_status as log
