-- Count dead letters: all that match, and those that can be redriven, because their subscription
-- exists and their event could be read.
--   $1 subscription   $2 topic pattern   $3 LIKE pattern for reason, answer or status
--   $4 since   $5 id (null: any)   $6 until
select count(*) as matching,
       count(*) filter (where subscription.id is not null
                          and letter.event_id is not null) as redrivable
  from outbox.matching_dead_letters(
           $1::text, $2::text, $3::text, $4::timestamptz, $5::bigint, $6::timestamptz) as letter
  left join outbox.subscriptions as subscription on subscription.id = letter.subscription_id;
