-- How much a subscription is owed, counted no further than needed.
--   $1 subscription   $2 enough
select count(*) as owed
  from (select from outbox.deliveries as delivery where delivery.subscription_id = $1::bigint limit $2::bigint) as counted;
