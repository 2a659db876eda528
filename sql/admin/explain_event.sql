-- What became of an event for each subscription, with conditions that were evaluated here.
--   $1 id   $2 name of a subscription (null: all)
--   $3 by id of a subscription: the condition that does not hold, and its part
select one.subscription_id, one.subscription, one.status, one.reason, one.waits_for, one.until,
       one.attempts, one.last_attempt_at, one.detail
  from outbox_internal.traced_event($1::uuid) as event
 cross join lateral outbox_internal.explain_event(event, $2::text, $3::jsonb) as one
 order by one.subscription, one.subscription_id;
