-- Read events that are visible now and were not visible in the cursor's snapshot, in no order.
--   $1 xmax of the cursor's snapshot
--   $2 transactions in progress in it
--   $3 how many events at most
--   $4 whether payloads are wanted
--   $5 step of the cursor
--
-- The snapshot is passed in parts: joined from a table, it could not bound the index scan.
-- There are two branches because no single index scan answers a range `or` an `any`. Of the
-- transactions in $2 only those that have committed are scanned: the entries of a bulk load that is
-- in progress, or was aborted, are passed one by one. There is always at least one row. Every row
-- has the snapshot, the generation of subscriptions and the time of the newest pause in it, the
-- current step of the cursor and the highest position drawn so far. When the step is not $5, the
-- relay drops what it read.
-- Payloads above 16 KiB are left out and read before they are sent.
-- Event columns come first and in this order, because the relay reads them by place.
with fresh as materialized (
    select began.*
      from (select event.position, event.created_at, event.id, event.topic, event.key,
                   event.organization, event.priority, event.deliver_after, event.source,
                   event.user_id, event.schema_version, event.headers,
                   case when $4::boolean and pg_column_size(event.payload) <= 16384
                        then event.payload::text end as payload
              from outbox.events as event
             where event.xid >= $1::text::xid8
             order by event.xid, event.position
             limit $3::bigint) as began
    union all
    select ended.*
      from (select event.position, event.created_at, event.id, event.topic, event.key,
                   event.organization, event.priority, event.deliver_after, event.source,
                   event.user_id, event.schema_version, event.headers,
                   case when $4::boolean and pg_column_size(event.payload) <= 16384
                        then event.payload::text end as payload
              from unnest($2::text[]) as was_open (xid)
             cross join lateral (
                   select late.*
                     from outbox.events as late
                    -- With `=` the planner could take the order by position from the other index,
                    -- and read all of it.
                    where late.xid >= was_open.xid::xid8
                      and late.xid <= was_open.xid::xid8
                    order by late.xid, late.position
                    limit $3::bigint) as event
             where case when pg_visible_in_snapshot(was_open.xid::xid8, pg_current_snapshot())
                        then pg_xact_status(was_open.xid::xid8) is distinct from 'aborted' end
             limit $3::bigint) as ended
)
select fresh.position, fresh.created_at, fresh.id, fresh.topic, fresh.key, fresh.organization,
       fresh.source,
       fresh.user_id, fresh.schema_version, fresh.headers::text as headers,
       case when octet_length(fresh.payload) <= 16384 then fresh.payload end as payload,
       fresh.priority, fresh.deliver_after,
       -- not `exists`, of which the planner could make one look at the whole table
       case when fresh.priority > 0
            then coalesce((select true from outbox.routed_early as early
                            where early.position = fresh.position), false) end as routed_early,
       now_seen.snapshot, now_seen.generation, now_seen.newest_pause, now_seen.step, now_seen.drawn
  from (select pg_current_snapshot()::text as snapshot,
               (select generation.value from outbox.generation) as generation,
               (select max(pause.asked_at) from outbox.pauses as pause) as newest_pause,
               (select cursor.step
                  from outbox.cursor as cursor
                 where cursor.step >= $5::bigint
                 order by cursor.step desc
                 limit 1) as step,
               (select sequence.last_value - 1
                  from outbox.events_position_seq as sequence) as drawn) as now_seen
  left join fresh on true
