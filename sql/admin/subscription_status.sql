-- Status of all subscriptions, those with problems first, for `pgoutbox status`.
--
-- Ages are converted to seconds and the rate to a double, so that clients need not decode interval
-- and numeric.
select status.name,
       status.sink,
       status.organization,
       status.active,
       status.state,
       status.state_reason,
       status.paused_until,
       status.backlog,
       status.in_flight,
       status.retrying,
       extract(epoch from status.oldest_age)::double precision as oldest_age_seconds,
       status.dead_letters,
       status.delivered,
       status.failed,
       status.success_rate::double precision as success_rate,
       status.breaker,
       status.filter_errors,
       status.last_filter_error
  from outbox.subscription_status as status
 order by (status.state not in ('pending', 'ok')) desc,
          status.oldest_age desc nulls last, status.name;
