-- Read one page of an open window: the lowest positions, in no order.
--   $1 the cursor's snapshot
--   $2 snapshot at which the window ends
--   $3 position up to which the window is routed
--   $4 highest position to look at
--   $5 how many events at most, of each kind
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
-- The page is the first $5 of what is returned.
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
    select above.*
      from (select event.position, event.created_at, event.id, event.topic, event.key,
                   event.organization, event.priority, event.deliver_after, event.source,
                   event.user_id, event.schema_version, event.headers,
                   case when $6::boolean and pg_column_size(event.payload) <= 16384
                        then event.payload::text end as payload
              from outbox.events as event
             where event.position > greatest($3::bigint, $8::bigint)
               and event.position <= $4::bigint
               and pg_visible_in_snapshot(event.xid, (select $2::text::pg_snapshot))
               and not pg_visible_in_snapshot(event.xid, (select $1::text::pg_snapshot))
             order by event.position
             limit $5::bigint) as above
    union all
    select below.*
      from (select event.position, event.created_at, event.id, event.topic, event.key,
                   event.organization, event.priority, event.deliver_after, event.source,
                   event.user_id, event.schema_version, event.headers,
                   case when $6::boolean and pg_column_size(event.payload) <= 16384
                        then event.payload::text end as payload
              from late
             cross join lateral (
                   select one.*
                     from outbox.events as one
                    -- With `=` the planner could take the order by position from the other index,
                    -- and read all of it.
                    where one.xid >= late.xid
                      and one.xid <= late.xid
                      and one.position > $3::bigint
                      and one.position <= least($4::bigint, $8::bigint)
                    order by one.xid, one.position
                    limit $5::bigint) as event
             order by event.position
             limit $5::bigint) as below
)
select page.position, page.created_at, page.id, page.topic, page.key, page.organization,
       page.source,
       page.user_id, page.schema_version, page.headers::text as headers,
       case when octet_length(page.payload) <= 16384 then page.payload end as payload,
       page.priority, page.deliver_after,
       -- not `exists`, of which the planner could make one look at the whole table
       case when page.priority > 0
            then coalesce((select true from outbox.routed_early as early
                            where early.position = page.position), false) end as routed_early,
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
  left join page on true
