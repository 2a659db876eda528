-- What became of an event for each subscription, with conditions that were evaluated here.
--   $1 id   $2 name of a subscription (null: all)
--   $3 subscriptions   $4 the condition of each that does not hold (null: all hold)   $5 its part
select one.subscription_id, one.subscription, one.status, one.reason, one.waits_for, one.until,
       one.attempts, one.last_attempt_at, one.detail
  from outbox_internal.traced_event($1::uuid) as event
 cross join lateral outbox_internal.explain_event(
           event, $2::text, $3::bigint[], $4::text[], $5::text[]) as one
 order by one.subscription, one.subscription_id;
