-- Delivered: nothing is owed any more. Rows whose lease was lost are left alone.
--   $1 deliveries   $2 lease tokens of this relay
delete from outbox.deliveries as delivery
 where delivery.id = any ($1::bigint[])
   and delivery.lease_token = any ($2::uuid[])
returning delivery.id
