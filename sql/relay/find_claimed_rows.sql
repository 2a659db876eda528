-- The deliveries that a claim has leased whose answer was lost.
--   $1 subscriptions   $2 its token   $3 length of the lease in seconds
select delivery.id
  from outbox.deliveries as delivery
 where delivery.subscription_id = any ($1::bigint[])
   and delivery.due_at > now()
   and delivery.due_at <= now() + make_interval(secs => $3::double precision)
   and delivery.lease_token = $2::uuid
