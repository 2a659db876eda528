-- Add attempts to the delivery log, also those whose verdict no longer counted.
--   $1 deliveries
--   $2 subscriptions
--   $3 positions
--   $4 event ids
--   $5 numbers of the attempts
--   $6 durations in seconds
--   $7 outcomes
--   $8 reasons
--   $9 status codes
--   $10 answers
--   $11 ambiguous
--   $12 stale
--   $13 this relay
--   $14 whether an earlier attempt may have reached the destination
insert into outbox.attempts (
    delivery_id, subscription_id, position, event_id, attempt, duration, outcome, reason, status,
    answer, ambiguous, stale, relay, repeated)
select made.delivery_id, made.subscription_id, made.position, made.event_id, made.attempt,
       make_interval(secs => made.seconds),
       made.outcome, made.reason, made.status, made.answer, made.ambiguous, made.stale, $13::text,
       made.repeated
  from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::uuid[], $5::integer[],
              $6::double precision[], $7::text[], $8::text[], $9::integer[], $10::text[],
              $11::boolean[], $12::boolean[], $14::boolean[])
       as made (delivery_id, subscription_id, position, event_id, attempt, seconds, outcome, reason,
                status, answer, ambiguous, stale, repeated)
