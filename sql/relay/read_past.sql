-- Read the next part of the log for a subscription that wants events from before it was made.
--   $1 position up to which the log was read
--   $2 highest position to look at
--   $3 settled
--   $4 window_end, or null
--   $5 page_after, or null
--   $6 earliest created_at that is wanted; null: all
--   $7 how many events to look at
--   $8 whether payloads are wanted
--
-- The limit counts events that are looked at, not those that are found: a statement must not read
-- the whole log to find one event at its end.
-- There is always at least one row; every row has the position that was reached. Payloads above 16
-- KiB are left out.
-- Event columns come first and in this order, because the relay reads them by place.
with looked_at as materialized (
    select event.*
      from outbox.events as event
     where event.position > $1::bigint
       and event.position <= $2::bigint
     order by event.position
     limit $7::bigint
),
past as materialized (
    select looked_at.position, looked_at.created_at, looked_at.id, looked_at.topic, looked_at.key,
           looked_at.organization, looked_at.source, looked_at.user_id, looked_at.schema_version,
           looked_at.headers, looked_at.priority, looked_at.deliver_after,
           case when $8::boolean and pg_column_size(looked_at.payload) <= 16384
                then looked_at.payload::text end as payload
      from looked_at
     where (pg_visible_in_snapshot(looked_at.xid, (select $3::text::pg_snapshot))
            or $4::text is not null
               and looked_at.position <= $5::bigint
               and pg_visible_in_snapshot(looked_at.xid, (select $4::text::pg_snapshot)))
       and ($6::timestamptz is null or looked_at.created_at >= $6::timestamptz)
)
select past.position, past.created_at, past.id, past.topic, past.key, past.organization,
       past.source,
       past.user_id, past.schema_version, past.headers::text as headers,
       case when octet_length(past.payload) <= 16384 then past.payload end as payload,
       past.priority, past.deliver_after,
       seen.reached, seen.looked_at
  from (select max(looked_at.position) as reached, count(*) as looked_at from looked_at) as seen
  left join past on true
 order by past.position
