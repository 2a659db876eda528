-- Read one page of an open window: the lowest positions, in no order.
--   $1 the cursor's snapshot
--   $2 snapshot at which the window ends
--   $3 position up to which the window is routed
--   $4 highest position to look at
--   $5 how many events at most
--   $6 whether payloads are wanted
--   $7 step of the cursor
--
-- Ordered by position, not by transaction id: when publishers lock the row of their entity, the
-- events of a key have the order of their positions.
-- A snapshot is read once: without `select` its text would be parsed for each row.
-- There is always at least one row. Its columns are those of read_events.sql.
with page as materialized (
    select event.position, event.created_at, event.id, event.topic, event.key, event.organization,
           event.priority, event.deliver_after, event.source, event.user_id, event.schema_version,
           event.headers,
           case when $6::boolean and pg_column_size(event.payload) <= 16384
                then event.payload::text end as payload
      from outbox.events as event
     where event.position > $3::bigint
       and event.position <= $4::bigint
       and pg_visible_in_snapshot(event.xid, (select $2::text::pg_snapshot))
       and not pg_visible_in_snapshot(event.xid, (select $1::text::pg_snapshot))
     order by event.position
     limit $5::bigint
)
select page.position, page.created_at, page.id, page.topic, page.key, page.organization,
       page.source,
       page.user_id, page.schema_version, page.headers::text as headers,
       case when octet_length(page.payload) <= 16384 then page.payload end as payload,
       page.priority, page.deliver_after,
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
