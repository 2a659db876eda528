-- Extend the leases of ordered subscriptions. Returns those that this relay still has.
--   $1 subscriptions   $2 lease tokens   $3 length of the lease in seconds
update outbox.order_leases as lease
   set due_at = now() + make_interval(secs => $3::double precision)
 where lease.subscription_id = any ($1::bigint[])
   and lease.lease_token = any ($2::uuid[])
returning lease.subscription_id
