-- More is new than fits a page: fix where the window of new events ends, and between which positions it lies.
--   $1 the cursor's `low`   $2 transactions in progress in the cursor's snapshot   $3 its xmax   $4 the cursor's `low_xid`
--
-- Events of transactions with a higher id than `low_xid` lie above `low`. Of those that were in progress, named in the
-- snapshot or between its xmax and `low_xid`, the first position comes from the (xid, position) index. `page_until` is read
-- after the snapshot was taken, so no event of the window lies above it.
with was_open (xid) as (
    select named.xid::xid8 from unnest($2::text[]) as named (xid)
    union all
    select newer.xid::text::xid8 from generate_series($3::text::bigint, $4::text::bigint) as newer (xid)
)
select pg_current_snapshot()::text as window_end,
       least($1::bigint, (
           select min(first.position) - 1
             from was_open
            cross join lateral (
                  select event.position
                    from outbox.events as event
                   where event.xid >= was_open.xid  -- not `=`: the order by position alone could then be taken from
                     and event.xid <= was_open.xid  -- the other index, by reading all of it
                   order by event.xid, event.position
                   limit 1) as first)) as page_after,
       (select sequence.last_value from outbox.events_position_seq as sequence) as page_until
