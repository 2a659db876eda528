-- Events by their positions, each once, with payloads of at most $4 bytes. One that has no text of reasonable size is not among them:
-- a few bytes such as 1e131071 may be very many when they are written out.
--   $1 positions   $2 $3 the span of their created_at, which finds the partitions   $4 bytes of the largest payload that is wanted
select event.position, event.created_at, event.id, event.topic, event.key, event.organization, event.source, event.user_id,
       event.schema_version, event.headers, case when octet_length(event.payload) <= $4::integer then event.payload end as payload
  from (select event.position, event.created_at, event.id, event.topic, event.key, event.organization, event.source, event.user_id,
               event.schema_version, event.headers::text as headers, event.payload::text as payload
          from outbox.events as event
         where event.position = any ($1::bigint[])
           and event.created_at between $2::timestamptz and $3::timestamptz
        offset 0) as event  -- written out once, not again to be measured
 where octet_length(event.payload) <= 262144
