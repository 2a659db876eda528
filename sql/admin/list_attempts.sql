-- Attempts, newest first.
--   $1 subscription   $2 event   $3 its position, if the log has it
--   $4 LIKE pattern for reason, answer or status   $5 since (null: any)   $6 most rows
--   only those that come after this one (null: any): $7 when it was recorded   $8 position
--   $9 number   $10 subscription
select subscription.name as subscription, attempt.event_id, attempt.position, attempt.at,
       attempt.attempt, attempt.outcome, attempt.reason, attempt.status, attempt.answer,
       extract(epoch from attempt.duration)::double precision as seconds,
       attempt.ambiguous, attempt.stale, attempt.repeated, attempt.relay
  from outbox.attempts as attempt
  left join outbox.subscriptions as subscription on subscription.id = attempt.subscription_id
 where ($1::text is null or subscription.name = $1::text)
   and ($2::uuid is null or attempt.event_id = $2::uuid)
   and ($3::bigint is null or attempt.position = $3::bigint)
   and ($4::text is null or attempt.reason like $4::text or attempt.answer like $4::text
        or attempt.status::text like $4::text)
   and ($5::timestamptz is null or attempt.at >= $5::timestamptz)
   and ($7::timestamptz is null
        or (attempt.at, attempt.position, attempt.attempt, coalesce(subscription.name, ''))
           < ($7::timestamptz, $8::bigint, $9::integer, $10::text))
 order by attempt.at desc, attempt.position desc, attempt.attempt desc,
       coalesce(subscription.name, '') desc
 limit $6::bigint;
