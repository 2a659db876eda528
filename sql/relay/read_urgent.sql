-- Read urgent events that routing has not come to and that no relay has routed early, in no order.
--   $1 xmax of a snapshot in which all urgent events are routed
--   $2 transactions in progress in it
--   $3 how many events at most, of each kind
--   $4 whether payloads are wanted
--   $5 step of the cursor
--   $6 the cursor's snapshot
--   $7 snapshot at which its window ends; null: there is no window
--   $8 position up to which the window is routed
--
-- The two branches are those of read_events.sql, along an index that has urgent events only.
-- $1 may be older than $6, and newer: it belongs to the last look of this relay. So what each of
-- them has routed is left out one by one.
-- There is always at least one row. Its columns are those of read_events.sql.
with fresh as materialized (
    select began.*
      from (select event.position, event.created_at, event.id, event.topic, event.key,
                   event.organization, event.priority, event.deliver_after, event.source,
                   event.user_id, event.schema_version, event.headers,
                   case when $4::boolean and pg_column_size(event.payload) <= 16384
                        then event.payload::text end as payload
              from outbox.events as event
             where event.priority > 0
               and event.xid >= $1::text::xid8
               and not pg_visible_in_snapshot(event.xid, (select $6::text::pg_snapshot))
               and not coalesce(event.position <= $8::bigint
                                and pg_visible_in_snapshot(event.xid,
                                                           (select $7::text::pg_snapshot)), false)
               and not exists (select from outbox.routed_early as early
                                where early.position = event.position)
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
                    where late.priority > 0
                      and late.xid >= was_open.xid::xid8
                      and late.xid <= was_open.xid::xid8
                      and not coalesce(late.position <= $8::bigint
                                       and pg_visible_in_snapshot(
                                               late.xid, (select $7::text::pg_snapshot)), false)
                      and not exists (select from outbox.routed_early as early
                                       where early.position = late.position)
                    order by late.xid, late.position
                    limit $3::bigint) as event
             where case when pg_visible_in_snapshot(was_open.xid::xid8, pg_current_snapshot())
                             and not pg_visible_in_snapshot(was_open.xid::xid8,
                                                            (select $6::text::pg_snapshot))
                        then pg_xact_status(was_open.xid::xid8) is distinct from 'aborted' end
             limit $3::bigint) as ended
)
select fresh.position, fresh.created_at, fresh.id, fresh.topic, fresh.key, fresh.organization,
       fresh.source,
       fresh.user_id, fresh.schema_version, fresh.headers::text as headers,
       case when octet_length(fresh.payload) <= 16384 then fresh.payload end as payload,
       fresh.priority, fresh.deliver_after, false as routed_early,
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
