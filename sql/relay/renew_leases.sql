-- Extend leases of deliveries. Returns the deliveries that this relay still holds, and whether each
-- lease was extended: a row that is locked is skipped and does not delay the others.
--   $1 deliveries   $2 lease tokens of this relay   $3 length of the lease in seconds
--
-- The rows are found once by their ids, and then locked and updated by address.
with ours as materialized (
    select delivery.id, delivery.ctid as address
      from outbox.deliveries as delivery
     where delivery.id = any ($1::bigint[])
       and delivery.lease_token = any ($2::uuid[])
),
free as materialized (
    select delivery.ctid as address
      from outbox.deliveries as delivery
     where delivery.ctid = any (array(select ours.address from ours))
       and delivery.lease_token = any ($2::uuid[])
       for no key update skip locked
),
renewed as (
    update outbox.deliveries as delivery
       set due_at = now() + make_interval(secs => $3::double precision)
     where delivery.ctid = any (array(select free.address from free))
    returning delivery.id
)
select ours.id, exists (select from renewed where renewed.id = ours.id) as renewed
  from ours
