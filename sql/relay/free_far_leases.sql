-- End leases that lie further ahead than any relay leases: the clock of the server was set back
-- since they were given, and the relay that could renew them has died. Returns how many.
--   $1 longest lease, in seconds
--   $2 whether outbox.deliveries is read too, all of it
with limits (far) as (
    select now() + make_interval(secs => $1::double precision)
),
pages as (
    update outbox.pages as page
       set due_at = now()
     where page.due_at > (select limits.far from limits)
    returning page.id
),
deliveries as (
    update outbox.deliveries as delivery
       set due_at = now()
     where $2::boolean
       and delivery.due_at > (select limits.far from limits)
       and delivery.lease_token is not null
    returning delivery.id
),
orders as (
    update outbox.order_leases as held
       set due_at = now()
     where held.due_at > (select limits.far from limits)
    returning held.subscription_id
)
select (select count(*) from pages) + (select count(*) from deliveries)
       + (select count(*) from orders) as freed
