-- Waiting deliveries in the order of the log, as many as fit a page. That order does not change
-- while deliveries are tried.
--   $1 subscription   $2 topic pattern   $3 event   $4 LIKE pattern for reason, answer or status of
--   the last attempt (null: any)   $5 most rows
--   only those after this one (null: any): $6 position   $7 id of its subscription
--   $8 id of its replay, or 0
select waiting.subscription,
       waiting.event_id,
       waiting.topic,
       waiting.key,
       waiting.organization,
       waiting.owed_since,
       waiting.due_at,
       waiting.attempts,
       waiting.reason,
       waiting.status,
       waiting.answer,
       waiting.position,
       waiting.subscription_id,
       coalesce(waiting.replay_id, 0) as replay_id
  from outbox.matching_deliveries($1::text, $2::text, $3::uuid, $4::text) as waiting
 where $6::bigint is null
    or (waiting.position, waiting.subscription_id, coalesce(waiting.replay_id, 0))
       > ($6::bigint, $7::bigint, $8::bigint)
 order by waiting.position, waiting.subscription_id, coalesce(waiting.replay_id, 0)
 limit $5::bigint;
