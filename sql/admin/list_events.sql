-- Events without headers and payloads, newest first, among the newest.
--   $1 topic pattern   $2 key   $3 organization   $4 since (null: any)   $5 most rows
--   $6 how many of the newest are looked at   $7 only those before this position (null: any)
select event.id as event_id, event.position, event.topic, event.key, event.organization,
       event.source, event.user_id, event.schema_version, event.priority, event.created_at,
       event.deliver_after
  from (select newest.*
          from outbox.events as newest
         where $7::bigint is null or newest.position < $7::bigint
         order by newest.position desc
         limit $6::bigint) as event
 where ($1::text is null or outbox.topic_matches($1::text, event.topic))
   and ($2::text is null or event.key = $2::text)
   and ($3::text is null or event.organization = $3::text)
   and ($4::timestamptz is null or event.created_at >= $4::timestamptz)
 order by event.position desc
 limit $5::bigint;
