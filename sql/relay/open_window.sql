-- There are more new events than fit one page: fix the snapshot at which their window ends, and the
-- positions between which its events lie.
--   $1 low of the cursor
--   $2 transactions in progress in the cursor's snapshot
--   $3 xmax of the cursor's snapshot
--   $4 low_xid of the cursor
--
-- Events of transactions with a higher id than `low_xid` have higher positions than `low`. Of the
-- transactions in $2, and of those from $3 to $4, the first position is found with the index on
-- (xid, position), if they have committed: the entries of others are passed one by one.
-- `page_until` is read after the snapshot was taken, so no event of the window has a higher
-- position.
with was_open (xid) as (
    select open.xid
      from (select named.xid::xid8 from unnest($2::text[]) as named (xid)
            union all
            select newer.xid::text::xid8
              from generate_series($3::text::bigint, $4::text::bigint) as newer (xid)
           ) as open (xid)
     where case when pg_visible_in_snapshot(open.xid, pg_current_snapshot())
                then pg_xact_status(open.xid) is distinct from 'aborted' end
)
select pg_current_snapshot()::text as window_end,
       least($1::bigint, (
           select min(first.position) - 1
             from was_open
            cross join lateral (
                  select event.position
                    from outbox.events as event
                   -- With `=` the planner could take the order by position from the other index,
                   -- and read all of it.
                   where event.xid >= was_open.xid
                     and event.xid <= was_open.xid
                   order by event.xid, event.position
                   limit 1) as first)) as page_after,
       (select sequence.last_value from outbox.events_position_seq as sequence) as page_until
