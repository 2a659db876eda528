-- The lowest page, and in how many seconds the first lease of a page ends; null: there is no page.
--   $1 smallest page to look at
select min(page.id) as first,
       extract(epoch from min(page.due_at) - now())::double precision as ends_in
  from outbox.pages as page
 where page.id >= $1::bigint
