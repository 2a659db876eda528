-- More is new than fits a page: fix where the window of new events ends, and between which positions it lies.
--   $1 the cursor's `low`   $2 transactions in progress in the cursor's snapshot
--
-- Events of transactions that began after the cursor's snapshot lie above `low`; of those that were in progress, the
-- first position comes from the (xid, position) index. `page_until` is read after the snapshot was taken, so no event of
-- the window lies above it.
select pg_current_snapshot()::text as window_end,
       least($1::bigint, (
           select min(first.position) - 1
             from unnest($2::text[]) as was_open (xid)
            cross join lateral (
                  select event.position
                    from outbox.events as event
                   where event.xid = was_open.xid::xid8
                   order by event.xid, event.position
                   limit 1) as first)) as page_after,
       (select sequence.last_value from outbox.events_position_seq as sequence) as page_until
