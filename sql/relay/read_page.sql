-- One page of an open window, in the order of positions.
--   $1 the cursor's snapshot   $2 the window's end   $3 routed up to   $4 nothing above   $5 how many at most   $6 whether payloads are wanted
--   $7 the cursor's step
--
-- Ordered by position and not by transaction id: with row locks on the entity, position order is causal order per key.
-- There is always at least one row: it carries what read_events.sql carries too.
with page as materialized (
    select event.position, event.created_at, event.id, event.topic, event.key, event.organization, event.priority,
           event.deliver_after, event.source, event.user_id, event.schema_version, event.headers,
           case when $6::boolean and pg_column_size(event.payload) <= 16384 then event.payload::text end as payload
      from outbox.events as event
     where event.position > $3::bigint
       and event.position <= $4::bigint
       and pg_visible_in_snapshot(event.xid, $2::text::pg_snapshot)
       and not pg_visible_in_snapshot(event.xid, $1::text::pg_snapshot)
     order by event.position
     limit $5::bigint
)
select now_seen.snapshot, now_seen.generation,
       page.position, page.created_at, page.id, page.topic, page.key, page.organization, page.priority, page.deliver_after,
       page.source, page.user_id, page.schema_version, page.headers::text as headers,
       case when octet_length(page.payload) <= 16384 then page.payload end as payload,
       now_seen.step, now_seen.drawn
  from (select pg_current_snapshot()::text as snapshot,
               (select generation.value from outbox.generation) as generation,
               (select cursor.step from outbox.cursor as cursor where cursor.step >= $7::bigint order by cursor.step desc limit 1) as step,
               (select sequence.last_value - 1 from outbox.events_position_seq as sequence) as drawn) as now_seen
  left join page on true
 order by page.position
