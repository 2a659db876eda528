-- Lease pages whose lease has ended because their relay died or lost the database.
--   $1 smallest page to look at
--   $2 how many at most
--   $3 lease token
--   $4 length of the lease in seconds
--   $5 this relay
update outbox.pages as page
   set lease_token = $3::uuid,
       due_at      = now() + make_interval(secs => $4::double precision),
       relay       = $5::text
 where page.ctid = any (array(
           select dead.ctid
             from outbox.pages as dead
            where dead.id >= $1::bigint
              and dead.due_at <= now()
            order by dead.id
            limit $2::bigint
              for update skip locked))
returning page.id, page.deaths, page.alone, page.created_from, page.created_until,
          page.subscriptions, page.owed::text[] as owed,
          page.owed_since, page.done::text as done
