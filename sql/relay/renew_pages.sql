-- Extend leases of pages. Returns the pages that this relay still holds, and whether each lease was
-- extended: a row that is locked is skipped and does not delay the others.
--   $1 pages   $2 lease tokens of this relay   $3 length of the lease in seconds
with free as materialized (
    select page.ctid as address
      from outbox.pages as page
     where page.id = any ($1::bigint[])
       and page.lease_token = any ($2::uuid[])
       for no key update skip locked
),
renewed as (
    update outbox.pages as page
       set due_at = now() + make_interval(secs => $3::double precision)
     where page.ctid = any (array(select free.address from free))
    returning page.id
)
select page.id, exists (select from renewed where renewed.id = page.id) as renewed
  from outbox.pages as page
 where page.id = any ($1::bigint[])
   and page.lease_token = any ($2::uuid[])
