-- Delete deliveries that succeeded. Deliveries whose lease was lost are not changed.
--   $1 deliveries   $2 lease tokens of this relay
delete from outbox.deliveries as delivery
 where delivery.id = any ($1::bigint[])
   and delivery.lease_token = any ($2::uuid[])
returning delivery.id
