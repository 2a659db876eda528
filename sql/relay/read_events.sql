-- Events that are visible now and not visible in the cursor's snapshot: at most $3 of them, unordered.
--   $1 xmax of the cursor's snapshot   $2 its transactions in progress   $3 how many at most   $4 whether payloads are wanted
--   $5 the cursor's step
--
-- The snapshot's parts are parameters, not a join: joined, the planner cannot use the index.
-- Two arms, for a range `or` an `any` cannot use one index scan. Of the transactions that were in progress, only those
-- that have ended are looked at: a bulk load that is still open is not scanned again and again.
-- There is always at least one row: it carries the snapshot, the generation of subscriptions seen by it, the cursor's
-- step as it is now (another one than $5: what was read is void) and the highest position drawn so far.
-- Large payloads are left out; they are read when they are sent.
with fresh as materialized (
    select began.*
      from (select event.position, event.created_at, event.id, event.topic, event.key, event.organization, event.priority,
                   event.deliver_after, event.source, event.user_id, event.schema_version, event.headers,
                   case when $4::boolean and pg_column_size(event.payload) <= 16384 then event.payload::text end as payload
              from outbox.events as event
             where event.xid >= $1::text::xid8
             order by event.xid, event.position
             limit $3::bigint) as began
    union all
    select ended.*
      from (select event.position, event.created_at, event.id, event.topic, event.key, event.organization, event.priority,
                   event.deliver_after, event.source, event.user_id, event.schema_version, event.headers,
                   case when $4::boolean and pg_column_size(event.payload) <= 16384 then event.payload::text end as payload
              from unnest($2::text[]) as was_open (xid)
             cross join lateral (
                   select late.*
                     from outbox.events as late
                    where late.xid >= was_open.xid::xid8  -- not `=`: the order by position alone could then be taken from
                      and late.xid <= was_open.xid::xid8  -- the other index, by reading all of it
                    order by late.xid, late.position
                    limit $3::bigint) as event
             where pg_visible_in_snapshot(was_open.xid::xid8, pg_current_snapshot())
             limit $3::bigint) as ended
)
select now_seen.snapshot, now_seen.generation,
       fresh.position, fresh.created_at, fresh.id, fresh.topic, fresh.key, fresh.organization, fresh.priority, fresh.deliver_after,
       fresh.source, fresh.user_id, fresh.schema_version, fresh.headers::text as headers,
       case when octet_length(fresh.payload) <= 16384 then fresh.payload end as payload,
       now_seen.step, now_seen.drawn
  from (select pg_current_snapshot()::text as snapshot,
               (select generation.value from outbox.generation) as generation,
               (select cursor.step from outbox.cursor as cursor where cursor.step >= $5::bigint order by cursor.step desc limit 1) as step,
               (select sequence.last_value - 1 from outbox.events_position_seq as sequence) as drawn) as now_seen
  left join fresh on true
