-- Record which pairs of pages were delivered, when none of them failed. Pages whose lease was lost
-- are not changed.
--   $1 pages with outstanding pairs
--   $2 numbers of the pairs that are settled now, in the order of $1
--   $3 pages without outstanding pairs, which are deleted
--   $4 lease tokens of this relay
with finished as (
    delete from outbox.pages as page
     where page.id = any ($3::bigint[])
       and page.lease_token = any ($4::uuid[])
    returning page.id
),
moved as (
    update outbox.pages as page
       set done = page.done + (($2::text[])[array_position($1::bigint[], page.id)])::int4multirange
     where page.id = any ($1::bigint[])
       and page.lease_token = any ($4::uuid[])
    returning page.id
)
select finished.id from finished
union all
select moved.id from moved
