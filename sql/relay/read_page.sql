-- Read one page of an open window: the lowest positions, in no order.
--   $1 the cursor's snapshot
--   $2 snapshot at which the window ends
--   $3 position up to which the window is routed
--   $4 highest position to look at
--   $5 how many events at most
--   $6 whether payloads are wanted
--   $7 step of the cursor
--   $8 low of the cursor
--   $9 transactions in progress in the cursor's snapshot
--   $10 xmax of the cursor's snapshot
--   $11 low_xid of the cursor
--
-- Ordered by position, not by transaction id: when publishers lock the row of their entity, the
-- events of a key have the order of their positions.
-- Events above $8 are read along the index on position. Those below it are of transactions that
-- committed late; they are read by transaction, because millions of routed events may lie between
-- them. A transaction that was aborted has left only dead entries, which are not read either.
-- A snapshot is read once: without `select` its text would be parsed for each row.
-- There is always at least one row. Its columns are those of read_events.sql.
with late (xid) as materialized (
    select open.xid
      from (select named.xid::xid8 from unnest($9::text[]) as named (xid)
            union all
            select newer.xid::text::xid8
              from generate_series($10::text::bigint, $11::text::bigint) as newer (xid)
           ) as open (xid)
     where $3::bigint < $8::bigint
       and case when pg_visible_in_snapshot(open.xid, (select $2::text::pg_snapshot))
                then pg_xact_status(open.xid) is distinct from 'aborted' end
),
page as materialized (
    select either.*
      from (select above.*
              from (select event.*
                      from outbox.events as event
                     where event.position > greatest($3::bigint, $8::bigint)
                       and event.position <= $4::bigint
                       and pg_visible_in_snapshot(event.xid, (select $2::text::pg_snapshot))
                       and not pg_visible_in_snapshot(event.xid, (select $1::text::pg_snapshot))
                     order by event.position
                     limit $5::bigint) as above
            union all
            select below.*
              from late
             cross join lateral (
                   select event.*
                     from outbox.events as event
                    -- With `=` the planner could take the order by position from the other index,
                    -- and read all of it.
                    where event.xid >= late.xid
                      and event.xid <= late.xid
                      and event.position > $3::bigint
                      and event.position <= least($4::bigint, $8::bigint)
                    order by event.xid, event.position
                    limit $5::bigint) as below
           ) as either
     order by either.position
     limit $5::bigint
),
readable as materialized (
    select page.*, case when $6::boolean and pg_column_size(page.payload) <= 16384
                        then page.payload::text end as payload_text
      from page
)
select readable.position, readable.created_at, readable.id, readable.topic, readable.key,
       readable.organization, readable.source, readable.user_id, readable.schema_version,
       readable.headers::text as headers,
       case when octet_length(readable.payload_text) <= 16384
            then readable.payload_text end as payload,
       readable.priority, readable.deliver_after,
       now_seen.snapshot, now_seen.generation, now_seen.newest_pause, now_seen.step, now_seen.drawn
  from (select pg_current_snapshot()::text as snapshot,
               (select generation.value from outbox.generation) as generation,
               (select max(pause.asked_at) from outbox.pauses as pause) as newest_pause,
               (select cursor.step
                  from outbox.cursor as cursor
                 where cursor.step >= $7::bigint
                 order by cursor.step desc
                 limit 1) as step,
               (select sequence.last_value - 1
                  from outbox.events_position_seq as sequence) as drawn) as now_seen
  left join readable on true
