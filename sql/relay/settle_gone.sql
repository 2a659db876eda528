-- The destination is gone: deliveries are held without a lease, and nothing claims them until an operator resumes.
--   $1 deliveries   $2 lease tokens of this relay
update outbox.deliveries as delivery
   set lease_token = null,
       unfinished  = 0,
       due_at      = clock_timestamp()
 where delivery.id = any ($1::bigint[])
   and delivery.lease_token = any ($2::uuid[])
returning delivery.id
