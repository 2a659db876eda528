-- Find deliveries and pages that somebody else has locked, so that the others can be settled.
--   $1 deliveries   $2 pages
--
-- The locks that this statement takes end with it.
with free_deliveries as materialized (
    select delivery.id
      from outbox.deliveries as delivery
     where delivery.id = any ($1::bigint[])
       for update skip locked
),
free_pages as materialized (
    select page.id
      from outbox.pages as page
     where page.id = any ($2::bigint[])
       for update skip locked
)
select delivery.id as delivery_id, null::bigint as page_id
  from outbox.deliveries as delivery
 where delivery.id = any ($1::bigint[])
   and not delivery.id = any (array(select free_deliveries.id from free_deliveries))
union all
select null, page.id
  from outbox.pages as page
 where page.id = any ($2::bigint[])
   and not page.id = any (array(select free_pages.id from free_pages))
