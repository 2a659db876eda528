-- What routing matched. Rows with a lease are sent by this relay at once; the others wait for any relay to claim them.
--   $1 positions   $2 the events' created_at   $3 subscriptions   $4 leased or not   $5 not before (null: at once)
--   $6 priorities   $7 lease token   $8 length of the lease in seconds
--
-- A point of priority is worth a minute of waiting: it moves the due time into the past, where claiming begins.
insert into outbox.deliveries (position, created_at, subscription_id, attempt, lease_token, due_at)
select matched.position,
       matched.created_at,
       matched.subscription_id,
       case when matched.leased then 1 else 0 end,
       case when matched.leased then $7::uuid end,
       case when matched.leased then now() + make_interval(secs => $8::double precision)
            else greatest(coalesce(matched.deliver_after, now()), now() - make_interval(mins => matched.priority)) end
  from unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::boolean[], $5::timestamptz[], $6::integer[])
       as matched (position, created_at, subscription_id, leased, deliver_after, priority)
returning id, position, subscription_id
