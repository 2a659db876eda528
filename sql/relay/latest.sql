-- Read the newest event of each key and organization, as outbox.latest does, with the snapshot that
-- it is true in and the lower bounds of the cursor.
--   $1 patterns of topics
--   $2 organization; null: all
--   $3 beginnings of keys; null: every key
--   $4 how many keys at most; one more is read, so that "too many" can be said
--   $5 how many events of the log may be looked at; if there are more, none is
--   $6 patterns of which one must match, too; null: none need to
--
-- There is no index on keys, which every publisher would pay for: this reads the log.
-- All patterns are one expression, because PostgreSQL keeps only a few compiled.
-- There is always at least one row. Payloads above 16 KiB are left out.
-- Event columns come first and in this order, because the relay reads them by place.
with log as materialized (
    select count(*) > $5::bigint as is_too_large
      from (select from outbox.events as event limit $5::bigint + 1) as event
),
wanted as materialized (
    select string_agg(one.expression, '|') as every,
           string_agg(one.expression, '|') filter (where one.is_reserved) as reserved
      from (select outbox_internal.topic_expression(pattern) as expression,
                   starts_with(pattern, 'outbox.') as is_reserved
              from unnest($1::text[]) as pattern) as one
),
allowed as materialized (
    select string_agg(one.expression, '|') as every,
           string_agg(one.expression, '|') filter (where one.is_reserved) as reserved
      from (select outbox_internal.topic_expression(pattern) as expression,
                   starts_with(pattern, 'outbox.') as is_reserved
              from unnest($6::text[]) as pattern) as one
),
newest as materialized (
    select distinct on (event.organization, event.key) event.position, event.created_at
      from outbox.events as event
     where not (select log.is_too_large from log)
       and event.key is not null
       and ($2::text is null or event.organization = $2::text)
       and ($3::text[] is null
            or exists (select from unnest($3::text[]) as beginning (text)
                        where starts_with(event.key, beginning.text)))
       and case when starts_with(event.topic, 'outbox.')
                then ('.' || event.topic) ~ (select wanted.reserved from wanted)
                else ('.' || event.topic) ~ (select wanted.every from wanted) end
       and ($6::text[] is null
            or case when starts_with(event.topic, 'outbox.')
                    then ('.' || event.topic) ~ (select allowed.reserved from allowed)
                    else ('.' || event.topic) ~ (select allowed.every from allowed) end)
     order by event.organization, event.key, event.position desc
     limit $4::bigint + 1
)
select event.position, event.created_at, event.id, event.topic, event.key, event.organization,
       event.source,
       event.user_id, event.schema_version, event.headers::text as headers,
       case when pg_column_size(event.payload) <= 16384
                 and octet_length(event.payload::text) <= 16384
            then event.payload::text end as payload,
       event.priority, event.deliver_after,
       now_seen.snapshot, cursor.low, cursor.low_xid::text as low_xid, log.is_too_large,
       (select count(*) from newest) > $4::bigint as has_more
  from (select pg_current_snapshot()::text as snapshot) as now_seen
 cross join log
 cross join (select one.low, one.low_xid
               from outbox.cursor as one
              order by one.step desc
              limit 1) as cursor
  left join newest on true
  left join outbox.events as event
    on event.position = newest.position
   and event.created_at = newest.created_at
 order by event.position
