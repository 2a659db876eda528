-- Keep deliveries in flight reserved. Returns those that are still ours.
--   $1 deliveries   $2 lease tokens of this relay   $3 length of the lease in seconds
update outbox.deliveries as delivery
   set due_at = now() + make_interval(secs => $3::double precision)
 where delivery.id = any ($1::bigint[])
   and delivery.lease_token = any ($2::uuid[])
returning delivery.id
