-- Read events by their positions, each once, with payloads of at most $4 bytes.
--   $1 positions
--   $2 $3 first and last created_at of the events, which select the partitions
--   $4 size in bytes of the largest payload that is wanted
--
-- An event whose payload is longer than 256 KiB as text is left out: a few bytes such as 1e131071
-- can become very long.
-- Event columns come first and in this order, because the relay reads them by place.
select event.position, event.created_at, event.id, event.topic, event.key, event.organization,
       event.source, event.user_id, event.schema_version, event.headers,
       case when octet_length(event.payload) <= $4::integer then event.payload end as payload
  from (select event.position, event.created_at, event.id, event.topic, event.key,
               event.organization, event.source, event.user_id,
               event.schema_version, event.headers::text as headers, event.payload::text as payload
          from outbox.events as event
         where event.position = any ($1::bigint[])
           and event.created_at between $2::timestamptz and $3::timestamptz
        offset 0) as event  -- so that a payload is converted to text only once
 where octet_length(event.payload) <= 262144
