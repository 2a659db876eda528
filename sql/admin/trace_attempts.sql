-- Attempts of one event, oldest first; of many the newest.
--   $1 id   $2 position   $3 time of the insert   $4 name of a subscription (null: all)
--   $5 most rows
select newest.*
  from (select attempt.subscription_id, subscription.name as subscription, attempt.event_id,
               attempt.position, attempt.at, attempt.attempt, attempt.outcome, attempt.reason,
               attempt.status, attempt.answer,
               extract(epoch from attempt.duration)::double precision as seconds,
               attempt.ambiguous, attempt.stale, attempt.repeated, attempt.relay
          from outbox.attempts as attempt
          left join outbox.subscriptions as subscription
            on subscription.id = attempt.subscription_id
         where attempt.position = $2::bigint
           and attempt.at >= $3::timestamptz
           and coalesce(attempt.event_id = $1::uuid, true)
           and ($4::text is null or subscription.name = $4::text)
         order by attempt.at desc
         limit $5::bigint) as newest
 order by newest.at;
