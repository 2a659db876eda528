-- Hold deliveries whose destination is gone: they get no lease, and nothing claims them until an
-- operator resumes the subscription. Deliveries whose lease was lost are not changed.
--   $1 deliveries   $2 lease tokens of this relay
update outbox.deliveries as delivery
   set lease_token = null,
       unfinished  = 0,
       due_at      = clock_timestamp()
 where delivery.id = any ($1::bigint[])
   and delivery.lease_token = any ($2::uuid[])
returning delivery.id
