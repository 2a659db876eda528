-- One routing step in one commit: moves the cursor and writes what the relay has matched. If
-- another relay moved the cursor after this one read it, nothing is written and no row is returned.
--   $1 step of the cursor that was read
--   $2 settled
--   $3 low; null: $18
--   $4 window_end
--   $5 window_low; null: $18
--   $6 page_after
--   $7 page_until
--   Pages that this relay delivers now, one entry for each page and subscription:
--   $8 number of the page   $9 subscription, ascending within a page   $10 positions
--   $11 lease token
--   $12 length of the lease in seconds
--   $13 this relay
--   New rows of the backlog:
--   $14 subscriptions   $15 positions
--   For pages and backlog:
--   $16 $17 first and last created_at of the events
--   For the cursor and for starts:
--   $18 highest position that was drawn when the events were read
--   $19 low_xid
--   $20 window_low_xid
--   $21 subscriptions that want past events and that no step knew before this one
--   New rows of deliveries, for events with a due time of their own:
--   $22 positions   $23 created_at of the events   $24 subscriptions
--   $25 earliest time of the first attempt; null: now
--   $26 priorities
--   $27 positions of events that were routed early
--
-- Returns one row for each page, or one row without a page.
-- One point of priority counts as one minute of waiting: it moves the due time into the past, where
-- claims begin, but never before $25. The greatest of a null and a time is the time.
-- `low` belongs to the id of this transaction: a transaction with a higher id began after $18 was
-- read and draws its positions after it got its id, so its events have higher positions. The xmax
-- of a snapshot would be too low: it follows the newest transaction that has ended, and newer ones
-- may have drawn positions already.
-- This is a statement by itself, not the end of a transaction that also reads: nothing is locked
-- while the relay matches, and a step costs two round trips instead of six.
with moved as (
    update outbox.cursor
       set step       = step + 1,
           settled    = $2::text::pg_snapshot,
           low        = coalesce($3::bigint, $18::bigint),
           low_xid    = case when $3::bigint is null then pg_current_xact_id()
                             else $19::text::xid8 end,
           window_end = $4::text::pg_snapshot,
           window_low = case when $4::text is not null then coalesce($5::bigint, $18::bigint) end,
           window_low_xid = case when $4::text is null then null
                                 when $5::bigint is null then pg_current_xact_id()
                                 else $20::text::xid8 end,
           page_after = $6::bigint,
           page_until = $7::bigint
     where step = $1::bigint
    returning step, low, low_xid::text as low_xid, window_low,
              window_low_xid::text as window_low_xid
),
-- Past events are those that were routed before this step: the cursor's old row.
fixed as (
    update outbox.starts as start
       set settled = before.settled, window_end = before.window_end,
           page_after = before.page_after, until = $18::bigint + 1
      from moved
     cross join (select cursor.settled, cursor.window_end, cursor.page_after
                   from outbox.cursor as cursor
                  where cursor.step = $1::bigint) as before
     where start.subscription_id = any ($21::bigint[])
       and start.settled is null
),
-- A subscription did not get the urgent events that were routed early before this step knew it, and
-- routing passes them.
overtaken as (
    insert into outbox.backlog (
        subscription_id, positions, owed_since, created_from, created_until, is_ordered)
    select start.subscription_id, past.positions, now(), past.created_from, past.created_until,
           exists (select from outbox.subscriptions as subscription
                    where subscription.id = start.subscription_id
                      and subscription.ordering = 'key')
      from moved
     cross join unnest($21::bigint[]) as starting (id)
      join outbox.starts as start
        on start.subscription_id = starting.id
       and start.settled is null
     cross join lateral (
           select range_agg(int8range(early.position, early.position + 1)) as positions,
                  min(early.created_at) as created_from, max(early.created_at) as created_until
             from outbox.routed_early as early
            where early.position > start.position
              and (start.since is null or early.created_at >= start.since)) as past
     where past.positions is not null
),
passed as (
    delete from outbox.routed_early as early
     where early.position = any ($27::bigint[])
       and exists (select from moved)
),
paged as (
    insert into outbox.pages (
        lease_token, due_at, relay, created_from, created_until, subscriptions, owed, owed_since)
    select $11::uuid, now() + make_interval(secs => $12::double precision), $13::text,
           $16::timestamptz, $17::timestamptz,
           array_agg(entry.subscription_id order by entry.n),
           array_agg(entry.positions::int8multirange order by entry.n), array[now()]
      from moved
     cross join unnest($8::integer[], $9::bigint[], $10::text[]) with ordinality
           as entry (page, subscription_id, positions, n)
     group by entry.page
     order by entry.page
    returning id
),
waiting as (
    insert into outbox.backlog (
        subscription_id, positions, owed_since, created_from, created_until, is_ordered)
    select entry.subscription_id, entry.positions::int8multirange, now(),
           $16::timestamptz, $17::timestamptz,
           exists (select from outbox.subscriptions as subscription
                    where subscription.id = entry.subscription_id
                      and subscription.ordering = 'key')
      from moved
     cross join unnest($14::bigint[], $15::text[]) as entry (subscription_id, positions)
),
inserted as (
    insert into outbox.deliveries (position, created_at, subscription_id, owed_since, due_at)
    select matched.position,
           matched.created_at,
           matched.subscription_id,
           greatest(coalesce(matched.deliver_after, now()), now()),
           greatest(matched.deliver_after, now() - make_interval(mins => matched.priority))
      from moved
     cross join unnest($22::bigint[], $23::timestamptz[], $24::bigint[], $25::timestamptz[],
                       $26::integer[])
           as matched (position, created_at, subscription_id, deliver_after, priority)
)
select paged.id, moved.low, moved.low_xid, moved.window_low, moved.window_low_xid,
       now() as owed_since
  from moved
  left join paged on true
