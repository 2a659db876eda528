-- Count dead letters: all that match, and those whose subscription still exists, so that they can
-- be redriven. $1 subscription $2 topic pattern $3 LIKE pattern for reason, answer or status $4
-- since (null: any)
select count(*) as matching,
       count(*) filter (where subscription.id is not null) as redrivable
  from outbox.matching_dead_letters($1::text, $2::text, $3::text, $4::timestamptz) as letter
  left join outbox.subscriptions as subscription on subscription.id = letter.subscription_id;
