-- The pages that a claim has leased whose answer was lost.
--   $1 its token
select page.id, page.deaths, page.alone, page.created_from, page.created_until,
       page.subscriptions, page.owed::text[] as owed, page.owed_since, page.done::text as done
  from outbox.pages as page
 where page.id > 0
   and page.lease_token = $1::uuid
 order by page.id
