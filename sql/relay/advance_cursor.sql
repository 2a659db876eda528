-- One routing step: move the cursor from the step it was read at, and insert what was matched. If another relay has moved
-- it meanwhile, nothing happens and no row comes back: the first to commit wins, and the loser's reading is void.
--   $1 step it was read at   $2 settled   $3 low, or null: as it was read now, $16   $4 window_end
--   $5 window_low, or null: as it was read now, $16   $6 page_after   $7 page_until
--   $8 positions   $9 the events' created_at   $10 subscriptions   $11 leased or not   $12 not before (null: at once)
--   $13 priorities   $14 lease token   $15 length of the lease in seconds
--   $16 highest position drawn when the events were read   $17 low_xid   $18 window_low_xid
--   $19 subscriptions that this step is the first to know, and that want events from before
--
-- Rows with a lease are sent by this relay at once; the others wait for any relay to claim them.
-- A point of priority is worth a minute of waiting: it moves the due time into the past, where claiming begins, yet never
-- before `not before`; of a null and a time the greatest is the time.
-- `low` goes with this transaction's id: a transaction with a higher id began after $16 was read, and draws its positions
-- after it got its id, so its events lie above. A snapshot's xmax would not do: it is one more than the newest transaction
-- that has *ended*, and newer ones may have drawn positions already.
-- A statement of its own and not part of a transaction that reads, matches and writes: nothing is locked while the relay
-- thinks, and a step costs two round trips instead of six.
with moved as (
    update outbox.cursor
       set step       = step + 1,
           settled    = $2::text::pg_snapshot,
           low        = coalesce($3::bigint, $16::bigint),
           low_xid    = case when $3::bigint is null then pg_current_xact_id() else $17::text::xid8 end,
           window_end = $4::text::pg_snapshot,
           window_low = case when $4::text is not null then coalesce($5::bigint, $16::bigint) end,
           window_low_xid = case when $4::text is null then null when $5::bigint is null then pg_current_xact_id() else $18::text::xid8 end,
           page_after = $6::bigint,
           page_until = $7::bigint
     where step = $1::bigint
    returning step, low, low_xid::text as low_xid, window_low, window_low_xid::text as window_low_xid
),
-- The old row: what was routed before this step.
fixed as (
    update outbox.starts as start
       set settled = before.settled, window_end = before.window_end, page_after = before.page_after, until = $16::bigint + 1
      from moved
     cross join (select cursor.settled, cursor.window_end, cursor.page_after from outbox.cursor as cursor where cursor.step = $1::bigint) as before
     where start.subscription_id = any ($19::bigint[])
       and start.settled is null
),
inserted as (
    insert into outbox.deliveries (position, created_at, subscription_id, attempt, lease_token, owed_since, due_at)
    select matched.position,
           matched.created_at,
           matched.subscription_id,
           case when matched.leased then 1 else 0 end,
           case when matched.leased then $14::uuid end,
           greatest(coalesce(matched.deliver_after, now()), now()),
           case when matched.leased then now() + make_interval(secs => $15::double precision)
                else greatest(matched.deliver_after, now() - make_interval(mins => matched.priority)) end
      from moved
     cross join unnest($8::bigint[], $9::timestamptz[], $10::bigint[], $11::boolean[], $12::timestamptz[], $13::integer[])
           as matched (position, created_at, subscription_id, leased, deliver_after, priority)
    returning id, position, subscription_id
)
select inserted.id, inserted.position, inserted.subscription_id, moved.low, moved.low_xid, moved.window_low, moved.window_low_xid
  from moved
  left join inserted on true
