-- Read the next events that a replay would look at, oldest first.
--   $1 position up to which the log was read   $2 highest position to look at
--   $3 since   $4 until (null: any)
--   $5 settled   $6 window_end, or null   $7 page_after, or null
--   $8 topic pattern (null: any)   $9 most events
select event.position, event.created_at, event.id, event.topic, event.key, event.organization,
       event.source, event.user_id,
       event.schema_version, event.headers::text as headers, event.payload::text as payload
  from outbox.events as event
 where event.position > $1::bigint
   and event.position <= $2::bigint
   and event.created_at >= $3::timestamptz
   and ($4::timestamptz is null or event.created_at < $4::timestamptz)
   and (pg_visible_in_snapshot(event.xid, $5::text::pg_snapshot)
        or $6::text is not null
           and event.position <= $7::bigint
           and pg_visible_in_snapshot(event.xid, $6::text::pg_snapshot))
   and ($8::text is null or outbox.topic_matches($8::text, event.topic))
 order by event.position
 limit $9::bigint;
