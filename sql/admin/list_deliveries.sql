-- Waiting deliveries, those due first at the top.
--   $1 subscription   $2 topic pattern   $3 event   $4 LIKE pattern for reason, answer or status of
--   the last attempt (null: any)   $5 most rows
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
       waiting.answer
  from (select matching.*
          from outbox.matching_deliveries($1::text, $2::text, $3::uuid, $4::text) as matching
         limit $5::bigint) as waiting
 order by waiting.due_at nulls last, waiting.position, waiting.subscription;
